#!/usr/bin/env bash
# What every fault is tried on: a stack of real processes, jobs, a sampler of what has ended, checks, a row of the table.
# In: BUILD (release programs), CHAOS (programs with fail points), JOBS, SEED. Out: functions; rows in $ROWS.
. "$(dirname "${BASH_SOURCE[0]}")/../integration/lib.sh"
CHAOS=${CHAOS:-build/chaos}
JOBS=${JOBS:-1000}
SEED=${SEED:-$$}
RANDOM=$SEED
NEW_TOKENS=${NEW_TOKENS:-200}
PROBE=$((JOBS / 5 > 20 ? JOBS / 5 : 20))
ROWS=$DIR/rows
: >"$ROWS"

mkdir "$DIR/photos"
jpegtran -crop 64x64+16+16 -outfile "$DIR/photos/small.jpg" examples/cat.jpg || exit 1
cc -O1 -D_GNU_SOURCE -o "$DIR/relay" tests/chaos/relay.c || exit 1
make_worker fake_worker "$DIR/fake_worker" || exit 1

# --- processes; each log holds all of a name's lives ---
launch() { # NAME COMMAND...
  local name=$1; shift
  "$@" >>"$DIR/$name.log" 2>&1 </dev/null &
  PIDS[$name]=$!
}
REDIS_PORT=$(free_port)
redis_up() {
  launch redis redis-server --bind 127.0.0.1 --port "$REDIS_PORT" --unixsocket "$DIR/redis.sock" --save "" --appendonly yes \
    --appendfsync always --dir "$DIR" --loglevel warning
  until_true 20 eval '[ "$(r ping 2>/dev/null)" = PONG ]' || fail "redis-server starts"
}
QUEUE=none MODEL=$TINY LEASE_MS=3000 PEER_MS=2000
key() { echo "tf:{$QUEUE}:$1"; }
# Where routers listen and find Redis, and what workers are given: scenarios put wires in between.
router_at() { echo "ipc://$DIR/$1-bind.sock"; }
ROUTERS="" REDIS_URL=unix://$DIR/redis.sock
router() { # NAME [ENDPOINT [PROGRAMS]]
  launch "$1" env "TF_FAIL_POINT=${FAIL_POINT:-}" "${3:-$BUILD}/tokenflex-router" --redis "$REDIS_URL" --queue "$QUEUE" \
    --bind "${2:-$(router_at "$1")}" --lease-ms "$LEASE_MS" --peer-timeout-ms "$PEER_MS" --health off
}
encoder() { # NAME [PROGRAMS [options...]]
  local name=$1 programs=${2:-$BUILD}; shift; [ $# -gt 0 ] && shift
  launch "$name" env "TF_FAIL_POINT=${FAIL_POINT:-}" "$programs/tokenflex-encoder" --model "$MODEL" --routers "$ROUTERS" \
    --allow-dir "$DIR/photos" --threads 1 --decode-threads 1 --peer-timeout-ms "$PEER_MS" --ack-timeout-ms 3000 --health off "$@"
}
llm() { # NAME [PROGRAMS [options...]]
  local name=$1 programs=${2:-$BUILD}; shift; [ $# -gt 0 ] && shift
  launch "$name" env "TF_FAIL_POINT=${FAIL_POINT:-}" "$programs/tokenflex-llm" --model "$MODEL" --routers "$ROUTERS" \
    --tensor-bind "ipc://$DIR/$name-bind.sock" --threads 1 --sequences 4 --peer-timeout-ms "$PEER_MS" --health off "$@"
}
again() { # NAME: the same process anew, by its first letter
  case $1 in
    redis) redis_up ;;
    r*) router "$1" ;;
    e*) encoder "$1" ;;
    l*) llm "$1" ;;
  esac
}
two_of_each() {
  ROUTERS=$(router_at r1),$(router_at r2),$(router_at r3)
  router r1; router r2; encoder e1; encoder e2; llm l1; llm l2
}
down_all() { local name; for name in "${!PIDS[@]}"; do [ "$name" = redis ] || stop "$name" KILL; done; }
signal() { kill -"$1" "${PIDS[$2]}"; } # SIGNAL NAME

