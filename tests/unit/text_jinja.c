/* tests/unit/text_jinja.c - chat templates against what Python's jinja2 renders, byte for byte; bombs against the limits.
 *
 * Idea:   tests/data/templates (tools/gen/templates_golden.py) holds the templates of published models with 40
 *         conversations each, and about a thousand snippets; where jinja2 raises, ours has to fail. */
#include <time.h>

#include "test.h"

#include "text/jinja.h"

static const int64_t NOW = 1772636767; /* 2026-03-04 15:06:07 UTC, as the generator has it */

static json_t *load_json(const char *name)
{
    char path[256];
    imp_sys_file f;
    imp_error err = {0};
    snprintf(path, sizeof path, "tests/data/templates/%s", name);
    if (imp_sys_file_open(path, false, &f, &err) != IMP_OK) fail_msg("%s", err.text);
    json_t *j = json_loadb((const char *)f.data, f.n, JSON_ALLOW_NUL, NULL);
    imp_sys_file_close(&f);
    assert_non_null(j);
    return j;
}

/* Compile and render; false: one of them failed. */
static bool render(const char *src, size_t n, const json_t *vars, imp_buf *out, imp_error *err)
{
    imp_jinja *t = NULL;
    imp_jinja_limits l = {.now = NOW};
    imp_status s = imp_jinja_compile(src, n, &t, err);
    if (s == IMP_OK) s = imp_jinja_render(t, vars, &l, out, err);
    imp_jinja_free(t);
    if (s != IMP_OK) {
        assert_int_equal(err->status, s);
        assert_true(err->text[0] != 0 && strchr(err->text, '\n') == NULL &&
                    imp_utf8_valid(err->text, strlen(err->text)));
    }
    return s == IMP_OK;
}

static void check_template(const char *name)
{
    char path[256];
    imp_sys_file f;
    imp_error err = {0};
    imp_jinja *t;
    imp_jinja_limits l = {.now = NOW};
    snprintf(path, sizeof path, "tests/data/templates/%s.jinja", name);
    if (imp_sys_file_open(path, false, &f, &err) != IMP_OK) fail_msg("%s", err.text);
    if (imp_jinja_compile((const char *)f.data, f.n, &t, &err) != IMP_OK) fail_msg("%s: %s", name, err.text);
    imp_sys_file_close(&f);
    snprintf(path, sizeof path, "%s.json", name);
    json_t *golden = load_json(path), *vars = load_json("conversations.json");
    const json_t *lines = json_object_get(golden, "lines"), *outs = json_object_get(golden, "out");
    size_t bad = 0;
    assert_int_equal(json_array_size(outs), 40);
    for (size_t i = 0; i < json_array_size(outs); i++) {
        const json_t *o = json_array_get(outs, i);
        imp_buf want = {0}, got = {0};
        imp_buf_str(&got, "kept");
        for (size_t k = 0; k < json_array_size(o); k++) {
            const json_t *line = json_array_get(lines, (size_t)json_integer_value(json_array_get(o, k)));
            if (k > 0) imp_buf_str(&want, "\n");
            imp_buf_add(&want, json_string_value(line), json_string_length(line));
        }
        imp_status s = imp_jinja_render(t, json_array_get(vars, i), &l, &got, &err);
        bool same = json_is_null(o) ? s != IMP_OK && got.n == 4
                                    : s == IMP_OK && got.n == want.n + 4 &&
                                          memcmp(got.data + 4, want.data ? want.data : "", want.n) == 0;
        if (!same) {
            bad++;
            printf("# %s conversation %zu: %s\n# got  %s\n# want %s\n", name, i,
                   s == IMP_OK ? "rendered" : err.text, got.data, json_is_null(o) ? "an error" : want.data);
        }
        imp_buf_deinit(&want);
        imp_buf_deinit(&got);
    }
    assert_int_equal(bad, 0);
    json_decref(golden);
    json_decref(vars);
    imp_jinja_free(t);
}

