#!/usr/bin/env bash
# The command line: `tokenflex caption` and `tokenflex up`, with the whole stack, as a user meets them.
# In: the tiny model, the example photos, broken files. Out: checks on lines, exit statuses, and on what is left behind.
. "$(dirname "$0")/lib.sh"

TF=$(realpath "$BUILD/tokenflex")
export XDG_RUNTIME_DIR=$DIR/run TOKENFLEX_MODEL=$TINY
unset TOKENFLEX_REDIS TOKENFLEX_QUEUE
mkdir "$XDG_RUNTIME_DIR" "$DIR/none"
same "a private folder's place is short enough for sockets" 1 "$(( ${#XDG_RUNTIME_DIR} < 60 ))"

# caption NAME ARGUMENTS...: output in NAME.out, messages in NAME.err, exit status in $status
caption() {
  local name=$1; shift
  timeout -k 5 120 "$TF" caption "$@" >"$DIR/$name.out" 2>"$DIR/$name.err" </dev/null
  status=$?
}
nothing_left() { # no process and no folder of any private stack
  [ -z "$(pgrep -f "$XDG_RUNTIME_DIR")" ] && [ -z "$(ls -A "$XDG_RUNTIME_DIR")" ]
}
lines() { [ -e "$1" ] && [ "$(wc -l <"$1")" -ge "$2" ]; }
whole_json() { jq -es 'all(type == "object")' "$1" >/dev/null; }
said() { grep -qF -- "$2" "$DIR/$1.err"; }

# --- a folder, good and bad files mixed
mkdir -p "$DIR/photos/sub"
cp examples/cat.jpg examples/coffee.jpg "$DIR/photos/"
cp examples/dogs.jpg "$DIR/photos/sub/no_extension"
cp examples/moose.jpg "$DIR/photos/sub/.hidden.jpg"
cp examples/rocket.jpg "$DIR/photos/$(printf 'caf\351 100%%.jpg')"
ln -s .. "$DIR/photos/sub/loop"
echo text >"$DIR/photos/notes.txt"
echo "no picture" >"$DIR/photos/text.jpg"
: >"$DIR/photos/empty.png"
head -c 3000 examples/cat.jpg >"$DIR/photos/short.jpg"
out=$DIR/out.jsonl
caption mixed "$DIR/photos" -o "$out"
same "some failed: status 3" 3 "$status"
same "every good picture has a line" 4 "$(wc -l <"$out")"
same "keys in order" '["id","image","caption","vision_tokens","usage","timing_ms","attempt","model","load"]' \
  "$(jq -sc '[.[] | del(.image_uri) | keys_unsorted] | unique | if length == 1 then .[0] else . end' "$out")"
same "images are the argument joined with the path below it" "$DIR/photos/cat.jpg $DIR/photos/coffee.jpg $DIR/photos/sub/no_extension" \
  "$(jq -r 'select(.image_uri == null) | .image' "$out" | sort | tr '\n' ' ' | sed 's/ $//')"
same "a name that is not UTF-8 can be had back" "file://$DIR/photos/caf%E9%20100%25.jpg" "$(jq -r 'select(.image_uri) | .image_uri' "$out")"
same "default: the most tokens, fixed" '{"requested":16,"assigned":16,"reason":"fixed"}' "$(jq -sc 'map(.vision_tokens) | unique | .[]' "$out")"
same "stages" '["queue","fetch","decode","encode","transfer","wait","prefill","generate","total"]' "$(jq -sc '.[0].timing_ms | keys_unsorted' "$out")"
same "usage" '["prompt_tokens","completion_tokens","finish_reason"]' "$(jq -sc '.[0].usage | keys_unsorted' "$out")"
same "ids are unique and carry the run" 4 "$(jq -r .id "$out" | grep -cE "^$(jq -r .run "$out.run.json")-[0-9]{6}$")"
errors=$out.errors.jsonl
same "one error line a bad picture" "empty.png image_empty short.jpg image_truncated text.jpg image_unsupported" \
  "$(jq -r '"\(.image | split("/") | last) \(.code)"' "$errors" | sort | tr '\n' ' ' | sed 's/ $//')"
