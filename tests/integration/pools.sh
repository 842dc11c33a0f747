#!/usr/bin/env bash
# One pool of workers for two queues on two Redis servers, and a new model rolled out tier by tier.
# In: the tiny model, and a copy of it with another pair hash. Out: checks that every job of every queue ends once, at no cost.
. "$(dirname "$0")/lib.sh"

mkdir "$DIR/photos"
jpegtran -crop 64x64+16+16 -outfile "$DIR/photos/small.jpg" examples/cat.jpg || fail "a small photo is made"
check "another model is made" other_model "$DIR/other"

# The server of queue Q listens on $DIR/Q.sock.
q() { local queue=$1; shift; redis-cli -s "$DIR/$queue.sock" --raw "$@"; }
redis_up() { # QUEUE
  start "redis-$1" redis-server --port 0 --unixsocket "$DIR/$1.sock" --save "" --appendonly yes --appendfsync always \
    --dir "$DIR" --appenddirname "aof-$1"
  until_true 10 eval '[ "$(q '"$1"' ping 2>/dev/null)" = PONG ]' || fail "redis-server $1 starts"
}
router() { # NAME QUEUE
  start "$1" "$BUILD/tokenflex-router" --redis "unix://$DIR/$2.sock" --queue "$2" --bind "ipc://$DIR/$1-bind.sock" \
    --lease-ms 3000 --peer-timeout-ms 2000 --health off
}
encoder() { # NAME ROUTERS MODEL
  start "$1" "$BUILD/tokenflex-encoder" --model "$3" --routers "$2" --allow-dir "$DIR/photos" --threads 1 \
    --decode-threads 1 --health off
}
llm() { # NAME ROUTERS MODEL
  start "$1" "$BUILD/tokenflex-llm" --model "$3" --routers "$2" --tensor-bind "ipc://$DIR/$1-bind.sock" --threads 1 \
    --sequences 2 --health off
}
jobs() { # QUEUE FROM TO
  local i
  for i in $(seq "$2" "$3"); do echo "XADD tf:{$1}:jobs:1 * id $1-$i uri file://$DIR/photos/small.jpg max_new_tokens ${NEW_TOKENS:-30}"; done |
    q "$1" >/dev/null
}
count() { q "$1" xlen "tf:{$1}:$2"; }
pair_of() { q "$1" hget "tf:{$1}:model" pair_hash; }
ready() { [ -n "$(pair_of "$1")" ]; }
done_to() { [ "$(count "$1" jobs:1)" -eq 0 ] && [ "$(($(count "$1" results) + $(count "$1" dead)))" -eq "$2" ]; }
ids() { q "$1" --json xrange "tf:{$1}:results" - + | jq -r '.[][1] | .[index("id") + 1]'; }
attempts() { q "$1" --json xrange "tf:{$1}:results" - + | jq -r '.[][1] | .[index("json") + 1] | fromjson | .attempt' | sort -nu | xargs; }
settled() { # WHAT QUEUE JOBS
  same "$1: every id of $2 has its one result" "$(seq -f "$2-%g" 1 "$3" | sort)" "$(ids "$2" | sort)"
  same "$1: none of $2 is dead, none is left" "0 0 0" "$(count "$2" dead) $(count "$2" jobs:1) $(q "$2" --scan --pattern "tf:{$2}:job:*" | wc -l)"
}

redis_up cats; redis_up dogs
all="ipc://$DIR/a-bind.sock,ipc://$DIR/b-bind.sock,ipc://$DIR/c-bind.sock"
router a cats; router b cats; router c dogs
encoder e "$all" "$TINY"; llm l "$all" "$TINY"
check "both queues find the workers" until_true 30 eval 'ready cats && ready dogs'
jobs cats 1 100; jobs dogs 1 100
check "jobs of both queues end" until_true 60 eval 'done_to cats 100 && done_to dogs 100'
settled "two queues" cats 100; settled "two queues" dogs 100
NEW_TOKENS=300 jobs cats 101 200; NEW_TOKENS=300 jobs dogs 101 200
check "the jobs of one queue are under way" until_true 20 eval '[ "$(count dogs results)" -gt 110 ]'
stop redis-dogs KILL
check "one server's death keeps no other queue waiting" until_true 60 done_to cats 200
redis_up dogs
check "when it is back, its queue goes on" until_true 60 done_to dogs 200
settled "a server's restart" cats 200; settled "a server's restart" dogs 200

old=$(pair_of cats)
stop b
(i=200; while [ ! -e "$DIR/rolled" ]; do jobs cats $((i + 1)) $((i + 5)); i=$((i + 5)); echo "$i" >"$DIR/added"; sleep 0.1; done) &
feeder=$!
sleep 0.5
llm l2 "$all" "$DIR/other"
check "the new LLM has joined" until_true 20 grep -q "event=worker_joined role=llm.*endpoint=ipc://$DIR/l2-bind.sock" "$DIR/a.log"
stop l; sleep 0.5
check "for the pairless moment the jobs wait" test "$(count cats jobs:1)" -gt 0
by_old=$(count cats results)
encoder e2 "$all" "$DIR/other"
check "the new pair works" until_true 20 eval '[ "$(pair_of cats)" != "$old" ]'
stop e; sleep 0.5
touch "$DIR/rolled"; wait "$feeder"
added=$(cat "$DIR/added")
check "every job ends" until_true 60 done_to cats "$added"
settled "a rollout tier by tier" cats "$added"
same "it cost no attempt" 1 "$(attempts cats)"
check "both models worked" test "$by_old" -gt 200 -a "$by_old" -lt "$added"
for name in a c e2 l2; do check "$name is alive" alive "$name"; done
