#!/usr/bin/env bash
# The real pair on the default model under a load from idle to 1.5 times what the most tokens carry, and back.
# In: a build (BUILD), the model, photos (IMAGES). Out: a table and plots in OUT, the simulator's prediction beside each run.
# Service times are calibrated first, in the same run: a full batch at each count. Then the same Poisson arrivals go to
# fixed 64, fixed 256 and adaptive. LOADTEST_S: seconds of a run. LOADTEST_WRAP: a command to run each measurement under.
set -euo pipefail
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build/release}
OUT=${OUT:-build/loadtest}
IMAGES=${IMAGES:-examples}
LOADTEST_S=${LOADTEST_S:-480}
LOADTEST_WRAP=${LOADTEST_WRAP:-}
BURST=${BURST:-48}   # three full batches
FULL_S=${FULL_S:-15} # of too much load, to see what the tiers carry
SEED=${SEED:-1}
TF=$BUILD/tokenflex
mkdir -p "$OUT"
work=$(mktemp -d "${TMPDIR:-/tmp}/tf-loadtest-XXXXXX")
redis="unix://$work/redis.sock"
cli=(redis-cli -s "$work/redis.sock")
up_pid='' redis_pid=''
finish() {
  trap - EXIT INT TERM
  [ -n "$up_pid" ] && kill -TERM "$up_pid" 2>/dev/null && wait "$up_pid" 2>/dev/null
  [ -n "$redis_pid" ] && kill -TERM "$redis_pid" 2>/dev/null && wait "$redis_pid" 2>/dev/null
  rm -rf "$work"
}
trap finish EXIT
trap 'finish; exit 130' INT TERM

redis-server --port 0 --unixsocket "$work/redis.sock" --save '' --appendonly no --maxmemory-policy noeviction \
  --dir "$work" >"$work/redis.log" 2>&1 &
redis_pid=$!
for _ in $(seq 100); do "${cli[@]}" ping >/dev/null 2>&1 && break; sleep 0.1; done
# Few photos come again and again: a cache of their features would leave the encoder nothing to do.
TOKENFLEX_FEATURE_CACHE_MIB=0 "$TF" up --redis "$redis" --model build/model --health off --log-level warn 2>"$OUT/up.log" &
up_pid=$!

load() { # record, then loadtest's options
  local record=$1; shift
  $LOADTEST_WRAP "$TF" loadtest --redis "$redis" --record "$record" --seed "$SEED" "$@" "$IMAGES" >/dev/null
}

