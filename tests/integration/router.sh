#!/usr/bin/env bash
# The router's promise on a real Redis: each id ends once, whatever is killed, stopped, refused or said twice.
# In: tokenflex-router, a real redis-server, tests/integration/fake_worker.c (a pair that misbehaves on demand).
# Out: checks on results, dead letters, keys and metrics; a queue of its own for each scenario.
. "$(dirname "$0")/lib.sh"

fake="$DIR/fake_worker"
make_worker fake_worker "$fake" || { fail "the fake worker compiles"; exit 1; }

REDIS_OPTIONS=(--save "" --appendonly yes --appendfsync always)
redis_up() {
  start redis redis-server --port 0 --unixsocket "$DIR/redis.sock" --dir "$DIR" "${REDIS_OPTIONS[@]}"
  until_true 10 eval '[ "$(r ping 2>/dev/null)" = PONG ]' || fail "redis-server starts"
}
redis_up

# Every scenario has a queue Q; its routers listen on ipc://$DIR/NAME.sock.
Q=none
router() { # NAME [options...]: short lease and time-outs, so that faults show soon
  local name=$1; shift
  start "$name" "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --queue "$Q" --bind "ipc://$DIR/$name.sock" \
    --health off --lease-ms 1500 --peer-timeout-ms 1000 --drain-timeout-s 3 --log-level debug "$@"
}
HASH=0123456789abcdef0123456789abcdef
worker() { # NAME ROUTER [PAIR-HASH [SLOTS [eager]]]
  local name=$1 to=$2; shift 2
  start "$name" "$fake" "ipc://$DIR/$to.sock" "$name" "$@"
}
key() { echo "tf:{$Q}:$1"; }
add() { r xadd "$(key jobs:1)" '*' "$@"; }
job() { add id "$1" uri "file:///$1.jpg" "${@:2}" >/dev/null; }
count() { r xlen "$(key "$1")"; }
# entries STREAM: one JSON object an entry
entries() {
  r --json xrange "$(key "$1")" - + |
    jq -c '.[][1] | . as $a | [range(0; length; 2) | {key: $a[.], value: $a[. + 1]}] | from_entries'
}
field() { entries "$1" | jq -r --arg id "$2" --arg f "$3" 'select(.id == $id) | .[$f] // "absent"'; }
json() { field results "$1" json | jq -rc "$2"; }
unfinished() { echo $(($(count jobs:0) + $(count jobs:1))); }
all_done() { [ "$(unfinished)" -eq 0 ]; }
ended() { [ -n "$(field results "$1" id)$(field dead "$1" id)" ]; }
started() { grep -q "^job $2 " "$DIR/$1.log"; } # WORKER ID
leases() { echo $(($(r zcard "$(key lease:encode)") + $(r zcard "$(key lease:decode)") + $(r zcard "$(key retry)"))); }
nothing_left() {
  same "$1: nothing unfinished, leased or waiting is left" "0 0 0" \
    "$(unfinished) $(leases) $(r keys "$(key 'job:*')" | grep -c .)"
}
# once WHAT ID...: each id in results or dead exactly once
once() {
  local what=$1; shift
  same "$what: each id ended exactly once" "$(printf '%s\n' "$@" | sort)" \
    "$({ entries results; entries dead; } | jq -r .id | sort)"
}
scenario() { Q=$1; echo "# $1 (at ${SECONDS}s)"; }
down() { local name; for name in "$@"; do stop "$name" KILL; done; }

