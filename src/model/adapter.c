/* model/adapter.c - a low-rank adapter (LoRA) from its file, for the graphs of one net.
 *
 * Place:   called by engine; over fmt (gguf, peft) and this folder's names. Makes what graph/adapter.h describes.
 * Idea:    each tensor's name is taken apart into the neutral name of a weight, its layer and which half it is, whichever of
 *          the two spellings the file uses; the halves meet in a table of all weights that can be adapted. Then each pair is
 *          held against the base's weight, brought into one form, and packed for the CPU's kernels.
 * Layout:  GGUF   <weight>.lora_a [rank][k], <weight>.lora_b [n][rank]; token_embd.weight.lora_a [n_vocab][rank]
 *          PEFT   base_model.model.<module>.lora_A.weight, .lora_B.weight; lora_embedding_A [rank][n_vocab], .._B
 *          A converter that permutes the base's Q and K does the same to the rows of their B: where adapter and base are of
 *          different kinds those rows are put into the base's order.
 * Threads: an open adapter is read-only.
 * Source:  llama.cpp's adapter files (llama-adapter.cpp, convert_lora_to_gguf.py); PEFT's state dict. */
#include "model/adapter.h"

#include <float.h>
#include <math.h>
#include <stdio.h>

#include "fmt/peft.h"
#include "model/model_int.h"

static const char *const KEYS[] = {"token_embd",  "output",   "attn_q", "attn_k",   "attn_v",      "attn_qkv",
                                   "attn_output", "ffn_gate", "ffn_up", "ffn_down", "ffn_gate_inp"};
enum { N_KEY = IMP_COUNT(KEYS), KEY_EMBED = 0, KEY_OUTPUT = 1, KEY_Q = 2, KEY_K = 3, N_RAW = 160 };

/* A weight's two halves. */
typedef struct pair {
    const imp_tensor *a, *b; /* as in the file; NULL: not there */
    float scale;
    char name[N_RAW]; /* of the weight, as the adapter spells it */
} pair;

typedef struct adapter {
    imp_adapter base; /* first */
    imp_arena *arena;
    imp_gguf *gguf; /* one of the two */
    imp_peft *peft;
    uint8_t *region; /* owned pages: packed matrices, and those that had to be changed */
    uint64_t region_bytes;
} adapter;

typedef struct opening {
    const imp_net *net;
    const imp_arch *arch;
    adapter *ad;
    pair *pair; /* [n_layer + 1][N_KEY]; layer -1 first */
    uint32_t n_layer;
    float alpha;      /* GGUF */
    bool interleaved; /* Q and K of what it was made for are permuted */
    uint64_t need;    /* bytes of the region, while it is measured */
    uint8_t *at;      /* its next free byte, while it is filled; NULL: it is measured */
    imp_error *err;
} opening;

static void adapter_free(imp_adapter *base)
{
    adapter *a = (adapter *)base;
    if (a == NULL) return;
    imp_gguf_close(a->gguf);
    imp_peft_close(a->peft);
    imp_sys_pages_free(a->region, a->region_bytes);
    imp_arena_free(a->arena);
    imp_sys_free(a);
}

static pair *pair_at(const opening *o, int layer, int key)
{
    return &o->pair[(size_t)(layer + 1) * N_KEY + (size_t)key];
}

static imp_status no_part(opening *o, const char *name)
{
    return imp_fail_field(
        o->err, IMP_UNSUPPORTED, "tensor",
        "the adapter's tensor %.150s belongs to nothing of this %s model that an adapter can "
        "change here",
        name, o->arch->name);
}

/* ---- names ---------------------------------------------------------------------------------------- */

typedef enum half { HALF_A, HALF_B } half;

/* Enter a half of the weight called `weight`, a name in the adapter's spelling. */
static imp_status enter(opening *o, const char *weight, half h, const char *raw, const imp_tensor *t)
{
    const char *key;
    int layer, k = 0;
    if (!imp_source_name(o->arch, o->ad->gguf != NULL, weight, &key, &layer)) return no_part(o, raw);
    while (k < (int)N_KEY && strcmp(KEYS[k], key) != 0) k++;
    if (k == (int)N_KEY || layer >= (int)o->n_layer) return no_part(o, raw);
    pair *p = pair_at(o, layer, k);
    const imp_tensor **at = h == HALF_A ? &p->a : &p->b;
    if (*at != NULL)
        return imp_fail_field(o->err, IMP_FORMAT, "tensor", "the adapter has tensor %.150s twice", raw);
    *at = t;
    (void)snprintf(p->name, sizeof p->name, "%s", weight);
    return IMP_OK;
}

