#!/usr/bin/env bash
# A queue whose workers come and go: what an autoscaler that goes to zero reads, and that jobs wait for the first worker.
# In: tokenflex-router, tokenflex caption, redis-server, tests/integration/timed_worker.c. Out: checks on /wanted, /readyz, groups, results.
. "$(dirname "$0")/lib.sh"

timed="$DIR/timed_worker"
make_worker timed_worker "$timed" || { fail "the timed worker compiles"; exit 1; }

asleep=$(free_port) strict=$(free_port)
router() { # NAME HEALTH-PORT [options...]
  local name=$1 health=$2; shift 2
  start "$name" "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --bind "ipc://$DIR/$name.sock" --health "127.0.0.1:$health" \
    --lease-ms 900 --peer-timeout-ms 2500 --target-wait-ms 500 "$@"
  check "$name is there" until_true 10 curl -s -o /dev/null "http://127.0.0.1:$health/healthz"
}
workers() { start w "$timed" "${1:-ipc://$DIR/a.sock,ipc://$DIR/b.sock}" w 2 64=10,144=20,256=40; } # [ROUTERS]
key() { echo "tf:{default}:$1"; }
job() { r xadd "$(key jobs:1)" '*' id "$1" uri "file:///$1.jpg" "${@:2}" >/dev/null; }
count() { r xlen "$(key "$1")"; }
group() { r --json xinfo groups "$(key "jobs:$1")" | jq -r --arg field "$2" '.[] | (if type == "array" then [range(0; length; 2) as $i | {key: .[$i], value: .[$i + 1]}] | from_entries else . end) | select(.name == "router") | .[$field]'; }
wanted() { curl -sf "http://127.0.0.1:$1/wanted" | jq -e "$2" >/dev/null; } # PORT CONDITION
both() { wanted "$asleep" "$1" && wanted "$strict" "$1"; }
wanted_status() { curl -s -o "$DIR/wanted" -w '%{http_code}' "http://127.0.0.1:$1/wanted"; }
ready() { curl -s -o "$DIR/ready" -w '%{http_code}' "http://127.0.0.1:$1/readyz"; }
all_done() { [ "$(($(count jobs:0) + $(count jobs:1)))" -eq 0 ]; }

# --- Redis away: nothing is claimed to be known
router a "$asleep" --ready-without-workers
same "without Redis the demand is not known" 503 "$(wanted_status "$asleep")"
same "and a router is not ready" 503 "$(ready "$asleep")"
start_redis
router b "$strict"

# --- no worker yet, no job
check "nobody is wanted" until_true 20 both '. == {encoder: 0, llm: 0}'
same "the groups are there before the first worker" "router router" "$(group 0 name) $(group 1 name)"
check "a router may be ready without workers" until_true 5 eval '[ "$(ready "$asleep")" = 200 ]'
same "and says what is missing" "no encoder" "$(ready "$asleep" >/dev/null; cat "$DIR/ready")"
same "where it is not told to be, it is not" 503 "$(ready "$strict")"

# --- jobs wait for the first worker, at no cost
for i in 1 2 3; do job "first$i"; done
check "one of each is wanted" until_true 10 both '. == {encoder: 1, llm: 1}'
same "the group's lag tells of all three" 3 "$(group 1 lag)"
sleep 2 # more than two leases
same "they still wait, untouched" "3 0 0 0" "$(count jobs:1) $(group 1 pending) $(count results) $(count dead)"
job late deadline_ms 1
workers
check "with workers they end" until_true 20 all_done
same "captioned, but for the one whose deadline has passed" "3 1" "$(count results) $(count dead)"
same "at the first try" 1 "$(r --json xrange "$(key results)" - + | jq -c '[.[][1] | .[index("json") + 1] | fromjson.attempt] | unique[]')"
check "and are measured" until_true 10 eval '[ -n "$(r hget "$(key load)" decode_service_ms)" ]'