static void published_templates(void **state)
{
    (void)state;
    static const char *const name[] = {"GLM-4.6",
                                       "HuggingFaceTB-SmolLM3-3B",
                                       "Mistral-Small-3.2-24B-Instruct-2506",
                                       "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
                                       "Qwen-Qwen2.5-7B-Instruct",
                                       "Qwen-Qwen3-0.6B",
                                       "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
                                       "deepseek-ai-DeepSeek-V3.1",
                                       "google-gemma-2-2b-it",
                                       "ibm-granite-granite-3.3-2B-Instruct",
                                       "meta-llama-Llama-3.1-8B-Instruct",
                                       "meta-llama-Llama-3.2-3B-Instruct"};
    for (size_t i = 0; i < IMP_COUNT(name); i++) check_template(name[i]);
}

static void snippets(void **state)
{
    (void)state;
    json_t *all = load_json("snippets.json");
    const json_t *vars = json_object_get(all, "vars"), *rows = json_object_get(all, "rows");
    size_t bad = 0;
    assert_true(json_array_size(rows) > 900);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *src = json_array_get(json_array_get(rows, i), 0),
                     *want = json_array_get(json_array_get(rows, i), 1);
        imp_buf got = {0};
        imp_error err = {0};
        bool good = render(json_string_value(src), json_string_length(src), vars, &got, &err);
        bool same = json_is_null(want)
                        ? !good
                        : good && got.n == json_string_length(want) &&
                              memcmp(got.data ? got.data : "", json_string_value(want), got.n) == 0;
        if (!same) {
            bad++;
            printf("# %s\n#   got  %s\n#   want %s\n", json_string_value(src),
                   good ? (got.data ? got.data : "") : err.text,
                   json_is_null(want) ? "an error" : json_string_value(want));
        }
        imp_buf_deinit(&got);
    }
    assert_int_equal(bad, 0);
    json_decref(all);
}

/* What is not understood is refused when the template is compiled, by name and line. */
static void refusals(void **state)
{
    (void)state;
    static const char *const row[][2] = {{"a\n{% include 'x' %}", "'include'"},
                                         {"{% extends 'x' %}", "'extends'"},
                                         {"{% import 'x' as y %}", "'import'"},
                                         {"{% block b %}{% endblock %}", "'block'"},
                                         {"{% do x %}", "'do'"},
                                         {"{{ x|urlize }}", "'urlize'"},
                                         {"{{ x|pprint }}", "'pprint'"},
                                         {"{% if x is nosuch %}{% endif %}", "'nosuch'"},
                                         {"{{ lipsum() }}", "'lipsum'"},
                                         {"{{ cycler(1) }}", "'cycler'"},
                                         {"{% for i in x recursive %}{% endfor %}", "recursive"},
                                         {"{% autoescape true %}{% endautoescape %}", "'autoescape'"},
                                         {"{{ 99999999999999999999 }}", "64 bits"}};
    for (size_t i = 0; i < IMP_COUNT(row); i++) {
        imp_jinja *t;
        imp_error err = {0};
        imp_status s = imp_jinja_compile(row[i][0], strlen(row[i][0]), &t, &err);
        if (s == IMP_OK || strstr(err.text, row[i][1]) == NULL) fail_msg("%s: %s", row[i][0], err.text);
        assert_true(s == IMP_UNSUPPORTED || s == IMP_FORMAT);
        assert_non_null(strstr(err.text, i == 0 ? "line 2" : "line 1"));
    }
    static const char *const late[] = {"{{ 9223372036854775807 + 1 }}",
                                       "{{ 3037000500 * 3037000500 }}",
                                       "{{ 10 ** 19 }}",
                                       "{{ -(0 - 9223372036854775807 - 1) }}",
                                       "{{ '99999999999999999999'|int }}",
                                       "{{ 'a'.encode() }}",
                                       "{{ x.real }}",
                                       "{{ dict.items }}{{ {}.items }}",
                                       "{{ ['a']|map('nosuch')|list }}"};
    json_t *vars = json_pack("{s:i}", "x", 1);
    for (size_t i = 0; i < IMP_COUNT(late); i++) {
        imp_buf out = {0};
        imp_error err = {0};
        if (render(late[i], strlen(late[i]), vars, &out, &err) && i != 6)
            fail_msg("%s was rendered", late[i]);
        if (i != 6) assert_int_equal(err.status, IMP_UNSUPPORTED);
        imp_buf_deinit(&out);
    }
    json_decref(vars);
    imp_jinja *t;
    imp_error err = {0};
    assert_int_equal(imp_jinja_compile("\xff", 1, &t, &err), IMP_FORMAT);
    char *big = malloc((1 << 20) + 1);
    memset(big, 'a', (1 << 20) + 1);
    assert_int_equal(imp_jinja_compile(big, (1 << 20) + 1, &t, &err), IMP_TOO_LARGE);
    free(big);
}

