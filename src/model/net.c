/* model/net.c - opening a model: files to configuration, tokenizer and graphs.
 *
 * Place:   the only entry of this folder (net.h); called by engine.
 * Idea:    open the files, read one neutral configuration, load the tokenizer, let the family's builder emit the graphs
 *          (logits; vectors where the model has a pooling), and refuse the file when a tensor is left over.
 * Threads: a loaded net is read-only. */
#include "model/model_int.h"
#include "model/tokenizer_load.h"

#include <stdio.h>

typedef struct opening {
    imp_net *net;
    imp_net_source *src;
    imp_spec spec;
    imp_error *err;
} opening;

/* ---- names and sizes --------------------------------------------------------------------------- */

/* The last part of a path without trailing slashes and ".gguf" or ".safetensors". */
static void base_name(const char *path, char *out, size_t n_out)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    size_t begin = n;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    static const char *const suffix[] = {".gguf", ".safetensors"};
    for (size_t i = 0; i < IMP_COUNT(suffix); i++) {
        size_t k = strlen(suffix[i]);
        if (n - begin > k && memcmp(path + n - k, suffix[i], k) == 0) n -= k;
    }
    snprintf(out, n_out, "%.*s", (int)IMP_MIN(n - begin, n_out - 1), path + begin);
}

static void fill_name(opening *o, const char *path)
{
    imp_net_config *c = &o->net->cfg;
    imp_str s;
    if (o->src->gguf && imp_gguf_str(o->src->gguf, "general.name", &s) && s.n > 0 &&
        imp_utf8_valid(s.p, s.n)) {
        size_t n = IMP_MIN(s.n, sizeof c->name - 1);
        n -= imp_utf8_incomplete_tail(s.p, n);
        memcpy(c->name, s.p, n);
        c->name[n] = 0;
    } else {
        base_name(path, c->name, sizeof c->name);
    }
}

/* Parameters, and the type that most bytes have; of what the graphs use, or of all tensors. */
static void fill_weights(opening *o, bool all)
{
    imp_net_config *c = &o->net->cfg;
    uint64_t bytes[IMP_N_DTYPE] = {0};
    const imp_tensor *affine = NULL;
    for (uint32_t i = 0; i < o->src->n_entry; i++) {
        const imp_entry *e = &o->src->entry[i];
        if (!all && !e->used) continue;
        c->n_param += imp_tensor_n_elem(e->t);
        bytes[e->t->dtype] += imp_tensor_bytes(e->t);
        if (e->t->dtype == IMP_AFFINE && (!affine || imp_tensor_bytes(e->t) > imp_tensor_bytes(affine)))
            affine = e->t;
    }
    imp_dtype most = IMP_F32;
    for (int t = 0; t < IMP_N_DTYPE; t++)
        if (bytes[t] > bytes[most]) most = (imp_dtype)t;
    if (most == IMP_AFFINE && affine)
        snprintf(c->type, sizeof c->type, "affine%ug%u", affine->bits, affine->group);
    else
        snprintf(c->type, sizeof c->type, "%s", imp_dtype_get(most)->name);
}

static void fill_config(opening *o, const char *path, bool can_generate, bool can_embed)
{
    imp_net_config *c = &o->net->cfg;
    const imp_spec *s = &o->spec;
    snprintf(c->arch, sizeof c->arch, "%s", s->arch->name);
    fill_name(o, path);
    c->n_layer = s->n_layer;
    c->n_embd = s->n_embd;
    c->n_head = s->n_head;
    c->n_kv_head = s->n_kv_head;
    c->head_dim = s->head_dim;
    c->n_ff = s->n_expert ? s->n_ff_exp : s->n_ff;
    c->n_vocab = s->n_vocab;
    c->n_ctx_train = s->n_ctx_train;
    c->file_bytes = o->src->gguf ? imp_gguf_file_bytes(o->src->gguf) : imp_hf_file_bytes(o->src->hf);
    c->can_generate = can_generate;
    c->can_embed = can_embed;
    c->has_types = s->n_type > 0;
    if (c->can_embed) {
        c->pool = s->pool;
        c->normalize = s->normalize;
        c->matryoshka = s->matryoshka;
        c->embed_dim = s->n_embd;
    }
}

/* ---- end of generation --------------------------------------------------------------------------- */

static void add_eos(imp_net_config *c, uint32_t n_vocab, int64_t id)
{
    if (id < 0 || id >= (int64_t)n_vocab) return;
    for (uint32_t i = 0; i < c->n_eos; i++)
        if (c->eos[i] == id) return;
    if (c->n_eos < IMP_MAX_EOS) c->eos[c->n_eos++] = (int32_t)id;
}

