#!/usr/bin/env bash
# What is kept instead of computed again, with the real programs and a tiny model: features of pictures that come again.
# In: examples/, the tiny model. Out: checks that captions are the same with and without, and that the work was spared.
. "$(dirname "$0")/lib.sh"
export TOKENFLEX_MODEL=$TINY
r_caption() { # id -> its caption
  r --json xrange 'tf:{default}:results' - + | jq -r --arg id "$1" '.[][1] | . as $f | [range(0; length; 2)] | map({($f[.]): $f[. + 1]}) | add | select(.id == $id) | .caption'
}
results() { r xlen 'tf:{default}:results'; }
metric() { curl -s "http://127.0.0.1:$health/metrics" | awk -v name="$1" '$1 == name { print $2 }'; }

start_redis
crops "$DIR/photos" 4 || fail "making crops"
port=$(free_port) health=$(free_port)
start router "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --bind "tcp://127.0.0.1:$port" --health off
start llm "$BUILD/tokenflex-llm" --routers "tcp://127.0.0.1:$port" --tensor-bind 'tcp://127.0.0.1:*' --threads 1 --health off
encoder() { # more options
  start encoder "$BUILD/tokenflex-encoder" --routers "tcp://127.0.0.1:$port" --allow-dir "$DIR/photos" --threads 1 \
    --health "127.0.0.1:$health" "$@"
  check "the pair is ready ($*)" until_true 30 eval '[ "$(curl -s -o /dev/null -w "%{http_code}" "http://127.0.0.1:$health/readyz")" = 200 ] && model_ready'
}
all=0
submit() { # prefix: every photo with every count of tokens, twice
  local photo n round
  for round in 1 2; do for photo in "$DIR"/photos/*.jpg; do for n in 4 9 16; do
    echo "XADD tf:{default}:jobs:1 * id $1-$round-$(basename "$photo")-$n uri file://$photo min_vision_tokens $n max_vision_tokens $n max_new_tokens 8"
  done; done; done >"$DIR/commands"
  all=$((all + $(wc -l <"$DIR/commands")))
  r <"$DIR/commands" >/dev/null
  check "all are answered ($1)" until_true 60 eval '[ "$(results)" -ge "$all" ]'
}

# ---- the encoder's cache of features ----
encoder --feature-cache-mib 0
submit plain
same "without a cache nothing is counted" "" "$(metric 'tokenflex_feature_cache_lookups_total{outcome="hit"}')"
pid=${PIDS[encoder]}; kill -TERM "$pid"; wait "$pid"; unset 'PIDS[encoder]'
encoder
submit cached
hits=$(metric 'tokenflex_feature_cache_lookups_total{outcome="hit"}')
misses=$(metric 'tokenflex_feature_cache_lookups_total{outcome="miss"}')
same "every job looked in the cache" 24 "$((hits + misses))"
check "pictures that came again were found ($hits of 24)" test "$hits" -ge 8
same "the ViT saw the others alone" "$misses" "$(metric 'tokenflex_batch_images_sum')"
check "the cache says what it takes" test "$(metric tokenflex_feature_cache_bytes)" -gt 1000
same "nothing had to go" 0 "$(metric tokenflex_feature_cache_evictions_total)"
different=0
for photo in "$DIR"/photos/*.jpg; do for n in 4 9 16; do
  name=$(basename "$photo")-$n plain=$(r_caption "plain-1-$name")
  for other in plain-2 cached-1 cached-2; do [ "$(r_caption "$other-$name")" = "$plain" ] || different=$((different + 1)); done
  [ -n "$plain" ] || different=$((different + 1))
done; done
same "captions are those of an encoder without a cache" 0 "$different"
pid=${PIDS[encoder]}; kill -TERM "$pid"; wait "$pid"; same "the encoder drains and exits 0" 0 "$?"; unset 'PIDS[encoder]'