/* name = head + ... + tail: what is between them, in out. */
static bool between(const char *name, const char *head, const char *tail, char *out, size_t cap)
{
    size_t n = strlen(name), h = strlen(head), t = strlen(tail);
    if (n <= h + t || n - h - t >= cap || strncmp(name, head, h) != 0 || strcmp(name + n - t, tail) != 0)
        return false;
    memcpy(out, name + h, n - h - t);
    out[n - h - t] = '\0';
    return true;
}

static imp_status read_gguf_names(opening *o)
{
    for (uint64_t i = 0; i < imp_gguf_n_tensor(o->ad->gguf); i++) {
        imp_str s;
        const imp_tensor *t = imp_gguf_tensor_at(o->ad->gguf, i, &s);
        char raw[N_RAW], weight[N_RAW];
        (void)snprintf(raw, sizeof raw, "%.*s", (int)IMP_MIN(s.n, sizeof raw - 1), s.p);
        if (s.n < sizeof raw && between(raw, "", ".weight.lora_a", weight, sizeof weight))
            IMP_TRY(enter(o, weight, HALF_A, raw, t));
        else if (s.n < sizeof raw && between(raw, "", ".weight.lora_b", weight, sizeof weight))
            IMP_TRY(enter(o, weight, HALF_B, raw, t));
        else
            return imp_fail_field(o->err, IMP_UNSUPPORTED, "tensor",
                                  "the adapter's tensor %.150s is no half of a low-rank pair "
                                  "(NAME.weight.lora_a, .lora_b)",
                                  raw);
    }
    return IMP_OK;
}

static imp_status read_peft_names(opening *o)
{
    static const struct {
        const char *tail;
        half h;
    } form[] = {{".lora_A.weight", HALF_A},
                {".lora_B.weight", HALF_B},
                {".lora_embedding_A", HALF_A},
                {".lora_embedding_B", HALF_B}};
    const imp_safetensors *st = imp_peft_tensors(o->ad->peft);
    for (uint64_t i = 0; i < imp_safetensors_n(st); i++) {
        const char *raw;
        const imp_tensor *t = imp_safetensors_at(st, i, &raw);
        char module[N_RAW];
        size_t k = 0;
        while (k < IMP_COUNT(form) && !between(raw, "base_model.model.", form[k].tail, module, sizeof module))
            k++;
        if (k == IMP_COUNT(form))
            return imp_fail_field(o->err, IMP_UNSUPPORTED, "tensor",
                                  "the adapter's tensor %.150s is no half of a low-rank pair%s", raw,
                                  strstr(raw, "lora_magnitude_vector") != NULL ? ": DoRA is not understood"
                                                                               : "");
        IMP_TRY(enter(o, module, form[k].h, raw, t));
    }
    return IMP_OK;
}

/* ---- against the base ------------------------------------------------------------------------------ */

/* The base's weight of a pair: its view, and its name in the graphs. */
static const imp_entry *base_of(const opening *o, int layer, int key)
{
    imp_net_source *src = o->net->source;
    imp_entry *e = imp_source_find(src, o->arch, KEYS[key], layer, -1, ".weight");
    if (e == NULL && key == KEY_OUTPUT) e = imp_source_find(src, o->arch, KEYS[KEY_EMBED], -1, -1, ".weight");
    return e;
}

static bool is_one_matrix(const imp_tensor *t)
{
    return t->n_dim == 2 && t->dim[0] > 0 && t->dim[1] > 0;
}

/* Embeddings in PEFT's form lie the other way round. */
static bool is_turned(const opening *o, int key)
{
    return key == KEY_EMBED && o->ad->peft != NULL;
}

