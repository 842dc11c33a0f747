#!/usr/bin/env bash
# The first process of the private machine: brings the cluster up, applies the manifests, runs the proofs (proofs.sh), sums up.
# In: what run.sh prepared; ONLY, a pattern of proofs' names. Out: a line a check; logs in $WORK/out; status 1 on any failure.
. "$(dirname "$0")/up.sh"
set +e
export PYTHONDONTWRITEBYTECODE=1
OUT=$WORK/out BUILD=${BUILD:-build/release}
TAG=$(sed -n 's/^#define TF_VERSION "\(.*\)"/\1/p' common/options.h)
passed=0 failed=0
pass() { passed=$((passed + 1)); echo "ok      $1"; }
fail() { failed=$((failed + 1)); echo "FAILED  $1"; }
# check "what must hold" COMMAND...
check() { local what=$1; shift; if "$@"; then pass "$what"; else fail "$what"; fi; }

keep_logs() {
  cp "$STATE"/*.log "$OUT" 2>/dev/null
  k get events -A --sort-by=.lastTimestamp >"$OUT/events" 2>&1
  k get all -A -o wide >"$OUT/objects" 2>&1
  kn describe pods >"$OUT/pods" 2>&1
  local pod
  for pod in $(kn get pods -o name 2>/dev/null); do
    kn logs --tail=2000 "$pod" >"$OUT/${pod#pod/}.log" 2>&1
    kn logs --previous --tail=2000 "$pod" >"$OUT/${pod#pod/}.before.log" 2>/dev/null || rm -f "$OUT/${pod#pod/}.before.log"
  done
}
stop_here() { fail "$1"; keep_logs; sum_up; exit 1; }
sum_up() {
  awk -v passed="$passed" -v failed="$failed" -v seconds="$SECONDS" '{ ids += $1; captions += $3; wrong += $8 }
    END { printf "k8s-test: %d passed, %d failed; %d ids, %d captions, %d not exactly once; %d s in the cluster\n", passed, failed, ids, captions, wrong, seconds }' "$OUT/counts"
}

# --- manifests: as they are, but for versions of the API that 1.20 does not have yet
applied() { # FOLDER
  "$KUBECTL" kustomize "$1" >"$OUT/rendered.yaml" || return 1
  sed -E 's#^apiVersion: autoscaling/v2$#apiVersion: autoscaling/v2beta2#; s#^apiVersion: policy/v1$#apiVersion: policy/v1beta1#' "$OUT/rendered.yaml" |
    k apply -f - >"$OUT/applied.log" 2>&1 || { cat "$OUT/applied.log"; return 1; }
}
rolled_out() { # SECONDS
  local what
  for what in statefulset/tokenflex-redis deployment/tokenflex-router deployment/tokenflex-encoder deployment/tokenflex-llm; do
    kn rollout status --timeout="$1s" "$what" >>"$OUT/rollout.log" 2>&1 || { tail -n 2 "$OUT/rollout.log"; kn get pods; return 1; }
  done
}
secrets() {
  "$BUILD/tokenflex" keygen "$STATE/curve" >/dev/null 2>&1 &&
    k create namespace tokenflex >/dev/null &&
    kn create secret generic tokenflex-curve --from-file="$STATE/curve/deployment.key" >/dev/null &&
    kn create secret generic tokenflex-redis --from-literal=password="$PASSWORD" >/dev/null
}
pods() { # TIER: names of those that are ready and stay
  kn get pods -l "app.kubernetes.io/name=tokenflex-$1" -o json | jq -r '[.items[] | select(.metadata.deletionTimestamp == null and
    any(.status.conditions[]?; .type == "Ready" and .status == "True")) | .metadata.name] | join(" ")'
}

# --- photos: crops of the examples, all different; or those of PHOTOS
photos() { # COUNT
  mkdir -p "$STATE/photos"
  if [ -n "${PHOTOS:-}" ]; then
    find "$PHOTOS" -maxdepth 1 -name '*.jpg' | sort | head -n "$1" | while read -r photo; do cp "$photo" "$STATE/photos/"; done
  else
    local i=0 photo files=()
    for photo in examples/*.jpg; do # those that are large enough for every crop
      if jpegtran -crop 256x224+48+64 -outfile "$STATE/photo" "$photo" 2>/dev/null; then files+=("$photo"); fi
    done
    while [ "$i" -lt "$1" ]; do
      photo=${files[i % ${#files[@]}]}
      # Steps of 16 pixels, so that no crop is another's.
      jpegtran -crop "256x224+$((i / ${#files[@]} % 4 * 16))+$((i / ${#files[@]} / 4 * 16))" -outfile "$STATE/photos/$(printf '%04d' "$i").jpg" "$photo" 2>/dev/null || return 1
      i=$((i + 1))
    done
  fi
  chmod -R a+rX "$STATE/photos"
  [ "$(find "$STATE/photos" -name '*.jpg' | wc -l)" -eq "$1" ]
}

: >"$OUT/counts"
say "cluster"
cluster_up
pass "a node is ready: $(k get nodes -o jsonpath='{.items[0].status.nodeInfo.kubeletVersion} {.items[0].status.nodeInfo.containerRuntimeVersion}')"
PASSWORD=$(openssl rand -hex 16)
export PASSWORD REDIS=tokenflex-redis.tokenflex.svc.cluster.local:6379
. tests/cluster/proofs.sh
photos 200 || stop_here "200 photos are there"
secrets || stop_here "secrets are made"
for proof in photos scaling kills eviction rollouts redis; do
  if [[ $proof =~ ${ONLY:-.} ]]; then say "$proof" && "prove_$proof"; fi
done
keep_logs
sum_up
[ "$failed" -eq 0 ]
