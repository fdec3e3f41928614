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

/* Blocks that go from one GPU to the other past the host are the same blocks. */
static void test_stage(void **state)
{
    (void)state;
    for (size_t m = 0; m < IMP_COUNT(models); m++) {
        rig *r = rig_new(600 + m);
        imp_graph *g = tiny_model(r, models[m].t, false);
        imp_limits lim = test_limits(TENSOR_KV(&models[m]));
        int32_t *text[N_SEQ] = {random_text(r, 200), random_text(r, 200), random_text(r, 200)};
        uint32_t *blocks = random_blocks(r, 2 * N_SEQ, PER_SEQ), *there = blocks + N_SEQ * PER_SEQ, n;
        imp_device *a = open_dev("cuda0", 0), *b = open_dev("cuda1", 0);
        imp_exec *x = compile(a, g, lim), *y = compile(b, g, lim);
        imp_error err = {0};
        uint64_t bytes = imp_dev_kv_block_bytes(g, lim.kv_dtype);
        whole_run(r, x, text, blocks, &n);
        void *stage = a->ops->kv_stage(x, y, N_SEQ * PER_SEQ * bytes);
        assert_non_null(stage);
        assert_null(a->ops->kv_stage(x, x, bytes));
        assert_int_equal(a->ops->kv_staged(x, blocks, N_SEQ * PER_SEQ, stage, true, &err), IMP_OK);
        assert_int_equal(b->ops->kv_staged(y, there, 2, stage, false, &err), IMP_OK);
        assert_int_equal(
            b->ops->kv_staged(y, there + 2, N_SEQ * PER_SEQ - 2, (uint8_t *)stage + 2 * bytes, false, &err),
            IMP_OK);
        uint8_t *one = rig_alloc(r, bytes), *other = rig_alloc(r, bytes);
        for (uint32_t i = 0; i < N_SEQ * PER_SEQ; i++) {
            assert_int_equal(a->ops->kv_export(x, blocks[i], one, &err), IMP_OK);
            assert_int_equal(b->ops->kv_export(y, there[i], other, &err), IMP_OK);
            assert_memory_equal(one, other, bytes);
        }
        a->ops->kv_stage_free(a, stage);
        a->ops->exec_free(x), a->ops->close(a);
        b->ops->exec_free(y), b->ops->close(b);
        imp_graph_free(g);
        rig_free(r);
    }
}

int main(void)
{
    imp_device *d;
    imp_error err = {0};
    if (imp_dev_open("cuda0/cuda1", 0, &d, &err) != IMP_OK) {
        printf("1..1\nok 1 - cuda0/cuda1 # SKIP %s\n", err.text);
        return 0;
    }
    d->ops->close(d);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stage)};
    return tensor_main() + cmocka_run_group_tests(tests, NULL, NULL);
}
