/* tests/unit/graph_build.c - shapes inferred, bad calls named, the listing, out of memory at every point. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "graph/graph.h"

static float storage[4096];

static imp_tensor matrix(uint64_t n, uint64_t k)
{
    return (imp_tensor){.dtype = IMP_F32, .n_dim = 2, .dim = {n, k, 1, 1}, .data = storage};
}

static imp_tensor vector(uint64_t n)
{
    return (imp_tensor){.dtype = IMP_F32, .n_dim = 1, .dim = {n, 1, 1, 1}, .data = storage};
}

static imp_val weight(imp_graph *g, const char *name, uint64_t n, uint64_t k)
{
    imp_tensor t = n == 0 ? vector(k) : matrix(n, k);
    return imp_g_weight(g, name, &t);
}

/* One decoder layer: 2 heads of 8 over 1 KV head, a GLU of 24, vocabulary 10. */
static imp_graph *decoder(void)
{
    imp_graph *g = imp_graph_new();
    if (g == NULL) return NULL;
    static const float freq[4] = {1, 0.1f, 0.01f, 0.001f};
    imp_rope_attr rope = {.head_dim = 8, .n_rot = 8, .mscale = 1, .inv_freq = freq};
    imp_attn_attr attn = {.n_head = 2, .n_kv_head = 1, .head_dim = 8, .kv_layer = 0, .scale = 0.35f};
    imp_graph_scope(g, "embd");
    imp_val x = imp_g_embed(g, weight(g, "token_embd", 10, 16), IMP_BY_TOKEN, 0);
    imp_graph_scope(g, "blk.%d.attn", 0);
    imp_val h = imp_g_rms_norm(g, x, weight(g, "norm", 0, 16), 1e-5f, 0, 0);
    imp_val q = imp_g_rope(g, imp_g_linear(g, h, weight(g, "wq", 16, 16), weight(g, "bq", 0, 16)), &rope);
    imp_val k = imp_g_rope(g, imp_g_linear(g, h, weight(g, "wk", 8, 16), 0), &rope);
    imp_val v = imp_g_linear(g, h, weight(g, "wv", 8, 16), 0);
    imp_val a = imp_g_attn(g, q, k, v, 0, &attn);
    x = imp_g_add(g, x, imp_g_linear(g, a, weight(g, "wo", 16, 16), 0));
    imp_graph_scope(g, "blk.%d.ffn", 0);
    imp_val gate = imp_g_linear(g, x, weight(g, "gate", 24, 16), 0);
    imp_val up = imp_g_linear(g, x, weight(g, "up", 24, 16), 0);
    x = imp_g_add(g, x, imp_g_linear(g, imp_g_glu(g, gate, up, IMP_ACT_SILU), weight(g, "down", 16, 24), 0));
    imp_graph_scope(g, "head");
    imp_g_output(g, imp_g_linear(g, imp_g_gather(g, x), weight(g, "output", 10, 16), 0));
    return g;
}

static void test_shapes(void **state)
{
    (void)state;
    imp_graph *g = decoder();
    imp_error err = {0};
    assert_int_equal(imp_graph_finish(g, &err), IMP_OK);
    const imp_node *out = imp_graph_node(g, imp_graph_output(g));
    assert_int_equal(out->op, IMP_OP_LINEAR);
    assert_int_equal(out->rows, IMP_ROWS_OUT);
    assert_int_equal(out->width, 10);
    assert_int_equal(imp_graph_n_kv_layer(g), 1);
    const imp_node *attn = imp_graph_kv_layer(g, 0);
    assert_int_equal(attn->op, IMP_OP_ATTN);
    assert_int_equal(attn->width, 16);
    assert_string_equal(attn->name, "blk.0.attn");
    assert_null(imp_graph_node(g, 0));
    assert_null(imp_graph_node(g, imp_graph_n(g) + 1));
    for (uint32_t v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        for (uint32_t i = 0; i < n->n_in; i++) assert_true(n->in[i] >= 1 && n->in[i] < v);
    }
    imp_graph_free(g);
}

static void test_print(void **state)
{
    (void)state;
    imp_graph *g = decoder();
    imp_buf text = {0};
    imp_graph_print(g, &text);
    assert_false(text.failed);
    assert_non_null(strstr(text.data, "%2 = embed token_embd:f32[10x16] by token -> [tok x 16]  # embd\n"));
    assert_non_null(strstr(text.data, "attn %8 %11 %13 heads 2/1 x 8 scale 0.35 causal kv 0 -> [tok x 16]"));
    assert_non_null(strstr(text.data, "linear %4 wq:f32[16x16] bq:f32[16] -> [tok x 16]"));
    assert_non_null(strstr(text.data, "-> [out x 10]  # head  (output)\n"));
    imp_buf_deinit(&text);
    imp_graph_free(g);
}

/* Build with `make`, expect INVALID and every word of `words` (NULL-ended) in the message. */
typedef void (*make_fn)(imp_graph *g, imp_val x);
static void expect_bad(make_fn make, const char *const *words)
{
    imp_graph *g = imp_graph_new();
    imp_val x = imp_g_embed(g, weight(g, "token_embd", 10, 16), IMP_BY_TOKEN, 0);
    imp_graph_scope(g, "here");
    make(g, x);
    imp_error err = {0};
    assert_int_equal(imp_graph_finish(g, &err), IMP_INVALID);
    for (; *words != NULL; words++) {
        if (strstr(err.text, *words) == NULL) fail_msg("\"%s\" is not in \"%s\"", *words, err.text);
    }
    imp_graph_free(g);
}
#define BAD(make, ...) expect_bad(make, (const char *const[]){__VA_ARGS__, NULL})

