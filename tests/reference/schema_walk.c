/* tests/reference/schema_walk.c - random answers under JSON schemas, for another validator to judge.
 *
 * Use:     schema_walk TOKENIZER.json|MODEL.gguf N < schemas, one a line
 * Output:  one JSON line a schema: {"ms": compile time, "mask_us": mean of a mask, "error": null or why it was refused,
 *          "text": [N answers; null: not at its end after 600 tokens]} */
#include <stdio.h>
#include <stdlib.h>

#include "model/tokenizer_load.h"
#include "text/grammar.h"

enum { MAX_STEP = 600 };

static uint64_t state = 88172645463325252ULL;

static uint32_t below(uint32_t n)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 33) % n;
}

/* Late in an answer, tokens that close something are drawn more often, or strings would go on for ever. */
static int32_t choose(const imp_tokenizer *t, const uint32_t *mask, uint32_t n_word, int step)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_word; i++) n += (uint32_t)__builtin_popcount(mask[i]);
    int32_t best = -1;
    for (int draw = 0; draw < (step > 6 ? 1 + step / 2 : 1); draw++) {
        uint32_t pick = below(n);
        for (uint32_t i = 0; i < n_word; i++)
            for (uint32_t w = mask[i]; w != 0; w &= w - 1)
                if (pick-- == 0) best = (int32_t)(i * 32 + (uint32_t)__builtin_ctz(w));
        imp_buf b = {0};
        imp_token_spell(t, best, &b);
        bool closes = b.n == 0 || strpbrk(b.data, "\"}]") != NULL;
        imp_buf_deinit(&b);
        if (closes) break;
    }
    return best;
}

static imp_status load(const char *path, imp_tokenizer **t, imp_error *err)
{
    size_t n = strlen(path);
    if (n > 5 && strcmp(path + n - 5, ".gguf") == 0) {
        imp_gguf *g;
        IMP_TRY(imp_gguf_open(path, &g, err));
        imp_status st = imp_tokenizer_from_gguf(g, t, err);
        imp_gguf_close(g);
        return st;
    }
    imp_sys_file f;
    IMP_TRY(imp_sys_file_open(path, false, &f, err));
    imp_status st = imp_tokenizer_from_json((const char *)f.data, f.n, NULL, t, err);
    imp_sys_file_close(&f);
    return st;
}

int main(int argc, char **argv)
{
    imp_error err;
    imp_tokenizer *t;
    imp_vocab_tree *v;
    int32_t end = 0;
    if (argc < 3 || load(argv[1], &t, &err) != IMP_OK || imp_vocab_tree_new(t, &end, 1, &v, &err) != IMP_OK) {
        fprintf(stderr, "usage: schema_walk TOKENIZER.json N < schemas\n");
        return 2;
    }
    uint32_t n_word = ((uint32_t)imp_tokenizer_n(t) + 31) / 32;
    uint32_t *mask = calloc(n_word, sizeof *mask);
    static char line[1 << 20];
    while (fgets(line, sizeof line, stdin) != NULL) {
        json_t *schema = json_loads(line, JSON_DECODE_ANY, NULL), *texts = json_array();
        imp_grammar *g = NULL;
        imp_masker *m = NULL;
        uint64_t t0 = imp_now_ns(), mask_ns = 0, n_mask = 0;
        err.text[0] = '\0';
        imp_status st = schema != NULL ? imp_grammar_from_schema(schema, &g, &err) : IMP_INVALID;
        double ms = (double)(imp_now_ns() - t0) * 1e-6;
        if (st == IMP_OK) st = imp_masker_new(g, v, 16 << 20, &m);
        for (int k = 0; st == IMP_OK && k < atoi(argv[2]); k++) {
            imp_matcher *x;
            imp_buf text = {0};
            bool done = false;
            if (imp_matcher_new(m, &x) != IMP_OK) return 1;
            for (int step = 0; step < MAX_STEP && !done && st == IMP_OK; step++) {
                uint64_t t1 = imp_now_ns();
                st = imp_matcher_mask(x, mask, &err);
                mask_ns += imp_now_ns() - t1;
                n_mask++;
                if (st != IMP_OK) break;
                int32_t id = choose(t, mask, n_word, step);
                done = id == end;
                if (!imp_matcher_accept(x, id)) st = IMP_INTERNAL;
                if (!done) imp_token_spell(t, id, &text);
            }
            json_array_append_new(texts,
                                  done ? json_stringn(text.data ? text.data : "", text.n) : json_null());
            imp_buf_deinit(&text);
            imp_matcher_free(x);
        }
        json_t *out = json_pack("{s:f,s:f,s:o,s:o}", "ms", ms, "mask_us",
                                n_mask ? (double)mask_ns * 1e-3 / (double)n_mask : 0.0, "error",
                                st == IMP_OK ? json_null() : json_string(err.text), "text", texts);
        json_dumpf(out, stdout, JSON_COMPACT);
        putchar('\n');
        fflush(stdout);
        json_decref(out);
        json_decref(schema);
        imp_masker_unref(m);
        imp_grammar_unref(g);
    }
    return 0;
}
