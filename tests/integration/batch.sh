#!/usr/bin/env bash
# Batch captioning over a long time: kills, resumed runs, full disks, lists, duplicates, upgrades, deadlines.
# In: the tiny model with the whole stack, crops of the example photos. Out: checks on what is on the disk afterwards.
# batch_load.sh has the runs in which only the number of pictures matters.
. "$(dirname "$0")/lib.sh"

TF=$(realpath "$BUILD/tokenflex")
export XDG_RUNTIME_DIR=$DIR/run TOKENFLEX_MODEL=$TINY TMPDIR=$DIR
mkdir "$XDG_RUNTIME_DIR"

# caption NAME ARGUMENTS...: output in NAME.out, messages in NAME.err, exit status in $status
caption() {
  local name=$1; shift
  timeout -k 5 120 "$TF" caption "$@" >"$DIR/$name.out" 2>"$DIR/$name.err" </dev/null
  status=$?
}
said() { grep -qF -- "$2" "$DIR/$1.err"; }
count() { wc -l <"$1"; }
images() { jq -r .image "$1" | sort; }
once() { [ "$(images "$1" | uniq -d | wc -l)" = 0 ]; } # each picture has one line
whole_json() { jq -es 'all(type == "object")' "$1" >/dev/null; }
p=$DIR/p
crops "$p" 300
cd "$DIR" || exit 1

# --- killed at twenty random moments, and gone on with each time
out=$DIR/night.jsonl
whole=yes middle=0
for round in $(seq 20); do
  setsid "$TF" caption "$p" -o "$out" >/dev/null 2>"$DIR/night.err" </dev/null &
  pid=$!
  before=$([ -e "$out" ] && count "$out" || echo 0)
  if [ $((round % 3)) = 0 ]; then # some before the stack is up
    sleep "0.$((RANDOM % 40 + 10))"
  else
    for _ in $(seq 1000); do [ -e "$out" ] && [ "$(count "$out")" -gt $((before + RANDOM % 12)) ] && break; sleep 0.01; done
  fi
  kill -KILL "$pid"
  wait "$pid" 2>/dev/null
  # The last line alone may be torn.
  head -c -1 "$out" 2>/dev/null | sed '$d' | jq -es 'all(type == "object")' >/dev/null || { [ -s "$out" ] && whole=no; }
  [ -e "$out" ] || continue
  if [ "$(count "$out")" -lt 300 ]; then middle=$((middle + 1)); continue; fi
  # A fast machine is through before the last kill: back to the first fifty pictures.
  once "$out" || whole=no
  head -n 50 "$out" >part && cat part >"$out"
done
same "a kill tears no line but the last" yes "$whole"
killed_at=$(count "$out")
check "the kills came in the middle" test "$middle" -ge 5
printf '{"id":"torn' >>"$out"
caption last "$p" -o "$out"
same "the last run ends well" 0 "$status"
check "it says that it repaired the end" said last "its 11 bytes were cut off"
check "and what was done before" said last "$((300 - killed_at)) captioned, 0 failed, $killed_at done before"
same "the union is each picture once" "$(find "$p" -type f | sort)" "$(images "$out")"
caption none "$p" -o "$out"
same "a run with nothing left to do" "0 300" "$status $(count "$out")"
check "starts nothing" test "$(grep -c model "$DIR/none.err")" = 0
same "its record keeps the model" 32 "$(jq -r '.model.pair_hash | length' "$out.run.json")"