scenario plain
job early
router a --health 127.0.0.1:0
worker w a
check "a job added before the first router is done" until_true 10 ended early
job reply1 reply here
own=$(add uri file:///own.jpg)
r xadd "$(key jobs:0)" 5-1 uri file:///lane0.jpg >/dev/null
job fixed min_vision_tokens 144 max_vision_tokens 144 trace T1
job atmost max_vision_tokens 64
printf '\x00\xff\r\nbytes' | redis-cli -s "$DIR/redis.sock" -x xadd "$(key jobs:1)" '*' id inline image >/dev/null
check "all jobs end" until_true 10 all_done
once "plain" early "$own" 5-1 fixed atmost inline
same "a result's fields" '["id","caption","vision_tokens","json"]' "$(entries results | head -n 1 | jq -c keys_unsorted)"
same "json: keys in order" '["id","image","caption","vision_tokens","load","usage","timing_ms","attempt","model"]' "$(json early keys_unsorted)"
same "json: stages in order" '["queue","fetch","decode","encode","transfer","wait","prefill","generate","total"]' "$(json early '.timing_ms | keys_unsorted')"
same "json: idle gives the most" '{"requested":"auto","assigned":256,"reason":"idle"}' "$(json early .vision_tokens)"
same "json: fixed" '{"requested":144,"assigned":144,"reason":"fixed"}' "$(json fixed .vision_tokens)"
same "json: the job's maximum" '{"requested":"auto","assigned":64,"reason":"job_max"}' "$(json atmost .vision_tokens)"
same "json: usage" '{"prompt_tokens":276,"completion_tokens":7,"finish_reason":"stop"}' "$(json early .usage)"
same "json: times have two digits" 1.23 "$(json early .timing_ms.queue)"
check "json: total covers the wait" test "$(json early '.timing_ms.total >= 1')" = true
same "json: attempt, model, image" '[1,"fake/0","file:///early.jpg"]' "$(json early '[.attempt, .model, .image]')"
same "json: inline bytes have no image" null "$(json inline .image)"
check "inline bytes arrive whole" grep -q "^job inline attempt 1 payload 9$" "$DIR/w.log"
same "a named reply has the result" "reply1 caption of reply1" "$(field reply:here reply1 id) $(field reply:here reply1 caption)"
same "and the results have not" "" "$(field results reply1 id)"
check "a reply expires" test "$(r pttl "$(key reply:here)")" -gt 80000000
for i in $(seq 150); do echo "XADD $(key reply:busy) $i-0 id old-$i"; done | r >/dev/null # 100 entries a node, and nodes go whole
job reply2 reply busy
check "a reply stream that is written to every day" until_true 10 eval '[ -n "$(field reply:busy reply2 id)" ]'
same "keeps what is older than a day no longer" "51 old-101" "$(r xlen "$(key reply:busy)") $(entries reply:busy | head -n 1 | jq -r .id)"
model_is_told() { [ -n "$(r hget "$(key model)" token_counts)" ]; }
until_true 5 model_is_told # every second
same "the model is told" "64,144,256 fake/0" "$(r hmget "$(key model)" token_counts model | tr '\n' ' ' | sed 's/ $//')"
same "the done key says where" "r" "$(r get "$(key done:early)" | cut -c1)"
nothing_left plain
r script flush >/dev/null
job flushed
check "scripts are loaded again after a flush" until_true 10 ended flushed

scenario refused
r xadd "$(key jobs:1)" '*' id unknown uri file:///a colour red reply here >/dev/null
job count_min min_vision_tokens 100
job order min_vision_tokens 256 max_vision_tokens 64
job words max_new_tokens many
job late deadline_ms 1
add id none prompt hello >/dev/null
add id both uri file:///a image xyz >/dev/null
add id "$(printf 'a\tb')" uri file:///a >/dev/null
job badreply reply 'a b'
router a2
worker w2 a2
check "refused jobs end" until_true 10 all_done
for want in unknown:field_unknown count_min:vision_tokens_unsupported order:field_invalid words:field_invalid \
  late:deadline none:field_invalid both:field_invalid badreply:field_invalid; do
  same "${want%:*} is dead as ${want#*:}" "${want#*:} 0" "$(field dead "${want%:*}" error_code) $(field dead "${want%:*}" attempts)"
done
same "the text names what is offered" "min_vision_tokens 100 is not supported; this model has 64, 144, 256" "$(field dead count_min error_message)"
same "the original fields are kept" "red file:///a" "$(field dead unknown colour) $(field dead unknown uri)"
same "an image is kept" "xyz" "$(field dead both image)"
same "a reply gets a copy of the dead letter" "field_unknown" "$(field reply:here unknown error_code)"
same "no result comes of them" 0 "$(count results)"
same "no worker saw them" 0 "$(grep -c '^job' "$DIR/w2.log")"
nothing_left refused
down a2 w2

scenario duplicates
router d
worker dw d
job one
check "the first ends" until_true 10 ended one
job one
add id one uri file:///other.jpg reply again >/dev/null
job fail-image_corrupt-1
check "the failing one ends" until_true 10 ended fail-image_corrupt-1
add id fail-image_corrupt-1 uri file:///x reply again >/dev/null
job slow-twin
job slow-twin
r xadd "$(key jobs:0)" 7-7 uri file:///p.jpg >/dev/null
r xadd "$(key jobs:1)" 9999999999999-7 uri file:///q.jpg >/dev/null
r xadd "$(key jobs:0)" 9999999999999-7 uri file:///r.jpg >/dev/null
check "duplicates go" until_true 15 all_done
sleep 0.3
same "one result an id" "one slow-twin" "$(entries results | jq -r .id | grep -v -- '-7$' | sort | tr '\n' ' ' | sed 's/ $//')"
same "one dead letter" 1 "$(count dead)"
same "the reply gets the result that was" "caption of one" "$(field reply:again one caption)"
same "and the dead letter that was" "image_corrupt" "$(field reply:again fail-image_corrupt-1 error_code)"
same "entries of both lanes with one stream id are two jobs" 2 "$(entries results | jq -r .id | grep -c 9999999999999-7)"
nothing_left duplicates
down d dw

scenario lanes
for i in $(seq 10); do
  job "b$i"
  r xadd "$(key jobs:0)" '*' id "i$i" uri file:///i.jpg >/dev/null
done
router ln
worker lnw ln "$HASH" 1
check "both lanes are done" until_true 10 all_done
same "four interactive jobs for each batch job, and neither lane waits for the other's end" "i i i i b i i i i b i i b b b b b b b b" \
  "$(sed -n 's/^job \([ib]\)[0-9]* attempt.*/\1/p' "$DIR/lnw.log" | xargs)"
nothing_left lanes
down ln lnw

scenario same_count
router sc
worker scw sc "$HASH" 1
job hold-first
check "a job is under way" until_true 10 started scw hold-first
for i in $(seq 200); do echo "XADD $(key jobs:1) * id w$i uri file:///w.jpg"; done | r >/dev/null
lowered() { local budget; budget=$(r hget "$(key load)" budget); [ "${budget%.*}" = 64 ]; }
check "many more come, and the budget falls" until_true 15 lowered
down scw
worker scw2 sc "$HASH" 8 eager
check "another worker does them all" until_true 30 all_done
same "the job that is tried again keeps its count" '[256,"idle"]' "$(json hold-first '[.vision_tokens.assigned, .vision_tokens.reason]')"
check "by another attempt" grep -q '^job hold-first attempt 2' "$DIR/scw2.log"
same "where the load gives the others fewer tokens" '[64,"queue"]' "$(json w1 '[.vision_tokens.assigned, .vision_tokens.reason]')"
nothing_left same_count
down sc scw2

scenario large
for i in $(seq 120); do # slow ones among them, so that the LLM is not empty by chance
  echo "XADD $(key jobs:1) * id short-$i uri file:///s.jpg"
  [ $((i % 5)) = 0 ] && echo "XADD $(key jobs:1) * id slow-$i uri file:///s.jpg"
  [ "$i" = 16 ] && echo "XADD $(key jobs:1) * id big uri file:///b.jpg max_new_tokens 4000"
done | r >/dev/null
router lg
worker lgw lg "$HASH" 4
check "a job that needs a whole LLM's memory, and many small ones" until_true 60 all_done
at=$(entries results | jq -r .id | grep -n '^big$' | cut -d: -f1)
check "it is not overtaken by all of them: number ${at:-none}" test "${at:-999}" -lt 100
nothing_left large
down lg lgw

scenario kept
kept_for() { until_true 20 grep -q "event=room_kept job=$2 " "$DIR/$1.log"; } # ROUTER ID
router ke --lease-ms 3000
worker kew ke "$HASH" 4
job keep-1
check "a job stays at the LLM" until_true 10 started kew keep-1
job large-1 max_new_tokens 4000
check "the LLM is kept for a large one" kept_for ke large-1
job small-1
r xadd "$(key cancel)" '*' id large-1 >/dev/null
check "which is cancelled: the LLM takes others again" until_true 20 ended small-1
job large-2 max_new_tokens 4000 deadline_ms 2500
check "it is kept for another" kept_for ke large-2
job small-2
check "whose deadline passes: the LLM takes others again" until_true 20 ended small-2
same "how the two ended" "cancelled deadline" "$(field dead large-1 error_code) $(field dead large-2 error_code)"
job large-3 max_new_tokens 4000
check "it is kept for a third" kept_for ke large-3
down kew
both_back() { [ "$(r zcard "$(key retry)")" -eq 2 ]; }
check "and dies: the third goes back after a lease, not after four" until_true 9 both_back
worker kew2 ke "$HASH" 4 eager
check "another LLM does the rest" until_true 30 all_done
once kept keep-1 small-1 small-2 large-1 large-2 large-3
nothing_left kept
down ke kew2

scenario large_and_small # long lease: none goes back meanwhile
router ls --lease-ms 60000
worker lsw1 ls "$HASH" 4
worker lsw2 ls "$HASH" 4
check "two pairs join" until_true 10 eval '[ "$(grep -c event=worker_joined "$DIR/ls.log")" -eq 4 ]'
names=()
for i in 1 2 3 4; do job "keep-$i"; names+=("keep-$i"); done
at_both() { grep -q '^job keep' "$DIR/lsw1.log" && grep -q '^job keep' "$DIR/lsw2.log"; }
check "jobs stay at two LLMs" until_true 10 at_both
for i in 1 2 3 4 5 6; do job "large-$i" max_new_tokens 4000; names+=("large-$i"); done
check "one is kept for large ones" until_true 20 grep -q "event=room_kept" "$DIR/ls.log"
for i in 1 2 3; do job "small-$i"; names+=("small-$i"); done
check "the other goes on with small ones" until_true 20 eval 'ended small-1 && ended small-2 && ended small-3'
same "while the large ones wait" 6 "$(grep -c . <(for i in 1 2 3 4 5 6; do ended "large-$i" || echo "$i"; done))"
for i in 1 2 3 4; do r xadd "$(key cancel)" '*' id "keep-$i" >/dev/null; done
check "with room for them they end too" until_true 30 all_done
once large_and_small "${names[@]}"
nothing_left large_and_small
down ls lsw1 lsw2

scenario failures
router f
worker fw f
job fail-image_truncated-1
job fail-fetch_unavailable-1
job full-1
job twice-1
job stale-1
job garbage-1
check "all end" until_true 20 all_done
sleep 0.3
once failures fail-image_truncated-1 fail-fetch_unavailable-1 full-1 twice-1 stale-1 garbage-1
same "what can't pass dies at once" "image_truncated 1" "$(field dead fail-image_truncated-1 error_code) $(field dead fail-image_truncated-1 attempts)"
same "what may pass is tried three times" "fetch_unavailable 3" "$(field dead fail-fetch_unavailable-1 error_code) $(field dead fail-fetch_unavailable-1 attempts)"
# ms between what the log says of a job
gaps() { grep -E "event=job_(retry|dead) job=$2 " "$DIR/$1.log" | sed 's/^time=\([^ ]*\).*/\1/' | date -f - +%s%3N | awk 'NR > 1 { print $1 - last } { last = $1 }'; }
same "each try waits longer: 100 ms at least, then 200" "yes yes" "$(gaps f fail-fetch_unavailable-1 | awk '{ print ($1 >= 100 * NR ? "yes" : $1) }' | xargs)"
same "what can't pass is tried once" 1 "$(grep -c '^job fail-image' "$DIR/fw.log")"
same "the worker saw three attempts" 3 "$(grep -c '^job fail-fetch' "$DIR/fw.log")"
same "being handed back costs no attempt" 1 "$(json full-1 .attempt)"
same "though it was assigned twice" 2 "$(grep -c '^job full-1' "$DIR/fw.log")"
nothing_left failures
down f fw

scenario cancel
router c
worker cw c "$HASH" 2
job hold-1; job hold-2; job waits-3; job waits-4
check "two are under way" until_true 10 started cw hold-2
for id in waits-3 never-there hold-1 hold-2; do r xadd "$(key cancel)" '*' id "$id" >/dev/null; done
check "cancelled jobs end" until_true 10 all_done
once cancel hold-1 hold-2 waits-3 waits-4
same "as cancelled" "cancelled cancelled cancelled" "$(for id in hold-1 hold-2 waits-3; do field dead "$id" error_code; done | tr '\n' ' ' | sed 's/ $//')"
same "the others go on" "caption of waits-4" "$(field results waits-4 caption)"
check "the workers are told" grep -q "^cancelled hold-1 cancelled" "$DIR/cw.log"
nothing_left cancel
down c cw
letter() { r --json xrange "$(key dead)" - + | jq -r --arg id "$1" '.[] | select(.[1] | index($id)) | .[0]'; }
put_back() { r --eval router/lua/retry.lua "$(key dead)" "$(key jobs:0)" "$(key jobs:1)" , "tf:{$Q}:" 1 "$(letter "$1")"; }
same "cancelled jobs are put back" "retried retried" "$(put_back hold-1) $(put_back hold-2)"
r xadd "$(key cancel)" '*' id hold-2 >/dev/null
router c2
worker cw2 c2 "$HASH" 2 eager
check "another router ends them" until_true 10 all_done
once put_back hold-1 hold-2 waits-3 waits-4
same "what was asked before counts no more, what is asked since does" "caption of hold-1 cancelled" "$(field results hold-1 caption) $(field dead hold-2 error_code)"
nothing_left put_back
down c2 cw2

scenario router_killed
router k1
worker kw1 k1
for i in 1 2 3 4; do job "hold-$i" min_vision_tokens 144; done
check "four jobs are under way" until_true 10 started kw1 hold-4
r xadd "$(key jobs:1)" '*' id hold-gone uri file:///gone.jpg >/dev/null
check "a fifth too" until_true 10 started kw1 hold-gone
gone=$(r hget "$(key "job:$(r zrange "$(key lease:encode)" -1 -1)")" id)
r xdel "$(key jobs:1)" "$(r zrange "$(key lease:encode)" -1 -1 | cut -d: -f2)" >/dev/null
down k1 kw1
router k2
worker kw2 k2 "$HASH" 8 eager
check "the second router finishes them" until_true 15 all_done
check "and what is not there any more" until_true 15 ended "$gone"
once router_killed hold-1 hold-2 hold-3 hold-4 hold-gone
same "a router's death costs no attempt" "1 1 1 1" "$(for i in 1 2 3 4; do json "hold-$i" .attempt; done | tr '\n' ' ' | sed 's/ $//')"
same "the vanished entry is dead" "entry_lost file:///gone.jpg" "$(field dead "$gone" error_code) $(field dead "$gone" uri)"
check "the second attempt says so" grep -q "^job hold-1 attempt 2" "$DIR/kw2.log"
nothing_left router_killed
# k2 goes on: in ten seconds it finds that the first router is dead

scenario zombie
router z1
worker zw1 z1
for i in 1 2 3; do job "slow-$i"; done
check "three jobs are under way" until_true 10 started zw1 slow-3
kill -STOP "${PIDS[z1]}"
router z2
worker zw2 z2
check "another router takes them and ends them" until_true 15 all_done
kill -CONT "${PIDS[z1]}"
job after
check "the zombie lives on" until_true 10 ended after
sleep 1
once zombie slow-1 slow-2 slow-3 after
nothing_left zombie
down z1 z2 zw1 zw2

scenario worker_killed
router p
keep_alive() { while :; do "$fake" "ipc://$DIR/p.sock" "pw$((n = n + 1))" 2>&1; done; }
n=0
start pw keep_alive
check "a pair joins" until_true 10 eval '[ -n "$(r hget "$(key model)" model)" ]'
for i in 1 2 3 4 5; do job "short-$i"; done
job die-1
for i in 6 7; do job "short-$i"; done
check "the poison job and its neighbours end" until_true 90 all_done
once worker_killed die-1 short-1 short-2 short-3 short-4 short-5 short-6 short-7
same "the poison job is dead after three deaths alone" "worker_lost 3" "$(field dead die-1 error_code) $(field dead die-1 attempts)"
same "its neighbours paid nothing" "1 1 1 1 1 1 1" "$(for i in 1 2 3 4 5 6 7; do json "short-$i" .attempt; done | tr '\n' ' ' | sed 's/ $//')"
nothing_left worker_killed
down p pw

scenario llm_drained
router o
worker ow o
job keep-1; job hold-1; job drain-1
check "an LLM says that it goes" until_true 10 started ow drain-1
check "what it has no tensor of goes back at once" until_true 10 grep -q "^cancelled hold-1 worker_draining" "$DIR/ow.log"
same "what it has stays" 0 "$(grep -c '^cancelled keep-1' "$DIR/ow.log")"
down ow
worker ow2 o "$HASH" 8 eager
check "another pair does all" until_true 20 all_done
once llm_drained keep-1 hold-1 drain-1
same "at no cost" "1 1 1" "$(for id in keep hold drain; do json "$id-1" .attempt; done | xargs)"
same "and none was a suspect" 0 "$(grep -c ' alone$' "$DIR/ow2.log")"
nothing_left llm_drained
down o ow2

scenario suspects_of_two
router q1; router q2
keep_both() { while :; do "$fake" "ipc://$DIR/q1.sock,ipc://$DIR/q2.sock" "sw$((n = n + 1))" 2>&1; done; }
n=0
start sw2 keep_both
check "a pair joins both routers" until_true 10 eval '[ -n "$(r hget "$(key model)" model)" ]'
names=()
for i in $(seq 1 40); do
  job "short-$i"; names+=("short-$i")
  case $i in 7 | 9) job "die-$i"; names+=("die-$i") ;; esac
