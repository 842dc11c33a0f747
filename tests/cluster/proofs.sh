#!/usr/bin/env bash
# What the cluster must prove, a function each: 200 photos, scaling, kills, eviction, rolling updates, Redis restarted.
# In: inside.sh's functions, a cluster that is up. Out: checks; after each proof every id has ended exactly once.

client() { python3 tests/cluster/load.py "$@"; }
quietly() { "$@" >/dev/null 2>&1; }
# exactly_once NAME: all jobs of $OUT/NAME.ids end, each once, none of them dead
exactly_once() {
  check "$1: every job ends" client settle "${2:-600}"
  if client check "$OUT/$1.ids" >"$OUT/$1.count" 2>&1; then pass "$1: $(cat "$OUT/$1.count")"; else fail "$1: $(cat "$OUT/$1.count")"; fi
  cat "$OUT/$1.count" >>"$OUT/counts"
}

prove_photos() {
  applied k8s/overlays/single-node || stop_here "single-node: the manifests are applied"
  rolled_out 180 || stop_here "single-node: everything gets ready"
  pass "single-node: everything gets ready"
  sed "s#TAG#$TAG#; s#PHOTOS#$STATE/photos#" tests/cluster/client.yaml | kn apply -f - >/dev/null
  check "a client's pod runs" quietly kn wait --for=condition=Ready --timeout=60s pod/client
  kn exec client -- sh -c 'tokenflex submit /photos/*.jpg' >"$OUT/photos.submitted" || fail "the client submits"
  cut -f1 "$OUT/photos.submitted" >"$OUT/photos.ids"
  check "200 photos are submitted by the client's pod" test "$(wc -l <"$OUT/photos.ids")" -eq 200
  exactly_once photos
}

# small scaled|fixed: the small overlay, 200m a pod; with the autoscalers, or with two of each and none.
small() {
  [ "${SMALL:-}" = "$1" ] && return
  kn delete hpa --all >/dev/null
  applied tests/cluster/small || stop_here "the small overlay is applied"
  if [ "$1" = fixed ]; then
    kn delete hpa --all >/dev/null
    kn scale --replicas=2 deployment/tokenflex-encoder deployment/tokenflex-llm >/dev/null
  else
    kn scale --replicas=1 deployment/tokenflex-encoder deployment/tokenflex-llm >/dev/null
  fi
  rolled_out 300 || stop_here "the small overlay gets ready"
  SMALL=$1
}
measured() { # FIELD: of tf:{default}:load, the last of its list
  kn exec tokenflex-redis-0 -c redis -- sh -c 'REDISCLI_AUTH=$(cat /run/secrets/redis/password) redis-cli hget "tf:{default}:load" '"$1" | tr ',' '\n' | tail -n 1
}

# Photos of six megapixels, progressive, as phones and web pages have them: they keep an encoder busy, too.
large_photos() { # COUNT
  local i=0
  mkdir -p "$STATE/large"
  while [ "$i" -lt "$1" ]; do
    jpegtran -progressive -crop "$((2056 - i * 16))x3088+0+0" -outfile "$STATE/large/$(printf '%04d' "$i").jpg" examples/dogs.jpg ||
      return 1
    i=$((i + 1))
  done
}
one_of_each() { [ "$(kn get deployment tokenflex-llm tokenflex-encoder -o jsonpath='{.items[*].status.replicas}')" = "1 1" ]; }
# Load rises to what keeps two and a half LLM pods busy at full detail (PEAK: jobs/s instead), stays, and ends.
prove_scaling() {
  check "scaling: large photos" large_photos 39
  small scaled
  rm -f "$OUT/scaling.ids"
  # What a job costs is measured first, without the autoscalers: they would have the pods for it there before the load comes.
  kn delete hpa --all >/dev/null
  client feed "$OUT/scaling.ids" scaling-warm "$STATE/large" 2:12
  client settle 120
  sleep 20
  applied tests/cluster/small || stop_here "the autoscalers are applied"
  check "scaling: it begins with one pod of each" until_true 600 one_of_each
  local llm_ms encoder_ms peak steps="" i
  llm_ms=$(measured decode_service_ms) encoder_ms=$(measured encode_service_ms)
  peak=${PEAK:-$(awk -v llm="$llm_ms" 'BEGIN { printf "%.2f", 2500 / llm }')}
  say "a job costs an LLM pod $llm_ms ms, an encoder pod $encoder_ms ms at full detail: up to $peak jobs/s"
  for i in 1 2 3 4 5 6; do steps="$steps 15:$(awk -v p="$peak" -v i="$i" 'BEGIN { printf "%.2f", p * i / 6 }')"; done
  rm -f "$STATE/stop"
  python3 tests/cluster/timeline.py record "$OUT/timeline.csv" "$STATE/stop" 2>"$OUT/timeline.log" &
  local recorder=$!
  sleep 10
  # shellcheck disable=SC2086 # a list
  client feed "$OUT/scaling.ids" scaling "$STATE/large" $steps 150:"$peak" || fail "scaling: the load is fed"
  check "scaling: the load ends and is worked off" client settle 600
  check "scaling: pods go again, to one of each" until_true 900 one_of_each
  sleep 5
  touch "$STATE/stop"; wait "$recorder"
  python3 tests/cluster/timeline.py plot "$OUT/timeline.csv" "$OUT/timeline.svg" || fail "scaling: the plot"
  local line
  while read -r line; do
    case $line in ok\ *) pass "scaling: ${line#ok }" ;; *) fail "scaling: $line" ;; esac
  done < <(python3 tests/cluster/timeline.py judge "$OUT/timeline.csv" 2>&1)
  exactly_once scaling
}

