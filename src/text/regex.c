/* text/regex.c - translate a tokenizer's pattern from Oniguruma to PCRE2, compile it, match within limits.
 *
 * Place:   called by pretok.c and normalize.c.
 * Idea:    three classes differ in meaning and are spelled out: \s (PCRE2 counts U+180E as space), \w (PCRE2 has no
 *          marks in it) and \h (hexadecimal digit against horizontal space); ^ and $ always mean a line's ends.
 *          Escapes outside the list below, set operations and nested sets are refused.
 * Always:  the subject is valid UTF-8 (the caller cuts it there), so no check is repeated for each match.
 * Threads: compiled code is shared; match data and the JIT stack are the caller's.
 * Source:  PCRE2 10.42 pcre2pattern(3); Oniguruma doc/RE. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "text/regex.h"

#define CLASS_SPACE "\\t-\\r\\x{85}\\p{Z}"
#define CLASS_WORD  "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"

enum { MATCH_LIMIT = 2000000, MAX_PATTERN = 65536, JIT_STACK_MAX = 1 << 20 };

struct imp_regex {
    pcre2_code *code;
    bool jit;
};

struct imp_match {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

static void *heap_alloc(size_t n, void *user)
{
    (void)user;
    return imp_sys_malloc(n);
}

static void heap_free(void *p, void *user)
{
    (void)user;
    imp_sys_free(p);
}

/* ---- translation ------------------------------------------------------------------------------------ */

typedef struct reader {
    const char *p;
    size_t n, i;
    bool in_class;
    imp_buf out;
    imp_error *err;
} reader;

static imp_status refuse(const reader *r, const char *what)
{
    return imp_fail_at(r->err, IMP_UNSUPPORTED, r->i,
                       "the tokenizer's regular expression uses %s at byte %zu, which is not supported", what,
                       r->i);
}

static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* \xHH (one byte to Oniguruma, so only ASCII is a character), \x{H...} and \uHHHH: all become \x{H...}. */
static imp_status hex_escape(reader *r, char kind)
{
    size_t i = r->i + 2, digits = 0;
    bool brace = kind == 'x' && i < r->n && r->p[i] == '{';
    if (brace) i++;
    size_t begin = i, max = brace ? 8 : kind == 'x' ? 2 : 4;
    while (i < r->n && digits < max && is_hex(r->p[i])) i++, digits++;
    if (digits == 0 || (kind == 'u' && digits != 4)) return refuse(r, "an unfinished hexadecimal escape");
    if (brace && (i >= r->n || r->p[i] != '}')) return refuse(r, "an unfinished hexadecimal escape");
    if (kind == 'x' && !brace && digits == 2 && r->p[begin] >= '8') return refuse(r, "a raw byte above 0x7F");
    imp_buf_str(&r->out, "\\x{");
    imp_buf_add(&r->out, r->p + begin, digits);
    imp_buf_str(&r->out, "}");
    r->i = i + (brace ? 1 : 0);
    return IMP_OK;
}

static imp_status property_escape(reader *r)
{
    size_t i = r->i + 2;
    if (i >= r->n || r->p[i] != '{') return refuse(r, "a property without braces");
    while (i < r->n && r->p[i] != '}') i++;
    if (i >= r->n) return refuse(r, "an unfinished property");
    imp_buf_add(&r->out, r->p + r->i, i + 1 - r->i);
    r->i = i + 1;
    return IMP_OK;
}

