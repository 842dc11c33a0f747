#!/usr/bin/env bash
# CURVE between the tiers, over tcp: who has the keys works, who has none or others stays out, and both sides say why.
# In: the tiny model. Out: checks on captions, logs, counts, and on what the programs refuse to start with.
. "$(dirname "$0")/lib.sh"

TF=$BUILD/tokenflex
logged() { grep -qF -- "$2" "$DIR/$1.log"; }
metric() { curl -s "http://127.0.0.1:$1/metrics" | awk -v name="$2" 'index($0, name) == 1 { sum += $NF } END { print sum + 0 }'; }

# --- keys
check "keygen makes a pair" "$TF" keygen "$DIR/keys" 2>/dev/null
same "the secret file is for its owner alone" 600 "$(stat -c %a "$DIR/keys/deployment.key")"
same "the public file holds no secret" "1 0" "$(grep -c '^public ' "$DIR/keys/deployment.pub") $(grep -c '^secret ' "$DIR/keys/deployment.pub")"
"$TF" keygen "$DIR/keys" >"$DIR/again.out" 2>"$DIR/again.err"
same "a pair is not overwritten: status 2" 2 $?
check "and it says so" grep -q "exists already" "$DIR/again.err"
for name in stranger laptop; do "$TF" keygen --name $name "$DIR/keys" >/dev/null 2>&1; done
KEY=$DIR/keys/deployment.key

