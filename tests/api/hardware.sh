#!/bin/sh
# `impetus devices` beside a stand-in for NVIDIA's library that the program finds as it would find the real one. Prints TAP.
# usage: BUILD=build sh tests/api/hardware.sh
set -u
cd "$(dirname "$0")/../.." || exit 1
B=${BUILD:-build}
case $B in /*) ;; *) B=$PWD/$B ;; esac
I=$B/impetus
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
for v in $(env | sed -n 's/^\(IMPETUS_[A-Z_]*\)=.*/\1/p'); do unset "$v"; done
export XDG_CONFIG_HOME="$T/no-config" XDG_DATA_HOME="$T/data" HOME="$T"
n=0
has() { # NAME WORDS FILE
    n=$((n + 1))
    if grep -qF -- "$2" "$3"; then echo "ok $n - $1"; else echo "not ok $n - $1"; sed 's/^/# /' "$3" | head -30; fi
}
"$I" devices --no-measure >"$T/plain" 2>&1
has "the CPU says what it runs" "generation and embeddings; weights in f32 f16 bf16 q4_0" "$T/plain"
has "the CPU says its NUMA nodes" "NUMA node" "$T/plain"
LD_LIBRARY_PATH="$B/tests/fake" "$I" devices --no-measure >"$T/out" 2>&1
has "a GPU is described without kernels for it" "cuda0  NVIDIA Imaginary 10 (0000:18:00.0)" "$T/out"
has "its driver and compute capability" "999.12.03, compute capability 9.0" "$T/out"
has "its link and power limit" "generation 4 x16 of 5 x16; power limit 350 W" "$T/out"
has "its memory" "25.8 GB, 6.44 GB available" "$T/out"
has "instances" "cut into instances (MIG)" "$T/out"
has "why it cannot run" "cannot run" "$T/out"
LD_LIBRARY_PATH="$B/tests/fake" "$I" devices --no-measure --json >"$T/json" 2>&1
has "the same as JSON" '"compute_capability": "9.0"' "$T/json"
has "with the reason" '"usable": false' "$T/json"
FAKE_NVML_BROKEN=1 LD_LIBRARY_PATH="$B/tests/fake" "$I" devices --no-measure >"$T/out" 2>&1
n=$((n + 1))
if ! grep -q Imaginary "$T/out" && grep -q '^cpu ' "$T/out"; then echo "ok $n - a driver that does not start is no failure"; else echo "not ok $n - a driver that does not start is no failure"; fi
echo "1..$n"
