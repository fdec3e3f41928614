/* api/tokens.c - /tokenize and /detokenize, as llama.cpp's and vLLM's clients ask.
 *
 * Idea:    {"content": ...} is llama.cpp's form (no special tokens are added unless asked), {"prompt": ...} is vLLM's (they
 *          are, unless told otherwise). An answer of /detokenize has the text under both names.
 * Always:  a field that is not understood is refused by name; ids outside the vocabulary are refused.
 * Source:  llama.cpp's server README; vLLM's OpenAI-compatible server. */
#include "api/internal.h"

typedef struct tokens_request {
    const char *model;
    json_t *text, *tokens;
    bool vllm, add_special, parse_special, with_pieces;
} tokens_request;

static imp_status wrong(const char *key, const char *want, imp_error *err)
{
    return imp_fail_field(err, IMP_INVALID, key, "'%.60s' must be %s", key, want);
}

static bool *flag_of(tokens_request *r, const char *key)
{
    if (strcmp(key, "add_special") == 0 || strcmp(key, "add_special_tokens") == 0) return &r->add_special;
    if (strcmp(key, "parse_special") == 0) return &r->parse_special;
    if (strcmp(key, "with_pieces") == 0 || strcmp(key, "return_token_strs") == 0) return &r->with_pieces;
    return NULL;
}

static imp_status read_text_fields(json_t *root, tokens_request *r, imp_error *err)
{
    json_t *content = json_object_get(root, "content"), *prompt = json_object_get(root, "prompt");
    r->vllm = prompt != NULL;
    r->text = prompt ? prompt : content;
    r->add_special = r->vllm;
    r->parse_special = true;
    if ((content && prompt) || !json_is_string(r->text))
        return wrong(prompt ? "prompt" : "content",
                     "a string, and only one of 'content' and 'prompt' be given", err);
    const char *key;
    json_t *v;
    json_object_foreach(root, key, v)
    {
        bool *flag = flag_of(r, key);
        if (v == r->text) continue;
        if (flag && json_is_boolean(v))
            *flag = json_is_true(v);
        else if (flag)
            return wrong(key, "a boolean", err);
        else if (strcmp(key, "model") == 0 && json_is_string(v))
            r->model = json_string_value(v);
        else
            return wrong(key,
                         "one of: model, content or prompt (strings), add_special or add_special_tokens, "
                         "parse_special, "
                         "with_pieces or return_token_strs (booleans)",
                         err);
    }
    return IMP_OK;
}

static imp_status read_token_fields(json_t *root, tokens_request *r, imp_error *err)
{
    const char *key;
    json_t *v;
    json_object_foreach(root, key, v)
    {
        if (strcmp(key, "tokens") == 0 && json_is_array(v))
            r->tokens = v;
        else if (strcmp(key, "model") == 0 && json_is_string(v))
            r->model = json_string_value(v);
        else
            return wrong(key, "one of: model (a string), tokens (a list of ids)", err);
    }
    return r->tokens ? IMP_OK : wrong("tokens", "a list of ids", err);
}

/* The model of that name, or the only one that is loaded. */
static imp_model *model_of(imp_api *a, const char *id, imp_error *err)
{
    if (id) return imp_api_model_named(a, id, IMP_OPENAI, err);
    imp_model **list, *m = NULL;
    size_t n = imp_api_list(a, &list);
    if (!list) {
        (void)imp_fail(err, IMP_NOMEM, "out of memory");
        return NULL;
    }
    if (n == 1) {
        m = list[0];
        list[0] = NULL;
    } else {
        (void)imp_fail_field(err, n ? IMP_INVALID : IMP_NOT_FOUND, "model",
                             "'model' is missing, and %zu models are loaded: name one", n);
    }
    imp_api_list_free(list, n);
    return m;
}

static void write_piece(const imp_model *m, int32_t id, imp_buf *b)
{
    size_t n = 0;
    const char *piece = imp_token_piece(m, id, &n);
    imp_json_str(b, piece ? piece : "", n);
}

