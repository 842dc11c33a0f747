#!/usr/bin/env bash
# Many pictures against a deployment whose workers answer at once: memory stays where it is, nothing comes twice.
# In: two queues with fake workers on two Redis; 5,000 pictures, LONG=1: 100,000. Out: checks on lines and on the memory of
# tokenflex and of Redis.
. "$(dirname "$0")/lib.sh"

TF=$(realpath "$BUILD/tokenflex")
total=5000
[ -n "${LONG:-}" ] && total=100000
fake="$DIR/fake_worker"
make_worker fake_worker "$fake" || { fail "the fake worker compiles"; exit 1; }
cd "$DIR" || exit 1
bin=$(dirname "$TF")
for i in 1 2; do
  start "redis$i" redis-server --port 0 --unixsocket "$DIR/r$i.sock" --save "" --appendonly no --dir "$DIR"
  start "router$i" "$bin/tokenflex-router" --redis "unix://$DIR/r$i.sock" --bind "ipc://$DIR/router$i.sock" --health off
  start "worker$i" "$fake" "ipc://$DIR/router$i.sock" "w$i" 0123456789abcdef0123456789abcdef 64
done
ready() { [ -n "$(redis-cli -s "$DIR/r$1.sock" hget 'tf:{default}:model' token_counts)" ]; }
check "the deployment is up" until_true 20 eval 'ready 1 && ready 2'
url=unix://$DIR/r1.sock,unix://$DIR/r2.sock

# Small files of different bytes: nobody decodes them.
mkdir photos
for folder in $(seq 1 $((total / 1000))); do
  mkdir "photos/$folder"
  seq -f "$folder-%g" 1000 | split -l 1 -a 3 --additional-suffix=.jpg - "photos/$folder/p"
done

rss_kib() { awk '/^VmRSS/ {print $2}' "/proc/$1/status" 2>/dev/null; }
redis_bytes() { redis-cli -s "$DIR/r1.sock" info memory | sed -n 's/^used_memory:\([0-9]*\).*/\1/p'; }
lines() { if [ -e all.jsonl ]; then wc -l <all.jsonl; else echo 0; fi; }
images_once() { [ "$(jq -r .image "$1" | sort | uniq -c | awk '$1 != 1' | wc -l)" = 0 ]; }

# --- started, killed, gone on with while memory is looked at
"$TF" caption photos --redis "$url" -o all.jsonl >/dev/null 2>first.log </dev/null &
pid=$!
until_true 60 eval '[ "$(lines)" -ge $((total / 10)) ]' || fail "captioning begins"
early=$(rss_kib "$pid")
kill -KILL "$pid"
wait "$pid" 2>/dev/null
start all "$TF" caption photos --redis "$url" -o all.jsonl
pid=${PIDS[all]}
rss_max=0 redis_max=0
while alive all; do
  now=$(rss_kib "$pid") bytes=$(redis_bytes)
  [ "${now:-0}" -gt "$rss_max" ] && rss_max=$now
  [ "${bytes:-0}" -gt "$redis_max" ] && redis_max=$bytes
  sleep 0.2
done
wait "$pid"
same "every picture is captioned" "0 $total" "$? $(lines)"
unset "PIDS[all]"
check "each once" images_once all.jsonl
same "both servers had their share" "yes yes" \
  "$(for i in 1 2; do [ "$(grep -c '^job ' worker$i.log)" -gt $((total / 4)) ] && printf 'yes '; done | sed 's/ $//')"
echo "tokenflex: ${early} KiB after a tenth, at most ${rss_max} KiB; Redis: at most $((redis_max / 1024)) KiB"
# 60 bytes a picture are known (names, contents), the rest is the window: 256 jobs.
case $BUILD in *asan* | *tsan*) slack=400000 ;; *) slack=16000 ;; esac
check "tokenflex's memory is flat" test "$rss_max" -lt $((early + slack))
check "Redis's memory is flat" test "$redis_max" -lt $((48 * 1024 * 1024))

# --- by reference, and a server that goes away for a while
start ref "$TF" caption photos --redis "$url" --by-reference -o ref.jsonl
until_true 60 eval '[ -e ref.jsonl ] && [ "$(wc -l <ref.jsonl)" -ge 500 ]' || fail "captioning by reference begins"
pid=${PIDS[ref]}
kill -STOP "${PIDS[worker2]}" # answers of the second server stay away
sleep 0.5
kill -CONT "${PIDS[worker2]}"
wait "$pid"
same "by reference: every picture" "0 $total" "$? $(wc -l <ref.jsonl)"
unset "PIDS[ref]"
check "no bytes travelled" grep -q '^job .* payload 0$' worker1.log
same "no reply stream is left" "" "$(redis-cli -s r1.sock --scan --pattern 'tf:{default}:reply:*')$(redis-cli -s r2.sock --scan --pattern 'tf:{default}:reply:*')"