same "keys of an error" '["id","image","code","message","attempts"]' "$(jq -sc 'map(keys_unsorted) | unique | .[]' "$errors")"
check "errors are on stderr, too" said mixed "photos/short.jpg: image_truncated: JPEG"
same "counts in the run file" '{"captioned":4,"failed":3,"skipped":1}' "$(jq -c '.result | {captioned, failed, skipped}' "$out.run.json")"
same "state in the run file" complete "$(jq -r .state "$out.run.json")"
same "the arithmetic and the instructions that were used" "true true" \
  "$(jq -r '.settings | "\(.compute | test("^(f32|bf16|int8)")) \(.cpu | test("^(portable|avx|vnni|amx)"))"' "$out.run.json")"
check "a summary" said mixed "4 captioned, 3 failed, 1 other file skipped"
check "the model is named" said mixed "$(jq -r .model.name "$out.run.json")"
check "nothing is left behind" nothing_left

# --- standard output, named files, arguments that are missing
caption plain "$DIR/photos/cat.jpg" "$DIR/photos/coffee.jpg" --vision-tokens 4 --max-new-tokens 3
same "all captioned: status 0" 0 "$status"
same "two lines on standard output" 2 "$(wc -l <"$DIR/plain.out")"
same "a number of tokens is kept" '{"requested":4,"assigned":4,"reason":"fixed"}' "$(jq -sc 'map(.vision_tokens) | unique | .[]' "$DIR/plain.out")"
same "no more tokens than asked for" true "$(jq -s 'all(.usage.completion_tokens <= 3)' "$DIR/plain.out")"
caption missing "$DIR/photos/cat.jpg" "$DIR/nowhere.jpg" "$DIR/photos/notes.txt" --vision-tokens auto
same "a missing argument does not end the run: status 3" 3 "$status"
same "the others are captioned" 1 "$(wc -l <"$DIR/missing.out")"
same "auto is what was requested" auto "$(jq -r .vision_tokens.requested "$DIR/missing.out")"
check "the missing one is named" said missing "$DIR/nowhere.jpg: image_missing"
check "a named file is always a job" said missing "$DIR/photos/notes.txt: image_unsupported"
caption large "$DIR/photos/cat.jpg" --max-pixels 100
check "pixels past the limit are an error" said large "image_too_large"
caption only_missing "$DIR/nowhere.jpg"
same "nothing but a missing file: status 3" 3 "$status"
caption nothing "$DIR/none"
same "an empty folder: status 0" 0 "$status"

# --- names that a terminal would obey, outputs that nothing can be written to
head -c 3000 examples/cat.jpg >"$DIR/photos/$(printf 'e\033[31m\n.jpg')"
caption control "$DIR/photos/$(printf 'e\033[31m\n.jpg')"
check "control characters of a name do not reach the terminal" said control "failed: $DIR/photos/e?[31m?.jpg: image_truncated: "
rm "$DIR/photos/$(printf 'e\033[31m\n.jpg')"
(exec >&-; exec timeout -k 5 60 "$TF" caption "$DIR/photos/cat.jpg" 2>"$DIR/closed.err" </dev/null)
same "standard output is closed: status 1" 1 $?
check "and it says so" said closed "standard output: Bad file descriptor"
mkfifo "$DIR/fifo"

