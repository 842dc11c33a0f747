#!/usr/bin/env bash
# The operator's commands against a real deployment: submit, status, cancel, dead, drain; one Redis, then two.
# In: the tiny model. Out: checks on what they print, their exit statuses, and what is in Redis afterwards.
. "$(dirname "$0")/lib.sh"

TF=$BUILD/tokenflex
export TOKENFLEX_REDIS=unix://$DIR/redis.sock
mkdir "$DIR/photos"
cp examples/cat.jpg examples/dogs.jpg examples/coffee.jpg "$DIR/photos/"
echo text >"$DIR/photos/text.jpg"

# run NAME COMMAND...: output in NAME.out, messages in NAME.err, exit status in $status
run() {
  local name=$1; shift
  timeout -k 5 120 "$TF" "$@" >"$DIR/$name.out" 2>"$DIR/$name.err" </dev/null
  status=$?
}
said() { grep -qF -- "$2" "$DIR/$1.err"; }
printed() { grep -qF -- "$2" "$DIR/$1.out"; }
usage() { local what=$1; shift; run usage "$@"; same "$what: status 2" 2 "$status"; same "$what: one line" 1 "$(wc -l <"$DIR/usage.err")"; }
worker() { # NAME PROGRAM ARGUMENTS...
  local name=$1 program=$2; shift 2
  start "$name" "$BUILD/$program" --model "$TINY" --routers "$router" --health off "$@"
}
length() { r xlen "tf:{default}:$1"; }

# --- nobody there
run away status
same "status without Redis: status 1" 1 "$status"
check "it says what it could not reach" printed away "can not connect to Redis at $DIR/redis.sock"
same "it says so in JSON too" false "$("$TF" status --json | jq '.servers[0].reachable')"
run away submit examples/cat.jpg
same "submit without Redis: status 1" 1 "$status"
for command in submit status cancel dead drain keygen; do
  run help "$command" --help
  same "$command --help: status 0" 0 "$status"
  check "$command --help fits 120 columns" test "$(wc -L <"$DIR/help.out")" -le 120
done
usage "submit nothing" submit
usage "submit with an id for two" submit --id one a.jpg b.jpg
usage "submit with a bad reply name" submit --reply 'a b' a.jpg
usage "submit with limits the wrong way round" submit --min-vision-tokens 9 --max-vision-tokens 4 a.jpg
usage "a queue's name" status --queue 'a b'
usage "a Redis twice" status --redis redis://127.0.0.1:1 --redis redis://127.0.0.1:1/0
usage "cancel nothing" cancel
usage "dead nothing" dead
check "it says what is expected" grep -qx "tokenflex: dead: list, show, retry or drop is expected" "$DIR/usage.err"
usage "dead with a wrong verb" dead bury
usage "dead retry of nothing" dead retry
usage "dead retry of ids and all" dead retry --all x
usage "dead drop of an id that is empty" dead drop ""
usage "dead retry with one among others" dead retry one "" two
usage "dead drop of a code that is empty" dead drop --code ""
usage "cancel of an id that is empty" cancel one ""
usage "submit with a trace of two lines" submit --trace $'a\nb' a.jpg
usage "submit with a prompt that is no text" submit --prompt $'\xff' a.jpg
usage "drain nothing" drain
usage "keygen nothing" keygen

# --- a queue that nobody serves
start_redis
run idle status
same "status of an empty queue: status 0" 0 "$status"
check "it says that nobody serves it" printed idle "nobody takes jobs from this queue"
echo 1 | run early submit --id early examples/cat.jpg
same "submit: status 0" 0 "$status"
same "submit prints id and input" "early	examples/cat.jpg" "$(cat "$DIR/early.out")"
run waits status --json
same "it waits" "1 0" "$(jq -r '.servers[0] | "\(.waiting) \(.routers)"' "$DIR/waits.out")"
run nobody cancel early
same "cancel: status 0" 0 "$status"
same "cancel says what it did" "early	asked to stop, if it is among the unfinished jobs or comes later" "$(cat "$DIR/nobody.out")"

