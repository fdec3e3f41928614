/* tests/model/golden.c - every architecture against transformers: logits and embeddings of tiny random models.
 *
 * Idea:   tests/data/models/NAME/ and NAME.gguf hold the same weights (tools/gen/models.py); golden.safetensors holds
 *         what transformers computes in f32. Each form is loaded and run on ref and on cpu: decoders in one step and
 *         again in pieces through the KV cache, at positions before and past the original context.
 * Bound:  2e-4 of the largest golden value: f32 sums of 64..128 terms in another order, two to seven layers deep;
 *         1e-2 where weights are quantised, because a device may quantise activations too (ref does not: 2e-4 there). */
#include "run.h"

#include <dirent.h>
#include <string.h>

#include "fmt/safetensors.h"

/* Another device's test (cuda_golden.c) states its own and includes this file. */
#ifndef GOLDEN_DEVICES
/* one layer, then the others; every layer divided */
#define GOLDEN_DEVICES            "ref", "cpu", "cpu:1+cpu", "cpu/cpu", "cpu/cpu/cpu/cpu"
#define GOLDEN_BOUND(path, exact) ((exact) ? 2e-4f : 1e-2f)
#endif

static const char *const root = "tests/data/models";

typedef struct golden_case {
    char name[64];
    bool gguf;
    const char *device;
    char title[88];
} golden_case;

static const imp_tensor *golden(const imp_safetensors *s, const char *key)
{
    const imp_tensor *t = imp_safetensors_get(s, key);
    if (!t) fail_msg("golden.safetensors lacks %s", key);
    return t;
}

static float max_abs(const float *v, uint64_t n)
{
    float m = 0;
    for (uint64_t i = 0; i < n; i++) m = fmaxf(m, fabsf(v[i]));
    return m;
}

/* Fails when a value is off by more than bound * max|want|. */
static void compare(const char *what, uint32_t row, const float *have, const float *want, uint64_t n,
                    float scale, float bound)
{
    float worst = 0;
    uint64_t at = 0;
    for (uint64_t i = 0; i < n; i++) {
        float d = fabsf(have[i] - want[i]);
        if (d <= worst) continue;
        worst = d;
        at = i;
    }
    for (uint64_t i = 0; i < n; i++)
        if (!isfinite(have[i]))
            fail_msg("%s row %u: value %llu is not finite", what, row, (unsigned long long)i);
    if (worst > bound * scale)
        fail_msg("%s row %u: value %llu is %g, golden %g; off by %g of max %g, allowed %g", what, row,
                 (unsigned long long)at, (double)have[at], (double)want[at], (double)(worst / scale),
                 (double)scale, (double)bound);
}

/* All tokens in steps of `piece`; golden rows are compared as they come. */
static void check_logits(const imp_net *net, const char *device, const int32_t *ids, uint32_t n,
                         const int32_t *at, uint32_t n_at, const float *want, uint32_t piece, float bound)
{
    run r;
    run_open(&r, device, net->generate);
    assert_int_equal(r.width, net->cfg.n_vocab);
    float scale = max_abs(want, (uint64_t)n_at * r.width);
    for (uint32_t first = 0; first < n; first += piece) {
        uint32_t k = IMP_MIN(piece, n - first), rows[16], index[16], n_rows = 0;
        for (uint32_t i = 0; i < n_at; i++) {
            if ((uint32_t)at[i] < first || (uint32_t)at[i] >= first + k) continue;
            index[n_rows] = i;
            rows[n_rows++] = (uint32_t)at[i] - first;
        }
        const float *out = run_step(&r, ids + first, k, rows, n_rows);
        for (uint32_t i = 0; i < n_rows; i++)
            compare(piece >= n ? "one step" : "in pieces", (uint32_t)at[index[i]], out + i * r.width,
                    want + index[i] * r.width, r.width, scale, bound);
    }
    run_close(&r);
}

static void check_decoder(const char *path, const golden_case *c, const imp_safetensors *s,
                          const char *suffix)
{
    char key[32];
    snprintf(key, sizeof key, "ids%s", suffix);
    const imp_tensor *ids = golden(s, key);
    snprintf(key, sizeof key, "positions%s", suffix);
    const imp_tensor *at = golden(s, key);
    snprintf(key, sizeof key, "logits%s", suffix);
    const imp_tensor *want = imp_safetensors_get(s, "logits_gguf");
    if (!c->gguf || !want) want = golden(s, key);
    uint32_t n = (uint32_t)ids->dim[0], n_at = (uint32_t)at->dim[0];
    imp_net *net;
    imp_error err = {0};
    check_ok(imp_net_open(path, suffix[0] ? n : 0, &net, &err), &err);
    assert_non_null(net->generate);
    assert_int_equal(want->dim[1], net->cfg.n_vocab);
    bool exact = strcmp(c->device, "ref") == 0 || !strstr(path, "mlx4");
    float bound = GOLDEN_BOUND(path, exact);
    check_logits(net, c->device, ids->data, n, at->data, n_at, want->data, n, bound);
    check_logits(net, c->device, ids->data, n, at->data, n_at, want->data, 67, bound);
    imp_net_close(net);
}