static void bad_linear(imp_graph *g, imp_val x)
{
    imp_g_output(g, imp_g_gather(g, imp_g_linear(g, x, weight(g, "w", 4, 17), 0)));
}
static void bad_bias(imp_graph *g, imp_val x)
{
    imp_g_linear(g, x, weight(g, "w", 4, 16), weight(g, "b", 0, 5));
}
static void bad_add(imp_graph *g, imp_val x)
{
    imp_g_add(g, x, imp_g_slice(g, x, 0, 8));
}
static void bad_rows(imp_graph *g, imp_val x)
{
    imp_g_add(g, x, imp_g_gather(g, x));
}
static void bad_slice(imp_graph *g, imp_val x)
{
    imp_g_slice(g, x, UINT64_MAX, 2);
}
static void bad_group(imp_graph *g, imp_val x)
{
    imp_g_rms_norm(g, x, 0, 1e-5f, 5, 0);
}
static void bad_heads(imp_graph *g, imp_val x)
{
    imp_attn_attr a = {.n_head = 3, .n_kv_head = 2, .head_dim = 8, .kv_layer = -1, .scale = 1};
    imp_g_attn(g, x, x, x, 0, &a);
}
static void bad_full_cache(imp_graph *g, imp_val x)
{
    imp_attn_attr a = {.n_head = 2, .n_kv_head = 2, .head_dim = 8, .mask = IMP_MASK_FULL, .scale = 1};
    imp_g_attn(g, x, x, x, 0, &a);
}
static void kv_attn(imp_graph *g, imp_val x, int32_t layer)
{
    imp_attn_attr a = {.n_head = 2, .n_kv_head = 2, .head_dim = 8, .kv_layer = layer, .scale = 1};
    imp_g_attn(g, x, x, x, 0, &a);
}
static void bad_kv_gap(imp_graph *g, imp_val x)
{
    kv_attn(g, x, 1);
    imp_g_output(g, imp_g_gather(g, x));
}
static void bad_kv_twice(imp_graph *g, imp_val x)
{
    kv_attn(g, x, 0);
    kv_attn(g, x, 0);
    imp_g_output(g, imp_g_gather(g, x));
}
static void bad_rope(imp_graph *g, imp_val x)
{
    float freq[4] = {1, 1, 1, 1};
    imp_rope_attr a = {.head_dim = 8, .n_rot = 7, .mscale = 1, .inv_freq = freq};
    imp_g_rope(g, x, &a);
}
static void bad_moe(imp_graph *g, imp_val x)
{
    imp_tensor up[2] = {matrix(12, 16), matrix(12, 16)}, down[2] = {matrix(16, 11), matrix(16, 11)};
    imp_val u = imp_g_weight_parts(g, "up", up, 2);
    imp_moe_attr a = {.n_expert = 2, .n_used = 1};
    imp_g_moe(g, x, imp_g_slice(g, x, 0, 2), u, u, imp_g_weight_parts(g, "down", down, 2), &a);
}
static void bad_parts(imp_graph *g, imp_val x)
{
    (void)x;
    imp_tensor t[2] = {matrix(12, 16), matrix(12, 15)};
    imp_g_weight_parts(g, "mixed", t, 2);
}
static void bad_mix(imp_graph *g, imp_val x)
{
    imp_g_linear(g, weight(g, "w", 4, 16), x, 0);
}
static void no_output(imp_graph *g, imp_val x)
{
    imp_g_gather(g, x);
}
static void tok_output(imp_graph *g, imp_val x)
{
    imp_g_output(g, x);
}
static void two_outputs(imp_graph *g, imp_val x)
{
    imp_g_output(g, imp_g_gather(g, x));
    imp_g_output(g, imp_g_gather(g, x));
}
static void first_error_stays(imp_graph *g, imp_val x)
{
    bad_linear(g, x);
    bad_add(g, x);
    imp_g_softcap(g, x, -1);
}

static void test_bad_calls(void **state)
{
    (void)state;
    BAD(bad_linear, "linear", "here", "[tok x 16]", "[4x17]");
    BAD(bad_bias, "linear", "[4x16]", "[5]");
    BAD(bad_add, "add", "[tok x 16]", "[tok x 8]");
    BAD(bad_rows, "add", "[tok x 16]", "[out x 16]");
    BAD(bad_slice, "slice", "[tok x 16]");
    BAD(bad_group, "rms_norm", "[tok x 16]");
    BAD(bad_heads, "attn", "n_kv_head");
    BAD(bad_full_cache, "attn", "cache");
    BAD(bad_kv_gap, "KV layer 1");
    BAD(bad_kv_twice, "KV layer 0", "already");
    BAD(bad_rope, "rope", "even");
    BAD(bad_moe, "moe", "2x[12x16]", "2x[16x11]");
    BAD(bad_parts, "mixed", "part 1");
    BAD(bad_mix, "linear", "weight stands");
    BAD(no_output, "no output");
    BAD(tok_output, "[tok x 16]", "gather");
    BAD(two_outputs, "two outputs");
    BAD(first_error_stays, "[4x17]");
}

static void test_nomem(void **state)
{
    (void)state;
    for (uint64_t i = 1;; i++) {
        imp_sys_fail_at(i);
        imp_graph *g = decoder();
        imp_status s = g == NULL ? IMP_NOMEM : imp_graph_finish(g, NULL);
        imp_sys_fail_at(0);
        imp_graph_free(g);
        if (s == IMP_OK) {
            assert_true(i > 3); /* it did allocate */
            return;
        }
        assert_int_equal(s, IMP_NOMEM);
        assert_true(i < 1000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_print),
        cmocka_unit_test(test_bad_calls),
        cmocka_unit_test(test_nomem),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
