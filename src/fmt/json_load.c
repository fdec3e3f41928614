/* fmt/json_load.c - JSON from model files, with bounds.
 *
 * Place:   safetensors headers and the config files of a model folder.
 * Idea:    jansson parses; a scan before it bounds what its recursion and its allocations can reach, because a few
 *          bytes of JSON ("{},") become a few hundred bytes of tree.
 * Threads: pure functions. */
#include "fmt/json_load.h"

enum { MAX_DEPTH = 64, MAX_VALUE = 1 << 20 };

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static size_t digits(const char *p, size_t n, size_t at)
{
    size_t i = at;
    while (i < n && is_digit(p[i])) i++;
    return i - at;
}

/* Whether the run of digits at `at` is a whole number beyond int64. */
static bool is_big(const char *p, size_t n, size_t at, size_t run)
{
    static const char max[] = "9223372036854775807";
    size_t end = at + run, sign = at > 0 && p[at - 1] == '-' ? at - 1 : at;
    if (run < sizeof max - 1 || (run == sizeof max - 1 && memcmp(p + at, max, run) <= 0)) return false;
    if (end < n && (p[end] == '.' || p[end] == 'e' || p[end] == 'E')) return false;
    char before = sign > 0 ? p[sign - 1] : ' ';
    return before != '.' && before != 'e' && before != 'E' && before != '+';
}

/* Tokenizer configs say "no limit" as 10^30: whole numbers beyond int64 become reals ("e0" is appended) instead of a
 * parse error. */
static void widen(const char *p, size_t n, imp_buf *out)
{
    bool in_string = false;
    size_t done = 0;
    for (size_t i = 0; i < n; i++) {
        if (in_string && p[i] == '\\') {
            i++;
        } else if (p[i] == '"') {
            in_string = !in_string;
        } else if (!in_string && is_digit(p[i])) {
            size_t run = digits(p, n, i);
            bool big = is_big(p, n, i, run);
            i += run - 1;
            if (!big) continue;
            imp_buf_add(out, p + done, i + 1 - done);
            imp_buf_str(out, "e0");
            done = i + 1;
        }
    }
    imp_buf_add(out, p + done, n - done);
}

/* Depth and number of values, strings skipped. Wrong JSON is left to the parser to find. */
static imp_status scan(const char *p, size_t n, const char *what, bool *big, imp_error *err)
{
    bool in_string = false;
    *big = false;
    uint64_t n_value = 0;
    int depth = 0;
    for (size_t i = 0; i < n; i++) {
        char c = p[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
            continue;
        }
        switch (c) {
        case '"': in_string = true; break;
        case '{':
        case '[':
            n_value++;
            if (++depth > MAX_DEPTH)
                return imp_fail_at(err, IMP_TOO_LARGE, i, "%s is nested deeper than %d levels", what,
                                   MAX_DEPTH);
            break;
        case '}':
        case ']': depth--; break;
        case ',': n_value++; break;
        default:
            if (is_digit(c)) {
                size_t run = digits(p, n, i);
                *big |= is_big(p, n, i, run);
                i += run - 1;
            }
        }
        if (n_value > MAX_VALUE)
            return imp_fail_at(err, IMP_TOO_LARGE, i, "%s has more than %d values", what, MAX_VALUE);
    }
    return IMP_OK;
}

imp_status imp_json_load_any(const char *p, size_t n, const char *what, json_t **out, imp_error *err)
{
    json_error_t je;
    imp_buf wide = {0};
    bool big;
    *out = NULL;
    IMP_TRY(scan(p, n, what, &big, err));
    if (big) widen(p, n, &wide);
    if (wide.failed) {
        imp_buf_deinit(&wide);
        return imp_fail(err, IMP_NOMEM, "not enough memory to read %s", what);
    }
    if (big) p = wide.data, n = wide.n;
    json_t *root = json_loadb(p != NULL ? p : "", n, JSON_REJECT_DUPLICATES, &je);
    imp_buf_deinit(&wide);
    if (root == NULL) {
        if (json_error_code(&je) == json_error_out_of_memory)
            return imp_fail(err, IMP_NOMEM, "not enough memory to read %s", what);
        /* jansson's text may quote a part of the input: make it printable. */
        for (char *c = je.text; *c != 0; c++)
            if (*c < 0x20 || *c >= 0x7f) *c = '?';
        return imp_fail_at(err, IMP_FORMAT, je.position < 0 ? 0 : (uint64_t)je.position,
                           "%s is not valid JSON: %s", what, je.text);
    }
    *out = root;
    return IMP_OK;
}

imp_status imp_json_load(const char *p, size_t n, const char *what, json_t **out, imp_error *err)
{
    IMP_TRY(imp_json_load_any(p, n, what, out, err));
    if (json_is_object(*out)) return IMP_OK;
    json_decref(*out);
    *out = NULL;
    return imp_fail_at(err, IMP_FORMAT, 0, "%s is not a JSON object", what);
}