static imp_status check_pair(opening *o, int layer, int key)
{
    pair *p = pair_at(o, layer, key);
    const imp_entry *e = base_of(o, layer, key);
    if (p->a == NULL || p->b == NULL)
        return imp_fail_field(o->err, IMP_FORMAT, "tensor", "the adapter has only half %s of %.150s",
                              p->a != NULL ? "A" : "B", p->name);
    if (e == NULL || !is_one_matrix(e->t)) return no_part(o, p->name);
    if (!is_one_matrix(p->a) || !is_one_matrix(p->b))
        return imp_fail_field(o->err, IMP_FORMAT, "tensor", "the adapter's halves of %.150s are no matrices",
                              p->name);
    uint64_t n = e->t->dim[0], k = e->t->dim[1], rank = p->b->dim[1];
    bool embed = key == KEY_EMBED, turned = is_turned(o, key);
    /* of an embedding [n_vocab][width] A has a row a token, and B makes the width */
    uint64_t want_a[2] = {embed && !turned ? n : rank, embed ? (turned ? n : rank) : k};
    uint64_t want_b = embed ? k : n;
    if (rank > IMP_MAX_LORA_RANK)
        return imp_fail_field(o->err, IMP_UNSUPPORTED, "tensor",
                              "the adapter has rank %llu for %.150s, the limit is %d",
                              (unsigned long long)rank, p->name, IMP_MAX_LORA_RANK);
    if (p->a->dim[0] != want_a[0] || p->a->dim[1] != want_a[1] || p->b->dim[0] != want_b)
        return imp_fail_field(o->err, IMP_FORMAT, "tensor",
                              "the adapter does not belong to this model: for %.120s, a weight of %llux%llu, "
                              "it has A of %llux%llu and "
                              "B of %llux%llu",
                              p->name, (unsigned long long)n, (unsigned long long)k,
                              (unsigned long long)p->a->dim[0], (unsigned long long)p->a->dim[1],
                              (unsigned long long)p->b->dim[0], (unsigned long long)rank);
    if (o->ad->peft != NULL) return imp_peft_scale(o->ad->peft, p->name, rank, &p->scale, o->err);
    p->scale = o->alpha > 0 || o->alpha < 0 ? o->alpha / (float)rank : 1;
    return IMP_OK;
}

static imp_status check_finite(opening *o, const pair *p, const imp_tensor *t)
{
    uint64_t n_col = imp_tensor_n_col(t);
    float *row = imp_sys_malloc(n_col * sizeof *row);
    if (row == NULL) return imp_fail(o->err, IMP_NOMEM, "out of memory while reading an adapter");
    bool good = true;
    for (uint64_t r = 0; r < imp_tensor_n_row(t) && good; r++) {
        imp_tensor_row_f32(t, r, row);
        for (uint64_t i = 0; i < n_col && good; i++) good = isfinite(row[i]);
    }
    imp_sys_free(row);
    return good ? IMP_OK
                : imp_fail_field(o->err, IMP_FORMAT, "tensor",
                                 "the adapter's numbers for %.150s are not all finite", p->name);
}

static imp_status check_all(opening *o)
{
    uint32_t n = 0;
    for (int l = -1; l < (int)o->n_layer; l++)
        for (int k = 0; k < (int)N_KEY; k++) {
            const pair *p = pair_at(o, l, k);
            if (p->a == NULL && p->b == NULL) continue;
            for (int h = 0; h < 2; h++) {
                const imp_tensor *t = h == 0 ? p->a : p->b;
                const imp_dtype_info *d = t != NULL ? imp_dtype_get(t->dtype) : NULL;
                if (t != NULL && d->to_f32 == NULL)
                    return imp_fail_field(o->err, IMP_UNSUPPORTED, "tensor",
                                          "the adapter's halves of %.150s hold %s, which are no weights",
                                          p->name, d->name);
            }
            IMP_TRY(check_pair(o, l, k));
            IMP_TRY(check_finite(o, p, p->a));
            IMP_TRY(check_finite(o, p, p->b));
            n++;
        }
    return n > 0 ? IMP_OK : imp_fail(o->err, IMP_FORMAT, "the adapter changes nothing: it has no tensors");
}

/* ---- one form ---------------------------------------------------------------------------------------- */

