# Shared by the integration tests: a folder, a real redis-server, processes that are all stopped at the end, checks that count.
# In: BUILD (default build/release). Out: functions; on exit "N passed, N failed" and the status that goes with it.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
BUILD=${BUILD:-build/release}
TINY=$PWD/tests/golden/data/tiny
DIR=$(mktemp -d "${TMPDIR:-/tmp}/tf-test-XXXXXX")
declare -A PIDS=()
export TOKENFLEX_CACHE_DIR=off # nothing of a test stays in the user's cache
passed=0 failed=0

finish() {
  local status=$?
  trap - EXIT INT TERM
  # A script ends with a check, which is true: any other end is one that bash forced (an unset name, a syntax error) or an exit.
  [ "$status" -eq 0 ] || fail "$0 runs to its end (it stopped with status $status)"
  local name
  for name in "${!PIDS[@]}"; do stop "$name" KILL; done
  if grep -lqE 'ERROR: (LeakSanitizer|AddressSanitizer)|WARNING: ThreadSanitizer|runtime error:' "$DIR"/*.log 2>/dev/null; then
    grep -hE -A 25 'Sanitizer|runtime error:' "$DIR"/*.log | head -n 80
    fail "no sanitizer complains"
  fi
  [ "$failed" -ne 0 ] && for log in "$DIR"/*.log; do [ -s "$log" ] && { echo "--- $log"; tail -n 15 "$log"; }; done
  [ -n "${KEEP:-}" ] && cp -r "$DIR" "$KEEP"; rm -rf "$DIR"
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
  exit $?
}
trap finish EXIT
trap 'failed=$((failed + 1)); finish' INT TERM

pass() { passed=$((passed + 1)); echo "ok      $1"; }
fail() { failed=$((failed + 1)); echo "FAILED  $1"; }
# check "what must hold" COMMAND...
check() { local what=$1; shift; if "$@"; then pass "$what"; else fail "$what"; fi; }
# same "what" expected actual
same() { if [ "$2" = "$3" ]; then pass "$1"; else fail "$1: expected '$2', got '$3'"; fi; }

# start NAME COMMAND...: in the background, output in $DIR/NAME.log
start() {
  local name=$1; shift
  "$@" >"$DIR/$name.log" 2>&1 </dev/null &
  PIDS[$name]=$!
}
# stop NAME [SIGNAL]: and reap
stop() {
  local pid=${PIDS[$1]:-}
  [ -n "$pid" ] || return 0
  kill -"${2:-TERM}" "$pid" 2>/dev/null
  [ "${2:-TERM}" = KILL ] && kill -CONT "$pid" 2>/dev/null
  wait "$pid" 2>/dev/null
  unset "PIDS[$1]"
}
alive() { kill -0 "${PIDS[$1]}" 2>/dev/null; }

# until_true SECONDS COMMAND...: polls; false when time is over
until_true() {
  local deadline=$(($(date +%s) + $1)); shift
  until "$@"; do [ "$(date +%s)" -ge "$deadline" ] && return 1; sleep 0.2; done
}

r() { redis-cli -s "$DIR/redis.sock" --raw "$@"; }
start_redis() {
  start redis redis-server --port 0 --unixsocket "$DIR/redis.sock" --save "" --appendonly no --dir "$DIR" "$@"
  until_true 10 eval '[ "$(r ping 2>/dev/null)" = PONG ]' || fail "redis-server starts"
}
free_port() { # a loopback port that nobody listens on now
  local port
  while :; do
    port=$((20000 + RANDOM % 20000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}
model_ready() { [ -n "$(r hget "tf:{${QUEUE:-default}}:model" token_counts)" ]; }

# crops FOLDER COUNT: distinct JPEG crops of the example photos (lossless, so made in no time)
crops() {
  local out=$1 count=$2 i=0 photo w h x y
  local photos=(examples/*.jpg)
  mkdir -p "$out"
  while [ "$i" -lt "$count" ]; do
    photo=${photos[$((i % ${#photos[@]}))]}
    w=$((160 + 8 * (i % 9))) h=$((112 + 8 * (i % 5))) x=$((16 * (i / ${#photos[@]} % 4))) y=$((8 * (i / ${#photos[@]} / 4)))
    jpegtran -crop "${w}x$h+$x+$y" -outfile "$(printf '%s/crop%04d.jpg' "$out" "$i")" "$photo" || return 1
    i=$((i + 1))
  done
}

# other_model FOLDER: the tiny model with one bit of one weight changed, so that its pair hash is another
other_model() {
  local file last
  mkdir "$1" && cp "$TINY"/*.gguf "$1/" && chmod u+w "$1"/*.gguf || return 1
  for file in "$1"/*adapter*.gguf; do
    last=$(($(stat -c %s "$file") - 4))
    # shellcheck disable=SC2059 # the byte is made by the format
    printf "\\x$(printf %02x $(($(od -An -tu1 -j "$last" -N 1 "$file") ^ 1)))" |
      dd of="$file" bs=1 seek="$last" conv=notrunc status=none || return 1
  done
}

# make_worker NAME FILE: tests/integration/NAME.c (fake_worker, timed_worker) with the flags of this build
make_worker() {
  local flags="-O1 -g"
  case $BUILD in *asan*) flags="$flags -fsanitize=address,undefined" ;; *tsan*) flags="$flags -fsanitize=thread" ;; esac
  # shellcheck disable=SC2086,SC2046 # lists of flags
  ${CC:-cc} -std=c11 -D_GNU_SOURCE $flags -I. -I"$BUILD/gen" -o "$2" "tests/integration/$1.c" "$BUILD"/obj/common/*.o "$BUILD"/obj/gen/lua_scripts.o \
    "$BUILD"/obj/proto/*.o "$BUILD"/obj/gen/proto/*.o -pthread $(pkg-config --libs libzmq libprotobuf-c hiredis libmicrohttpd) -lm
}