# --- jobs and what became of them ---
# length STREAM: fails where Redis is away or answers with an error, as while it loads its AOF
length() { local n; n=$(r xlen "$(key "$1")" 2>/dev/null) && [[ $n =~ ^[0-9]+$ ]] && echo "$n"; }
count() { length "$1" || echo 0; }
unfinished() { echo $(($(count jobs:0) + $(count jobs:1))); }
ended() { echo $(($(count results) + $(count dead))); }
ended_past() { [ "$(ended)" -ge "$1" ]; }
all_done() { [ "$(length jobs:0)/$(length jobs:1)" = 0/0 ]; }
ids() { r --json xrange "$(key "$1")" - + | jq -r '.[][1] | .[index("id") + 1]'; }
added=0
# feed COUNT: every tenth comes in both lanes, every seventh twice: still one id each
feed() {
  awk -v from="$((added + 1))" -v to="$((added + $1))" -v key="$(key jobs:)" -v prefix="${PREFIX:-job}" \
    -v photo="${PHOTO:-$DIR/photos/small.jpg}" -v tokens="$NEW_TOKENS" -v limits="${LIMITS:-}" '
    function add(lane, i) {
      printf "XADD %s%d * id %s-%d uri file://%s max_new_tokens %d %s\r\n", key, lane, prefix, i, photo, tokens, limits
    }
    BEGIN { for (i = from; i <= to; i++) { add(1, i); if (i % 10 == 0) add(0, i); if (i % 7 == 0) add(1, i) } }' |
    r --pipe >/dev/null || fail "$NAME: jobs are added"
  added=$((added + $1))
}
now_ms() { date +%s%3N; }
# probe PREFIX: a batch of PROBE jobs; RATE is how many ended in ten seconds
probe() {
  local begin PREFIX=$1
  begin=$(now_ms)
  feed "$PROBE"
  until_true 120 all_done || fail "$NAME: a batch of $PROBE ends"
  RATE=$((PROBE * 10000 / ($(now_ms) - begin + 1)))
}

per_s() { awk -v jobs="$1" 'BEGIN { printf jobs < 100 ? "%.1f" : "%.0f", jobs / 10 }'; } # of a RATE