done
check "two poison jobs and their neighbours end" until_true 90 all_done
once suspects_of_two "${names[@]}"
same "the poison jobs are dead after three deaths alone" "3 3" "$(field dead die-7 attempts) $(field dead die-9 attempts)"
same "no neighbour paid, whichever router had it" 1 "$(entries results | jq -r '.json | fromjson | .attempt' | sort -u | xargs)"
for name in q1 q2; do check "$name tried suspects" grep -q "event=job_retry.*code=worker_lost" "$DIR/$name.log"; done
nothing_left suspects_of_two
down q1 q2 sw2

scenario abandoned
r xgroup create "$(key jobs:1)" router 0 mkstream >/dev/null
job taken
r xreadgroup group router somebody count 1 streams "$(key jobs:1)" '>' >/dev/null
router s
worker sw s
check "what somebody claimed and left is swept up" until_true 20 ended taken
once abandoned taken
nothing_left abandoned
down s sw

scenario drain
router g1 --drain-timeout-s 2
worker gw g1
job slow-1; job hold-1
check "both are under way" until_true 10 started gw hold-1
kill -TERM "${PIDS[g1]}"
job unseen
wait "${PIDS[g1]}"
same "drained, exit status 0" 0 $?
unset "PIDS[g1]"
once drain slow-1
same "what was not finished waits for another router" 1 "$(r zcard "$(key retry)")"
same "nothing is leased" 0 "$(($(r zcard "$(key lease:encode)") + $(r zcard "$(key lease:decode)")))"
same "the router is off the list" 0 "$(r zcard "$(key routers)")"
router g2
worker gw2 g2 "$HASH" 8 eager
check "another router finishes the rest" until_true 10 all_done
once drain slow-1 hold-1 unseen
same "at no cost" 1 "$(json hold-1 .attempt)"
down g2 gw gw2

