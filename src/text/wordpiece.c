/* text/wordpiece.c - BERT's model: the longest piece at the start of a word, then the longest continuations.
 *
 * Place:   encode.c, for each word.
 * Idea:    tokenizer.json spells continuations "##ing" and word starts bare; GGUF spells starts with U+2581 and
 *          continuations bare. Both are a prefix for each of the two roles. A word that cannot be covered, or has more
 *          characters than the model allows, is one unknown token.
 * Source:  Devlin et al. 2018; Hugging Face tokenizers models/wordpiece. */
#include "text/internal.h"

/* The longest piece at s + at, or TOK_NONE. *len: its bytes in the word. */
static imp_status longest(imp_tok_work *w, const char *s, size_t n, size_t at, uint32_t *id, size_t *len)
{
    const imp_tokenizer *t = w->t;
    imp_vocab_str prefix = at ? t->cont : t->word;
    if (prefix.n > t->max_piece) prefix.n = 0; /* no piece can start so */
    n = IMP_MIN(n, at + t->max_piece - prefix.n);
    w->key.n = 0;
    imp_buf_add(&w->key, prefix.p, prefix.n);
    imp_buf_add(&w->key, s + at, n - at);
    if (w->key.failed) return imp_tok_nomem(w->err);
    *id = TOK_NONE;
    for (size_t end = n; end > at && *id == TOK_NONE; end--) {
        if (end < n && ((uint8_t)s[end] & 0xC0) == 0x80) continue; /* inside a character */
        *id = imp_tok_lookup(t, w->key.data, prefix.n + end - at);
        *len = end - at;
    }
    return IMP_OK;
}

imp_status imp_wordpiece_encode(imp_tok_work *w, const char *s, size_t n)
{
    const imp_tokenizer *t = w->t;
    size_t chars = 0, first = w->out->n, len = 0;
    for (size_t i = 0; i < n && chars <= t->max_word_chars; i++) chars += ((uint8_t)s[i] & 0xC0) != 0x80;
    bool bad = chars > t->max_word_chars;
    for (size_t at = 0; !bad && at < n; at += len) {
        uint32_t id = TOK_NONE;
        IMP_TRY(longest(w, s, n, at, &id, &len));
        if (id == TOK_NONE)
            bad = true;
        else
            IMP_TRY(imp_tok_push(w, id));
    }
    if (!bad) return IMP_OK;
    w->out->n = first;
    return t->unk != TOK_NONE ? imp_tok_push(w, t->unk) : IMP_OK;
}
