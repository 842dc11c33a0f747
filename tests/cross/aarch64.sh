#!/usr/bin/env bash
# The aarch64 programs as a user has them, under qemu-user: what they say of the processor, captions end to end.
# In: BUILD=build/aarch64, RUNNER=what runs them, the tiny model, this machine's own redis-server and build/release.
# Out: checks; captions are compared with those that this machine's portable path writes.
. "$(dirname "$0")/../integration/lib.sh"

# shellcheck disable=SC2206 # a command and its arguments
run=($RUNNER)
for program in tokenflex tokenflex-router tokenflex-encoder tokenflex-llm; do
  same "$program is for aarch64" 183 "$(($(od -An -tu2 -j 18 -N 2 "$BUILD/$program")))"
done
for program in encoder llm; do
  said=$("${run[@]}" "$BUILD/tokenflex-$program" --model "$TINY" --cpu avx2 2>&1)
  same "$program --cpu avx2: status 2" 2 $?
  check "it says what there is" grep -qF -- "--cpu avx2: this machine lacks it (AVX2 and FMA); the best here is portable" <<<"$said"
  said=$("${run[@]}" "$BUILD/tokenflex-$program" --model "$TINY" --compute int8 2>&1)
  same "$program --compute int8: status 2" 2 $?
  check "it says what it needs" grep -qF -- "--compute int8 needs AVX2 and FMA, which this machine lacks" <<<"$said"
done

# --- the services, over their own sockets and a Redis of this machine
start_redis
start router "${run[@]}" "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --bind "ipc://$DIR/router.sock" --health off
start encoder "${run[@]}" "$BUILD/tokenflex-encoder" --model "$TINY" --routers "ipc://$DIR/router.sock" --allow-dir "$PWD/examples" --health off
start llm "${run[@]}" "$BUILD/tokenflex-llm" --model "$TINY" --routers "ipc://$DIR/router.sock" --tensor-bind "ipc://$DIR/llm.sock" --health off
check "a pair gets ready" until_true 120 model_ready
for name in encoder llm; do
  check "$name says what it computes with" grep -qE 'event=started .*cpu=portable compute=f32' "$DIR/$name.log"
done
"${run[@]}" "$BUILD/tokenflex" submit --redis "unix://$DIR/redis.sock" --wait --max-new-tokens 8 examples/cat.jpg "file://$PWD/examples/dogs.jpg" >"$DIR/jobs.out" 2>"$DIR/jobs.err"
same "two jobs are submitted and waited for" "0 2" "$? $(jq -r .caption "$DIR/jobs.out" | wc -l)"
for name in encoder llm router; do
  pid=${PIDS[$name]}; kill -TERM "$pid"; wait "$pid"; same "$name drains and exits 0" 0 "$?"; unset "PIDS[$name]"
done

# --- tokenflex caption starts all of it itself
"${run[@]}" "$BUILD/tokenflex" caption --model "$TINY" --max-new-tokens 8 examples/cat.jpg examples/dogs.jpg >"$DIR/here.jsonl" 2>"$DIR/caption.err"
same "tokenflex caption: status 0, two lines" "0 2" "$? $(wc -l <"$DIR/here.jsonl")"
build/release/tokenflex caption --cpu portable --model "$TINY" --max-new-tokens 8 examples/cat.jpg examples/dogs.jpg >"$DIR/there.jsonl" 2>>"$DIR/caption.err"
same "the captions are those of this machine's portable path" "$(jq -r '"\(.image) \(.caption)"' "$DIR/there.jsonl" | sort)" "$(jq -r '"\(.image) \(.caption)"' "$DIR/here.jsonl" | sort)"
