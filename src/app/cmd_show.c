/* app/cmd_show.c - `impetus show` and `impetus plan`: what a model is, and what it would take. */
#include "app/app.h"
#include "dev/dev.h"
#include "fmt/gguf.h"
#include "model/net.h"
#include "plan/host.h"
#include "text/chat.h"
#include "text/jinja.h"

/* ---- show --------------------------------------------------------------------------------------------- */

/* The chat format that requests would get; NULL: chat is refused. */
static const char *chat_family(const imp_net *net)
{
    if (!net->cfg.can_generate || !net->tok) return NULL;
    const char *name = imp_chat_name(imp_chat_detect(net->tok, net->chat_template));
    imp_jinja *t;
    if (!net->chat_template) return name;
    if (imp_jinja_compile(net->chat_template, strlen(net->chat_template), &t, NULL) != IMP_OK) return NULL;
    imp_jinja_free(t);
    return name ? name : "jinja";
}

static json_t *show_json(const imp_net *net, const char *path)
{
    const imp_net_config *c = &net->cfg;
    static const char *const pools[] = {"mean", "cls", "last"};
    const char *chat = chat_family(net);
    json_t *doc = json_pack("{s:s, s:o, s:s, s:s, s:I, s:I, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i}", "model",
                            path, "name", app_json_text(c->name, strlen(c->name)), "arch", c->arch, "type",
                            c->type, "parameters", (json_int_t)c->n_param, "bytes", (json_int_t)c->file_bytes,
                            "layers", (int)c->n_layer, "embd", (int)c->n_embd, "heads", (int)c->n_head,
                            "kv_heads", (int)c->n_kv_head, "head_dim", (int)c->head_dim, "ff", (int)c->n_ff,
                            "vocab", (int)c->n_vocab, "ctx_train", (int)c->n_ctx_train);
    json_t *more =
        json_pack("{s:b, s:b, s:o, s:o, s:o, s:o, s:b}", "can_generate", c->can_generate, "can_embed",
                  c->can_embed, "embed_dim", c->can_embed ? json_integer(c->embed_dim) : json_null(),
                  "pooling", c->can_embed ? json_string(pools[c->pool]) : json_null(), "tokenizer",
                  net->tok ? json_string(imp_tokenizer_describe(net->tok)) : json_null(), "chat",
                  chat ? json_string(chat) : json_null(), "chat_template", net->chat_template != NULL);
    if (!doc || !more || json_object_update(doc, more)) {
        json_decref(doc);
        doc = NULL;
    }
    json_decref(more);
    return doc;
}

static void show_human(const imp_net *net, const char *path)
{
    const imp_net_config *c = &net->cfg;
    char param[32], bytes[32];
    printf("%-14s%s\n", "model", path);
    if (c->name[0]) printf("%-14s%s\n", "name", c->name);
    printf("%-14s%s\n", "architecture", c->arch);
    printf("%-14s%s, %s parameters, %s\n", "weights", c->type, app_count_text(c->n_param, param),
           app_size_text(c->file_bytes, bytes));
    printf("%-14s%u layers, width %u, %u heads (%u for keys and values) of %u, feed-forward %u\n", "shape",
           c->n_layer, c->n_embd, c->n_head, c->n_kv_head, c->head_dim, c->n_ff);
    printf("%-14s%u tokens\n", "context", c->n_ctx_train);
    printf("%-14s%u entries\n", "vocabulary", c->n_vocab);
    if (net->tok) printf("%-14s%s\n", "tokenizer", imp_tokenizer_describe(net->tok));
    printf("%-14s%s%s%s\n", "can", c->can_generate ? "generate text" : "",
           c->can_generate && c->can_embed ? ", " : "", c->can_embed ? "embed" : "");
    if (c->can_embed && !c->can_generate)
        printf("%-14s%u numbers, %s pooling%s\n", "vectors", c->embed_dim,
               c->pool == IMP_POOL_MEAN  ? "mean"
               : c->pool == IMP_POOL_CLS ? "first token"
                                         : "last token",
               c->normalize ? ", normalised" : "");
    if (!c->can_generate) return;
    const char *chat = chat_family(net);
    printf("%-14s%s%s\n", "chat", chat ? chat : "refused: its template is not understood",
           net->chat_template ? " (the file has a template)" : "");
}