scenario full
router l --results-max 3
worker lw l "$HASH" 1
for i in 1 2 3 4 5 6; do job "j$i"; done
check "results fill up" until_true 10 eval '[ "$(count results)" -ge 3 ]'
sleep 0.5
same "intake stops" 3 "$(count results)"
check "and says so" grep -q 'event=intake_stopped' "$DIR/l.log"
r xtrim "$(key results)" maxlen 0 >/dev/null
check "with room it goes on" until_true 10 all_done
down l lw

scenario retention
router rk --results-keep-s 2 --results-max 4
worker rkw rk
for i in 1 2 3; do job "old$i"; done
check "three results" until_true 10 eval '[ "$(count results)" -eq 3 ]'
check "results go when their time is over" until_true 15 eval '[ "$(count results)" -eq 0 ]'
r xgroup create "$(key results)" readers 0 mkstream >/dev/null
for i in 1 2 3 4; do job "kept$i"; done
check "the stream is full" until_true 10 eval '[ "$(count results)" -eq 4 ]'
job waits1
sleep 3.5
same "what a group has not read stays past its time, and intake waits" "4 1" "$(count results) $(unfinished)"
r xreadgroup group readers me count 4 streams "$(key results)" '>' >/dev/null
last=$(r xrange "$(key results)" - + | grep -E '^[0-9]+-[0-9]+$' | tail -n 1)
r xack "$(key results)" readers "$(r xrange "$(key results)" - + | grep -E '^[0-9]+-[0-9]+$' | head -n 1)" >/dev/null
check "what it acknowledged goes, and intake goes on" until_true 15 ended waits1
check "what it has read and not acknowledged stays" test -n "$(r xrange "$(key results)" "$last" "$last")"
down rk rkw

