/* text/grammar.h - constrained output: which tokens may come next, so that the whole answer fits a grammar.
 *
 * Place:   layer 2. api compiles what a request asks for (a JSON schema, GBNF, a regular expression, choices), sched asks
 *          a matcher for the mask of every step.
 * Idea:    everything becomes one byte automaton with calls (grammar/nfa.c); its states with their stacks are numbered as
 *          they are met, so that walking a vocabulary is table look-up (grammar/masker.c).
 * Always:  a text that a matcher accepted to its end is in the grammar's language; constraints are never loosened.
 * Threads: a grammar is read-only; a masker locks itself; a matcher belongs to one thread. */
#ifndef IMP_GRAMMAR_H
#define IMP_GRAMMAR_H

#include "text/tokenizer.h"

typedef struct imp_grammar imp_grammar; /* compiled, reference counted */
void imp_grammar_ref(imp_grammar *g);
void imp_grammar_unref(imp_grammar *g); /* NULL is allowed */
size_t imp_grammar_bytes(const imp_grammar *g);

/* All four: INVALID with what is wrong (position where the input is text); UNSUPPORTED names the construct or keyword
 * that is not kept to; TOO_LARGE when it needs more states than we allow. Bounded time: 50 ms for any input. */

/* Any JSON value that validates against the schema (draft 2020-12; docs/constraints.md lists the keywords). Properties
 * come in the schema's order. The language may be narrower than the schema, never wider. */
IMP_MUST_USE imp_status imp_grammar_from_schema(const json_t *schema, imp_grammar **out, imp_error *err);
/* Any JSON object. */
IMP_MUST_USE imp_status imp_grammar_json_object(imp_grammar **out, imp_error *err);
/* GBNF as llama.cpp reads it; the answer is what `root` gives. */
IMP_MUST_USE imp_status imp_grammar_from_gbnf(const char *text, size_t n, imp_grammar **out, imp_error *err);
/* The whole answer matches (anchored at both ends): literals, classes, groups, | ? * + {m,n}, \d \w \s \uXXXX ... */
IMP_MUST_USE imp_status imp_grammar_from_regex(const char *re, size_t n, imp_grammar **out, imp_error *err);
IMP_MUST_USE imp_status imp_grammar_from_choice(const char *const *choice, size_t n, imp_grammar **out,
                                                imp_error *err);

/* A vocabulary as a tree of bytes; made once a model. */
typedef struct imp_vocab_tree imp_vocab_tree;
/* end: the ids that end an answer (allowed exactly where the grammar may end). The tokenizer is borrowed for the call. */
IMP_MUST_USE imp_status imp_vocab_tree_new(const imp_tokenizer *t, const int32_t *end, size_t n_end,
                                           imp_vocab_tree **out, imp_error *err);
void imp_vocab_tree_free(imp_vocab_tree *v);
size_t imp_vocab_tree_bytes(const imp_vocab_tree *v);

/* A grammar over a vocabulary, with everything found out about it so far; shared by the requests that use it. */
typedef struct imp_masker imp_masker;
/* Takes its own reference of g; v stays borrowed. max_bytes: what it may remember; beyond that it starts anew. */
IMP_MUST_USE imp_status imp_masker_new(imp_grammar *g, const imp_vocab_tree *v, size_t max_bytes,
                                       imp_masker **out);
void imp_masker_ref(imp_masker *m);
void imp_masker_unref(imp_masker *m); /* NULL is allowed */

/* One answer on its way through the grammar. */
typedef struct imp_matcher imp_matcher;
IMP_MUST_USE imp_status imp_matcher_new(imp_masker *m, imp_matcher **out); /* takes its own reference of m */
void imp_matcher_free(imp_matcher *m);                                     /* NULL is allowed */
/* mask: [(n_vocab + 31) / 32], bit i of word i / 32: token i may come next. NOMEM; INVALID: the grammar is too ambiguous
 * here, or no token of this vocabulary continues it. */
IMP_MUST_USE imp_status imp_matcher_mask(imp_matcher *m, uint32_t *mask, imp_error *err);
/* The token was chosen. false: it was not allowed (nothing changes). */
bool imp_matcher_accept(imp_matcher *m, int32_t id);
/* The bytes that must come next whatever is chosen (may be none); at most 256. Appended to out. */
void imp_matcher_forced(imp_matcher *m, imp_buf *out);
/* How many bytes of text, from here, the grammar takes; does not move. */
size_t imp_matcher_prefix(imp_matcher *m, const char *text, size_t n);
bool imp_matcher_can_end(imp_matcher *m);  /* the answer may stop here */
bool imp_matcher_must_end(imp_matcher *m); /* nothing can follow */

#endif
