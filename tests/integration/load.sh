#!/usr/bin/env bash
# Token counts that follow the load: the shared budget, deadlines, paced runs, what is told of load and workers, draining.
# In: tokenflex-router, redis-server, tests/integration/timed_worker.c (a pair whose times are given), the tiny real pair.
# Out: checks on results, dead letters and the published hashes. How long anything took is never checked.
. "$(dirname "$0")/lib.sh"

timed="$DIR/timed_worker"
make_worker timed_worker "$timed" || { fail "the timed worker compiles"; exit 1; }
start_redis

Q=none
scenario() { Q=$1; echo "# $1"; }
key() { echo "tf:{$Q}:$1"; }
router() { # NAME [options...]
  local name=$1; shift
  start "$name" "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --queue "$Q" --bind "ipc://$DIR/$name.sock" \
    --health off --lease-ms 3000 --peer-timeout-ms 2500 --log-level debug "$@"
}
metric() { # PORT SERIES
  local line
  exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
  while read -r line; do case $line in "$2 "*) echo "${line##* }" ;; esac; done <&3
  exec 3<&-
}
job() { r xadd "$(key jobs:1)" '*' id "$1" uri "file:///$1.jpg" "${@:2}" >/dev/null; }
jobs_at_once() { # PREFIX COUNT [field value...]
  local prefix=$1 count=$2 i; shift 2
  for i in $(seq "$count"); do echo "XADD $(key jobs:1) * id $prefix$i uri file:///x.jpg $*"; done | r >/dev/null
}
count() { r xlen "$(key "$1")"; }
load() { r hget "$(key load)" "$1"; }
results() { r --json xrange "$(key results)" - + | jq -c '.[][1] | .[index("json") + 1] | fromjson'; }
result() { results | jq -rc --arg id "$1" "select(.id == \$id) | $2"; }
dead() { r --json xrange "$(key dead)" - + | jq -r --arg id "$1" '.[][1] | select(.[1] == $id) | .[index("error_code") + 1]'; }
ended() { [ -n "$(result "$1" .id)$(dead "$1")" ]; }
all_done() { [ "$(($(count jobs:0) + $(count jobs:1)))" -eq 0 ]; }
known() { [ -n "$(load decode_service_ms)" ] && [ -n "$(load encode_service_ms)" ]; }
is() { [ "$(load "$1")" = "$2" ]; }
holds() { jq -e "$1" >/dev/null; } # a jq condition on what comes in

# Two routers share a queue and one worker, whose LLM carries 100, 50 or 25 jobs a second at 64, 144 or 256 tokens.
scenario shared
port=$(free_port)
router a --target-wait-ms 500 --health "127.0.0.1:$port"
router b --target-wait-ms 500
start w "$timed" "ipc://$DIR/a.sock,ipc://$DIR/b.sock" w 2 64=10,144=20,256=40
check "the workers' times are published" until_true 10 known
job first
check "a job at idle ends" until_true 10 ended first
same "with full detail" '{"requested":"auto","assigned":256,"reason":"idle"}' "$(result first .vision_tokens)"
same "its load is told" '["unfinished","waiting","arrivals_per_s","budget"]' "$(result first '.load | keys_unsorted')"
same "and is what it was" '[1,256]' "$(result first '[.load.unfinished, .load.budget]')"
same "counts" 64,144,256 "$(load counts)"
same "service of the LLM" 10,20,40 "$(load decode_service_ms)"
same "service of the encoder" 2,2,2 "$(load encode_service_ms)"
same "what both tiers carry" 100,50,25 "$(load capacity_per_s)"
same "workers of each tier" "1 1" "$(load encode_workers) $(load decode_workers)"
check "unfinished again" until_true 5 is unfinished 0
check "budget at idle" until_true 5 is budget 256.0
same "one field a worker" "encoder-w llm-w" "$(r hkeys "$(key workers)" | sort | xargs)"
check "a worker's field" holds '.role == "llm" and .model == "timed/0" and .jobs_max == 16 and .draining == false and
  .service_ms == [10,20,40] and .heard_ms > 1e12 and (.router | length > 0)' <<<"$(r hget "$(key workers)" llm-w)"
