/* plan/host, ceilings, traffic: what is said of the machine agrees with the system, measurements are sane and repeatable
 * within what noise allows, traffic is counted as by hand. Speed itself is not asserted. */
#include "test.h"

#include <unistd.h>

#include "kern/kern.h"
#include "plan/ceilings.h"
#include "plan/host.h"
#include "plan/traffic.h"

static void test_host_agrees_with_the_system(void **state)
{
    (void)state;
    imp_host h;
    imp_error err = {0};
    assert_int_equal(imp_host_read(&h, &err), IMP_OK);
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    assert_true(h.n_pu >= 1 && h.n_pu <= (uint32_t)online);
    assert_true(h.n_core >= 1 && h.n_core <= h.n_pu);
    assert_true(h.mem_total > 0 && h.mem_available <= h.mem_total);
    assert_int_equal(h.isa, imp_cpu_features());
    assert_true(h.cpu[0] != 0 && h.arch[0] != 0);
    uint32_t in_kinds = 0;
    for (uint32_t i = 0; i < h.n_kind; i++) in_kinds += h.kind[i].n_core;
    assert_int_equal(in_kinds, h.n_core);
    for (uint32_t i = 0; i < h.n_cache; i++) assert_true(h.cache[i].n >= 1 && h.cache[i].bytes > 0);
    for (uint32_t i = 0; i < h.n_other; i++) assert_true(h.other[i].reason[0] != 0);
}

static void test_ceilings_are_measured(void **state)
{
    (void)state;
    imp_pool *pool;
    imp_ceilings c;
    imp_error err = {0};
    assert_int_equal(imp_pool_new(2, &pool), IMP_OK);
    assert_int_equal(imp_ceilings_measure(pool, 0, 20, UINT64_MAX, &c, &err), IMP_OK);
    imp_pool_free(pool);
    assert_int_equal(c.n_thread, 2);
    assert_true(c.buffer_bytes >= 1 << 20);
    assert_true(c.measured_at > 1600000000);
    /* Bounds that no machine we could run on leaves. */
    assert_true(c.read_bytes_s > 1e7 && c.read_bytes_s < 1e13);
    assert_true(c.int8_op_s > 1e7 && c.int8_op_s < 1e16);
    assert_true(c.f32_flop_s > 1e7 && c.f32_flop_s < 1e15);
}

static imp_val weight(imp_graph *g, const char *name, imp_dtype t, uint64_t n, uint64_t k, const void *data)
{
    imp_tensor w = {.dtype = t, .n_dim = 2, .dim = {n, k, 1, 1}, .data = data};
    return imp_g_weight(g, name, &w);
}

static void test_traffic_of_a_small_decoder(void **state)
{
    (void)state;
    static const float data[64 * 64];
    imp_graph *g = imp_graph_new();
    imp_error err = {0};
    imp_traffic t;
    imp_val table = weight(g, "embd", IMP_F32, 50, 64, data);
    imp_val x = imp_g_embed(g, table, IMP_BY_TOKEN, 0);
    imp_val q = imp_g_linear(g, x, weight(g, "q", IMP_Q8_0, 64, 64, data), 0);
    imp_val k = imp_g_linear(g, x, weight(g, "k", IMP_F16, 32, 64, data), 0);
    imp_val v = imp_g_linear(g, x, weight(g, "v", IMP_F32, 32, 64, data), 0);
    imp_attn_attr a = {.n_head = 4, .n_kv_head = 2, .head_dim = 16, .scale = 0.25f};
    imp_val y = imp_g_gather(g, imp_g_attn(g, q, k, v, 0, &a));
    imp_g_output(g, imp_g_linear(g, y, table, 0));
    assert_int_equal(imp_graph_finish(g, &err), IMP_OK);
    imp_traffic_count(g, &t);
    /* a row of the table; q: 64 rows of 2 blocks of 34 bytes; k: 32x64 halves; v: 32x64 floats; the table as output */
    assert_int_equal(t.weight_bytes, 64 * 4 + 64 * 2 * 34 + 32 * 64 * 2 + 32 * 64 * 4 + 50 * 64 * 4);
    assert_true(t.tok_flop == 2.0 * 64 * (64 + 32 + 32));
    assert_true(t.out_flop == 2.0 * 64 * 50);
    assert_int_equal(t.kv_bytes_tok, 2 * 2 * 32); /* k and v, two bytes, two heads of 16 */
    imp_graph_free(g);
}

static void test_traffic_of_experts(void **state)
{
    (void)state;
    static const float data[64 * 32];
    imp_graph *g = imp_graph_new();
    imp_error err = {0};
    imp_traffic t;
    imp_tensor up[4], down[4];
    for (int i = 0; i < 4; i++) {
        up[i] = (imp_tensor){.dtype = IMP_F32, .n_dim = 2, .dim = {64, 32, 1, 1}, .data = data};
        down[i] = (imp_tensor){.dtype = IMP_F32, .n_dim = 2, .dim = {32, 64, 1, 1}, .data = data};
    }
    imp_val x = imp_g_embed(g, weight(g, "embd", IMP_F32, 8, 32, data), IMP_BY_TOKEN, 0);
    imp_val router = imp_g_linear(g, x, weight(g, "router", IMP_F32, 4, 32, data), 0);
    imp_moe_attr a = {.n_expert = 4, .n_used = 2, .act = IMP_ACT_SILU, .norm_topk = true};
    imp_val wg = imp_g_weight_parts(g, "gate", up, 4), wu = imp_g_weight_parts(g, "up", up, 4),
            wd = imp_g_weight_parts(g, "down", down, 4);
    imp_g_output(g, imp_g_gather(g, imp_g_moe(g, x, router, wg, wu, wd, &a)));
    assert_int_equal(imp_graph_finish(g, &err), IMP_OK);
    imp_traffic_count(g, &t);
    /* two of four experts, three matrices of 64x32 each; the router; one row of the table */
    assert_int_equal(t.weight_bytes, 2 * 3 * 64 * 32 * 4 + 4 * 32 * 4 + 32 * 4);
    assert_true(t.tok_flop == 2.0 * (2 * 3 * 64 * 32 + 4 * 32));
    imp_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_agrees_with_the_system),
        cmocka_unit_test(test_ceilings_are_measured),
        cmocka_unit_test(test_traffic_of_a_small_decoder),
        cmocka_unit_test(test_traffic_of_experts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
