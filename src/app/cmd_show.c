/* app/cmd_show.c - `impetus show`: what a model is. */
#include "app/app.h"
#include "fmt/gguf.h"
#include "model/net.h"
#include "text/chat.h"
#include "text/toolcall.h"

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

static const char *special(const imp_net *net, int32_t id)
{
    size_t n;
    return id >= 0 ? imp_tokenizer_piece(net->tok, id, &n) : NULL;
}

/* How the model writes calls of tools, as a server would find out; NULL: it has no template that is understood. */
static imp_toolfmt *tool_format(const imp_net *net)
{
    imp_jinja *t;
    imp_toolfmt *f = NULL;
    const char *src = net->chat_template;
    if (!net->cfg.can_generate || !net->tok || !src) return NULL;
    if (imp_jinja_compile(src, strlen(src), &t, NULL) != IMP_OK) return NULL;
    if (imp_toolfmt_probe(t, src, special(net, imp_tokenizer_bos(net->tok)),
                          special(net, imp_tokenizer_eos(net->tok)), &f) != IMP_OK)
        f = NULL;
    imp_jinja_free(t);
    return f;
}

static json_t *show_json(const imp_net *net, const char *path)
{
    const imp_net_config *c = &net->cfg;
    static const char *const pools[] = {"mean", "cls", "last"};
    const char *chat = chat_family(net);
    imp_toolfmt *f = tool_format(net);
    const char *tools = imp_toolfmt_name(f);
    json_t *doc = json_pack("{s:s, s:o, s:s, s:s, s:I, s:I, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i}", "model",
                            path, "name", app_json_text(c->name, strlen(c->name)), "arch", c->arch, "type",
                            c->type, "parameters", (json_int_t)c->n_param, "bytes", (json_int_t)c->file_bytes,
                            "layers", (int)c->n_layer, "embd", (int)c->n_embd, "heads", (int)c->n_head,
                            "kv_heads", (int)c->n_kv_head, "head_dim", (int)c->head_dim, "ff", (int)c->n_ff,
                            "vocab", (int)c->n_vocab, "ctx_train", (int)c->n_ctx_train);
    json_t *more = json_pack(
        "{s:b, s:b, s:o, s:o, s:o, s:o, s:b, s:o, s:b}", "can_generate", c->can_generate, "can_embed",
        c->can_embed, "embed_dim", c->can_embed ? json_integer(c->embed_dim) : json_null(), "pooling",
        c->can_embed ? json_string(pools[c->pool]) : json_null(), "tokenizer",
        net->tok ? json_string(imp_tokenizer_describe(net->tok)) : json_null(), "chat",
        chat ? json_string(chat) : json_null(), "chat_template", net->chat_template != NULL, "tools",
        tools ? json_string(tools) : json_null(), "thinks", imp_toolfmt_thinks(f));
    imp_toolfmt_free(f);
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
    imp_toolfmt *f = tool_format(net);
    const char *tools = imp_toolfmt_name(f);
    if (f)
        printf("%-14s%s%s%s\n", "tools", tools ? tools : "refused: ", tools ? "" : imp_toolfmt_why(f),
               imp_toolfmt_thinks(f) ? ", thinks" : "");
    imp_toolfmt_free(f);
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
    if (app_model_path(a, a->arg[0], &path, &a->err) != IMP_OK ||
        imp_net_open(path, 0, &net, &a->err) != IMP_OK)
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
