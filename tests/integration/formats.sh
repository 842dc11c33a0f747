#!/usr/bin/env bash
# Pictures of every format: pixels against Pillow's, and the command line over a folder of good and broken ones.
# In: python3-pil, the tiny model. Out: checks on pixels, lines, errors and counts.
. "$(dirname "$0")/lib.sh"
export PYTHONDONTWRITEBYTECODE=1

/usr/bin/python3 tools/compare_with_pillow.py "$BUILD/picture_to_ppm" >"$DIR/pillow.log" 2>&1
same "pixels are Pillow's" 0 "$(grep -c FAILED "$DIR/pillow.log")"
check "of more than a hundred pictures" test "$(sed -nE 's/^([0-9]+) passed, 0 failed$/\1/p' "$DIR/pillow.log")" -ge 100

# --- a folder: each picture captioned, each broken one its own error, the rest skipped
/usr/bin/python3 tools/picture_samples.py "$DIR/folder" || fail "samples are made"
expected=$DIR/folder.expected out=$DIR/out.jsonl
export XDG_RUNTIME_DIR=$DIR/run TOKENFLEX_MODEL=$TINY
mkdir "$XDG_RUNTIME_DIR"
timeout -k 5 120 "$BUILD/tokenflex" caption "$DIR/folder" -o "$out" --max-new-tokens 3 >"$DIR/caption.out" 2>"$DIR/caption.err" </dev/null
same "some failed: status 3" 3 $?
count() { awk -F '\t' -v code="$1" '$2 == code { n++ } END { print n + 0 }' "$expected"; }
check "there are twenty broken files" test "$(awk -F '\t' '$2 ~ /^image_/' "$expected" | wc -l)" -ge 20
same "each good picture has its caption" "$(awk -F '\t' '$2 == "ok" { print $1 }' "$expected" | sort)" \
  "$(jq -r '.image | split("/") | last' "$out" | sort)"
same "each broken one has its code" "$(awk -F '\t' '$2 ~ /^image_/ { print $1, $2 }' "$expected" | sort)" \
  "$(jq -r '"\(.image | split("/") | last) \(.code)"' "$out.errors.jsonl" | sort)"
same "what is no picture is skipped and counted" "$(count skipped)" "$(jq .result.skipped "$out.run.json")"
same "every message says something of its own, but for the empty ones" "$(($(jq -s length "$out.errors.jsonl") - 3))" \
  "$(jq -r .message "$out.errors.jsonl" | sed -E 's/^.*\/folder\/[^:]*: //' | sort -u | wc -l)"
