/* fuzz/jinja.c - any bytes as a chat template: it compiles or it gives a reason; what compiles renders within its limits
 * to valid UTF-8, twice the same, or gives a reason.
 *
 * Run by `make fuzz`; its corpus is replayed by `make test`. */
#include <stdlib.h>

#include "text/jinja.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char vars_json[] =
    "{\"x\":5,\"f\":2.5,\"s\":\"Hello, W\\u00f6rld\",\"e\":\"\",\"n\":null,\"t\":true,\"l\":[3,1,2],"
    "\"d\":{\"b\":1,\"a\":[1,\"two\",null],\"items\":\"mine\"},\"uni\":\"a\\u65e5\\ud83e\\udd8a\\u0000\","
    "\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"add_generation_prompt\":true,\"enable_thinking\":false,"
    "\"messages\":[{\"role\":\"system\",\"content\":\"Be "
    "terse.\"},{\"role\":\"user\",\"content\":\"<think>a</think>b\"},"
    "{\"role\":\"assistant\",\"content\":\"\",\"reasoning_content\":\"r\",\"tool_calls\":[{\"id\":"
    "\"call00000\",\"type\":\"function\","
    "\"function\":{\"name\":\"w\",\"arguments\":{\"city\":\"K\",\"n\":1.5}}}]},{\"role\":\"tool\","
    "\"content\":\"{}\","
    "\"tool_call_id\":\"call00000\"},{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"p\"}]}],"
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"w\",\"description\":\"d\",\"parameters\":{"
    "\"type\":\"object\","
    "\"properties\":{\"city\":{\"type\":\"string\",\"description\":\"c\"}},\"required\":[\"city\"]}}}]}";

static void require(bool ok)
{
    if (!ok) abort();
}

static void check_error(const imp_error *err, imp_status s)
{
    require(err->status == s && err->text[0] != 0 && strchr(err->text, '\n') == NULL);
    require(imp_utf8_valid(err->text, strlen(err->text)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static json_t *vars;
    if (vars == NULL) vars = json_loads(vars_json, JSON_ALLOW_NUL, NULL);
    require(vars != NULL);
    imp_jinja *t = NULL;
    imp_error err = {0};
    imp_status s = imp_jinja_compile((const char *)data, size, &t, &err);
    require((s == IMP_OK) == (t != NULL));
    if (s != IMP_OK) {
        check_error(&err, s);
        return 0;
    }
    imp_jinja_limits l = {.fuel = 100000, .now = 1772636767};
    imp_buf out[2] = {{0}, {0}};
    imp_status end[2];
    for (int i = 0; i < 2; i++) {
        err = (imp_error){0};
        end[i] = imp_jinja_render(t, vars, &l, &out[i], &err);
        if (end[i] != IMP_OK) {
            check_error(&err, end[i]);
            require(out[i].n == 0);
        }
        require(out[i].n == 0 || imp_utf8_valid(out[i].data, out[i].n));
    }
    require(end[0] == end[1] && out[0].n == out[1].n);
    require(out[0].n == 0 || memcmp(out[0].data, out[1].data, out[0].n) == 0);
    imp_buf_deinit(&out[0]);
    imp_buf_deinit(&out[1]);
    imp_jinja_free(t);
    return 0;
}
