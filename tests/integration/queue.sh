#!/usr/bin/env bash
# Any Redis client: jobs put on the queue from outside, good and bad, before and after the first router.
# In: the tiny model, a few photos. Out: checks on results, dead letters and their fields.
. "$(dirname "$0")/lib.sh"

start_redis
mkdir "$DIR/photos" "$DIR/secret"
cp examples/cat.jpg examples/dogs.jpg "$DIR/photos/"
cp examples/cat.jpg "$DIR/secret/other.jpg"
ln -s "$DIR/secret/other.jpg" "$DIR/photos/link.jpg"
head -c 3000 examples/cat.jpg >"$DIR/photos/short.jpg"
echo "no picture at all" >"$DIR/photos/text.jpg"
: >"$DIR/photos/empty.jpg"
mkfifo "$DIR/photos/fifo.jpg"
add() { r xadd 'tf:{default}:jobs:1' '*' "$@" >/dev/null; }

add id early uri "file://$DIR/photos/cat.jpg"
router="ipc://$DIR/router.sock"
start router "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --bind "$router" --health off
start encoder "$BUILD/tokenflex-encoder" --model "$TINY" --routers "$router" --allow-dir "$DIR/photos" --max-pixels 1000000 --health off
start llm "$BUILD/tokenflex-llm" --model "$TINY" --routers "$router" --tensor-bind "ipc://$DIR/llm.sock" --health off
check "a pair gets ready" until_true 30 model_ready

add id x1 uri "file://$DIR/photos/cat.jpg"
nameless=$(r xadd 'tf:{default}:jobs:0' '*' uri "file://$DIR/photos/cat.jpg" min_vision_tokens 4 max_vision_tokens 9)
redis-cli -s "$DIR/redis.sock" -x XADD 'tf:{default}:jobs:1' '*' id inline prompt 'What is this?' max_new_tokens 3 image <examples/cat.jpg >/dev/null
add id x1 uri "file://$DIR/photos/cat.jpg"
add id fixed uri "file://$DIR/photos/cat.jpg" min_vision_tokens 9 max_vision_tokens 9
add id answered uri "file://$DIR/photos/cat.jpg" reply here
# what must fail: id, code, fields
bad=(
  "field_unknown field_unknown colour red uri file://$DIR/photos/cat.jpg"
  "count vision_tokens_unsupported max_vision_tokens 100 uri file://$DIR/photos/cat.jpg"
  "no_image field_invalid prompt hello"
  "outside uri_forbidden uri file://$DIR/secret/other.jpg"
  "link uri_forbidden uri file://$DIR/photos/link.jpg"
  "dots uri_forbidden uri file://$DIR/photos/../secret/other.jpg"
  "http uri_forbidden uri http://127.0.0.1:1/cat.jpg"
  "missing image_missing uri file://$DIR/photos/none.jpg"
  "short image_truncated uri file://$DIR/photos/short.jpg"
  "text image_unsupported uri file://$DIR/photos/text.jpg"
  "empty image_empty uri file://$DIR/photos/empty.jpg"
  "large image_too_large uri file://$DIR/photos/dogs.jpg"
  "words field_invalid max_new_tokens many uri file://$DIR/photos/cat.jpg"
  "late deadline deadline_ms 1 uri file://$DIR/photos/cat.jpg"
)
for line in "${bad[@]}"; do
  # shellcheck disable=SC2086 # words are fields
  set -- $line
  id=$1; shift 2
  # The tiny model may be done within a millisecond: whoever is late is so because the encoder stands still.
  [ "$id" = late ] && kill -STOP "${PIDS[encoder]}"
  add id "$id" "$@"
done
sleep 0.3
kill -CONT "${PIDS[encoder]}"
add id fifo uri "file://$DIR/photos/fifo.jpg"

empty_queue() { [ "$(($(r xlen 'tf:{default}:jobs:0') + $(r xlen 'tf:{default}:jobs:1')))" -eq 0 ]; }
check "every job ends" until_true 60 empty_queue
sleep 0.5
field() { # stream, id, field
  r --json xrange "tf:{default}:$1" - + | jq -r --arg id "$2" --arg f "$3" \
    '.[][1] | . as $a | [range(0; length; 2) | {key: $a[.], value: $a[. + 1]}] | from_entries | select(.id == $id) | .[$f] // "absent"'
}
for id in early x1 inline fixed "$nameless"; do
  same "$id: one result" 1 "$(field results "$id" caption | wc -l)"
  same "$id: the json is an object about it" "$id" "$(field results "$id" json | jq -r .id)"
done
same "x1: full detail when idle" 16 "$(field results x1 vision_tokens)"
same "fixed: assigned" 9 "$(field results fixed vision_tokens)"
same "fixed: reason" '{"requested":9,"assigned":9,"reason":"fixed"}' "$(field results fixed json | jq -c .vision_tokens)"
same "limits: at most 9" 9 "$(field results "$nameless" vision_tokens)"
same "requested is auto without a number" auto "$(field results "$nameless" json | jq -r .vision_tokens.requested)"
same "all keys in order" '["id","image","caption","vision_tokens","load","usage","timing_ms","attempt","model"]' "$(field results early json | jq -c keys_unsorted)"
same "every stage has its time" '["queue","fetch","decode","encode","transfer","wait","prefill","generate","total"]' "$(field results early json | jq -c '.timing_ms | keys_unsorted')"
same "completion tokens within the limit" true "$(field results inline json | jq '.usage.completion_tokens <= 3')"
same "a named reply gets the result" answered "$(field reply:here answered id)"
same "and the common results do not" "" "$(field results answered id)"
for line in "${bad[@]}" "fifo image_unsupported -"; do
  # shellcheck disable=SC2086
  set -- $line
  same "$1: dead once with its code" "$2" "$(field dead "$1" error_code)"
  check "$1: the message says something" test "$(field dead "$1" error_message | wc -c)" -gt 10
done
same "dead letters keep the job's fields" "red" "$(field dead field_unknown colour)"
same "dead letters count attempts" "1" "$(field dead short attempts)"
same "nothing else died" "$((${#bad[@]} + 1))" "$(r xlen 'tf:{default}:dead')"
for name in router encoder llm; do check "$name is alive" alive "$name"; done
