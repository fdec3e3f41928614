/* tests/dev/cuda_tensor.c - layers divided between two NVIDIA GPUs against ref; skipped where there are fewer.
 *
 * Bounds: four times the device suite's, and that of bf16 products (steps of more than 8 rows). */
#define TENSOR_DEVICES  "cuda0/cuda1"
#define TENSOR_BOUND(m) ((m)->bound < 0.02 ? 0.02 : 4 * (m)->bound)
#define TENSOR_KV(m)    ((m)->kv)
#define main            tensor_main
int tensor_main(void);
#include "tensor.c"
#undef main

int main(void)
{
    imp_device *d;
    imp_error err = {0};
    if (imp_dev_open("cuda0/cuda1", 0, &d, &err) != IMP_OK) {
        printf("1..1\nok 1 - cuda0/cuda1 # SKIP %s\n", err.text);
        return 0;
    }
    d->ops->close(d);
    return tensor_main();
}