[ "$(metric "$port" 'tokenflex_service_ms{tier="llm",vision_tokens="144"}')" = 20 ]
check "service times are a metric" test $? -eq 0

jobs_at_once warm 60 # two and a half seconds of work at full detail, five times the target
sleep 0.5
r config resetstat >/dev/null
press() { local i; for i in $(seq "$1"); do jobs_at_once "p$2-$i-" 5; sleep 0.06; done; }
press 20 1
busy() { read -r unfinished arrivals budget wanted <<<"$(r hmget "$(key load)" unfinished arrivals_per_s budget decode_wanted | xargs)" && [ "$unfinished" -ge 1 ]; }
check "load is told while there is some" until_true 3 busy
check "the budget is lowered ($budget)" test "${budget%.*}" -lt 200
check "more workers are wanted ($wanted)" test "$wanted" -ge 2
check "arrivals are those of the queue ($arrivals/s), each counted once" holds "$arrivals > 5 and $arrivals < 150" <<<1
press 20 2
moves=$(r info commandstats | sed -n 's/^cmdstat_set:calls=\([0-9]*\),.*/\1/p')
committed=$(count results)
check "one router at a time moves the budget ($moves SETs, $committed of commits)" test "$moves" -le $((committed + 80))
check "all end" until_true 30 all_done
same "each once" 261 "$(results | jq -r .id | sort -u | wc -l)"
same "and none more" 261 "$(count results)"
check "the mix has more than one count" test "$(results | jq .vision_tokens.assigned | sort -u | wc -l)" -ge 2
check "the load is the reason" test "$(results | jq -r .vision_tokens.reason | grep -c '^queue$')" -ge 100
check "with a budget that says so" test "$(results | jq 'select(.vision_tokens.reason == "queue" and .load.budget < 256)' | grep -c '"queue"')" -ge 100
check "the published mix adds up" holds '(split(",") | map(tonumber) | add) as $s | $s > 0.95 and $s < 1.05' <<<"\"$(load mix)\""
check "both routers assigned" test "$(grep -c event=job_done "$DIR/a.log")" -gt 0 -a "$(grep -c event=job_done "$DIR/b.log")" -gt 0
check "it comes back to full detail" until_true 20 is budget 256.0
job last
check "a job after the load ends" until_true 10 ended last
same "at full detail again" '[256,256,"idle"]' "$(result last '[.load.budget, .vision_tokens.assigned, .vision_tokens.reason]')"
job first
check "a duplicate goes" until_true 10 all_done
stop b
job last
counted() { local n; n=$(metric "$port" 'tokenflex_jobs_total{outcome="duplicate"}'); [ "${n:-0}" -ge 1 ]; }
check "duplicates are counted" until_true 10 counted
same "nothing is added for them" 262 "$(count results)"
stop w KILL
none() { [ "$(r hlen "$(key workers)")" -eq 0 ]; }
check "a worker that is gone is taken off" until_true 15 none

# The largest count that makes the deadline; none: dead before anybody works on it.
scenario deadlines
router d
start dw "$timed" "ipc://$DIR/d.sock" dw 20 64=100,144=1000,256=4000
check "times are known" until_true 10 known
job plenty deadline_ms 60000
check "one with time ends" until_true 20 ended plenty
same "at full detail" '[256,"idle"]' "$(result plenty '[.vision_tokens.assigned, .vision_tokens.reason]')"
job some deadline_ms 3000
check "one with less time ends" until_true 10 ended some
same "with the largest count that makes it" '[144,"deadline"]' "$(result some '[.vision_tokens.assigned, .vision_tokens.reason]')"
job little deadline_ms 60
job choosy deadline_ms 2000 min_vision_tokens 256
check "what can't make it ends" until_true 10 ended choosy
check "all of it" until_true 10 ended little
same "as deadline" "deadline deadline" "$(dead little) $(dead choosy)"
same "before any work is spent" "" "$(grep -E '^job (little|choosy)' "$DIR/dw.log")"
job slow-late deadline_ms 2500 max_vision_tokens 64
check "one that turns out slower ends" until_true 10 ended slow-late
same "as deadline too" deadline "$(dead slow-late)"
check "and its worker is told" until_true 5 grep -q '^cancelled slow-late' "$DIR/dw.log"
job any
check "the worker goes on" until_true 20 ended any
same "errors are told" '{"deadline":3}' "$(until_true 5 is errors '{"deadline":3}'; load errors)"
stop d; stop dw KILL

