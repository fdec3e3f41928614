/* api/json_in.c - the bytes of a body to a JSON tree, within limits.
 *
 * Place:   called by fields.c. jansson parses; this file bounds what it is given.
 * Idea:    one pass over the bytes counts depth and values before any tree is built, so that a small body cannot
 *          become a deep recursion or gigabytes of nodes.
 * Always:  duplicate keys, NUL, lone surrogates, NaN, numbers out of range and trailing bytes are refused. */
#include "api/internal.h"

static imp_status check_limits(const char *s, size_t n, imp_error *err)
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
    return IMP_OK;
}

imp_status imp_api_json(const char *body, size_t n, json_t **out, imp_error *err)
{
    *out = NULL;
    if (n == 0) return imp_fail(err, IMP_INVALID, "the request has no body: send a JSON object");
    IMP_TRY(check_limits(body, n, err));
    json_error_t je;
    json_t *root = json_loadb(body, n, JSON_REJECT_DUPLICATES, &je);
    if (!root) {
        if (json_error_code(&je) == json_error_out_of_memory)
            return imp_fail(err, IMP_NOMEM, "out of memory");
        for (char *p = je.text; *p; p++)
            if ((unsigned char)*p < ' ') *p = ' ';
        return imp_fail_at(err, IMP_INVALID, je.position < 0 ? 0 : (uint64_t)je.position,
                           "the body is not valid JSON: %s (line %d, column %d)", je.text, je.line,
                           je.column);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return imp_fail(err, IMP_INVALID, "the body must be a JSON object");
    }
    *out = root;
    return IMP_OK;
}
