/* fuzz/grammar.c - constraints from any bytes: schema, GBNF or regular expression, then a walk under the mask.
 *
 * Idea:    the first byte says which reader; what it accepts is followed for some tokens, the input choosing among those
 *          that are allowed. A mask that allows nothing, or a chosen token that is then refused, is a bug. */
#include <stdlib.h>

#include "text/grammar.h"

static const char vocab_json[] = "{\"version\":\"1.0\",\"added_tokens\":[],\"normalizer\":null,\"pre_"
                                 "tokenizer\":null,\"post_processor\":null,"
                                 "\"decoder\":null,\"model\":{\"type\":\"BPE\",\"vocab\":{\"end\":0,\"a\":1,"
                                 "\"b\":2,\"{\":3,\"}\":4,\"\\\"\":5,\":\":6,"
                                 "\",\":7,\"1\":8,\"[\":9,\"]\":10,\"ab\":11,\"\\\":\":12,\"{\\\"\":13,\"0\":"
                                 "14,\"-\":15,\" \":16,\"true\":17,\"\\u00e9\":18,"
                                 "\"null\":19,\"\\\\\":20},\"merges\":[]}}";

static imp_vocab_tree *tree(imp_tokenizer **t)
{
    imp_vocab_tree *v;
    imp_error err;
    int32_t end = 0;
    if (imp_tokenizer_from_json(vocab_json, sizeof vocab_json - 1, NULL, t, &err) != IMP_OK) abort();
    if (imp_vocab_tree_new(*t, &end, 1, &v, &err) != IMP_OK) abort();
    return v;
}

static imp_status compile(const uint8_t *p, size_t n, imp_grammar **g, imp_error *err)
{
    switch (p[0] % 3) {
    case 0: return imp_grammar_from_gbnf((const char *)p + 1, n - 1, g, err);
    case 1: return imp_grammar_from_regex((const char *)p + 1, n - 1, g, err);
    default: {
        json_t *s = json_loadb((const char *)p + 1, n - 1, JSON_DECODE_ANY, NULL);
        if (s == NULL) return IMP_INVALID;
        imp_status st = imp_grammar_from_schema(s, g, err);
        json_decref(s);
        return st;
    }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    imp_tokenizer *t;
    imp_grammar *g = NULL;
    imp_masker *m;
    imp_matcher *x;
    imp_error err;
    if (n < 2) return 0;
    if (compile(p, n, &g, &err) != IMP_OK) {
        if (g != NULL) abort();
        return 0;
    }
    imp_vocab_tree *v = tree(&t);
    if (imp_masker_new(g, v, 1 << 20, &m) != IMP_OK || imp_matcher_new(m, &x) != IMP_OK) abort();
    for (size_t i = 0; i < 40; i++) {
        uint32_t mask = 0;
        if (imp_matcher_mask(x, &mask, &err) != IMP_OK)
            break; /* too ambiguous, or a character this vocabulary lacks */
        int32_t id = (int32_t)(p[i % n] % 21);
        while (!(mask >> id & 1)) id = (id + 1) % 21;
        if (!imp_matcher_accept(x, id)) abort();
        if (id == 0) break;
    }
    imp_matcher_free(x);
    imp_masker_unref(m);
    imp_grammar_unref(g);
    imp_vocab_tree_free(v);
    imp_tokenizer_free(t);
    return 0;
}