# an answer to a job that nobody said was added: here the queue is full, in life the connection broke in between
r hset 'tf:{default}:model' max_waiting 1 token_counts 4,9,16 model tiny pair_hash 1 updated_ms 9999999999999 >/dev/null
answered() { # NAME: ends by itself once it has its answer; exit status in $status
  until_true 10 eval "! alive $1" || stop "$1" KILL
  wait "${PIDS[$1]:-$$}" 2>/dev/null; status=$?
  unset "PIDS[$1]"
}
start full timeout 60 "$TF" submit --wait --reply full --id full examples/cat.jpg
check "a full queue is waited for" until_true 10 grep -q "queue_full" "$DIR/full.log"
r xadd 'tf:{default}:reply:full' '*' id full error_code internal error_message early attempts 1 >/dev/null
answered full
same "submit takes an answer that comes before the job is known to be added" "3 1" "$status $(grep -c '"id":"full".*"code":"internal"' "$DIR/full.log")"
r hset 'tf:{default}:model' max_waiting 100 >/dev/null # room in the queue, none in Redis
r config set maxmemory 1 >/dev/null
run oom submit --timeout-s 1 --id oom examples/cat.jpg
r config set maxmemory 0 >/dev/null
r hset 'tf:{default}:model' max_waiting 1 >/dev/null
check "a full Redis is told in our own words" said oom "Redis is full (at its maxmemory); nothing is lost"
same "not in Redis's" 0 "$(grep -c OOM "$DIR/oom.err")"
same "and the status is that of a failure" "1 1" "$status $(length jobs:1)"
start stuck timeout 60 "$TF" caption --redis "$TOKENFLEX_REDIS" -o "$DIR/stuck.jsonl" examples/cat.jpg
check "a run begins" until_true 10 test -s "$DIR/stuck.jsonl.run.json"
name=$(jq -r .run "$DIR/stuck.jsonl.run.json")
r xadd "tf:{default}:reply:$name" '*' id "$name-000001" error_code internal error_message early attempts 1 >/dev/null
answered stuck
same "caption, too" "3 internal" "$status $(jq -r .code "$DIR/stuck.jsonl.errors.jsonl")"
same "and neither has put its job on the queue" 1 "$(length jobs:1)"
r del 'tf:{default}:model' 'tf:{default}:reply:full' >/dev/null

# --- a deployment
router=ipc://$DIR/router.sock
start router "$BUILD/tokenflex-router" --redis "$TOKENFLEX_REDIS" --bind "$router" --max-attempts 1 --health off
worker encoder tokenflex-encoder --allow-dir "$DIR/photos"
worker llm tokenflex-llm --tensor-bind "ipc://$DIR/llm.sock"
check "a pair gets ready" until_true 30 model_ready
check "the job that was cancelled before anyone served it is dead" until_true 20 eval '[ "$(length dead)" = 1 ]'

run wait submit --wait --max-new-tokens 3 --vision-tokens 9 --prompt 'What is it?' "$DIR/photos/cat.jpg" "file://$DIR/photos/dogs.jpg"
same "submit --wait: status 0" 0 "$status"
same "a JSON line for each" 2 "$(jq -r .id "$DIR/wait.out" | sort -u | wc -l)"
same "under the names that were given" "$DIR/photos/cat.jpg file://$DIR/photos/dogs.jpg" "$(jq -r .image "$DIR/wait.out" | sort | xargs)"
same "with the terms that were asked for" '[9,"fixed",true]' "$(jq -sc '[.[0].vision_tokens.assigned, .[0].vision_tokens.reason, all(.usage.completion_tokens <= 3)]' "$DIR/wait.out")"
same "its reply stream is gone, as nobody can ask again for ids that were made up" "" "$(r --scan --pattern 'tf:{default}:reply:*')"
run reference submit --wait --by-reference --lane interactive "$DIR/photos/cat.jpg"
same "--by-reference: status 0" 0 "$status"
run forbidden submit --wait --by-reference examples/cat.jpg
same "a place that encoders may not read: status 3" 3 "$status"
same "the line says why" uri_forbidden "$(jq -r .code "$DIR/forbidden.out")"
run mixed submit --wait "$DIR/photos/cat.jpg" "$DIR/none.jpg" "$DIR/photos/text.jpg"
same "good and bad ones mixed: status 3" 3 "$status"
same "a line for each" "caption image_missing image_unsupported" "$(jq -r '.code // "caption"' "$DIR/mixed.out" | sort | xargs)"
check "the failures are named" said mixed "failed: $DIR/none.jpg: image_missing"
printf 'a\t%s\n\nb\tfile://%s\r\n%s\n' "$DIR/photos/cat.jpg" "$DIR/photos/dogs.jpg" "$DIR/photos/coffee.jpg" >"$DIR/list"
"$TF" submit --wait - <"$DIR/list" >"$DIR/listed.out" 2>"$DIR/listed.err"
same "a list on standard input: status 0" 0 $?
same "ids of the list are kept" "a b" "$(jq -r .id "$DIR/listed.out" | grep -x '[ab]' | sort | xargs)"
run kept submit --id kept --max-new-tokens 2 "$DIR/photos/cat.jpg"
check "without --wait results go to the common stream" until_true 20 eval '[ "$(length results)" = 1 ]'
run twin submit --wait --reply again --id kept "$DIR/photos/cat.jpg"
same "an id that has ended is answered from before" "$(r --json xrange 'tf:{default}:results' - + | jq -r '.[0][1][3]')" "$(jq -r .caption "$DIR/twin.out")"
check "a reply stream with a name of the user's stays" test "$(r ttl 'tf:{default}:reply:again')" -gt 0
same "and nothing was done twice" 1 "$(length results)"
run told submit --id kept "$DIR/photos/cat.jpg"
check "an id that has ended: it says so" said told "id kept has ended before; nothing was added to do"
for try in first second; do
  run "$try" submit --wait --id retried --max-new-tokens 2 "$DIR/photos/cat.jpg"
  same "submit --wait with an id of the user's, the $try time: status 0" 0 "$status"
