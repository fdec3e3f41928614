/* tests/dev/golden.c - ref and cpu against other implementations, op by op.
 *
 * tests/data/dev/NAME.f32: inputs, then the result; made by tools/gen/dev_golden.py with mlx, mlx-lm and numpy. */
#include "common.h"

static imp_device *dev[2];

static int open_devices(void **state)
{
    (void)state;
    dev[0] = open_dev("ref", 0);
    dev[1] = open_dev("cpu", 2);
    return 0;
}
static int close_devices(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) dev[i]->ops->close(dev[i]);
    return 0;
}

/* A golden file that is read from front to back. */
typedef struct golden {
    rig *r;
    imp_graph *g;
    imp_sys_file file;
    uint64_t at; /* floats */
    uint32_t n_row;
    const char *name;
} golden;

static golden load(const char *name, uint32_t n_row)
{
    char path[128];
    imp_error err = {0};
    golden f = {.r = rig_new(1), .g = imp_graph_new(), .n_row = n_row, .name = name};
    snprintf(path, sizeof path, "tests/data/dev/%s.f32", name);
    if (imp_sys_file_open(path, false, &f.file, &err) != IMP_OK) fail_msg("%s", err.text);
    return f;
}
static const float *floats(golden *f, uint64_t n)
{
    const float *p = (const float *)(const void *)f->file.data + f->at;
    f->at += n;
    assert_true(f->at * sizeof(float) <= f->file.n);
    return p;
}
static imp_tensor tensor(golden *f, uint64_t n, uint64_t k) /* n 0: a vector */
{
    return (imp_tensor){.dtype = IMP_F32,
                        .n_dim = n == 0 ? 1 : 2,
                        .dim = {n == 0 ? k : n, n == 0 ? 1 : k, 1, 1},
                        .data = floats(f, (n == 0 ? 1 : n) * k)};
}
static imp_val vec(golden *f, uint64_t k)
{
    imp_tensor t = tensor(f, 0, k);
    return imp_g_weight(f->g, "w", &t);
}
static imp_val mat(golden *f, uint64_t n, uint64_t k)
{
    imp_tensor t = tensor(f, n, k);
    return imp_g_weight(f->g, "w", &t);
}
static imp_val stack(golden *f, uint32_t n_part, uint64_t n, uint64_t k)
{
    imp_tensor part[8];
    for (uint32_t i = 0; i < n_part; i++) part[i] = tensor(f, n, k);
    return imp_g_weight_parts(f->g, "parts", part, n_part);
}
/* The next n_row x k floats as activations: row i is token i's. */
static imp_val rows(golden *f, uint64_t k)
{
    return imp_g_embed(f->g, mat(f, f->n_row, k), IMP_BY_TOKEN, 0);
}

/* y computed by both devices is what the file ends with, |difference| <= bound. */
static void expect_golden(golden *f, imp_val y, int32_t first_pos, double bound)
{
    imp_g_output(f->g, imp_g_gather(f->g, y));
    finish(f->g);
    uint64_t width = imp_graph_node(f->g, y)->width, n = f->n_row * width;
    const float *want = floats(f, n);
    assert_int_equal(f->at * sizeof(float), f->file.n);
    steps s;
    int32_t text[MAX_TOK];
    for (int32_t i = 0; i < MAX_TOK; i++) text[i] = i;
    batch_clear(&s);
    batch_add(&s, text, 0, f->n_row, random_blocks(f->r, 1, 4));
    for (uint32_t i = 0; i < f->n_row; i++) s.pos[i] = first_pos + (int32_t)i;
    for (int i = 0; i < 2; i++) {
        char what[160];
        snprintf(what, sizeof what, "%s on %s", f->name, dev[i]->name);
        imp_exec *x = compile(dev[i], f->g, test_limits(IMP_F32));
        expect_near(run_step(f->r, x, &s.b, f->n_row, width), want, n, bound, bound, what);
        dev[i]->ops->exec_free(x);
    }
    imp_sys_file_close(&f->file);
    imp_graph_free(f->g);
    rig_free(f->r);
}

static void test_norms(void **state)
{
    (void)state;
    golden f = load("rms_norm", 5);
    imp_val x = rows(&f, 48);
    expect_golden(&f, imp_g_rms_norm(f.g, x, vec(&f, 48), 1e-5f, 0, 0), 0, 2e-6);
    f = load("rms_norm_plus_one", 5), x = rows(&f, 48);
    expect_golden(&f, imp_g_rms_norm(f.g, x, vec(&f, 48), 1e-6f, 0, 1), 0, 2e-6);
    f = load("rms_norm_heads", 5), x = rows(&f, 48);
    expect_golden(&f, imp_g_rms_norm(f.g, x, vec(&f, 8), 1e-6f, 8, 0), 0, 2e-6);
    f = load("layer_norm", 5), x = rows(&f, 48);
    imp_val w = vec(&f, 48);
    expect_golden(&f, imp_g_layer_norm(f.g, x, w, vec(&f, 48), 1e-12f), 0, 3e-6);
    f = load("l2_norm", 5), x = rows(&f, 48);
    expect_golden(&f, imp_g_l2_norm(f.g, x), 0, 1e-6);
}

