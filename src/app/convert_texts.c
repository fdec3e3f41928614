/* app/convert_texts.c - texts for calibrating and verifying conversions. */
#include "app/convert.h"

static const char *const own_texts[] = {
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset the password of my account?",
    "I forgot my login and need a new password.",
    "The train to the coast leaves at seven in the morning.",
    "Morning trains to the sea depart hourly.",
    "A recipe for bread needs flour, water, salt and yeast.",
    "Sourdough takes a day to rise.",
    "The court ruled that the contract was void.",
    "Interest rates rose by a quarter of a point.",
    "The central bank raised its key rate.",
    "Photosynthesis turns light into chemical energy.",
    "Plants make sugar from sunlight.",
    "She plays the violin in the city's orchestra.",
    "The orchestra is looking for a new violinist.",
    "Version 2.0 fixes a crash when the file is empty.",
    "An empty file no longer makes the program crash.",
};

static bool grow(conv_texts *t)
{
    if (t->n < t->cap) return true;
    uint32_t cap = t->cap > 0 ? 2 * t->cap : 256;
    imp_ids *ids = imp_sys_realloc(t->ids, cap * sizeof *ids);
    if (ids != NULL) t->ids = ids;
    imp_ml_text *text = imp_sys_realloc(t->text, cap * sizeof *text);
    if (text != NULL) t->text = text;
    if (ids == NULL || text == NULL) return false;
    t->cap = cap;
    return true;
}

static imp_status add(conversion *c, conv_texts *t, const char *p, size_t n)
{
    imp_ids ids = {0};
    uint32_t longest = c->opt.bucket[c->opt.n_bucket - 1];
    if (n == 0) return IMP_OK;
    imp_status s = imp_tokenizer_encode(c->net->tok, p, n, IMP_TOK_ADD_SPECIAL, &ids, &c->a->err);
    if (s == IMP_OK && !grow(t)) s = imp_fail(&c->a->err, IMP_NOMEM, "out of memory");
    if (s != IMP_OK || ids.n == 0 || ids.n > longest) {
        imp_ids_deinit(&ids);
        return s;
    }
    t->n_tok += ids.n;
    t->text[t->n] = (imp_ml_text){ids.id, (uint32_t)ids.n};
    t->ids[t->n++] = ids;
    return IMP_OK;
}

imp_status conv_read_texts(conversion *c, const char *path, uint64_t most_tok, conv_texts *t)
{
    if (c->net->tok == NULL)
        return imp_fail(&c->a->err, IMP_UNSUPPORTED, "texts need a tokenizer, the model has none");
    if (path == NULL) {
        for (size_t i = 0; i < IMP_COUNT(own_texts); i++)
            IMP_TRY(add(c, t, own_texts[i], strlen(own_texts[i])));
    } else {
        imp_sys_file f;
        IMP_TRY(imp_sys_file_open(path, true, &f, &c->a->err));
        imp_status s = IMP_OK;
        const char *p = (const char *)f.data, *end = p + f.n;
        while (s == IMP_OK && p < end && t->n_tok < most_tok) {
            const char *nl = memchr(p, '\n', (size_t)(end - p));
            size_t n = (size_t)((nl != NULL ? nl : end) - p);
            s = add(c, t, p, n);
            p += n + 1;
        }
        imp_sys_file_close(&f);
        IMP_TRY(s);
    }
    if (t->n < 3)
        return imp_fail(&c->a->err, IMP_INVALID, "'%.200s' has fewer than 3 lines that fit the lengths",
                        path != NULL ? path : "the built-in text");
    return IMP_OK;
}

void conv_texts_deinit(conv_texts *t)
{
    for (uint32_t i = 0; i < t->n; i++) imp_ids_deinit(&t->ids[i]);
    imp_sys_free(t->ids);
    imp_sys_free(t->text);
    *t = (conv_texts){0};
}