done
same "the second time it is answered with the first result" "$(jq -r .caption "$DIR/first.out")" "$(jq -r .caption "$DIR/second.out")"
for who in left right; do
  start "$who" "$TF" submit --wait --reply both --id "$who" --max-new-tokens 2 --timeout-s 30 "$DIR/photos/cat.jpg"
done
wait "${PIDS[left]}"; left=$?; wait "${PIDS[right]}"; same "two who wait on one reply stream both get theirs" "0 0" "$left $?"
unset "PIDS[left]" "PIDS[right]"
same "each its own" "left right" "$(jq -r .id "$DIR/left.log" "$DIR/right.log" | xargs)"
same "and both results are still there" 2 "$(length reply:both)"
run first submit --wait --reply both --id twice "file://$DIR/photos/soon.jpg"
same "a job that fails there: status 3" 3 "$status"
cp examples/cat.jpg "$DIR/photos/soon.jpg"
"$TF" dead retry twice >/dev/null
check "and is put right" until_true 20 eval '[ "$(length reply:both)" = 4 ]'
run second submit --wait --reply both --id twice "file://$DIR/photos/soon.jpg"
same "whoever asks again gets what it is now, not the old failure" "0 twice" "$status $(jq -r 'select(.caption) | .id' "$DIR/second.out")"
printf '\t%s\n' "$DIR/photos/cat.jpg" | "$TF" submit - 2>"$DIR/bad_list.err"
same "a list with an empty id: status 1" 1 "${PIPESTATUS[1]}"
check "the line is named" said bad_list "standard input, line 1"
printf '%s\0%s\0' "$DIR/photos/cat.jpg" "$DIR/photos/dogs.jpg" | "$TF" submit --wait - >"$DIR/nul_list.out" 2>"$DIR/nul_list.err"
same "a list of NUL-separated names: status 1, and no job of a part of it" "1 0" "${PIPESTATUS[1]} $(wc -l <"$DIR/nul_list.out")"
check "it says what is wrong" said nul_list "standard input, line 1: holds a NUL"
printf '\xEF\xBB\xBFmarked\t%s\r\n' "$DIR/photos/cat.jpg" | "$TF" submit --wait --max-new-tokens 2 - >"$DIR/marked.out" 2>&1
same "a list with a byte order mark and Windows's line ends" "0 marked" "$? $(jq -r 'select(.caption) | .id' "$DIR/marked.out")"
usage "a count that the model has not" submit --vision-tokens 64 "$DIR/photos/cat.jpg"
check "the counts are named" said usage "4, 9, 16"
run late submit --wait --deadline-ms 1 "$DIR/photos/cat.jpg"
same "a deadline that can not be met" deadline "$(jq -r .code "$DIR/late.out")"

# --- status
told() { "$TF" status --json | jq -e ".servers[0].errors.$1 == $2" >/dev/null; }
check "errors are counted" until_true 10 told deadline 1
run status status
same "status: status 0" 0 "$status"
for text in "queue default on unix://$DIR/redis.sock" "4, 9, 16 vision tokens" "encoder-" "llm-" "arrivals" "tokens a photo; target wait 2.0 s" "mix" "errors" "image_unsupported 1"; do
  check "status shows: $text" printed status "$text"
