#!/usr/bin/env bash
# The status page's endpoints: what they show, who may read, who may act, and what comes of it.
# In: tokenflex-router on a real Redis, tests/integration/fake_worker.c, hostile ids. Out: checks on answers and on the queue.
. "$(dirname "$0")/lib.sh"

fake="$DIR/fake_worker"
make_worker fake_worker "$fake" || { fail "the fake worker compiles"; exit 1; }
start_redis

Q=photos
port=$(free_port) other=$(free_port)
base=http://127.0.0.1:$port
TOKEN=0123456789abcdefghij
(umask 077 && echo "$TOKEN" >"$DIR/token")
router() { # NAME PORT [options...]
  local name=$1 health=$2; shift 2
  start "$name" "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --queue "$Q" --bind "ipc://$DIR/$name.sock" \
    --health "127.0.0.1:$health" --lease-ms 1500 --peer-timeout-ms 1000 --drain-timeout-s 3 --log-level debug "$@"
  until_true 10 curl -s -o /dev/null "http://127.0.0.1:$health/healthz"
}
key() { echo "tf:{$Q}:$1"; }
add() { r xadd "$(key jobs:1)" '*' "$@" >/dev/null; }
count() { r xlen "$(key "$1")"; }
status() { curl -s -o "$DIR/answer" -w '%{http_code}' "$@"; } # the body is in $DIR/answer
answered() { grep -qF -- "$1" "$DIR/answer"; }
state() { curl -s "$base/state.json$1" >"$DIR/state.json"; }
# shown JQ-CONDITION: holds soon (each look keeps the page's lists being read)
holds() { state "" && jq -e "$1" "$DIR/state.json" >/dev/null; }
shown() { until_true 20 holds "$1"; }
same_state() { local what=$1 wanted=$2 query=$3; state ""; same "$what" "$wanted" "$(jq -c "$query" "$DIR/state.json")"; }
act() { status -X POST -H "Authorization: Bearer ${3-$TOKEN}" "$base/letters/$1/$2"; } # LETTER ACTION [TOKEN]
letter_of() { r --json xrange "$(key dead)" - + | jq -r --arg id "$1" '.[] | select(.[1][1] == $id) | .[0]'; }
ended() { r --json xrange "$(key results)" - + | jq -e --arg id "$1" 'any(.[]; .[1][1] == $id)' >/dev/null; }
verdict() { jq -r --argjson n "$(jq .request "$DIR/answer")" '.actions.done[] | select(.request == $n) | .verdict' "$DIR/state.json"; }
verdict_is() { state "" && [ "$(verdict)" = "$1" ]; }

# --- options
for bad in "short" "with a space in it"; do
  (umask 077 && echo "$bad" >"$DIR/bad")
  "$BUILD/tokenflex-router" --page-token-file "$DIR/bad" --health off 2>"$DIR/bad.err" >/dev/null
  same "a token '$bad': status 2" 2 $?
done
chmod 644 "$DIR/bad"
"$BUILD/tokenflex-router" --page-token-file "$DIR/bad" --health off 2>"$DIR/bad.err" >/dev/null
same "a token that everyone may read: status 2" 2 $?
check "and it says so" grep -q "bad: everyone may read it" "$DIR/bad.err"

