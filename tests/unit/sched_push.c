/* tests/unit/sched_push.c - a cache on its way between two executables: by the host's memory, or by a stage that the sender's
 * device gives and only the receiver can read. */
#include "dev/common.h"
#include "sched/push.h"

/* A CPU whose "own memory" is the heap: blocks in a stage are the host layout, their bytes turned round. */
static bool g_room;
static uint32_t g_stages, g_moves;
static void *stage(imp_exec *x, imp_exec *to, uint64_t bytes)
{
    if (!g_room || x->dev == to->dev) return NULL;
    g_stages++;
    return malloc(bytes);
}
static void stage_free(imp_device *d, void *p)
{
    assert_non_null(d);
    g_stages--;
    free(p);
}
static void turn(uint8_t *p, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) p[i] = (uint8_t)~p[i];
}
static uint64_t g_block_bytes;
static imp_status staged(imp_exec *x, const uint32_t *block, uint32_t n, void *at, bool out, imp_error *err)
{
    const imp_device_ops *ops = x->dev->ops;
    g_moves++;
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *p = (uint8_t *)at + i * g_block_bytes;
        if (out) IMP_TRY(ops->kv_export(x, block[i], p, err));
        turn(p, g_block_bytes);
        if (!out) IMP_TRY(ops->kv_import(x, block[i], p, err));
    }
    return IMP_OK;
}

static imp_device *with_stage(imp_device_ops *ops)
{
    imp_device *d = open_dev("cpu", 2);
    *ops = *d->ops;
    ops->kv_stage = stage;
    ops->kv_stage_free = stage_free;
    ops->kv_staged = staged;
    d->ops = ops;
    return d;
}

static void test_push(void **state)
{
    (void)state;
    enum { N = 3, LEN = 150 };
    for (int room = 0; room < 2; room++) {
        g_room = room != 0;
        g_moves = 0;
        rig *r = rig_new(40);
        imp_graph *g = tiny_model(r, (tiny){0}, false);
        imp_device_ops ops[2];
        imp_device *a = with_stage(&ops[0]), *b = with_stage(&ops[1]);
        imp_exec *x = compile(a, g, test_limits(IMP_F16)), *y = compile(b, g, test_limits(IMP_F16));
        g_block_bytes = imp_dev_kv_block_bytes(g, IMP_F16);
        int32_t *text = random_text(r, 200);
        uint32_t *blocks = random_blocks(r, 2, N), *there = blocks + N;
        imp_error err = {0};
        steps s;
        batch_clear(&s);
        batch_add(&s, text, 0, LEN, blocks);
        run_step(r, x, &s.b, LEN, N_VOCAB);
        imp_push *p = imp_push_new(N, g_block_bytes, x, y);
        assert_non_null(p);
        assert_int_equal(p->stage_of != NULL, g_room);
        assert_true(imp_push_fits(p, y, g_block_bytes));
        assert_false(imp_push_fits(p, y, g_block_bytes + 1));
        assert_int_equal(imp_push_fits(p, x, g_block_bytes), !g_room); /* a stage is for one receiver */
        /* two blocks, then the last */
        assert_int_equal(imp_push_move(p, x, blocks, 0, 2, true, &err), IMP_OK);
        assert_int_equal(imp_push_move(p, y, there, 0, 2, false, &err), IMP_OK);
        assert_int_equal(imp_push_move(p, x, blocks + 2, 2, 1, true, &err), IMP_OK);
        assert_int_equal(imp_push_move(p, y, there + 2, 2, 1, false, &err), IMP_OK);
        assert_int_equal(imp_push_move(p, y, there, 0, 0, false, &err), IMP_OK);
        assert_int_equal(g_moves, g_room ? 4 : 0);
        imp_push_unref(p);
        assert_int_equal(g_stages, 0);
        batch_clear(&s);
        batch_add(&s, text, LEN, 1, blocks);
        float *want = run_step(r, x, &s.b, 1, N_VOCAB);
        s.seq[0].block = there;
        expect_same(run_step(r, y, &s.b, 1, N_VOCAB), want, N_VOCAB, "after the push");
        a->ops->exec_free(x), a->ops->close(a);
        b->ops->exec_free(y), b->ops->close(b);
        imp_graph_free(g);
        rig_free(r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_push)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
