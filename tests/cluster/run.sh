#!/usr/bin/env bash
# `make k8s-test`: a real control plane on this machine, our images and manifests on it, and what they must prove.
# In: root, Debian 12, a build and build/model; K8S_WORK (build/k8s-test); ONLY (names of proofs). Out: a line a check and one that sums
# up; status 1 on any failure. Everything runs in namespaces of its own, which end with this script however it ends.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" -eq 0 ] || die "needs root, for namespaces and containers"
[ -e /sys/fs/cgroup/cpu/cpu.cfs_quota_us ] || die "no cgroups v1 with CPU limits here (boot with systemd.unified_cgroup_hierarchy=0)"
exec 9>"$WORK/lock"
flock -n 9 || die "another run uses $WORK"

inside=
finish() {
  trap - EXIT INT TERM
  # The first process of the namespace dies with this, and with it everything in there; mounts and network go by themselves.
  if [ -n "$inside" ]; then kill -KILL "$inside" 2>/dev/null; wait "$inside" 2>/dev/null || true; fi
  remove_cgroups
  rm -rf "$WORK/state"
}
remove_cgroups() {
  local name hierarchy
  name=tokenflex-k8s-$(cksum <<<"$WORK" | cut -d' ' -f1)
  for hierarchy in /sys/fs/cgroup/*/ /sys/fs/cgroup/; do
    [ -d "$hierarchy$name" ] || continue
    for _ in 1 2 3 4 5; do # processes that were killed take a moment to leave
      find "$hierarchy$name" -depth -type d -exec rmdir {} + 2>/dev/null && break
      sleep 0.5
    done
  done
}
trap finish EXIT
trap 'exit 130' INT TERM

# --- programs and images
say "packages"
tools/install-packages run test cluster
unpacked etcd-server containerd containernetworking-plugins conntrack dnsmasq-base libdbus-1-3 libnftables1
tools/debian-program kubernetes-client usr/bin/kubectl >/dev/null
tests/cluster/build-kubernetes
say "images"
tests/cluster/build-test-images

# --- the cluster, in a machine of its own
remove_cgroups
rm -rf "$WORK/state"
rm -rf "$WORK/out"
mkdir -p "$WORK/state" "$WORK/out"
# The kernel ends what is inside when this script is gone, whatever ended it.
setpriv --pdeathsig KILL unshare --mount --net --pid --ipc --uts --fork --kill-child --mount-proc bash tests/cluster/inside.sh </dev/null &
inside=$!
status=0
wait "$inside" || status=$?
inside=
exit "$status"
