/* model/tokenizer_load.c - where the files' vocabularies (fmt) and the tokenizers (text) meet.
 *
 * Place:   called by net.c when a model is opened; text knows no files, fmt no tokenizers.
 * Idea:    GGUF arrays are borrowed as they lie in the file and handed over as one imp_vocab; a Hugging Face folder
 *          hands over its tokenizer.json, or a vocab.txt from which a BERT vocabulary is made.
 * Source:  the GGUF specification, "tokenizer" keys. */
#include "model/tokenizer_load.h"

/* What is read from the file before the tokenizer is built; freed together. */
typedef struct load {
    const imp_gguf *g;
    imp_arena *arena;
    imp_vocab v;
    imp_error *err;
    char pre[64], model[64];
} load;

static imp_status nomem(imp_error *err)
{
    return imp_fail(err, IMP_NOMEM, "out of memory while loading the vocabulary");
}

static imp_status wrong_type(const load *l, const char *key)
{
    return imp_fail_field(l->err, IMP_FORMAT, key, "the key %s has the wrong type", key);
}

static imp_status read_strings(load *l, const char *key, bool needed, const imp_vocab_str **out,
                               size_t *n_out)
{
    imp_gguf_type type;
    uint64_t n;
    *out = NULL;
    *n_out = 0;
    if (!imp_gguf_array(l->g, key, &type, &n)) {
        if (imp_gguf_has(l->g, key)) return wrong_type(l, key);
        return needed ? imp_fail_field(l->err, IMP_INVALID, key, "the key %s is missing", key) : IMP_OK;
    }
    if (type != IMP_GGUF_STRING) return wrong_type(l, key);
    imp_str *raw = imp_arena_array(l->arena, n ? n : 1, sizeof *raw);
    imp_vocab_str *s = imp_arena_array(l->arena, n ? n : 1, sizeof *s);
    if (!raw || !s) return nomem(l->err);
    if (!imp_gguf_array_strs(l->g, key, raw, n)) return wrong_type(l, key);
    for (uint64_t i = 0; i < n; i++) s[i] = (imp_vocab_str){raw[i].p, raw[i].n};
    *out = s;
    *n_out = n;
    return IMP_OK;
}

/* An array that goes beside the tokens; absent is allowed, another length is not. */
static imp_status beside_tokens(const load *l, const char *key, bool *present)
{
    imp_gguf_type type;
    uint64_t n;
    *present = imp_gguf_has(l->g, key);
    if (!*present) return IMP_OK;
    if (!imp_gguf_array(l->g, key, &type, &n)) return wrong_type(l, key);
    if (n != l->v.n_token)
        return imp_fail_field(l->err, IMP_INVALID, key, "%s has %llu entries for %zu tokens", key,
                              (unsigned long long)n, l->v.n_token);
    return IMP_OK;
}

static imp_status read_scores(load *l)
{
    const char *key = "tokenizer.ggml.scores";
    bool present;
    IMP_TRY(beside_tokens(l, key, &present));
    if (!present) return IMP_OK;
    float *score = imp_arena_array(l->arena, l->v.n_token + 1, sizeof *score);
    if (!score) return nomem(l->err);
    if (!imp_gguf_array_f32(l->g, key, score, l->v.n_token)) return wrong_type(l, key);
    l->v.score = score;
    return IMP_OK;
}

static imp_status read_kinds(load *l)
{
    const char *key = "tokenizer.ggml.token_type";
    bool present;
    IMP_TRY(beside_tokens(l, key, &present));
    if (!present) return IMP_OK;
    int64_t *wide = imp_arena_array(l->arena, l->v.n_token + 1, sizeof *wide);
    int32_t *kind = imp_arena_array(l->arena, l->v.n_token + 1, sizeof *kind);
    if (!wide || !kind) return nomem(l->err);
    if (!imp_gguf_array_i64(l->g, key, wide, l->v.n_token)) return wrong_type(l, key);
    for (size_t i = 0; i < l->v.n_token; i++) {
        if (wide[i] < 0 || wide[i] > 6)
            return imp_fail_field(l->err, IMP_INVALID, key, "token %zu has the unknown type %lld", i,
                                  (long long)wide[i]);
        kind[i] =
            wide[i] ? (int32_t)wide[i] : IMP_TOKEN_NORMAL; /* 0: undefined, written by early converters */
    }
    l->v.kind = kind;
    return IMP_OK;
}