scenario limits
router lm --max-waiting 3 --max-waiting-bytes 60000 --dead-image-bytes-max 5000
submit5() { # max_waiting max_bytes field value...: with the queue's own limits
  r --eval router/lua/submit.lua "$(key jobs:0)" "$(key jobs:1)" "$(key lease:encode)" "$(key lease:decode)" "$(key model)" , 1 "$@" 2>&1
}
check "the limits are told to submitters" until_true 10 eval '[ "$(r hget "$(key model)" max_waiting)" = 3 ]'
for i in 1 2 3; do submit5 0 0 id "in$i" uri file:///a >/dev/null; done
check "the queue's own limit holds for who names none" test -n "$(submit5 0 0 id in4 uri file:///a | grep '^queue_full 3 jobs are waiting, the limit is 3')"
check "and for who names a larger one" test -n "$(submit5 9 0 id in4 uri file:///a | grep '^queue_full 3 jobs')"
r xtrim "$(key jobs:1)" maxlen 0 >/dev/null
check "a smaller one of the client's counts" test -n "$(submit5 1 0 id in5 uri file:///a; submit5 1 0 id in6 uri file:///a | grep '^queue_full 1 jobs')"
check "bytes are limited too" test -n "$(submit5 0 0 id in7 image "$(head -c 70000 /dev/zero | tr '\0' x)" | grep '^queue_full the queue holds')"
r xtrim "$(key jobs:1)" maxlen 0 >/dev/null
picture() { head -c "$1" /dev/zero | tr '\0' x; }
worker lmw lm
add id fail-image_corrupt-1 image "$(picture 3000)" >/dev/null
check "an inline image dies" until_true 10 ended fail-image_corrupt-1
add id fail-image_corrupt-2 image "$(picture 3000)" prompt hello >/dev/null
check "another one" until_true 10 ended fail-image_corrupt-2
same "the first letter keeps its image" 3000 "$(field dead fail-image_corrupt-1 image | tr -d '\n' | wc -c)"
same "past the limit it is left out, and said to be" "absent 1 hello" "$(for f in image image_dropped prompt; do field dead fail-image_corrupt-2 "$f"; done | xargs)"
r xdel "$(key dead)" "$(r xrange "$(key dead)" - + | head -n 1)" >/dev/null
check "whoever deletes a letter makes room for another's image" until_true 15 eval '[ "$(r hget "$(key dead:images)" sum)" = 0 ]'
add id fail-image_corrupt-3 image "$(picture 5000)" >/dev/null
check "a third one" until_true 10 ended fail-image_corrupt-3
same "which keeps its image" 5000 "$(field dead fail-image_corrupt-3 image | tr -d '\n' | wc -c)"
nothing_left limits
down lm lmw

