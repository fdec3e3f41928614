/* tests/model/lora_file.h - adapters made up for tests, in the bytes of both file forms, and the merged weights that they
 * stand for, computed by plain loops. */
#ifndef TESTS_MODEL_LORA_FILE_H
#define TESTS_MODEL_LORA_FILE_H

#include "run.h"

#include <string.h>

#include "model/adapter.h"

enum { LF_MAX = 160 };

/* One adapted weight. a [rank][k] and b [n][rank]; of an embedding a is [rank][n_row] and b [width][rank]. */
typedef struct lf_pair {
    char name[160]; /* of the weight in the base's file, with .weight */
    bool embed;
    uint64_t n, k, rank; /* of a and b as above: b has n rows, a k columns */
    float *a, *b;
} lf_pair;

typedef struct lf_adapter {
    lf_pair pair[LF_MAX];
    uint32_t n;
    float alpha;
    bool rslora;
    float *merged[LF_MAX]; /* weights that lf_merge made */
    uint32_t n_merged;
} lf_adapter;

static inline float lf_random(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (float)((double)(*state >> 40) / 8388608.0 - 1.0);
}

static inline float *lf_values(uint64_t n, float size, uint64_t *state)
{
    float *v = malloc(n * sizeof *v);
    assert_non_null(v);
    for (uint64_t i = 0; i < n; i++) v[i] = size * lf_random(state);
    return v;
}

static inline void lf_add(lf_adapter *f, const char *name, bool embed, uint64_t n, uint64_t k, uint64_t rank,
                          uint64_t *state)
{
    for (uint32_t i = 0; i < f->n; i++)
        if (strcmp(f->pair[i].name, name) == 0 && f->pair[i].embed == embed) return;
    assert_true(f->n < LF_MAX);
    lf_pair *p = &f->pair[f->n++];
    *p = (lf_pair){.embed = embed, .n = n, .k = k, .rank = rank};
    snprintf(p->name, sizeof p->name, "%s", name);
    p->a = lf_values(rank * k, embed ? 0.6f : 1.2f / sqrtf((float)k), state);
    p->b = lf_values(n * rank, embed ? 0.3f : 0.5f, state);
}

/* A pair for every linear layer of the graph, and for the embedding where no other layer has its weight. */
static inline void lf_make(lf_adapter *f, const imp_graph *g, uint64_t rank, uint64_t seed)
{
    uint64_t state = seed;
    *f = (lf_adapter){.alpha = 2 * (float)rank};
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        if (n->op != IMP_OP_LINEAR && !(n->op == IMP_OP_EMBED && n->u.embed.by == IMP_BY_TOKEN)) continue;
        imp_val w = n->in[n->op == IMP_OP_LINEAR ? 1 : 0];
        const imp_node *weight = imp_graph_node(g, w);
        bool shared = false;
        for (imp_val o = 1; o <= imp_graph_n(g); o++) {
            const imp_node *x = imp_graph_node(g, o);
            for (uint32_t i = 0; i < x->n_in; i++)
                shared = shared || (o != v && x->in[i] != 0 &&
                                    strcmp(imp_graph_node(g, x->in[i])->name, weight->name) == 0 &&
                                    imp_graph_node(g, x->in[i])->op == IMP_OP_WEIGHT);
        }
        if (shared) continue;
        const imp_tensor *t = weight->u.weight.part;
        if (n->op == IMP_OP_LINEAR)
            lf_add(f, weight->name, false, t->dim[0], t->dim[1], rank, &state);
        else
            lf_add(f, weight->name, true, t->dim[1], t->dim[0], rank, &state);
    }
}

static inline void lf_free(lf_adapter *f)
{
    for (uint32_t i = 0; i < f->n; i++) {
        free(f->pair[i].a);
        free(f->pair[i].b);
    }
    for (uint32_t i = 0; i < f->n_merged; i++) free(f->merged[i]);
    f->n = f->n_merged = 0;
}

static inline float lf_scale(const lf_adapter *f, uint64_t rank)
{
    return f->alpha / (f->rslora ? sqrtf((float)rank) : (float)rank);
}

