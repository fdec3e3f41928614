/* app/check_text.c - the tokenizer's part of `impetus check`.
 *
 * Idea:    a text must come back as it was (byte-level vocabularies), or, where a vocabulary normalises (lower case,
 *          spaces), its ids must: encode(decode(ids)) == ids. A text with unknown tokens cannot come back and is only
 *          counted. Special tokens must lie in the vocabulary and be of a special kind. */
#include "app/check.h"

static const char *const samples[] = {
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces, a tab\there, and\n\nempty lines\n",
    "Numbers: 1 22 333 4444 55555, 3.14159, 1e-9",
    "for (int i = 0; i < n; i++) { a[i] += b[i] * c; } // sum",
    "don't, I'll, we've, you're",
    "Stra\xC3\x9F"
    "e, na\xC3\xAFve, \xC3\x85ngstr\xC3\xB6m, e\xCC\x81",           /* composed and combining accents */
    "\xE4\xBD\xA0\xE5\xA5\xBD\xEF\xBC\x8C\xE4\xB8\x96\xE7\x95\x8C", /* Chinese */
    "\xD0\x9F\xD1\x80\xD0\xB8\xD0\xB2\xD0\xB5\xD1\x82 \xD0\xBC\xD0\xB8\xD1\x80",  /* Russian */
    "\xD7\xA9\xD7\x9C\xD7\x95\xD7\x9D, \xD9\x85\xD8\xB1\xD8\xAD\xD8\xA8\xD8\xA7", /* Hebrew, Arabic */
    "\xF0\x9F\x99\x82 \xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x92\xBB "
    "\xF0\x9F\x87\xA9\xF0\x9F\x87\xAA", /* emoji, joined, a flag */
};

static bool has_unknown(const imp_tokenizer *t, const imp_ids *ids)
{
    for (size_t i = 0; i < ids->n; i++)
        if (ids->id[i] == imp_tokenizer_unk(t)) return true;
    return false;
}

typedef struct trip {
    imp_ids ids, again;
    imp_buf text;
    bool same_text, same_ids, unknown;
} trip;

static imp_status go_and_return(const imp_tokenizer *t, const char *text, size_t n, trip *p, imp_error *err)
{
    IMP_TRY(imp_tokenizer_encode(t, text, n, 0, &p->ids, err));
    p->unknown = has_unknown(t, &p->ids);
    IMP_TRY(imp_tokenizer_decode(t, p->ids.id, p->ids.n, false, &p->text, err));
    if (p->text.failed) return imp_fail(err, IMP_NOMEM, "out of memory");
    p->same_text = p->text.n == n && !memcmp(p->text.data, text, n);
    IMP_TRY(imp_tokenizer_encode(t, p->text.data ? p->text.data : "", p->text.n, 0, &p->again, err));
    p->same_ids = p->again.n == p->ids.n && !memcmp(p->again.id, p->ids.id, p->ids.n * sizeof *p->ids.id);
    return IMP_OK;
}

static imp_status check_samples(app_report *r, const imp_tokenizer *t, size_t *n_unknown)
{
    bool exact = !strncmp(imp_tokenizer_describe(t), "byte-level", 10);
    for (size_t i = 0; i < IMP_COUNT(samples); i++) {
        trip p = {0};
        imp_status s = go_and_return(t, samples[i], strlen(samples[i]), &p, &r->a->err);
        if (s == IMP_OK) {
            r->n_round_trip++;
            *n_unknown += p.unknown;
            if (!p.same_text && !p.unknown) {
                if (exact || !p.same_ids)
                    app_problem(r, "the tokenizer turns \"%s\" into \"%.*s\"", samples[i], (int)p.text.n,
                                p.text.data ? p.text.data : "");
                else
                    r->n_normalised++;
            }
        } else if (s != IMP_NOMEM) {
            app_problem(r, "the tokenizer refuses \"%s\": %s", samples[i], r->a->err.text);
        }
        imp_ids_deinit(&p.ids);
        imp_ids_deinit(&p.again);
        imp_buf_deinit(&p.text);
        if (s == IMP_NOMEM) return s;
    }
    return IMP_OK;
}

static void check_special(app_report *r, const imp_tokenizer *t, const char *name, int32_t id, json_t *list)
{
    size_t n = 0;
    const char *piece = id >= 0 ? imp_tokenizer_piece(t, id, &n) : NULL;
    if (id >= 0 && !piece) app_problem(r, "the %s token %d lies outside the vocabulary", name, id);
    json_object_set_new(
        list, name,
        id < 0 ? json_null()
               : json_pack("{s:i, s:o}", "id", (int)id, "piece", app_json_text(piece ? piece : "", n)));
}

imp_status app_check_tokenizer(app_report *r, const imp_net *net)
{
    const imp_tokenizer *t = net->tok;
    json_t *special = json_object();
    size_t n_unknown = 0;
    check_special(r, t, "bos", imp_tokenizer_bos(t), special);
    check_special(r, t, "eos", imp_tokenizer_eos(t), special);
    check_special(r, t, "unk", imp_tokenizer_unk(t), special);
    check_special(r, t, "pad", imp_tokenizer_pad(t), special);
    if (net->cfg.can_generate && net->cfg.n_eos == 0)
        app_problem(r, "no end-of-text token is named: answers would only end at their length limit");
    if (imp_tokenizer_n(t) > net->cfg.n_vocab)
        app_problem(r, "the tokenizer has %zu tokens, the model's vocabulary only %u", imp_tokenizer_n(t),
                    net->cfg.n_vocab);
    IMP_TRY(check_samples(r, t, &n_unknown));
    json_object_set_new(r->tokenizer, "kind", json_string(imp_tokenizer_describe(t)));
    json_object_set_new(r->tokenizer, "tokens", json_integer((json_int_t)imp_tokenizer_n(t)));
    json_object_set_new(r->tokenizer, "texts", json_integer((json_int_t)r->n_round_trip));
    json_object_set_new(r->tokenizer, "normalised", json_integer((json_int_t)r->n_normalised));
    json_object_set_new(r->tokenizer, "with_unknown", json_integer((json_int_t)n_unknown));
    json_object_set_new(r->tokenizer, "special", special);
    return IMP_OK;
}
