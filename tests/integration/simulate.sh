#!/usr/bin/env bash
# `tokenflex simulate`: table, JSON, plot, files of service times, recorded traces, refusals.
# In: the built program. Out: one check a promise.
. "$(dirname "$0")/lib.sh"
TF=$BUILD/tokenflex

sim() { "$TF" simulate "$@"; }
row() { sim "$@" --json | jq -c ".rows[0] | $ROW"; }

# What it says is what was asked for.
same "rules, in their order" '["adaptive","fixed:64","thresholds","aimd"]' \
  "$(sim -d 20 -p adaptive,fixed:64 -p thresholds,aimd --json | jq -c '[.rows[].rule]')"
same "the same seed, the same numbers" "$(sim -r 4 -d 100 --json)" "$(sim -r 4 -d 100 --json)"
same "idle: full detail" '[256,1,true]' "$(ROW='[.mean_tokens, .shares["256"], .wait_s.p50 < 0.1]' row -r 0.5 -d 60)"
same "fixed" '[144,1]' "$(ROW='[.mean_tokens, .shares["144"]]' row -r 1 -d 60 -p fixed:144)"
same "nothing is lost, workers die" '[0,true]' "$(ROW='[.unfinished, .retried > 0]' row -l 3 -r 6 -d 60 --event 20:llm:-2,40:llm:2)"
same "its help names every shape of arrivals" 1 "$(sim --help | grep -c 'constant|poisson|step|burst|wave|ramp|trace$')"
same "the table has a line a rule" 4 "$(sim -d 20 -p adaptive,fixed:64,fixed:256 | wc -l)"
for arrivals in constant poisson step burst wave ramp; do
  case $arrivals in step | ramp) more="--peak 8" ;; wave) more="--peak 8 --period-s 60" ;; burst) more="--period-s 30" ;; *) more= ;; esac
  # shellcheck disable=SC2086 # a list of words
  same "arrivals $arrivals" '[0,true]' "$(ROW='[.unfinished, .finished > 50]' row -a "$arrivals" -l 4 -r 2 $more -d 60)"
done
same "autoscaling uses more workers" true \
  "$(ROW='.worker_hours.decode > 0.1' row -r 72 -d 300 -e 3 -l 1 --autoscale --llms-max 12)"

# Files.
cat >"$DIR/service.json" <<'JSON'
{"counts": [16, 32], "encode": {"workers": 2, "slots": 2, "service_ms": [10, 10]},
 "decode": {"workers": 1, "slots": 8, "window": 16, "service_ms": [50, 100], "alone_ms": [150, 300]}}
JSON
same "a file of service times" '{"16":0,"32":1}' "$(ROW=.shares row -s "$DIR/service.json" -r 2 -d 60)"
same "its capacity" true "$(ROW='.throughput_per_s > 19 and .throughput_per_s < 21' row -s "$DIR/service.json" -p fixed:16 -r 100 -d 60)"
printf '0\n0.5\n2.25\n' >"$DIR/times"
same "a trace of seconds" '[3,3]' "$(ROW='[.arrived, .finished]' row -a trace -t "$DIR/times")"
cat >"$DIR/run.jsonl" <<'JSON'
{"arrived_s": 100.5, "finished_s": 102, "wait_ms": 500, "vision_tokens": 64}
{"arrived_s": 100.0, "finished_s": 101, "wait_ms": 10, "vision_tokens": 256}
{"arrived_s": 103}
JSON
same "a recorded run stands beside" '["measured",3,2,160,{"64":0.5,"144":0,"256":0.5}]' \
  "$(sim -a trace -t "$DIR/run.jsonl" --json | jq -c '.rows[1] | [.rule, .arrived, .finished, .mean_tokens, .shares]')"