/* n bytes of the region; NULL while it is measured. */
static void *take(opening *o, uint64_t n)
{
    n = (n + 63) & ~63ull;
    o->need += n;
    void *p = o->at;
    if (o->at != NULL) o->at += n;
    return p;
}

/* Where row r of B lies in the file, when Q's or K's rows are permuted there and not in the base, or the other way round.
 * A head's rows are i and i + half in one order and 2i and 2i + 1 in the other. */
static uint64_t from_row(uint32_t n_head, uint64_t n_row, uint64_t r, bool to_pairs)
{
    uint64_t dim = n_row / n_head, head = r / dim, i = r % dim, half = dim / 2;
    uint64_t from = to_pairs ? (i % 2) * half + i / 2 : (i % half) * 2 + i / half;
    return head * dim + from;
}

/* How many heads' rows must change their order; 0: none. */
static uint32_t heads_to_turn(const opening *o, int key)
{
    bool base = o->net->source->gguf != NULL && o->arch->gguf_interleaved;
    if (base == o->interleaved || (key != KEY_Q && key != KEY_K)) return 0;
    return key == KEY_Q ? o->net->cfg.n_head : o->net->cfg.n_kv_head;
}

/* The tensor as kernels read it: f32, f16 or bf16, its rows in the base's order, not turned. What has that form stays where it
 * is, everything else becomes f32 in the region. */
static imp_tensor shape_half(opening *o, const imp_tensor *t, uint32_t n_head, bool turned)
{
    bool plain = t->dtype == IMP_F32 || t->dtype == IMP_F16 || t->dtype == IMP_BF16;
    imp_tensor out = *t;
    if (plain && n_head == 0 && !turned) return out;
    uint64_t n = t->dim[0], k = t->dim[1];
    float *to = take(o, n * k * sizeof *to);
    out = (imp_tensor){.dtype = IMP_F32, .n_dim = 2, .data = to};
    for (int i = 0; i < IMP_MAX_DIM; i++) out.dim[i] = 1;
    out.dim[0] = turned ? k : n;
    out.dim[1] = turned ? n : k;
    float *row = turned ? take(o, k * sizeof *row) : NULL;
    bool to_pairs = o->net->source->gguf != NULL;
    for (uint64_t r = 0; r < n && to != NULL; r++) {
        if (!turned) {
            imp_tensor_row_f32(t, n_head == 0 ? r : from_row(n_head, n, r, to_pairs), to + r * k);
            continue;
        }
        imp_tensor_row_f32(t, r, row);
        for (uint64_t i = 0; i < k; i++) to[i * n + r] = row[i];
    }
    return out;
}

/* Choose the kernel for a half and pack it. */
static const void *pack(opening *o, const imp_tensor *t, const imp_matmul **mm)
{
    *mm = imp_matmul_select_f32(t->dtype, t->dim[1]);
    if ((*mm)->packed_bytes == NULL) return NULL;
    void *to = take(o, (*mm)->packed_bytes(t->dim[0], t->dim[1]));
    if (to != NULL) (*mm)->pack(t, to);
    return to;
}

static void add_id(adapter *a, const void *p, size_t n)
{
    for (int i = 0; i < 2; i++)
        a->base.id[i] = imp_sum64(p, n, a->base.id[i] + (uint64_t)i * 0x9e3779b97f4a7c15u);
}

static imp_adapter_part *make_part(opening *o, int layer, int key)
{
    const pair *p = pair_at(o, layer, key);
    imp_adapter_part *part = imp_arena_alloc(o->ad->arena, sizeof *part);
    if (part == NULL) return NULL;
    part->scale = p->scale;
    part->a = shape_half(o, p->a, 0, is_turned(o, key));
    part->b = shape_half(o, p->b, heads_to_turn(o, key), false);
    if (key != KEY_EMBED) part->wp_a = pack(o, &part->a, &part->mm_a);
    part->wp_b = pack(o, &part->b, &part->mm_b);
    if (o->at == NULL) return part;
    o->ad->base.rank = IMP_MAX(o->ad->base.rank, (uint32_t)part->b.dim[1]);
    int32_t where[2] = {layer, key};
    add_id(o->ad, where, sizeof where);
    add_id(o->ad, &p->scale, sizeof p->scale);
    add_id(o->ad, part->a.data, imp_tensor_bytes(&part->a));
    add_id(o->ad, part->b.data, imp_tensor_bytes(&part->b));
    if (part->wp_a != NULL) imp_sys_file_forget(p->a->data, imp_tensor_bytes(p->a));
    if (part->wp_b != NULL) imp_sys_file_forget(p->b->data, imp_tensor_bytes(p->b));
    return part;
}