static imp_status read_id(const load *l, const char *key, int64_t *out)
{
    uint64_t u;
    if (imp_gguf_u64(l->g, key, &u)) {
        /* the largest 32-bit number is how some writers say "none" */
        if (u != UINT32_MAX && u > INT32_MAX)
            return imp_fail_field(l->err, IMP_INVALID, key, "%s is %llu, no token id", key,
                                  (unsigned long long)u);
        *out = u == UINT32_MAX ? -1 : (int64_t)u;
        return IMP_OK;
    }
    if (imp_gguf_i64(l->g, key, out)) return IMP_OK; /* negative: from_vocab refuses all but -1 */
    *out = -1;
    return imp_gguf_has(l->g, key) ? wrong_type(l, key) : IMP_OK;
}

static imp_status read_flag(const load *l, const char *key, int8_t *out)
{
    bool b;
    *out = -1;
    if (imp_gguf_bool(l->g, key, &b))
        *out = b ? 1 : 0;
    else if (imp_gguf_has(l->g, key))
        return wrong_type(l, key);
    return IMP_OK;
}

static imp_status read_specials(load *l)
{
    static const struct {
        const char *key;
        size_t at;
    } ids[] = {{"tokenizer.ggml.bos_token_id", offsetof(imp_vocab, bos)},
               {"tokenizer.ggml.eos_token_id", offsetof(imp_vocab, eos)},
               {"tokenizer.ggml.unknown_token_id", offsetof(imp_vocab, unk)},
               {"tokenizer.ggml.padding_token_id", offsetof(imp_vocab, pad)},
               {"tokenizer.ggml.cls_token_id", offsetof(imp_vocab, cls)},
               {"tokenizer.ggml.mask_token_id", offsetof(imp_vocab, mask)}};
    for (size_t i = 0; i < IMP_COUNT(ids); i++)
        IMP_TRY(read_id(l, ids[i].key, (int64_t *)((char *)&l->v + ids[i].at)));
    /* the misspelling is the format's own; newer files have both spellings */
    const char *sep = imp_gguf_has(l->g, "tokenizer.ggml.separator_token_id")
                          ? "tokenizer.ggml.separator_token_id"
                          : "tokenizer.ggml.seperator_token_id";
    IMP_TRY(read_id(l, sep, &l->v.sep));
    IMP_TRY(read_flag(l, "tokenizer.ggml.add_bos_token", &l->v.add_bos));
    IMP_TRY(read_flag(l, "tokenizer.ggml.add_eos_token", &l->v.add_eos));
    IMP_TRY(read_flag(l, "tokenizer.ggml.add_space_prefix", &l->v.add_space_prefix));
    int8_t collapse;
    IMP_TRY(read_flag(l, "tokenizer.ggml.remove_extra_whitespaces", &collapse));
    l->v.remove_extra_whitespaces = collapse > 0;
    return IMP_OK;
}

static imp_status read_charsmap(load *l)
{
    const char *key = "tokenizer.ggml.precompiled_charsmap";
    imp_gguf_type type;
    uint64_t n;
    if (!imp_gguf_has(l->g, key)) return IMP_OK;
    if (!imp_gguf_array(l->g, key, &type, &n)) return wrong_type(l, key);
    if (n == 0) return IMP_OK;
    int64_t *wide = imp_arena_array(l->arena, n, sizeof *wide);
    uint8_t *map = imp_arena_array(l->arena, n, 1);
    if (!wide || !map) return nomem(l->err);
    if (!imp_gguf_array_i64(l->g, key, wide, n)) return wrong_type(l, key);
    for (uint64_t i = 0; i < n; i++) {
        if (wide[i] < -128 || wide[i] > 255) return wrong_type(l, key);
        map[i] = (uint8_t)wide[i];
    }
    l->v.charsmap = map;
    l->v.n_charsmap = n;
    return IMP_OK;
}