/* One metadata value as text; arrays by their length. */
static void print_kv(const imp_gguf *g, const char *key, imp_gguf_type type)
{
    imp_str s;
    int64_t i;
    uint64_t n;
    double f;
    bool b;
    imp_gguf_type elem;
    if (type == IMP_GGUF_STRING && imp_gguf_str(g, key, &s))
        printf("%.*s%s\n", (int)IMP_MIN(s.n, 100), s.p, s.n > 100 ? "..." : "");
    else if (type == IMP_GGUF_ARRAY && imp_gguf_array(g, key, &elem, &n))
        printf("[%llu values]\n", (unsigned long long)n);
    else if (type == IMP_GGUF_BOOL && imp_gguf_bool(g, key, &b))
        puts(b ? "true" : "false");
    else if (imp_gguf_i64(g, key, &i))
        printf("%lld\n", (long long)i);
    else if (imp_gguf_f64(g, key, &f))
        printf("%g\n", f);
    else
        puts("?");
}

static imp_status show_metadata(app *a, const char *path)
{
    imp_gguf *g;
    if (imp_sys_is_dir(path) || app_has_suffix(path, ".safetensors")) return IMP_OK;
    IMP_TRY(imp_gguf_open(path, &g, &a->err));
    putchar('\n');
    for (uint64_t i = 0; i < imp_gguf_n_kv(g); i++) {
        imp_gguf_type type;
        imp_str k = imp_gguf_key(g, i, &type);
        char *key = imp_arena_strndup(a->arena, k.p, k.n);
        if (!key) break;
        printf("%-44s ", key);
        print_kv(g, key, type);
    }
    imp_gguf_close(g);
    return IMP_OK;
}

app_result cmd_show(app *a)
{
    const char *path;
    imp_net *net;
    app_result r = APP_OK;
    if (app_model_path(a->arg[0], &path, &a->err) != IMP_OK || imp_net_open(path, 0, &net, &a->err) != IMP_OK)
        return APP_FAILED;
    if (opt_on(&a->opt, OPT_JSON)) {
        r = app_print_json(a, show_json(net, path));
    } else {
        show_human(net, path);
        if (opt_on(&a->opt, OPT_VERBOSE) && show_metadata(a, path) != IMP_OK) r = APP_FAILED;
    }
    imp_net_close(net);
    return r;
}

/* ---- plan --------------------------------------------------------------------------------------------- */

typedef struct candidate {
    const char *device;
    char excluded[160]; /* "": it can run the model */
} candidate;

enum { MAX_CANDIDATE = IMP_HOST_OTHERS + 2 };

typedef struct plan {
    imp_memory memory;
    candidate cand[MAX_CANDIDATE];
    size_t n_cand;
    int chosen; /* -1: none */
} plan;

static const char *first_refusal(const imp_device *d, const imp_graph *g)
{
    for (imp_val v = 1; g && v <= imp_graph_n(g); v++) {
        const char *why = d->ops->refuses(d, g, v);
        if (why) return why;
    }
    return NULL;
}

/* Would device `kind` run this net? Fills the reason when not. */
static imp_status judge(app *a, const imp_net *net, const char *kind, candidate *c)
{
    imp_device *d;
    const char *asked = opt_str(&a->opt, OPT_DEVICE);
    *c = (candidate){.device = kind};
    IMP_TRY(imp_dev_open(kind, opt_u32(&a->opt, OPT_THREADS), &d, &a->err));
    const char *why = first_refusal(d, net->generate);
    if (!why) why = first_refusal(d, net->embed);
    if (why) snprintf(c->excluded, sizeof c->excluded, "%s", why);
    d->ops->close(d);
    if (c->excluded[0]) return IMP_OK;
    if (asked && strcmp(asked, kind))
        snprintf(c->excluded, sizeof c->excluded, "--device %s was asked for", asked);
    else if (!asked && strcmp(kind, "cpu"))
        snprintf(c->excluded, sizeof c->excluded, "the slow reference, used only with --device %s", kind);
    return IMP_OK;
}

