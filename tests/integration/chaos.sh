#!/usr/bin/env bash
# The promise under faults: processes of each kind get SIGKILL or SIGSTOP at random moments, and every id still ends once.
# In: the tiny model, release programs, a real redis-server; SEED repeats a schedule. Out: checks on results, dead letters, keys.
. "$(dirname "$0")/lib.sh"
SEED=${SEED:-$$}
RANDOM=$SEED
echo "# seed $SEED"

mkdir "$DIR/photos"
jpegtran -crop 64x64+16+16 -outfile "$DIR/photos/small.jpg" examples/cat.jpg || fail "a small photo is made"
redis_up() { start_redis --appendonly yes --appendfsync always; }
redis_up

# Every scenario has a queue. Leases and time-outs are short, so that faults show soon; more attempts than workers are
# killed, so that no job dies of kills alone.
QUEUE=none
key() { echo "tf:{$QUEUE}:$1"; }
router() { # NAME
  start "$1" "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --queue "$QUEUE" --bind "ipc://$DIR/$1.sock" \
    --lease-ms 3000 --peer-timeout-ms 2000 --max-attempts 9 --health off
}
encoder() { # NAME ROUTERS [options...]
  start "$1" "$BUILD/tokenflex-encoder" --model "$TINY" --routers "$2" --allow-dir "$DIR/photos" --threads 1 \
    --decode-threads 1 --peer-timeout-ms 2000 --health off "${@:3}"
}
llm() { # NAME ROUTERS [options...]: the tensor endpoint is the name's, so a new one is found where the old one was
  start "$1" "$BUILD/tokenflex-llm" --model "$TINY" --routers "$2" --tensor-bind "ipc://$DIR/$1.sock" --threads 1 \
    --sequences 2 --peer-timeout-ms 2000 --health off "${@:3}"
}
pause() { sleep "0.$((RANDOM % 700 + 100))"; } # 0.1 to 0.799 s
# jobs FROM TO: a command each, for redis-cli. Every tenth comes in both lanes, every seventh twice: still one id each.
jobs() {
  local i lane
  for i in $(seq "$1" "$2"); do
    for lane in 1 $([ $((i % 10)) -eq 0 ] && echo 0) $([ $((i % 7)) -eq 0 ] && echo 1); do
      echo "XADD $(key jobs:$lane) * id job-$i uri file://$DIR/photos/small.jpg max_new_tokens 300"
    done
  done
}
count() { r xlen "$(key "$1")"; }
unfinished() { echo $(($(count jobs:0) + $(count jobs:1))); }
all_done() { [ "$(unfinished)" -eq 0 ]; }
ids() { r --json xrange "$(key "$1")" - + | jq -r '.[][1] | .[index("id") + 1]'; }
captions_come() { [ "$(count results)" -gt 5 ]; }
attempts() { r --json xrange "$(key results)" - + | jq -r '.[][1] | .[index("json") + 1] | fromjson | .attempt' | sort -nu | xargs; }
# settled WHAT JOBS: each of job-1 to job-JOBS ended once, and nothing else is left behind
settled() {
  check "$1: every job ends" until_true 120 all_done
  same "$1: every id once" "$(seq -f 'job-%g' 1 "$2" | sort)" "$({ ids results; ids dead; } | sort)"
  same "$1: none is dead" 0 "$(count dead)"
  same "$1: no lease, retry or job state is left" "0 0 0 0" "$(r zcard "$(key lease:encode)") $(r zcard "$(key lease:decode)") \
$(r zcard "$(key retry)") $(r --scan --pattern "$(key 'job:*')" | wc -l)"
}
down() { local name; for name in "$@"; do stop "$name" KILL; done; }

QUEUE=kills
both="ipc://$DIR/a.sock,ipc://$DIR/b.sock"
router a; router b; encoder e "$both"; llm l "$both"
check "two routers, an encoder and an LLM get ready" until_true 30 model_ready
added=200 hits=0
jobs 1 "$added" | r >/dev/null
for victim in a e l redis b l e a; do
  pause
  jobs $((added + 1)) $((added + 40)) | r >/dev/null
  added=$((added + 40))
  sleep "0.0$((RANDOM % 90 + 10))"
  all_done || hits=$((hits + 1))
  stop "$victim" KILL
  case $victim in
    a | b) router "$victim" ;;
    e) encoder e "$both" ;;
    l) llm l "$both" ;;
    redis) pause; redis_up ;;
  esac
done
check "kills came while jobs were under way" test "$hits" -ge 6
settled "SIGKILL of each kind" "$added"
for name in a b e l redis; do check "$name is alive" alive "$name"; done
down a b e l

QUEUE=pause
router p; encoder e "ipc://$DIR/p.sock"; llm l "ipc://$DIR/p.sock"
check "a router, an encoder and an LLM get ready" until_true 30 model_ready
jobs 1 150 | r >/dev/null
check "captions come" until_true 20 captions_come
kill -STOP "${PIDS[p]}"
sleep 4
kill -CONT "${PIDS[p]}"
check "the router was stopped while jobs were under way" test "$(unfinished)" -gt 0
settled "a router stopped past its lease, alone" 150
same "its own silence is not taken for the workers'" "1 0" "$(attempts) $(grep -c event=worker_lost "$DIR/p.log")"
down p e l

QUEUE=successor
router s; encoder e "ipc://$DIR/s.sock"; llm l "ipc://$DIR/s.sock"
check "another trio gets ready" until_true 30 model_ready
jobs 1 150 | r >/dev/null
check "captions come" until_true 20 captions_come
stop l KILL; llm l "ipc://$DIR/s.sock"
check "an LLM was killed while jobs were under way" test "$(unfinished)" -gt 0
settled "another LLM at the endpoint of one that died" 150
check "one death costs one attempt at most" test "$(attempts | grep -o '[0-9]*$')" -le 2
down s e l

QUEUE=zombie
both="ipc://$DIR/z.sock,ipc://$DIR/y.sock"
router z; router y; encoder e "$both"; llm l "$both"
check "two routers get ready" until_true 30 model_ready
jobs 1 150 | r >/dev/null
check "captions come" until_true 20 captions_come
kill -STOP "${PIDS[z]}"
check "the zombie held jobs" test "$(unfinished)" -gt 0
settled "the other router took over" 150
kill -CONT "${PIDS[z]}"
jobs 151 160 | r >/dev/null
settled "and the zombie ended nothing twice" 160
for name in z y e l; do check "$name is alive" alive "$name"; done
down z y e l

QUEUE=slot
both="ipc://$DIR/v.sock,ipc://$DIR/w.sock"
router v; router w; encoder e "$both" --jobs 1; llm l "$both" --sequences 1
check "two routers get ready" until_true 30 model_ready
jobs 1 60 | r >/dev/null
check "captions come" until_true 20 captions_come
stop w KILL; router w
settled "two routers and one slot, one of them killed" 60
