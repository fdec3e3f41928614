/* tests/model/tokenizer_vocab.c - real vocabularies: every case of tests/data/vocab encodes to exactly the ids given.
 *
 * Idea:   NAME.gguf holds a published vocabulary, NAME.gguf.inp texts between separators, NAME.gguf.out the ids that
 *         the model's own tokenizer gives, one line a text, without special tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/tokenizer_load.h"

#include <cmocka.h>

#define SEPARATOR "\n__ggml_vocab_test__\n"

static imp_tokenizer *load(const char *path)
{
    imp_gguf *g;
    imp_tokenizer *t = NULL;
    imp_error err = {0};
    if (imp_gguf_open(path, &g, &err) != IMP_OK) fail_msg("%s: %s", path, err.text);
    if (imp_tokenizer_from_gguf(g, &t, &err) != IMP_OK) fail_msg("%s: %s", path, err.text);
    imp_gguf_close(g);
    return t;
}

static char *slurp(const char *path, size_t *n)
{
    imp_sys_file f;
    imp_error err = {0};
    if (imp_sys_file_open(path, false, &f, &err) != IMP_OK) fail_msg("%s", err.text);
    char *s = malloc(f.n + 1);
    memcpy(s, f.data, f.n);
    s[f.n] = '\0';
    *n = f.n;
    imp_sys_file_close(&f);
    return s;
}

static void check_text(const imp_tokenizer *t, const char *name, size_t k, const char *text, size_t n,
                       const char *line)
{
    imp_ids ids = {0};
    imp_error err = {0};
    if (imp_tokenizer_encode(t, text, n, 0, &ids, &err) != IMP_OK)
        fail_msg("%s case %zu: %s", name, k, err.text);
    const char *p = line;
    size_t i = 0;
    for (;; i++) {
        char *end;
        long want = strtol(p, &end, 10);
        if (end == p) break;
        if (i >= ids.n || ids.id[i] != want)
            fail_msg("%s case %zu (\"%.*s\"): id %zu is %d of %zu, not %ld", name, k, (int)n, text, i,
                     i < ids.n ? ids.id[i] : -1, ids.n, want);
        p = end;
    }
    if (i != ids.n) fail_msg("%s case %zu (\"%.*s\"): %zu ids, not %zu", name, k, (int)n, text, ids.n, i);
    imp_ids_deinit(&ids);
}

static void check_vocab(void **state)
{
    const char *name = *state;
    char path[256];
    size_t n_in, n_out, n_case = 0;
    snprintf(path, sizeof path, "tests/data/vocab/%s.gguf", name);
    imp_tokenizer *t = load(path);
    snprintf(path, sizeof path, "tests/data/vocab/%s.gguf.inp", name);
    char *in = slurp(path, &n_in);
    snprintf(path, sizeof path, "tests/data/vocab/%s.gguf.out", name);
    char *out = slurp(path, &n_out);
    char *line = out;
    for (char *p = in; p; n_case++) {
        char *next = strstr(p, SEPARATOR), *nl = strchr(line, '\n');
        if (!nl && !*line) break;
        if (nl) *nl = '\0';
        check_text(t, name, n_case, p, next ? (size_t)(next - p) : strlen(p), line);
        line = nl ? nl + 1 : line + strlen(line);
        p = next ? next + strlen(SEPARATOR) : NULL;
    }
    assert_true(n_case >= 40);
    assert_int_equal(*line, 0);
    free(in);
    free(out);
    imp_tokenizer_free(t);
}

int main(void)
{
#define V(name)                                                                                              \
    {                                                                                                        \
        name, check_vocab, NULL, NULL, (void *)name                                                          \
    }
    const struct CMUnitTest tests[] = {V("gpt-2"),     V("llama-spm"), V("bert-bge"),
                                       V("starcoder"), V("falcon"),    V("deepseek-llm")};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