scenario dead_letters
port=$(free_port)
router dm --dead-max 3 --dead-image-bytes-max 5000 --health "127.0.0.1:$port"
worker dmw dm
add id fail-image_corrupt-1 image "$(picture 3000)" >/dev/null
check "a job with an image dies" until_true 10 ended fail-image_corrupt-1
same "its letter says the lane" 1 "$(field dead fail-image_corrupt-1 lane)"
for i in 2 3; do job "fail-image_corrupt-$i"; done
check "as many letters as may be" until_true 10 eval '[ "$(count dead)" = 3 ]'
r xadd "$(key jobs:0)" '*' id fail-image_corrupt-4 uri file:///urgent.jpg >/dev/null
check "another one takes the oldest's place" until_true 10 ended fail-image_corrupt-4
same "which is the first of them" "fail-image_corrupt-2 fail-image_corrupt-3 fail-image_corrupt-4" "$(entries dead | jq -r .id | xargs)"
same "the books of images know" 0 "$(r hget "$(key dead:images)" sum)"
check "its id stays ended" eval '[[ "$(r get "$(key done:fail-image_corrupt-1)")" == "d "* ]]'
check "it is told how many went" until_true 10 grep -q 'event=dead_letters_dropped letters=1 dead_max=3' "$DIR/dm.log"
same "and counted" 1 "$(curl -s "http://127.0.0.1:$port/metrics" | awk '/^tokenflex_dead_dropped_total / { print $2 }')"
for i in 5 6 7 8; do r xadd "$(key dead)" '*' id "fail-image_corrupt-$i" uri file:///x error_code x error_message x attempts 1 >/dev/null; done
check "letters that others wrote count too" until_true 10 eval '[ "$(count dead)" = 3 ]'
add id no-bytes image '' >/dev/null
check "an image of no bytes dies" until_true 10 ended no-bytes
for i in 9 10 11; do job "fail-image_corrupt-$i"; done
check "and goes as all others do" until_true 10 eval '[ "$(entries dead | jq -r .id | xargs)" = "fail-image_corrupt-9 fail-image_corrupt-10 fail-image_corrupt-11" ]'
same "no script of the router failed" 0 "$(grep -c event=redis_error "$DIR/dm.log")"
down dmw dm
r xadd "$(key dead)" '*' id urgent uri file:///x lane 0 error_code x error_message x attempts 1 >/dev/null
r xadd "$(key dead)" '*' id unsaid uri file:///x error_code x error_message x attempts 1 >/dev/null
own() { r --eval router/lua/retry.lua "$(key dead)" "$(key jobs:0)" "$(key jobs:1)" , "tf:{$Q}:" own "$(letter "$1")"; }
same "letters go back to their own lane" "retried urgent" "$(own urgent) $(entries jobs:0 | jq -r .id)"
same "those that name none to the batch lane" "retried unsaid" "$(own unsaid) $(entries jobs:1 | jq -r .id)"
same "the lane is no field of the job" '["id","uri"]' "$(entries jobs:0 | jq -c keys_unsorted)"

