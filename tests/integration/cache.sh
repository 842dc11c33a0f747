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

# ---- weights kept from start to start ----
unset TOKENFLEX_CACHE_DIR
kept=$DIR/kept/weights
saw() { grep -qF "event=$2" "$DIR/$1.log"; }
restart() { # name, what its log must say (and nothing else of the three), options: ends the one before
  local name=$1 event=$2 other
  shift 2
  stop "$name"
  case $name in
    encoder) start encoder "$BUILD/tokenflex-encoder" --routers "tcp://127.0.0.1:$port" --allow-dir "$DIR/photos" --threads 1 --health off "$@" ;;
    llm) start llm "$BUILD/tokenflex-llm" --routers "tcp://127.0.0.1:$port" --tensor-bind 'tcp://127.0.0.1:*' --threads 1 --health off "$@" ;;
  esac
  check "the $name starts, $event" until_true 30 eval "saw $name started && { [ $event = nothing ] || saw $name $event; }"
  for other in weights_kept weights_mapped weights_refused weights_not_kept; do
    [ "$other" = "$event" ] || [ "$other $event" = "weights_kept weights_refused" ] || ! saw "$name" "$other" || fail "the $name said $other, not $event"
  done
}
captions_stay() { # as those of the first encoder and LLM
  local name n different=0
  submit "$1"
  for photo in "$DIR"/photos/*.jpg; do for n in 4 9 16; do
    name=$(basename "$photo")-$n
    [ "$(r_caption "$1-1-$name")" = "$(r_caption "plain-1-$name")" ] || different=$((different + 1))
  done; done
  same "captions stay what they were ($1)" 0 "$different"
}
files() { find "$kept" -name "$1-*.weights" 2>/dev/null; }
restart encoder nothing
restart llm nothing
restart encoder weights_kept --cache-dir "$kept"
restart llm weights_kept --cache-dir "$kept"
same "a file each" "1 1" "$(files encoder | wc -l) $(files llm | wc -l)"
captions_stay first
restart encoder weights_mapped --cache-dir "$kept"
restart llm weights_mapped --cache-dir "$kept"
captions_stay second
for name in encoder llm; do
  inode=$(stat -c %i "$(files $name)")
  check "the $name has the file mapped" grep -q "$(files $name)" "/proc/${PIDS[$name]}/maps"
  for damage in weights header end; do
    file=$(files $name) size=$(stat -c %s "$(files $name)")
    stop "$name"
    case $damage in
      weights) printf '\377\377\377\377' | dd of="$file" bs=1 seek=$((size - 64)) conv=notrunc status=none ;;
      header) printf '\377' | dd of="$file" bs=1 seek=40 conv=notrunc status=none ;;
      end) truncate -s $((size / 2)) "$file" ;;
    esac
    restart "$name" weights_refused --cache-dir "$kept"
    check "a damaged $damage is told and written anew" until_true 10 saw "$name" weights_kept
  done
  check "as a new file" test "$(stat -c %i "$(files $name)")" != "$inode"
done
captions_stay damaged
restart encoder weights_mapped --cache-dir "$kept"
restart llm weights_mapped --cache-dir "$kept"
restart llm weights_kept --cache-dir "$kept" --cpu portable
same "other instructions, another file" 2 "$(files llm | wc -l)"
: >"$DIR/no_folder"
restart llm weights_not_kept --cache-dir "$DIR/no_folder/weights"
captions_stay unwritable
# Two at once, of none: both serve, one file stays.
stop llm; rm -r "$kept"
for i in 1 2; do
  start both$i "$BUILD/tokenflex-llm" --routers "tcp://127.0.0.1:$port" --tensor-bind 'tcp://127.0.0.1:*' --threads 1 --health off --cache-dir "$kept"
done
for i in 1 2; do check "LLM $i of two that start at once" until_true 30 eval "saw both$i started && { saw both$i weights_kept || saw both$i weights_mapped; }"; done
same "one file, and nothing beside it" "1 1" "$(files llm | wc -l) $(find "$kept" -type f ! -name .lock | wc -l)"
captions_stay both
for name in both1 both2; do pid=${PIDS[$name]}; kill -TERM "$pid"; wait "$pid"; same "$name drains and exits 0" 0 "$?"; unset "PIDS[$name]"; done
stop encoder; stop router

# ---- the command line's own folder ----
export XDG_RUNTIME_DIR=$DIR/run XDG_CACHE_HOME=$DIR/cache
mkdir "$XDG_RUNTIME_DIR"
caption() { timeout -k 5 120 "$BUILD/tokenflex" caption "$DIR/photos" "$@" 2>"$DIR/caption.err" | jq -r '"\(.image) \(.caption)"' | sort; }
without=$(caption --cache-dir off)
check "without a folder nothing is kept" test ! -e "$XDG_CACHE_HOME"
first=$(caption)
same "caption keeps both programs' weights in the user's cache" "1 1" "$(find "$XDG_CACHE_HOME/tokenflex" -name 'encoder-*.weights' | wc -l) $(find "$XDG_CACHE_HOME/tokenflex" -name 'llm-*.weights' | wc -l)"
same "the second run gives the same captions" "$without" "$(caption)"
same "so did the first" "$without" "$first"
same "four of them" 4 "$(echo "$without" | grep -c .)"
env -u HOME -u XDG_CACHE_HOME TOKENFLEX_CACHE_DIR="$DIR/named" timeout -k 5 120 "$BUILD/tokenflex" caption "$DIR/photos" >/dev/null 2>&1
check "the variable names it, too" test -n "$(find "$DIR/named" -name '*.weights')"
