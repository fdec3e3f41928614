/* app/cmd_tokenize.c - `impetus tokenize`, `impetus detokenize`, `impetus logits`.
 *
 * Place:   tokenising needs the vocabulary alone: the net is opened, nothing is compiled. logits loads the model. */
#include <math.h>

#include "app/app.h"
#include "model/net.h"

static imp_status open_net(app *a, imp_net **net)
{
    const char *path;
    IMP_TRY(app_model_path(a, a->arg[0], &path, &a->err));
    IMP_TRY(imp_net_open(path, 0, net, &a->err));
    if ((*net)->tok) return IMP_OK;
    imp_net_close(*net);
    *net = NULL;
    return imp_fail(&a->err, IMP_UNSUPPORTED, "'%.200s' holds no tokenizer", a->arg[0]);
}

/* The text of argument `i`, or all of standard input when it is absent or '-'. */
static imp_status text_argument(app *a, size_t i, imp_buf *buf)
{
    if (i >= a->n_arg || !strcmp(a->arg[i], "-")) return app_read_stdin(buf, &a->err);
    imp_buf_str(buf, a->arg[i]);
    return buf->failed ? imp_fail(&a->err, IMP_NOMEM, "out of memory") : IMP_OK;
}

static unsigned token_flags(const app *a)
{
    return opt_on(&a->opt, OPT_NO_SPECIAL) ? 0u : (unsigned)(IMP_TOK_ADD_SPECIAL | IMP_TOK_PARSE_SPECIAL);
}

static void print_quoted(const char *s, size_t n)
{
    putchar('\'');
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t len = imp_utf8_decode(s + i, n - i, &cp);
        if (cp < 0 || cp < 0x20 || cp == 0x7f)
            printf("\\x%02x", (unsigned char)s[i]);
        else
            fwrite(s + i, 1, len, stdout);
        i += len;
    }
    putchar('\'');
}

static app_result print_tokens(app *a, const imp_tokenizer *tok, const imp_ids *ids)
{
    if (opt_on(&a->opt, OPT_JSON)) {
        json_t *id_list = json_array(), *piece_list = json_array();
        for (size_t i = 0; i < ids->n; i++) {
            size_t n = 0;
            const char *piece = imp_tokenizer_piece(tok, ids->id[i], &n);
            json_array_append_new(id_list, json_integer(ids->id[i]));
            json_array_append_new(piece_list, app_json_text(piece ? piece : "", n));
        }
        return app_print_json(a, json_pack("{s:o, s:o}", "ids", id_list, "pieces", piece_list));
    }
    for (size_t i = 0; i < ids->n; i++) {
        size_t n = 0;
        const char *piece = imp_tokenizer_piece(tok, ids->id[i], &n);
        if (opt_on(&a->opt, OPT_IDS_ONLY)) {
            printf("%s%d", i ? " " : "", ids->id[i]);
            continue;
        }
        printf("%7d  ", ids->id[i]);
        print_quoted(piece ? piece : "", n);
        putchar('\n');
    }
    if (opt_on(&a->opt, OPT_IDS_ONLY)) putchar('\n');
    return APP_OK;
}

app_result cmd_tokenize(app *a)
{
    imp_net *net;
    imp_buf text = {0};
    imp_ids ids = {0};
    app_result r = APP_FAILED;
    if (open_net(a, &net) != IMP_OK) return APP_FAILED;
    if (text_argument(a, 1, &text) == IMP_OK &&
        imp_tokenizer_encode(net->tok, text.data ? text.data : "", text.n, token_flags(a), &ids, &a->err) ==
            IMP_OK)
        r = print_tokens(a, net->tok, &ids);
    imp_ids_deinit(&ids);
    imp_buf_deinit(&text);
    imp_net_close(net);
    return r;
}