# A run that wants to end by a time: its jobs' mean follows from what is left of it.
scenario paced
router p
start pw "$timed" "ipc://$DIR/p.sock" pw 2 64=10,144=20,256=40
check "times are known" until_true 10 known
in_ms() { echo $(($(r time | head -n 1) * 1000 + $1)); }
pace() { r hset "$(key pace:run)" remaining "$1" finish_ms "$(in_ms "$2")" >/dev/null; r hdel "$(key pace:run)" budget >/dev/null; r expire "$(key pace:run)" 60 >/dev/null; }
pace 100 100000
job easy pace run
check "a paced job ends" until_true 10 ended easy
same "with all detail where there is time" '[256,"pace"]' "$(result easy '[.vision_tokens.assigned, .vision_tokens.reason]')"
pace 1000 28000 # 36 a second: between 144 and 256 tokens
jobs_at_once mid 16 pace run
check "more of them end" until_true 10 all_done
check "as a mix of the two counts beside the budget" test "$(results | jq -r 'select(.id | startswith("mid")) | .vision_tokens.assigned' | sort -u | xargs)" = "144 256"
told() { [ -n "$(r hget "$(key pace:run)" budget)" ]; }
check "the run is told its budget" until_true 5 told
budget=$(r hget "$(key pace:run)" budget)
check "between the two ($budget)" holds "$budget > 144 and $budget < 256" <<<1
check "and the hash still expires" test "$(r pttl "$(key pace:run)")" -gt 0
pace 1000 0
job hurry pace run
job own pace run min_vision_tokens 144
check "late ones end" until_true 10 all_done
same "with the fewest tokens" '[64,"pace"]' "$(result hurry '[.vision_tokens.assigned, .vision_tokens.reason]')"
same "but within the job's own limits" '[144,"job_min"]' "$(result own '[.vision_tokens.assigned, .vision_tokens.reason]')"
r del "$(key pace:run)" >/dev/null
job after pace run
check "a run whose hash is gone" until_true 10 ended after
same "follows the policy" '[256,"idle"]' "$(result after '[.vision_tokens.assigned, .vision_tokens.reason]')"
sleep 1.2
same "and its hash is not made again" 0 "$(r exists "$(key pace:run)")"
job odd pace 'a b'
check "a pace that is no name" until_true 10 ended odd
same "is refused" field_invalid "$(dead odd)"
stop p; stop pw KILL

# A result that comes to another router than the one that assigned the job.
scenario elsewhere
router f1 --lease-ms 30000
start fw "$timed" "ipc://$DIR/f1.sock,ipc://$DIR/f2.sock" fw 2 64=10,144=20,256=40
check "times are known" until_true 10 known
job slow-one trace T1
check "a job is under way" until_true 10 grep -q '^job slow-one' "$DIR/fw.log"
router f2
heard() { grep -q 'event=worker_joined role=llm' "$DIR/f2.log"; }
check "a second router has the worker too" until_true 10 heard
stop f1 KILL
check "the job ends all the same" until_true 15 ended slow-one
same "once" 1 "$(count results)"
same "with what the first router decided" '["file:///slow-one.jpg",256,"idle",1,256]' \
  "$(result slow-one '[.image, .vision_tokens.assigned, .vision_tokens.reason, .load.unfinished, .load.budget]')"
stop f2; stop fw KILL

# Real workers, sent away while they work.
scenario drain
mkdir "$DIR/photos"
jpegtran -crop 64x64+16+16 -outfile "$DIR/photos/small.jpg" examples/cat.jpg || fail "a small photo is made"
router g
for n in 1 2; do
  start "e$n" "$BUILD/tokenflex-encoder" --model "$TINY" --routers "ipc://$DIR/g.sock" --allow-dir "$DIR/photos" --threads 1 \
    --decode-threads 1 --health off
  start "l$n" "$BUILD/tokenflex-llm" --model "$TINY" --routers "ipc://$DIR/g.sock" --tensor-bind "ipc://$DIR/l$n.sock" \
    --threads 1 --sequences 2 --health off --log-level debug
