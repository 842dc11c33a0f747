#!/usr/bin/env bash
# Brings up one node of Kubernetes 1.20 inside the namespaces that `tests/cluster/inside` made; nothing of it is seen outside.
# In: WORK with what run.sh prepared. Out: STATE (keys, logs, data), a Ready node, kubectl as k(); everything dies with the namespaces.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
STATE=$WORK/state PKI=$WORK/state/pki
CGROUP=tokenflex-k8s-$(cksum <<<"$WORK" | cut -d' ' -f1)
export STATE PKI
KUBECTL=$(tools/debian-program kubernetes-client usr/bin/kubectl)
k() { "$KUBECTL" --kubeconfig "$PKI/admin.conf" "$@"; }
kn() { k -n tokenflex "$@"; }

# --- the machine: names of the network, folders that programs have fixed names for, settings that are left as they are
private_machine() {
  set -e # a mount that fails would leave the machine's own folder in its place
  ip link set lo up
  ip link add br0 type bridge
  ip addr add "$NODE_IP/24" dev br0
  ip link set br0 up
  ip route add default via 10.77.0.254 dev br0 # kubelet and apiserver ask for a default route; nobody is there
  mkdir -p "$STATE"/{lib,log,hostname} "$WORK/empty"
  mount -t tmpfs -o size=64m tmpfs /run
  mkdir -p /run/netns /run/containerd
  mount --bind "$STATE/lib" /var/lib
  mount --bind "$STATE/log" /var/log
  [ -d /opt/cni ] && mount --bind "$WORK/empty" /opt/cni
  # kubelet sets these for the whole machine unless they have its values: it sees that they have.
  local pair file
  for pair in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 \
    kernel/keys/root_maxbytes=25000000; do
    file=/run/sysctl-${pair//\//-}
    echo "${pair#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${pair%=*}"
  done
  echo 1 >/proc/sys/net/ipv4/ip_forward
  # A resolver of the cluster's own for what runs on the node as well.
  printf 'nameserver %s\nsearch tokenflex.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n' "$DNS_IP" >/run/resolv.conf
  mount --bind /run/resolv.conf "$(realpath -m /etc/resolv.conf)"
  local hierarchy
  for hierarchy in /sys/fs/cgroup/*/; do
    [ -e "$hierarchy/cgroup.procs" ] || continue
    mkdir -p "$hierarchy$CGROUP"
    case $hierarchy in
      */cpuset/)
        cat "$hierarchy/cpuset.cpus" >"$hierarchy$CGROUP/cpuset.cpus"
        cat "$hierarchy/cpuset.mems" >"$hierarchy$CGROUP/cpuset.mems"
        ;;
      */cpu/) echo "${K8S_CPU_SHARES:-$((1024 * $(nproc)))}" >"$hierarchy$CGROUP/cpu.shares" ;; # all pods together, against the machine's rest
    esac
  done
  set +e
}

# --- keys
signed() { # NAME SUBJECT [ALTERNATIVE NAMES]
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$PKI/$1.key" -subj "$2" -out "$PKI/$1.csr" 2>/dev/null
  openssl x509 -req -in "$PKI/$1.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 2 -out "$PKI/$1.crt" \
    -extfile <(echo "subjectAltName=${3:-DNS:none}") 2>/dev/null
}
kubeconfig() { # FILE NAME
  cat >"$PKI/$1" <<END
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: here, user: here}}]
clusters: [{name: here, cluster: {server: "https://$NODE_IP:6443", certificate-authority: $PKI/ca.crt}}]
users: [{name: here, user: {client-certificate: $PKI/$2.crt, client-key: $PKI/$2.key}}]
END
}
keys() {
  mkdir -p "$PKI" && chmod 700 "$PKI"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$PKI/ca.key" -subj /CN=test-ca -days 2 -out "$PKI/ca.crt" 2>/dev/null
  openssl genrsa -out "$PKI/sa.key" 2048 2>/dev/null
  openssl rsa -in "$PKI/sa.key" -pubout -out "$PKI/sa.pub" 2>/dev/null
  signed apiserver /CN=kube-apiserver "IP:127.0.0.1,IP:$NODE_IP,IP:10.96.0.1,DNS:localhost,DNS:kubernetes"
  signed kubelet-client /O=system:masters/CN=apiserver-to-kubelet
  signed front-proxy /CN=front-proxy
  signed admin /O=system:masters/CN=admin
  signed node /O=system:nodes/CN=system:node:node1 "IP:$NODE_IP,DNS:node1"
  signed adapter /CN=adapter "DNS:external-metrics.kube-system.svc"
  kubeconfig admin.conf admin
  kubeconfig node.conf node
}