/* Ids from the arguments behind the model: apart or with commas. NULL: a->err says what is wrong. */
static int32_t *parse_ids(app *a, size_t *n_out)
{
    size_t cap = 0, n = 0;
    for (size_t i = 1; i < a->n_arg; i++) cap += strlen(a->arg[i]);
    int32_t *ids = imp_arena_array(a->arena, cap + 1, sizeof *ids);
    for (size_t i = 1; ids && i < a->n_arg; i++) {
        const char *p = a->arg[i];
        while (*p) {
            uint64_t v = 0;
            const char *start = p;
            for (; *p >= '0' && *p <= '9' && v <= INT32_MAX; p++) v = v * 10 + (uint64_t)(*p - '0');
            if (p == start || v > INT32_MAX || (*p && !strchr(", \t\n", *p))) {
                (void)imp_fail(&a->err, IMP_INVALID, "'%.80s' is no token id; ids are whole numbers",
                               a->arg[i]);
                return NULL;
            }
            ids[n++] = (int32_t)v;
            while (*p && strchr(", \t\n", *p)) p++;
        }
    }
    if (!ids) (void)imp_fail(&a->err, IMP_NOMEM, "out of memory");
    *n_out = n;
    return ids;
}

static imp_status check_ids(app *a, const int32_t *ids, size_t n, size_t n_vocab)
{
    for (size_t i = 0; i < n; i++)
        if ((size_t)ids[i] >= n_vocab)
            return imp_fail(&a->err, IMP_INVALID, "token id %d is not in the vocabulary of %zu", ids[i],
                            n_vocab);
    return IMP_OK;
}

app_result cmd_detokenize(app *a)
{
    imp_net *net;
    imp_buf text = {0};
    size_t n;
    int32_t *ids = parse_ids(a, &n);
    app_result r = APP_FAILED;
    if (!ids) return a->err.status == IMP_INVALID ? APP_USAGE : APP_FAILED;
    if (open_net(a, &net) != IMP_OK) return APP_FAILED;
    if (check_ids(a, ids, n, imp_tokenizer_n(net->tok)) == IMP_OK &&
        imp_tokenizer_decode(net->tok, ids, n, opt_on(&a->opt, OPT_SPECIAL), &text, &a->err) == IMP_OK) {
        r = APP_OK;
        if (opt_on(&a->opt, OPT_JSON)) {
            r = app_print_json(a,
                               json_pack("{s:o}", "text", app_json_text(text.data ? text.data : "", text.n)));
        } else {
            fwrite(text.data ? text.data : "", 1, text.n, stdout);
            putchar('\n');
        }
    }
    imp_buf_deinit(&text);
    imp_net_close(net);
    return r;
}

/* ---- logits ----------------------------------------------------------------------------------------- */

typedef struct logits {
    float *v; /* [n_pos][n_vocab], owned */
    size_t n_pos, n_vocab, n_come;
} logits;

static void take_logits(void *user, size_t index, const float *v, size_t n)
{
    logits *l = user;
    if (index >= l->n_pos || n != l->n_vocab) return;
    memcpy(l->v + index * l->n_vocab, v, n * sizeof *v);
    l->n_come++;
}

static app_result print_logits_json(const logits *l, const int32_t *ids)
{
    fputs("{\"ids\":[", stdout);
    for (size_t i = 0; i < l->n_pos; i++) printf("%s%d", i ? "," : "", ids[i]);
    fputs("],\n\"logits\":[", stdout);
    for (size_t i = 0; i < l->n_pos; i++) {
        fputs(i ? ",\n[" : "\n[", stdout);
        for (size_t j = 0; j < l->n_vocab; j++) {
            if (j) putchar(',');
            app_print_float(stdout, l->v[i * l->n_vocab + j]);
        }
        putchar(']');
    }
    fputs("]}\n", stdout);
    return APP_OK;
}

