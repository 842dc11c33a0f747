#!/usr/bin/env bash
# `tokenflex loadtest`: a load on a stack of its own and on a running one; the record that the simulator reads.
# In: the built programs, the tiny model. Out: one check a promise.
. "$(dirname "$0")/lib.sh"
TF=$BUILD/tokenflex
crops "$DIR/photos" 5

out=$("$TF" loadtest --model "$TINY" -a constant -r 20 -d 1.02 --record "$DIR/run.jsonl" --vision-tokens 9 "$DIR/photos" 2>"$DIR/err")
same "it ends well" 0 $?
same "a line for the run" "20 0 9.0" "$(echo "$out" | awk '/^measured/ {print $2, $3, $8}')"
same "a line a job, in order" "20 true" "$(jq -s -r '"\(length) \([.[].arrived_s] | . == sort)"' "$DIR/run.jsonl")"
same "every job is told in full" 20 "$(jq -s '[.[] | select(.finished_s > .arrived_s and .wait_ms >= 0 and .total_ms >= .wait_ms and .vision_tokens == 9)] | length' "$DIR/run.jsonl")"
same "the simulator stands beside it" '["fixed:144","measured",20]' \
  "$("$TF" simulate -a trace -t "$DIR/run.jsonl" -p fixed:144 --json | jq -c '[.rows[].rule, .rows[1].finished]')"

said=$("$TF" loadtest --model "$TINY" -d 1 2>&1); same "no photos: exit" 2 $?
case $said in *photos*) check "no photos: text" true ;; *) same "no photos: text" "photos" "$said" ;; esac
"$TF" loadtest --model "$DIR/none" -d 1 "$DIR/photos" >/dev/null 2>&1; same "no model: exit" 1 $?
echo no picture >"$DIR/photos/bad.jpg"
"$TF" loadtest --model "$TINY" -a burst -r 0 --period-s 0.1 --burst-jobs 6 -d 0.2 "$DIR/photos" >"$DIR/out" 2>"$DIR/err"
same "a photo that is none: exit" 3 $?
same "a photo that is none: text" "tokenflex: 1 jobs failed, 0 are not finished" "$(tail -1 "$DIR/err")"