Q=router_killed
check "the dead router's consumer is removed" until_true 20 eval '[ "$(r xinfo consumers "$(key jobs:1)" router | grep -c "^router-")" -eq 1 ]'
down k2 kw2

scenario two_routers
router r1; router r2
start rw "$fake" "ipc://$DIR/r1.sock" one "$HASH" 1
start rw2 "$fake" "ipc://$DIR/r2.sock" two "$HASH" 1
names=()
for i in $(seq 1 40); do job "t$i"; names+=("t$i"); done
for i in $(seq 1 10); do r xadd "$(key jobs:0)" '*' id "u$i" uri file:///u >/dev/null; names+=("u$i"); done
check "two routers share a queue" until_true 20 all_done
once two_routers "${names[@]}"
check "both worked" test "$(grep -c '^job' "$DIR/rw.log")" -gt 0 -a "$(grep -c '^job' "$DIR/rw2.log")" -gt 0
nothing_left two_routers

scenario redis_restart
router e
worker ew e
for i in 1 2 3; do job "slow-$i"; done
check "jobs are under way" until_true 10 started ew slow-3
stop redis KILL
sleep 2
redis_up
job after
check "after Redis came back everything ends" until_true 20 all_done
once redis_restart slow-1 slow-2 slow-3 after
nothing_left redis_restart

scenario wrong_type
down e ew
router y
worker yw y
r set "$(key retry)" oops >/dev/null
job typed
sleep 1
same "a key of a wrong type stops the scripts before they write" "1 0" "$(unfinished) $(r zcard "$(key lease:encode)")"
check "and the log names it" grep -q "tf:{wrong_type}:retry holds a string" "$DIR/y.log"
r del "$(key retry)" >/dev/null
check "mended, it goes on" until_true 10 ended typed
down y yw

