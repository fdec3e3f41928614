/* sched/constrain.c - answers that must follow a constraint (text/grammar.h), token by token.
 *
 * Place:   step.c asks for the mask before it chooses and tells what was chosen.
 * Idea:    text that must follow whatever the model says is appended at once and computed in one step with the next token:
 *          all its tokens but the last, whose end may belong to a longer token.
 * Always:  the answer's text is the same with and without that; only where words are cut into tokens may differ. */
#include "sched/sched_int.h"

imp_status imp_constrain_mask(imp_sched *s, job *j, const uint32_t **mask, imp_error *err)
{
    *mask = NULL;
    if (j->matcher == NULL) return IMP_OK;
    *mask = s->scratch.mask;
    return imp_matcher_mask(j->matcher, s->scratch.mask, err);
}

/* How many of the tokens may be appended: all but the last, as long as their bytes are those of the text. */
static size_t usable(const imp_tokenizer *tok, const imp_ids *ids, const imp_buf *text)
{
    imp_buf b = {0};
    size_t n = 0, same = 0;
    for (; n < ids->n && !b.failed; n++) {
        imp_token_spell(tok, ids->id[n], &b);
        if (b.n > text->n || memcmp(b.data, text->data, b.n) != 0) break;
        same = b.n;
    }
    imp_buf_deinit(&b);
    return n == ids->n && same == text->n && n > 0 ? n - 1 : 0;
}

/* Append what must follow. true: that ended the answer. */
static bool force(imp_sched *s, job *j)
{
    const imp_tokenizer *tok = s->c.net->tok;
    imp_buf text = {0};
    imp_ids ids = {0};
    imp_error err;
    bool stopped = false;
    imp_matcher_forced(j->matcher, &text);
    if (text.n > 1 && !text.failed &&
        imp_tokenizer_encode(tok, text.data, text.n, IMP_TOK_PARSE_SPECIAL, &ids, &err) == IMP_OK) {
        size_t n = usable(tok, &ids, &text);
        for (size_t i = 0; i < n && !stopped && j->n_ids + 1 < j->cap_ids; i++) {
            if (!imp_matcher_accept(j->matcher, ids.id[i])) break;
            stopped = imp_job_token(j, ids.id[i], &s->scratch, NULL, false);
        }
    }
    imp_ids_deinit(&ids);
    imp_buf_deinit(&text);
    return stopped;
}

bool imp_constrain_follow(imp_sched *s, job *j, int32_t id)
{
    if (j->matcher == NULL) return false;
    if (!imp_matcher_accept(j->matcher, id) || imp_matcher_must_end(j->matcher)) return true;
    return !j->r.want_logprobs && !j->split &&
           force(s, j); /* what was not chosen has no probability to tell */
}
