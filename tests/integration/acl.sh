#!/usr/bin/env bash
# Redis with users of least rights: docs/redis-users.acl as it is published, with every program under its own user.
# In: the tiny model. Out: checks that all that each must do works, and that what it must not do is refused.
. "$(dirname "$0")/lib.sh"

TF=$BUILD/tokenflex
sed 's/>change-me-\([a-z]*\)/>secret-of-\1/' docs/redis-users.acl >"$DIR/users.acl"
printf 'secret-of-router\n' >"$DIR/router.password"
printf 'secret-of-client' >"$DIR/client.password"
printf 'secret-of-operator\n' >"$DIR/operator.password"
port=$(free_port)
start redis redis-server --port "$port" --bind 127.0.0.1 --unixsocket "$DIR/redis.sock" --save "" --appendonly no --dir "$DIR" --aclfile "$DIR/users.acl"
as() { # USER COMMAND...
  local user=$1; shift
  REDISCLI_AUTH=secret-of-$user redis-cli -s "$DIR/redis.sock" --no-auth-warning --user "tf-$user" --raw "$@" 2>&1
}
check "Redis takes the file" until_true 10 eval '[ "$(as client ping)" = PONG ]'

# --- who may in
start none "$BUILD/tokenflex-router" --redis "redis://127.0.0.1:$port" --bind "ipc://$DIR/none.sock" --health off
check "a router without a password is told so" until_true 10 grep -q "redis_refused" "$DIR/none.log"
start wrong "$BUILD/tokenflex-router" --redis "redis://tf-router:guess@127.0.0.1:$port" --bind "ipc://$DIR/wrong.sock" --health off
check "a router with a wrong one, too" until_true 10 grep -q "WRONGPASS" "$DIR/wrong.log"
start missing "$BUILD/tokenflex-router" --redis "redis://tf-router@127.0.0.1:$port?password-file=$DIR/no.password" --bind "ipc://$DIR/missing.sock" --health off
check "a password file that is not there is named" until_true 10 grep -q "$DIR/no.password" "$DIR/missing.log"
for name in none wrong missing; do check "$name goes on trying" alive $name; stop $name; done
"$TF" status --redis "redis://tf-client:hunter2@127.0.0.1:$port" >"$DIR/guess.out" 2>&1
same "a client with a wrong password: status 1" 1 $?
same "no password is shown" 0 "$(grep -c hunter2 "$DIR/guess.out" "$DIR/wrong.log" | awk -F: '{ s += $2 } END { print s }')"

# --- the whole pair, the router over tcp with a password file, clients by the unix socket
router=ipc://$DIR/router.sock
start router "$BUILD/tokenflex-router" --redis "redis://tf-router@127.0.0.1:$port?password-file=$DIR/router.password" --bind "$router" --lease-ms 1000 --max-attempts 1 --results-max 1000 --health off
start encoder "$BUILD/tokenflex-encoder" --model "$TINY" --routers "$router" --allow-dir "$PWD/examples" --health off
start llm "$BUILD/tokenflex-llm" --model "$TINY" --routers "$router" --tensor-bind "ipc://$DIR/llm.sock" --health off
client="unix://tf-client@$DIR/redis.sock?password-file=$DIR/client.password"
operator="unix://tf-operator@$DIR/redis.sock?db=0&password-file=$DIR/operator.password"
check "a pair gets ready" until_true 30 eval '"$TF" status --redis "$client" --json | jq -e ".servers[0].model" >/dev/null'
"$TF" submit --redis "$client" --wait --max-new-tokens 2 examples/cat.jpg "file://$PWD/examples/dogs.jpg" "file://$PWD/none.jpg" >"$DIR/wait.out" 2>"$DIR/wait.err"
same "a client submits and waits" "3 2" "$? $(grep -c '"caption"' "$DIR/wait.out")"
same "a client sees how many have ended" 3 "$("$TF" status --redis "$client" --json | jq '.servers[0].ended')"
"$TF" submit --redis "$client" --id plain --max-new-tokens 2 examples/cat.jpg >/dev/null
check "results go to the common stream" until_true 20 eval '[ "$(as client xlen "tf:{default}:results")" = 1 ]'
same "a client reads it" plain "$(as client xrange 'tf:{default}:results' - + | sed -n 3p)"
"$TF" cancel --redis "$client" nobody >/dev/null
same "a client cancels, what nobody knows: status 3, and it is asked for" "3 nobody" "$? $(as router xrevrange 'tf:{default}:cancel' + - count 1 | tail -n 1)"
"$TF" caption --redis "$client" --max-new-tokens 2 examples/coffee.jpg >"$DIR/caption.out" 2>"$DIR/caption.err"
same "a client captions" "0 1" "$? $(wc -l <"$DIR/caption.out")"
"$TF" caption --redis "$client" --max-new-tokens 2 -o "$DIR/resumed.jsonl" examples/coffee.jpg >/dev/null 2>"$DIR/resumed.err"
earlier=$(jq -r .run "$DIR/resumed.jsonl.run.json")
as router xadd "tf:{default}:reply:$earlier" '*' id late >/dev/null
as router hset "tf:{default}:pace:$earlier" remaining 1 >/dev/null
same "what a run left behind is there" 2 "$(as router exists "tf:{default}:reply:$earlier" "tf:{default}:pace:$earlier")"
"$TF" caption --redis "$client" --max-new-tokens 2 -o "$DIR/resumed.jsonl" examples/coffee.jpg examples/cat.jpg >/dev/null 2>>"$DIR/resumed.err"
same "the next run removes it" "0 0" "$? $(as router exists "tf:{default}:reply:$earlier" "tf:{default}:pace:$earlier")"
"$TF" submit --redis "$operator" --wait --id again "file://$PWD/examples/none.jpg" >/dev/null 2>&1
same "an operator lists dead letters" 2 "$("$TF" dead list --redis "$operator" --json | wc -l)"
same "puts one back" "1 put back on the queue" "$("$TF" dead retry --redis "$operator" again)"
check "which dies again" until_true 20 eval '[ "$("$TF" dead list --redis "$operator" --json | wc -l)" = 2 ]'
same "drops all" "2 dropped" "$("$TF" dead drop --all --redis "$operator")"
check "the workers are listed" until_true 10 eval '[ "$(as router hlen "tf:{default}:workers")" = 2 ]'
"$TF" drain --redis "$operator" encoder- >"$DIR/drain.out" 2>&1
same "drains a worker" 0 $?
sleep 3 # leases end, routers sweep
check "the router still has all that it needs" alive router
same "it knows that Redis does not evict" noeviction "$(as router hget 'tf:{default}:load' maxmemory_policy)"
same "nothing was refused to it" 0 "$(grep -ciE 'NOPERM|redis_refused|script_failed|refused' "$DIR/router.log")"

