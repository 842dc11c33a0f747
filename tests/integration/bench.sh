#!/usr/bin/env bash
# The bench's profile of CPU time, without the peers or a stack. In: tools/bench/cpu_profile.py. Out: checks on what it makes
# of samples as text, and of a perf that fails.
. "$(dirname "$0")/lib.sh"
while read -r verdict what; do
  case $verdict in ok) pass "$what" ;; *) fail "$what" ;; esac
done < <(PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tools/bench /usr/bin/python3 tests/integration/bench_profile.py "$DIR")
