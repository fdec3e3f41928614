/* text/toolcall_probe.c - find out from a chat template how the model writes calls, and prove that we read them.
 *
 * Idea:    an answer with a made-up call and an answer with made-up text differ, in what the template makes of them, in the
 *          call alone. Its name and arguments are found there; what stands around them is the format. Two calls show
 *          what stands between them, calls without arguments what belongs to the arguments.
 * Always:  nothing is believed that was not rendered and read back: imp_toolfmt_probe ends with a proof over calls that hold
 *          what breaks formats. */
#include "text/toolcall_int.h"

#define NAME_A "zq_alpha"
#define NAME_B "zq_beta"
#define ID_A   "zqaaaaaa1"
#define ID_B   "zqbbbbbb2"
#define KEY_A  "zk_one"
#define KEY_B  "zk_two"
#define SAID   "\xe2\x80\xa0zs said"
#define RESULT "zr result"
#define DESC   "zd says what"

static const char g_tools[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"" NAME_A "\",\"description\":\"" DESC
    "\",\"parameters\":{\"type\":\"object\",\"properties\":{\"" KEY_A
    "\":{\"type\":\"string\",\"description\":\"one\"},\"" KEY_B
    "\":{\"type\":\"string\",\"description\":\"two\"},\"n\":{\"type\":\"integer\",\"description\":\"n\"},"
    "\"x\":{\"description\":\"x\"}}}}},{\"type\":\"function\",\"function\":{\"name\":\"" NAME_B
    "\",\"description\":\"b\",\"parameters\":{\"type\":\"object\",\"properties\":{\"" KEY_A
    "\":{\"type\":\"string\",\"description\":\"one\"}}}}}]";
static const char g_args[] = "{\"" KEY_A "\": \"zv_one\", \"" KEY_B "\": \"zv_two\"}";

typedef struct prober {
    imp_toolfmt *f;
    const imp_jinja *t;
    const char *bos, *eos;
    imp_buf said, calls, prompt; /* last renderings */
} prober;

static bool nomem(imp_toolfmt *f)
{
    (void)snprintf(f->why, sizeof f->why, "out of memory");
    return false;
}

static bool render(prober *p, const imp_chat *c, bool prompt, imp_buf *out)
{
    json_t *vars = NULL;
    imp_error err = {0};
    out->n = 0;
    imp_status s = imp_toolfmt_vars(p->f, c, &vars, &err);
    if (s == IMP_OK) {
        (void)json_object_set_new(vars, "add_generation_prompt", json_boolean(prompt));
        if (p->bos != NULL) (void)json_object_set_new(vars, "bos_token", json_string(p->bos));
        if (p->eos != NULL) (void)json_object_set_new(vars, "eos_token", json_string(p->eos));
        s = imp_jinja_render(p->t, vars, NULL, out, &err);
    }
    json_decref(vars);
    if (s != IMP_OK) (void)snprintf(p->f->why, sizeof p->f->why, "%.200s", err.text);
    return s == IMP_OK;
}

static bool has(const imp_buf *b, const char *s)
{
    return b->data != NULL && strstr(b->data, s) != NULL;
}

/* ---- the text of an answer ------------------------------------------------------------------------------------- */

/* What the template writes for an answer with these calls (n > 0), between what it writes around any answer; into
 * p->calls. */
static bool answer_text(prober *p, const imp_message *answer, imp_buf *out)
{
    imp_message plain[] = {{.role = "user", .content = "zu"}, {.role = "assistant", .content = SAID}};
    imp_message with[] = {plain[0], *answer};
    imp_chat a = {.msg = plain, .n_msg = 2, .tools = g_tools, .think = -1}, b = a;
    b.msg = with;
    if (!render(p, &a, false, &p->said) || !render(p, &b, false, &p->calls)) return false;
    const char *said = strstr(p->said.data != NULL ? p->said.data : "", SAID);
    if (said == NULL) {
        (void)snprintf(p->f->why, sizeof p->f->why,
                       "the chat template does not show what the assistant said");
        return false;
    }
    size_t n_before = (size_t)(said - p->said.data), i = 0, k = 0;
    size_t n_after = p->said.n - n_before - strlen(SAID);
    while (i < n_before && i < p->calls.n && p->said.data[i] == p->calls.data[i]) i++;
    while (k < n_after && k + i < p->calls.n &&
           p->said.data[p->said.n - 1 - k] == p->calls.data[p->calls.n - 1 - k])
        k++;
    while (i + k < p->calls.n && strchr(" \r\n", p->calls.data[i]) != NULL) i++;
    out->n = 0;
    imp_buf_add(out, p->calls.data + i, p->calls.n - i - k);
    return !out->failed || nomem(p->f);
}

static bool calls_text(prober *p, const imp_tool_call *call, size_t n, imp_buf *out)
{
    imp_message m = {.role = "assistant", .content = "", .calls = call, .n_calls = n};
    return answer_text(p, &m, out);
}

/* ---- taking it apart ---------------------------------------------------------------------------------------------- */

typedef struct span {
    const char *p;
    size_t n;
} span;

/* Keep a piece, with a slot wherever an id stands. */
static const char *piece(imp_toolfmt *f, span s)
{
    static const char *const id[] = {ID_A, ID_B};
    char *out = imp_arena_strndup(f->memory, s.p, s.n), *at;
    for (size_t i = 0; i < IMP_COUNT(id) && out != NULL; i++)
        while ((at = strstr(out, id[i])) != NULL) {
            *at = IMP_SLOT;
            memmove(at + 1, at + strlen(id[i]), strlen(at + strlen(id[i])) + 1);
        }
    return out;
}

/* The arguments as JSON, the first time they stand in s; n == 0: nowhere. */
static span find_json(span s, const char *want)
{
    json_t *w = json_loads(want, 0, NULL);
    span found = {0};
    for (size_t i = 0; i < s.n && found.n == 0; i++) {
        if (s.p[i] != '{') continue;
        json_error_t e;
        json_t *v = json_loadb(s.p + i, s.n - i, JSON_DISABLE_EOF_CHECK, &e);
        if (v != NULL && json_equal(v, w)) found = (span){s.p + i, (size_t)e.position};
        json_decref(v);
    }
    json_decref(w);
    return found;
}

static span find_text(span s, const char *what)
{
    const char *at = memmem(s.p, s.n, what, strlen(what));
    return at != NULL ? (span){at, strlen(what)} : (span){0};
}

static span before(span whole, span part)
{
    return (span){whole.p, (size_t)(part.p - whole.p)};
}

static span after(span whole, span part)
{
    const char *end = part.p + part.n;
    return (span){end, (size_t)(whole.p + whole.n - end)};
}

static bool ends_with(span s, span tail)
{
    return s.n >= tail.n && memcmp(s.p + s.n - tail.n, tail.p, tail.n) == 0;
}

static bool same_cat(span a, span b, span whole)
{
    return a.n + b.n == whole.n && memcmp(a.p, whole.p, a.n) == 0 && memcmp(b.p, whole.p + a.n, b.n) == 0;
}

/* A call whose arguments stand one by one. rest: what follows the name; none: the same of a call without arguments. */
static bool take_keys(imp_toolfmt *f, span rest, span none)
{
    span key = find_text(rest, KEY_A);
    if (key.n == 0) return false;
    span mid = before(rest, key), tail = after(rest, key), value = find_text(tail, "zv_one");
    if (value.n == 0) return false;
    span key_close = before(tail, value), tail2 = after(tail, value), key2 = find_text(tail2, KEY_B);
    if (key2.n == 0) return false;
    span between = before(tail2, key2), value2 = find_text(tail2, "zv_two");
    if (value2.n == 0) return false;
    span end = after(tail2, value2);
    /* between = value_close key_open, mid = MID key_open, end = value_close CLOSE, none = MID CLOSE */
    for (size_t n = IMP_MIN(mid.n, between.n); n > 0; n--) {
        span open = {mid.p + mid.n - n, n};
        if (!ends_with(between, open)) continue;
        span m = {mid.p, mid.n - n}, vc = {between.p, between.n - n};
        if (vc.n == 0 || end.n < vc.n || memcmp(end.p, vc.p, vc.n) != 0) continue;
        span c = {end.p + vc.n, end.n - vc.n};
        if (!same_cat(m, c, none)) continue;
        f->mid = piece(f, m);
        f->key_open = piece(f, open);
        f->key_close = piece(f, key_close);
        f->value_close = piece(f, vc);
        f->close = piece(f, c);
        return true;
    }
    return false;
}

/* The marker that a call begins with wherever it stands; NULL: it has none. */
static const char *trigger_of(imp_toolfmt *f)
{
    const char *o = f->open, *end = NULL;
    bool letter =
        o[0] != '\0' && (imp_tool_name_byte(o[1]) || strchr("|/", o[1]) != NULL || (unsigned char)o[1] > 127);
    if (o[0] == '<' && letter) end = strchr(o, '>');
    if (o[0] == '[' && letter) end = strchr(o, ']');
    return end != NULL ? imp_arena_strndup(f->memory, o, (size_t)(end + 1 - o)) : NULL;
}

/* From one call: everything but `between`. */
static bool take_one(imp_toolfmt *f, span text, span none)
{
    span name = find_text(text, NAME_A);
    if (name.n == 0) return false;
    f->open = piece(f, before(text, name));
    span rest = after(text, name), args = find_json(rest, g_args);
    f->key_open = f->key_close = f->value_close = NULL;
    if (args.n > 0) {
        f->mid = piece(f, before(rest, args));
        f->close = piece(f, after(rest, args));
    } else {
        span n2 = find_text(none, NAME_A);
        if (n2.n == 0 || !take_keys(f, rest, after(none, n2))) return false;
    }
    if (f->open == NULL || f->mid == NULL || f->close == NULL) return nomem(f);
    f->trigger = trigger_of(f);
    f->tag = f->trigger == NULL ? "<|python_tag|>" : NULL;
    return f->open[0] != '\0';
}

/* What stands between two calls; text begins behind the arguments of the first. */
static bool take_between(imp_toolfmt *f, span text)
{
    span a = find_text(text, NAME_A), b = find_text(text, NAME_B);
    if (a.n == 0 || b.n == 0 || b.p < a.p) return false;
    span inner = {a.p + a.n, (size_t)(b.p - a.p) - a.n}, args = find_json(inner, g_args);
    if (f->key_open != NULL) {
        span last = find_text(inner, "zv_two");
        size_t n = strlen(f->value_close);
        if (last.n == 0 || after(inner, last).n < n) return false;
        args = (span){last.p, last.n + n};
    }
    if (args.n == 0) return false;
    f->between = piece(f, after(inner, args));
    return f->between != NULL && f->between[0] != '\0';
}

static bool derive(prober *p, imp_buf *text)
{
    imp_toolfmt *f = p->f;
    imp_buf none = {0};
    imp_tool_call one = {ID_A, NAME_A, g_args}, empty = {ID_A, NAME_A, "{}"};
    imp_tool_call two[] = {one, {ID_B, NAME_B, g_args}};
    bool good = calls_text(p, &empty, 1, &none) && calls_text(p, &one, 1, text) &&
                take_one(f, (span){text->data, text->n}, (span){none.data, none.n});
    if (good) {
        size_t n = text->n;
        f->many = calls_text(p, two, 2, &none) && take_between(f, (span){none.data, none.n});
        if (!f->many) f->between = NULL;
        text->n = n;
    }
    imp_buf_deinit(&none);
    return good;
}

/* ---- the proof ------------------------------------------------------------------------------------------------------- */

static const struct {
    size_t n;
    const char *content, *name[3], *args[3];
} g_case[] = {
    {1, "", {NAME_A}, {"{}"}},
    {1, "", {NAME_A}, {"{\"" KEY_A "\": \"say \\\"hi\\\" \\\\ }] </x> it's\"}"}},
    {1,
     "",
     {NAME_A},
     {"{\"" KEY_A
      "\": \"Gr\xc3\xbc\xc3\x9f \xe4\xbd\xa0\xe5\xa5\xbd \xf0\x9f\x90\x88\\n\\ttwo\", \"n\": -5}"}},
    {1, "", {NAME_A}, {"{\"n\": 12, \"x\": {\"a\": [1, 2.5, true, null, \"b\"], \"c\": {\"d\": {}}}}"}},
    {1, "zs first", {NAME_A}, {"{\"n\": 1, \"x\": [\"{\", \"<\", false]}"}},
    {2, "", {NAME_A, NAME_B}, {"{\"" KEY_A "\": \"\"}", "{\"" KEY_A "\": \"x, y\"}"}},
    {3, "", {NAME_B, NAME_A, NAME_B}, {"{\"" KEY_A "\": \"a\"}", "{\"n\": 0}", "{}"}}};

typedef struct heard {
    imp_buf text, name[4], args[4];
    size_t n, n_end;
} heard;

static void hear(void *user, imp_part_kind kind, const char *p, size_t n)
{
    heard *h = user;
    if (kind == IMP_PART_TEXT) imp_buf_add(&h->text, p, n);
    if (kind == IMP_PART_CALL && h->n < 4) imp_buf_add(&h->name[h->n++], p, n);
    if (kind == IMP_PART_ARGS && h->n > 0) imp_buf_add(&h->args[h->n - 1], p, n);
    if (kind == IMP_PART_CALL_END) h->n_end++;
}

/* Read text, cut at `cut`, and compare. */
static bool reads_as(const imp_toolfmt *f, const json_t *tools, const imp_buf *text, size_t cut, size_t k,
                     bool content)
{
    heard h = {0};
    imp_reader *r = NULL;
    bool good = imp_reader_new(f, tools, false, hear, &h, &r) == IMP_OK &&
                imp_reader_push(r, text->data, cut) && imp_reader_push(r, text->data + cut, text->n - cut) &&
                imp_reader_end(r);
    imp_reader_free(r);
    good = good && h.n == g_case[k].n && h.n_end == h.n;
    if (content)
        good = good && h.text.n > 0 && strcmp(h.text.data, g_case[k].content) == 0;
    else
        good = good && h.text.n == 0;
    for (size_t i = 0; i < h.n; i++) {
        json_t *a =
            h.args[i].n > 0 ? json_loadb(h.args[i].data, h.args[i].n, JSON_REJECT_DUPLICATES, NULL) : NULL;
        json_t *b = good ? json_loads(g_case[k].args[i], 0, NULL) : NULL;
        good = good && json_equal(a, b) && strcmp(h.name[i].data, g_case[k].name[i]) == 0;
        json_decref(a);
        json_decref(b);
    }
    for (size_t i = 0; i < 4; i++) {
        imp_buf_deinit(&h.name[i]);
        imp_buf_deinit(&h.args[i]);
    }
    imp_buf_deinit(&h.text);
    return good;
}

static bool prove_case(prober *p, const json_t *tools, size_t k, imp_buf *text)
{
    static const char *const id[] = {ID_A, ID_B, "zqcccccc3"};
    imp_tool_call call[3];
    for (size_t i = 0; i < g_case[k].n; i++)
        call[i] = (imp_tool_call){id[i], g_case[k].name[i], g_case[k].args[i]};
    imp_message m = {
        .role = "assistant", .content = g_case[k].content, .calls = call, .n_calls = g_case[k].n};
    if (!answer_text(p, &m, text)) return false;
    /* not all templates show text beside calls; those that do must have it read back, where it stands before calls that
     * have a marker */
    bool content = g_case[k].content[0] != '\0' && has(text, g_case[k].content);
    bool behind = content && strstr(text->data, g_case[k].content) > strstr(text->data, NAME_A);
    if (content && (behind || p->f->trigger == NULL)) return true;
    for (size_t cut = 0; cut <= text->n; cut++)
        if (!reads_as(p->f, tools, text, cut, k, content)) {
            (void)snprintf(
                p->f->why, sizeof p->f->why,
                "a call that its chat template wrote was not read back as it was (made-up call %zu)", k);
            return false;
        }
    return true;
}

static bool prove(prober *p)
{
    json_t *tools = json_loads(g_tools, 0, NULL);
    imp_buf text = {0};
    bool good = tools != NULL;
    for (size_t k = 0; k < IMP_COUNT(g_case) && good; k++)
        if (g_case[k].n == 1 || p->f->many) good = prove_case(p, tools, k, &text);
    imp_buf_deinit(&text);
    json_decref(tools);
    return good;
}

/* ---- the conversation around it ---------------------------------------------------------------------------------------- */

/* The forms a call may have for a template; the shortest text that is proven counts: others hold "None" and the like. */
static bool find_written(prober *p)
{
    imp_toolfmt *f = p->f, best = {0};
    size_t n_best = 0;
    imp_buf text = {0};
    char why[sizeof f->why] = "";
    f->writes_calls = true;
    for (int k = 0; k < 4; k++) {
        f->null_content = k & 1;
        f->args_text = k & 2;
        if (!derive(p, &text) || (n_best > 0 && text.n >= n_best)) continue;
        size_t n = text.n;
        if (prove(p)) {
            best = *f;
            n_best = n;
        } else if (why[0] == '\0') {
            memcpy(why, f->why, sizeof why);
        }
    }
    imp_buf_deinit(&text);
    if (n_best > 0) *f = best;
    if (n_best == 0) memcpy(f->why, why, sizeof why); /* "": it writes no calls at all */
    return n_best > 0;
}

/* Calls in our own spelling: as the template's words about them say, or in the most common one. */
static bool find_spelled(prober *p, const char *src)
{
    imp_toolfmt *f = p->f;
    bool list = strstr(src, "<|tool_call|>") != NULL;
    f->writes_calls = f->null_content = f->args_text = false;
    f->key_open = f->key_close = f->value_close = f->tag = NULL;
    f->many = true;
    f->trigger = list ? "<|tool_call|>" : "<tool_call>";
    f->open = list ? "<|tool_call|>[{\"name\": \"" : "<tool_call>\n{\"name\": \"";
    f->mid = "\", \"arguments\": ";
    f->between = list ? "}, {\"name\": \"" : "}\n</tool_call>\n<tool_call>\n{\"name\": \"";
    f->close = list ? "}]" : "}\n</tool_call>";
    return prove(p);
}

static bool find_results(prober *p)
{
    imp_tool_call call = {ID_A, NAME_A, g_args};
    imp_message m[] = {{.role = "user", .content = "zu"},
                       {.role = "assistant", .content = "", .calls = &call, .n_calls = 1},
                       {.role = "tool", .content = RESULT, .call_id = ID_A, .name = NAME_A}};
    imp_chat c = {.msg = m, .n_msg = 3, .tools = g_tools, .think = -1};
    for (int k = 0; k < 2; k++) {
        p->f->takes_results = k == 0;
        if (render(p, &c, true, &p->prompt) && has(&p->prompt, RESULT) && has(&p->prompt, NAME_A))
            return true;
    }
    (void)snprintf(p->f->why, sizeof p->f->why, "its chat template does not show what a tool answered");
    return false;
}

static bool find_shown(prober *p)
{
    imp_message m[] = {{.role = "system", .content = SAID}, {.role = "user", .content = "zu"}};
    imp_chat c = {.msg = m, .n_msg = 2, .tools = g_tools, .think = -1};
    imp_toolfmt *f = p->f;
    f->shows_tools = true;
    f->system_role = render(p, &c, true, &p->prompt) && has(&p->prompt, SAID);
    if (!f->system_role) c = (imp_chat){.msg = m + 1, .n_msg = 1, .tools = g_tools, .think = -1};
    for (int k = 0; k < 2; k++) {
        f->shows_tools = k == 0;
        if (render(p, &c, true, &p->prompt) && has(&p->prompt, DESC) && has(&p->prompt, NAME_B) &&
            has(&p->prompt, KEY_B))
            return true;
    }
    (void)snprintf(f->why, sizeof f->why,
                   "its chat template shows the model neither tools nor system messages");
    return false;
}

static const char *label(const imp_toolfmt *f)
{
    if (strstr(f->open, "[TOOL_CALLS]") != NULL) return "mistral";
    if (strstr(f->open, "\xef\xbd\x9ctool") != NULL) return "deepseek";
    if (strstr(f->open, "<|tool_call|>") != NULL) return "granite";
    if (f->key_open != NULL) return strstr(f->key_open, "<arg_key>") != NULL ? "glm" : "keyed";
    if (!f->writes_calls) return "spelled";
    if (strcmp(f->open, "<tool_call>\n{\"name\": \"") == 0) return "hermes";
    if (f->trigger == NULL) return strstr(f->mid, "\"parameters\"") != NULL ? "llama3" : "json";
    return "template";
}

static void find_thoughts(imp_toolfmt *f, const char *src)
{
    static const char *const pair[][2] = {{"<think>", "</think>"}, {"[THINK]", "[/THINK]"}};
    for (size_t i = 0; i < IMP_COUNT(pair) && f->think_open == NULL; i++)
        if (strstr(src, pair[i][1]) != NULL) {
            f->think_open = pair[i][0];
            f->think_close = pair[i][1];
        }
}

imp_status imp_toolfmt_probe(const imp_jinja *t, const char *src, const char *bos, const char *eos,
                             imp_toolfmt **out)
{
    imp_arena *memory = imp_arena_new(2048);
    imp_toolfmt *f = memory != NULL ? imp_arena_alloc(memory, sizeof *f) : NULL;
    *out = NULL;
    if (f == NULL) {
        imp_arena_free(memory);
        return IMP_NOMEM;
    }
    f->memory = memory;
    f->shows_tools = f->system_role = f->takes_results = f->writes_calls = true;
    find_thoughts(f, src);
    prober p = {.f = f, .t = t, .bos = bos, .eos = eos};
    memcpy(f->name, "probed", 7);
    bool good = find_written(&p) || (f->why[0] == '\0' && find_spelled(&p, src));
    good = good && find_results(&p) && find_shown(&p);
    (void)snprintf(f->name, sizeof f->name, "%s", good ? label(f) : "");
    if (good) f->why[0] = '\0';
    imp_buf_deinit(&p.said);
    imp_buf_deinit(&p.calls);
    imp_buf_deinit(&p.prompt);
    *out = f;
    return IMP_OK;
}