static void add_eos_json(imp_net_config *c, uint32_t n_vocab, const json_t *config)
{
    const json_t *v = config ? json_object_get(config, "eos_token_id") : NULL;
    if (json_is_integer(v)) add_eos(c, n_vocab, json_integer_value(v));
    for (size_t i = 0; json_is_array(v) && i < json_array_size(v); i++)
        if (json_is_integer(json_array_get(v, i)))
            add_eos(c, n_vocab, json_integer_value(json_array_get(v, i)));
}

/* The file's own ids, and control tokens that chat formats end a turn with. */
static void fill_eos(opening *o)
{
    static const char *const ids[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                      "tokenizer.ggml.eom_token_id"};
    static const char *const turn_ends[] = {"<|eot_id|>",    "<|eom_id|>", "<|im_end|>",
                                            "<end_of_turn>", "<|end|>",    "<|endoftext|>"};
    imp_net_config *c = &o->net->cfg;
    uint32_t n_vocab = o->spec.n_vocab;
    const imp_tokenizer *t = o->net->tok;
    if (t) add_eos(c, n_vocab, imp_tokenizer_eos(t));
    if (o->src->hf) {
        add_eos_json(c, n_vocab, imp_hf_generation_config(o->src->hf));
        add_eos_json(c, n_vocab, imp_hf_config(o->src->hf));
        add_eos_json(c, n_vocab, json_object_get(imp_hf_config(o->src->hf), "text_config"));
    }
    int64_t id;
    for (size_t i = 0; o->src->gguf && i < IMP_COUNT(ids); i++)
        if (imp_gguf_i64(o->src->gguf, ids[i], &id)) add_eos(c, n_vocab, id);
    for (size_t i = 0; t && i < IMP_COUNT(turn_ends); i++) {
        int32_t k = imp_tokenizer_find(t, turn_ends[i], strlen(turn_ends[i]));
        if (k >= 0 && imp_tokenizer_kind(t, k) == IMP_TOKEN_CONTROL) add_eos(c, n_vocab, k);
    }
}

/* ---- tokenizer and template ------------------------------------------------------------------------ */

static imp_status load_tokenizer(opening *o)
{
    const char *p;
    size_t n;
    if (o->src->gguf) {
        if (!imp_gguf_has(o->src->gguf, "tokenizer.ggml.model")) return IMP_OK;
        imp_str none;
        if (imp_gguf_str(o->src->gguf, "tokenizer.ggml.model", &none) && none.n == 4 &&
            memcmp(none.p, "none", 4) == 0)
            return IMP_OK;
        return imp_tokenizer_from_gguf(o->src->gguf, &o->net->tok, o->err);
    }
    if (!imp_hf_tokenizer_json(o->src->hf, &p, &n) && !imp_hf_vocab_txt(o->src->hf, &p, &n)) return IMP_OK;
    return imp_tokenizer_from_hf(o->src->hf, &o->net->tok, o->err);
}

static imp_status load_template(opening *o)
{
    imp_str s = {0};
    if (o->src->gguf) {
        if (!imp_gguf_str(o->src->gguf, "tokenizer.chat_template", &s)) return IMP_OK;
    } else if (!imp_hf_chat_template(o->src->hf, &s.p, &s.n)) {
        return IMP_OK;
    }
    o->net->chat_template = imp_arena_strndup(o->src->arena, s.p, s.n);
    return o->net->chat_template
               ? IMP_OK
               : imp_fail(o->err, IMP_NOMEM, "out of memory while reading the chat template");
}

/* ---- graphs ---------------------------------------------------------------------------------------- */

static imp_status fill_rope(opening *o, const imp_rope_spec *r, uint32_t n_ctx, imp_rope_attr *out)
{
    const imp_spec *s = &o->spec;
    float *inv_freq = imp_arena_array(o->src->arena, s->n_rot / 2 + 1, sizeof *inv_freq);
    if (!inv_freq) return imp_fail(o->err, IMP_NOMEM, "out of memory while computing RoPE frequencies");
    *out = (imp_rope_attr){
        .head_dim = s->head_dim, .n_rot = s->n_rot, .interleaved = s->interleaved, .inv_freq = inv_freq};
    return imp_rope_table(r, s->n_rot, n_ctx, inv_freq, &out->mscale, o->err);
}

static imp_status build(opening *o, const imp_binder *proto, bool pool, imp_graph **out)
{
    imp_binder b = *proto;
    b.g = *out = imp_graph_new();
    if (!b.g) return imp_fail(o->err, IMP_NOMEM, "out of memory while building the graph");
    switch (o->spec.arch->family) {
    case IMP_FAMILY_DECODER: imp_build_decoder(&b, pool); break;
    case IMP_FAMILY_BERT: imp_build_bert(&b); break;
    case IMP_FAMILY_MODERNBERT: imp_build_modernbert(&b); break;
    }
    if (b.status != IMP_OK) return b.status;
    return imp_graph_finish(b.g, o->err);
}

