/* text/chat.c - the prompt text of a chat for five known template families.
 *
 * Idea:    a family is chosen only when its control tokens exist in the vocabulary as tokens of their own; a model
 *          whose template spells other control tokens is refused, so that a chat never runs under a wrong format.
 *          BOS is not written here: encoding adds it where the model wants it.
 * Source:  the published chat templates of Qwen, Llama 3, Gemma 2 and Mistral Instruct. */
#include "text/chat.h"

/* What marks each family: all of `token` in the vocabulary, `needle` in the template when there is one. */
static const struct family {
    const char *name;
    const char *token[3];
    const char *needle;
} family[] = {
    [IMP_CHAT_CHATML] = {"chatml", {"<|im_start|>", "<|im_end|>", NULL}, "<|im_start|>"},
    [IMP_CHAT_LLAMA3] = {"llama3",
                         {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
                         "<|start_header_id|>"},
    [IMP_CHAT_GEMMA] = {"gemma", {"<start_of_turn>", "<end_of_turn>", NULL}, "<start_of_turn>"},
    [IMP_CHAT_MISTRAL] = {"mistral", {"[INST]", "[/INST]", NULL}, "[INST]"},
    [IMP_CHAT_PLAIN] = {"plain", {NULL, NULL, NULL}, NULL},
};

static bool has_tokens(const imp_tokenizer *t, const struct family *f)
{
    for (size_t i = 0; i < IMP_COUNT(f->token) && f->token[i] != NULL; i++) {
        int32_t id = imp_tokenizer_find(t, f->token[i], strlen(f->token[i]));
        if (id < 0) return false;
        imp_token_kind k = imp_tokenizer_kind(t, id);
        if (k != IMP_TOKEN_CONTROL && k != IMP_TOKEN_USER) return false;
    }
    return true;
}

/* A vocabulary whose only control tokens are BOS, EOS, unknown and padding knows no chat format of its own. */
static bool is_bare(const imp_tokenizer *t)
{
    for (size_t i = 0; i < imp_tokenizer_n(t); i++) {
        int32_t id = (int32_t)i;
        if (imp_tokenizer_kind(t, id) == IMP_TOKEN_CONTROL && id != imp_tokenizer_bos(t) &&
            id != imp_tokenizer_eos(t) && id != imp_tokenizer_unk(t) && id != imp_tokenizer_pad(t))
            return false;
    }
    return true;
}

imp_chat_family imp_chat_detect(const imp_tokenizer *t, const char *chat_template)
{
    for (int f = IMP_CHAT_CHATML; f < IMP_CHAT_PLAIN; f++) {
        if (!has_tokens(t, &family[f])) continue;
        if (chat_template == NULL) return (imp_chat_family)f;
        /* Later Mistral formats put the system text into a block of its own. */
        bool other = f == IMP_CHAT_MISTRAL && strstr(chat_template, "[SYSTEM_PROMPT]") != NULL;
        if (!other && strstr(chat_template, family[f].needle) != NULL) return (imp_chat_family)f;
    }
    return chat_template == NULL && is_bare(t) ? IMP_CHAT_PLAIN : IMP_CHAT_NONE;
}

const char *imp_chat_name(imp_chat_family f)
{
    return f == IMP_CHAT_NONE ? NULL : family[f].name;
}

static bool is_role(const imp_message *m, const char *role)
{
    return strcmp(m->role, role) == 0;
}

static void tagged(imp_buf *out, const char *before, const char *role, const char *between, const char *text,
                   const char *after)
{
    imp_buf_str(out, before);
    imp_buf_str(out, role);
    imp_buf_str(out, between);
    imp_buf_str(out, text);
    imp_buf_str(out, after);
}

/* Gemma and Mistral have no system role: its text goes in front of the first user message. */
static imp_status alternating(imp_chat_family f, const imp_message *msgs, size_t n, imp_buf *out,
                              imp_error *err)
{
    const char *system = NULL;
    size_t first = 0;
    if (n > 0 && is_role(&msgs[0], "system")) {
        system = msgs[0].content;
        first = 1;
    }
    for (size_t i = first; i < n; i++) {
        bool user = (i - first) % 2 == 0;
        if (!is_role(&msgs[i], user ? "user" : "assistant"))
            return imp_fail_field(
                err, IMP_INVALID, "messages",
                "this model's chat format wants user and assistant in turn; message %zu has role \"%s\"", i,
                msgs[i].role);
        if (user) {
            imp_buf_str(out, f == IMP_CHAT_GEMMA ? "<start_of_turn>user\n" : "[INST] ");
            if (i == first && system != NULL) {
                imp_buf_str(out, system);
                imp_buf_str(out, "\n\n");
            }
            imp_buf_str(out, msgs[i].content);
            imp_buf_str(out, f == IMP_CHAT_GEMMA ? "<end_of_turn>\n" : "[/INST]");
        } else if (f == IMP_CHAT_GEMMA) {
            tagged(out, "<start_of_turn>", "model", "\n", msgs[i].content, "<end_of_turn>\n");
        } else {
            tagged(out, " ", msgs[i].content, "", "", "</s>");
        }
    }
    if (n == first || is_role(&msgs[n - 1], "assistant"))
        return imp_fail_field(err, IMP_INVALID, "messages", "the last message must be the user's");
    if (f == IMP_CHAT_GEMMA) imp_buf_str(out, "<start_of_turn>model\n");
    return IMP_OK;
}

imp_status imp_chat_format(imp_chat_family f, const imp_message *msgs, size_t n, imp_buf *out, imp_error *err)
{
    if (f == IMP_CHAT_NONE)
        return imp_fail_field(err, IMP_UNSUPPORTED, "messages",
                              "this model's chat template is not known; use /v1/completions, or a model with "
                              "a known chat format");
    if (n == 0) return imp_fail_field(err, IMP_INVALID, "messages", "messages is empty");
    for (size_t i = 0; i < n; i++)
        if (!is_role(&msgs[i], "system") && !is_role(&msgs[i], "user") && !is_role(&msgs[i], "assistant"))
            return imp_fail_field(err, IMP_INVALID, "messages", "message %zu has an unknown role \"%.40s\"",
                                  i, msgs[i].role);
    if (f == IMP_CHAT_GEMMA || f == IMP_CHAT_MISTRAL) {
        IMP_TRY(alternating(f, msgs, n, out, err));
    } else if (f == IMP_CHAT_CHATML) {
        for (size_t i = 0; i < n; i++)
            tagged(out, "<|im_start|>", msgs[i].role, "\n", msgs[i].content, "<|im_end|>\n");
        imp_buf_str(out, "<|im_start|>assistant\n");
    } else if (f == IMP_CHAT_LLAMA3) {
        for (size_t i = 0; i < n; i++)
            tagged(out, "<|start_header_id|>", msgs[i].role, "<|end_header_id|>\n\n", msgs[i].content,
                   "<|eot_id|>");
        imp_buf_str(out, "<|start_header_id|>assistant<|end_header_id|>\n\n");
    } else {
        for (size_t i = 0; i < n; i++) tagged(out, "", msgs[i].role, ": ", msgs[i].content, "\n");
        imp_buf_str(out, "assistant:");
    }
    return out->failed ? imp_fail(err, IMP_NOMEM, "not enough memory for the prompt") : IMP_OK;
}
