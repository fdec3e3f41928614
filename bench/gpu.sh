#!/bin/sh
# The GPU at work: build, check, measure. usage: bench/gpu.sh [shape:type ...]   e.g. bench/gpu.sh 8b:bf16 8b:q4_0
#
# Builds the CUDA device (nvcc), runs the device suite and the golden models against the reference on the GPU, a part of
# them under compute-sanitizer when it is installed, then prints decode and prefill beside the ceiling read in that run,
# decode with both types of cache, and what choosing tokens takes.
set -eu
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build}
make -s "$BUILD/tests/dev/cuda_suite" "$BUILD/tests/model/cuda_golden" "$BUILD/gpu_bench"
"$BUILD/tests/dev/cuda_suite"
"$BUILD/tests/model/cuda_golden"
if command -v compute-sanitizer > /dev/null; then
    compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 "$BUILD/tests/dev/cuda_suite" 'test_[dlm]*'
    compute-sanitizer --tool racecheck --error-exitcode 1 "$BUILD/tests/dev/cuda_suite" 'test_decode'
    compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 "$BUILD/tests/dev/cuda_suite" 'test_quantised*'
    compute-sanitizer --tool racecheck --error-exitcode 1 "$BUILD/tests/dev/cuda_suite" 'test_quantised_block'
    compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 "$BUILD/tests/dev/cuda_suite" 'test_top'
fi
"$BUILD/gpu_bench" "$@"
[ $# -gt 0 ] && exit 0
for kv in f16 q8_0; do # the cache's type, far into a text
    "$BUILD/gpu_bench" layers=8 depth=4000 batch=32 kv=$kv 8b:q4_0
done
"$BUILD/gpu_bench" sampling=1 1b:q4_0 8b:q4_0