# --- Calibration ---
LOADTEST_WRAP='' load "$OUT/warm.jsonl" -a burst -r 0 --period-s 0.1 --burst-jobs 4 -d 0.2 --vision-tokens 64
counts=$("${cli[@]}" hget 'tf:{default}:model' token_counts)
calibrate() { # every count: alone; then a burst, for a first idea of the rate; then 1.5 times that, as submitting costs too
  local n
  for n in ${counts//,/ }; do
    "$TF" loadtest --redis "$redis" --record "$OUT/alone-$n.jsonl" -a constant -r 0.4 -d 5.1 \
      --vision-tokens "$n" "$IMAGES"
    "$TF" loadtest --redis "$redis" --record "$OUT/burst-$n.jsonl" -a burst -r 0 --period-s 0.1 \
      --burst-jobs "$BURST" -d 0.2 --vision-tokens "$n" "$IMAGES"
    "$TF" loadtest --redis "$redis" --record "$OUT/full-$n.jsonl" -a constant -d "$FULL_S" \
      -r "$(jq -s '1.5 * length / ([.[].finished_s] | max)' "$OUT/burst-$n.jsonl")" --vision-tokens "$n" "$IMAGES"
  done
}
export TF redis OUT BURST FULL_S IMAGES counts
export -f calibrate
$LOADTEST_WRAP bash -c calibrate >/dev/null
full() { # ms a job, of those that finish while others arrive; the first third fills the batch
  jq -s --argjson s "$FULL_S" '1000 * ($s * 2 / 3) / ([.[] | select(.finished_s > $s / 3 and .finished_s <= $s)] | length)' \
    "$OUT/full-$1.jsonl"
}
alone() { jq -s '[.[] | .total_ms - .wait_ms] | min' "$OUT/alone-$1.jsonl"; }
each() { local n; for n in ${counts//,/ }; do "$1" "$n"; done | jq -sc .; }
encode=$("${cli[@]}" hget 'tf:{default}:load' encode_service_ms)
jq -n --argjson counts "[$counts]" --argjson full "$(each full)" --argjson alone "$(each alone)" \
  --argjson encode "[${encode:-95}]" '{counts: $counts,
    encode: {workers: 1, slots: 4,
             service_ms: [range($counts | length) as $i | $encode[$i] // $encode[0]]},
    decode: {workers: 1, slots: 16, service_ms: $full, alone_ms: ($alone | map(. - $encode[0]))}}
    | .encode.alone_ms = .encode.service_ms' >"$OUT/service.json"
echo "calibrated: $(jq -c '{counts, decode_service_ms: .decode.service_ms, encode_service_ms: .encode.service_ms}' "$OUT/service.json")"

# --- The runs ---
most=${counts##*,} least=${counts%%,*}
carries=$(jq '1000 / .decode.service_ms[-1]' "$OUT/service.json")
rate=$(jq -n "$carries * 0.05") peak=$(jq -n "$carries * 1.5")
echo "$most tokens carry $carries captions/s; offered: $rate to $peak and back in $LOADTEST_S s"
for run in "adaptive 0" "fixed:$least $least" "fixed:$most $most"; do
  read -r rule tokens <<<"$run"
  load "$OUT/${rule/:/-}.jsonl" -a ramp -r "$rate" --peak "$peak" -d "$LOADTEST_S" --vision-tokens "$tokens"
  "$TF" simulate -s "$OUT/service.json" -a trace -t "$OUT/${rule/:/-}.jsonl" -p "$rule" --json \
    --plot "$OUT/${rule/:/-}.svg" --title "loadtest, $rule: predicted and measured" >"$OUT/${rule/:/-}.json"
  echo "$rule"
done

# --- The table ---
{
  echo "| rule | | captions/s | p50 wait s | p95 s | p99 s | mean tokens |"
  echo "|---|---|---|---|---|---|---|"
  for rule in "fixed:$least" "fixed:$most" adaptive; do
    jq -r --arg rule "$rule" '.rows[] | [$rule, (if .rule == "measured" then "measured" else "predicted" end),
      (.throughput_per_s * 100 | round / 100), (.wait_s.p50 * 100 | round / 100), (.wait_s.p95 * 100 | round / 100),
      (.wait_s.p99 * 100 | round / 100), (.mean_tokens | round)] | "| \(map(tostring) | join(" | ")) |"' "$OUT/${rule/:/-}.json"
  done
} | tee "$OUT/table.md"

# --- What it was for: told, whether it is so or not ---
target_ms=$("${cli[@]}" hget 'tf:{default}:load' target_wait_ms)
jq -rs --argjson target_s "$(jq -n "${target_ms:-2000} / 1000")" '.[0].rows as [$told, $seen] | .[1].rows[-1] as $fixed
  | def so: if . then "yes" else "no" end; def percent: . * 100 | round;
  ($told.throughput_per_s / $seen.throughput_per_s - 1) as $rate | ($told.wait_s.p95 / ([$seen.wait_s.p95, 0.001] | max) - 1) as $wait
  | "the most tokens fall behind (p95 wait above 1.25 x \($target_s) s): \($fixed.wait_s.p95 > 1.25 * $target_s | so)",
    "adaptive keeps it within that: \($seen.wait_s.p95 <= 1.25 * $target_s | so)",
    "predicted against measured, adaptive: throughput \($rate | percent)% (within 15%: \($rate | fabs <= 0.15 | so)), p95 wait \($wait | percent)% (within 30%: \($wait | fabs <= 0.3 | so))"' \
  "$OUT/adaptive.json" "$OUT/fixed-$most.json"
jq -rs --argjson s "$LOADTEST_S" --argjson most "$most" 'map(select(.arrived_s < $s / 10 or .arrived_s > $s * 0.9))
  | "all \($most) tokens while there is little to do (first and last tenth): \(map(select(.vision_tokens == $most)) | length) of \(length) jobs"' \
  "$OUT/adaptive.jsonl"
