/* text/toolcall.c - conversations with calls: the template's variables, and what we write where a template does not. */
#include "text/toolcall_int.h"

void imp_toolfmt_free(imp_toolfmt *f)
{
    if (f != NULL) imp_arena_free(f->memory); /* it holds f, too */
}

const char *imp_toolfmt_name(const imp_toolfmt *f)
{
    return f != NULL && f->name[0] != '\0' ? f->name : NULL;
}

const char *imp_toolfmt_why(const imp_toolfmt *f)
{
    return f->why;
}

bool imp_toolfmt_thinks(const imp_toolfmt *f)
{
    return f != NULL && f->think_open != NULL;
}

bool imp_toolfmt_has_text(const imp_toolfmt *f, const char *s, size_t n)
{
    const char *const text[] = {f->open,      f->mid,         f->between, f->close,      f->key_open,
                                f->key_close, f->value_close, f->tag,     f->think_open, f->think_close};
    for (size_t i = 0; i < IMP_COUNT(text) && n > 0; i++)
        if (text[i] != NULL && memmem(text[i], strlen(text[i]), s, n) != NULL) return true;
    return false;
}

bool imp_toolfmt_in_thought(const imp_toolfmt *f, const char *prompt)
{
    if (!imp_toolfmt_thinks(f)) return false;
    size_t n = strlen(prompt), m = strlen(f->think_open);
    while (n > 0 && strchr(" \t\r\n", prompt[n - 1]) != NULL) n--;
    return n >= m && memcmp(prompt + n - m, f->think_open, m) == 0;
}

/* ---- JSON ------------------------------------------------------------------------------------------------ */

static int dump_part(const char *p, size_t n, void *user)
{
    imp_buf_add(user, p, n);
    return 0;
}

bool imp_tool_dump(const json_t *v, imp_buf *out)
{
    return json_dump_callback(v, dump_part, out, JSON_ENCODE_ANY) == 0 && !out->failed;
}

const json_t *imp_tool_function(const json_t *tools, size_t i)
{
    const json_t *f = json_object_get(json_array_get(tools, i), "function");
    return json_is_string(json_object_get(f, "name")) ? f : NULL;
}

bool imp_tool_is_text(const json_t *schema)
{
    const char *type = json_string_value(json_object_get(schema, "type"));
    const json_t *list = json_object_get(schema, "enum"), *v;
    if (type != NULL) return strcmp(type, "string") == 0;
    if (json_is_string(json_object_get(schema, "const"))) return true;
    size_t i;
    json_array_foreach((json_t *)list, i, v) if (!json_is_string(v)) return false;
    return json_array_size(list) > 0;
}

/* ---- calls as text ----------------------------------------------------------------------------------------- */

/* A piece with the id in its place. */
static void write_piece(const char *piece, const char *id, imp_buf *out)
{
    for (; *piece != '\0'; piece++) {
        if (*piece == IMP_SLOT)
            imp_buf_str(out, id);
        else
            imp_buf_add(out, piece, 1);
    }
}

static void write_keyed(const imp_toolfmt *f, const char *arguments, imp_buf *out)
{
    json_t *args = json_loads(arguments, 0, NULL), *v;
    const char *key;
    json_object_foreach(args, key, v)
    {
        imp_buf_str(out, f->key_open);
        imp_buf_str(out, key);
        imp_buf_str(out, f->key_close);
        if (json_is_string(v))
            imp_buf_add(out, json_string_value(v), json_string_length(v));
        else if (!imp_tool_dump(v, out))
            out->failed = true;
        imp_buf_str(out, f->value_close);
    }
    json_decref(args);
}

/* The id as templates take it: nine letters or digits, always the same ones for the same id. */
static void short_id(const char *id, char out[IMP_CALL_ID_LEN + 1])
{
    static const char digit[] = "0123456789abcdefghijklmnopqrstuvwxyz";
    size_t n = id != NULL ? strlen(id) : 0;
    bool fits = n == IMP_CALL_ID_LEN;
    for (size_t i = 0; fits && i < n; i++) fits = imp_tool_name_byte(id[i]) && strchr("_-.", id[i]) == NULL;
    uint64_t h = imp_hash(id, n, 0);
    for (int i = 0; i < IMP_CALL_ID_LEN; i++, h /= 36) out[i] = fits ? id[i] : digit[h % 36];
    out[IMP_CALL_ID_LEN] = '\0';
}

