#!/usr/bin/env bash
# The router alone: stub tiers that answer at once over real ZeroMQ, jobs preloaded, Redis with AOF every second.
# In: BUILD (build/release), BENCH_JOBS (50000), BENCH_SLOTS (256). Out: jobs/s end to end, router CPU a job, and its CPU
# while 100 URI jobs come a second.
. "$(dirname "$0")/../tests/integration/lib.sh"
BENCH_JOBS=${BENCH_JOBS:-50000}
BENCH_SLOTS=${BENCH_SLOTS:-256}
make_worker fake_worker "$DIR/fake_worker" || exit 1

start redis redis-server --port 0 --unixsocket "$DIR/redis.sock" --save "" --appendonly yes --appendfsync everysec --dir "$DIR"
until_true 10 eval '[ "$(r ping 2>/dev/null)" = PONG ]' || exit 1
router_cpu_ms() { awk -v hz="$(getconf CLK_TCK)" '{ print ($14 + $15) * 1000 / hz }' "/proc/${PIDS[router]}/stat"; }
now_ms() { date +%s%3N; }
jobs() { # FIRST COUNT
  seq "$1" $(($1 + $2 - 1)) | sed 's|.*|XADD tf:{default}:jobs:1 * id job-& uri file:///photos/album-7/picture-&.jpg prompt "Describe this image."|'
}
done_to() { [ "$(r xlen 'tf:{default}:results')" -ge "$1" ]; }
start router "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --bind "ipc://$DIR/router.sock" --health off --log-level warn
r xgroup create 'tf:{default}:jobs:1' router 0 mkstream >/dev/null
jobs 1 "$BENCH_JOBS" | r >/dev/null
sleep 2 # the AOF is written
cpu=$(router_cpu_ms) begin=$(now_ms)
start stub "$DIR/fake_worker" "ipc://$DIR/router.sock" stub 0123456789abcdef0123456789abcdef "$BENCH_SLOTS"
until_true 300 done_to "$BENCH_JOBS" || fail "the jobs end"
wall=$(($(now_ms) - begin)) cpu=$(($(router_cpu_ms) - cpu))
same "every job ended once" "$BENCH_JOBS 0" "$(r xlen 'tf:{default}:results') $(r xlen 'tf:{default}:jobs:1')"
awk -v n="$BENCH_JOBS" -v wall="$wall" -v cpu="$cpu" 'BEGIN {
  printf "%d jobs preloaded: %.0f jobs/s end to end, %.1f us of router CPU a job (%.0f jobs/s a core)\n", n, n * 1000 / wall, cpu * 1000 / n, n * 1000 / cpu }'

cpu=$(router_cpu_ms) begin=$(now_ms)
for i in $(seq 100); do
  jobs $((BENCH_JOBS + i * 10)) 10
  sleep 0.095
done | r >/dev/null
until_true 20 done_to $((BENCH_JOBS + 1000)) || fail "the jobs that come one by one end"
wall=$(($(now_ms) - begin)) cpu=$(($(router_cpu_ms) - cpu))
awk -v wall="$wall" -v cpu="$cpu" 'BEGIN { printf "%.0f URI jobs/s: the router takes %.1f%% of a core\n", 1000 * 1000 / wall, cpu * 100 / wall }'
pass "measured on $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores"