done
check "status fits 80 columns" test "$(LC_ALL=C.UTF-8 wc -L <"$DIR/status.out")" -le 79
same "no escapes without a terminal" 0 "$(grep -c $'\033' "$DIR/status.out")"
run json status --json
same "JSON tells workers and routers" '1 ["encoder","llm"]' "$(jq -rc '.servers[0] | "\(.routers) \([.workers[].role] | sort)"' "$DIR/json.out")"
start watch "$TF" status --watch --json --interval-ms 200
until_true 10 eval '[ "$(wc -l <"$DIR/watch.log")" -ge 3 ]'
pid=${PIDS[watch]}; kill -INT "$pid"; wait "$pid"; same "--watch ends with status 0 on Ctrl-C" 0 $?; unset "PIDS[watch]"
check "--watch looked again and again" test "$(wc -l <"$DIR/watch.log")" -ge 3
script -qec "stty rows 24 cols 80; timeout -s INT 2 $TF status --watch" /dev/null >"$DIR/screen.out" 2>&1 </dev/null
check "on a terminal it is drawn in place" grep -q $'\033\\[H' "$DIR/screen.out"
check "and the screen is given back" eval 'tail -c 40 "$DIR/screen.out" | grep -q "1049l"'

# --- cancel
stop encoder TERM
until_true 20 eval '! printed gone encoder- 2>/dev/null; "$TF" status --json | jq -e "[.servers[0].workers[].role] == [\"llm\"]" >/dev/null' || fail "the encoder has gone"
run waiting submit --id stop-me --max-new-tokens 4096 "$DIR/photos/cat.jpg"
run ended cancel a nowhere
same "cancel of what has ended: status 3" 3 "$status"
check "it says so" printed ended "a	has its result already"
run cancel cancel stop-me
worker encoder tokenflex-encoder --allow-dir "$DIR/photos"
run cancelled cancel --wait --timeout-s 30 stop-me
check "a cancelled job ends as dead" printed cancelled "stop-me	"
same "with its code, and the lane that it came from" "cancelled batch" "$("$TF" dead show --json stop-me | jq -r '"\(.code) \(.lane)"')"

check "no job is left" until_true 20 eval '[ "$(r xlen "tf:{default}:jobs:1")" = 0 ]'
run nowhere cancel --wait --timeout-s 60 no-such-job
same "cancel of an id that is nowhere: status 3, at once" "3 no-such-job	no job with that id is known; one that comes within the dedupe window is cancelled" "$status $(cat "$DIR/nowhere.out")"

# --- dead letters
run dead dead list
same "dead list: status 0" 0 "$status"
check "it shows codes" printed dead "image_unsupported"
same "by code" 1 "$("$TF" dead list --json --code image_unsupported | wc -l)"
same "at most so many" 2 "$("$TF" dead list --json --limit 2 2>/dev/null | wc -l)"
run show dead show stop-me
check "dead show has every field" printed show "error_code         cancelled"
run unknown dead show nobody
same "dead show of an unknown id: status 3" 3 "$status"
before=$(length dead)
run drop dead drop --code deadline
same "dead drop: status 0 and its count" "0 1 dropped" "$status $(cat "$DIR/drop.out")"
same "the letter is gone" $((before - 1)) "$(length dead)"
run fails submit --id mend-me --vision-tokens 9 --prompt 'Say it' --max-new-tokens 2 "file://$DIR/photos/late.jpg"
check "a picture that is not there is dead" until_true 20 eval '"$TF" dead show mend-me >/dev/null 2>&1'
cp examples/cat.jpg "$DIR/photos/late.jpg"
run retry dead retry mend-me
same "dead retry: status 0 and its count" "0 1 put back on the queue" "$status $(cat "$DIR/retry.out")"
check "the job is done under its old id" until_true 20 eval '[ "$(length results)" = 2 ]'
same "with the fields that it had" 'mend-me 9 2 true' "$(r --json xrevrange 'tf:{default}:results' + - count 1 | jq -r '.[0][1][-1] | fromjson | "\(.id) \(.vision_tokens.requested) \(.usage.completion_tokens) \(.image | endswith("late.jpg"))"')"
same "and is in no dead letter any more" 3 "$("$TF" dead show mend-me >/dev/null 2>&1; echo $?)"
run again dead retry mend-me
same "a second retry finds nothing: status 3" 3 "$status"
r xadd 'tf:{default}:jobs:1' '*' id no-such-field colour red uri "file://$DIR/photos/cat.jpg" >/dev/null
until_true 20 eval '[ -n "$(r get "tf:{default}:done:no-such-field")" ]'
run all dead retry --all
check "--all puts all back that can be" printed all "put back on the queue"
check "each dies again or lives, once" until_true 30 eval '[ "$(r xlen "tf:{default}:jobs:1")" = 0 ]'
same "what can never pass dies again under its id" field_unknown "$("$TF" dead show --json no-such-field | jq -r .code)"
run dropall dead drop --all
same "nothing is left" 0 "$(length dead)"