static void write_tokens(const imp_model *m, const tokens_request *r, const int32_t *ids, size_t n,
                         imp_buf *b)
{
    bool objects = r->with_pieces && !r->vllm;
    imp_buf_str(b, "{");
    if (r->vllm) imp_buf_fmt(b, "\"count\":%zu,\"max_model_len\":%u,", n, imp_model_get_info(m)->n_ctx);
    imp_buf_str(b, "\"tokens\":[");
    for (size_t i = 0; i < n; i++) {
        imp_buf_fmt(b, objects ? "%s{\"id\":%d,\"piece\":" : "%s%d", i ? "," : "", ids[i]);
        if (!objects) continue;
        write_piece(m, ids[i], b);
        imp_buf_str(b, "}");
    }
    imp_buf_str(b, "]");
    if (r->vllm && r->with_pieces) {
        imp_buf_str(b, ",\"token_strs\":[");
        for (size_t i = 0; i < n; i++) {
            if (i) imp_buf_str(b, ",");
            write_piece(m, ids[i], b);
        }
        imp_buf_str(b, "]");
    }
    imp_buf_str(b, "}");
}

static imp_status tokenize(const imp_model *m, const tokens_request *r, imp_buf *b, imp_error *err)
{
    int32_t *ids;
    size_t n;
    unsigned flags =
        (r->add_special ? IMP_TOK_ADD_SPECIAL : 0u) | (r->parse_special ? IMP_TOK_PARSE_SPECIAL : 0u);
    IMP_TRY(imp_tokenize(m, json_string_value(r->text), json_string_length(r->text), flags, &ids, &n, err));
    write_tokens(m, r, ids, n, b);
    imp_free(ids);
    return IMP_OK;
}

static imp_status detokenize(const imp_model *m, const tokens_request *r, imp_buf *b, imp_error *err)
{
    size_t n = json_array_size(r->tokens), n_text;
    uint32_t n_vocab = imp_model_get_info(m)->n_vocab;
    int32_t *ids = imp_sys_malloc(IMP_MAX(n, (size_t)1) * sizeof *ids);
    imp_status st = ids ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory");
    for (size_t i = 0; i < n && st == IMP_OK; i++) {
        const json_t *v = json_array_get(r->tokens, i);
        json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || id >= (json_int_t)n_vocab)
            st = imp_fail_field(err, IMP_INVALID, "tokens", "number %zu of 'tokens' is no id from 0 to %u", i,
                                n_vocab - 1);
        else
            ids[i] = (int32_t)id;
    }
    char *text = NULL;
    if (st == IMP_OK) st = imp_detokenize(m, ids, n, true, &text, &n_text, err);
    if (st == IMP_OK) {
        imp_buf_str(b, "{\"content\":");
        imp_json_str(b, text, n_text);
        imp_buf_str(b, ",\"prompt\":");
        imp_json_str(b, text, n_text);
        imp_buf_str(b, "}");
    }
    imp_free(text);
    imp_sys_free(ids);
    return st;
}

void imp_api_tokens(imp_api *a, const imp_api_request *rq, bool back, const imp_api_sink *s)
{
    imp_error err = {0};
    imp_buf b = {0};
    json_t *root = NULL;
    tokens_request r = {0};
    imp_model *m = NULL;
    imp_status st = imp_api_json(rq->body, rq->n_body, &root, &err);
    if (st == IMP_OK) st = back ? read_token_fields(root, &r, &err) : read_text_fields(root, &r, &err);
    if (st == IMP_OK && !(m = model_of(a, r.model, &err))) st = err.status;
    if (st == IMP_OK) st = back ? detokenize(m, &r, &b, &err) : tokenize(m, &r, &b, &err);
    imp_model_release(m);
    imp_api_json_release(&root);
    if (st == IMP_OK) {
        imp_api_answer(s, 200, &b);
        return;
    }
    imp_buf_deinit(&b);
    imp_api_fail(s, IMP_OPENAI, &err);
}
