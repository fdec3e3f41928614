/* text/regex.h - regular expressions of tokenizers, on PCRE2.
 *
 * Place:   pre-tokenizer and normaliser steps.
 * Idea:    tokenizer files are written for Oniguruma (Ruby syntax); what it and PCRE2 read differently is translated,
 *          what cannot be is refused by name. Matching runs under limits, so a hostile pattern gives an error.
 * Threads: an imp_regex is read-only; an imp_match belongs to one thread. */
#ifndef IMP_REGEX_H
#define IMP_REGEX_H

#include "base/base.h"

typedef struct imp_regex imp_regex;
typedef struct imp_match imp_match;

/* UNSUPPORTED: a construct we do not translate; FORMAT: not a regular expression. */
IMP_MUST_USE imp_status imp_regex_new(const char *pattern, size_t n, imp_regex **out, imp_error *err);
void imp_regex_free(imp_regex *re);

imp_match *imp_match_new(void); /* NULL: out of memory */
void imp_match_free(imp_match *m);

/* The first match at or after start in s[0..n-1], which must be valid UTF-8: *found, *begin, *end. INVALID: the
 * pattern needs more steps or memory on this text than is allowed. */
IMP_MUST_USE imp_status imp_regex_find(const imp_regex *re, imp_match *m, const char *s, size_t n,
                                       size_t start, bool *found, size_t *begin, size_t *end, imp_error *err);

#endif
