/* text/unigram.c - SentencePiece's unigram model: the segmentation with the largest sum of scores.
 *
 * Place:   encode.c, for each word.
 * Idea:    Viterbi over byte positions: from each character start, every piece that begins there offers a path to its
 *          end; a character that is no piece by itself is offered as unknown, 10 below the lowest score.
 * Source:  Kudo 2018; Hugging Face tokenizers models/unigram. */
#include "text/internal.h"

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
        double score = here + t->score[id];
        if (to->start == SIZE_MAX || score > to->score) *to = (imp_best){score, at, 0, id};
        if (k + 1 - at == len) single = true;
    }
    imp_best *to = &best[at + len];
    double score = here + t->unk_score;
    if (!single && (to->start == SIZE_MAX || score > to->score)) *to = (imp_best){score, at, 0, TOK_NONE};
}

static imp_status emit(imp_tok_work *w, const char *s, size_t n)
{
    for (size_t end = n; end > 0; end = w->best[end].start) w->best[w->best[end].start].next = end;
    bool fused = false;
    for (size_t i = 0; i < n; i = w->best[i].next) {
        size_t end = w->best[i].next;
        uint32_t id = w->best[end].id;
        if (id == TOK_NONE) {
            IMP_TRY(imp_tok_push_missing(w, s + i, end - i, &fused));
        } else {
            IMP_TRY(imp_tok_push(w, id));
            fused = false;
        }
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
