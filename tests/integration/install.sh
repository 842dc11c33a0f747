#!/usr/bin/env bash
# What is installed beside the programs, and the report's page. In: the built programs, the tiny model.
# Out: checks on the man page, the completion, an installed tree that runs, and a page that is whole.
. "$(dirname "$0")/lib.sh"
export XDG_RUNTIME_DIR=$DIR/run PYTHONDONTWRITEBYTECODE=1
mkdir "$XDG_RUNTIME_DIR"

# --- man page and completion: every command and option that --help names
check "they are made" /usr/bin/python3 tools/make_docs.py "$BUILD/tokenflex" "$DIR"
commands=$("$BUILD/tokenflex" --help | sed -n '/^Commands:/,/^$/p' | sed '1d;$d' | awk '{ print $1 }')
check "there are commands" test "$(echo "$commands" | wc -w)" -ge 3
complete_words() { # the words that bash would offer after these
  bash -c '. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); compopt() { :; }; _tokenflex; printf "%s\n" "${COMPREPLY[@]}"' - "$DIR/tokenflex.bash" "$@"
}
same "commands are completed" "$(echo $commands)" "$(complete_words tokenflex '' | grep -vE '^(help|version|--)' | tr '\n' ' ' | sed 's/ $//')"
for command in $commands; do
  options=$("$BUILD/tokenflex" "$command" --help | grep -oE '^ {2,6}(-., )?--[a-z][a-z-]*' | grep -oE -- '--[a-z-]+' | sort)
  check "$command has options" test -n "$options"
  same "$command's are completed" "$options" "$(complete_words tokenflex "$command" -- | sort)"
  for option in $options; do
    grep -qF -- "\\fB$(echo "$option" | sed 's/-/\\-/g')\\fR" "$DIR/tokenflex.1" || fail "the man page has $command $option"
  done
done
same "a choice's words are completed" "csv jsonl" "$(complete_words tokenflex caption --format '' | sort | tr '\n' ' ' | sed 's/ $//')"
same "so are the words of dead" "list show retry drop" "$(complete_words tokenflex dead '' | xargs)"
check "the man page tells exit statuses" grep -qx ".SH EXIT STATUS" "$DIR/tokenflex.1"
if command -v man >/dev/null; then same "man has nothing to say against it" "" "$(man -l --warnings "$DIR/tokenflex.1" 2>&1 >/dev/null)"; fi

# --- an installed tree finds its own programs and model
mkdir -p "$DIR/usr/bin" "$DIR/usr/share/tokenflex"
cp "$BUILD"/tokenflex "$BUILD"/tokenflex-router "$BUILD"/tokenflex-encoder "$BUILD"/tokenflex-llm "$DIR/usr/bin/"
cp -r "$TINY" "$DIR/usr/share/tokenflex/model"

# --- the page
/usr/bin/python3 tools/picture_samples.py "$DIR/folder" || fail "samples are made"
good=$(awk -F '\t' '$2 == "ok"' "$DIR/folder.expected" | wc -l) bad=$(awk -F '\t' '$2 ~ /^image/' "$DIR/folder.expected" | wc -l)
cp "$DIR/folder/baseline.jpg" "$DIR/folder/$(printf '</script><b>.jpg' | tr / _)"
# TOKENFLEX_PAGE is a file for `report`, and must not reach the router, where it is on or off.
(unset TOKENFLEX_MODEL; export TOKENFLEX_PAGE="$DIR/later.html"
timeout -k 5 120 "$DIR/usr/bin/tokenflex" caption "$DIR/folder" -o "$DIR/out.jsonl" --max-new-tokens 3 \
  --report "$DIR/out.html" >/dev/null 2>"$DIR/caption.err" </dev/null)
same "some failed: status 3" 3 $?
page=$DIR/out.html
same "a row for each picture and each failure" $((good + 1 + bad)) "$(grep -c '^<script>R(' "$page")"
same "a thumbnail for each picture" $((good + 1)) "$(grep -cE '^<script>R\(\{.*\},"/9j/[A-Za-z0-9+/]+=*"\)</script>$' "$page")"
same "names end no script" 0 "$(grep -c '<b>' "$page" | awk '{ print $1 - 0 }')"
same "nothing is fetched from anywhere" 0 "$(grep -cE '(src|href)="?(https?:)?//' "$page")"
same "rows are JSON" $((good + 1 + bad)) "$(sed -nE 's/^<script>R\((\{.*\})(,"[^"]*")?\)<\/script>$/\1/p' "$page" | jq -s length)"
timeout 60 "$BUILD/tokenflex" report "$DIR/out.jsonl" -o "$DIR/again.html" 2>/dev/null
check "the same page again, from the output alone" cmp -s "$page" "$DIR/again.html"
"$BUILD/tokenflex" report "$DIR/folder.expected" -o "$DIR/never.html" 2>"$DIR/report.err"
same "what is no output is refused: status 1" 1 $?
check "and no page is left" test ! -e "$DIR/never.html" -a -z "$(find "$DIR" -name '.never.html.*')"
"$BUILD/tokenflex" caption "$DIR/folder" --report "$DIR/x.html" --model "$TINY" 2>/dev/null
same "a page without an output is wrong usage" 2 $?
