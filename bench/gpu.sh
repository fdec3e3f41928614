#!/bin/sh
# The GPU at work: build, check, measure. usage: bench/gpu.sh [shape:type ...]   e.g. bench/gpu.sh 8b:bf16 8b:q4_0
#
# Builds the CUDA device (nvcc), runs the device suite and the golden models against the reference on the GPU, a part of
# them under compute-sanitizer when it is installed, then prints decode and prefill beside the ceiling read in that run.
set -eu
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build}
make -s "$BUILD/tests/dev/cuda_suite" "$BUILD/tests/model/cuda_golden" "$BUILD/gpu_bench"
"$BUILD/tests/dev/cuda_suite"
"$BUILD/tests/model/cuda_golden"
if command -v compute-sanitizer > /dev/null; then
    compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 "$BUILD/tests/dev/cuda_suite" 'test_[dlm]*'
    compute-sanitizer --tool racecheck --error-exitcode 1 "$BUILD/tests/dev/cuda_suite" 'test_decode'
fi
"$BUILD/gpu_bench" "$@"
