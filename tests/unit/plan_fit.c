/* plan/fit: what a model takes beside its weights is counted as the heap has it, and the context that is called the largest
 * is the largest. */
#include "test.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "plan/fit.h"

#define NANO    "models/impetus-nano.gguf"
#define STORIES "models/stories260K.gguf"

/* Vocabulary, directory and graphs against glibc's own count of the heap. */
static void test_net_bytes(void **state)
{
    (void)state;
#if !defined(__GLIBC__) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip();
#else
    static const char *const path[] = {NANO, STORIES, "models/impetus-nano-embed.gguf"};
    for (size_t i = 0; i < IMP_COUNT(path); i++) {
        imp_net *net;
        imp_error err;
        struct mallinfo2 a = mallinfo2();
        assert_int_equal(imp_net_open(path[i], 0, &net, &err), IMP_OK);
        struct mallinfo2 b = mallinfo2();
        double took = (double)(b.uordblks + b.hblkhd - a.uordblks - a.hblkhd),
               said = (double)imp_net_bytes(net);
        print_message("# %s: heap grew by %.0f bytes, counted %.0f\n", path[i], took, said);
        assert_true(said <= took &&
                    said > 0.9 * took); /* compiled patterns and the heap's own headers are not counted */
        imp_net_close(net);
    }
#endif
}

static uint64_t more(const imp_net *net, const imp_limits *g, const imp_limits *e, void *user)
{
    (void)e;
    return net->generate != NULL ? *(uint64_t *)user + g->max_ctx : 0;
}

/* Bisection against trying every block. */
static void test_largest_context(void **state)
{
    (void)state;
    imp_net *net;
    imp_device *d;
    imp_error err;
    uint64_t extra = 100000;
    assert_int_equal(imp_net_open(NANO, 0, &net, &err), IMP_OK);
    assert_int_equal(imp_dev_cpu_open(1, &d, &err), IMP_OK);
    imp_fit_want w = {.n_parallel = 1, .n_batch = 128, .kv_dtype = IMP_F16, .more = more, .user = &extra};
    imp_fit f, all;
    w.mem_bytes = UINT64_MAX;
    w.n_ctx = 1024;
    assert_int_equal(imp_fit_compute(d, net, &w, &all, &err), IMP_OK);
    assert_int_equal(all.memory.total,
                     all.memory.weights + all.memory.kv + all.memory.scratch + all.memory.other);
    for (uint64_t cut = 1; cut < 6 << 20; cut += 777777) {
        w.mem_bytes = all.memory.total - cut;
        w.n_ctx = 1024;
        assert_int_equal(imp_fit_compute(d, net, &w, &f, &err), IMP_NO_FIT);
        uint32_t largest = f.memory.largest_ctx, best = 0;
        char words[64];
        if (largest == 0) break;
        snprintf(words, sizeof words, "the largest context that fits is %u", largest);
        assert_non_null(strstr(err.text, words));
        for (w.n_ctx = 512; w.n_ctx <= 1024; w.n_ctx += 64)
            if (imp_fit_compute(d, net, &w, &f, &err) == IMP_OK && f.memory.fits) best = w.n_ctx;
        assert_true(largest >= best && largest < best + 64);
        w.n_ctx = largest;
        assert_int_equal(imp_fit_compute(d, net, &w, &f, &err), IMP_OK);
    }
    extra += 1 << 20; /* what serving takes is part of the sum */
    w.mem_bytes = UINT64_MAX;
    w.n_ctx = 1024;
    assert_int_equal(imp_fit_compute(d, net, &w, &f, &err), IMP_OK);
    assert_int_equal(f.memory.total, all.memory.total + (1 << 20));
    assert_int_equal(f.memory.other, all.memory.other + (1 << 20));
    d->ops->close(d);
    imp_net_close(net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_net_bytes),
        cmocka_unit_test(test_largest_context),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
