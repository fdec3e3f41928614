/* fuzz/toolcall.c - answers with calls from any bytes, and call formats from any template.
 *
 * Idea:    the first byte says which: one of four formats reads the rest, cut where the second byte says, and must tell the
 *          same as when it reads it whole; or the rest is a chat template to probe. A complete call has a name. */
#include <stdlib.h>

#include "text/toolcall.h"

#define TALK(calls)                                                                                          \
    "{{ tools | tojson }}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}{% for c in "             \
    "m.tool_calls or [] "                                                                                    \
    "%}" calls "{% endfor %}</s>{% endfor %}</think>"
#define NAME "{{ c.function.name }}"
#define ARGS "{{ c.function.arguments | tojson }}"

static const char *const g_src[4] = {
    TALK("<call>" NAME "(" ARGS ")</call>"), TALK("{\"name\": \"" NAME "\", \"arguments\": " ARGS "}"),
    TALK("[TOOL_CALLS]" NAME "[CALL_ID]{{ c.id }}[ARGS]" ARGS),
    TALK("<call>" NAME
         "{% for k, v in c.function.arguments | items %}<k>{{ k }}</k><v>{{ v if v is string else v | tojson "
         "}}</v>{% endfor %}</call>")};

static imp_toolfmt *probe(const char *src, size_t n)
{
    imp_jinja *t;
    imp_toolfmt *f;
    imp_error err;
    if (imp_jinja_compile(src, n, &t, &err) != IMP_OK) return NULL;
    char *copy = calloc(1, n + 1);
    memcpy(copy, src, n);
    if (imp_toolfmt_probe(t, copy, "<s>", "</s>", &f) != IMP_OK) abort();
    imp_jinja_free(t);
    free(copy);
    return f;
}

typedef struct heard {
    imp_buf all;
    int last;
} heard;

static void hear(void *user, imp_part_kind kind, const char *p, size_t n)
{
    heard *h = user;
    if (kind == IMP_PART_CALL && n == 0) abort();
    if ((int)kind != h->last || kind == IMP_PART_CALL) imp_buf_fmt(&h->all, "|%d:", kind);
    imp_buf_add(&h->all, p, n);
    h->last = kind;
}

static heard listen(const imp_toolfmt *f, const json_t *tools, const char *p, size_t n, size_t cut,
                    bool *good)
{
    heard h = {.last = -1};
    imp_reader *r;
    if (imp_reader_new(f, tools, false, hear, &h, &r) != IMP_OK) abort();
    *good = imp_reader_push(r, p, cut) && imp_reader_push(r, p + cut, n - cut) && imp_reader_end(r);
    imp_reader_free(r);
    return h;
}

static void read_answer(const imp_toolfmt *f, const char *p, size_t n, size_t cut)
{
    json_t *tools = json_loads(
        "[{\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{\"s\":{\"type\":\"string\"}}}}}]", 0,
        NULL);
    bool a_good, b_good;
    heard a = listen(f, tools, p, n, n, &a_good), b = listen(f, tools, p, n, IMP_MIN(cut, n), &b_good);
    if (a_good != b_good) abort();
    if (a_good && (a.all.n != b.all.n || (a.all.n > 0 && memcmp(a.all.data, b.all.data, a.all.n) != 0)))
        abort();
    imp_buf_deinit(&a.all);
    imp_buf_deinit(&b.all);
    json_decref(tools);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    static imp_toolfmt *known[4];
    if (n < 2) return 0;
    size_t k = p[0] % 5;
    const char *text = (const char *)p + 2;
    if (k == 4) {
        imp_toolfmt *f = probe(text, n - 2);
        imp_toolfmt_free(f);
        return 0;
    }
    if (known[k] == NULL) known[k] = probe(g_src[k], strlen(g_src[k]));
    if (known[k] == NULL || imp_toolfmt_name(known[k]) == NULL) abort();
    read_answer(known[k], text, n - 2, p[1]);
    return 0;
}
