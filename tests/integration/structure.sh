#!/usr/bin/env bash
# The dependency rule: includes point one way, services never include each other, generated code stays inside wire.c.
# In: the source tree. Out: one check a rule.
. "$(dirname "$0")/lib.sh"

# part -> what it may include beside itself
declare -A MAY=(
  [common]="common" [tensor]="common tensor" [proto]="common proto"
  [router]="common proto router" [encoder-svc]="common tensor proto encoder-svc" [llm-svc]="common tensor proto llm-svc"
  [cli]="common tensor proto cli"
)
for part in "${!MAY[@]}"; do
  bad=$(grep -rhoE '^#include "[a-z-]+/' "$part" --include='*.[ch]' | sed -E 's/.*"([a-z-]+)\/.*/\1/' | sort -u |
    while read -r used; do case " ${MAY[$part]} " in *" $used "*) ;; *) echo "$used" ;; esac; done)
  if [ "$part" = proto ]; then bad=$(echo "$bad" | grep -v '^proto$'); fi
  same "$part includes only ${MAY[$part]}" "" "$bad"
  check "$part has sources" test -n "$(ls "$part"/*.c)"
done
same "only wire.c knows the generated code" "proto/wire.c" "$(grep -rlE 'pb-c\.h' common tensor proto router encoder-svc llm-svc cli --include='*.[ch]' | sort | tr '\n' ' ' | sed 's/ $//')"
same "no file of ours past 800 lines" "" "$(find common tensor proto router encoder-svc llm-svc cli tools tests -name '*.[ch]' -o -name '*.py' | xargs wc -l | awk '$2 != "total" && $1 > 800 {print $2}')"
same "goldens stay under 2.5 MB" "" "$(find tests/golden/data -type f -printf "%s\n" | awk "{ s += \$1 } END { if (s >= 2500000) print s }")"
