#!/usr/bin/env bash
# The whole pair as separate processes over tcp: one router, two encoders, two LLMs, 200 photos, real weights.
# In: build/model, examples/. Out: checks that every id is answered exactly once, also when an encoder and an LLM get SIGKILL on the way.
. "$(dirname "$0")/lib.sh"
JOBS=${PAIR_JOBS:-200}
MODEL=$PWD/build/model

start_redis
crops "$DIR/photos" "$JOBS" || fail "making $JOBS crops"
same "the photos are distinct" "$JOBS" "$(sha256sum "$DIR"/photos/*.jpg | cut -d' ' -f1 | sort -u | wc -l)"
port=$(free_port)
start router "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --bind "tcp://127.0.0.1:$port" --lease-ms 6000 --health off
for i in 1 2; do
  start encoder$i "$BUILD/tokenflex-encoder" --model "$MODEL" --routers "tcp://127.0.0.1:$port" --allow-dir "$DIR/photos" --threads 1 --health off
  start llm$i "$BUILD/tokenflex-llm" --model "$MODEL" --routers "tcp://127.0.0.1:$port" --tensor-bind 'tcp://127.0.0.1:*' --threads 1 --health off
done
check "a pair gets ready" until_true 60 model_ready

n=0
for photo in "$DIR"/photos/*.jpg; do
  n=$((n + 1))
  echo "XADD tf:{default}:jobs:1 * id photo-$n uri file://$photo max_vision_tokens 64 max_new_tokens 8"
done | r >/dev/null
results() { r xlen 'tf:{default}:results'; }
dead() { r xlen 'tf:{default}:dead'; }
more_than() { [ "$(results)" -gt "$1" ]; }
check "captions come" until_true 120 more_than $((JOBS / 10))
stop encoder2 KILL
check "captions come after an encoder was killed" until_true 120 more_than $((JOBS * 3 / 10))
stop llm2 KILL
all_done() { [ "$(($(results) + $(dead)))" -ge "$JOBS" ]; }
check "all are answered although an LLM was killed" until_true 400 all_done
sleep 1
same "none is dead" 0 "$(dead)"
ids=$(r --json xrange 'tf:{default}:results' - + | jq -r '.[][1] | . as $f | ($f | index("id")) as $i | $f[$i + 1]')
same "results" "$JOBS" "$(echo "$ids" | wc -l)"
same "every id exactly once" "$JOBS" "$(echo "$ids" | sort -u | wc -l)"
captions=$(r --json xrange 'tf:{default}:results' - + | jq -r '.[][1] | . as $f | ($f | index("caption")) as $i | $f[$i + 1]')
check "no caption is empty" test "$(echo "$captions" | grep -c .)" = "$JOBS"
check "captions differ" test "$(echo "$captions" | sort -u | wc -l)" -gt $((JOBS / 10))
same "nothing is left on the queue" 0 "$(r xlen 'tf:{default}:jobs:1')"
same "no lease is left" "0 0" "$(r zcard 'tf:{default}:lease:encode') $(r zcard 'tf:{default}:lease:decode')"
same "no job state is left" "" "$(r --scan --pattern 'tf:{default}:job:*')"
for name in router encoder1 llm1; do check "$name is still alive" alive "$name"; done
for name in encoder1 llm1 router; do
  pid=${PIDS[$name]}; kill -TERM "$pid"; wait "$pid"; same "$name drains and exits 0" 0 "$?"; unset "PIDS[$name]"
done