static bool copy_name(const imp_gguf *g, const char *key, char *out, size_t cap)
{
    imp_str s;
    if (!imp_gguf_str(g, key, &s) || s.n >= cap) return false;
    memcpy(out, s.p, s.n);
    out[s.n] = '\0';
    return true;
}

static imp_status read_model(load *l)
{
    static const struct {
        const char *name;
        imp_vocab_model model;
    } models[] = {{"gpt2", IMP_VOCAB_BPE},
                  {"llama", IMP_VOCAB_SPM_BPE},
                  {"t5", IMP_VOCAB_UNIGRAM},
                  {"bert", IMP_VOCAB_WORDPIECE}};
    if (!imp_gguf_has(l->g, "tokenizer.ggml.model"))
        return imp_fail(l->err, IMP_NOT_FOUND,
                        "the file holds no tokenizer (tokenizer.ggml.model is missing)");
    if (!copy_name(l->g, "tokenizer.ggml.model", l->model, sizeof l->model))
        return wrong_type(l, "tokenizer.ggml.model");
    size_t k = 0;
    while (k < IMP_COUNT(models) && strcmp(models[k].name, l->model) != 0) k++;
    if (k == IMP_COUNT(models))
        return imp_fail(l->err, IMP_UNSUPPORTED, "the tokenizer model \"%s\" is not supported", l->model);
    l->v.model = models[k].model;
    if (imp_gguf_has(l->g, "tokenizer.ggml.pre") &&
        !copy_name(l->g, "tokenizer.ggml.pre", l->pre, sizeof l->pre))
        return wrong_type(l, "tokenizer.ggml.pre");
    /* GPT-2's own files are older than the key */
    char arch[32] = "", name[64] = "";
    (void)copy_name(l->g, "general.architecture", arch, sizeof arch);
    (void)copy_name(l->g, "general.name", name, sizeof name);
    if (!l->pre[0] && strcmp(arch, "gpt2") == 0) memcpy(l->pre, "gpt-2", 6);
    l->v.pre = l->pre[0] ? l->pre : NULL;
    /* Phi-3's control tokens take the white space behind them, which GGUF has no key for */
    for (char *p = name; *p; p++) *p = (char)(*p >= 'A' && *p <= 'Z' ? *p + 32 : *p);
    l->v.rstrip_special = l->v.model == IMP_VOCAB_SPM_BPE && (strstr(name, "phi-3") || strstr(name, "phi3"));
    return IMP_OK;
}

static imp_status read_all(load *l)
{
    IMP_TRY(read_model(l));
    IMP_TRY(read_strings(l, "tokenizer.ggml.tokens", true, &l->v.token, &l->v.n_token));
    IMP_TRY(
        read_strings(l, "tokenizer.ggml.merges", l->v.model == IMP_VOCAB_BPE, &l->v.merge, &l->v.n_merge));
    IMP_TRY(read_scores(l));
    IMP_TRY(read_kinds(l));
    IMP_TRY(read_specials(l));
    return read_charsmap(l);
}

imp_status imp_tokenizer_from_gguf(const imp_gguf *g, imp_tokenizer **out, imp_error *err)
{
    *out = NULL;
    load l = {.g = g, .err = err, .arena = imp_arena_new((size_t)1 << 20)};
    if (!l.arena) return nomem(err);
    imp_status status = read_all(&l);
    if (status == IMP_OK) status = imp_tokenizer_from_vocab(&l.v, out, err);
    imp_arena_free(l.arena);
    return status;
}