/* ---- bombs ------------------------------------------------------------------------------------------------- */

static void bomb(const char *name, const char *src, size_t n)
{
    imp_buf out = {0};
    imp_error err = {0};
    json_t *vars = json_pack("{s:[i,i,i]}", "l", 1, 2, 3);
    uint64_t t0 = imp_now_ns();
    bool good = render(src, n, vars, &out, &err);
    printf("# %-28s %6.1f ms  %s\n", name, (double)(imp_now_ns() - t0) * 1e-6, good ? "RENDERED" : err.text);
    if (good) fail_msg("%s was rendered", name);
    assert_int_equal(err.status, IMP_TOO_LARGE);
    assert_int_equal(out.n, 0);
    imp_buf_deinit(&out);
    json_decref(vars);
}

static void repeated(const char *name, const char *head, const char *unit, size_t times, const char *tail)
{
    imp_buf b = {0};
    imp_buf_str(&b, head);
    for (size_t i = 0; i < times; i++) imp_buf_str(&b, unit);
    imp_buf_str(&b, tail);
    bomb(name, b.data, b.n);
    imp_buf_deinit(&b);
}

static void bombs(void **state)
{
    (void)state;
    static const char *const row[][2] = {
        {"range(10**9)", "{% for i in range(10**9) %}x{% endfor %}"},
        {"nested loops", "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% "
                         "endfor %}{% endfor %}{% endfor %}"},
        {"nested loops, output", "{% for a in range(99999) %}{% for b in range(99999) "
                                 "%}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}"},
        {"macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"},
        {"macro that calls itself twice",
         "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"},
        {"string doubling",
         "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"},
        {"list doubling",
         "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"},
        {"string repetition", "{{ 'x' * 10 ** 15 }}"},
        {"list repetition", "{{ [0] * 10 ** 12 }}"},
        {"huge join", "{{ ('x' * 9000)|list|join('y' * 9000) }}"},
        {"replace of nothing", "{{ ('x' * 1000000)|replace('', 'y' * 10000) }}"},
        {"padding", "{{ 'x'.center(10 ** 12) }}"},
        {"wide format", "{{ '%999999999d' % 1 }}"},
        {"slice steps", "{% for i in range(99999) %}{% set y = ('x' * 100000)[::-1] %}{% endfor %}"},
        {"value in itself", "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}"},
        {"compared with itself", "{% set a = namespace(x=[], y=[]) %}{% for i in range(40) %}{% set a.x = "
                                 "[a.x, a.x] %}{% set a.y = [a.y, a.y] %}{% endfor %}{{ a.x == a.y }}"},
        {"deep list", "{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% "
                      "endfor %}{{ ns.x }}"},
        {"deep tojson", "{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% "
                        "endfor %}{{ ns.x|tojson }}"},
        {"wide list of itself", "{% set ns = namespace(x='y') %}{% for i in range(30) %}{% set ns.x = [ns.x, "
                                "ns.x] %}{% endfor %}{{ ns.x|tojson }}"},
        {"sort", "{% for i in range(999) %}{% set y = range(99999)|sort %}{% endfor %}"},
        {"unique", "{% for i in range(99999) %}{% set y = range(9999)|unique|list %}{% endfor %}"},
        {"split", "{% for i in range(99999) %}{% set y = ('a ' * 100000).split() %}{% endfor %}"},
        {"search",
         "{% for i in range(99999) %}{% set y = ('a' * 100000) in ('a' * 200000 + 'b') %}{% endfor %}"},
        {"case", "{% for i in range(99999) %}{% set y = ('é' * 100000)|upper %}{% endfor %}"},
        {"count", "{{ ('ab' * 1000000).count('b') }}{% for i in range(99999) %}{% set y = ('ab' * "
                  "10000).count('b') %}{% endfor %}"},
        {"strip set", "{% for i in range(999) %}{% set y = ('a' * "
                      "100000)|trim('bcdefghijklmnopqrstuvwxyzbcdefghijklmnopqrstuvwxyza') %}{% endfor %}"},
        {"long strip set", "{{ ('a' * 1000000)|trim('b' * 1000000 + 'a') }}"},
        {"search from the end", "{{ ('a' * 2000000).rfind('a' * 1000000 + 'b') }}"},
        {"batch", "{{ [1]|batch(10 ** 12, 'x')|list }}"},
        {"slice filter", "{{ [1]|slice(10 ** 12)|list }}"},
    };
    for (size_t i = 0; i < IMP_COUNT(row); i++) bomb(row[i][0], row[i][1], strlen(row[i][1]));
    repeated("brackets", "{{ ", "(", 100000, " }}");
    repeated("lists", "{{ ", "[", 100000, " }}");
    repeated("not not", "{{ ", "not ", 100000, "1 }}");
    repeated("minus", "{{ ", "- ", 100000, "1 }}");
    repeated("long sum", "{{ 1", "+1", 100000, " }}");
    repeated("filter chain", "{{ 1", "|string", 100000, " }}");
    repeated("attribute chain", "{{ l", ".x", 100000, " }}");
    repeated("if in if", "", "{% if 1 %}", 50000, "");
    repeated("else if", "{{ 1 ", "if 1 else 1 ", 50000, " }}");
}

