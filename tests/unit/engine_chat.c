/* tests/unit/engine_chat.c - chats of a loaded model: its own template, its BOS once, a template that is not understood.
 *
 * Idea:   the story model gets the key tokenizer.chat_template put in front of its others; a comment makes the addition a
 *         multiple of the alignment, so that the tensors stay where they are. */
#include <string.h>
#include <unistd.h>

#include "test.h"

#include "base/base.h"

static imp_engine *engine;
static char path[64];

static int begin(void **state)
{
    (void)state;
    imp_engine_config c = {.device = "cpu", .n_thread = 1, .n_ctx = 64, .n_parallel = 1, .quiet = true};
    imp_error err;
    imp_log_set_level(IMP_LOG_ERROR);
    snprintf(path, sizeof path, "/tmp/impetus-chat-XXXXXX");
    int fd = mkstemp(path);
    if (fd < 0) return -1;
    close(fd);
    return imp_engine_new(&c, &engine, &err) == IMP_OK ? 0 : -1;
}

static int end(void **state)
{
    (void)state;
    imp_engine_free(engine);
    return unlink(path);
}

/* The story model with this template; NULL: without one. */
static imp_model *load(const char *template)
{
    static const char key[] = "tokenizer.chat_template";
    imp_sys_file f;
    imp_error err = {0};
    imp_buf b = {0}, text = {0};
    if (imp_sys_file_open("models/stories260K.gguf", false, &f, &err) != IMP_OK) fail_msg("%s", err.text);
    uint64_t n_kv, n_key = sizeof key - 1;
    uint32_t string = 8;
    memcpy(&n_kv, f.data + 16, 8);
    n_kv += template != NULL;
    imp_buf_add(&b, f.data, 16);
    imp_buf_add(&b, &n_kv, 8);
    if (template != NULL) {
        imp_buf_fmt(&text, "{#");
        while ((8 + n_key + 4 + 8 + text.n + 2 + strlen(template)) % 32 != 0) imp_buf_str(&text, " ");
        imp_buf_fmt(&text, "#}%s", template);
        uint64_t n_text = text.n;
        imp_buf_add(&b, &n_key, 8);
        imp_buf_add(&b, key, n_key);
        imp_buf_add(&b, &string, 4);
        imp_buf_add(&b, &n_text, 8);
        imp_buf_add(&b, text.data, text.n);
    }
    imp_buf_add(&b, f.data + 24, f.n - 24);
    if (imp_sys_file_write(path, b.data, b.n, &err) != IMP_OK) fail_msg("%s", err.text);
    imp_sys_file_close(&f);
    imp_buf_deinit(&b);
    imp_buf_deinit(&text);
    imp_model *m = NULL;
    if (imp_engine_load(engine, path, "m", &m, &err) != IMP_OK) fail_msg("%s", err.text);
    return m;
}

static const imp_message chat[] = {{.role = "system", .content = "Be brief."},
                                   {.role = "user", .content = "Hi <b>"}};

static void renders(const char *template, const char *want)
{
    imp_model *m = load(template);
    imp_error err = {0};
    char *text;
    int32_t *ids;
    size_t n;
    assert_non_null(imp_model_get_info(m)->template_id);
    if (imp_chat_render(m, chat, 2, &text, &err) != IMP_OK) fail_msg("%s", err.text);
    assert_string_equal(text, want);
    assert_int_equal(imp_tokenize(m, text, strlen(text), IMP_TOK_PARSE_SPECIAL, &ids, &n, &err), IMP_OK);
    assert_true(n > 2 && ids[0] == 1 && ids[1] != 1);
    imp_free(ids);
    imp_free(text);
    imp_model_unload(m);
}

#define BODY                                                                                                 \
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt "        \
    "%}[bot]{% endif %}"
#define TEXT "[system] Be brief.\n[user] Hi <b>\n[bot]"

static void own_template(void **state)
{
    (void)state;
    renders("{{ bos_token }}" BODY, "<s>" TEXT);
    renders(BODY, "<s>" TEXT);
    renders("{{ bos_token }}{{ tools is none }}{{ documents }}{{ eos_token }}", "<s>TrueNone</s>");
}

static void no_template(void **state)
{
    (void)state;
    renders(NULL, "<s>system: Be brief.\nuser: Hi <b>\nassistant:");
}

static void not_understood(void **state)
{
    (void)state;
    imp_model *m = load("{% include 'other' %}");
    imp_error err = {0};
    char *text;
    int32_t *ids;
    size_t n;
    assert_null(imp_model_get_info(m)->template_id);
    assert_int_equal(imp_chat_render(m, chat, 2, &text, &err), IMP_UNSUPPORTED);
    assert_non_null(strstr(err.text, "'include'"));
    assert_string_equal(err.field, "messages");
    assert_null(text);
    assert_int_equal(imp_tokenize(m, "Once", 4, IMP_TOK_ADD_SPECIAL, &ids, &n, &err),
                     IMP_OK); /* completions work */
    imp_free(ids);
    imp_model_unload(m);
}

static void template_raises(void **state)
{
    (void)state;
    imp_model *m = load(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}ok");
    imp_error err = {0};
    char *text;
    static const imp_message bad[] = {{.role = "user", .content = "\xff"}};
    assert_int_equal(imp_chat_render(m, chat, 2, &text, &err), IMP_INVALID);
    assert_non_null(strstr(err.text, "no system role here"));
    assert_string_equal(err.field, "messages");
    assert_int_equal(imp_chat_render(m, chat + 1, 1, &text, &err), IMP_OK);
    assert_string_equal(text, "<s>ok");
    imp_free(text);
    assert_int_equal(imp_chat_render(m, bad, 1, &text, &err), IMP_INVALID);
    assert_int_equal(imp_chat_render(m, chat, 0, &text, &err), IMP_INVALID);
    imp_model_unload(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(own_template), cmocka_unit_test(no_template),
                                       cmocka_unit_test(not_understood), cmocka_unit_test(template_raises)};
    return cmocka_run_group_tests(tests, begin, end);
}