# --- what matters to the result
refused() { # what, what is named, options...
  local what=$1 named=$2; shift 2
  caption refused "$p" -o "$out" "$@"
  same "$what: refused" 2 "$status"
  check "$what: named" said refused "$named"
}
refused "another prompt" '--prompt (then the model' --prompt "What is this?"
refused "another length" "--max-new-tokens (then 40, now 7)" --max-new-tokens 7
refused "fewer vision tokens" "--vision-tokens (then 16, now 4)" --vision-tokens 4
refused "auto" "--vision-tokens (then 16, now auto)" --vision-tokens auto
refused "another format" "--format (then jsonl, now csv)" --format csv
mkdir other_model
cp "$TINY"/*.gguf other_model/
printf '\1' | dd of=other_model/vision.gguf bs=1 seek=$(($(stat -c %s other_model/vision.gguf) - 20)) conv=notrunc 2>/dev/null
refused "another model" "the model (then " --model other_model
same "nothing of it has changed the output" 300 "$(count "$out")"
mkdir elsewhere
(cd elsewhere && timeout 60 "$TF" caption ../p -o "$out" 2>"$DIR/elsewhere.err")
same "relative names of another folder: refused" 2 $?
check "and the folder is named" said elsewhere "names in $out begin in $DIR"
caption relative p/crop0001.jpg ./p/../p/crop0002.jpg -o "$out"
same "a name in another spelling is the same picture" "0 301" "$status $(count "$out")" # .. may lead elsewhere
mv "$out.run.json" kept.json
caption unknown "$p" -o "$out"
same "an output of unknown settings: refused" 2 "$status"
caption anew p/crop0001.jpg -o "$out" --overwrite --vision-tokens 4
same "--overwrite begins anew" "0 1" "$status $(count "$out")"

# --- one process an output
mkfifo gate
(exec 9>"$out"; flock 9; cat gate) &
holder=$!
sleep 0.2
caption locked "$p" -o "$out" --overwrite
same "an output that another run has: status 1" 1 "$status"
check "and it says so" said locked "another run is writing to it"
echo >gate
wait "$holder"

# --- failures, tried again
mkdir f
cp "$p"/crop000[0-9].jpg f/
echo bad >f/bad1.jpg
echo bad >f/bad2.jpg
caption fail1 f -o f.jsonl
same "two fail" "3 2" "$status $(count f.jsonl.errors.jsonl)"
caption fail2 f -o f.jsonl
same "they are not tried again by themselves" "3 2" "$status $(count f.jsonl.errors.jsonl)"
check "but told of" said fail2 "--retry-failed tries them again"
cp "$p/crop0020.jpg" f/bad1.jpg
caption fail3 f -o f.jsonl --retry-failed
same "--retry-failed: one is fine now" "3 11 1" "$status $(count f.jsonl) $(count f.jsonl.errors.jsonl)"
same "one truth a picture" f/bad2.jpg "$(jq -r .image f.jsonl.errors.jsonl)"
cp "$p/crop0021.jpg" f/bad2.jpg
caption fail4 f -o f.jsonl --retry-failed
same "all are fine" "0 12" "$status $(count f.jsonl)"
check "the failures' file is gone" test ! -e f.jsonl.errors.jsonl

# --- a full disk
full() { # NAME FOLDER-OF-THE-OUTPUT: a run that can not end, and the state that it leaves
  same "$1: status 1" 1 "$status"
  check "$1: says so" said "$1" "goes on from there"
  check "$1: whole lines" whole_json "$2"
  check "$1: some are done" test "$(count "$2")" -gt 3 -a "$(count "$2")" -lt 300
}
(ulimit -f 24; timeout 60 "$TF" caption "$p" -o limited.jsonl 2>limited.err)
status=$?
full limited limited.jsonl
caption limited2 "$p" -o limited.jsonl
same "a limit of the file's size: gone on with" "0 300" "$status $(count limited.jsonl)"
check "each picture once" once limited.jsonl
mkdir small
if mount -t tmpfs -o size=96k tmpfs small 2>/dev/null; then
  caption disk "$p" -o small/o.jsonl
  full disk small/o.jsonl
  caption disk2 "$p" -o small/o.jsonl
  same "still full: status 1" 1 "$status"
  mount -o remount,size=4m small
  caption disk3 "$p" -o small/o.jsonl
  same "a full disk: gone on with" "0 300" "$status $(count small/o.jsonl)"
  check "each picture once" once small/o.jsonl
  umount small
else
  echo "skipped: a full file system (mounting needs root)"
fi

# --- which pictures, in which order
mkdir -p d/sub/deep d/.hidden
for i in 1 2 3 4; do cp "$p/crop000$i.jpg" "d/a$i.jpg"; cp "$p/crop001$i.jpg" "d/sub/b$i.jpg"; done
cp "$p/crop0030.jpg" d/sub/deep/c.jpg
cp "$p/crop0031.jpg" d/.hidden/h.jpg
cp "$p/crop0032.jpg" "d/with
newline.jpg"
names() { jq -r '.image | gsub("\n"; "?")' "$DIR/$1.out" | sort | tr '\n' ' '; }
caption flat d --no-recursive
same "--no-recursive" "d/a1.jpg d/a2.jpg d/a3.jpg d/a4.jpg d/with?newline.jpg " "$(names flat)"
caption glob 'd/*/b[12].jpg' 'd/**/c.*'
same "patterns that the shell left alone" "d/sub/b1.jpg d/sub/b2.jpg d/sub/deep/c.jpg " "$(names glob)"
caption noglob 'd/*.png'
same "a pattern that nothing fits: status 3" 3 "$status"
check "and it says so" said noglob "no name fits this pattern"
caption limit d --limit 3
same "--limit" 3 "$(count limit.out)"
printf 'd/a1.jpg\nd/sub\n\nd/none.jpg\n' >list
caption list --files-from list
same "a list of names" "3 d/a1.jpg d/sub/b1.jpg d/sub/b2.jpg d/sub/b3.jpg d/sub/b4.jpg d/sub/deep/c.jpg " "$status $(names list)"
find d -name '*newline*' -print0 | timeout 60 "$TF" caption - -0 d/a1.jpg >null.out 2>null.err
same "names with NULs from standard input" "d/a1.jpg d/with?newline.jpg " "$(names null)"
# a list that can not be read to its end: the run says so, whatever it did before
broken() { # NAME WANTED-STATUS-AND-IMAGES WANTED-TEXT
  same "$1: what is named before is captioned, and the run failed" "$2" "$status $(jq -r .image "$1.jsonl" | tr '\n' ' ')"
  check "$1: and it says why" said "$1" "$3"
}
printf 'd/a1.jpg\0d/a2.jpg\0' | timeout 60 "$TF" caption - -o nuls.jsonl >nuls.out 2>nuls.err
status=$?
broken nuls "1 " "are they separated by NULs (-0)"
(echo d/a1.jpg; head -c 70000 /dev/zero | tr '\0' a) >list
caption line --files-from list -o line.jsonl
broken line "1 d/a1.jpg " "a name of more than 65536 bytes"
timeout 60 "$TF" caption - -o unread.jsonl <&- >unread.out 2>unread.err
status=$?
broken unread "1 " "standard input: Bad file descriptor"
printf 'd/a1.jpg\r\nd/a2.jpg\r\n' >list
caption line --files-from list -o line.jsonl
same "with a whole list (of Windows's line ends) the same command goes on: status 0" "0 2" "$status $(count line.jsonl)"
echo d/a1.jpg | TMPDIR=$DIR/none timeout 60 "$TF" caption - >folder.out 2>folder.err
same "no folder for a temporary file: status 1" 1 $?
check "it is the one that is named" said folder "$DIR/none (TMPDIR): No such file or directory"
(echo d/a1.jpg; sleep 1.5; echo d/a2.jpg) | timeout 60 "$TF" caption - -o slow.jsonl 2>slow.err &
slow=$!
for _ in $(seq 100); do [ -s slow.jsonl ] && break; sleep 0.1; done
same "a slow list: the first is captioned before the second has come" 1 "$(count slow.jsonl)"
wait "$slow"
same "and then the second" 2 "$(count slow.jsonl)"
caption shuffle1 "$p" --shuffle --seed 7 --limit 40
caption shuffle2 "$p" --shuffle --seed 7 --limit 40
caption shuffle3 "$p" --shuffle --seed 8 --limit 40
same "a seed gives the same sample" "40 $(images shuffle1.out | md5sum)" "$(count shuffle1.out) $(images shuffle2.out | md5sum)"
check "another seed another one" test "$(images shuffle1.out | md5sum)" != "$(images shuffle3.out | md5sum)"
caption sample "$p" --shuffle --limit 40 -o sample.jsonl
caption sample "$p" --shuffle --limit 40 -o sample.jsonl
same "a sample is gone on with as the same one" "0 40" "$status $(count sample.jsonl)"