# --- nobody there yet
add id '<img src=x onerror=alert(1)>' uri file:///a.jpg
add id cancelled uri file:///b.jpg
r xadd "$(key cancel)" '*' id cancelled >/dev/null
router a "$port" --page-token-file "$DIR/token"
same "the page" 200 "$(status "$base/")"
check "is HTML" answered '<!doctype html>'
curl -sI "$base/" >"$DIR/headers"
check "its policy lets nothing in but itself" grep -qiE "^content-security-policy: default-src 'none'; script-src 'sha256-[A-Za-z0-9+/]{43}='; style-src 'sha256-" "$DIR/headers"
check "and is not to be kept" grep -qi '^cache-control: no-store' "$DIR/headers"
check "nor guessed at" grep -qi '^x-content-type-options: nosniff' "$DIR/headers"
same "nothing for other origins" 0 "$(grep -ci '^access-control' "$DIR/headers")"
same "nothing is fetched from elsewhere" 0 "$(curl -s "$base/" | grep -oE '(src|href)="?https?:|url\(|@import' | wc -l)"
check "it says that workers are missing" shown '.not_ready == "no encoder" and .redis.reachable and .workers == []'
check "the queue's load" shown '.load.unfinished == 2 and .load.waiting == 2'
check "retry and drop: offered, not allowed" shown '.actions.offered and (.actions.allowed | not)'

# --- jobs
start w "$fake" "ipc://$DIR/a.sock" w
add id $'bad\xffutf8' uri file:///c.jpg
add id bogus uri file:///d.jpg nonsense 1
add uri file:///e.jpg max_new_tokens 0
check "hostile ids are told as they are" shown '[.captions[].id] == ["<img src=x onerror=alert(1)>"]'
same_state "with their captions" '["caption of <img src=x onerror=alert(1)>",256,"idle"]' '.captions[0] | [.caption, .vision_tokens, .reason]'
check "dead letters, newest first" shown '[.letters[].code] == ["field_invalid", "field_unknown", "id_invalid", "cancelled"] or
  (.letters | length == 4 and all(.code != ""))'
check "bytes that are no UTF-8 are replaced" shown 'any(.letters[]; .id == "bad\ufffdutf8")'
check "both workers" shown '[.workers[].role] | sort == ["encoder", "llm"]'
same_state "with version and model" '[true,true]' '[(.workers | all(.version == "0")), (.workers | all(.model == "fake/0"))]'
same_state "counts" '[64,144,256]' '[.load.counts[] | floor]'
same_state "queue and router" '["photos",true]' '[.queue, (.router | startswith("router-"))]'
check "samples come" shown '.history.last >= 4 and any(.history.samples[]; .[1] > 0)'
state "?since=$(jq .history.last "$DIR/state.json")"
same "and only those that are new" true "$(jq '.history.samples | length <= 1' "$DIR/state.json")"
check "the load that routers share is the one in Redis" shown ".load.dead == $(count dead)"

# --- who may read
same "a foreign Host: 403" 403 "$(status -H 'Host: evil.example' "$base/state.json")"
check "and why" answered "answers to localhost, 127.0.0.1 and [::1] only"
same "nor the page" 403 "$(status -H 'Host: evil.example:9101' "$base/")"
same "no Host" 403 "$(status --http1.0 -H 'Host:' "$base/")"
same "health stays open to it" "200 200" "$(status -H 'Host: evil.example' "$base/healthz") $(status -H 'Host: x' "$base/metrics")"
same "other names of this machine" "200 200" "$(status -H 'Host: localhost:8080' "$base/") $(status -H 'Host: [::1]:1' "$base/state.json")"
same "the token opens it under any name" 200 "$(status -H 'Host: tokenflex-router:9101' -H "Authorization: Bearer $TOKEN" "$base/state.json")"
same "and says that it may act" true "$(jq .actions.allowed "$DIR/answer")"
same "another token does not" 403 "$(status -H 'Host: tokenflex-router' -H "Authorization: Bearer x$TOKEN" "$base/state.json")"
same "other methods" "405 405 405" "$(status -X POST "$base/") $(status -X OPTIONS -H 'Origin: http://evil.example' "$base/state.json") $(status -X DELETE "$base/letters/1-0/drop")"
same "what is not there" "404 404 405" "$(status "$base/page.html") $(status "$base/letters/1-0/eat") $(status -X POST "$base/letters/x/drop")"
check "refusals are counted" test "$(curl -s "$base/metrics" | sed -n 's/^tokenflex_page_refused_total //p')" -ge 4

# --- who may act
dead=$(count dead)
letter=$(letter_of cancelled)
same "retry without a token: 403" 403 "$(status -X POST "$base/letters/$letter/retry")"
check "and why" answered 'Authorization: Bearer TOKEN'
same "with another token: 403" 403 "$(act "$letter" retry 0123456789abcdefghiJ)"
same "with a prefix of it: 403" 403 "$(act "$letter" retry 0123456789abcdefghi)"
same "as a query: 403" 403 "$(status -X POST "$base/letters/$letter/retry?token=$TOKEN")"
same "by GET: 405" 405 "$(status -H "Authorization: Bearer $TOKEN" "$base/letters/$letter/retry")"
same "nothing has moved" "$dead" "$(count dead)"
same "retry with the token: 202" 202 "$(act "$letter" retry)"
check "its verdict is told" until_true 10 verdict_is retried
check "the job is captioned" until_true 10 ended cancelled
check "and shown" shown 'any(.captions[]; .id == "cancelled")'
same "its letter is gone" "" "$(letter_of cancelled)"
check "from the page too" shown 'all(.letters[]; .id != "cancelled")'
letter=$(letter_of bogus)
same "drop: 202" 202 "$(act "$letter" drop)"
check "dropped" until_true 10 verdict_is dropped
same "it is gone, the others are not" "$((dead - 2))" "$(count dead)"
same "again: 202" 202 "$(act "$letter" drop)"
check "it was gone" until_true 10 verdict_is gone
check "the log has who was let go" grep -q "event=letter_drop letter=$letter by=page verdict=dropped" "$DIR/a.log"
same "the log has no token" 0 "$(grep -c "$TOKEN" "$DIR/a.log")"
r xadd "$(key dead)" '*' id lost error_code image_corrupt error_message 'x' attempts 3 uri '' image_dropped 1 >/dev/null
letter=$(letter_of lost)
check "letters that others add are found" shown 'any(.letters[]; .id == "lost" and .image_dropped)'
r xdel "$(key dead)" "$letter" >/dev/null
check "and those that others take are missed" shown 'all(.letters[]; .id != "lost")'
for i in $(seq 60); do echo "XADD $(key dead) * id many-$i error_code timeout error_message x attempts 1"; done | r >/dev/null
check "fifty at most, the newest" shown '(.letters | length) == 50 and .letters[0].id == "many-60"'

# --- another router of the queue
router b "$other"
add id afterwards uri file:///x.jpg
check "a job ends" until_true 10 ended afterwards
base_b=http://127.0.0.1:$other
holds_b() { curl -s "$base_b/state.json" | jq -e "$1" >/dev/null; }
shown_b() { until_true 20 holds_b "$1"; }
check "shows the same workers and dead letters" shown_b '(.workers | length) == 2 and (.letters | length) == 50 and .load.dead > 50'
check "and of captions its own alone" shown_b '.captions == []'
check "without a token nothing is offered" shown_b '.actions.offered | not'
same "and nothing is done" 403 "$(status -X POST -H "Authorization: Bearer $TOKEN" "$base_b/letters/1-0/drop")"
check "which it says" answered "runs without --page-token-file"
same "an empty token is none" 403 "$(status -X POST -H "Authorization: Bearer " "$base_b/letters/1-0/drop")"
stop b
router b "$other" --page off
same "--page off" "404 404 200" "$(status "$base_b/") $(status "$base_b/state.json") $(status "$base_b/metrics")"
stop b

# --- Redis goes
stop redis KILL
check "it says that Redis is gone" shown '.redis.reachable | not'
same_state "what was known is still there" '[true,50]' '[(.load.dead > 50), (.letters | length)]'
same "an action is taken" 202 "$(act 1-0 drop)"
check "and its end told" until_true 10 verdict_is unreachable
same "and health is fine" 200 "$(status "$base/healthz")"
stop a