/* Enter the part at every node that uses the base's weight in the pair's way. */
static uint32_t enter_part(opening *o, int which, const imp_entry *e, int key, imp_adapter_part *part)
{
    const imp_graph *g = o->ad->base.graph[which];
    uint32_t n = 0;
    for (imp_val v = 1; g != NULL && v <= imp_graph_n(g); v++) {
        const imp_node *node = imp_graph_node(g, v);
        bool embed = node->op == IMP_OP_EMBED && node->u.embed.by == IMP_BY_TOKEN && key == KEY_EMBED;
        bool linear = node->op == IMP_OP_LINEAR && key != KEY_EMBED;
        imp_val w = embed ? node->in[0] : linear ? node->in[1] : 0;
        if (w == 0 || strcmp(imp_graph_node(g, w)->name, e->raw) != 0) continue;
        o->ad->base.part[which][v] = part;
        n++;
    }
    return n;
}

static imp_status make_parts(opening *o)
{
    for (int l = -1; l < (int)o->n_layer; l++)
        for (int k = 0; k < (int)N_KEY; k++) {
            if (pair_at(o, l, k)->a == NULL) continue;
            imp_adapter_part *part = make_part(o, l, k);
            if (part == NULL) return imp_fail(o->err, IMP_NOMEM, "out of memory while reading an adapter");
            if (o->at == NULL) continue;
            const imp_entry *e = base_of(o, l, k);
            if (enter_part(o, 0, e, k, part) + enter_part(o, 1, e, k, part) == 0)
                return no_part(o, pair_at(o, l, k)->name);
        }
    return IMP_OK;
}

/* ---- the whole ---------------------------------------------------------------------------------------- */

/* What a GGUF file says of itself. */
static imp_status read_gguf_keys(opening *o)
{
    const imp_gguf *g = o->ad->gguf;
    imp_str s;
    double alpha = 0;
    if (!imp_gguf_str(g, "general.type", &s) || s.n != 7 || memcmp(s.p, "adapter", 7) != 0)
        return imp_fail(o->err, IMP_FORMAT, "the file is no adapter: its general.type is not \"adapter\"");
    if (!imp_gguf_str(g, "adapter.type", &s) || s.n != 4 || memcmp(s.p, "lora", 4) != 0)
        return imp_fail(o->err, IMP_UNSUPPORTED, "adapter.type is \"%.*s\": only \"lora\" is understood",
                        (int)IMP_MIN(s.n, 40u), s.p != NULL ? s.p : "");
    if (imp_gguf_has(g, "adapter.alora.invocation_tokens"))
        return imp_fail(
            o->err, IMP_UNSUPPORTED,
            "the adapter is an aLoRA, which works from certain tokens on only: that is not understood");
    const imp_arch *made = imp_gguf_str(g, "general.architecture", &s) ? imp_arch_from_gguf(s.p, s.n) : NULL;
    if (made == NULL || made->names[0] != o->arch->names[0] || made->qk_norm != o->arch->qk_norm)
        return imp_fail(o->err, IMP_FORMAT, "the adapter was made for a %.*s model, this one is a %s",
                        (int)IMP_MIN(s.n, 40u), s.p != NULL ? s.p : "", o->arch->name);
    if (imp_gguf_has(g, "adapter.lora.alpha") &&
        (!imp_gguf_f64(g, "adapter.lora.alpha", &alpha) || !(fabs(alpha) <= (double)FLT_MAX)))
        return imp_fail(o->err, IMP_FORMAT, "adapter.lora.alpha is no number that can be used");
    o->alpha = (float)alpha;
    o->interleaved = made->gguf_interleaved;
    return IMP_OK;
}