static void test_activations(void **state)
{
    (void)state;
    static const char *const name[] = {"silu", "gelu", "gelu_tanh", "relu", "tanh", "sigmoid"};
    for (int a = 0; a < 6; a++) {
        char file[32];
        snprintf(file, sizeof file, "act_%s", name[a]);
        golden f = load(file, 1);
        imp_val x = rows(&f, 104);
        expect_golden(&f, imp_g_act(f.g, x, (imp_act)a), 0, 2e-6);
        snprintf(file, sizeof file, "glu_%s", name[a]);
        f = load(file, 1), x = rows(&f, 104);
        expect_golden(&f, imp_g_glu(f.g, x, rows(&f, 104), (imp_act)a), 0, 2e-6);
    }
    golden f = load("softcap", 1);
    imp_val x = rows(&f, 104);
    expect_golden(&f, imp_g_softcap(f.g, x, 30), 0, 2e-6);
}

static void test_rope(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t n_rot;
        bool interleaved;
        int32_t pos;
        double bound; /* far from 0 the other side's own f32 angles differ */
    } cases[] = {
        {"rope_halves", 32, false, 0, 2e-6},
        {"rope_halves_far", 32, false, 1000, 2e-4},
        {"rope_halves_partial", 12, false, 3, 2e-6},
        {"rope_interleaved", 32, true, 0, 2e-6},
        {"rope_interleaved_far", 32, true, 1000, 2e-4},
        {"rope_interleaved_partial", 12, true, 3, 2e-6},
    };
    for (size_t i = 0; i < IMP_COUNT(cases); i++) {
        golden f = load(cases[i].name, 6);
        float freq[16];
        for (uint32_t k = 0; k < cases[i].n_rot / 2; k++) {
            freq[k] = (float)pow(10000, -2.0 * k / cases[i].n_rot);
        }
        imp_rope_attr a = {.head_dim = 32,
                           .n_rot = cases[i].n_rot,
                           .interleaved = cases[i].interleaved,
                           .mscale = 1,
                           .inv_freq = freq};
        imp_val x = rows(&f, 96);
        expect_golden(&f, imp_g_rope(f.g, x, &a), cases[i].pos, cases[i].bound);
    }
}

static void test_attention(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t n_head, n_kv_head, window;
        bool full, sink;
        float softcap;
    } cases[] = {
        {"attn_causal", 4, 4, 0, false, false, 0},     {"attn_gqa", 6, 2, 0, false, false, 0},
        {"attn_window", 4, 2, 9, false, false, 0},     {"attn_full", 3, 3, 0, true, false, 0},
        {"attn_full_window", 2, 2, 8, true, false, 0}, {"attn_sink", 4, 1, 0, false, true, 0},
        {"attn_softcap", 2, 1, 0, false, false, 5},
    };
    for (size_t i = 0; i < IMP_COUNT(cases); i++) {
        for (int cached = 0; cached < (cases[i].full ? 1 : 2); cached++) {
            golden f = load(cases[i].name, 70);
            uint32_t n_head = cases[i].n_head, n_kv = cases[i].n_kv_head;
            imp_attn_attr a = {.n_head = n_head,
                               .n_kv_head = n_kv,
                               .head_dim = 16,
                               .window = cases[i].window,
                               .kv_layer = cached ? 0 : -1,
                               .mask = cases[i].full ? IMP_MASK_FULL : IMP_MASK_CAUSAL,
                               .scale = 0.25f,
                               .softcap = cases[i].softcap};
            imp_val q = rows(&f, n_head * 16), k = rows(&f, n_kv * 16), v = rows(&f, n_kv * 16);
            imp_val sink = cases[i].sink ? vec(&f, n_head) : 0;
            expect_golden(&f, imp_g_attn(f.g, q, k, v, sink, &a), 0, 4e-6);
        }
    }
}

static void test_experts(void **state)
{
    (void)state;
    static const char *const name[] = {"moe_plain", "moe_normed", "moe_mixtral"};
    for (int i = 0; i < 3; i++) {
        golden f = load(name[i], 9);
        imp_moe_attr a = {.n_expert = 6, .n_used = 2, .act = IMP_ACT_SILU, .norm_topk = i > 0};
        imp_val x = rows(&f, 24), logits = imp_g_linear(f.g, x, mat(&f, 6, 24), 0);
        imp_val gate = stack(&f, 6, 20, 24), up = stack(&f, 6, 20, 24), down = stack(&f, 6, 24, 20);
        expect_golden(&f, imp_g_moe(f.g, x, logits, gate, up, down, &a), 0, 3e-5);
    }
}

static void test_linear(void **state)
{
    (void)state;
    golden f = load("linear", 7);
    imp_val x = rows(&f, 40), w = mat(&f, 13, 40);
    expect_golden(&f, imp_g_linear(f.g, x, w, vec(&f, 13)), 0, 2e-6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norms),     cmocka_unit_test(test_activations), cmocka_unit_test(test_rope),
        cmocka_unit_test(test_attention), cmocka_unit_test(test_experts),     cmocka_unit_test(test_linear),
    };
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
