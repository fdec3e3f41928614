/* tests/unit/text_toolcall.c - calls of tools: what templates write is read back, whole and cut anywhere; what a grammar
 * allows can be read; what cannot be proven is refused.
 *
 * Idea:   the templates are the published ones (tests/data/templates) and a few that are made up here, also wrong ones. Calls
 *         are random; what a template makes of them comes from the Jinja interpreter, which is tested against jinja2. */
#include "test.h"

#include "base/base.h"
#include "text/toolcall.h"

#define QWEN_CODER                                                                                           \
    "{%- if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}"          \
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"                     \
    "{%- for c in m.tool_calls or [] %}{%- if c.function %}{%- set c = c.function %}{%- endif %}"            \
    "{{- '\\n<tool_call>\\n<function=' + c.name + '>\\n' }}"                                                 \
    "{%- for k, v in c.arguments|items %}{{- '<parameter=' + k + '>\\n' }}"                                  \
    "{{- v if v is string else (v | tojson if v is mapping or v is sequence else v | string) }}"             \
    "{{- '\\n</parameter>\\n' }}{%- endfor %}{{- '</function>\\n</tool_call>' }}{%- endfor %}"               \
    "{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' "      \
    "}}{%- endif %}"
#define PLAIN(before, one, sep, end)                                                                         \
    "{{ tools | tojson }}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}{% if m.tool_calls "      \
    "%}" before "{% for c in m.tool_calls %}{% if not loop.first %}" sep "{% endif %}" one                   \
    "{% endfor %}" end "{% endif %}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
#define ONE "{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}}"

static const struct {
    const char *file, *src; /* one of them */
    const char *name;       /* what the format is called; NULL: refused */
    const char *begin;      /* what an answer's calls begin with */
    bool many, thinks;
    const char *why; /* part of the reason, when refused */
} g_family[] = {
    {"GLM-4.6", NULL, "glm", "<tool_call>", true, true, NULL},
    {"HuggingFaceTB-SmolLM3-3B", NULL, "spelled", "<tool_call>", true, true, NULL},
    {"Mistral-Small-3.2-24B-Instruct-2506", NULL, "mistral", "[TOOL_CALLS]", true, false, NULL},
    {"NousResearch-Hermes-3-Llama-3.1-8B-tool_use", NULL, "hermes", "<tool_call>", true, false, NULL},
    {"Qwen-Qwen2.5-7B-Instruct", NULL, "hermes", "<tool_call>", true, false, NULL},
    {"Qwen-Qwen3-0.6B", NULL, "hermes", "<tool_call>", true, true, NULL},
    {"deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", NULL, "deepseek",
     "<\xef\xbd\x9ctool\xe2\x96\x81"
     "calls\xe2\x96\x81"
     "begin",
     true, true, NULL},
    {"deepseek-ai-DeepSeek-V3.1", NULL, "deepseek",
     "<\xef\xbd\x9ctool\xe2\x96\x81"
     "calls\xe2\x96\x81"
     "begin",
     true, true, NULL},
    {"google-gemma-2-2b-it", NULL, "spelled", "<tool_call>", true, false, NULL},
    {"ibm-granite-granite-3.3-2B-Instruct", NULL, "granite", "<|tool_call|>", true, true, NULL},
    {"meta-llama-Llama-3.1-8B-Instruct", NULL, "llama3", "{\"name\": ", false, false, NULL},
    {"meta-llama-Llama-3.2-3B-Instruct", NULL, "llama3", "{\"name\": ", false, false, NULL},
    {NULL, QWEN_CODER, "keyed", "<tool_call>", true, false, NULL},
    {NULL, PLAIN("", ONE, "; ", ""), "json", "{\"name\": ", true, false, NULL},
    {NULL,
     PLAIN("[TOOL_CALLS][",
           "{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}, "
           "\"id\": \"{{ c.id }}\"}",
           ", ", "]"),
     "mistral", "[TOOL_CALLS]", true, false, NULL},
    {NULL,
     PLAIN("<calls>",
           "{{ c.function.name }}({{ c.function.arguments if c.function.arguments is string else "
           "raise_exception('text') }})",
           ", ", "</calls>"),
     "template", "<calls>", true, false, NULL},
    {NULL,
     PLAIN("<calls>",
           "{{ c.function.name }}({{ c.function.arguments | tojson if c.function.arguments is string else "
           "raise_exception('text') }})",
           ", ", "</calls>"),
     "spelled", "<tool_call>", true, false, NULL},
    /* templates that change what they are given, or leave it out */
    {NULL,
     PLAIN(
         "<c>",
         "{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson | lower }}}",
         ",", "</c>"),
     NULL, NULL, false, false, "not read back"},
    {NULL,
     PLAIN("<c>",
           "{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson | "
           "replace('hi', 'ho') }}}",
           ",", "</c>"),
     NULL, NULL, false, false, "not read back"},
    {NULL,
     PLAIN("<c>",
           "{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson | "
           "replace('-5', '5') }}}",
           ",", "</c>"),
     NULL, NULL, false, false, "not read back"},
    {NULL,
     PLAIN("<c>", "{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}}",
           ",", "</c>") "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif "
                        "%}{% endfor %}",
     "template", "<c>", true, false, NULL},
    {NULL,
     "{% for m in messages %}{% if m.role == 'user' %}{{ m.content[:2] }}{% else %}{{ m.content }}{% endif "
     "%}{% endfor %}",
     "spelled", "<tool_call>", true, false, NULL},
    {NULL,
     "{% for m in messages %}{% if m.role == 'assistant' %}<a>{{ m.content }}</a>{% endif %}{% endfor %}",
     NULL, NULL, false, false, "tool answered"},
    {NULL,
     "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content[:40] if m.role == 'user' "
     "else m.content }}{% endif %}{% endfor %}",
     NULL, NULL, false, false, "tools"},
    {NULL, "nothing at all", NULL, NULL, false, false, "does not show"},
    {NULL, "{{ raise_exception('never') }}", NULL, NULL, false, false, "never"},
    /* a marker that begins with its own beginning */
    {NULL, PLAIN("<a<ab>", ONE, ", ", "</a>"), "template", "<a<ab>", true, false, NULL}};

enum { OVERLAP = IMP_COUNT(g_family) - 1 };

static const char tools_text[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"description\":\"Weather of a place\","
    "\"parameters\":{\"type\":\"object\",\"properties\":{\"place\":{\"type\":\"string\",\"description\":"
    "\"p\"},"
    "\"days\":{\"type\":\"integer\",\"description\":\"d\"},\"unit\":{\"enum\":[\"C\",\"F\"],\"description\":"
    "\"u\"}},"
    "\"required\":[\"place\"]}}},"
    "{\"type\":\"function\",\"function\":{\"name\":\"f-2\",\"description\":\"two\",\"parameters\":{\"type\":"
    "\"object\",\"properties\":{\"list\":{\"type\":\"array\",\"items\":{},\"description\":\"l\"},\"flag\":{"
    "\"type\":\"boolean\","
    "\"description\":\"f\"},\"any\":{\"type\":\"object\",\"additionalProperties\":true,\"description\":\"a\"}"
    "}}}},"
    "{\"type\":\"function\",\"function\":{\"name\":\"now.utc\",\"description\":\"no "
    "arguments\",\"parameters\":{"
    "\"type\":\"object\",\"properties\":{}}}}]";

typedef struct family {
    imp_jinja *t;
    imp_toolfmt *f;
} family;

static family open_family(size_t i)
{
    family x = {0};
    imp_error err = {0};
    imp_sys_file file = {0};
    char path[256];
    const char *src = g_family[i].src;
    char *copy = NULL;
    if (src == NULL) {
        snprintf(path, sizeof path, "tests/data/templates/%s.jinja", g_family[i].file);
        if (imp_sys_file_open(path, false, &file, &err) != IMP_OK) fail_msg("%s", err.text);
        copy = calloc(1, file.n + 1);
        memcpy(copy, file.data, file.n);
        imp_sys_file_close(&file);
        src = copy;
    }
    if (imp_jinja_compile(src, strlen(src), &x.t, &err) != IMP_OK) fail_msg("%zu: %s", i, err.text);
    assert_int_equal(imp_toolfmt_probe(x.t, src, "<s>", "</s>", &x.f), IMP_OK);
    free(copy);
    return x;
}

static void close_family(family *x)
{
    imp_toolfmt_free(x->f);
    imp_jinja_free(x->t);
}

/* What the template makes of a conversation that ends with these calls, or with the prompt for an answer. */
static void render(const family *x, const imp_message *m, size_t n, bool prompt, imp_buf *out)
{
    imp_chat c = {.msg = m, .n_msg = n, .tools = tools_text, .think = -1};
    json_t *vars;
    imp_error err = {0};
    out->n = 0;
    if (imp_toolfmt_vars(x->f, &c, &vars, &err) != IMP_OK) fail_msg("%s", err.text);
    json_object_set_new(vars, "add_generation_prompt", json_boolean(prompt));
    json_object_set_new(vars, "bos_token", json_string("<s>"));
    json_object_set_new(vars, "eos_token", json_string("</s>"));
    if (imp_jinja_render(x->t, vars, NULL, out, &err) != IMP_OK) fail_msg("%s", err.text);
    json_decref(vars);
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

typedef struct heard {
    imp_buf text, thought, all; /* all: every event in a line, pieces of one kind joined */
    imp_buf name[8], args[8];
    size_t n, n_end;
    int last;
} heard;

static void hear(void *user, imp_part_kind kind, const char *p, size_t n)
{
    heard *h = user;
    imp_buf *to = kind == IMP_PART_TEXT ? &h->text : kind == IMP_PART_THOUGHT ? &h->thought : NULL;
    if (kind == IMP_PART_CALL) to = &h->name[h->n++];
    if (kind == IMP_PART_ARGS) to = &h->args[h->n - 1];
    if (to != NULL) imp_buf_add(to, p, n);
    if (kind == IMP_PART_CALL_END) h->n_end++;
    if ((int)kind != h->last || kind == IMP_PART_CALL) imp_buf_fmt(&h->all, "|%d:", kind);
    imp_buf_add(&h->all, p, n);
    h->last = kind;
}

static void forget(heard *h)
{
    imp_buf_deinit(&h->text);
    imp_buf_deinit(&h->thought);
    imp_buf_deinit(&h->all);
    for (size_t i = 0; i < 8; i++) {
        imp_buf_deinit(&h->name[i]);
        imp_buf_deinit(&h->args[i]);
    }
}

static bool listen(const imp_toolfmt *f, const json_t *tools, const char *p, size_t n, size_t cut,
                   size_t cut2, heard *h)
{
    imp_reader *r;
    *h = (heard){.last = -1};
    assert_int_equal(imp_reader_new(f, tools, false, hear, h, &r), IMP_OK);
    bool good = imp_reader_push(r, p, cut) && imp_reader_push(r, p + cut, cut2 - cut) &&
                imp_reader_push(r, p + cut2, n - cut2) && imp_reader_end(r);
    imp_reader_free(r);
    return good;
}

/* ---- random calls ------------------------------------------------------------------------------------------------ */

static json_t *random_text(rng *r)
{
    static const char *const part[] = {"a",
                                       "Z",
                                       " ",
                                       "\"",
                                       "\\",
                                       "\n",
                                       "\t",
                                       "{",
                                       "}",
                                       "[",
                                       "]",
                                       "'",
                                       "<",
                                       ">",
                                       "/",
                                       ",",
                                       ":",
                                       "`",
                                       "|",
                                       "\xc3\xa9",
                                       "\xe4\xbd\xa0",
                                       "\xf0\x9f\x90\x88",
                                       "</",
                                       "tool_call",
                                       "```",
                                       "null",
                                       "5",
                                       "\x01",
                                       "\xe2\x80\xa8",
                                       "&amp;",
                                       "{{",
                                       "%}"};
    imp_buf b = {0};
    for (uint32_t n = rng_below(r, 12); n > 0; n--) imp_buf_str(&b, part[rng_below(r, IMP_COUNT(part))]);
    json_t *v = json_stringn(b.data != NULL ? b.data : "", b.n);
    imp_buf_deinit(&b);
    return v;
}

static json_t *random_value(rng *r, int depth)
{
    switch (rng_below(r, depth > 0 ? 7 : 5)) {
    case 0:
        return json_integer((json_int_t)(rng_u64(r) >> (rng_below(r, 50) + 12)) * (rng_below(r, 2) ? 1 : -1));
    case 1: return json_boolean(rng_below(r, 2));
    case 2: return json_null();
    case 3: return json_real((double)rng_below(r, 100000) / 8);
    case 4: return random_text(r);
    case 5: {
        json_t *a = json_array();
        for (uint32_t n = rng_below(r, 4); n > 0; n--) json_array_append_new(a, random_value(r, depth - 1));
        return a;
    }
    default: {
        json_t *o = json_object();
        static const char *const key[] = {"a", "b c", "\xc3\xbc", "\"q\"", "x"};
        for (uint32_t n = rng_below(r, 4); n > 0; n--)
            json_object_set_new(o, key[rng_below(r, IMP_COUNT(key))], random_value(r, depth - 1));
        return o;
    }
    }
}

/* Arguments of tool k that its schema takes. */
static json_t *random_args(rng *r, uint32_t k)
{
    json_t *o = json_object();
    if (k == 0) {
        json_object_set_new(o, "place", random_text(r));
        if (rng_below(r, 2))
            json_object_set_new(o, "days", json_integer((json_int_t)rng_below(r, 1000) - 500));
        if (rng_below(r, 2)) json_object_set_new(o, "unit", json_string(rng_below(r, 2) ? "C" : "F"));
    } else if (k == 1) {
        if (rng_below(r, 2)) {
            json_t *a = json_array();
            for (uint32_t n = rng_below(r, 4); n > 0; n--) json_array_append_new(a, random_value(r, 2));
            json_object_set_new(o, "list", a);
        }
        if (rng_below(r, 2)) json_object_set_new(o, "flag", json_boolean(rng_below(r, 2)));
        if (rng_below(r, 2)) {
            json_t *x = json_object();
            json_object_set_new(x, "deep", random_value(r, 3));
            json_object_set_new(o, "any", x);
        }
    }
    return o;
}

static const char *const tool_name[] = {"get_weather", "f-2", "now.utc"};

typedef struct calls {
    size_t n;
    imp_tool_call call[3];
    json_t *args[3];
    char *text[3];
} calls;

static calls random_calls(rng *r, bool many)
{
    static const char *const id[] = {"call_1", "call_22", "abcDEF123"};
    calls c = {.n = many ? 1 + rng_below(r, 3) : 1};
    for (size_t i = 0; i < c.n; i++) {
        uint32_t k = rng_below(r, 3);
        c.args[i] = random_args(r, k);
        c.text[i] = json_dumps(c.args[i], 0);
        c.call[i] = (imp_tool_call){id[i], tool_name[k], c.text[i]};
    }
    return c;
}

static void free_calls(calls *c)
{
    for (size_t i = 0; i < c->n; i++) {
        json_decref(c->args[i]);
        free(c->text[i]);
    }
}

/* Numbers that are whole may come back as either kind. */
static void check_heard(const heard *h, const calls *c, const char *what)
{
    if (h->n != c->n || h->n_end != c->n)
        fail_msg("%zu calls, %zu whole, not %zu: %s", h->n, h->n_end, c->n, what);
    for (size_t i = 0; i < c->n; i++) {
        json_t *v = json_loadb(h->args[i].data, h->args[i].n, JSON_REJECT_DUPLICATES, NULL);
        if (strcmp(h->name[i].data, c->call[i].name) != 0 || v == NULL || !json_equal(v, c->args[i]))
            fail_msg("%s %s, read as %s %s, in: %s", c->call[i].name, c->text[i], h->name[i].data,
                     h->args[i].data, what);
        json_decref(v);
    }
}

/* ---- tests --------------------------------------------------------------------------------------------------------- */

static void formats(void **state)
{
    (void)state;
    for (size_t i = 0; i < IMP_COUNT(g_family); i++) {
        family x = open_family(i);
        const char *name = imp_toolfmt_name(x.f);
        if ((name == NULL) != (g_family[i].name == NULL) ||
            (name != NULL && strcmp(name, g_family[i].name) != 0))
            fail_msg("%zu is %s, not %s: %s", i, name ? name : "refused",
                     g_family[i].name ? g_family[i].name : "refused", imp_toolfmt_why(x.f));
        if (name == NULL && strstr(imp_toolfmt_why(x.f), g_family[i].why) == NULL)
            fail_msg("%zu: %s", i, imp_toolfmt_why(x.f));
        assert_int_equal(imp_toolfmt_thinks(x.f), g_family[i].thinks);
        imp_message m[] = {{.role = "user", .content = "x"}};
        imp_chat c = {.msg = m, .n_msg = 1, .tools = tools_text, .think = -1};
        json_t *vars;
        imp_error err = {0};
        assert_int_equal(imp_toolfmt_vars(x.f, &c, &vars, &err), name != NULL ? IMP_OK : IMP_UNSUPPORTED);
        json_decref(vars);
        close_family(&x);
    }
}

/* 10,000 random calls and more, each through a template and back. */
static void random_round_trips(void **state)
{
    (void)state;
    rng r = {20240611};
    json_t *tools = json_loads(tools_text, 0, NULL);
    size_t n_all = 0;
    imp_buf b = {0};
    size_t n_good = 0;
    for (size_t i = 0; i < IMP_COUNT(g_family); i++) n_good += g_family[i].name != NULL;
    for (size_t i = 0; i < IMP_COUNT(g_family); i++) {
        if (g_family[i].name == NULL) continue;
        family x = open_family(i);
        for (size_t n = 0, k = 0; n < 10000 / n_good + 1; k++) {
            calls c = random_calls(&r, g_family[i].many);
            imp_message m[] = {{.role = "user", .content = "??"},
                               {.role = "assistant", .content = "", .calls = c.call, .n_calls = c.n}};
            render(&x, m, 2, false, &b);
            const char *user = strstr(b.data, "??"),
                       *calls_at = user != NULL ? strstr(user, g_family[i].begin) : NULL;
            if (calls_at == NULL) fail_msg("%zu: no call in %s", i, b.data);
            user = calls_at;
            size_t len = b.n - (size_t)(user - b.data), cut = rng_below(&r, (uint32_t)len + 1);
            size_t cut2 = cut + rng_below(&r, (uint32_t)(len - cut) + 1);
            heard h;
            assert_true(listen(x.f, tools, user, len, cut, cut2, &h));
            check_heard(&h, &c, user);
            if (k < 3) /* every place */
                for (size_t at = 0; at <= len; at++) {
                    heard g;
                    assert_true(listen(x.f, tools, user, len, at, at, &g));
                    assert_string_equal(g.all.data, h.all.data);
                    forget(&g);
                }
            forget(&h);
            n += c.n;
            n_all += c.n;
            free_calls(&c);
        }
        close_family(&x);
    }
    imp_buf_deinit(&b);
    json_decref(tools);
    assert_true(n_all >= 10000);
}

/* Text, thoughts and calls of answers as models write them. */
static void answers(void **state)
{
    (void)state;
    static const struct {
        size_t family;
        const char *answer, *all; /* NULL: malformed, or not complete */
    } one[] = {
        {4, "Let me see.\n\n<tool_call>\n{\"name\": \"f-2\", \"arguments\": {\"flag\":true}}\n</tool_call>",
         "|0:Let me see.|2:f-2|3:{\"flag\":true}|4:"},
        {4, "a < b, <tool and\n ", "|0:a < b, <tool and\n "},
        {4, "  x", "|0:  x"},
        {4, "<tool_call>\n{\"nome\": \"f-2\"}", NULL},
        {4, "<tool_call>\n{\"name\": \"f-2\", \"arguments\": {\"flag\": tr", NULL},
        {4, "<tool_call>\n{\"name\": \"f-2\", \"arguments\": {}}\n</tool_cal", NULL},
        {5, "<think>\nHm, <tool_call>?\n\n</think>\n\nYes.", "|1:Hm, <tool_call>?|0:Yes."},
        {5, "\n<think>\n</think>\n<tool_call>\n{\"name\": \"now.utc\", \"arguments\": {}}\n</tool_call>\n",
         "|2:now.utc|3:{}|4:"},
        {5, "<think>\nno end", "|1:no end"},
        {5, "a <think> b", "|0:a <think> b"},
        {2,
         "[TOOL_CALLS]f-2[CALL_ID]123456789[ARGS]{\"flag\": "
         "false}[TOOL_CALLS]now.utc[CALL_ID]abcdefghi[ARGS]{}",
         "|2:f-2|3:{\"flag\": false}|4:|2:now.utc|3:{}|4:"},
        {10, "<|python_tag|>{\"name\": \"f-2\", \"parameters\": {}}", "|2:f-2|3:{}|4:"},
        {10, " {\"name\": \"f-2\", \"parameters\": {}}", "|2:f-2|3:{}|4:"},
        {10, "Use {\"name\": \"f-2\", \"parameters\": {}}", "|0:Use {\"name\": \"f-2\", \"parameters\": {}}"},
        {10, "{\"nam\": 1}", "|0:{\"nam\": 1}"},
        {0,
         "<think>t</think>\n<tool_call>get_weather\n<arg_key>place</arg_key>\n<arg_value>5 "
         "\"x\"</arg_value>\n"
         "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
         "|1:t|2:get_weather|3:{\"place\": \"5 \\\"x\\\"\", \"days\": 3}|4:"},
    };
    json_t *tools = json_loads(tools_text, 0, NULL);
    for (size_t i = 0; i < IMP_COUNT(one); i++) {
        family x = open_family(one[i].family);
        size_t n = strlen(one[i].answer);
        for (size_t cut = 0; cut <= n; cut++) {
            heard h;
            bool good = listen(x.f, tools, one[i].answer, n, cut, cut, &h);
            if (good != (one[i].all != NULL) || (good && strcmp(h.all.data, one[i].all) != 0))
                fail_msg("%zu cut at %zu: %d %s", i, cut, good, h.all.data ? h.all.data : "");
            forget(&h);
        }
        close_family(&x);
    }
    json_decref(tools);
}

/* A chat with results: everything that was said is in the prompt. */
static void conversations(void **state)
{
    (void)state;
    imp_buf b = {0};
    for (size_t i = 0; i < IMP_COUNT(g_family); i++) {
        if (g_family[i].name == NULL) continue;
        family x = open_family(i);
        imp_tool_call call = {"call_77", "get_weather", "{\"place\": \"Oslo\"}"};
        imp_message m[] = {{.role = "user", .content = "Weather?"},
                           {.role = "assistant", .content = "", .calls = &call, .n_calls = 1},
                           {.role = "tool", .content = "minus nine", .call_id = "call_77"},
                           {.role = "assistant", .content = "Cold."},
                           {.role = "user", .content = "Thanks"}};
        for (size_t n = 3; n <= 5; n += 2) {
            render(&x, m, n, true, &b);
            const char *const want[] = {"Oslo", "minus nine", "Weather of a place", "now.utc"};
            for (size_t k = 0; k < IMP_COUNT(want); k++)
                if (strstr(b.data, want[k]) == NULL) fail_msg("%zu: no %s in %s", i, want[k], b.data);
        }
        close_family(&x);
    }
    imp_buf_deinit(&b);
}

/* ---- grammars --------------------------------------------------------------------------------------------------------- */

typedef struct vocab {
    imp_tokenizer *t;
    imp_vocab_tree *v;
} vocab;

static vocab open_vocab(void)
{
    vocab x;
    imp_sys_file f;
    imp_error err = {0};
    int32_t end = 0;
    if (imp_sys_file_open("tests/data/tokenizer/gpt2.json", false, &f, &err) != IMP_OK)
        fail_msg("%s", err.text);
    assert_int_equal(imp_tokenizer_from_json((const char *)f.data, f.n, NULL, &x.t, &err), IMP_OK);
    imp_sys_file_close(&f);
    assert_int_equal(imp_vocab_tree_new(x.t, &end, 1, &x.v, &err), IMP_OK);
    return x;
}

static imp_matcher *matcher(const vocab *v, const imp_toolfmt *f, const char *rest)
{
    imp_buf b = {0};
    imp_error err = {0};
    imp_grammar *g;
    imp_masker *m;
    imp_matcher *x;
    imp_buf_fmt(&b, "{\"tools\": %s, %s}", tools_text, rest);
    json_t *spec = json_loads(b.data, 0, NULL);
    assert_non_null(spec);
    if (imp_grammar_from_tools(f, spec, &g, &err) != IMP_OK) fail_msg("%s", err.text);
    json_decref(spec);
    imp_buf_deinit(&b);
    assert_int_equal(imp_masker_new(g, v->v, 1 << 22, &m), IMP_OK);
    imp_grammar_unref(g);
    assert_int_equal(imp_matcher_new(m, &x), IMP_OK);
    imp_masker_unref(m);
    return x;
}

/* -1: refused; 0: taken, may not end; 1: taken, may end */
static int takes(const vocab *v, const imp_toolfmt *f, const char *rest, const char *text)
{
    imp_matcher *x = matcher(v, f, rest);
    int out = -1;
    if (imp_matcher_prefix(x, text, strlen(text)) == strlen(text)) {
        imp_ids ids = {0};
        imp_error err;
        assert_int_equal(imp_tokenizer_encode(v->t, text, strlen(text), 0, &ids, &err), IMP_OK);
        for (size_t i = 0; i < ids.n; i++) assert_true(imp_matcher_accept(x, ids.id[i]));
        out = imp_matcher_can_end(x);
        imp_ids_deinit(&ids);
    }
    imp_matcher_free(x);
    return out;
}

#define AUTO     "\"choice\": \"auto\""
#define REQUIRED "\"choice\": \"required\""

static void languages(void **state)
{
    (void)state;
    static const struct {
        size_t family;
        const char *spec, *text;
        int want;
    } one[] = {
        {4, AUTO, "Any text < and <tool_calL> too", 1},
        {4, AUTO, "", 1},
        {OVERLAP, AUTO, "<a<a<ab>{\"name\": \"now.utc\", \"arguments\": {}}</a>", 1},
        {OVERLAP, AUTO, "<a<a<ab>{\"name\": \"nobody", -1},
        {4, AUTO, "<<tool_call>\n{\"name\": \"now.utc\", \"arguments\": {}}\n</tool_call>", 1},
        {4, AUTO,
         "<tool_call>\n{\"name\": \"now.utc\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": "
         "\"f-2\", \"arguments\": {}}\n</tool_call>",
         1},
        {4, AUTO ", \"one\": true",
         "<tool_call>\n{\"name\": \"now.utc\", \"arguments\": {}}\n</tool_call>\n<", -1},
        {4, AUTO, "x <tool_call>\n{\"name\": \"now.utc\", \"arguments\": {}}\n</tool_call", 0},
        {4, AUTO, "<tool_call>?", -1},
        {4, AUTO, "<tool_call>\n{\"name\": \"nobody\"", -1},
        {4, AUTO, "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"place\": 5", -1},
        {4, AUTO, "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {}", -1},
        {4, AUTO, "<tool_call>\n{\"name\": \"now.utc\", \"arguments\": {\"a", -1},
        {4, REQUIRED, "Text", -1},
        {4, REQUIRED, "", 0},
        {4, REQUIRED, "<tool_call>\n{\"name\": \"f-2\", \"arguments\": {\"list\": [1, \"a\"]}}\n</tool_call>",
         1},
        {4, "\"choice\": {\"name\": \"f-2\"}", "<tool_call>\n{\"name\": \"now.utc\"", -1},
        {4, "\"choice\": {\"name\": \"f-2\"}",
         "<tool_call>\n{\"name\": \"f-2\", \"arguments\": {}}\n</tool_call>", 1},
        {4, "\"choice\": \"none\"", "Some text <tool", 1},
        {4, "\"choice\": \"none\"", "<tool_call>", -1},
        {5, REQUIRED,
         "<think>\nhm <tool_call> </think>\n\n<tool_call>\n{\"name\": \"f-2\", \"arguments\": "
         "{}}\n</tool_call>",
         1},
        {5, REQUIRED ", \"in_thought\": true",
         "hm</think>\n<tool_call>\n{\"name\": \"f-2\", \"arguments\": {}}\n</tool_call>", 1},
        {5, REQUIRED ", \"in_thought\": true", "hm</think>\nno", -1},
        {5, REQUIRED, "<think>\nhm</think>\n\nno", -1},
        {10, AUTO, "{\"name\": \"f-2\", \"parameters\": {}}", 1},
        {10, AUTO, "{\"name\": \"f-3\"", -1},
        {10, AUTO, "<|python_tag|>{\"name\": \"f-2\", \"parameters\": {}}", 1},
        {10, AUTO, "<|python_tag|>{\"name\": \"f-3\"", -1},
        {10, AUTO, "\n {\"name\": \"f-3\"", -1},
        {10, AUTO, "{\"nam", 1},
        {10, AUTO, "see {\"name\": \"f-3\"}", 1},
        {10, AUTO, "{\"name\": \"f-2\", \"parameters\": {}} and", -1},
        {2, REQUIRED, "[TOOL_CALLS]f-2[CALL_ID]123456789[ARGS]{}", 1},
        {2, REQUIRED, "[TOOL_CALLS]f-2[CALL_ID]12345678[ARGS]{}", -1},
        {0, REQUIRED,
         "<tool_call>get_weather\n<arg_key>place</arg_key>\n<arg_value>a</b\"</arg_value>\n<arg_key>days</"
         "arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
         1},
        {0, REQUIRED, "<tool_call>get_weather\n<arg_key>days</arg_key>", -1},
        {0, REQUIRED,
         "<tool_call>get_weather\n<arg_key>place</arg_key>\n<arg_value></arg_value>\n<arg_key>days</"
         "arg_key>\n<arg_value>x",
         -1},
        {0, REQUIRED,
         "<tool_call>get_weather\n<arg_key>place</arg_key>\n<arg_value></arg_value>\n<arg_key>unit</"
         "arg_key>\n<arg_value>F</arg_value>\n</tool_call>",
         1},
        {0, REQUIRED,
         "<tool_call>get_weather\n<arg_key>place</arg_key>\n<arg_value></arg_value>\n<arg_key>unit</"
         "arg_key>\n<arg_value>K",
         -1},
    };
    vocab v = open_vocab();
    for (size_t i = 0; i < IMP_COUNT(one); i++) {
        family x = open_family(one[i].family);
        int got = takes(&v, x.f, one[i].spec, one[i].text);
        if (got != one[i].want) fail_msg("%zu: %d, not %d: %s", i, got, one[i].want, one[i].text);
        close_family(&x);
    }
    imp_vocab_tree_free(v.v);
    imp_tokenizer_free(v.t);
}

/* What the grammar allows, chosen at random, is read without fault: declared names, arguments that are JSON. */
static void random_answers(void **state)
{
    (void)state;
    rng r = {77};
    vocab v = open_vocab();
    json_t *tools = json_loads(tools_text, 0, NULL);
    size_t n_word = imp_tokenizer_n(v.t) / 32 + 1, n_calls = 0;
    uint32_t *mask = calloc(n_word, sizeof *mask);
    for (size_t i = 0; i < 16; i++) {
        if (g_family[i].name == NULL) continue;
        family x = open_family(i);
        for (int k = 0; k < 6; k++) {
            imp_matcher *m = matcher(&v, x.f, k % 2 ? AUTO : REQUIRED);
            imp_buf text = {0};
            imp_error err = {0};
            /* with auto, the beginning of a call is given */
            if (k % 2) {
                imp_ids ids = {0};
                const char *begin = i == 6 || i == 7 ? "" : g_family[i].begin;
                assert_int_equal(imp_tokenizer_encode(v.t, begin, strlen(begin), 0, &ids, &err), IMP_OK);
                for (size_t j = 0; j < ids.n; j++) assert_true(imp_matcher_accept(m, ids.id[j]));
                imp_buf_str(&text, begin);
                imp_ids_deinit(&ids);
            }
            bool ended = false;
            for (int step = 0; step < 400 && !ended; step++) {
                if (imp_matcher_mask(m, mask, &err) != IMP_OK) fail_msg("%zu: %s", i, err.text);
                ended = imp_matcher_can_end(m) && (step > 100 || imp_matcher_must_end(m));
                if (ended) break;
                int32_t id = (int32_t)rng_below(&r, (uint32_t)imp_tokenizer_n(v.t));
                while (id == 0 || !(mask[id / 32] >> (id % 32) & 1))
                    id = (id + 1) % (int32_t)imp_tokenizer_n(v.t);
                assert_true(imp_matcher_accept(m, id));
                imp_token_spell(v.t, id, &text);
            }
            heard h;
            bool good = listen(x.f, tools, text.data, text.n, 0, 0, &h);
            if (ended && !good) fail_msg("%zu: %s", i, text.data);
            for (size_t j = 0; j < h.n_end; j++) {
                json_t *a = json_loadb(h.args[j].data, h.args[j].n, JSON_REJECT_DUPLICATES, NULL);
                if (!json_is_object(a)) fail_msg("%zu: %s", i, text.data);
                json_decref(a);
                n_calls++;
            }
            forget(&h);
            imp_buf_deinit(&text);
            imp_matcher_free(m);
        }
        close_family(&x);
    }
    assert_true(n_calls > 20);
    free(mask);
    json_decref(tools);
    imp_vocab_tree_free(v.v);
    imp_tokenizer_free(v.t);
}

static void refusals(void **state)
{
    (void)state;
    static const struct {
        size_t family;
        const char *spec, *says;
    } bad[] = {
        {4, "{\"tools\": [], \"choice\": \"auto\"}", "no tool"},
        {4, "{\"tools\": [{\"function\": {}}], \"choice\": \"auto\"}", "a tool must be"},
        {4, "{\"tools\": [{\"function\": {\"name\": \"a\", \"parameters\": {\"type\": \"string\"}}}]}",
         "object"},
        {4, "{\"tools\": [{\"function\": {\"name\": \"a\", \"parameters\": {\"not\": {}}}}]}", "\"not\""},
        {4, "{\"tools\": [{\"function\": {\"name\": \"a\"}}], \"choice\": {\"name\": \"b\"}}", "no tool"},
        {0,
         "{\"tools\": [{\"function\": {\"name\": \"a\", \"parameters\": {\"properties\": {\"x\": {\"type\": "
         "\"string\", \"pattern\": \"a\"}}}}}]}",
         "pattern"},
        {0, "{\"tools\": [{\"function\": {\"name\": \"a\", \"parameters\": {\"anyOf\": []}}}]}", "anyOf"},
    };
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        family x = open_family(bad[i].family);
        imp_error err = {0};
        imp_grammar *g;
        json_t *spec = json_loads(bad[i].spec, 0, NULL);
        assert_int_not_equal(imp_grammar_from_tools(x.f, spec, &g, &err), IMP_OK);
        assert_null(g);
        if (strstr(err.text, bad[i].says) == NULL) fail_msg("%zu: %s", i, err.text);
        json_decref(spec);
        close_family(&x);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(formats),   cmocka_unit_test(random_round_trips),
                                       cmocka_unit_test(answers),   cmocka_unit_test(conversations),
                                       cmocka_unit_test(languages), cmocka_unit_test(random_answers),
                                       cmocka_unit_test(refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