static imp_status fill(opening *o)
{
    imp_adapter *b = &o->ad->base;
    const imp_net *net = o->net;
    b->graph[0] = net->generate;
    b->graph[1] = net->embed;
    for (int i = 0; i < 2; i++) {
        uint32_t n = b->graph[i] != NULL ? imp_graph_n(b->graph[i]) : 0;
        b->part[i] = imp_arena_array(o->ad->arena, n + 1, sizeof(imp_adapter_part *));
        if (b->part[i] == NULL) return imp_fail(o->err, IMP_NOMEM, "out of memory while reading an adapter");
    }
    IMP_TRY(o->ad->gguf != NULL ? read_gguf_names(o) : read_peft_names(o));
    IMP_TRY(check_all(o));
    IMP_TRY(make_parts(o)); /* measured first */
    o->ad->region_bytes = o->need + 64;
    o->ad->region = o->at = imp_sys_pages(o->ad->region_bytes);
    if (o->at == NULL)
        return imp_fail(o->err, IMP_NOMEM, "no memory for an adapter (%llu KiB)",
                        (unsigned long long)o->ad->region_bytes >> 10);
    IMP_TRY(make_parts(o));
    b->bytes = sizeof *o->ad + imp_arena_bytes(o->ad->arena) + o->ad->region_bytes;
    return IMP_OK;
}

/* Takes ad, also when it fails. */
static imp_status finish(const imp_net *net, adapter *ad, imp_adapter **out, imp_error *err)
{
    opening o = {.net = net, .arch = net->source->arch, .ad = ad, .n_layer = net->cfg.n_layer, .err = err};
    o.pair = imp_sys_calloc((size_t)(o.n_layer + 1) * N_KEY, sizeof *o.pair);
    ad->arena = imp_arena_new(1 << 12);
    imp_status s = o.pair == NULL || ad->arena == NULL
                       ? imp_fail(err, IMP_NOMEM, "out of memory while reading an adapter")
                       : IMP_OK;
    if (s == IMP_OK && ad->gguf != NULL) s = read_gguf_keys(&o);
    if (s == IMP_OK) s = fill(&o);
    imp_sys_free(o.pair);
    atomic_init(&ad->base.n_ref, 1);
    ad->base.free = adapter_free;
    if (s == IMP_OK)
        *out = &ad->base;
    else
        adapter_free(&ad->base);
    return s;
}

static imp_status new_adapter(adapter **out, imp_error *err)
{
    *out = imp_sys_calloc(1, sizeof **out);
    return *out != NULL ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory while reading an adapter");
}

static bool is_peft(const char *path)
{
    static const char tail[] = ".safetensors";
    size_t n = strlen(path), k = sizeof tail - 1;
    return imp_sys_is_dir(path) || (n > k && strcmp(path + n - k, tail) == 0);
}

imp_status imp_adapter_open(const imp_net *net, const char *path, imp_adapter **out, imp_error *err)
{
    adapter *ad;
    *out = NULL;
    IMP_TRY(new_adapter(&ad, err));
    imp_status s = is_peft(path) ? imp_peft_open(path, &ad->peft, err) : imp_gguf_open(path, &ad->gguf, err);
    if (s == IMP_OK) return finish(net, ad, out, err);
    imp_sys_free(ad);
    return s;
}

imp_status imp_adapter_from_gguf(const imp_net *net, const uint8_t *p, uint64_t n, imp_adapter **out,
                                 imp_error *err)
{
    adapter *ad;
    *out = NULL;
    IMP_TRY(new_adapter(&ad, err));
    imp_status s = imp_gguf_parse(p, n, &ad->gguf, err);
    if (s == IMP_OK) return finish(net, ad, out, err);
    imp_sys_free(ad);
    return s;
}

imp_status imp_adapter_from_peft(const imp_net *net, const char *config, size_t n_config,
                                 const uint8_t *tensors, uint64_t n, imp_adapter **out, imp_error *err)
{
    adapter *ad;
    *out = NULL;
    IMP_TRY(new_adapter(&ad, err));
    imp_status s = imp_peft_parse(config, n_config, tensors, n, &ad->peft, err);
    if (s == IMP_OK) return finish(net, ad, out, err);
    imp_sys_free(ad);
    return s;
}