# --- what can not start
refused() { # WHAT, TEXT, COMMAND...: status 2 and one line with TEXT
  local what=$1 text=$2; shift 2
  timeout 20 "$@" >"$DIR/refused.out" 2>&1 </dev/null
  same "$what: status 2" 2 $?
  check "$what: the message names it" grep -qF -- "$text" "$DIR/refused.out"
}
router() { echo "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --health off "$@"; }
# shellcheck disable=SC2046 # words are arguments
{
  refused "a bind for everyone without keys" "needs --curve-key" $(router --bind "tcp://0.0.0.0:$(free_port)")
  refused "a tensor bind for everyone without keys" "needs --curve-key" "$BUILD/tokenflex-llm" --model "$TINY" --health off --tensor-bind "tcp://0.0.0.0:$(free_port)" --tensor-advertise tcp://127.0.0.1:1
  refused "a key file that is not there" "$DIR/none.key" $(router --curve-key "$DIR/none.key")
  refused "a key file without a secret" "no secret key" $(router --curve-key "$DIR/keys/deployment.pub")
  { cat "$DIR/keys/deployment.pub"; grep secret "$DIR/keys/stranger.key"; } >"$DIR/mixed.key"; chmod 600 "$DIR/mixed.key"
  refused "two keys of two pairs" "do not belong together" $(router --curve-key "$DIR/mixed.key")
  cp "$KEY" "$DIR/open.key"; chmod 644 "$DIR/open.key"
  refused "a secret that everyone may read" "chmod 600" $(router --curve-key "$DIR/open.key")
  head -c 5000 /dev/urandom >"$DIR/noise.key"
  refused "noise for a key file" "$DIR/noise.key, line 1" $(router --curve-key "$DIR/noise.key")
  refused "an allow list without own keys" "needs --curve-key" $(router --curve-allow "$DIR/keys/laptop.pub")
}
same "no message shows a secret key" "" "$(grep -lF "$(sed -n 's/^secret //p' "$DIR/keys/stranger.key")" "$DIR"/*.out "$DIR"/*.err 2>/dev/null)"

# --- a deployment with one key for all; the router's port would be open to everyone, where there is a network
start_redis
port=$(free_port) tensors=$(free_port) health=$(free_port)
at=tcp://127.0.0.1:$port
cp "$DIR/keys/stranger.pub" "$DIR/allow" # stays out at first: replaced before anyone comes
echo "# nobody yet" >"$DIR/allow.new"; cat "$DIR/keys/laptop.pub" >>"$DIR/allow.new"; mv "$DIR/allow.new" "$DIR/allow"
start router "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --bind "tcp://0.0.0.0:$port" --curve-key "$KEY" --curve-allow "$DIR/allow" --health "127.0.0.1:$health"
start llm "$BUILD/tokenflex-llm" --model "$TINY" --routers "$at" --tensor-bind "tcp://0.0.0.0:$tensors" --tensor-advertise "tcp://127.0.0.1:$tensors" --curve-key "$KEY" --health off
worker() { # NAME ARGUMENTS...: an encoder
  local name=$1; shift
  start "$name" "$BUILD/tokenflex-encoder" --model "$TINY" --routers "$at" --allow-dir "$PWD/examples" --health off "$@"
}
worker none
worker wrong --curve-key "$DIR/keys/stranger.key" --curve-server "$DIR/keys/deployment.pub"
worker elsewhere --curve-key "$KEY" --curve-server "$DIR/keys/stranger.pub"
check "a worker without keys says so" until_true 20 logged none "and we have none (--curve-key)"
# both sides see the mismatch, and who closes first leaves the other an end of stream only: it may take some tries, one every 2 s
check "the router says so too" until_true 90 logged router "we have CURVE keys and the other side has none"
check "a worker whose key is not allowed says so" until_true 20 logged wrong "does not allow our key"
check "the router names its key" until_true 10 logged router "$(sed -n 's/^public //p' "$DIR/keys/stranger.pub")"
check "and where it came from" logged router 'address=127.0.0.1'
check "a worker that expects another server says so" until_true 20 logged elsewhere "its key may be another than --curve-server says"
check "refusals are counted" test "$(metric "$health" tokenflex_curve_refused_total)" -gt 0
check "failed handshakes are counted" test "$(metric "$health" tokenflex_handshakes_failed_total)" -gt 1
same "none of them has joined" 0 "$(grep -c 'worker_joined role=encoder' "$DIR/router.log")"
worker encoder --curve-key "$KEY"
check "a pair with keys gets ready" until_true 30 model_ready
same "only those with keys have joined" 2 "$(grep -c worker_joined "$DIR/router.log")"
for i in 1 2 3; do r xadd 'tf:{default}:jobs:1' '*' id "job-$i" uri "file://$PWD/examples/cat.jpg" max_new_tokens 4 >/dev/null; done
results() { [ "$(r xlen 'tf:{default}:results')" = "$1" ]; }
check "captions come over encrypted sockets" until_true 30 results 3

# --- a worker with a key of its own, allowed later, while the router runs; then no longer
stop encoder TERM
worker laptop --curve-key "$DIR/keys/laptop.key" --curve-server "$DIR/keys/deployment.pub"
check "an allowed key joins" until_true 20 eval '[ "$(grep -c worker_joined "$DIR/router.log")" = 3 ]'
r xadd 'tf:{default}:jobs:1' '*' id refused-tensor uri "file://$PWD/examples/cat.jpg" max_new_tokens 4 >/dev/null
check "an LLM that does not allow it says so" until_true 30 logged llm "this public key is not in --curve-allow"
check "and the encoder, too" until_true 10 logged laptop "does not allow our key"
stop laptop KILL
grep -v '^public' "$DIR/keys/laptop.pub" >"$DIR/allow.new"; cat "$DIR/keys/stranger.pub" >>"$DIR/allow.new"; mv "$DIR/allow.new" "$DIR/allow"
check "a key that is added to the file joins without a restart" until_true 30 eval 'grep -q "curve_allow_read" "$DIR/router.log" && [ "$(grep -c worker_joined "$DIR/router.log")" = 4 ]'
joined=$(grep -c worker_joined "$DIR/router.log")
worker gone --curve-key "$DIR/keys/laptop.key" --curve-server "$DIR/keys/deployment.pub"
check "a key that was taken out stays out" until_true 20 logged gone "does not allow our key"
same "it has not joined" "$joined" "$(grep -c worker_joined "$DIR/router.log")"
echo nonsense >"$DIR/allow.new"; mv "$DIR/allow.new" "$DIR/allow"
check "a broken list is told and not used" until_true 20 logged router "curve_allow_kept"
stop wrong TERM; stop gone KILL
worker last --curve-key "$KEY"
check "the job that could not be delivered ends" until_true 60 results 4

# --- noise on the open ports
for p in "$port" "$tensors"; do
  head -c 100000 /dev/urandom >"/dev/tcp/127.0.0.1/$p"
  printf 'GET / HTTP/1.1\r\n\r\n' >"/dev/tcp/127.0.0.1/$p"
done 2>/dev/null
r xadd 'tf:{default}:jobs:1' '*' id after uri "file://$PWD/examples/cat.jpg" max_new_tokens 4 >/dev/null
check "captions come after noise on the ports" until_true 30 results 5
for name in last llm router; do
  pid=${PIDS[$name]}; kill -TERM "$pid"; wait "$pid"; same "$name drains and exits 0" 0 "$?"; unset "PIDS[$name]"
done
same "nothing was lost on the way" 0 "$(r xlen 'tf:{default}:dead')"

# --- the whole service by one command; a private stack takes no notice of a deployment's keys
port=$(free_port)
start up env TOKENFLEX_MODEL="$TINY" "$TF" up --redis "unix://$DIR/redis.sock" --queue upq --bind "tcp://127.0.0.1:$port" --curve-key "$KEY" --allow-dir "$PWD/examples" --health off --log-level warn
check "up gets ready with keys" until_true 30 grep -q "^tokenflex: up, " "$DIR/up.log"
start outside "$BUILD/tokenflex-encoder" --model "$TINY" --routers "tcp://127.0.0.1:$port" --health off
check "and keeps out who has none" until_true 20 logged outside "we have none (--curve-key)"
stop outside KILL
stop up TERM
same "caption's private services need no keys of the environment" 1 "$(TOKENFLEX_MODEL=$TINY TOKENFLEX_CURVE_KEY=$DIR/none.key timeout 60 "$TF" caption examples/cat.jpg 2>"$DIR/private.err" | wc -l)"