under_way() { [ "$(client unfinished)" -gt 0 ]; }
# under_load NAME COMMAND...: what the command does, it does while jobs come and go
under_load() {
  local name=$1; shift
  rm -f "$STATE/stop"
  : >"$OUT/$name.ids"
  client feed "$OUT/$name.ids" "$name" "$STATE/photos" "$STATE/stop:${RATE:-2}" &
  local feeder=$!
  sleep 8
  check "$name: jobs are under way" until_true 20 under_way
  "$@"
  sleep 5
  touch "$STATE/stop"
  wait "$feeder" || fail "$name: the load is fed"
  exactly_once "$name"
  rolled_out 300 || fail "$name: everything is ready again"
}

tasks() { ctr -a /run/containerd/containerd.sock -n k8s.io task ls; }
restarts() { kn get pod "$1" -o jsonpath='{.status.containerStatuses[0].restartCount}'; }
kill_pod() { # POD: SIGKILL of its process, from the node
  local before container process
  before=$(restarts "$1")
  container=$(kn get pod "$1" -o jsonpath='{.status.containerStatuses[0].containerID}')
  process=$(tasks | awk -v id="${container#containerd://}" '$1 == id { print $2 }')
  kill -KILL "$process" || { fail "$1 is killed"; return; }
  check "$1 is started anew" until_true 60 eval "[ \"\$(restarts $1)\" -gt $before ]"
}
prove_kills() {
  small fixed
  local tier
  for tier in router encoder llm; do under_load "kill-$tier" kill_pod "$(pods $tier | cut -d' ' -f1)"; done
  under_load kill-redis kill_pod tokenflex-redis-0
}

evict() { # POD: as a drain of its node does; status 1 where a budget forbids it
  printf '{"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": "%s", "namespace": "tokenflex"}}' "$1" |
    k create --raw "/api/v1/namespaces/tokenflex/pods/$1/eviction" -f - >>"$OUT/evictions.log" 2>&1
}
evict_both() { # TIER: the second only once the first has been replaced
  local first second
  read -r first second <<<"$(pods "$1")"
  check "the first pod of $1 is evicted: $first" evict "$first"
  check "the second one is held by the disruption budget" eval "! evict $second"
  check "and goes once the first is replaced" until_true 200 evict "$second"
  check "$first is gone" until_true 200 eval "! quietly kn get pod $first"
}
prove_eviction() {
  small fixed
  local tier
  for tier in router encoder llm; do under_load "evict-$tier" evict_both "$tier"; done
}

update() { # TIER: another tag of its image
  kn set image "deployment/tokenflex-$1" "$1=tokenflex-$1:next" >/dev/null
  check "$1 is updated" quietly kn rollout status --timeout=300s "deployment/tokenflex-$1"
  # shellcheck disable=SC2016
  check "every pod of $1 runs the new image" until_true 200 eval "[ -z \"\$(kn get pods -l app.kubernetes.io/name=tokenflex-$1 -o jsonpath='{.items[*].spec.containers[0].image}' | tr ' ' '\n' | grep -v :next)\" ]"
}
prove_rollouts() {
  small fixed
  local tier
  for tier in llm encoder router; do under_load "update-$tier" update "$tier"; done
}

redis_uid() { kn get pod tokenflex-redis-0 -o jsonpath='{.metadata.uid} {.status.containerStatuses[0].ready}' 2>/dev/null; }
redis_is_new() { case $(redis_uid) in "$1"*) return 1 ;; *\ true) return 0 ;; *) return 1 ;; esac; } # OLD UID
restart_redis() {
  local before
  before=$(redis_uid)
  kn delete pod tokenflex-redis-0 >/dev/null
  check "Redis comes back as a new pod" until_true 120 redis_is_new "${before% *}"
}
prove_redis() {
  small fixed
  under_load redis-restarted restart_redis
}
