#!/usr/bin/env bash
# One job through the logs of client, router, encoder and LLM, by its id and by its trace, from XADD to the answer.
# In: the real pair on the tiny model, everything at --log-level debug. Out: checks on the lines, the result, the dead letter.
. "$(dirname "$0")/lib.sh"

start_redis
router=ipc://$DIR/router.sock
start router "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --bind "$router" --health off --log-level debug
start llm "$BUILD/tokenflex-llm" --model "$TINY" --routers "$router" --tensor-bind "ipc://$DIR/llm.sock" --health off --log-level debug
start encoder "$BUILD/tokenflex-encoder" --model "$TINY" --routers "$router" --health off --log-level debug
check "the model is told" until_true 60 model_ready

TRACE=4bf92f3577b34da6a3ce929d0e0e4736
submit() { # NAME ARGUMENTS...: output in NAME.out, the client's log in NAME.log
  local name=$1; shift
  timeout -k 5 120 "$BUILD/tokenflex" submit --redis "unix://$DIR/redis.sock" --wait --log-level debug "$@" \
    >"$DIR/$name.out" 2>"$DIR/$name.log" </dev/null
  status=$?
}
# story FIELD=VALUE: "program event" of each line that has it, in the order of time; the tiny LLM's result may overtake
# the news that its tensor has come
lines() { cat "$DIR"/{router,encoder,llm}.log | grep -vF " event=job_decoding "; }
story() { cat <(lines) "$DIR"/{one,two,bad,refused}.log 2>/dev/null | grep -F " event=" | grep -F -- "$1" | sort | sed -E 's/.* program=([a-z]+) event=([a-z_]+).*/\1 \2/'; }
each_once() { story "$1" | sort | tr '\n' ','; }
# In milliseconds, so "not after".
time_of() { sed -nE "s/^time=([^ ]+) .* program=${2% *} event=${2#* } .*$1.*/\\1/p" <(lines) "$DIR/one.log" | head -n 1; }
before() { local a b; a=$(time_of "$1" "$2") b=$(time_of "$1" "$3"); [ -n "$a" ] && [ -n "$b" ] && [[ ! $a > $b ]]; }
EVENTS="encoder job_encoded,encoder job_received,llm job_done,llm tensor_received,router job_assigned,router job_claimed,router job_done,tokenflex answer_read,tokenflex job_submitted,"

submit one --id photo-1 --trace "00-$TRACE-00f067aa0ba902b7-01" examples/cat.jpg
same "submit: status 0" 0 "$status"
same "the trace finds every step" "$EVENTS" "$(each_once "$TRACE")"
same "so does the id" "$EVENTS" "$(each_once job=photo-1)"
for pair in "router job_claimed/router job_assigned" "router job_assigned/encoder job_received" "encoder job_received/llm tensor_received" \
  "llm tensor_received/llm job_done" "llm job_done/router job_done" "tokenflex job_submitted/tokenflex answer_read"; do
  check "in order: $pair" before "job=photo-1" "${pair%/*}" "${pair#*/}"
done
same "the services name the trace id alone" 7 "$(lines | grep -cE " job=photo-1 .*trace=$TRACE( |$)")"
entry=$(sed -nE 's/.* event=job_submitted .* entry=([^ ]+).*/\1/p' "$DIR/one.log")
check "the client names the entry" test -n "$entry"
same "so do all of the services" 7 "$(lines | grep -cF " entry=$entry ")"
same "the assignment is in the log" 1 "$(grep -F "event=job_assigned job=photo-1" "$DIR/router.log" | grep -cE 'vision_tokens=16 reason=idle encoder=encoder-.* llm=llm-')"
same "the result has it" "$TRACE" "$(jq -r .trace "$DIR/one.out")"

submit two --id photo-2 examples/dogs.jpg
same "without a trace: the id finds every step" "$EVENTS" "$(each_once job=photo-2)"
same "and nothing is made up" "null 7" "$(jq .trace "$DIR/two.out") $(lines | grep -cE ' job=photo-2 .*trace=""')"

echo text >"$DIR/text.jpg"
submit bad --id photo-3 --trace shop-77 "$DIR/text.jpg"
same "a picture that is none: status 3" 3 "$status"
same "its trace shows where it ended" "encoder job_failed,encoder job_received,router job_assigned,router job_claimed,router job_dead,tokenflex answer_read,tokenflex job_submitted," "$(each_once trace=shop-77)"
same "and stands in its dead letter" shop-77 "$(r --json xrange 'tf:{default}:dead' - + | jq -r '.[0][1] | .[index("trace") + 1]')"
submit refused --id photo-4 --trace shop-78 --deadline-ms 1 examples/cat.jpg
same "a refused job's too" 1 "$(grep -c 'event=job_dead job=photo-4 .*trace=shop-78 code=deadline' "$DIR/router.log")"