# --- the workers go; what they cost is not forgotten
stop w KILL
check "the routers notice" until_true 10 eval '[ "$(r hget "$(key load)" decode_workers)" = 0 ]'
# Nor is it where every router is a new one.
for name in a b; do stop $name; done
router a "$asleep" --ready-without-workers
router b "$strict"
check "routers that start now know it, too" until_true 10 eval '[ "$(r hget "$(key load)" decode_service_ms)" = 10,20,40 ]'
same "what they know stays what it was" "10,20,40" "$(sleep 3; r hget "$(key load)" decode_service_ms)"
for i in $(seq 400); do echo "XADD $(key jobs:1) * id more$i uri file:///x.jpg"; done | r >/dev/null
# 400 jobs of 40 ms at full detail within 500 ms: 32 workers, and what came a second is on top
check "a backlog asks for all it needs at once" until_true 10 both '.llm >= 32'
same "nothing is claimed" "400 0" "$(count jobs:1) $(group 1 pending)"
workers
check "it is worked off" until_true 60 all_done
same "every id once" "403 1" "$(count results) $(count dead)"
check "once arrivals are forgotten nobody is wanted" until_true 240 both '. == {encoder: 0, llm: 0}'

# --- a router that starts waits for the workers that others have
stop w
check "the routers notice" until_true 10 eval '[ "$(r hget "$(key load)" decode_workers)" = 0 ]'
check "a is ready without them" until_true 10 eval '[ "$(ready "$asleep")" = 200 ]'
workers "ipc://$DIR/b.sock"
check "workers come to one router" until_true 10 eval '[ "$(ready "$strict")" = 200 ]'
late=$(free_port)
router c "$late" --ready-without-workers
for ((i = 0; i < 20; i++)); do [ "$(ready "$late")" = 200 ] && break; sleep 0.2; done
same "a new one is not ready before it has them" "20 no encoder" "$i $(cat "$DIR/ready")"
stop w
check "once they have gone it is" until_true 15 eval '[ "$(ready "$late")" = 200 ]'
stop c

# --- a client that must know the model before it adds jobs: it wakes a queue that sleeps
check "nobody is wanted again" until_true 10 both '. == {encoder: 0, llm: 0}'
paired_s_ago() { echo $(($(r time | head -n 1) - $(r hget "$(key model)" updated_ms) / 1000)); }
check "no router has told of a pair for long" until_true 20 eval '[ "$(paired_s_ago)" -gt 10 ]'
start caption "$BUILD/tokenflex" caption --redis "unix://$DIR/redis.sock" -o "$DIR/woken.jsonl" --vision-tokens 144 examples/cat.jpg examples/dogs.jpg
check "a client that waits wants one of each" until_true 10 both '. == {encoder: 1, llm: 1}'
same "without a job" "0 0" "$(count jobs:0) $(count jobs:1)"
sleep 3
check "as long as it waits" both '. == {encoder: 1, llm: 1}'
check "the call ends by itself" eval '[ "$(r pttl "$(key called)")" -gt 0 ]'
workers
pid=${PIDS[caption]}; wait "$pid"; same "with workers it is served" "0 2" "$? $(grep -c '"caption"' "$DIR/woken.jsonl")"; unset "PIDS[caption]"
same "at the count that it asked for" 144 "$(jq .vision_tokens.assigned "$DIR/woken.jsonl" | sort -u)"
r del "$(key called)" >/dev/null

# --- Redis answers, but not to what is asked: old numbers are not told for new
r set "$(key retry)" "of another kind" >/dev/null
check "a queue that can't be read any more: the demand is not known" until_true 15 eval '[ "$(wanted_status "$asleep") $(wanted_status "$strict")" = "503 503" ]'
r del "$(key retry)" >/dev/null
check "it is known again" until_true 10 eval '[ "$(wanted_status "$asleep") $(wanted_status "$strict")" = "200 200" ]'

# --- Redis goes
stop redis KILL
check "without Redis the demand is not known any more" until_true 20 eval '[ "$(wanted_status "$asleep") $(wanted_status "$strict")" = "503 503" ]'
same "it is an error, not a number" "not known" "$(cat "$DIR/wanted")"
for name in a b; do alive $name || fail "$name lives on"; done