# --- who may not what
denied() { # USER COMMAND...
  case $(as "$@") in *NOPERM* | *"not allowed"* | *"can't access"*) pass "$1 may not: ${*:2:3}" ;; *) fail "$1 may not: ${*:2:3}: $(as "$@")" ;; esac
}
set -f # * is Redis's
for user in router client operator scaler; do
  for command in FLUSHALL FLUSHDB "CONFIG GET dir" "KEYS *" "SCAN 0" "SHUTDOWN" "ACL LIST" "GET other" "SET tf:{other}:x 1" "DEBUG SLEEP 0" "SCRIPT FLUSH" "MONITOR" "PUBLISH a b"; do
    # shellcheck disable=SC2086 # words are arguments
    denied $user $command
  done
done
for user in client operator; do
  denied $user XDEL 'tf:{default}:jobs:1' 1-1
  denied $user XADD 'tf:{default}:results' '*' id forged
  denied $user SET 'tf:{default}:done:x' 1
  denied $user DEL 'tf:{default}:jobs:1'
  denied $user ZADD 'tf:{default}:lease:encode' 1 x
  denied $user HSET 'tf:{default}:model' a b
  for stream in jobs:0 jobs:1 results dead; do
    denied $user XINFO STREAM "tf:{default}:$stream"
    denied $user XINFO STREAM "tf:{default}:$stream" FULL
  done
  denied $user XRANGE 'tf:{default}:jobs:1' - +
  denied $user EVAL "return redis.call('DEL', 'tf:{default}:jobs:1')" 0
done
set +f
for command in "XRANGE tf:{default}:jobs:1 - +" "XADD tf:{default}:jobs:1 * id x" "XINFO STREAM tf:{default}:jobs:1" "XLEN tf:{default}:results" "GET tf:{default}:policy" \
  "XREADGROUP GROUP router me STREAMS tf:{default}:jobs:1 >" "TIME" "EVAL return 0" "XINFO GROUPS tf:{default}:jobs:1" "SET tf:{default}:called 1"; do
  # shellcheck disable=SC2086 # words are arguments
  set -f; denied scaler $command; set +f
done
check "an autoscaler sees how many jobs are unfinished" grep -qxE '[0-9]+' <(as scaler XLEN 'tf:{default}:jobs:1')
same "a client may call workers" OK "$(as client SET 'tf:{default}:called' 1 PX 1000)"
denied client XDEL 'tf:{default}:dead' 1-1
denied client XADD 'tf:{default}:control' '*' drain llm
denied client DEL 'tf:{default}:done:x'
denied client XRANGE 'tf:{default}:dead' - +
denied operator XRANGE 'tf:{default}:results' - +