static void check_encoder(const char *path, const golden_case *c, const imp_safetensors *s)
{
    const imp_tensor *ids = golden(s, "ids"), *want = golden(s, "embedding");
    imp_net *net;
    imp_error err = {0};
    check_ok(imp_net_open(path, 0, &net, &err), &err);
    assert_non_null(net->embed);
    assert_int_equal(net->cfg.embed_dim, want->dim[1]);
    run r;
    run_open(&r, c->device, net->embed);
    float vector[512];
    assert_true(r.width <= 512 && r.width == want->dim[1]);
    for (uint32_t i = 0; i < ids->dim[0]; i++) {
        const int32_t *row = (const int32_t *)ids->data + i * ids->dim[1];
        const float *w = (const float *)want->data + i * r.width;
        uint32_t n = 0;
        double norm = 0, golden_norm = 0;
        while (n < ids->dim[1] && row[n] >= 0) n++;
        r.n_past = 0;
        memcpy(vector, run_step(&r, row, n, NULL, 0), r.width * sizeof *vector);
        for (uint64_t k = 0; k < r.width; k++) norm += (double)vector[k] * vector[k];
        for (uint64_t k = 0; k < r.width; k++) golden_norm += (double)w[k] * w[k];
        /* GGUF has no flag for normalisation: there the direction is compared. */
        bool unit = fabs(golden_norm - 1) < 1e-4;
        if (!c->gguf) assert_int_equal(net->cfg.normalize, unit);
        for (uint64_t k = 0; unit && k < r.width; k++) vector[k] = (float)(vector[k] / sqrt(norm));
        compare("embedding", i, vector, w, r.width, max_abs(w, r.width), GOLDEN_BOUND(path, true));
    }
    run_close(&r);
    imp_net_close(net);
}

static void test_golden(void **state)
{
    const golden_case *c = *state;
    char path[160], golden_path[160];
    snprintf(path, sizeof path, "%s/%s%s", root, c->name, c->gguf ? ".gguf" : "");
    snprintf(golden_path, sizeof golden_path, "%s/%s/golden.safetensors", root, c->name);
    imp_safetensors *s;
    imp_error err = {0};
    check_ok(imp_safetensors_open(golden_path, &s, &err), &err);
    if (imp_safetensors_get(s, "embedding")) {
        check_encoder(path, c, s);
    } else {
        check_decoder(path, c, s, "");
        if (imp_safetensors_get(s, "ids_short")) check_decoder(path, c, s, "_short");
    }
    imp_safetensors_close(s);
}

static void test_not_empty(void **state)
{
    static const char *const devices[] = {GOLDEN_DEVICES};
    assert_true(*(const size_t *)*state >= 20 * 2 * IMP_COUNT(devices));
}

static int by_title(const void *a, const void *b)
{
    return strcmp(((const golden_case *)a)->title, ((const golden_case *)b)->title);
}

/* One case a form and device. */
static size_t list_cases(golden_case *out, size_t cap)
{
    static const char *const devices[] = {GOLDEN_DEVICES};
    size_t n = 0;
    DIR *d = opendir(root);
    if (!d) return 0;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        char path[400];
        size_t len = strlen(e->d_name);
        bool gguf = len > 5 && strcmp(e->d_name + len - 5, ".gguf") == 0;
        size_t stem = gguf ? len - 5 : len;
        if (e->d_name[0] == '.' || stem >= sizeof out->name) continue;
        snprintf(path, sizeof path, "%s/%.*s/golden.safetensors", root, (int)stem, e->d_name);
        if (!imp_sys_is_file(path)) continue;
        for (size_t i = 0; i < IMP_COUNT(devices) && n < cap; i++) {
            /* blocks of 64 columns: too few for four */
            if (strstr(e->d_name, "mlx4") != NULL && strcmp(devices[i], "cpu/cpu/cpu/cpu") == 0) continue;
            golden_case *c = &out[n++];
            snprintf(c->name, sizeof c->name, "%.*s", (int)stem, e->d_name);
            c->gguf = gguf;
            c->device = devices[i];
            snprintf(c->title, sizeof c->title, "%s%s %s", c->name, gguf ? ".gguf" : "", devices[i]);
        }
    }
    closedir(d);
    qsort(out, n, sizeof *out, by_title);
    return n;
}

int main(void)
{
    static golden_case cases[256];
    static struct CMUnitTest tests[257];
    static size_t n;
    n = list_cases(cases, IMP_COUNT(cases));
    for (size_t i = 0; i < n; i++)
        tests[i] =
            (struct CMUnitTest){.name = cases[i].title, .test_func = test_golden, .initial_state = &cases[i]};
    tests[n] = (struct CMUnitTest){
        .name = "every architecture is there", .test_func = test_not_empty, .initial_state = &n};
    return _cmocka_run_group_tests("model golden", tests, n + 1, NULL, NULL);
}
