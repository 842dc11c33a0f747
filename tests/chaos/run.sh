#!/usr/bin/env bash
# `make chaos`: every fault that a deployment meets, on the real programs, under load; no id may be lost or end twice.
# In: JOBS (1000 a fault), SEED (repeats the random schedules), ONLY (a pattern of names), REAL_JOBS (50; 0: none).
# Out: a table, also in build/chaos/table.md, and a line that sums up; exit 1 on any loss.
. "$(dirname "$0")/lib.sh"
exec 2> >(grep -v " Killed " >&2) # bash tells of each
echo "# seed $SEED, $JOBS jobs a fault"
redis_up

# --- SIGKILL at every named step of a job ---
fail_point() { # POINT NAME: a third process of the kind joins, which dies there
  local point=$1 name=$2
  wanted "kill-$point" || return
  begin "kill-$point" "SIGKILL at ${point/-/: }"
  two_of_each
  await_stack
  FAIL_POINT="$point:$((RANDOM % (JOBS / 25 + 1) + 2))"
  case $name in
    r3) FAIL_POINT=$FAIL_POINT router r3 "" "$CHAOS" ;;
    e3) FAIL_POINT=$FAIL_POINT encoder e3 "$CHAOS" ;;
    l3) FAIL_POINT=$FAIL_POINT llm l3 "$CHAOS" ;;
  esac
  FAIL_POINT=""
  sleep 1.5 # it is known to the others
  feed "$JOBS"
  sample &
  SAMPLER=$!
  local pid=${PIDS[$name]}
  check "$NAME: the process dies there" until_true 60 eval "! kill -0 $pid 2>/dev/null"
  FAULT_MS=$(now_ms)
  check "$NAME: the fault falls on jobs that are under way" test "$(ended)" -lt $((PROBE + JOBS * 3 / 4))
  check "$NAME: by its fail point" grep -q "^fail_point=$point" "$DIR/$name.log"
  unset "PIDS[$name]"
  again "$name"
  finish_scenario
}
for point in claimed assigned sent result committing committed; do fail_point "router-$point" r3; done
for point in job encoded sent acknowledged; do fail_point "encoder-$point" e3; done
for point in tensor acknowledged decoding done told; do fail_point "llm-$point" l3; done

# --- the rest: NAME TEXT FAULT [DEAD], on two of each ---
fault() {
  wanted "$1" || return
  begin "$1" "$2"
  two_of_each
  await_stack
  under_load
  "$3"
  finish_scenario "${4:-0}"
}
pause() { sleep "0.$((RANDOM % 700 + 100))"; }