void imp_toolfmt_write(const imp_toolfmt *f, const imp_tool_call *call, size_t n, imp_buf *out)
{
    for (size_t i = 0; i < n; i++) {
        char id[IMP_CALL_ID_LEN + 1];
        short_id(call[i].id, id);
        write_piece(i == 0 ? f->open : f->between, id, out);
        imp_buf_str(out, call[i].name);
        write_piece(f->mid, id, out);
        if (f->key_open != NULL)
            write_keyed(f, call[i].arguments, out);
        else
            imp_buf_str(out, call[i].arguments);
        if (i + 1 == n) write_piece(f->close, id, out);
    }
}

/* ---- the template's variables ------------------------------------------------------------------------------- */

/* A text as a JSON string; NULL: not UTF-8, or out of memory. */
static json_t *text(const char *s)
{
    return json_string(s != NULL ? s : "");
}

static json_t *calls_json(const imp_toolfmt *f, const imp_message *m)
{
    json_t *list = json_array();
    for (size_t i = 0; i < m->n_calls; i++) {
        char id[IMP_CALL_ID_LEN + 1];
        short_id(m->calls[i].id, id);
        json_t *args =
            f->args_text ? text(m->calls[i].arguments) : json_loads(m->calls[i].arguments, 0, NULL);
        json_t *call = json_pack("{s:s, s:s, s:{s:s, s:o}}", "id", id, "type", "function", "function", "name",
                                 m->calls[i].name, "arguments", args);
        if (json_array_append_new(list, call) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

/* What an assistant's message becomes for a template that writes no calls: they end its content. */
static json_t *with_calls(const imp_toolfmt *f, const imp_message *m)
{
    imp_buf b = {0};
    if (m->content != NULL && m->content[0] != '\0') {
        imp_buf_str(&b, m->content);
        imp_buf_str(&b, "\n");
    }
    imp_toolfmt_write(f, m->calls, m->n_calls, &b);
    json_t *v = b.failed ? NULL : json_stringn(b.data, b.n);
    imp_buf_deinit(&b);
    return v;
}

static const char *name_of_call(const imp_chat *c, size_t at, const char *id)
{
    for (size_t i = at; id != NULL && i-- > 0;)
        for (size_t k = 0; k < c->msg[i].n_calls; k++)
            if (c->msg[i].calls[k].id != NULL && strcmp(c->msg[i].calls[k].id, id) == 0)
                return c->msg[i].calls[k].name;
    return NULL;
}

static bool set(json_t *o, const char *key, json_t *v)
{
    return json_object_set_new(o, key, v) == 0;
}

static json_t *message_json(const imp_toolfmt *f, const imp_chat *c, size_t i)
{
    const imp_message *m = &c->msg[i];
    bool tool = strcmp(m->role, "tool") == 0;
    json_t *o = json_object();
    bool good = set(o, "role", text(m->role)), empty = m->content == NULL || m->content[0] == '\0';
    if (m->n_calls > 0 && !f->writes_calls)
        good = good && set(o, "content", with_calls(f, m));
    else if (m->n_calls > 0 && empty && f->null_content)
        good = good && set(o, "content", json_null());
    else
        good = good && set(o, "content", text(m->content));
    if (m->thought != NULL && m->thought[0] != '\0')
        good = good && set(o, "reasoning_content", text(m->thought));
    if (m->n_calls > 0 && f->writes_calls) good = good && set(o, "tool_calls", calls_json(f, m));
    if (tool) {
        char id[IMP_CALL_ID_LEN + 1];
        const char *name = m->name != NULL ? m->name : name_of_call(c, i, m->call_id);
        short_id(m->call_id, id);
        good = good && set(o, "tool_call_id", text(id));
        if (name != NULL) good = good && set(o, "name", text(name));
    }
    if (good) return o;
    json_decref(o);
    return NULL;
}

/* Results in a row as one message of the user's; *i is moved to the last of them. */
static json_t *results_json(const imp_chat *c, size_t *i)
{
    imp_buf b = {0};
    for (bool more = true; more; *i += more) {
        if (b.n > 0) imp_buf_str(&b, "\n");
        imp_buf_str(&b, "<tool_response>\n");
        imp_buf_str(&b, c->msg[*i].content);
        imp_buf_str(&b, "\n</tool_response>");
        more = *i + 1 < c->n_msg && strcmp(c->msg[*i + 1].role, "tool") == 0;
    }
    json_t *o = b.failed ? NULL : json_pack("{s:s, s:o}", "role", "user", "content", text(b.data));
    imp_buf_deinit(&b);
    return o;
}

/* ---- declarations in our words ---------------------------------------------------------------------------------- */

static void declare(const imp_toolfmt *f, const json_t *tools, imp_buf *out)
{
    const json_t *v;
    size_t i;
    imp_buf_str(out, "You may call these functions:\n<tools>\n");
    json_array_foreach((json_t *)tools, i, v)
    {
        if (!imp_tool_dump(v, out)) out->failed = true;
        imp_buf_str(out, "\n");
    }
    imp_buf_str(out, "</tools>\nTo call one, write its name and its arguments like this:\n");
    imp_tool_call example = {.name = "NAME", .arguments = "{\"KEY\": \"VALUE\"}"};
    imp_toolfmt_write(f, &example, 1, out);
}

/* Put them into the system message, or before the first user message where there is none. */
static bool add_declarations(const imp_toolfmt *f, const json_t *tools, json_t *list)
{
    imp_buf b = {0};
    json_t *first = json_array_get(list, 0);
    const char *role = json_string_value(json_object_get(first, "role"));
    bool system = role != NULL && strcmp(role, "system") == 0, into = system || !f->system_role;
    const char *content = json_string_value(json_object_get(first, "content"));
    if (system && content != NULL && content[0] != '\0') {
        imp_buf_str(&b, content);
        imp_buf_str(&b, "\n\n");
    }
    declare(f, tools, &b);
    if (into && !system && content != NULL) {
        imp_buf_str(&b, "\n\n");
        imp_buf_str(&b, content);
    }
    json_t *v = b.failed ? NULL : json_stringn(b.data, b.n);
    imp_buf_deinit(&b);
    if (into) return json_object_set_new(first, "content", v) == 0;
    return json_array_insert_new(list, 0, json_pack("{s:s, s:o}", "role", "system", "content", v)) == 0;
}

static imp_status check_messages(const imp_toolfmt *f, const imp_chat *c, imp_error *err)
{
    if (c->n_msg == 0) return imp_fail_field(err, IMP_INVALID, "messages", "messages is empty");
    bool calls = c->tools != NULL;
    for (size_t i = 0; i < c->n_msg; i++) {
        const imp_message *m = &c->msg[i];
        const char *const part[] = {m->role, m->content, m->thought};
        calls = calls || m->n_calls > 0 || strcmp(m->role, "tool") == 0;
        for (size_t k = 0; k < IMP_COUNT(part); k++)
            if (part[k] != NULL && !imp_utf8_valid(part[k], strlen(part[k])))
                return imp_fail_field(err, IMP_INVALID, "messages", "message %zu is not valid UTF-8", i);
        for (size_t k = 0; k < m->n_calls; k++) {
            json_t *v = json_loads(m->calls[k].arguments, JSON_REJECT_DUPLICATES, NULL);
            bool object = json_is_object(v);
            json_decref(v);
            if (!object)
                return imp_fail_field(err, IMP_INVALID, "messages",
                                      "message %zu: the arguments of a call must be a JSON object", i);
        }
    }
    if (calls && f->name[0] == '\0')
        return imp_fail_field(err, IMP_UNSUPPORTED, "tools", "this model cannot be given tools: %.200s",
                              f->why);
    return IMP_OK;
}

imp_status imp_toolfmt_vars(const imp_toolfmt *f, const imp_chat *c, json_t **out, imp_error *err)
{
    *out = NULL;
    IMP_TRY(check_messages(f, c, err));
    json_t *tools = c->tools != NULL ? json_loads(c->tools, 0, NULL) : NULL, *list = json_array();
    bool good = list != NULL && (c->tools == NULL || tools != NULL);
    for (size_t i = 0; i < c->n_msg && good; i++) {
        bool result = strcmp(c->msg[i].role, "tool") == 0 && !f->takes_results;
        good = json_array_append_new(list, result ? results_json(c, &i) : message_json(f, c, i)) == 0;
    }
    if (good && tools != NULL && !f->shows_tools) good = add_declarations(f, tools, list);
    json_t *shown = tools != NULL && f->shows_tools ? json_incref(tools) : json_null();
    json_t *vars = good ? json_pack("{s:O, s:O, s:n, s:b}", "messages", list, "tools", shown, "documents",
                                    "add_generation_prompt", 1)
                        : NULL;
    json_decref(list);
    json_decref(shown);
    json_decref(tools);
    good = vars != NULL;
    if (c->think >= 0) {
        good = good && set(vars, "enable_thinking", json_boolean(c->think));
        good = good && set(vars, "thinking", json_boolean(c->think));
    }
    if (c->effort != NULL) good = good && set(vars, "reasoning_effort", text(c->effort));
    if (!good) {
        json_decref(vars);
        return imp_fail(err, IMP_NOMEM, "not enough memory for the prompt");
    }
    *out = vars;
    return IMP_OK;
}