/* Embedding models made from decoders may come without an output matrix: they cannot generate. */
static bool generates(const opening *o)
{
    const imp_spec *s = &o->spec;
    if (s->arch->family != IMP_FAMILY_DECODER) return false;
    return !s->has_pool || s->tied != IMP_ABSENT ||
           imp_source_find(o->src, s->arch, "output", -1, -1, ".weight") != NULL;
}

static imp_status build_graphs(opening *o, uint32_t n_ctx)
{
    const imp_spec *s = &o->spec;
    imp_binder b = {.s = s, .src = o->src, .err = o->err};
    if (n_ctx == 0) n_ctx = s->n_ctx_train;
    if (!s->arch->positions) {
        IMP_TRY(fill_rope(o, &s->rope, n_ctx, &b.rope));
        IMP_TRY(fill_rope(o, &s->rope_local, n_ctx, &b.rope_local));
    }
    if (generates(o)) IMP_TRY(build(o, &b, false, &o->net->generate));
    if (s->has_pool) IMP_TRY(build(o, &b, true, &o->net->embed));
    return imp_source_check_all_used(o->src, s, o->err);
}

static imp_status open_all(opening *o, const char *path, uint32_t n_ctx)
{
    IMP_TRY(imp_source_open(path, &o->src, o->err));
    o->net->source = o->src;
    IMP_TRY(o->src->gguf ? imp_spec_from_gguf(o->src, &o->spec, o->err)
                         : imp_spec_from_hf(o->src, &o->spec, o->err));
    IMP_TRY(build_graphs(o, n_ctx));
    IMP_TRY(load_tokenizer(o));
    IMP_TRY(load_template(o));
    fill_config(o, path, o->net->generate != NULL, o->net->embed != NULL);
    fill_weights(o, false);
    fill_eos(o);
    if (o->net->tok && imp_tokenizer_n(o->net->tok) > o->spec.n_vocab)
        imp_log(IMP_LOG_WARN, "the tokenizer has %zu tokens, the model %u: the rest cannot be used",
                imp_tokenizer_n(o->net->tok), o->spec.n_vocab);
    return IMP_OK;
}

static imp_status peek(opening *o, const char *path)
{
    IMP_TRY(imp_source_open(path, &o->src, o->err));
    IMP_TRY(o->src->gguf ? imp_spec_from_gguf(o->src, &o->spec, o->err)
                         : imp_spec_from_hf(o->src, &o->spec, o->err));
    fill_config(o, path, generates(o), o->spec.has_pool);
    fill_weights(o, true);
    return IMP_OK;
}

imp_status imp_net_peek(const char *path, imp_net_config *out, imp_error *err)
{
    *out = (imp_net_config){0};
    opening *o = imp_sys_calloc(1, sizeof *o);
    imp_net *net = imp_sys_calloc(1, sizeof *net);
    imp_status st =
        o == NULL || net == NULL ? imp_fail(err, IMP_NOMEM, "out of memory while opening %s", path) : IMP_OK;
    if (st == IMP_OK) {
        o->net = net;
        o->err = err;
        st = peek(o, path);
        if (st == IMP_OK) *out = net->cfg;
        imp_source_close(o->src);
    }
    imp_sys_free(o);
    imp_sys_free(net);
    return st;
}

imp_status imp_net_open(const char *path, uint32_t n_ctx, imp_net **out, imp_error *err)
{
    *out = NULL;
    opening *o = imp_sys_calloc(1, sizeof *o);
    imp_net *net = imp_sys_calloc(1, sizeof *net);
    if (!o || !net) {
        imp_sys_free(o);
        imp_sys_free(net);
        return imp_fail(err, IMP_NOMEM, "out of memory while opening %s", path);
    }
    o->net = net;
    o->err = err;
    imp_status st = open_all(o, path, n_ctx);
    imp_sys_free(o);
    if (st != IMP_OK) {
        imp_net_close(net);
        return st;
    }
    *out = net;
    return IMP_OK;
}

uint64_t imp_net_bytes(const imp_net *n)
{
    const imp_net_source *s = n->source;
    uint64_t files = s->gguf != NULL ? imp_gguf_bytes(s->gguf) : imp_hf_bytes(s->hf);
    return sizeof *n + sizeof *s + files + imp_arena_bytes(s->arena) + imp_map_bytes(s->map) +
           imp_tokenizer_bytes(n->tok) + imp_graph_bytes(n->generate) + imp_graph_bytes(n->embed);
}

void imp_net_close(imp_net *n)
{
    if (!n) return;
    imp_graph_free(n->generate);
    imp_graph_free(n->embed);
    imp_tokenizer_free(n->tok);
    imp_source_close(n->source);
    imp_sys_free(n);
}
