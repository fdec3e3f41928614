#!/bin/sh
# Memory as planned against the process as it is: peak resident size with full contexts, and what happens over the limit,
# on the command line and over HTTP. Prints TAP. The peak is measured by bench/memory.py (Linux, python3).
# usage: BUILD=build sh tests/api/memory.sh
set -u
cd "$(dirname "$0")/../.." || exit 1
I=$PWD/${BUILD:-build}/impetus
case ${BUILD:-build} in /*) I=$BUILD/impetus ;; esac
STORIES=$PWD/models/stories260K.gguf
NANO=$PWD/models/impetus-nano.gguf
T=$(mktemp -d) || exit 1
SERVER=
trap '[ -n "$SERVER" ] && kill -9 "$SERVER" 2>/dev/null; rm -rf "$T"' EXIT
for v in $(env | sed -n 's/^\(IMPETUS_[A-Z_]*\)=.*/\1/p'); do unset "$v"; done
export XDG_CONFIG_HOME="$T/no-config" XDG_DATA_HOME="$T/data" HOME="$T"

n=0
ok() { n=$((n + 1)); echo "ok $n - $1"; }
no() { n=$((n + 1)); echo "not ok $n - $1"; [ $# -gt 1 ] && printf '%s\n' "$2" | sed 's/^/# /' | head -20; }
skip() { n=$((n + 1)); echo "ok $n - $1 # SKIP $2"; }
largest() { sed -n 's/.*the largest context that fits is \([0-9]*\).*/\1/p' "$1"; }

# ---- over the limit on the command line: exit 1, one line with the largest context; that one loads, one block more does not
"$I" run "$NANO" hi -n 1 --raw --device cpu --memory 36M --ctx 1024 >"$T/out" 2>"$T/err" </dev/null; rc=$?
c=$(largest "$T/err")
if [ "$rc" -eq 1 ] && [ ! -s "$T/out" ] && [ -n "$c" ] && [ "$(wc -l <"$T/err")" -eq 1 ]; then ok "over the limit: exit 1 and the largest context ($c)"
else no "over the limit: exit 1 and the largest context" "exit $rc: $(cat "$T/err")"; fi
if "$I" run "$NANO" hi -n 1 --raw --device cpu --memory 36M --ctx "${c:-0}" >"$T/out" 2>"$T/err" </dev/null; then ok "that context loads"
else no "that context loads" "$(cat "$T/err")"; fi
if "$I" run "$NANO" hi -n 1 --raw --device cpu --memory 36M --ctx $((${c:-0} + 64)) >"$T/out" 2>"$T/err" </dev/null; then no "a block more does not load"
else ok "a block more does not load"; fi

# ---- the same over HTTP: 507 names the context that fits
if command -v curl >/dev/null 2>&1; then
    "$I" serve -q -m m="$NANO" --device cpu --parallel 1 --memory 36M --port 0 --json >"$T/serve" 2>"$T/err" </dev/null &
    SERVER=$!
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
        url=$(sed -n 's/.*"listening": "\([^"]*\)".*/\1/p' "$T/serve" 2>/dev/null); [ -n "$url" ] && break; sleep 0.2
    done
    code=$(curl -s -o "$T/out" -w '%{http_code}' "${url%/}/api/plan" -d '{"model":"m","ctx":1024}')
    h=$(largest "$T/out")
    if [ "$code" = 507 ] && [ -n "$h" ]; then ok "HTTP 507 and the largest context ($h)"; else no "HTTP 507 and the largest context" "$code: $(cat "$T/out")"; fi
    code=$(curl -s -o "$T/out" -w '%{http_code}' "${url%/}/api/plan" -d "{\"model\":\"m\",\"ctx\":${h:-1}}")
    if [ "$code" = 200 ]; then ok "that context is no 507"; else no "that context is no 507" "$code: $(cat "$T/out")"; fi
    kill "$SERVER"; wait "$SERVER" 2>/dev/null; SERVER=
    if "$I" run "$NANO" hi -n 1 --raw --device cpu --memory 36M --ctx "${h:-0}" >"$T/out" 2>"$T/err" </dev/null; then ok "and it loads"
    else no "and it loads" "$(cat "$T/err")"; fi
else
    skip "HTTP 507 and the largest context" "no curl"
fi

# ---- the peak
case ${BUILD:-build} in *san-*) why="a sanitizer's own memory" ;; *) why= ;; esac
[ -r /proc/self/status ] || why="no /proc"
command -v python3 >/dev/null 2>&1 || why="no python3"
if [ -n "$why" ]; then
    skip "peak resident size" "$why"
elif python3 bench/memory.py --tap "$I" "$STORIES" "$NANO" "$NANO,1024,4" "$PWD/models/impetus-nano-embed.gguf" >"$T/out" 2>"$T/err"; then
    while read -r line; do case $line in ok*) ok "${line#* - }" ;; esac; done <"$T/out"
else
    no "peak resident size" "$(cat "$T/out" "$T/err")"
fi
echo "1..$n"
