/* tests/model/cuda_pair.c - golden models and stories260K with every layer divided between two NVIDIA GPUs; skipped where
 * there are fewer. Bounds: cuda_golden.c. */
#define GOLDEN_DEVICES "cuda0/cuda1"
#define CUDA_DEVICE    "cuda0/cuda1"
#include "cuda_golden.c"