kill_router() { stop r1 KILL; again r1; }
kill_encoder() { stop e1 KILL; again e1; }
kill_llm() { stop l1 KILL; again l1; }
kill_random() {
  local i victims=(r1 r2 e1 e2 l1 l2 redis) victim
  for i in $(seq 8); do
    pause
    victim=${victims[RANDOM % ${#victims[@]}]}
    echo "#   SIGKILL $victim"
    stop "$victim" KILL
    pause
    again "$victim"
  done
}
freeze() { # NAME SECONDS
  signal STOP "$1"; sleep "$2"; signal CONT "$1"
}
freeze_router() { freeze r1 5; }
freeze_encoder() { freeze e1 5; }
freeze_llm() { freeze l1 5; }
freeze_all_workers() { for n in e1 e2 l1 l2; do signal STOP $n; done; sleep 5; for n in e1 e2 l1 l2; do signal CONT $n; done; }
restart_redis() { stop redis KILL; sleep 1; redis_up; }
redis_away() { freeze redis 10; }
slow_llm() { local i; for i in $(seq 15); do signal STOP l1; sleep 0.4; signal CONT l1; sleep 0.1; done; }
drain_workers() { stop e1; again e1; stop l1; again l1; stop r1; again r1; }
fault router-killed "SIGKILL of a router" kill_router
fault encoder-killed "SIGKILL of an encoder" kill_encoder
fault llm-killed "SIGKILL of an LLM" kill_llm
fault random "8 SIGKILLs of anything at random moments" kill_random
fault random-2 "8 more" kill_random
fault router-frozen "a router stopped past its lease, then awake" freeze_router
fault encoder-frozen "an encoder stopped past the time-outs" freeze_encoder
fault llm-frozen "an LLM stopped past the time-outs: late RESULTs" freeze_llm
fault workers-frozen "all workers stopped past the time-outs" freeze_all_workers
fault redis-killed "Redis killed and restarted" restart_redis
fault redis-away "Redis away for 10 s" redis_away
fault llm-slow "an LLM at a fifth of its speed" slow_llm
fault drained "SIGTERM of one of each" drain_workers

# --- wires: everything over tcp, one wire of each kind through a relay ---
over_wires() { # which wire goes through the relay: redis, encoder, llm (to the router) or tensor
  local port relay tensor advertise="" wired
  port=$(free_port) relay=$(free_port)
  ROUTERS=tcp://127.0.0.1:$port
  wired=tcp://127.0.0.1:$relay
  case $1 in
    redis) launch x1 "$DIR/relay" "$relay" "$REDIS_PORT"; REDIS_URL=redis://127.0.0.1:$relay ;;
    tensor) tensor=$(free_port); launch x1 "$DIR/relay" "$relay" "$tensor" ;;
    *) launch x1 "$DIR/relay" "$relay" "$port" ;;
  esac
  router r1 "tcp://127.0.0.1:$port"
  REDIS_URL=unix://$DIR/redis.sock
  encoder e2; llm l2
  if [ "$1" = encoder ]; then ROUTERS=$wired encoder e1; else encoder e1; fi
  case $1 in
    llm) ROUTERS=$wired llm l1 ;;
    tensor) llm l1 "$BUILD" --tensor-bind "tcp://127.0.0.1:$tensor" --tensor-advertise "$wired" ;;
    *) llm l1 ;;
  esac
}
wire() { # WHICH TEXT FAULT FAULT-TEXT
  wanted "$3-$1" || return
  begin "$3-$1" "$2: $4"
  over_wires "$1"
  await_stack
  under_load
  "$3"
  finish_scenario
}
cut_wire() { local i; for i in $(seq 5); do signal USR1 x1; sleep 0.4; done; }
wire_gone() { signal USR2 x1; sleep 6; signal USR2 x1; }
wire_silent() { freeze x1 6; }
for which in "redis router and Redis" "encoder router and encoder" "llm router and LLM" "tensor encoder and LLM"; do
  wire "${which%% *}" "${which#* }" cut_wire "cut 5 times"
  wire "${which%% *}" "${which#* }" wire_gone "cut for 6 s"
  wire "${which%% *}" "${which#* }" wire_silent "swallows everything for 6 s"
done

# --- a job that kills its worker: both of the kind are armed, and started again whenever they die ---
poison() { # KIND POINT
  wanted "poison-$1" || return
  begin "poison-$1" "two jobs that kill every $1 that they reach"
  local kind=$1 names
  FAIL_POINT=$2:1:poison
  ROUTERS=$(router_at r1),$(router_at r2)
  router r1; router r2
  if [ "$kind" = encoder ]; then
    names="e1 e2"
    encoder e1 "$CHAOS"; encoder e2 "$CHAOS"; llm l1; llm l2
  else
    names="l1 l2"
    llm l1 "$CHAOS"; llm l2 "$CHAOS"; encoder e1; encoder e2
  fi
  await_stack
  feed $((JOBS / 2))
  r xadd "$(key jobs:1)" '*' id poison-1 uri "file://$DIR/photos/small.jpg" >/dev/null
  r xadd "$(key jobs:0)" '*' id poison-2 uri "file://$DIR/photos/small.jpg" >/dev/null
  feed $((JOBS - JOBS / 2))
  FAULT_MS=$(now_ms)
  sample & SAMPLER=$!
  extra_ids() { printf 'poison-%d\n' 1 2; }
  each_poll() {
    local name
    for name in $names; do kill -0 "${PIDS[$name]}" 2>/dev/null || "$kind" "$name" "$CHAOS"; done
  }
  finish_scenario 2 240
  check "$NAME: no innocent job was charged" test "$attempts_most" = 1
  each_poll() { :; }
  extra_ids() { :; }
  FAIL_POINT=""
}
poison encoder encoder-encoded
poison llm llm-done

