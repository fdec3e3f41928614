/* text/from_json.c - tokenizer.json. */
#include "text/tokenizer.h"
imp_status imp_tokenizer_from_json(const char *json, size_t n, const json_t *c, imp_tokenizer **out,
                                   imp_error *err)
{
    (void)json;
    (void)n;
    (void)c;
    *out = NULL;
    return imp_fail(err, IMP_UNSUPPORTED, "tokenizer.json is not supported yet");
}
