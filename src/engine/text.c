/* engine/text.c - tokens and chats of a loaded model, through impetus.h. */
#include "engine/engine_int.h"

static imp_status need_tokenizer(const imp_model *m, imp_error *err)
{
    if (m->net->tok != NULL) return IMP_OK;
    return imp_fail(err, IMP_UNSUPPORTED, "this model has no tokenizer; send token ids instead of text");
}

imp_status imp_tokenize(const imp_model *m, const char *text, size_t n_text, unsigned flags,
                        int32_t **out_ids, size_t *out_n, imp_error *err)
{
    *out_ids = NULL;
    *out_n = 0;
    IMP_TRY(need_tokenizer(m, err));
    imp_ids ids = {0};
    imp_status s = imp_tokenizer_encode(m->net->tok, text, n_text, flags, &ids, err);
    if (s != IMP_OK) {
        imp_ids_deinit(&ids);
        return s;
    }
    if (ids.id == NULL) ids.id = imp_sys_malloc(1);
    if (ids.id == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for the tokens");
    *out_ids = ids.id;
    *out_n = ids.n;
    return IMP_OK;
}

imp_status imp_detokenize(const imp_model *m, const int32_t *ids, size_t n, bool special, char **out_text,
                          size_t *out_n, imp_error *err)
{
    *out_text = NULL;
    *out_n = 0;
    IMP_TRY(need_tokenizer(m, err));
    imp_buf b = {0};
    imp_status s = imp_tokenizer_decode(m->net->tok, ids, n, special, &b, err);
    if (s != IMP_OK) {
        imp_buf_deinit(&b);
        return s;
    }
    *out_n = b.n;
    *out_text = imp_buf_take(&b);
    return *out_text == NULL ? imp_fail(err, IMP_NOMEM, "not enough memory for the text") : IMP_OK;
}

const char *imp_token_piece(const imp_model *m, int32_t id, size_t *n_out)
{
    *n_out = 0;
    return m->net->tok == NULL ? NULL : imp_tokenizer_piece(m->net->tok, id, n_out);
}

imp_status imp_chat_render(const imp_model *m, const imp_message *msgs, size_t n_msgs, char **out_text,
                           imp_error *err)
{
    *out_text = NULL;
    imp_buf b = {0};
    imp_status s = imp_chat_format(m->chat, msgs, n_msgs, &b, err);
    if (s == IMP_OK) {
        *out_text = imp_buf_take(&b);
        if (*out_text == NULL) s = imp_fail(err, IMP_NOMEM, "not enough memory for the prompt");
    }
    imp_buf_deinit(&b);
    return s;
}