/* ---- GGUF -------------------------------------------------------------------------------------------- */

static inline void lf_u64(imp_buf *b, uint64_t v)
{
    imp_buf_add(b, &v, 8);
}
static inline void lf_u32(imp_buf *b, uint32_t v)
{
    imp_buf_add(b, &v, 4);
}
static inline void lf_str(imp_buf *b, const char *s)
{
    lf_u64(b, strlen(s));
    imp_buf_str(b, s);
}
static inline void lf_kv_str(imp_buf *b, const char *key, const char *value)
{
    lf_str(b, key);
    lf_u32(b, 8);
    lf_str(b, value);
}

static inline void lf_info(imp_buf *b, const char *name, const char *half, uint64_t rows, uint64_t cols,
                           uint64_t *at)
{
    char full[200];
    snprintf(full, sizeof full, "%s.%s", name, half);
    lf_str(b, full);
    lf_u32(b, 2);
    lf_u64(b, cols);
    lf_u64(b, rows);
    lf_u32(b, 0); /* f32 */
    lf_u64(b, *at);
    *at += (rows * cols * 4 + 31) / 32 * 32;
}

static inline void lf_pad(imp_buf *b, size_t from)
{
    while ((b->n - from) % 32 != 0) imp_buf_add(b, "", 1);
}

static inline imp_buf lf_gguf(const lf_adapter *f, const char *arch)
{
    imp_buf b = {0};
    uint64_t at = 0;
    imp_buf_str(&b, "GGUF");
    lf_u32(&b, 3);
    lf_u64(&b, 2 * f->n);
    lf_u64(&b, 4);
    lf_kv_str(&b, "general.architecture", arch);
    lf_kv_str(&b, "general.type", "adapter");
    lf_kv_str(&b, "adapter.type", "lora");
    lf_str(&b, "adapter.lora.alpha");
    lf_u32(&b, 6);
    imp_buf_add(&b, &f->alpha, 4);
    for (uint32_t i = 0; i < f->n; i++) {
        const lf_pair *p = &f->pair[i];
        lf_info(&b, p->name, "lora_a", p->embed ? p->k : p->rank, p->embed ? p->rank : p->k, &at);
        lf_info(&b, p->name, "lora_b", p->n, p->rank, &at);
    }
    lf_pad(&b, 0);
    size_t data = b.n;
    for (uint32_t i = 0; i < f->n; i++) {
        const lf_pair *p = &f->pair[i];
        if (p->embed) /* a row a token */
            for (uint64_t t = 0; t < p->k; t++)
                for (uint64_t j = 0; j < p->rank; j++) imp_buf_add(&b, &p->a[j * p->k + t], 4);
        else
            imp_buf_add(&b, p->a, p->rank * p->k * 4);
        lf_pad(&b, data);
        imp_buf_add(&b, p->b, p->n * p->rank * 4);
        lf_pad(&b, data);
    }
    assert_false(b.failed);
    return b;
}

/* ---- PEFT -------------------------------------------------------------------------------------------- */

static inline imp_buf lf_peft_config(const lf_adapter *f)
{
    imp_buf b = {0};
    imp_buf_fmt(&b,
                "{\"peft_type\":\"LORA\",\"r\":%d,\"lora_alpha\":%g,\"bias\":\"none\",\"use_rslora\":%s,"
                "\"use_dora\":false,\"target_modules\":[\"q_proj\"],\"init_lora_weights\":true,"
                "\"fan_in_fan_out\":false,\"modules_to_save\":null,\"lora_dropout\":0.05}",
                (int)f->pair[0].rank, (double)f->alpha, f->rslora ? "true" : "false");
    return b;
}

