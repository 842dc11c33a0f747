#!/usr/bin/env bash
# Redis through stunnel: docs/stunnel/*.conf as they are published, but for ports, places and the host's name.
# In: the tiny model, certificates made here. Out: checks that captions pass, and that nobody without a certificate does.
. "$(dirname "$0")/lib.sh"

TF=$BUILD/tokenflex
plain=$(free_port) tls=$(free_port) near=$(free_port) stranger=$(free_port)
mkdir "$DIR/tls"
certificate() { # NAME SUBJECT CA-NAME
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" -keyout "$DIR/tls/$1.key" -out "$DIR/tls/$1.csr" &&
    openssl x509 -req -in "$DIR/tls/$1.csr" -CA "$DIR/tls/$3.pem" -CAkey "$DIR/tls/$3.key" -CAcreateserial -days 1 \
      -extfile <(echo "subjectAltName=DNS:$2") -out "$DIR/tls/$1.pem"
}
for ca in ca other; do
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj "/CN=$ca" \
    -addext basicConstraints=critical,CA:TRUE -keyout "$DIR/tls/$ca.key" -out "$DIR/tls/$ca.pem"
done >"$DIR/openssl.log" 2>&1
{ certificate redis localhost ca && certificate client tokenflex ca && certificate forged tokenflex other; } >>"$DIR/openssl.log" 2>&1 ||
  fail "certificates are made"
conf() { # NAME ACCEPT CONNECT
  sed -e "s|/etc/tokenflex/tls|$DIR/tls|" -e "s|^accept = .*|accept = 127.0.0.1:$2|" -e "s|^connect = .*|connect = 127.0.0.1:$3|" \
    -e 's|^checkHost = .*|checkHost = localhost|' "docs/stunnel/$1.conf"
}
conf server "$tls" "$plain" >"$DIR/server.conf"
conf client "$near" "$tls" >"$DIR/client.conf"
conf client "$stranger" "$tls" | sed "s|/client\.|/forged.|" >"$DIR/stranger.conf"
start redis redis-server --port "$plain" --bind 127.0.0.1 --unixsocket "$DIR/redis.sock" --save "" --appendonly no --dir "$DIR"
for side in server client stranger; do start $side stunnel "$DIR/$side.conf"; done
check "Redis answers through both ends" until_true 10 eval '[ "$(redis-cli -p "$near" ping 2>/dev/null)" = PONG ]'
router=ipc://$DIR/router.sock
start router "$BUILD/tokenflex-router" --redis "redis://127.0.0.1:$near" --bind "$router" --health off
start encoder "$BUILD/tokenflex-encoder" --model "$TINY" --routers "$router" --health off
start llm "$BUILD/tokenflex-llm" --model "$TINY" --routers "$router" --tensor-bind "ipc://$DIR/llm.sock" --health off
check "a pair gets ready" until_true 30 model_ready
"$TF" submit --redis "redis://127.0.0.1:$near" --wait --max-new-tokens 2 examples/*.jpg >"$DIR/wait.out" 2>"$DIR/wait.err"
same "photos go in and captions come out" "0 $(ls examples/*.jpg | wc -l)" "$? $(grep -c '"caption"' "$DIR/wait.out")"
same "no answer for another's certificate" "" "$(timeout 5 redis-cli -p "$stranger" ping 2>/dev/null)"
check "the server end says why" until_true 5 grep -qi "certificate" "$DIR/server.log"
same "no answer without TLS" 0 "$(printf 'PING\r\n' | timeout 3 bash -c "exec 3<>/dev/tcp/127.0.0.1/$tls; cat >&3; head -c 7 <&3" 2>/dev/null | grep -c PONG)"
stop client TERM
check "the router says that Redis is away" until_true 10 grep -q redis_unreachable "$DIR/router.log"
start client stunnel "$DIR/client.conf"
check "and finds it again" until_true 15 eval '[ "$(grep -c redis_connected "$DIR/router.log")" = 2 ]'