# --- RESULTs that come twice, and once more when all is over: by a worker that lies ---
echoes() { # ID-PREFIX TEXT
  wanted "result-$1" || return
  begin "result-$1" "$2"
  router r1; router r2
  launch w1 "$DIR/fake_worker" "$(router_at r1),$(router_at r2)" w1 0123456789abcdef0123456789abcdef 64
  await_stack
  PREFIX=$1 ID_PREFIX=$1 load # each of its results is the fault
  until_true 60 all_done
  sleep 2 # the echoes of the last ones
  ID_PREFIX=$1 finish_scenario
  # Of two that come together the second finds the first on its way to Redis, and is not even counted.
  if [ "$1" = late ]; then check "$NAME: second RESULTs were dropped" test "$(tail -n 1 "$ROWS" | cut -d'|' -f5)" -ge $((JOBS / 2)); fi
}
echoes twice "each RESULT twice"
echoes late "each RESULT again 1.5 s later"

# --- two routers, one slot ---
if wanted one-slot; then
  begin one-slot "two routers and one slot; SIGKILL of one of them"
  ROUTERS=$(router_at r1),$(router_at r2)
  router r1; router r2; encoder e1 "$BUILD" --jobs 1; llm l1 "$BUILD" --sequences 1
  await_stack
  under_load
  kill_router
  finish_scenario
fi

# --- a new model, tier by tier, while jobs flow ---
roll() {
  MODEL=$DIR/other
  llm l3; llm l4
  sleep 1
  stop l1; stop l2
  encoder e3; encoder e4
  sleep 1
  stop e1; stop e2
  MODEL=$TINY
}
if wanted rollout; then
  other_model "$DIR/other"
  fault rollout "a new model, tier by tier" roll
fi

# --- the real pair ---
REAL_JOBS=${REAL_JOBS:-50}
kill_in_turn() {
  local victim
  for victim in e1 l1 r1; do
    stop "$victim" KILL
    again "$victim"
    sleep 3
  done
}
if wanted real && [ "$REAL_JOBS" -gt 0 ]; then
  JOBS=$REAL_JOBS PROBE=6 MODEL=$PWD/build/model LEASE_MS=6000 PEER_MS=4000 NEW_TOKENS=12 LIMITS="max_vision_tokens 64"
  cp examples/cat.jpg "$DIR/photos/" && PHOTO=$DIR/photos/cat.jpg
  begin real "the real pair: SIGKILL of encoder, LLM, router in turn"
  ROUTERS=$(router_at r1),$(router_at r2)
  router r1; router r2; encoder e1; llm l1; llm l2
  await_stack
  under_load
  kill_in_turn
  finish_scenario 0 400
fi

table() {
  echo "| fault | jobs | results | dead | duplicates dropped | seconds to recover | jobs/s before | after | |"
  echo "|---|---|---|---|---|---|---|---|---|"
  sed 's/|/ | /g; s/^/| /; s/$/ |/' "$ROWS"
}
table >build/chaos/table.md
cat build/chaos/table.md
awk -F'|' -v seed="$SEED" -v seconds="$SECONDS" '
  { faults++; jobs += $2; results += $3; dead += $4; dropped += $5; bad += $9 != "ok" }
  END { printf "chaos: %d faults, %d jobs, %d results, %d dead, %d duplicates dropped, %d faults with losses or leftovers; seed %s, %d s\n",
        faults, jobs, results, dead, dropped, bad, seed, seconds }' "$ROWS"
