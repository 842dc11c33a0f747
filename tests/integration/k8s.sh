#!/usr/bin/env bash
# The manifests of k8s/: they render, fit Kubernetes' schemas and each other, and name only options and metrics that exist.
# In: kubectl 1.20 and promtool of Debian (tools/debian-program), schemas (tools/requirements-k8s.txt). Out: one check a rule.
. "$(dirname "$0")/lib.sh"

VENV=$PWD/build/k8s-venv
KUBECTL=$(tools/debian-program kubernetes-client usr/bin/kubectl)
PROMTOOL=$(tools/debian-program prometheus usr/bin/promtool)
check "kubectl is there" test -x "$KUBECTL"
check "promtool is there" test -x "$PROMTOOL"
if ! cmp -s tools/requirements-k8s.txt "$VENV/ready"; then
  rm -rf "$VENV" && python3 -m venv "$VENV" && "$VENV/bin/pip" -q --disable-pip-version-check install --no-deps -r tools/requirements-k8s.txt &&
    cp tools/requirements-k8s.txt "$VENV/ready"
fi
check "the schemas are there" test -s "$VENV/ready"

render() { "$KUBECTL" kustomize "$1" >"$2" 2>"$DIR/render.err"; }
# Everything but KEDA's kinds, whose schema is ours.
without_keda() { "$VENV/bin/python" -c 'import sys, yaml
yaml.safe_dump_all([d for d in yaml.safe_load_all(open(sys.argv[1])) if not d["apiVersion"].startswith("keda.sh/")], open(sys.argv[2], "w"))' "$1" "$2"; }
fits() { "$VENV/bin/kubernetes-validate" --strict --quiet --no-warn -k "$1" "$2" >"$DIR/schema.out" 2>&1 || { tail -n 20 "$DIR/schema.out"; return 1; }; }
whole() { "$VENV/bin/python" tools/check_manifests.py "$BUILD" "$1" --keda k8s/keda-schema.json; }

for folder in k8s/base k8s/overlays/*; do
  name=$(basename "$folder") out=$DIR/$(basename "$folder").yaml
  check "$name renders with kubectl 1.20" render "$folder" "$out"
  without_keda "$out" "$DIR/plain.yaml"
  for version in 1.25 1.34; do check "$name fits the schemas of $version, strictly" fits "$version" "$DIR/plain.yaml"; done
  check "$name: selectors, ports, keys, probes, options, rights" whole "$out"
done
same "two autoscalers by HPA" 2 "$(grep -c '^kind: HorizontalPodAutoscaler' "$DIR/hpa.yaml")"
same "two autoscalers by KEDA, with and without zero" "2 2" "$(grep -c '^kind: ScaledObject' "$DIR/keda.yaml") $(grep -c '^kind: ScaledObject' "$DIR/keda-zero.yaml")"

"$VENV/bin/python" -c 'import re, sys, yaml
trigger = yaml.safe_load(re.search(r"^- type: prometheus\n.*\n", open("docs/KUBERNETES.md").read(), re.M).group())
documents = list(yaml.safe_load_all(open(sys.argv[1])))
for d in documents:
    if d["kind"] == "ScaledObject": d["spec"]["triggers"] = trigger
yaml.safe_dump_all(documents, open(sys.argv[2], "w"))' "$DIR/keda.yaml" "$DIR/prometheus.yaml"
check "the trigger for Prometheus that docs/KUBERNETES.md names fits, too" eval 'grep -q "type: prometheus" "$DIR/prometheus.yaml" && whole "$DIR/prometheus.yaml"'

# What the ConfigMaps say.
env_of() { "$VENV/bin/python" -c 'import sys, yaml
for d in yaml.safe_load_all(open(sys.argv[1])):
    if d["kind"] == "ConfigMap" and d["metadata"]["name"] == sys.argv[2]:
        print("\n".join(f"{k}={v}" for k, v in d["data"].items()))' "$DIR/$overlay.yaml" "$1"; }
overlay=base
QUEUE=$(env_of tokenflex-router | sed -n 's/^TOKENFLEX_QUEUE=//p')
check "the routers' queue is named" test -n "$QUEUE"
key() { echo "tf:{$QUEUE}:$1"; }

# --- what must be found is found
# By the fault that is meant.
refused() { ! cmp -s "$DIR/broken.yaml" "$1" && ! whole "$DIR/broken.yaml" >"$DIR/broken.out" && grep -qF -e "$2" "$DIR/broken.out" || { cat "$DIR/broken.out"; return 1; }; }
broken() { # WHAT, SED EXPRESSION, OVERLAY, WORDS OF THE FAULT
  sed -E "$2" "$DIR/$3.yaml" >"$DIR/broken.yaml"
  check "found: $1" refused "$DIR/$3.yaml" "$4"
}
broken "an option that no program has" 's/TOKENFLEX_KV_TOKENS:/TOKENFLEX_KV_TOKEN:/' base "has no TOKENFLEX_KV_TOKEN"
broken "a secret key that nobody makes" 's/key: deployment.key/key: other.key/' base "has no key other.key"
broken "a port that no container has" 's/targetPort: workers/targetPort: worker/' base "no container has the port worker"
broken "a readiness probe that asks for life only" 's#/readyz#/healthz#' base "readinessProbe asks /healthz"
broken "a writable root" 's/readOnlyRootFilesystem: true/readOnlyRootFilesystem: false/' base "write its root file system"
broken "a grace period shorter than the drain" 's/terminationGracePeriodSeconds: 150/terminationGracePeriodSeconds: 30/' base "killed before 120 s"
broken "a service that selects nothing" 's/^(    app.kubernetes.io\/name: tokenflex-llm)$/\1s/' base "matches 0 workloads"
broken "an autoscaler without its workload" '/scaleTargetRef/,/name:/s/name: tokenflex-llm/name: llm/' hpa "there is no workload llm"
broken "a field that no trigger has" 's/valueLocation:/valuesLocation:/' keda "'valuesLocation' was unexpected"
broken "a trigger that KEDA has not" 's/type: metrics-api/type: metrics-apis/' keda "'metrics-apis' is not one of"
broken "a target that is no number" 's/targetValue: "1"/targetValue: one/' keda "'one' does not match"
broken "a number that is no text" 's/targetValue: "1"/targetValue: 1/' keda "1 is not of type 'string'"
broken "a place that KEDA does not know" 's/cooldownPeriod:/coolDownPeriod:/' keda "'coolDownPeriod' was unexpected"
broken "more pods at least than at most" 's/minReplicaCount: 1/minReplicaCount: 50/' keda "more pods at least than at most"
broken "the demand of the other tier" 's/valueLocation: llm/valueLocation: encoder/' keda "follows the demand of the tier encoder"
broken "a name that KEDA's namespace does not find" 's#//tokenflex-router.tokenflex.svc#//tokenflex-router#' keda "no Service of this namespace by its full name"
broken "a port that the routers do not have" 's#svc:9101/#svc:9102/#' keda "has no port 9102"
broken "zero with nothing to wake it" 's/minReplicaCount: 1/minReplicaCount: 0/' keda "nothing wakes it for a job of each lane"
broken "another queue's stream" "s/tf:\{$QUEUE\}:jobs:0/tf:{other}:jobs:0/" keda-zero "jobs:0 is no lane of the queue"
broken "a lane that wakes nobody" 's/stream: (.*):0/stream: \1:1/' keda-zero "nothing wakes it for a job of each lane"
broken "a group's lag, which a deletion out of order hides" 's/streamLength: .*/consumerGroup: router\n      lagCount: "5"\n      activationLagCount: "0"/' keda-zero "only the stream's length is what is unfinished"
broken "two ways to count" 's/streamLength: .*/&\n      pendingEntriesCount: "5"/' keda-zero "is valid under each of"
broken "a stream's length by a group" 's/streamLength: .*/&\n      consumerGroup: router/' keda-zero "should not be valid under"
broken "rights on another queue's stream" "s/(user tf-scaler .*~tf:\{)$QUEUE(\}:jobs:1)/\1other\2/" keda-zero "Redis' user tf-scaler may see"
broken "another queue of the routers" "s/(TOKENFLEX_QUEUE: )$QUEUE/\1other/" keda-zero "not the lanes of the queue other"
broken "no user for KEDA" 's/user tf-scaler on/user tf-keda on/' keda-zero "Redis has no user tf-scaler"
broken "pods of KEDA's namespace that are not the operator" 's/app: keda-operator/app: keda-metrics/' keda-zero "no NetworkPolicy lets KEDA reach tokenflex-redis"
broken "an authentication that is not there" '/authenticationRef/,/name:/s/tokenflex-redis/tokenflex-scaler/' keda-zero "there is no TriggerAuthentication tokenflex-scaler"
broken "a secret's key that nobody makes" 's/key: username/key: user/' keda-zero "with user is not documented"
broken "the password that may do anything" '/secretTargetRef/,/---/s/tokenflex-scaler/tokenflex-redis/' keda-zero "hands out the password"
broken "a network that keeps KEDA out" 's/metadata.name: keda/metadata.name: other/' keda-zero "no NetworkPolicy lets KEDA reach tokenflex-redis"
broken "routers that would sleep with their workers" 's/(READY_WITHOUT_WORKERS: )"true"/\1"false"/' keda-zero "routers would not be ready"
sed 's/replicas: 2/replica: 2/' "$DIR/base.yaml" >"$DIR/broken.yaml"
check "found: a field that Kubernetes does not know" eval '! fits 1.34 "$DIR/broken.yaml" >/dev/null'

# --- the images: what .dockerignore lets in is all that the programs are made from
in_image=$DIR/context
mkdir "$in_image"
sed -n '/gguf/d; s/^!//p' .dockerignore | while read -r path; do cp -r --parents $path "$in_image" 2>/dev/null; done # $path: a glob
check "an image's build has every file that it needs" make -C "$in_image" --dry-run build
mv "$in_image/tools/embed-status" "$DIR"
check "found: a file that .dockerignore keeps out" eval '! make -C "$in_image" --dry-run build >/dev/null 2>&1'

# --- metrics: rules, dashboard and autoscalers name what the programs register
grep -rhoE '"tokenflex_[a-z_]+"' --include='*.c' common image tensor proto policy router encoder-svc llm-svc | tr -d '"' | sort -u >"$DIR/registered"
named() { grep -ohE 'tokenflex_[a-z_]+' "$@" | sed -E 's/_(bucket|count|sum)$//' | sort -u | comm -23 - "$DIR/registered"; }
check "metrics are registered" test "$(wc -l <"$DIR/registered")" -gt 30
same "the rules name registered metrics" "" "$(named k8s/monitoring/rules.yaml k8s/monitoring/rules_test.yaml)"
same "the dashboard names registered metrics" "" "$(named k8s/monitoring/dashboard.json)"
same "the autoscalers name registered metrics" "" "$(named k8s/overlays/hpa/*.yaml k8s/overlays/keda*/*.yaml)"
check "the dashboard is JSON with a query in every panel" jq -e '[.panels[] | (.targets | length) > 0] | length >= 12 and all' k8s/monitoring/dashboard.json
check "Prometheus accepts the rules" "$PROMTOOL" check rules k8s/monitoring/rules.yaml
check "the alerts fire when they should" "$PROMTOOL" test rules k8s/monitoring/rules_test.yaml
jq -r '.panels[].targets[].expr' k8s/monitoring/dashboard.json | awk 'BEGIN { print "groups:\n  - name: panels\n    rules:" } { gsub(/\047/, "\047\047"); printf "      - record: panel:q%d\n        expr: \047%s\047\n", NR, $0 }' >"$DIR/panels.yaml"
check "Prometheus can parse every panel's query" "$PROMTOOL" check rules "$DIR/panels.yaml"
same "every alert is explained in docs/OPERATIONS.md" "" "$(sed -n 's/^ *- alert: //p' k8s/monitoring/rules.yaml | while read -r alert; do grep -q "$alert" docs/OPERATIONS.md || echo "$alert"; done)"

# --- what a container's first process needs: the options of the ConfigMaps start the programs as they stand there
# Redis with its ConfigMap's file, and the password's line as the init container writes it.
"$BUILD/tokenflex" keygen "$DIR/keys" >/dev/null 2>&1
redis_port=$(free_port)
mkdir "$DIR/secret" "$DIR/scaler"
echo 'a b#%c' >"$DIR/secret/password"
scaler_secret() { printf '%s\n' "$1" >"$DIR/scaler/username"; printf '%s\n' "$2" >"$DIR/scaler/password"; } # USERNAME PASSWORD
scaler_password=aZ09._~+/=-
scaler_secret tf-scaler "$scaler_password"
local_paths() {
  sed -e "s#/run/secrets/redis#$DIR/secret#g; s#/run/secrets/scaler#$DIR/scaler#g; s#/run/redis#$DIR/run#g; s#^dir /data#dir $DIR/data#; s#^port 6379#port $redis_port#"
}
r() { REDISCLI_AUTH='a b#%c' redis-cli -p "$redis_port" --raw "$@" 2>/dev/null; }
redis_of() { # OVERLAY: an empty Redis as it starts it
  rm -rf "$DIR/run" "$DIR/data"
  mkdir "$DIR/run" "$DIR/data"
  "$VENV/bin/python" -c 'import sys, yaml
found = {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(open(sys.argv[1]))}
open(sys.argv[2], "w").write(found["ConfigMap", "tokenflex-redis"]["data"]["redis.conf"])
pod = found["StatefulSet", "tokenflex-redis"]["spec"]["template"]["spec"]
open(sys.argv[3], "w").write(pod["initContainers"][0]["args"][0])' "$DIR/$1.yaml" "$DIR/conf.in" "$DIR/init.in"
  local_paths <"$DIR/conf.in" >"$DIR/redis.conf"
  local_paths <"$DIR/init.in" >"$DIR/init.sh"
  check "$1: the init container's line works" eval 'sh -c "$(cat "$DIR/init.sh")" 2>"$DIR/init.err"'
  start redis redis-server "$DIR/redis.conf" --bind 127.0.0.1
  check "$1: Redis starts with the ConfigMap's file" until_true 10 eval '[ "$(r ping)" = PONG ]'
}
redis_of base
check "it lets nobody in without the password" eval '! redis-cli -p "$redis_port" ping 2>&1 | grep -q PONG'
same "every write is synced" "yes always" "$(r config get appendonly | tail -n 1) $(r config get appendfsync | tail -n 1)"
workers=$(free_port) tensors=$(free_port) health=$(free_port)
in_pod() { # TIER HEALTH-PORT VARIABLES...: the program with the ConfigMap's variables; paths, ports and names of this machine
  local tier=$1; shift
  env_of "tokenflex-$tier" | sed -e "s#/run/secrets/curve#$DIR/keys#; s#/run/secrets/redis#$DIR/secret#; s#tokenflex-redis:6379#127.0.0.1:$redis_port#" \
    -e "s#tokenflex-router:7701#localhost:$workers#; s#0.0.0.0:7701#127.0.0.1:$workers#; s#0.0.0.0:7703#127.0.0.1:$tensors#" \
    -e "s#^TOKENFLEX_HEALTH=.*#TOKENFLEX_HEALTH=127.0.0.1:$((health + $1))#" >"$DIR/$tier.env"
  shift
  mapfile -t variables <"$DIR/$tier.env"
  start "$tier" env "${variables[@]}" "$@" "$BUILD/tokenflex-$tier"
}
in_pod router 0
in_pod llm 1 TOKENFLEX_MODEL="$TINY" TOKENFLEX_TENSOR_ADVERTISE="tcp://127.0.0.1:$tensors"
in_pod encoder 2 TOKENFLEX_MODEL="$TINY" TOKENFLEX_ALLOW_DIR="$PWD/examples"
check "a pair finds its router by name, with keys" until_true 30 model_ready
check "the encoder says how" grep -q "router_found name=localhost endpoint=tcp://127.0.0.1:$workers" "$DIR/encoder.log"
for i in 0 1 2; do check "ready: $i" until_true 20 curl -sf "http://127.0.0.1:$((health + i))/readyz" -o /dev/null; done
r xadd "$(key jobs:1)" '*' id pod-1 uri "file://$PWD/examples/cat.jpg" max_new_tokens 4 >/dev/null
check "a caption comes" until_true 30 eval '[ "$(r xlen "$(key results)")" = 1 ]'
for name in encoder llm router; do
  pid=${PIDS[$name]}; kill -TERM "$pid"; wait "$pid"; same "$name drains and exits 0" 0 "$?"; unset "PIDS[$name]"
done

# --- what KEDA asks, of Redis and a router as overlays/keda-zero starts them: each trigger with its own words
stop redis
overlay=keda-zero
redis_of keda-zero
as_keda() { REDISCLI_AUTH=$scaler_password redis-cli -p "$redis_port" --user tf-scaler --no-auth-warning --raw "$@" 2>&1; }
same "the init container has nothing to say" "" "$(cat "$DIR/init.err")"
same "KEDA's user is there" PONG "$(as_keda ping)"
in_pod router 0
check "ready without workers" until_true 20 curl -sf "http://127.0.0.1:$health/readyz" -o /dev/null
triggers() {
  "$VENV/bin/python" -c 'import sys, yaml
from urllib.parse import urlsplit
for d in yaml.safe_load_all(open(sys.argv[1])):
    for t in d["spec"]["triggers"] if d["kind"] == "ScaledObject" else []:
        m = t["metadata"]
        print(t["type"], *([urlsplit(m["url"]).path, m["valueLocation"]] if "url" in m else [m["stream"]]))' "$DIR/keda-zero.yaml"
}
answers() { # one line: what each trigger reads now; "-": nothing that is a number
  local type what where value line=
  while read -r type what where; do
    case $type in
      metrics-api) value=$(curl -sf "http://127.0.0.1:$health$what" | jq -r --arg at "$where" 'getpath($at | split(".")) | numbers') ;;
      redis-streams) value=$(as_keda xlen "$what" | grep -xE '[0-9]+') ;;
    esac
    line="$line ${value:--}"
  done < <(triggers)
  echo "${line# }"
}
reads() { [ "$(answers)" = "$1" ]; }
check "asleep: every trigger reads 0" until_true 20 reads "0 0 0 0 0 0"
r xadd "$(key jobs:1)" '*' id wakes uri file:///x.jpg >/dev/null
check "a job comes: demand and its lane's length say 1, for each tier" until_true 20 reads "1 0 1 1 0 1"
for denied in "xrange $(key jobs:1) - +" "xadd $(key jobs:1) * id x" "xlen $(key results)" "get $(key policy)" "xinfo groups $(key jobs:1)" "config get *" "keys *"; do
  # shellcheck disable=SC2086 # words of a command
  check "KEDA's user may not: $denied" eval 'set -f; as_keda $denied | grep -q ^NOPERM; set +f'
