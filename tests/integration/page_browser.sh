#!/usr/bin/env bash
# The status page in headless Chromium: what it shows of a live router, and that Retry and Drop work by hand.
# In: tokenflex-router, fake_worker.c, browser.py. Out: checks on the page's DOM at two widths; nothing in its console.
# SHOTS=DIR keeps pictures of it.
. "$(dirname "$0")/lib.sh"

if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then
  echo "SKIP: there is no Chromium here, the page's script and looks are not tested"
  pass "skipped: no Chromium"
  exit 0
fi
fake="$DIR/fake_worker"
make_worker fake_worker "$fake" || { fail "the fake worker compiles"; exit 1; }
start_redis
port=$(free_port)
TOKEN=0123456789abcdefghij
(umask 077 && echo "$TOKEN" >"$DIR/token")
key() { echo "tf:{default}:$1"; }
add() { r xadd "$(key jobs:1)" '*' "$@" >/dev/null; }
ended() { [ "$(r xlen "$(key results)")" -ge "$1" ]; }
browse() { # WIDTH STEPS...: each step is a check
  local width=$1 line lines=0; shift
  while read -r line; do
    lines=$((lines + 1))
    case $line in "ok "*) pass "$width: ${line#ok }" ;; *) fail "$width: ${line#FAILED }" ;; esac
  done < <(SHOT="page-$width" timeout 300 tests/integration/browser.py "http://127.0.0.1:$port/" "$width" 900 "$@" 2>&1)
  same "$width: every step was tried" $(($# / 2 + 1)) "$lines"
}
text() { echo "document.querySelector('$1').textContent"; }
rows() { echo "document.querySelectorAll('#$1 tbody tr').length"; }
FITS='document.documentElement.scrollWidth <= innerWidth'

start router "$BUILD/tokenflex-router" --redis "unix://$DIR/redis.sock" --bind "ipc://$DIR/router.sock" --health "127.0.0.1:$port" \
  --page-token-file "$DIR/token" --peer-timeout-ms 1000 --log-level debug
until_true 10 curl -s -o /dev/null "http://127.0.0.1:$port/healthz"
browse 1280 \
  "it says what is missing" "$(text '#state') === 'Waiting: no encoder'" \
  "no workers" "document.querySelector('#workers').hidden && $(text '#workers-none').includes('No workers yet')" \
  "no captions" "$(text '#captions-none').includes('No captions through this router')" \
  "no dead letters" "$(text '#letters-none').includes('No dead letters')" \
  "no buttons" "$(rows letters) === 0 && document.querySelector('#acts-h').hidden"

start w "$fake" "ipc://$DIR/router.sock" w
add id '<img src=x onerror=alert(1)>' uri file:///a.jpg
add id '<script>document.title="taken"</script>' uri file:///b.jpg unheard '<b>of</b>'
for i in 1 2 3; do add id "once-$i" uri file:///c.jpg; done
r xadd "$(key dead)" '*' id again uri file:///d.jpg error_code timeout error_message 'no answer' attempts 3 >/dev/null
r xadd "$(key dead)" '*' id never uri file:///e.jpg error_code image_corrupt error_message '</td><td>x' attempts 1 >/dev/null
check "jobs end" until_true 20 ended 4
browse 1280 \
  "it runs" "$(text '#state') === 'Running'" \
  "the title is its own" "document.title === 'default – tokenflex'" \
  "both workers" "$(rows workers) === 2" \
  "every caption" "$(rows captions) === 4" \
  "hostile ids are text" "$(text '#captions tbody').includes('<img src=x onerror=alert(1)>') && !document.querySelector('main img, main script, table b')" \
  "three dead letters" "$(rows letters) === 3" \
  "their messages are text" "$(text '#letters tbody').includes('</td><td>x')" \
  "their number is at the top" "$(text '#figures').includes('3letters')" \
  "four plots with lines" "document.querySelectorAll('.plot svg').length === 4 && [...document.querySelectorAll('.plot path')].some(p => (p.getAttribute('d') || '').includes('L'))" \
  "every plot can be heard" "[...document.querySelectorAll('.plot')].every(p => p.getAttribute('aria-label').includes('last 15 minutes'))" \
  "every table has its heads" "[...document.querySelectorAll('table.rows th')].every(t => t.scope === 'col')" \
  "no button without the token" "![...document.querySelectorAll('#letters button.retry')].some(b => b.offsetParent)" \
  "a wrong token" "(document.querySelector('#token').value = 'x$TOKEN', document.querySelector('#unlock button').click(), true)" \
  "is told" "$(text '#said').includes('not the token')" \
  "the token" "(document.querySelector('#token').value = '$TOKEN', document.querySelector('#unlock button').click(), true)" \
  "brings buttons" "[...document.querySelectorAll('#letters button.retry')].filter(b => b.offsetParent).length === 3" \
  "and is kept nowhere" "!document.cookie && !localStorage.length && !sessionStorage.length && document.querySelector('#token').value === ''" \
  "retry" "([...document.querySelectorAll('#letters tr')].find(t => t.textContent.includes('again')).querySelector('.retry').click(), true)" \
  "is told" "$(text '#said').includes('again was put back on the queue')" \
  "and captioned" "$(rows captions) === 5 && $(rows letters) === 2" \
  "drop" "([...document.querySelectorAll('#letters tr')].find(t => t.textContent.includes('never')).querySelector('.drop').click(), true)" \
  "is told" "$(text '#said').includes('never was dropped') && $(rows letters) === 1" \
  "it fits" "$FITS"
same "the queue agrees" "5 1" "$(r xlen "$(key results)") $(r xlen "$(key dead)")"
browse 360 \
  "it runs" "$(text '#state') === 'Running'" \
  "all is there" "$(rows workers) === 2 && $(rows captions) === 5 && $(rows letters) === 1" \
  "it fits" "$FITS" \
  "nothing sticks out" "[...document.querySelectorAll('main *')].every(e => e.closest('svg, .hide, thead') || e.getBoundingClientRect().right <= innerWidth + 1)"
stop redis KILL
browse 360 \
  "it says so" "$(text '#state') === 'Redis is out of reach' && !document.querySelector('#notice').hidden" \
  "and shows what was known" "$(rows captions) === 5"
