/* text/json_steps.h - the steps of a tokenizer.json, read into a tokenizer; shared by from_json.c and json_steps.c. */
#ifndef IMP_TEXT_JSON_STEPS_H
#define IMP_TEXT_JSON_STEPS_H

#include "text/internal.h"

/* Each takes the value of the key of that name; JSON null means no such step. UNSUPPORTED names a step, a field or a
 * value that is not understood. */
IMP_MUST_USE imp_status imp_json_normalizer(imp_tokenizer *t, const json_t *j, imp_error *err);
IMP_MUST_USE imp_status imp_json_pre_tokenizer(imp_tokenizer *t, const json_t *j, imp_error *err);
IMP_MUST_USE imp_status imp_json_post_processor(imp_tokenizer *t, const json_t *j, imp_error *err);
IMP_MUST_USE imp_status imp_json_decoder(imp_tokenizer *t, const json_t *j, imp_error *err);

/* j is an object and has no key but those of the space-separated list. what: for the message. */
IMP_MUST_USE imp_status imp_json_only(const json_t *j, const char *what, const char *keys, imp_error *err);
/* A field that must be there; *out borrowed from j. */
IMP_MUST_USE imp_status imp_json_string(const json_t *j, const char *what, const char *key,
                                        imp_vocab_str *out, imp_error *err);
IMP_MUST_USE imp_status imp_json_bool(const json_t *j, const char *what, const char *key, bool *out,
                                      imp_error *err);
/* A field that may be absent or null: fallback then. */
IMP_MUST_USE imp_status imp_json_bool_or(const json_t *j, const char *what, const char *key, bool fallback,
                                         bool *out, imp_error *err);

#endif
