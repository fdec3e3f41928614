#!/bin/sh
# tools/coreml_check, which people run on their Macs, over the stand-in for Core ML. usage: BUILD=build sh tests/api/coreml_check.sh
set -u
cd "$(dirname "$0")/../.." || exit 1
B=${BUILD:-build}
case $B in /*) ;; *) B=$PWD/$B ;; esac
FAKE=$B/tests/fake/objc_coreml.so
if [ ! -e "$FAKE" ]; then echo "ok 1 - coreml_check # SKIP the stand-in for Core ML is built on x86-64 only"; exit 0; fi
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
for v in $(env | sed -n 's/^\(IMPETUS_[A-Z_]*\)=.*/\1/p'); do unset "$v"; done
export HOME="$T" XDG_CONFIG_HOME="$T/no-config" XDG_CACHE_HOME="$T/cache" FAKE_COREML="$T/control" BUILD="$B"
n=0
has() { # NAME WORDS FILE
    n=$((n + 1))
    if grep -q "$2" "$3"; then echo "ok $n - $1"; else echo "not ok $n - $1"; sed 's/^/# /' "$3"; fi
}
is() { n=$((n + 1)); if [ "$2" = "$3" ]; then echo "ok $n - $1"; else echo "not ok $n - $1"; echo "# want $2, got $3"; fi; }
IMPETUS_COREML_RUNTIME=$FAKE tools/coreml_check >"$T/report" 2>&1
is "the report ends well" 0 $?
has "it says where Core ML plans to run" "where  *planned by Core ML: ane" "$T/report"
has "the vectors agree" "^result  *the vectors agree" "$T/report"
has "and that this is no Core ML" "a stand-in" "$T/report"
has "it measures both" "^coreml .*texts/s" "$T/report"
printf 'load_fail ' >"$T/control"
rm -rf "$T/cache"
IMPETUS_COREML_RUNTIME=$FAKE tools/coreml_check >"$T/report" 2>&1
is "a failure is one" 1 $?
has "and says why" "Core ML does not load the package: Error in building plan" "$T/report"
build=$B/impetus
if [ "$(uname -s)" != Darwin ]; then
    "$build" embed models/impetus-nano-embed.gguf x --device coreml >"$T/out" 2>&1
    is "without Core ML there is no such device" 1 $?
    has "and it says so" "Core ML is a part of macOS" "$T/out"
fi
"$build" coreml-worker </dev/null >"$T/out" 2>&1
is "a worker does not start by itself" 2 $?
