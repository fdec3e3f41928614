/* api/responses.h - what the files of the Responses API share. */
#ifndef IMP_API_RESPONSES_H
#define IMP_API_RESPONSES_H

#include "api/generate.h"

IMP_MUST_USE imp_status imp_responses_new(struct imp_responses **out);
void imp_responses_free(struct imp_responses *r); /* NULL is allowed */
/* Remember a response for its client: the items it stands for, and what was answered. Both are copied. */
void imp_responses_keep(struct imp_responses *r, const char *id, uint64_t client, const imp_buf *items,
                        const imp_buf *answer);

#endif
