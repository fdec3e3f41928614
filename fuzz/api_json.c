/* fuzz/api_json.c - any bytes as the body of a request: it is accepted, or refused with a sentence.
 *
 * The first byte chooses the endpoint. Also what is written out: any bytes as a JSON string must read back.
 * Run by `make fuzz`; its corpus is replayed by `make test`. */
#include <stdlib.h>

#include "api/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool ok)
{
    if (!ok) abort();
}

static void body_in(const char *path, const char *body, size_t n)
{
    imp_error err = {0};
    imp_status st = imp_api_check(path, body, n, &err);
    if (st == IMP_OK) return;
    require(err.status == st);
    require(err.text[0] != 0 && !strchr(err.text, '\n'));
    imp_buf b = {0};
    imp_api_fail_json(&b, false, &err); /* the refusal itself is JSON, whatever it quotes */
    json_t *o = json_loadb(b.data, b.n, 0, NULL);
    require(json_is_string(json_object_get(json_object_get(o, "error"), "message")));
    json_decref(o);
    imp_buf_deinit(&b);
}

static void string_out(const char *p, size_t n)
{
    imp_buf b = {0};
    imp_json_str(&b, p, n);
    json_t *o = json_loadb(b.data, b.n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    require(json_is_string(o));
    if (imp_utf8_valid(p, n)) require(json_string_length(o) == n && memcmp(json_string_value(o), p, n) == 0);
    json_decref(o);
    imp_buf_deinit(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const path[] = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings",
                                       "/api/embed", "/api/embeddings"};
    if (size == 0) return 0;
    body_in(path[data[0] % IMP_COUNT(path)], (const char *)data + 1, size - 1);
    string_out((const char *)data + 1, size - 1);
    return 0;
}