static imp_status make_plan(app *a, const char *path, const imp_net *net, plan *p)
{
    static const char *const kinds[] = {"cpu", "ref"};
    imp_host host;
    uint64_t need = (uint64_t)opt_u32(&a->opt, OPT_PLAN_PROMPT) + opt_u32(&a->opt, OPT_PLAN_GEN);
    p->chosen = -1;
    imp_status s = imp_engine_plan(a->engine, path, &p->memory, &a->err);
    if (s != IMP_OK && s != IMP_NO_FIT) return s;
    for (size_t i = 0; i < IMP_COUNT(kinds); i++) {
        candidate *c = &p->cand[p->n_cand++];
        IMP_TRY(judge(a, net, kinds[i], c));
        if (!c->excluded[0] && !p->memory.fits)
            snprintf(c->excluded, sizeof c->excluded, "does not fit: it takes %llu of %llu bytes available",
                     (unsigned long long)p->memory.total, (unsigned long long)p->memory.available);
        if (!c->excluded[0] && need > p->memory.largest_ctx)
            snprintf(c->excluded, sizeof c->excluded,
                     "prompt and answer need %llu tokens, the largest context that fits is %u",
                     (unsigned long long)need, p->memory.largest_ctx);
        if (!c->excluded[0] && p->chosen < 0) p->chosen = (int)i;
    }
    IMP_TRY(imp_host_read(&host, &a->err));
    for (uint32_t i = 0; i < host.n_other; i++) {
        candidate *c = &p->cand[p->n_cand++];
        c->device = imp_arena_strndup(a->arena, host.other[i].name, strlen(host.other[i].name));
        snprintf(c->excluded, sizeof c->excluded, "%s", host.other[i].reason);
    }
    return IMP_OK;
}

static json_t *plan_json(const plan *p, const char *path)
{
    const imp_memory *m = &p->memory;
    json_t *list = json_array();
    for (size_t i = 0; i < p->n_cand; i++) {
        const candidate *c = &p->cand[i];
        json_array_append_new(list, json_pack("{s:s, s:s, s:b, s:n, s:n, s:n, s:n, s:n, s:o}", "prefill",
                                              c->device, "decode", c->device, "predicted", 0, "ttft_ms",
                                              "tpot_ms", "interval", "bound", "joules", "excluded",
                                              c->excluded[0] ? json_string(c->excluded) : json_null()));
    }
    return json_pack("{s:s, s:{s:I, s:I, s:I, s:I, s:I, s:I}, s:b, s:I, s:o, s:o}", "model", path, "memory",
                     "weights", (json_int_t)m->weights, "kv", (json_int_t)m->kv, "scratch",
                     (json_int_t)m->scratch, "other", (json_int_t)m->other, "total", (json_int_t)m->total,
                     "available", (json_int_t)m->available, "fits", m->fits, "largest_ctx",
                     (json_int_t)m->largest_ctx, "candidates", list, "chosen",
                     p->chosen >= 0 ? json_integer(p->chosen) : json_null());
}

static void plan_human(const plan *p, const char *path)
{
    const imp_memory *m = &p->memory;
    const uint64_t v[] = {m->weights, m->kv, m->scratch, m->other, m->total, m->available};
    static const char *const name[] = {"weights", "kv cache", "scratch", "other", "total", "available"};
    char text[32];
    printf("%s\n\n", path);
    for (size_t i = 0; i < IMP_COUNT(v); i++)
        printf("  %-16s%16llu bytes  %10s\n", name[i], (unsigned long long)v[i], app_size_text(v[i], text));
    printf("\n  %s; the largest context that fits is %u tokens\n\n", m->fits ? "fits" : "does NOT fit",
           m->largest_ctx);
    printf("  %-24s%s\n", "device", "state");
    for (size_t i = 0; i < p->n_cand; i++)
        printf("  %-24s%s\n", p->cand[i].device,
               p->cand[i].excluded[0] ? p->cand[i].excluded
               : (int)i == p->chosen  ? "chosen"
                                      : "possible");
}

app_result cmd_plan(app *a)
{
    const char *path;
    imp_net *net = NULL;
    plan p = {0};
    if (opt_set(&a->opt, OPT_PLAN_BATCH)) {
        if (a->opt.v[OPT_PARALLEL].explicit_ &&
            opt_u32(&a->opt, OPT_PARALLEL) != opt_u32(&a->opt, OPT_PLAN_BATCH))
            return app_usage(a, "--batch and --parallel mean the same here; give one of them");
        a->opt.v[OPT_PARALLEL] = a->opt.v[OPT_PLAN_BATCH];
    }
    if (app_model_path(a->arg[0], &path, &a->err) != IMP_OK || app_engine(a) != IMP_OK) return APP_FAILED;
    if (imp_net_open(path, opt_u32(&a->opt, OPT_CTX), &net, &a->err) != IMP_OK) return APP_FAILED;
    imp_status s = make_plan(a, path, net, &p);
    imp_net_close(net);
    if (s != IMP_OK) return APP_FAILED;
    a->err = (imp_error){0};
    if (opt_on(&a->opt, OPT_JSON)) return app_print_json(a, plan_json(&p, path));
    plan_human(&p, path);
    return APP_OK;
}