/* ---- Hugging Face ------------------------------------------------------------------------------------------- */

static int64_t find_token(const imp_vocab_str *token, size_t n, const char *text)
{
    for (size_t i = 0; i < n; i++)
        if (token[i].n == strlen(text) && memcmp(token[i].p, text, token[i].n) == 0) return (int64_t)i;
    return -1;
}

/* vocab.txt: one WordPiece token a line, continuations spelled "##ing"; rewritten the way GGUF spells them. */
static imp_status from_vocab_txt(const char *p, size_t n, imp_tokenizer **out, imp_error *err)
{
    imp_arena *arena = imp_arena_new(n + 65536);
    if (!arena) return nomem(err);
    size_t lines = 0, k = 0;
    for (size_t i = 0; i < n; i++) lines += p[i] == '\n';
    imp_vocab_str *token = imp_arena_array(arena, lines + 1, sizeof *token);
    int32_t *kind = imp_arena_array(arena, lines + 1, sizeof *kind);
    imp_status status = token && kind ? IMP_OK : nomem(err);
    for (size_t i = 0; status == IMP_OK && i < n;) {
        const char *nl = memchr(p + i, '\n', n - i);
        size_t end = nl ? (size_t)(nl - p) : n, len = end - i;
        if (len && p[i + len - 1] == '\r') len--;
        bool cont = len > 2 && memcmp(p + i, "##", 2) == 0,
             bracket = len > 2 && p[i] == '[' && p[i + len - 1] == ']';
        char *s = imp_arena_alloc(arena, len + 4);
        if (!s) {
            status = nomem(err);
            break;
        }
        size_t mark = cont || bracket ? 0 : 3, from = cont ? 2 : 0;
        memcpy(s, "\xE2\x96\x81", mark);
        memcpy(s + mark, p + i + from, len - from);
        token[k] = (imp_vocab_str){s, mark + len - from};
        kind[k++] = IMP_TOKEN_NORMAL;
        i = end + 1;
    }
    if (status == IMP_OK) {
        imp_vocab v = {
            .model = IMP_VOCAB_WORDPIECE, .token = token, .kind = kind, .n_token = k, .bos = -1, .eos = -1};
        v.add_bos = v.add_eos = v.add_space_prefix = -1;
        v.unk = find_token(token, k, "[UNK]");
        v.sep = find_token(token, k, "[SEP]");
        v.pad = find_token(token, k, "[PAD]");
        v.cls = find_token(token, k, "[CLS]");
        v.mask = find_token(token, k, "[MASK]");
        const int64_t special[] = {v.unk, v.sep, v.pad, v.cls, v.mask};
        for (size_t i = 0; i < IMP_COUNT(special); i++)
            if (special[i] >= 0) kind[special[i]] = IMP_TOKEN_CONTROL;
        status = imp_tokenizer_from_vocab(&v, out, err);
    }
    imp_arena_free(arena);
    return status;
}

imp_status imp_tokenizer_from_hf(const imp_hf *h, imp_tokenizer **out, imp_error *err)
{
    const char *p;
    size_t n;
    *out = NULL;
    const json_t *config = imp_hf_tokenizer_config(h);
    if (imp_hf_tokenizer_json(h, &p, &n)) return imp_tokenizer_from_json(p, n, config, out, err);
    if (!imp_hf_vocab_txt(h, &p, &n))
        return imp_fail(err, IMP_NOT_FOUND, "the folder holds no tokenizer.json (nor a BERT vocab.txt)");
    const json_t *lower = config ? json_object_get(config, "do_lower_case") : NULL;
    if (lower && !json_is_true(lower))
        return imp_fail(err, IMP_UNSUPPORTED,
                        "a vocab.txt that keeps case is not supported; add its tokenizer.json");
    return from_vocab_txt(p, n, out, err);
}