static imp_status escape(reader *r)
{
    if (r->i + 1 >= r->n) return refuse(r, "a backslash at its end");
    char c = r->p[r->i + 1];
    const char *text = NULL;
    switch (c) {
    case 's': text = r->in_class ? CLASS_SPACE : "[" CLASS_SPACE "]"; break;
    case 'w': text = r->in_class ? CLASS_WORD : "[" CLASS_WORD "]"; break;
    case 'S': text = r->in_class ? "\\S" : "[^" CLASS_SPACE "]"; break;
    case 'W': text = r->in_class ? NULL : "[^" CLASS_WORD "]"; break;
    case 'd': text = "\\p{Nd}"; break;
    case 'D': text = "\\P{Nd}"; break;
    case 'h': text = r->in_class ? "0-9a-fA-F" : "[0-9a-fA-F]"; break;
    case 'v': text = "\\x{0b}"; break;
    case 'p':
    case 'P': return property_escape(r);
    case 'x':
    case 'u': return hex_escape(r, c);
    default: break;
    }
    if (text) {
        imp_buf_str(&r->out, text);
        r->i += 2;
        return IMP_OK;
    }
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (letter && !strchr(r->in_class ? "nrtfae" : "nrtfaebBAzZG", c)) {
        char what[] = "the escape \\?";
        what[sizeof what - 2] = c;
        return refuse(r, what);
    }
    imp_buf_add(&r->out, r->p + r->i, 2);
    r->i += 2;
    return IMP_OK;
}

static imp_status translate(reader *r)
{
    while (r->i < r->n) {
        char c = r->p[r->i];
        if (c == '\\') {
            IMP_TRY(escape(r));
            continue;
        }
        if (c == '\0') return refuse(r, "a NUL character");
        if (r->in_class) {
            if (c == '[') return refuse(r, "a set inside a set");
            if (c == '&' && r->i + 1 < r->n && r->p[r->i + 1] == '&') return refuse(r, "a set intersection");
            if (c == ']') r->in_class = false;
        } else if (c == '[') {
            r->in_class = true;
            size_t k = r->i + 1;
            if (k < r->n && r->p[k] == '^') k++;
            if (k < r->n && r->p[k] == ']') return refuse(r, "an empty set");
            imp_buf_add(&r->out, r->p + r->i, k - r->i);
            r->i = k;
            continue;
        } else if (c == '}' && r->i + 1 < r->n && r->p[r->i + 1] == '+') {
            return refuse(r, "a plus after an interval");
        } else if (c == '(' && r->i + 2 < r->n && r->p[r->i + 1] == '?' &&
                   !strchr(":=!>i<", r->p[r->i + 2])) {
            return refuse(r, "a group of an unknown kind");
        } else if (c == '(' && r->i + 1 < r->n && r->p[r->i + 1] == '*') {
            return refuse(r, "a verb");
        }
        imp_buf_add(&r->out, &c, 1);
        r->i++;
    }
    return r->in_class ? refuse(r, "an unfinished set") : IMP_OK;
}

/* ---- compiling ---------------------------------------------------------------------------------------- */

static imp_status compile(imp_regex *re, const imp_buf *text, imp_error *err)
{
    pcre2_general_context *general = pcre2_general_context_create(heap_alloc, heap_free, NULL);
    pcre2_compile_context *context = general ? pcre2_compile_context_create(general) : NULL;
    imp_status status = IMP_OK;
    if (!context) {
        status = imp_fail(err, IMP_NOMEM, "out of memory while compiling a regular expression");
        goto done;
    }
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_parens_nest_limit(context, 64);
    int code;
    size_t at;
    re->code = pcre2_compile((PCRE2_SPTR)text->data, text->n, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code,
                             &at, context);
    if (!re->code) {
        char why[160] = "";
        if (code == PCRE2_ERROR_HEAP_FAILED || code == PCRE2_ERROR_NOMEMORY) {
            status = imp_fail(err, IMP_NOMEM, "out of memory while compiling a regular expression");
            goto done;
        }
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        status = imp_fail(err, IMP_FORMAT, "the tokenizer's regular expression is not valid: %s", why);
        goto done;
    }
    re->jit = pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE) == 0;
done:
    pcre2_compile_context_free(context);
    pcre2_general_context_free(general);
    return status;
}

