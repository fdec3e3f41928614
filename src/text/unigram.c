/* text/unigram.c - SentencePiece's unigram model: the segmentation with the largest sum of scores.
 *
 * Place:   encode.c, for each word.
 * Idea:    Viterbi over byte positions: from each character start, every piece that begins there offers a path to its
 *          end; a character that is no piece by itself is offered as unknown, 10 below the lowest score.
 * Source:  Kudo 2018; Hugging Face tokenizers models/unigram. */
#include "text/internal.h"

/* What is kept of a path's score: SentencePiece keeps f32, `tokenizers` f64. */
static double kept(const imp_tokenizer *t, double score)
{
    return t->f32_scores ? (double)(float)score : score;
}

static void relax(const imp_tokenizer *t, imp_best *best, const char *s, size_t n, size_t at, size_t len)
{
    imp_strset_walk walk;
    uint32_t id;
    double here = best[at].score;
    bool single = false;
    imp_strset_begin(&t->trie, &walk);
    for (size_t k = at; k < n && imp_strset_next(&t->trie, &walk, s[k], &id); k++) {
        if (id == TOK_NONE) continue;
        imp_best *to = &best[k + 1];
        double score = kept(t, here + t->score[id]);
        if (to->start == SIZE_MAX || score > to->score) *to = (imp_best){score, at, 0, id};
        if (k + 1 - at == len) single = true;
    }
    imp_best *to = &best[at + len];
    double score = kept(t, here + t->unk_score);
    if (!single && (to->start == SIZE_MAX || score > to->score)) *to = (imp_best){score, at, 0, TOK_NONE};
}

static bool unknown(const imp_tokenizer *t, uint32_t id)
{
    return id == TOK_NONE || id == t->unk;
}

/* A run of unknown pieces is one: its bytes, or the unknown token. */
static imp_status emit(imp_tok_work *w, const char *s, size_t n)
{
    const imp_tokenizer *t = w->t;
    imp_best *best = w->best;
    for (size_t end = n; end > 0; end = best[end].start) best[best[end].start].next = end;
    for (size_t i = 0; i < n;) {
        size_t end = best[i].next;
        uint32_t id = best[end].id;
        while (unknown(t, id) && end < n && unknown(t, best[best[end].next].id)) end = best[end].next;
        bool fused = false;
        if (!unknown(t, id) || (id != TOK_NONE && end == best[i].next))
            IMP_TRY(imp_tok_push(w, id));
        else
            IMP_TRY(imp_tok_push_missing(w, s + i, end - i, &fused));
        i = end;
    }
    return IMP_OK;
}

imp_status imp_unigram_encode(imp_tok_work *w, const char *s, size_t n)
{
    if (!imp_tok_grow((void **)&w->best, &w->best_cap, n + 1, sizeof *w->best)) return imp_tok_nomem(w->err);
    for (size_t i = 0; i <= n; i++) w->best[i] = (imp_best){0, SIZE_MAX, 0, TOK_NONE};
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t len = imp_utf8_decode(s + i, n - i, &cp);
        relax(w->t, w->best, s, n, i, len);
        i += len;
    }
    return emit(w, s, n);
}