# letters as others may have written them: with an image that is counted, without one, and of an id that has a result by now
letter() { r xadd 'tf:{default}:dead' '*' "$@" error_code timeout error_message 'took too long' attempts 3; }
one=$(letter id counted image "$(printf 'abc\033[31m')") two=$(letter id counted-too image abcdef prompt hello)
r hset 'tf:{default}:dead:images' "$one" 8 "$two" 6 sum 14 >/dev/null
letter id imageless image_dropped 1 >/dev/null
letter id kept uri file:///x >/dev/null
"$TF" dead list >"$DIR/listed.out"
same "dead list does not show what steers a terminal" 0 "$(grep -c $'\033' "$DIR/listed.out")"
same "it tells the size of an image" 8 "$("$TF" dead show --json counted | jq .image_bytes)"
same "drop keeps the books of images" "1 dropped 6" "$("$TF" dead drop counted) $(r hget 'tf:{default}:dead:images' sum)"
run images dead retry --all --code timeout
same "what can not be put back stays: status 3" "3 1 put back on the queue" "$status $(cat "$DIR/images.out")"
check "it says why" eval 'said images "1 can not be tried again: their image was not kept" && said images "1 are left as they are: their id has ended again meanwhile"'
same "letters that are left are as they were" 2 "$("$TF" dead list --json --code timeout | wc -l)"
check "the one with its bytes was tried again, with them" until_true 20 eval '[ "$("$TF" dead show --json counted-too | jq -r .code)" = image_unsupported ]'
same "the books count its new letter, not the old one" 6 "$(r hget 'tf:{default}:dead:images' sum)"
"$TF" dead drop --all >/dev/null
r xadd 'tf:{default}:jobs:1' '*' id empty-image image '' >/dev/null
r xadd 'tf:{default}:jobs:1' '*' id after-it uri ftp://x >/dev/null
check "an image of no bytes is dead" until_true 20 eval '[ "$(length dead)" = 2 ]'
old=$("$TF" dead show --json empty-image | jq -r .letter)
r hset 'tf:{default}:dead:images' "$old" 0 sum 0 >/dev/null # as earlier routers kept the books
run none dead drop --all
same "a letter that kept an image of no bytes is dropped as all others are" "0 2 dropped" "$status $(cat "$DIR/none.out")"

# --- drain
run none drain no-such-worker
same "drain of an unknown worker: status 2" 2 "$status"
run ambiguous drain -- -
same "an ambiguous part of a name: status 2" 2 "$status"
run drain drain encoder- --timeout-s 30
same "drain: status 0" 0 "$status"
check "it says that it has gone" printed drain "has gone"
wait "${PIDS[encoder]}"; same "the worker ended with status 0" 0 $?; unset "PIDS[encoder]"
same "the other one is still there" '["llm"]' "$("$TF" status --json | jq -c '[.servers[0].workers[].role]')"