# --- CSV
printf 'x' >"d/sub/bad, \"quoted\".jpg"
cp "$p/crop0040.jpg" "d/sub/comma, \"quoted\".jpg"
caption csv1 d/sub --format csv -o c.csv --limit 3
printf '"torn, ' >>c.csv
caption csv2 d/sub --format csv -o c.csv
same "CSV is gone on with" "3 7" "$status $(count c.csv)"
check "its quoted names too" grep -q '^"d/sub/comma, ""quoted"".jpg",' c.csv
same "one header" 1 "$(grep -c '^image,caption,' c.csv)"

# --- sidecars
cp -r d/sub s
rm s/bad*
echo "mine" >s/b1.txt
echo left >s/.gone.txt.0123456789abcdef.tokenflex
echo mine >s/.crop0001.txt.tokenflex
caption side1 s --sidecar
same "sidecars, and nothing on standard output" "0 0" "$status $(count side1.out)"
same "each photo has one" "b1.txt b2.txt b3.txt b4.txt comma, \"quoted\".txt " "$(cd s && printf '%s ' *.txt)"
same "what was there stays" mine "$(cat s/b1.txt)"
check "and counts as done" said side1 "5 captioned, 0 failed, 1 done before"
caption side2 s --sidecar -o s.jsonl
same "with an output it has every caption" "0 6" "$status $(count s.jsonl)"
same "sidecar and line agree" "$(jq -r 'select(.image == "s/b2.jpg") | .caption' s.jsonl)" "$(cat s/b2.txt)"
caption side3 s --sidecar --overwrite
check "--overwrite replaces them" test "$(cat s/b1.txt)" != mine
same "no temporary file is left, and none of others is touched" "s/.crop0001.txt.tokenflex mine" "$(find s -name '.*' -type f) $(cat s/.crop0001.txt.tokenflex)"

