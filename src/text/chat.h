/* text/chat.h - the prompt text of a chat, for the template families whose special tokens we recognise. */
#ifndef IMP_CHAT_H
#define IMP_CHAT_H

#include "text/tokenizer.h"

typedef enum imp_chat_family {
    IMP_CHAT_NONE,
    IMP_CHAT_CHATML,
    IMP_CHAT_LLAMA3,
    IMP_CHAT_GEMMA,
    IMP_CHAT_MISTRAL,
    IMP_CHAT_PLAIN
} imp_chat_family;

/* By exact match: every control token the family needs is in the vocabulary as one token, and the model's template
 * text (may be NULL) spells them. NONE: chat must be refused. */
imp_chat_family imp_chat_detect(const imp_tokenizer *t, const char *chat_template);
const char *imp_chat_name(imp_chat_family f); /* "chatml"; NULL for NONE */
/* Append the prompt, up to where the assistant's answer begins. INVALID: a role or order the family does not have. */
IMP_MUST_USE imp_status imp_chat_format(imp_chat_family f, const imp_message *msgs, size_t n_msgs,
                                        imp_buf *out, imp_error *err);

#endif