done
pid=${PIDS[router]}; kill -TERM "$pid"; wait "$pid"; same "the router leaves and exits 0" 0 "$?"; unset "PIDS[router]"
same "the job waits on" 1 "$(r xlen "$(key jobs:1)")"

# What is left behind is told although a group's lag is not known any more: deletions out of order make it nil.
stream=$(key jobs:0)
declare -A entry=()
for name in a b c; do entry[$name]=$(r xadd "$stream" '*' id $name uri file:///x.jpg); done
r xreadgroup GROUP router gone COUNT 3 STREAMS "$stream" '>' >/dev/null
r xdel "$stream" "${entry[b]}" "${entry[c]}" >/dev/null
r xadd "$stream" '*' id d uri file:///x.jpg >/dev/null
same "the lag is not known" "" "$(r xinfo groups "$stream" | sed -n '/^lag$/{n;p}')"
same "the length is" 2 "$(as_keda xlen "$stream")"

# --- a Secret that would break Redis' configuration, or take it over: Redis starts without KEDA's user, and says why
users() { r acl list | sed 's/^user \([^ ]*\).*/\1/' | sort | xargs; }
hostile() { # USERNAME PASSWORD WORDS
  local why=$3
  stop redis
  scaler_secret "$1" "$2"
  redis_of keda-zero >"$DIR/hostile.out"
  check "Redis starts with the scaler's name '$1' and password '$2'" eval '! grep -q ^FAILED "$DIR/hostile.out" && [ "$(users)" = default ]'
  check "and the log says why KEDA has no user" eval 'grep -qF "Secret tokenflex-scaler: $why" "$DIR/init.err"'
}
for name in default '' 'tf scaler' 'tf-scaler"' 'tf-scaler on nopass +@all' $'tf-scaler\nrename-command GET ""'; do hostile "$name" "$scaler_password" "the username"; done
for password in '' 'a b' 'a"b' 'a\' "a'b" 'a#b' $'a\nuser default on nopass ~* +@all' 'a>b' 'ä'; do hostile tf-scaler "$password" "the password"; done
stop redis
rm -r "$DIR/scaler"
redis_of keda-zero
same "without the Secret, too" default "$(users)"