# --- pictures of the same bytes
mkdir t
for i in $(seq 30); do cp "$p/crop0050.jpg" "t/one$i.jpg"; done
cp "$p/crop0051.jpg" t/two.jpg
caption dup t -o t.jsonl
same "every path has its line" "0 31" "$status $(count t.jsonl)"
check "computed once" said dup "29 of them have the same bytes as another"
same "the others name it" "29 1" "$(jq -r 'select(.duplicate_of) | .duplicate_of' t.jsonl | wc -l) $(jq -r 'select(.duplicate_of) | .duplicate_of' t.jsonl | sort -u | wc -l)"
same "with the same caption" 1 "$(jq -r 'select(.image | contains("one")) | .caption' t.jsonl | sort -u | wc -l)"
caption dup_out t
same "on standard output, too" 29 "$(jq -r 'select(.duplicate_of) | .image' dup_out.out | wc -l)"

# --- upgrading
caption up1 "$p" --limit 60 --vision-tokens 4 -o u.jsonl
caption up2 --upgrade -o u.jsonl
same "--upgrade: one line a picture, all at full detail" "0 60 16" "$status $(count u.jsonl) $(jq -r .vision_tokens.assigned u.jsonl | sort -u)"
check "each picture once" once u.jsonl
check "it says how many" said up2 "60 lines of fewer vision tokens were replaced"
check "the lines' place is empty" test ! -e u.jsonl.upgrade -a -z "$(find . -name '.u.jsonl.*')"
caption again --upgrade -o u.jsonl
same "--upgrade with nothing to do: status 0" 0 "$status"
check "and it says that all have full detail" said again "all have full detail"
caption up3 "$p" --upgrade -o u.jsonl
same "with names the new ones come, too" "0 300" "$status $(count u.jsonl)"
caption low "$p" --vision-tokens 4 -o k.jsonl
for round in 1 2 3 4; do
  "$TF" caption --upgrade -o k.jsonl >/dev/null 2>&1 </dev/null &
  pid=$!
  for _ in $(seq 300); do [ -s k.jsonl.upgrade ] && break; sleep 0.01; done
  sleep "0.0$((RANDOM % 10))"
  kill -KILL "$pid"
  wait "$pid" 2>/dev/null
  [ "$(count k.jsonl)" = 300 ] && once k.jsonl && whole_json k.jsonl || fail "a kill in an upgrade, round $round: one whole line a picture"
done
caption up4 --upgrade -o k.jsonl
same "a killed upgrade is gone on with" "0 300 16" "$status $(count k.jsonl) $(jq -r .vision_tokens.assigned k.jsonl | sort -u)"
rm -r t; mkdir t; cp "$p"/crop006[0-3].jpg t/
caption gone1 t --vision-tokens 4 -o g.jsonl
rm t/crop0060.jpg
caption gone2 --upgrade -o g.jsonl
same "a picture that is gone keeps its caption" "3 4 1" "$status $(count g.jsonl) $(jq -r 'select(.vision_tokens.assigned == 4) | .image' g.jsonl | wc -l)"

caption auto1 "$p" --limit 5 --vision-tokens auto -o a.jsonl
caption auto2 --upgrade -o a.jsonl
caption auto3 "$p" --limit 9 --vision-tokens auto -o a.jsonl
same "the output of a run with auto stays one of those" "0 9" "$status $(count a.jsonl)"

# --- deadlines: no picture is dropped, each gets as much detail as the time allows
caption hour "$p" --within 1h -o h.jsonl
same "plenty of time: all at full detail" "0 300 16" "$status $(count h.jsonl) $(jq -r .vision_tokens.assigned h.jsonl | sort -u)"
same "the reason is the pace" pace "$(jq -r .vision_tokens.reason h.jsonl | sort -u)"
caption second "$p" --within 1s -o w.jsonl
same "no time: no picture is dropped" "0 300" "$status $(count w.jsonl)"
caption resume_paced "$p" -o w.jsonl
same "the rest of a run with a deadline may go on without one" 0 "$status"
caption past "$p" --finish-by "2001-01-01 06:00"
same "a time that is over: status 2" 2 "$status"

# --- looks
caption quiet "$p/crop0001.jpg" --quiet
same "--quiet: nothing but the line" "0 1" "$(count quiet.err) $(count quiet.out)"
caption verbose "$p/crop0001.jpg" -v -o v.jsonl
check "-v prints captions with their paths" said verbose "$p/crop0001.jpg: $(jq -j .caption v.jsonl | tr '[:cntrl:]' '?')"