static inline imp_buf lf_peft_tensors(const lf_adapter *f)
{
    imp_buf head = {0}, b = {0};
    uint64_t at = 0;
    imp_buf_str(&head, "{");
    for (uint32_t i = 0; i < 2 * f->n; i++) {
        const lf_pair *p = &f->pair[i / 2];
        bool half_b = i % 2;
        uint64_t rows = half_b ? p->n : p->rank, cols = half_b ? p->rank : p->k;
        imp_buf_fmt(&head,
                    "%s\"base_model.model.%.*s.lora_%s%s%s\":{\"dtype\":\"F32\",\"shape\":[%llu,%llu],"
                    "\"data_offsets\":[%llu,%llu]}",
                    i ? "," : "", (int)(strlen(p->name) - strlen(".weight")), p->name,
                    p->embed ? "embedding_" : "", half_b ? "B" : "A", p->embed ? "" : ".weight",
                    (unsigned long long)rows, (unsigned long long)cols, (unsigned long long)at,
                    (unsigned long long)(at + rows * cols * 4));
        at += rows * cols * 4;
    }
    imp_buf_str(&head, "}");
    lf_u64(&b, head.n);
    imp_buf_add(&b, head.data, head.n);
    for (uint32_t i = 0; i < f->n; i++) {
        const lf_pair *p = &f->pair[i];
        imp_buf_add(&b, p->a, p->rank * p->k * 4);
        imp_buf_add(&b, p->b, p->n * p->rank * 4);
    }
    imp_buf_deinit(&head);
    assert_false(b.failed);
    return b;
}

/* The adapter of a net, through the form that its base has. */
static inline imp_adapter *lf_open(const lf_adapter *f, const imp_net *net, bool gguf, const char *arch,
                                   imp_buf hold[2])
{
    imp_adapter *a;
    imp_error err = {0};
    imp_status s;
    memset(hold, 0, 2 * sizeof *hold);
    if (gguf) {
        hold[0] = lf_gguf(f, arch);
        s = imp_adapter_from_gguf(net, (const uint8_t *)hold[0].data, hold[0].n, &a, &err);
    } else {
        hold[0] = lf_peft_config(f);
        hold[1] = lf_peft_tensors(f);
        s = imp_adapter_from_peft(net, hold[0].data, hold[0].n, (const uint8_t *)hold[1].data, hold[1].n, &a,
                                  &err);
    }
    check_ok(s, &err);
    return a;
}

static inline void lf_close(imp_adapter *a, imp_buf hold[2])
{
    imp_adapter_unref(a);
    imp_buf_deinit(&hold[0]);
    imp_buf_deinit(&hold[1]);
}

/* ---- the truth ---------------------------------------------------------------------------------------- */

/* W + scale B A in f32 takes the place of every adapted weight of the graph, until lf_free. */
static inline void lf_merge(lf_adapter *f, imp_graph *g, float scale)
{
    imp_error err = {0};
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *w = imp_graph_node(g, v);
        for (uint32_t i = 0; w->op == IMP_OP_WEIGHT && i < f->n; i++) {
            const lf_pair *p = &f->pair[i];
            const imp_tensor *t = w->u.weight.part;
            if (strcmp(p->name, w->name) != 0) continue;
            uint64_t n = t->dim[0], k = t->dim[1];
            float *m = malloc(n * k * sizeof *m);
            assert_true(m != NULL && f->n_merged < LF_MAX);
            f->merged[f->n_merged++] = m;
            for (uint64_t r = 0; r < n; r++) {
                imp_tensor_row_f32(t, r, m + r * k);
                for (uint64_t c = 0; c < k; c++) {
                    double sum = 0; /* of an embedding the row is a token */
                    for (uint64_t j = 0; j < p->rank; j++)
                        sum += p->embed ? (double)p->b[c * p->rank + j] * p->a[j * p->k + r]
                                        : (double)p->b[r * p->rank + j] * p->a[j * p->k + c];
                    m[r * k + c] += (float)((double)scale * (double)lf_scale(f, p->rank) * sum);
                }
            }
            imp_tensor merged = {.dtype = IMP_F32, .n_dim = 2, .dim = {n, k, 1, 1}, .data = m};
            check_ok(imp_graph_rebind(g, v, &merged, &err), &err);
        }
    }
}

#endif
