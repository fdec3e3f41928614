/* api/json_in.c - the bytes of a body to a JSON tree, within limits.
 *
 * Place:   called by fields.c. jansson parses; this file bounds what it is given.
 * Idea:    one pass over the bytes counts depth and values before any tree is built, so that a small body cannot
 *          become a deep recursion or gigabytes of nodes.
 * Always:  duplicate keys, NUL, lone surrogates, NaN, numbers out of range and trailing bytes are refused. */
#include "api/internal.h"

static imp_status check_limits(const char *s, size_t n, size_t *n_value, imp_error *err)
{
    size_t depth = 0, values = 0;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
            continue;
        }
        switch (c) {
        case '"': in_string = true; break;
        case '[':
        case '{':
            values++;
            if (++depth > IMP_JSON_MAX_DEPTH)
                return imp_fail_at(err, IMP_INVALID, i, "the JSON is nested deeper than %d levels",
                                   IMP_JSON_MAX_DEPTH);
            break;
        case ']':
        case '}': depth -= depth > 0; break;
        case ',': values++; break;
        default: break;
        }
        if (values > IMP_JSON_MAX_VALUES)
            return imp_fail_at(
                err, IMP_TOO_LARGE, i,
                "the JSON holds more than %d values: send the text instead of its tokens, or less "
                "in one request",
                IMP_JSON_MAX_VALUES);
    }
    *n_value = values;
    return IMP_OK;
}

/* ---- memory ------------------------------------------------------------------------------------
 * jansson 2.14 does not survive a failed allocation (its lexer ignores it and then asserts). So what a tree can need
 * is reserved before the parse starts, and jansson takes it from there, on this thread, until the tree is released.
 * Upper bounds: 8 times the text (the lexer's doubling buffer, the copies of strings and keys), and 256 bytes for each
 * value that check_limits counted (node, table and its doublings). */
static _Thread_local struct {
    char *base;
    size_t n, at;
} t_pool;

void *imp_api_json_alloc(size_t n)
{
    size_t want = (n + 15) & ~(size_t)15;
    if (n > SIZE_MAX - 16 || want > t_pool.n - t_pool.at) return imp_sys_malloc(n);
    void *p = t_pool.base + t_pool.at;
    t_pool.at += want;
    return p;
}

void imp_api_json_free(void *p)
{
    uintptr_t at = (uintptr_t)p, base = (uintptr_t)t_pool.base;
    if (t_pool.base && at >= base && at < base + t_pool.n) return;
    imp_sys_free(p);
}

static bool pool_open(size_t n_text, size_t n_value)
{
    uint64_t n = 8ull * n_text + 256ull * n_value + 4096;
    t_pool.base = n < SIZE_MAX ? imp_sys_malloc((size_t)n) : NULL;
    t_pool.n = t_pool.base ? (size_t)n : 0;
    t_pool.at = 0;
    return t_pool.base != NULL;
}

static void pool_close(void)
{
    char *base = t_pool.base;
    t_pool.base = NULL;
    t_pool.n = t_pool.at = 0;
    imp_sys_free(base);
}

void imp_api_json_release(json_t **root)
{
    if (!*root) return;
    json_decref(*root);
    *root = NULL;
    pool_close();
}

imp_status imp_api_json(const char *body, size_t n, json_t **out, imp_error *err)
{
    *out = NULL;
    if (n == 0) return imp_fail(err, IMP_INVALID, "the request has no body: send a JSON object");
    size_t n_value = 0;
    IMP_TRY(check_limits(body, n, &n_value, err));
    if (!pool_open(n, n_value)) return imp_fail(err, IMP_NOMEM, "out of memory");
    json_error_t je;
    json_t *root = json_loadb(body, n, JSON_REJECT_DUPLICATES, &je);
    if (!root) {
        pool_close();
        if (json_error_code(&je) == json_error_null_character)
            return imp_fail_at(err, IMP_INVALID, je.position < 0 ? 0 : (uint64_t)je.position,
                               "the body holds a string with the character \\u0000, which no text may have "
                               "(line %d, column %d)",
                               je.line, je.column);
        for (char *p = je.text; *p; p++)
            if ((unsigned char)*p < ' ') *p = ' ';
        return imp_fail_at(err, IMP_INVALID, je.position < 0 ? 0 : (uint64_t)je.position,
                           "the body is not valid JSON: %s (line %d, column %d)", je.text, je.line,
                           je.column);
    }
    if (!json_is_object(root)) {
        imp_api_json_release(&root);
        return imp_fail(err, IMP_INVALID, "the body must be a JSON object");
    }
    *out = root;
    return IMP_OK;
}
