/* app/cmd_render.c - `impetus render`: a conversation through a model's chat template, or through a template file.
 *
 * Place:   the net is opened for its template and special tokens, nothing is compiled for a device.
 * Idea:    the variables are those of the file, with what transformers always gives: tools and documents (none),
 *          add_generation_prompt, and the special tokens of a model. */
#include "app/app.h"
#include "model/net.h"
#include "text/jinja.h"

enum { MAX_CONVERSATION = 64 << 20 };

static imp_status read_conversation(app *a, json_t **out)
{
    imp_buf text = {0};
    imp_sys_file f = {0};
    json_error_t why;
    const char *path = a->arg[1];
    if (!strcmp(path, "-"))
        IMP_TRY(app_read_stdin(&text, &a->err));
    else
        IMP_TRY(imp_sys_file_open(path, false, &f, &a->err));
    const char *p = f.data ? (const char *)f.data : text.data ? text.data : "";
    uint64_t n = f.data ? f.n : text.n;
    *out = n <= MAX_CONVERSATION ? json_loadb(p, n, JSON_ALLOW_NUL, &why) : NULL;
    imp_sys_file_close(&f);
    imp_buf_deinit(&text);
    if (n > MAX_CONVERSATION) return imp_fail(&a->err, IMP_TOO_LARGE, "'%.200s' holds more than 64 MB", path);
    if (!*out)
        return imp_fail(&a->err, IMP_FORMAT, "'%.200s' is not valid JSON: line %d: %s", path, why.line,
                        why.text);
    if (json_is_object(*out) && json_is_array(json_object_get(*out, "messages"))) return IMP_OK;
    json_decref(*out);
    *out = NULL;
    return imp_fail(&a->err, IMP_INVALID,
                    "'%.200s' has no \"messages\": {\"messages\":[{\"role\":...,\"content\":...}]}", path);
}

/* Set what the file does not say. */
static imp_status set_missing(json_t *vars, const char *key, json_t *value, imp_error *err)
{
    if (json_object_get(vars, key)) {
        json_decref(value);
        return IMP_OK;
    }
    return json_object_set_new(vars, key, value) == 0 ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory");
}

static imp_status set_token(json_t *vars, const char *key, const imp_tokenizer *t, int32_t id, imp_error *err)
{
    size_t n;
    const char *piece = t && id >= 0 ? imp_tokenizer_piece(t, id, &n) : NULL;
    return piece ? set_missing(vars, key, json_stringn(piece, n), err) : IMP_OK;
}

static imp_status set_variables(app *a, json_t *vars, const imp_tokenizer *t)
{
    IMP_TRY(set_missing(vars, "tools", json_null(), &a->err));
    IMP_TRY(set_missing(vars, "documents", json_null(), &a->err));
    if (opt_set(&a->opt, OPT_GENERATION_PROMPT) &&
        json_object_set_new(vars, "add_generation_prompt",
                            json_boolean(opt_on(&a->opt, OPT_GENERATION_PROMPT))))
        return imp_fail(&a->err, IMP_NOMEM, "out of memory");
    IMP_TRY(set_missing(vars, "add_generation_prompt", json_false(), &a->err));
    IMP_TRY(set_token(vars, "bos_token", t, t ? imp_tokenizer_bos(t) : -1, &a->err));
    return set_token(vars, "eos_token", t, t ? imp_tokenizer_eos(t) : -1, &a->err);
}

static imp_status render(app *a, const char *template, size_t n, const imp_tokenizer *t, imp_buf *out)
{
    imp_jinja *compiled;
    json_t *vars;
    IMP_TRY(imp_jinja_compile(template, n, &compiled, &a->err));
    imp_status s = read_conversation(a, &vars);
    if (s == IMP_OK) {
        s = set_variables(a, vars, t);
        if (s == IMP_OK) s = imp_jinja_render(compiled, vars, NULL, out, &a->err);
        json_decref(vars);
    }
    imp_jinja_free(compiled);
    return s;
}

static imp_status render_file(app *a, imp_buf *out)
{
    imp_sys_file f;
    IMP_TRY(imp_sys_file_open(a->arg[0], false, &f, &a->err));
    imp_status s = render(a, f.data ? (const char *)f.data : "", f.n, NULL, out);
    imp_sys_file_close(&f);
    return s;
}

static imp_status render_model(app *a, imp_buf *out)
{
    const char *path;
    imp_net *net;
    IMP_TRY(app_model_path(a, a->arg[0], &path, &a->err));
    IMP_TRY(imp_net_open(path, 0, &net, &a->err));
    imp_status s = net->chat_template
                       ? render(a, net->chat_template, strlen(net->chat_template), net->tok, out)
                       : imp_fail(&a->err, IMP_UNSUPPORTED, "'%.200s' has no chat template", a->arg[0]);
    imp_net_close(net);
    return s;
}

app_result cmd_render(app *a)
{
    imp_buf out = {0};
    app_result r = APP_FAILED;
    imp_status s = app_has_suffix(a->arg[0], ".jinja") ? render_file(a, &out) : render_model(a, &out);
    if (s == IMP_OK) {
        const char *text = out.data ? out.data : "";
        r = APP_OK;
        if (opt_on(&a->opt, OPT_JSON))
            r = app_print_json(a, json_pack("{s:o}", "text", app_json_text(text, out.n)));
        else
            fwrite(text, 1, out.n, stdout);
    }
    imp_buf_deinit(&out);
    return r;
}