# --- two Redis servers, one router each, the same workers
start redis2 redis-server --port 0 --unixsocket "$DIR/redis2.sock" --save "" --appendonly no --dir "$DIR"
until_true 10 eval '[ "$(redis-cli -s "$DIR/redis2.sock" ping 2>/dev/null)" = PONG ]' || fail "a second redis-server starts"
stop llm TERM
start router2 "$BUILD/tokenflex-router" --redis "unix://$DIR/redis2.sock" --bind "ipc://$DIR/router2.sock" --health off
router="ipc://$DIR/router.sock,ipc://$DIR/router2.sock"
worker encoder tokenflex-encoder --allow-dir "$DIR/photos"
worker llm tokenflex-llm --tensor-bind "ipc://$DIR/llm.sock"
export TOKENFLEX_REDIS=unix://$DIR/redis.sock,unix://$DIR/redis2.sock
check "both have a pair" until_true 30 eval '"$TF" status --json | jq -e "[.servers[].model != null] | all" >/dev/null'
for i in $(seq 40); do printf 'spread-%s\tfile://%s\n' "$i" "$DIR/photos/cat.jpg"; done >"$DIR/many"
"$TF" submit --wait --max-new-tokens 1 - <"$DIR/many" >"$DIR/spread.out" 2>"$DIR/spread.err"
same "jobs on both servers are answered" "0 40" "$? $(jq -r .id "$DIR/spread.out" | sort -u | wc -l)"
on() { redis-cli -s "$DIR/$1.sock" --scan --pattern 'tf:{default}:done:spread-*' | sort; }
check "both have their share" test "$(on redis | wc -l)" -ge 8 -a "$(on redis2 | wc -l)" -ge 8
same "each id is on one of them" 40 "$(cat <(on redis) <(on redis2) | sort -u | wc -l)"
tac "$DIR/many" >"$DIR/reversed"
TOKENFLEX_REDIS=unix://$DIR/redis2.sock,unix://$DIR/redis.sock "$TF" submit - <"$DIR/reversed" >/dev/null
check "the queue empties" until_true 20 eval '[ "$("$TF" status --json | jq "[.servers[] | .batch] | add")" = 0 ]'
same "whatever the order of the list, an id meets its twin: no second result" 0 "$(($(r xlen 'tf:{default}:results') + $(redis-cli -s "$DIR/redis2.sock" xlen 'tf:{default}:results') - $(r --json xrange 'tf:{default}:results' - + | jq -r '.[][1][1]' | sort -u | wc -l) - $(redis-cli -s "$DIR/redis2.sock" --json xrange 'tf:{default}:results' - + | jq -r '.[][1][1]' | sort -u | wc -l)))"
crops "$DIR/crops" 12
run captions caption --redis "$TOKENFLEX_REDIS" --max-new-tokens 1 -o "$DIR/captions.jsonl" "$DIR/crops"
same "caption on both servers: status 0" "0 12" "$status $(wc -l <"$DIR/captions.jsonl")"
mapfile -t ids < <(jq -r .id "$DIR/captions.jsonl")
run found cancel "${ids[@]}"
same "the other commands find its jobs where it put them" 12 "$(grep -c "has its result already" "$DIR/found.out")"
for i in 1 2 3 4 5 6; do echo "gone-$i	file://$DIR/photos/none.jpg"; done | "$TF" submit --wait - >/dev/null 2>&1
same "dead letters of both are listed" 6 "$("$TF" dead list --json | wc -l)"
run both dead drop --all
same "and dropped" "6 dropped" "$(cat "$DIR/both.out")"
run two status
check "status shows both" eval 'printed two "2 servers, 2 of them reachable" && printed two "redis2.sock"'
same "a worker of both is shown once" 1 "$(grep -c '^encoder-' "$DIR/two.out")"
stop redis2 KILL
run one status
same "one of two servers: status 0" 0 "$status"
check "the other is named" printed one "not reachable"
run drained drain llm- --no-wait
same "drain with a server out of reach: status 1" 1 "$status"

# --- a service that has stopped: what it left is not shown as if it were now
export TOKENFLEX_REDIS=unix://$DIR/redis.sock
stop router KILL
check "its router is given up" until_true 30 eval '"$TF" status --json | jq -e ".servers[0].routers == 0" >/dev/null'
run left drain "$("$TF" status --json | jq -r '[.servers[0].workers[] | select(.role == "llm")] | min_by(.silent_ms).instance')"
same "drain that nobody can pass on: status 1" 1 "$status"
check "it says so at once" said left "was not told: nobody serves this queue"
check "workers that nobody hears are gone" until_true 20 eval '"$TF" status --json | jq -e ".servers[0].workers | length > 0 and all(.gone)" >/dev/null'
run stale status
check "status says it of each" eval '[ "$(grep -cE "^(encoder|llm)-.* gone$" "$DIR/stale.out")" -ge 2 ]'
check "and how old the load is" grep -qE "^load .*nobody serves this queue; the last numbers are [0-9]+ s old" "$DIR/stale.out"