/* A long conversation is no bomb: the fuel grows with what is given. */
static void long_conversation(void **state)
{
    (void)state;
    json_t *vars = json_object(), *list = json_array();
    for (int i = 0; i < 20000; i++)
        json_array_append_new(
            list, json_pack("{s:s,s:s}", "role", i % 2 ? "assistant" : "user", "content", "some words"));
    json_object_set_new(vars, "messages", list);
    json_object_set_new(vars, "add_generation_prompt", json_true());
    imp_sys_file f;
    imp_buf out = {0};
    imp_error err = {0};
    assert_int_equal(imp_sys_file_open("tests/data/templates/Qwen-Qwen3-0.6B.jinja", false, &f, &err),
                     IMP_OK);
    if (!render((const char *)f.data, f.n, vars, &out, &err)) fail_msg("%s", err.text);
    assert_true(out.n > 20000 * 20);
    imp_sys_file_close(&f);
    imp_buf_deinit(&out);
    json_decref(vars);
}

/* Each allocation fails in turn: an error every time, nothing leaks (the sanitiser looks). */
static void out_of_memory(void **state)
{
    (void)state;
    static const char src[] = "{% macro f(a) %}{{ a|upper }}{% endmacro %}{% for m in l %}{{ f(m.c ~ 'x') "
                              "}}{% endfor %}{{ l|tojson }}";
    json_t *vars = json_pack("{s:[{s:s},{s:s}]}", "l", "c", "one", "c", "two");
    for (uint64_t n = 1;; n++) {
        imp_buf out = {0};
        imp_error err = {0};
        imp_sys_fail_at(n);
        bool good = render(src, sizeof src - 1, vars, &out, &err);
        imp_sys_fail_at(0);
        if (!good) assert_int_equal(err.status, IMP_NOMEM);
        imp_buf_deinit(&out);
        if (good) break;
        assert_true(n < 1000);
    }
    json_decref(vars);
}

int main(void)
{
    setenv("TZ", "UTC", 1);
    tzset();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_templates),
        cmocka_unit_test(snippets),
        cmocka_unit_test(refusals),
        cmocka_unit_test(bombs),
        cmocka_unit_test(long_conversation),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