imp_status imp_regex_new(const char *pattern, size_t n, imp_regex **out, imp_error *err)
{
    *out = NULL;
    if (n > MAX_PATTERN)
        return imp_fail(err, IMP_TOO_LARGE, "a regular expression of %zu bytes is over the limit of %d", n,
                        MAX_PATTERN);
    if (!imp_utf8_valid(pattern, n))
        return imp_fail(err, IMP_FORMAT, "a regular expression is not valid UTF-8");
    reader r = {.p = pattern, .n = n, .err = err};
    imp_regex *re = imp_sys_calloc(1, sizeof *re);
    imp_status status = re ? translate(&r) : imp_fail(err, IMP_NOMEM, "out of memory");
    if (status == IMP_OK && r.out.failed) status = imp_fail(err, IMP_NOMEM, "out of memory");
    if (status == IMP_OK && r.out.n == 0)
        status = imp_fail(err, IMP_UNSUPPORTED, "an empty regular expression");
    if (status == IMP_OK) status = compile(re, &r.out, err);
    imp_buf_deinit(&r.out);
    if (status != IMP_OK) {
        imp_regex_free(re);
        return status;
    }
    *out = re;
    return IMP_OK;
}

void imp_regex_free(imp_regex *re)
{
    if (!re) return;
    pcre2_code_free(re->code);
    imp_sys_free(re);
}

/* ---- matching ------------------------------------------------------------------------------------------ */

imp_match *imp_match_new(void)
{
    imp_match *m = imp_sys_calloc(1, sizeof *m);
    pcre2_general_context *general = pcre2_general_context_create(heap_alloc, heap_free, NULL);
    if (!m || !general) goto fail;
    m->data = pcre2_match_data_create(1, general);
    m->context = pcre2_match_context_create(general);
    m->stack = pcre2_jit_stack_create(32 * 1024, JIT_STACK_MAX, general);
    if (!m->data || !m->context) goto fail;
    pcre2_set_depth_limit(m->context, MATCH_LIMIT);
    pcre2_set_heap_limit(m->context, 64 * 1024); /* KiB */
    if (m->stack) pcre2_jit_stack_assign(m->context, NULL, m->stack);
    pcre2_general_context_free(general);
    return m;
fail:
    pcre2_general_context_free(general);
    imp_match_free(m);
    return NULL;
}

void imp_match_free(imp_match *m)
{
    if (!m) return;
    pcre2_jit_stack_free(m->stack);
    pcre2_match_context_free(m->context);
    pcre2_match_data_free(m->data);
    imp_sys_free(m);
}

imp_status imp_regex_find(const imp_regex *re, imp_match *m, const char *s, size_t n, size_t start,
                          bool *found, size_t *begin, size_t *end, imp_error *err)
{
    PCRE2_SPTR text = (PCRE2_SPTR)s;
    /* a long run of spaces is tried and given back character by character, which is no sign of a hostile pattern */
    pcre2_set_match_limit(m->context, (uint32_t)IMP_MIN(MATCH_LIMIT + 8 * (uint64_t)n, UINT32_MAX));
    int rc = re->jit ? pcre2_jit_match(re->code, text, n, start, 0, m->data, m->context)
                     : pcre2_match(re->code, text, n, start, PCRE2_NO_UTF_CHECK, m->data, m->context);
    *found = rc >= 0;
    if (rc == PCRE2_ERROR_NOMATCH) return IMP_OK;
    if (rc == PCRE2_ERROR_NOMEMORY) return imp_fail(err, IMP_NOMEM, "out of memory in a regular expression");
    if (rc < 0)
        return imp_fail(err, IMP_INVALID,
                        "the tokenizer's regular expression gave up on this text (PCRE2 error %d)", rc);
    const PCRE2_SIZE *pair = pcre2_get_ovector_pointer(m->data);
    *begin = pair[0];
    *end = pair[1];
    return IMP_OK;
}
