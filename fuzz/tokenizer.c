/* fuzz/tokenizer.c - any bytes as a tokenizer and a text: it is refused with a reason, or it encodes, and what it
 * encodes decodes, whole and as a stream, to the same valid UTF-8.
 *
 * Input: 'J', the text of a tokenizer.json, 0xFF, a text; or fields divided by 0x1E: 'V' and one character each for the
 * model, the pre-tokenizer and options, then pieces (divided by 0x1F, the first byte of each its kind), merges (divided
 * by 0x1F), a character map, a text.
 *
 * Run by `make fuzz`; its corpus is replayed by `make test`. */
#include <stdlib.h>

#include "text/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_PIECE = 2000 };

static void require(bool ok)
{
    if (!ok) abort();
}

static void check_ids(const imp_tokenizer *t, const imp_ids *ids, bool special)
{
    imp_buf all = {0}, stream = {0};
    imp_error err = {0};
    imp_detok d;
    require(imp_tokenizer_decode(t, ids->id, ids->n, special, &all, &err) == IMP_OK);
    imp_detok_init(&d, t, special);
    for (size_t i = 0; i < ids->n; i++) {
        size_t before = stream.n;
        require(ids->id[i] >= 0 && (size_t)ids->id[i] < imp_tokenizer_n(t));
        imp_detok_push(&d, ids->id[i], &stream);
        require(stream.n == before || imp_utf8_valid(stream.data + before, stream.n - before));
    }
    imp_detok_flush(&d, &stream);
    require(stream.n == all.n && (all.n == 0 || memcmp(stream.data, all.data, all.n) == 0));
    imp_buf_deinit(&all);
    imp_buf_deinit(&stream);
}

static void use(const imp_tokenizer *t, const char *text, size_t n)
{
    for (unsigned flags = 0; flags < 4; flags++) {
        imp_ids ids = {0};
        imp_error err = {0};
        imp_status s = imp_tokenizer_encode(t, text, n, flags, &ids, &err);
        require(s == IMP_OK || (err.status == s && err.text[0] && ids.n == 0));
        check_ids(t, &ids, flags & 1);
        imp_ids_deinit(&ids);
    }
    imp_ids every = {0};
    every.n = every.cap = IMP_MIN(imp_tokenizer_n(t), (size_t)512);
    every.id = imp_sys_malloc(every.n * sizeof *every.id);
    require(every.id != NULL);
    for (size_t i = 0; i < every.n; i++) every.id[i] = (int32_t)(i * 7919 % every.n);
    check_ids(t, &every, false);
    imp_ids_deinit(&every);
}

static void finish(imp_status s, const imp_error *err, imp_tokenizer *t, const char *text, size_t n)
{
    require((s == IMP_OK) == (t != NULL));
    if (!t) {
        require(err->status == s && err->text[0] && !strchr(err->text, '\n'));
        return;
    }
    use(t, text, n);
    imp_tokenizer_free(t);
}

static void from_json(const char *p, size_t n)
{
    const char *cut = memchr(p, 0xFF, n);
    size_t n_json = cut ? (size_t)(cut - p) : n;
    imp_tokenizer *t;
    imp_error err = {0};
    imp_status s = imp_tokenizer_from_json(p, n_json, NULL, &t, &err);
    finish(s, &err, t, cut ? cut + 1 : "", cut ? n - n_json - 1 : 0);
}

typedef struct field {
    const char *p;
    size_t n;
} field;

static field next_field(const char **p, const char *end, char divider)
{
    const char *hit = memchr(*p, divider, (size_t)(end - *p));
    field f = {*p, (size_t)((hit ? hit : end) - *p)};
    *p = hit ? hit + 1 : end;
    return f;
}

static void from_vocab(const char *p, const char *end)
{
    static const char *const pres[] = {"gpt-2",       "llama-bpe", "qwen2",  "deepseek-llm",
                                       "deepseek-v3", "falcon",    "gpt-4o", "none"};
    static imp_vocab_str token[MAX_PIECE], merge[MAX_PIECE];
    static int32_t kind[MAX_PIECE];
    static float score[MAX_PIECE];
    field head = next_field(&p, end, 0x1E), pieces = next_field(&p, end, 0x1E),
          merges = next_field(&p, end, 0x1E);
    field map = next_field(&p, end, 0x1E);
    if (head.n < 3) return;
    imp_vocab v = {.model = (imp_vocab_model)((uint8_t)head.p[0] % 5),
                   .pre = pres[(uint8_t)head.p[1] % IMP_COUNT(pres)]};
    uint8_t opt = (uint8_t)head.p[2];
    for (const char *q = pieces.p, *e = q + pieces.n; q < e && v.n_token < MAX_PIECE; v.n_token++) {
        field f = next_field(&q, e, 0x1F);
        kind[v.n_token] = f.n ? f.p[0] & 7 : 1;
        score[v.n_token] = f.n ? -(float)(uint8_t)f.p[0] : 0;
        token[v.n_token] = (imp_vocab_str){f.n ? f.p + 1 : f.p, f.n ? f.n - 1 : 0};
    }
    for (const char *q = merges.p, *e = q + merges.n; q < e && v.n_merge < MAX_PIECE; v.n_merge++) {
        field f = next_field(&q, e, 0x1F);
        merge[v.n_merge] = (imp_vocab_str){f.p, f.n};
    }
    v.token = token;
    v.kind = kind;
    v.score = opt & 1 ? score : NULL;
    v.merge = merge;
    v.bos = v.eos = v.sep = v.pad = v.cls = v.mask = -1;
    v.unk = opt & 2 ? 0 : -1;
    v.bos = opt & 4 ? 1 : -1;
    v.sep = opt & 8 ? 2 : -1;
    v.add_bos = v.add_eos = -1;
    v.add_space_prefix = opt & 16 ? 0 : -1;
    v.remove_extra_whitespaces = opt & 32;
    v.rstrip_special = opt & 64;
    if (map.n) v.charsmap = map.p, v.n_charsmap = map.n;
    imp_tokenizer *t;
    imp_error err = {0};
    imp_status s = imp_tokenizer_from_vocab(&v, &t, &err);
    finish(s, &err, t, p, (size_t)(end - p));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *p = (const char *)data;
    if (size > 1 && p[0] == 'J') from_json(p + 1, size - 1);
    if (size > 1 && p[0] == 'V') from_vocab(p + 1, p + size);
    return 0;
}
