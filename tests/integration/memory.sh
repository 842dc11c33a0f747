#!/usr/bin/env bash
# 1,000 photos in memory that does not grow, with the tiny model.
# In: crops of the examples. Out: resident memory of each process after 300 and after 1,000 photos.
. "$(dirname "$0")/lib.sh"
JOBS=1000

start_redis
crops "$DIR/photos" 200 || fail "making crops"
router="ipc://$DIR/router.sock"
start router "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --bind "$router" --health off
start encoder "$BUILD/tokenflex-encoder" --model "$TINY" --routers "$router" --allow-dir "$DIR/photos" --health off
start llm "$BUILD/tokenflex-llm" --model "$TINY" --routers "$router" --tensor-bind "ipc://$DIR/llm.sock" --health off
check "a pair gets ready" until_true 30 model_ready
resident() { awk '/^VmRSS/ {print $2}' "/proc/${PIDS[$1]}/status"; }
photos=("$DIR"/photos/*.jpg)
send() { # from, to
  local i
  for ((i = $1; i < $2; i++)); do
    echo "XADD tf:{default}:jobs:1 * id m-$i uri file://${photos[$((i % ${#photos[@]}))]} max_new_tokens 4"
  done | r >/dev/null
}
finished() { [ "$(($(r xlen 'tf:{default}:results') + $(r xlen 'tf:{default}:dead')))" -ge "$1" ]; }
send 0 300
check "300 photos" until_true 120 finished 300
declare -A before=()
for name in router encoder llm; do before[$name]=$(resident $name); done
send 300 $JOBS
check "1,000 photos" until_true 240 finished $JOBS
same "all captioned" "$JOBS" "$(r xlen 'tf:{default}:results')"
for name in router encoder llm; do
  after=$(resident $name)
  echo "$name: ${before[$name]} KiB after 300, $after KiB after $JOBS"
  # 700 decoded crops alone are 60 MB, their tensors as much; 8 MiB is allocator noise.
  [ "${ASAN:-0}" = 1 ] || check "$name does not grow" test "$after" -le $((${before[$name]} + 8192))
done