done
four() { [ "$(r hlen "$(key workers)")" -eq 4 ]; }
check "four workers are told" until_true 20 four
instance() { r hkeys "$(key workers)" | grep -- "-${PIDS[$1]}-"; }
more() { # FROM TO
  local i
  for i in $(seq "$1" "$2"); do echo "XADD $(key jobs:1) * id d$i uri file://$DIR/photos/small.jpg max_new_tokens 60"; done |
    r >/dev/null
}
e1=$(instance e1) l1=$(instance l1)
more 1 300
some() { [ "$(count results)" -ge 5 ]; }
check "work is under way" until_true 20 some
more 301 800
for worker in "$e1" "$l1"; do r xadd "$(key control)" '*' drain "$worker" >/dev/null; done
more 801 1200
for worker in e1 l1; do
  gone() { ! alive "$worker"; }
  until_true 30 gone || stop "$worker" KILL
  wait "${PIDS[$worker]:-}"
  same "$worker was sent away and exits" 0 $?
  unset "PIDS[$worker]"
done
worked() { grep -qE 'event=(job_encoded|job_done)' "$DIR/e1.log" "$DIR/l1.log"; }
check "they had worked" worked
check "all jobs end" until_true 90 all_done
same "each exactly once" "1200 1200" "$(results | jq -r .id | sort -u | wc -l) $(count results)"
same "at no cost" 1 "$(results | jq .attempt | sort -u | xargs)"
two() { [ "$(r hlen "$(key workers)")" -eq 2 ]; }
check "two workers are left" until_true 15 two
check "and their times are measured" until_true 5 known
check "finite and above zero" holds '.service_ms | length > 0 and all(. > 0)' <<<"$(r hget "$(key workers)" "$(instance l2)")"
stop g; for name in e2 l2; do stop $name KILL; done

# A real LLM lets go of what is cancelled while it decodes: it is stopped in the midst of it, and finds the word when it wakes.
scenario cancelled
health=$(free_port)
router c
start e3 "$BUILD/tokenflex-encoder" --model "$TINY" --routers "ipc://$DIR/c.sock" --allow-dir "$DIR/photos" --threads 1 \
  --decode-threads 1 --health off
start l3 "$BUILD/tokenflex-llm" --model "$TINY" --routers "ipc://$DIR/c.sock" --tensor-bind "ipc://$DIR/l3.sock" \
  --threads 1 --sequences 16 --health "127.0.0.1:$health" --log-level debug
JOBS=500 # a hundred are done in a second
for i in $(seq "$JOBS"); do
  echo "XADD $(key jobs:1) * id c$i uri file://$DIR/photos/small.jpg max_new_tokens 400 ignore_end 1"
done | r >/dev/null
decoding() { # what it has, with nothing on its way between the two; else it goes on
  [ "$(r zcard "$(key lease:decode)")" -gt 0 ] || return 1
  kill -STOP "${PIDS[l3]}"
  sleep 0.3
  ids=$(for entry in $(r zrange "$(key lease:decode)" 0 -1); do r hget "$(key "job:$entry")" id; done)
  [ -n "$ids" ] || { kill -CONT "${PIDS[l3]}"; return 1; }
}
check "an LLM is stopped while it decodes" until_true 30 decoding
for id in $ids; do r xadd "$(key cancel)" '*' id "$id" >/dev/null; done
letters() { [ "$(count dead)" -eq "$(wc -w <<<"$ids")" ]; }
check "what it decodes ends at once" until_true 10 letters
for id in $ids; do same "$id: as cancelled" cancelled "$(dead "$id")"; done
kill -CONT "${PIDS[l3]}"
check "the other jobs end" until_true 120 all_done
same "each once" "$JOBS" "$(($(count results) + $(count dead)))"
stopped=$(metric "$health" 'tokenflex_jobs_total{tier="llm",outcome="cancelled"}')
finished=$(for id in $ids; do grep "event=job_done job=$id " "$DIR/l3.log"; done | wc -l)
check "the LLM stopped some" test "$stopped" -ge 1
same "all but what it had at its last token" "$(wc -w <<<"$ids")" "$((stopped + finished))"