scenario memory
r config set maxmemory-policy volatile-lru >/dev/null
router m
policy_is() { [ "$(r hget "$(key load)" maxmemory_policy)" = "$1" ]; }
connections() { [ "$(grep -c event=redis_connected "$DIR/m.log")" -ge "$1" ]; }
status_of() { "$BUILD/tokenflex" status --redis "unix://$DIR/redis.sock" --queue "$Q" "$@"; }
check "a Redis that evicts is warned of at the start" until_true 10 grep -q "event=redis_evicts maxmemory_policy=volatile-lru" "$DIR/m.log"
check "status shows it" until_true 10 eval 'status_of | grep -q "maxmemory-policy is volatile-lru"'
r config set maxmemory-policy allkeys-random >/dev/null
r acl setuser default -info >/dev/null
r client kill type normal >/dev/null
check "asked again at the next connection, by CONFIG GET where INFO is forbidden" until_true 10 grep -q "event=redis_evicts maxmemory_policy=allkeys-random" "$DIR/m.log"
check "status shows that one" until_true 10 policy_is allkeys-random
r config set maxmemory-policy allkeys-lru >/dev/null
r acl setuser default -config >/dev/null
r client kill type normal >/dev/null
check "a router that may ask neither comes back" until_true 10 connections 3
check "and knows nothing" until_true 10 policy_is ""
same "and says nothing" "0 2 0" "$(grep -c allkeys-lru "$DIR/m.log") $(grep -c event=redis_evicts "$DIR/m.log") $(grep -cE 'redis_error|NOPERM' "$DIR/m.log")"
r acl setuser default +@all >/dev/null
r config set maxmemory-policy noeviction >/dev/null
r client kill type normal >/dev/null
check "once it is noeviction, that is told" until_true 10 grep -q event=redis_evicts_no_more "$DIR/m.log"
check "and status is content" until_true 10 policy_is noeviction
same "with a line less" 0 "$(status_of | grep -c maxmemory-policy)"
worker mw m
for i in 1 2 3; do job "slow-$i"; done
check "jobs are under way" until_true 10 started mw slow-3
r config set maxmemory 1 >/dev/null
check "a full Redis refuses more jobs" test -n "$(job more 2>&1; add id more uri file:///m 2>&1 | grep OOM)"
check "what is under way is committed all the same" until_true 10 all_done
r config set maxmemory 0 >/dev/null
once memory slow-1 slow-2 slow-3
nothing_left memory
down m mw

scenario submit
submit() { # lane max_waiting max_bytes field value...
  r --eval router/lua/submit.lua "$(key jobs:0)" "$(key jobs:1)" "$(key lease:encode)" "$(key lease:decode)" , "$@" 2>&1
}
check "submit.lua adds" test -n "$(submit 1 2 0 id s1 uri file:///a | grep -E '^[0-9]+-0')"
submit 0 2 0 id s2 uri file:///a >/dev/null
check "past max_waiting it refuses" test -n "$(submit 1 2 0 id s3 uri file:///a | grep '^queue_full 2 jobs')"
check "past max_waiting_bytes it refuses" test -n "$(submit 1 0 2000 id s4 image "$(head -c 3000 /dev/zero | tr '\0' x)" | grep '^queue_full')"
check "odd arguments are refused" test -n "$(submit 1 0 0 id | grep '^invalid_argument')"
same "lanes" "1 1" "$(count jobs:0) $(count jobs:1)"

scenario password
port=$(free_port)
start redis2 redis-server --bind 127.0.0.1 --port "$port" --save "" --dir "$DIR/" --requirepass "not this" \
  --user me on '>s3cret-word' '~*' '&*' '+@all'
start q "$BUILD/tokenflex-router" --redis "redis://me:s3cret-word@localhost:$port/3" --queue "$Q" --bind "ipc://$DIR/q.sock" --health off
start wrong "$BUILD/tokenflex-router" --redis "redis://me:another@127.0.0.1:$port" --queue "$Q" --bind "ipc://$DIR/wrong.sock" --health off
worker qw q
p() { REDISCLI_AUTH=s3cret-word redis-cli --user me -h 127.0.0.1 -p "$port" -n 3 --raw "$@" 2>/dev/null; }
check "redis with a password starts" until_true 10 eval '[ "$(p ping)" = PONG ]'
p xadd "$(key jobs:1)" '*' id x uri file:///x >/dev/null
check "TCP, a host name, user, password and database" until_true 10 eval '[ "$(p xlen "$(key results)")" = 1 ]'
check "a wrong password is said" until_true 10 grep -q "event=redis_refused" "$DIR/wrong.log"
same "and never shown" "" "$(grep -l another "$DIR/wrong.log")"
stop q; stop wrong; stop qw KILL; stop redis2

for name in a r1 r2; do alive "$name" || fail "router $name still runs"; done
stop a
same "no sanitizer spoke" "" "$(grep -lE 'ERROR: (Address|Leak|Thread)Sanitizer|runtime error:' "$DIR"/*.log)"