static app_result print_logits_top(app *a, const imp_model *m, const logits *l)
{
    enum { TOP = 10 };
    float *v = l->v + (l->n_pos - 1) * l->n_vocab, max = v[0];
    double sum = 0;
    for (size_t i = 1; i < l->n_vocab; i++) max = v[i] > max ? v[i] : max;
    for (size_t i = 0; i < l->n_vocab; i++) sum += exp((double)v[i] - (double)max);
    printf("after %zu tokens; the likeliest next ones:\n     id      logit  probability  piece\n", l->n_pos);
    for (int k = 0; k < TOP && (size_t)k < l->n_vocab; k++) {
        size_t best = 0, n = 0;
        for (size_t i = 1; i < l->n_vocab; i++)
            if (v[i] > v[best]) best = i;
        const char *piece = imp_token_piece(m, (int32_t)best, &n);
        printf("%7zu %10.4f %12.4f  ", best, (double)v[best], exp((double)v[best] - (double)max) / sum);
        print_quoted(piece ? piece : "", n);
        putchar('\n');
        v[best] = -INFINITY;
    }
    (void)a;
    return APP_OK;
}

static imp_status logits_ids(app *a, imp_model *m, int32_t **ids, size_t *n)
{
    const app_value *given = &a->opt.v[OPT_IDS];
    imp_buf text = {0};
    if (given->set) {
        *n = given->n;
        *ids = imp_sys_malloc(given->n * sizeof **ids);
        if (!*ids) return imp_fail(&a->err, IMP_NOMEM, "out of memory");
        for (size_t i = 0; i < given->n; i++) (*ids)[i] = (int32_t)given->uints[i];
        return check_ids(a, *ids, *n, imp_model_get_info(m)->n_vocab);
    }
    imp_status s = text_argument(a, 1, &text);
    if (s == IMP_OK) s = imp_tokenize(m, text.data ? text.data : "", text.n, token_flags(a), ids, n, &a->err);
    imp_buf_deinit(&text);
    if (s == IMP_OK && *n == 0) s = imp_fail(&a->err, IMP_INVALID, "the prompt has no tokens");
    return s;
}

app_result cmd_logits(app *a)
{
    imp_model *m;
    int32_t *ids = NULL;
    logits l = {0};
    app_outcome end;
    uint64_t bytes;
    if (opt_set(&a->opt, OPT_IDS) && a->n_arg > 1) return app_usage(a, "give a PROMPT or --ids, not both");
    if (app_load(a, a->arg[0], NULL, &m) != IMP_OK) return APP_FAILED;
    app_result r = APP_FAILED;
    if (!imp_model_get_info(m)->can_generate) {
        (void)imp_fail(&a->err, IMP_UNSUPPORTED, "this model makes embeddings; it has no logits");
    } else if (logits_ids(a, m, &ids, &l.n_pos) == IMP_OK) {
        l.n_vocab = imp_model_get_info(m)->n_vocab;
        if (imp_mul_u64(l.n_pos, l.n_vocab, &bytes) && imp_mul_u64(bytes, sizeof(float), &bytes))
            l.v = imp_sys_malloc(bytes);
        imp_request q = {.kind = IMP_REQUEST_SCORE, .ids = ids, .n_ids = &l.n_pos, .n_input = 1};
        app_sink sink = {.vector = take_logits, .user = &l};
        if (!l.v)
            (void)imp_fail(&a->err, IMP_NOMEM, "no memory for the logits of %zu positions", l.n_pos);
        else if (app_request_run(a->engine, m, &q, &sink, &end, &a->err) != IMP_OK) {
        } else if (l.n_come != l.n_pos)
            (void)imp_fail(&a->err, IMP_INTERNAL, "only %zu of %zu positions came back", l.n_come, l.n_pos);
        else
            r = opt_on(&a->opt, OPT_JSON) ? print_logits_json(&l, ids) : print_logits_top(a, m, &l);
    }
    imp_sys_free(l.v);
    imp_free(ids);
    return r;
}
