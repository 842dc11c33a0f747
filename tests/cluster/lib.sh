#!/usr/bin/env bash
# Shared by the scripts of `make k8s-test`: where things lie, and how Debian packages get there without being installed.
# In: K8S_WORK (build/k8s-test), the scratch folder. Out: WORK, ROOT, NODE_IP and functions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
mkdir -p "${K8S_WORK:-build/k8s-test}"
WORK=$(cd "${K8S_WORK:-build/k8s-test}" && pwd)
ROOT=$WORK/root             # unpacked Debian packages
KUBE=$WORK/kubernetes/bin   # what was built from the source package
NODE_IP=10.77.0.1           # inside the private network namespace only
DNS_IP=10.77.0.1
export WORK ROOT KUBE NODE_IP DNS_IP

say() { printf 'k8s-test: %s (%ds)\n' "$*" "$SECONDS"; }
die() { echo "k8s-test: $*" >&2; exit 1; }

# until_true SECONDS COMMAND...: polls; false when time is over
until_true() {
  local deadline=$(($(date +%s) + $1)); shift
  until "$@"; do [ "$(date +%s)" -lt "$deadline" ] || return 1; sleep 0.3; done
}

# apt with lists and caches in the scratch folder; sources are the machine's own Debian ones, with their sources packages.
APT="-o Dir::Etc::SourceList=$WORK/apt/sources.list -o Dir::Etc::SourceParts=- -o Dir::State::Lists=$WORK/apt/lists
  -o Dir::Cache=$WORK/apt/cache -o APT::Sandbox::User=root -o APT::Get::List-Cleanup=false"
debian_sources() { # prints the machine's lines of Debian itself, for packages and with $1=deb-src for sources
  apt-get indextargets --format "${1:-deb} [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \$(REPO_URI) \$(CODENAME) \$(COMPONENT)" \
    'Created-By: Packages' 'Origin: Debian' | sort -u
}
apt_ready() {
  [ -e "$WORK/apt/ready" ] && return
  mkdir -p "$WORK/apt/lists/partial" "$WORK/apt/cache/archives/partial"
  { debian_sources deb; debian_sources deb-src; } >"$WORK/apt/sources.list"
  [ -s "$WORK/apt/sources.list" ] || die "apt knows no Debian sources here: apt-get update first"
  # shellcheck disable=SC2086 # words
  apt-get -qq $APT update
  touch "$WORK/apt/ready"
}
# unpacked PACKAGE...: below $ROOT
unpacked() {
  local package
  for package in "$@"; do
    [ -e "$ROOT/.have/$package" ] && continue
    apt_ready
    mkdir -p "$WORK/debs/$package" "$ROOT/.have"
    # shellcheck disable=SC2086
    (cd "$WORK/debs/$package" && apt-get -qq $APT download "$package" && dpkg-deb -x ./*.deb "$ROOT")
    rm -rf "$WORK/debs/$package"
    touch "$ROOT/.have/$package"
  done
}