# The plot.
sim -a ramp -r 0.1 --peak 4 -d 120 -p adaptive,fixed:256 --title 'a < b & "c"' --plot "$DIR/plot.svg" >/dev/null
check "it is XML" python3 -c 'import sys, xml.dom.minidom as m; m.parse(sys.argv[1])' "$DIR/plot.svg"
same "its title" 1 "$(grep -c 'a &lt; b &amp; &quot;c&quot;' "$DIR/plot.svg")"
same "four panels" 4 "$(grep -c 'class="p"' "$DIR/plot.svg")"
check "no number is wrong" bash -c "! grep -qiE 'nan|inf' '$DIR/plot.svg'"

sim -r 5 -d 5 --plot "$DIR/short.svg" >/dev/null
same "a run shorter than its observations are apart: four lines" 4 "$(grep -cE 'class="l".* d="M[0-9. ]+(L[0-9. ]+)+' "$DIR/short.svg")"
same "percentiles say what is not in them" "p50, p95, p99 of measured: 1 unfinished are not in these" \
  "$(sim -a trace -t "$DIR/run.jsonl" | tail -1)"

# Refusals: exit 2, and the text names what is wrong.
refused() { local name=$1 wanted=$2 said; shift 2; said=$(sim "$@" 2>&1 >/dev/null); same "$name: exit" 2 $?
  case $said in *"$wanted"*) check "$name: text" true ;; *) same "$name: text" "$wanted" "$said" ;; esac; }
refused "an unknown rule" "fixed:N" -p often
refused "a count that is not offered" "fixed:100" -p fixed:100
refused "counts without service times" "--decode-service-ms" --counts 8,16
refused "too few service times" "2 values for 3" --decode-service-ms 1,2
refused "a service time of nothing" "above 0" --decode-service-ms 0
refused "an event that is none" "30:llm:-2" --event 5:router:1
for arrivals in step wave ramp; do refused "$arrivals without a peak" "give --peak" -a "$arrivals"; done
refused "bursts without a time between" "give --period-s" -a burst
refused "a trace without a file" "--trace" -a trace
refused "a trace that nothing follows" "give --arrivals trace" -t "$DIR/times"
for arrivals in constant poisson burst trace; do refused "a peak of $arrivals" "--peak: arrivals $arrivals make no use of it" -a "$arrivals" --peak 8; done
for arrivals in poisson wave ramp; do
  refused "$arrivals from a moment on" "--from-s: arrivals $arrivals make no use of it; give --arrivals step" -a "$arrivals" --from-s 5
  refused "$arrivals until a moment" "--until-s: arrivals $arrivals" -a "$arrivals" --until-s 5
  refused "$arrivals with bursts" "--burst-jobs: arrivals $arrivals" -a "$arrivals" --burst-jobs 5
done
for arrivals in constant step ramp; do refused "a period of $arrivals" "--period-s: arrivals $arrivals" -a "$arrivals" --period-s 9; done
refused "an even trace" "--even: arrivals trace" -a trace -t "$DIR/times" --even
refused "an argument too many" "extra" extra
bad() { local name=$1 wanted=$2 said; shift 2; said=$(sim "$@" 2>&1 >/dev/null); same "$name: exit" 1 $?
  case $said in *"$wanted"*) check "$name: text" true ;; *) same "$name: text" "$wanted" "$said" ;; esac; }
bad "no such trace" "No such file" -a trace -t "$DIR/none"
printf '1\nx\n' >"$DIR/bad"; bad "a line that is none" "bad:2" -a trace -t "$DIR/bad"
: >"$DIR/empty"; bad "an empty trace" "no arrivals" -a trace -t "$DIR/empty"
printf '{' >"$DIR/bad.json"; bad "a broken service file" "bad.json:1" -s "$DIR/bad.json"
printf '{"counts":[1,2],"encode":{"service_ms":[1]}}' >"$DIR/short.json"; bad "a short service file" "2 numbers" -s "$DIR/short.json"
refused "a plot that can't be written" "$DIR/no/where" -d 10 --plot "$DIR/no/where"