# --- a scenario: begin, faults, finish ---
begin() { # NAME TEXT [more processes]: the stack is up when this returns
  NAME=$1 TEXT=$2 QUEUE=$1 added=0
  RANDOM=$(((SEED + $(cksum <<<"$1" | cut -d' ' -f1)) % 32768)) # the same schedule whatever ran before
  echo "# $NAME: $TEXT (${SECONDS}s)"
  rm -f "$DIR"/[rel][0-9]*.log "$DIR"/*-bind.sock
}
await_stack() {
  check "$NAME: the stack is up" until_true 30 model_ready
  probe before
  rate_before=$RATE
}
load() { # returns once some jobs have ended
  feed "$JOBS"
  sample &
  SAMPLER=$!
  until_true 60 ended_past $((PROBE + JOBS / 10)) || fail "$NAME: jobs begin to end"
  FAULT_MS=$(now_ms)
}
# The fault falls on jobs that are under way: some have ended, most have not.
under_load() {
  load
  check "$NAME: the fault falls on jobs that are under way" test "$(ended)" -lt $((PROBE + JOBS * 3 / 4))
}
sample() { # "ms ended" lines until the queue's marker is gone
  touch "$DIR/sampling"
  while [ -e "$DIR/sampling" ]; do
    echo "$(now_ms) $(ended)"
    sleep 0.2
  done >"$DIR/samples"
}
# Seconds from the fault to the end of the last second in which less than half as much ended as before; the last 5% of
# the jobs do not count, as there is not enough left to do.
recovery() {
  awk -v fault="$FAULT_MS" -v rate="$(per_s "$rate_before")" -v total="$added" '
    { t[NR] = $1; n[NR] = $2 }
    END {
      for (i = 2; i <= NR && t[i] < fault; i++) if ((n[i] - n[1]) * 1000 / (t[i] - t[1]) > rate) rate = (n[i] - n[1]) * 1000 / (t[i] - t[1])
      half = rate / 2; last = 0; j = 1
      for (i = 1; i <= NR; i++) {
        while (t[i] - t[j] > 1000) j++
        if (t[i] < fault + 1000 || j == 1 || n[j - 1] > total * 0.95) continue
        span = t[i] - t[j - 1]
        if ((n[i] - n[j - 1]) * 1000 / span < half) last = t[i] - fault
      }
      printf "%.1f", last / 1000
    }' "$DIR/samples"
}
# Results of ids that had one; those of jobs that were submitted twice are no news.
dropped() {
  cat "$DIR"/r[0-9]*.log 2>/dev/null | sed -n 's/.*event=result_dropped job=[a-z]*-\([0-9]*\) .*/\1/p' |
    awk '$1 % 10 && $1 % 7 { n++ } END { print n + 0 }'
}
state_left() {
  echo "$(r zcard "$(key lease:encode)") $(r zcard "$(key lease:decode)") $(r zcard "$(key retry)") $(r --scan --pattern "$(key 'job:*')" | wc -l)"
}
# finish [DEAD [SECONDS]]: everything ends, once, and the stack works as before; DEAD jobs must have died
finish_scenario() {
  local dead=${1:-0} failed_before=$failed recovered rate_after results expected
  if ! check "$NAME: every job ends" until_true "${2:-180}" all_done_now; then :; fi
  rm -f "$DIR/sampling"
  wait "$SAMPLER" 2>/dev/null
  recovered=$(recovery)
  results=$(count results)
  attempts_most=$(r --json xrange "$(key results)" - + | jq -r '.[][1] | .[index("json") + 1] | fromjson | .attempt' | sort -n | tail -n 1)
  local wait_s
  for wait_s in 0 0 0 5 10; do # other programs use the machine too, for some seconds at times
    sleep "$wait_s"
    probe after
    rate_after=$RATE
    [ "$((rate_after * 2))" -ge "$rate_before" ] && break
  done
  check "$NAME: throughput is as before ($(per_s "$rate_before")/s, now $(per_s "$rate_after")/s)" test "$((rate_after * 2))" -ge "$rate_before"
  expected=$( { seq -f 'before-%g' 1 "$PROBE"; seq -f "${ID_PREFIX:-job}-%g" $((PROBE + 1)) $((PROBE + JOBS)); seq -f 'after-%g' $((PROBE + JOBS + 1)) "$added"; extra_ids; } | sort)
  same "$NAME: each id ended once" "" "$(diff <(echo "$expected") <({ ids results; ids dead; } | sort) | head -n 5)"
  same "$NAME: dead letters" "$dead" "$(count dead)"
  same "$NAME: no lease, retry or job state is left" "0 0 0 0" "$(state_left)"
  echo "$TEXT|$((JOBS + $(extra_ids | wc -l)))|$((results - PROBE))|$(count dead)|$(dropped)|$recovered|$(per_s "$rate_before")|$(per_s "$rate_after")|$([ "$failed" -eq "$failed_before" ] && echo ok || echo FAILED)" >>"$ROWS"
  if [ -n "${KEEP:-}" ]; then mkdir -p "$KEEP/$NAME" && cp "$DIR"/*.log "$DIR/samples" "$KEEP/$NAME/" && echo "$FAULT_MS" >"$KEEP/$NAME/fault"; fi
  down_all
  r flushall >/dev/null
}
extra_ids() { :; } # ids that a scenario adds itself
each_poll() { :; } # what a scenario does while it waits
all_done_now() { each_poll; all_done; }
wanted() { [ -z "${ONLY:-}" ] || [[ $1 =~ $ONLY ]]; }