# --- wrong usage is found before anything starts
usage() { local what=$1; shift; caption usage "$@"; same "$what: status 2" 2 "$status"; same "$what: one line" 1 "$(wc -l <"$DIR/usage.err")"; }
usage "no argument"
usage "unknown option" --colour red "$DIR/photos"
usage "a count that the model has not" --vision-tokens 64 "$DIR/photos"
check "the counts are named" said usage "4, 9, 16"
usage "an output made with other settings" -o "$out" --max-new-tokens 7 "$DIR/photos"
check "what differs is named" said usage "--max-new-tokens (then 40, now 7)"
echo "mine" >"$DIR/notes"
usage "an output that is somebody's" -o "$DIR/notes" "$DIR/photos"
same "which is unharmed" mine "$(cat "$DIR/notes")"
cp examples/coffee.jpg "$DIR/coffee.jpg"
usage "--overwrite of what is no output" -o "$DIR/coffee.jpg" --overwrite "$DIR/photos"
check "which is named" said usage "$DIR/coffee.jpg does not begin as captions"
check "and unharmed" cmp -s examples/coffee.jpg "$DIR/coffee.jpg"
usage "an output that is no file" -o "$DIR/fifo" --overwrite "$DIR/photos"
usage "an output called -" -o - "$DIR/photos"
usage "a queue's name" --queue 'a b' "$DIR/photos"
usage "an empty prompt" --prompt '' "$DIR/photos"
usage "a log level" --log-level loud "$DIR/photos"
same "the old output is unharmed" 4 "$(wc -l <"$out")"
caption again -o "$out" --overwrite "$DIR/photos/cat.jpg"
same "--overwrite replaces it" "0 1" "$status $(wc -l <"$out")"
same "and the old errors go" 0 "$(find "$DIR" -name 'out.jsonl.errors.jsonl' | wc -l)"
caption no_model --model "$DIR/none" "$DIR/photos" -o "$DIR/never.jsonl"
same "no model: status 1" 1 "$status"
mkdir "$DIR/broken_model"
cp "$TINY"/*.gguf "$DIR/broken_model/"
head -c 20000 "$TINY/llm.gguf" >"$DIR/broken_model/llm.gguf"
began=$(date +%s%N)
caption broken_model --model "$DIR/broken_model" "$DIR/photos" -o "$DIR/never.jsonl"
same "a broken model: status 1" 1 "$status"
check "it shows within two seconds" test "$(( ($(date +%s%N) - began) / 1000000 ))" -lt 2000
check "the message names the file" said broken_model "llm.gguf"
check "no output is left of a run that never began" test ! -e "$DIR/never.jsonl"
check "nothing is left behind by all of these" nothing_left

(ulimit -n 64; exec timeout -k 5 60 "$TF" caption "$DIR/photos/cat.jpg" >"$DIR/few.out" 2>"$DIR/few.err" </dev/null)
same "64 files are enough" "0 1" "$? $(wc -l <"$DIR/few.out")"
(ulimit -n 40; exec timeout -k 5 60 "$TF" caption "$DIR/photos/cat.jpg" >"$DIR/few.out" 2>"$DIR/few.err" </dev/null)
same "40 are not" 1 $?
check "and it says how many are needed" said few "40 files open here (ulimit -n); 64 are needed"

# --- a report, a plot or a record replaces its own kind alone
cd "$DIR" || exit 1
caption paged "$DIR/photos/cat.jpg" -o paged.jsonl --report page.html
same "a page" "0 1" "$status $(grep -c 'name="generator" content="tokenflex"' page.html)"
echo "mine" >mine.html; cp "$DIR/photos/cat.jpg" photo.jpg; : >empty.html; mkfifo page.fifo
ln -s page.html link.html; ln -s page.fifo fifo.html; ln -s nowhere dangling.html; ln paged.jsonl hard.jsonl
keeps() { # WHAT WANTED COMMAND...: status 2, one line that has WANTED
  local what=$1 wanted=$2; shift 2
  timeout -k 5 60 "$TF" "$@" >keeps.out 2>keeps.err </dev/null
  same "$what: status 2" 2 $?
  check "$what: the message" grep -qF -- "$wanted" keeps.err
}
for name in mine.html photo.jpg page.fifo fifo.html dangling.html paged.jsonl ./paged.jsonl.run.json paged.jsonl.errors.jsonl hard.jsonl; do
  keeps "report -o $name" "$name" report paged.jsonl -o "$name"
done
keeps "report of a folder" "none is not a regular file" report "$DIR/none" -o fresh.html
printf 'not ours' >torn.jsonl
timeout 60 "$TF" report torn.jsonl -o fresh.html >keeps.out 2>keeps.err
same "report of a line that is not ours: status 1" 1 $?
check "it is named" grep -qF "torn.jsonl: not an output of tokenflex caption" keeps.err
keeps "report of a FIFO" "page.fifo is not a regular file" report page.fifo -o fresh.html
check "no page is left of those" test ! -e fresh.html -a -z "$(find . -name '.fresh.html.*')"
head -c 20 paged.jsonl >torn.jsonl; : >empty.jsonl
for name in torn empty; do
  timeout 60 "$TF" report $name.jsonl >keeps.out 2>keeps.err
  same "report of an output that is $name: a page without captions" "0 1" "$? $(grep -c "$name.jsonl.html: 0 captions, 0 failures" keeps.err)"
done
echo "mine" >beside.jsonl.run.json
keeps "caption beside a file of settings that is somebody's" "beside.jsonl.run.json does not begin as the settings" caption photo.jpg -o beside.jsonl
echo "mine" >again.html.new; echo "left" >.again.html.0123456789abcdef.tokenflex
timeout 60 "$TF" report paged.jsonl -o again.html >keeps.out 2>keeps.err
same "a page touches no file of another name" "0 mine" "$? $(cat again.html.new)"
check "and removes what a killed run left" test ! -e .again.html.0123456789abcdef.tokenflex
keeps "report into no folder" "the folder $DIR/gone is missing" report paged.jsonl -o "$DIR/gone/page.html"
keeps "caption --report over a photo" "photo.jpg exists" caption photo.jpg -o fresh.jsonl --report photo.jpg
keeps "caption --report over its own lines" "holds the captions' lines" caption photo.jpg -o fresh.jsonl --report "$DIR/none/../fresh.jsonl"
keeps "caption --report into no folder" "the folder gone is missing" caption photo.jpg -o fresh.jsonl --report gone/page.html
keeps "simulate --plot over a photo" "photo.jpg exists" simulate -d 10 --plot photo.jpg
keeps "loadtest --record over a photo" "photo.jpg exists" loadtest -d 1 --record photo.jpg photo.jpg
check "the run was not even begun" test ! -e fresh.jsonl
same "what was there is unharmed" "mine 1 1" "$(cat mine.html) $(wc -l <paged.jsonl) $(cmp photo.jpg "$DIR/photos/cat.jpg" && echo 1)"
check "as what it was" test -p page.fifo -a -L fifo.html -a -L dangling.html -a ! -e nowhere
before=$(stat -c %i page.html)
"$TF" report paged.jsonl -o link.html 2>/dev/null
check "through a link its target is replaced" test -L link.html -a "$(stat -c %i page.html)" != "$before"
"$TF" report paged.jsonl -o empty.html 2>/dev/null
same "report -o - and an empty file: the same page" "$("$TF" report paged.jsonl -o - 2>/dev/null | cksum)" "$(cksum <empty.html)"
cd "$OLDPWD" || exit 1

# --- runs that end early
crops "$DIR/crops" 100
mkdir "$DIR/many"
for copy in $(seq 15); do
  cp -r "$DIR/crops" "$DIR/many/$copy"
  for photo in "$DIR/many/$copy"/*.jpg; do echo "$copy" >>"$photo"; done # no two alike: those would be computed once
done
running() { # NAME: a run over many pictures that has begun to write
  rm -f "$DIR/$1".jsonl*
  start "$1" "$TF" caption "$DIR/many" -o "$DIR/$1.jsonl"
  until_true 30 lines "$DIR/$1.jsonl" 5 || fail "$1: the run writes"
}
ended() { # NAME: waits for the end, exit status in $status
  for _ in $(seq 100); do kill -0 "${PIDS[$1]}" 2>/dev/null || break; sleep 0.1; done
  kill -0 "${PIDS[$1]}" 2>/dev/null && { fail "$1: ends within 10 s"; kill -KILL "${PIDS[$1]}"; }
  wait "${PIDS[$1]}"
  status=$?
  unset "PIDS[$1]"
}
child() { pgrep -f "$1.*$XDG_RUNTIME_DIR" | head -n 1; }

for signal in INT TERM; do
  running "stop_$signal"
  kill -"$signal" "${PIDS[stop_$signal]}"
  ended "stop_$signal"
  same "SIG$signal: status 1" 1 "$status"
  check "SIG$signal: says so" grep -q "interrupted: " "$DIR/stop_$signal.log"
  check "SIG$signal: and how to go on" grep -q "the same command goes on" "$DIR/stop_$signal.log"
  check "SIG$signal: whole lines" whole_json "$DIR/stop_$signal.jsonl"
  same "SIG$signal: the run file tells as many as there are" "$(wc -l <"$DIR/stop_$signal.jsonl")" "$(jq .result.captioned "$DIR/stop_$signal.jsonl.run.json")"
  check "SIG$signal: nothing is left behind" nothing_left
done

for which in tokenflex-router tokenflex-encoder tokenflex-llm redis-server; do
  running "crash_$which"
  kill -KILL "$(child "$which")"
  ended "crash_$which"
  same "$which is killed: status 1" 1 "$status"
  check "$which is killed: says so" grep -qiE "the (${which#tokenflex-}) was ended by signal 9" "$DIR/crash_$which.log"
  check "$which is killed: whole lines" whole_json "$DIR/crash_$which.jsonl"
  check "$which is killed: nothing is left behind" nothing_left
done

running killed
kill -KILL "${PIDS[killed]}"
wait "${PIDS[killed]}" 2>/dev/null
unset "PIDS[killed]"
check "SIGKILL: the processes end by themselves" until_true 3 eval '[ -z "$(pgrep -f "$XDG_RUNTIME_DIR")" ]'
check "SIGKILL: the folder stays" test -n "$(ls -A "$XDG_RUNTIME_DIR")"
caption after "$DIR/photos/cat.jpg"
check "the next run removes it" nothing_left

# --- two runs at once
start one "$TF" caption "$DIR/crops" -o "$DIR/one.jsonl"
start two "$TF" caption "$DIR/crops" -o "$DIR/two.jsonl"
for run in one two; do
  ended "$run"
  same "$run of two at once: every picture once" "0 100" "$status $(jq -r .image "$DIR/$run.jsonl" | sort -u | wc -l)"
done
check "two at once: nothing is left behind" nothing_left

# --- a deployment: `up` on a Redis of the user's
start_redis --appendonly yes --appendfsync always
url=unix://$DIR/redis.sock
refused() { local what=$1; shift; timeout -k 5 20 "$TF" up --redis "$url" --health off "$@" >"$DIR/refused.err" 2>&1; same "up, $what: status 2" 2 $?; same "up, $what: one line" 1 "$(wc -l <"$DIR/refused.err")"; }
"$TF" keygen "$DIR/keys" >/dev/null
chmod 644 "$DIR"/keys/*
refused "keys that others can read" --curve-key "$(find "$DIR/keys" -type f ! -name '*.pub' | head -n 1)"
refused "a bind that others reach" --bind tcp://0.0.0.0:7701
refused "a bind without a port" --bind tcp://127.0.0.1:0
refused "a bind that is none" --bind nonsense
refused "a tensor bind that others reach" --tensor-bind tcp://0.0.0.0:7703
same "nothing of these reached Redis" 0 "$(r dbsize)"
# what an earlier service left is not taken for this one's
r hset 'tf:{q1}:model' token_counts 4,9,16 model old pair_hash old updated_ms "$(($(date +%s%3N) + 5000))" >/dev/null
start up "$TF" up --redis "$url" --queue q1 --allow-dir "$DIR/photos" --allow-http --allow-private-addresses --health off --log-level warn
check "up gets ready" until_true 30 grep -q "^tokenflex: up, " "$DIR/up.log"
same "with its own three" 3 "$(printf '%s\n' "$(r zrange 'tf:{q1}:routers' 0 -1)" "$(r hkeys 'tf:{q1}:workers')" | grep -cE "^(router|encoder|llm)-.*-($(pgrep -P "${PIDS[up]}" | paste -sd '|'))-")"
check "the model is its own" test "$(r hget 'tf:{q1}:model' model)" != old
for role in encoder llm; do
  drained=$(child "tokenflex-$role")
  "$TF" drain --redis "$url" --queue q1 --timeout-s 30 "$role-" >"$DIR/drain_$role.out" 2>&1
  same "drain of up's $role: status 0" 0 $?
  check "up starts another $role" until_true 30 eval '[ "$(r hkeys "tf:{q1}:workers" | grep -c "^$role-")" = 1 ]'
  check "which is another" test "$(child "tokenflex-$role")" != "$drained"
done
check "up lives" alive up
port=$(free_port)
start web /usr/bin/python3 -m http.server --bind 127.0.0.1 --directory "$DIR/photos" "$port"
check "a web server is there" until_true 10 eval '(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null'
"$TF" submit --redis "$url" --queue q1 --wait --timeout-s 30 "http://127.0.0.1:$port/cat.jpg" >"$DIR/http.out" 2>&1
same "--allow-http: a job may name a URL" "0 http://127.0.0.1:$port/cat.jpg" "$? $(jq -r 'select(.caption) | .image' "$DIR/http.out")"
stop web
eval "$(grep -oE 'XADD .*' "$DIR/up.log" | sed "s|^XADD 'tf|r XADD 'tf|; s|/photo.jpg|/cat.jpg|")" >/dev/null
check "what up prints to submit works" until_true 10 eval '[ "$(r xlen "tf:{q1}:results")" = 1 ]'
caption remote --redis "$url" --queue q1 "$DIR/crops" "$DIR/photos/text.jpg" -o "$DIR/remote.jsonl"
same "a deployment captions inline bytes" "3 100" "$status $(jq -r .image "$DIR/remote.jsonl" | sort -u | wc -l)"
same "the reply stream is gone" "" "$(r --scan --pattern 'tf:{q1}:reply:*')"
same "no job is left in the queue" 0 "$(r xlen 'tf:{q1}:jobs:1')"
caption wrong_count --redis "$url" --queue q1 --vision-tokens 7 "$DIR/crops" -o "$DIR/wrong.jsonl"
same "a count that the deployment has not: status 2" 2 "$status"
check "no output is left of it" test ! -e "$DIR/wrong.jsonl"
start broken "$TF" caption --redis "$url" --queue q1 "$DIR/many" -o "$DIR/broken.jsonl"
until_true 30 lines "$DIR/broken.jsonl" 5
stop redis KILL
sleep 1
start_redis --appendonly yes --appendfsync always
check "a lost Redis is waited for" until_true 20 grep -q "connected to Redis again" "$DIR/broken.log"
before=$(wc -l <"$DIR/broken.jsonl")
check "and the run goes on" until_true 30 lines "$DIR/broken.jsonl" $((before + 300))
kill -INT "${PIDS[broken]}"
ended broken
same "no picture came twice" "$(wc -l <"$DIR/broken.jsonl")" "$(jq -r .id "$DIR/broken.jsonl" | sort -u | wc -l)"
start lost "$TF" caption --redis "$url" --queue q1 "$DIR/many" -o "$DIR/lost.jsonl"
until_true 30 lines "$DIR/lost.jsonl" 5
r flushall >/dev/null
for _ in $(seq 600); do alive lost || break; sleep 0.1; done
ended lost
same "jobs that Redis lost end the run: status 1" 1 "$status"
check "and it says so" grep -q "Redis holds neither [0-9]* jobs of this run nor their answers" "$DIR/lost.log"
stop up TERM
check "up says that it stops" grep -q "^tokenflex: stopping" "$DIR/up.log"
same "up without health names no page" 0 "$(grep -c "http://127" "$DIR/up.log")"
check "nothing is left of up" nothing_left
start up_alone env TOKENFLEX_HEALTH=off TOKENFLEX_TENSOR_ADVERTISE=tcp://127.0.0.1:1 "$TF" up --log-level warn
check "up with a Redis of its own, options from the environment" until_true 30 grep -q "^tokenflex: up, " "$DIR/up_alone.log"
kill -KILL "$(child tokenflex-llm)"
ended up_alone
same "up ends when a service dies: status 1" 1 "$status"
check "and names it" grep -q "the LLM was ended by signal 9" "$DIR/up_alone.log"
check "nothing is left of that either" nothing_left