# --- programs; their logs are $STATE/NAME.log
run() { # NAME COMMAND...
  local name=$1; shift
  "$@" >"$STATE/$name.log" 2>&1 </dev/null &
  echo $! >"$STATE/$name.pid"
}
control_plane() {
  run etcd "$ROOT/usr/bin/etcd" --data-dir "$STATE/etcd" --unsafe-no-fsync=true --listen-client-urls http://127.0.0.1:2379 \
    --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
  run apiserver "$KUBE/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --advertise-address="$NODE_IP" \
    --secure-port=6443 --cert-dir="$STATE" --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" \
    --client-ca-file="$PKI/ca.crt" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --service-cluster-ip-range=10.96.0.0/16 --service-account-key-file="$PKI/sa.pub" --service-account-signing-key-file="$PKI/sa.key" \
    --service-account-issuer=https://kubernetes.default.svc --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --kubelet-client-certificate="$PKI/kubelet-client.crt" --kubelet-client-key="$PKI/kubelet-client.key" \
    --requestheader-client-ca-file="$PKI/ca.crt" --requestheader-allowed-names=front-proxy --requestheader-username-headers=X-Remote-User \
    --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$PKI/front-proxy.crt" --proxy-client-key-file="$PKI/front-proxy.key" --enable-aggregator-routing=true
  until_true 60 eval 'k get --raw /readyz >/dev/null 2>&1' || die "the apiserver does not get ready: $STATE/apiserver.log"
  run controller-manager "$KUBE/kube-controller-manager" --kubeconfig="$PKI/admin.conf" --service-account-private-key-file="$PKI/sa.key" \
    --root-ca-file="$PKI/ca.crt" --leader-elect=false --bind-address="$NODE_IP" --cert-dir="$STATE/kcm"
  run scheduler "$KUBE/kube-scheduler" --kubeconfig="$PKI/admin.conf" --leader-elect=false --bind-address="$NODE_IP" --cert-dir="$STATE/scheduler"
}
node() {
  cat >"$STATE/containerd.toml" <<END
version = 2
root = "$STATE/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$ROOT/usr/lib/cni"
    conf_dir = "$STATE/cni"
END
  mkdir -p "$STATE/cni"
  cat >"$STATE/cni/10-bridge.conflist" <<'END'
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
  cat >"$STATE/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $NODE_IP
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
clusterDNS: [$DNS_IP]
clusterDomain: cluster.local
resolvConf: ""
failSwapOn: false
oomScoreAdj: 0
authentication: {anonymous: {enabled: false}, x509: {clientCAFile: $PKI/ca.crt}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
tlsCertFile: $PKI/node.crt
tlsPrivateKeyFile: $PKI/node.key
nodeStatusUpdateFrequency: 4s
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 10Mi, nodefs.available: 1%, imagefs.available: 1%}
maxPods: 40
END
  export PATH=$ROOT/usr/bin:$ROOT/usr/sbin:$PATH
  # Loading is kept from run to run: layers are linked, as nobody writes to them, databases copied.
  if ! cmp -s "$WORK/images/ids" "$WORK/containerd/ids"; then
    rm -rf "$WORK/containerd"
    containerd_up
    load_images
    kill "$(cat "$STATE/containerd.pid")"
    wait "$(cat "$STATE/containerd.pid")" || true
    mv "$STATE/containerd" "$WORK/containerd"
    cp "$WORK/images/ids" "$WORK/containerd/ids"
  fi
  cp -al "$WORK/containerd" "$STATE/containerd"
  find "$STATE/containerd" -name '*.db' -exec cp {} {}.copy \; -exec mv {}.copy {} \;
  containerd_up
  run kubelet "$KUBE/kubelet" --config="$STATE/kubelet.yaml" --kubeconfig="$PKI/node.conf" --hostname-override=node1 --node-ip="$NODE_IP" \
    --container-runtime=remote --container-runtime-endpoint=unix:///run/containerd/containerd.sock --root-dir="$STATE/kubelet" \
    --cert-dir="$STATE/kubelet-pki"
  run kube-proxy "$KUBE/kube-proxy" --kubeconfig="$PKI/admin.conf" --proxy-mode=iptables --cluster-cidr=10.244.0.0/16 --hostname-override=node1 \
    --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 --bind-address="$NODE_IP" \
    --oom-score-adj=0
}
containerd_up() {
  run containerd containerd -c "$STATE/containerd.toml"
  until_true 30 eval 'images ls >/dev/null 2>&1' || die "containerd does not start: $STATE/containerd.log"
}
load_images() {
  local archive name
  for archive in "$WORK"/images/*.tar; do images import "$archive" >/dev/null || die "can not load $archive"; done
  # A name without a registry is docker.io's to Kubernetes. `next` is the same again under another name, for updates.
  images ls -q | sed -n 's#^localhost/\(tokenflex-.*\)#\1#p' | while read -r name; do
    images tag --force "localhost/$name" "docker.io/library/$name" >/dev/null
    images tag --force "localhost/$name" "docker.io/library/${name%:*}:next" >/dev/null
  done
}
images() { ctr -a /run/containerd/containerd.sock -n k8s.io images "$@"; }

# --- what a cluster has beside Kubernetes: names, and a server of the external metric
add_ons() {
  : >"$STATE/hosts"
  LD_LIBRARY_PATH=$ROOT/usr/lib/x86_64-linux-gnu run dnsmasq "$ROOT/usr/sbin/dnsmasq" --keep-in-foreground --conf-file=/dev/null --user=root \
    --group=root --pid-file= --no-resolv --no-hosts --addn-hosts="$STATE/hosts" --local=/cluster.local/ --listen-address="$DNS_IP" \
    --bind-interfaces --log-facility=-
  HOSTS=$STATE/hosts DNSMASQ_PID=$(cat "$STATE/dnsmasq.pid") run dns python3 tests/cluster/dns.py
  run adapter python3 tests/cluster/adapter.py
  k apply -f - >/dev/null <<END
apiVersion: v1
kind: Service
metadata: {name: external-metrics, namespace: kube-system}
spec: {ports: [{port: 443, targetPort: 6444}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: external-metrics, namespace: kube-system}
subsets: [{addresses: [{ip: $NODE_IP}], ports: [{port: 6444}]}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.external.metrics.k8s.io}
spec:
  group: external.metrics.k8s.io
  version: v1beta1
  service: {name: external-metrics, namespace: kube-system, port: 443}
  caBundle: $(base64 -w0 "$PKI/ca.crt")
  groupPriorityMinimum: 100
  versionPriority: 100
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: redis}
spec:
  capacity: {storage: 20Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  local: {path: $STATE/redis-volume}
  nodeAffinity:
    required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node1]}]}]}
END
  mkdir -p "$STATE/redis-volume"
}

cluster_up() {
  private_machine
  keys
  control_plane
  node
  add_ons
  until_true 60 eval '[ "$(k get node node1 -o jsonpath="{.status.conditions[?(@.type==\"Ready\")].status}" 2>/dev/null)" = True ]' ||
    die "the node does not get ready: $STATE/kubelet.log"
  until_true 30 eval 'k get --raw /apis/external.metrics.k8s.io/v1beta1 >/dev/null 2>&1' || die "no external metrics: $STATE/adapter.log"
}
