/* text/json_steps.c - normaliser, pre-tokenizer, post-processor and decoder of a tokenizer.json.
 *
 * Place:   from_json.c hands over the value of each key.
 * Idea:    one table a section: type name, the fields it may have, a function that reads them. A Sequence is its
 *          members one after the other. A type, field or value that is not in the tables is refused by name.
 * Source:  the serialised forms of Hugging Face tokenizers 0.2x. */
#include "text/json_steps.h"

enum { MAX_NEST = 8 };

/* ---- fields --------------------------------------------------------------------------------------------------- */

imp_status imp_json_only(const json_t *j, const char *what, const char *keys, imp_error *err)
{
    if (!json_is_object(j))
        return imp_fail_field(err, IMP_FORMAT, what, "%s of the tokenizer is not an object", what);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)j, key, value)
    {
        size_t n = strlen(key);
        const char *hit = keys;
        while (n && (hit = strstr(hit, key)) &&
               !((hit == keys || hit[-1] == ' ') && (hit[n] == ' ' || !hit[n])))
            hit += n;
        if (!n || !hit)
            return imp_fail_field(err, IMP_UNSUPPORTED, what,
                                  "%s of the tokenizer has the field \"%.60s\", which is not "
                                  "supported",
                                  what, key);
    }
    return IMP_OK;
}

static imp_status bad_field(const char *what, const char *key, imp_error *err)
{
    return imp_fail_field(err, IMP_FORMAT, what, "%s of the tokenizer lacks a valid \"%s\"", what, key);
}

imp_status imp_json_string(const json_t *j, const char *what, const char *key, imp_vocab_str *out,
                           imp_error *err)
{
    const json_t *v = json_object_get(j, key);
    if (!json_is_string(v)) return bad_field(what, key, err);
    *out = (imp_vocab_str){json_string_value(v), json_string_length(v)};
    return IMP_OK;
}

imp_status imp_json_bool_or(const json_t *j, const char *what, const char *key, bool fallback, bool *out,
                            imp_error *err)
{
    const json_t *v = json_object_get(j, key);
    *out = fallback;
    if (!v || json_is_null(v)) return IMP_OK;
    if (!json_is_boolean(v)) return bad_field(what, key, err);
    *out = json_is_true(v);
    return IMP_OK;
}

imp_status imp_json_bool(const json_t *j, const char *what, const char *key, bool *out, imp_error *err)
{
    if (!json_is_boolean(json_object_get(j, key))) return bad_field(what, key, err);
    return imp_json_bool_or(j, what, key, false, out, err);
}

static imp_status copy_string(imp_tokenizer *t, const json_t *j, const char *what, const char *key,
                              imp_vocab_str *out, imp_error *err)
{
    imp_vocab_str s;
    IMP_TRY(imp_json_string(j, what, key, &s, err));
    return imp_tok_copy(t, s.p, s.n, out, err);
}

static imp_status count(const json_t *j, const char *what, const char *key, size_t *out, imp_error *err)
{
    const json_t *v = json_object_get(j, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > 1000)
        return bad_field(what, key, err);
    *out = (size_t)json_integer_value(v);
    return IMP_OK;
}

static imp_status too_many(const char *what, imp_error *err)
{
    return imp_fail_field(err, IMP_UNSUPPORTED, what, "%s of the tokenizer has more than %d steps", what,
                          TOK_MAX_STEP);
}

/* {"Regex": "..."} or {"String": "..."} */
static imp_status pattern(imp_tokenizer *t, const json_t *j, const char *what, imp_vocab_str *text,
                          imp_regex **re, imp_error *err)
{
    const json_t *p = json_object_get(j, "pattern");
    imp_vocab_str s;
    if (!json_is_object(p) || json_object_size(p) != 1) return bad_field(what, "pattern", err);
    if (json_object_get(p, "String")) return copy_string(t, p, what, "String", text, err);
    IMP_TRY(imp_json_string(p, what, "Regex", &s, err));
    return imp_regex_new(s.p, s.n, re, err);
}

/* ---- walking a section ---------------------------------------------------------------------------------------- */

typedef imp_status (*read_fn)(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err);

typedef struct step_type {
    const char *type, *keys;
    read_fn read;
} step_type;

static imp_status walk(imp_tokenizer *t, const json_t *j, const char *what, const char *members,
                       const step_type *types, size_t n_type, int depth, imp_error *err)
{
    imp_vocab_str type;
    if (!j || json_is_null(j)) return IMP_OK;
    if (!json_is_object(j))
        return imp_fail_field(err, IMP_FORMAT, what, "the %s of the tokenizer is not an object", what);
    IMP_TRY(imp_json_string(j, what, "type", &type, err));
    if (depth > MAX_NEST)
        return imp_fail_field(err, IMP_UNSUPPORTED, what, "the %s is nested too deeply", what);
    if (strcmp(type.p, "Sequence") == 0) {
        const json_t *list = json_object_get(j, members);
        if (!json_is_array(list)) return bad_field("Sequence", members, err);
        for (size_t i = 0; i < json_array_size(list); i++)
            IMP_TRY(walk(t, json_array_get(list, i), what, members, types, n_type, depth + 1, err));
        return IMP_OK;
    }
    for (size_t i = 0; i < n_type; i++) {
        if (strcmp(types[i].type, type.p) != 0) continue;
        IMP_TRY(imp_json_only(j, type.p, types[i].keys, err));
        return types[i].read(t, j, types[i].type, err);
    }
    return imp_fail_field(err, IMP_UNSUPPORTED, what, "the %s \"%.60s\" is not supported", what, type.p);
}

/* ---- normaliser ------------------------------------------------------------------------------------------------ */

static imp_status norm_simple(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    static const struct {
        const char *type;
        imp_norm_kind kind;
    } kinds[] = {{"NFC", NORM_NFC},   {"NFD", NORM_NFD},         {"NFKC", NORM_NFKC},
                 {"NFKD", NORM_NFKD}, {"Lowercase", NORM_LOWER}, {"StripAccents", NORM_STRIP_ACCENTS}};
    (void)j;
    size_t i = 0;
    while (strcmp(kinds[i].type, type) != 0) i++;
    return imp_tok_add_norm(t, kinds[i].kind) ? IMP_OK : too_many("the normalizer", err);
}

static imp_status norm_bert(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    imp_norm_step *s = imp_tok_add_norm(t, NORM_BERT);
    if (!s) return too_many("the normalizer", err);
    IMP_TRY(imp_json_bool(j, type, "clean_text", &s->clean, err));
    IMP_TRY(imp_json_bool(j, type, "handle_chinese_chars", &s->cjk, err));
    IMP_TRY(imp_json_bool(j, type, "lowercase", &s->lower, err));
    return imp_json_bool_or(j, type, "strip_accents", s->lower, &s->accents, err);
}

static imp_status norm_replace(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    imp_norm_step *s = imp_tok_add_norm(t, NORM_REPLACE);
    if (!s) return too_many("the normalizer", err);
    IMP_TRY(pattern(t, j, type, &s->from, &s->re, err));
    return copy_string(t, j, type, "content", &s->to, err);
}

static imp_status norm_prepend(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    imp_norm_step *s = imp_tok_add_norm(t, NORM_PREPEND);
    if (!s) return too_many("the normalizer", err);
    return copy_string(t, j, type, "prepend", &s->to, err);
}

static imp_status norm_strip(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    imp_norm_step *s = imp_tok_add_norm(t, NORM_STRIP);
    if (!s) return too_many("the normalizer", err);
    IMP_TRY(imp_json_bool(j, type, "strip_left", &s->left, err));
    return imp_json_bool(j, type, "strip_right", &s->right, err);
}

static int base64_digit(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static bool base64_decode(imp_vocab_str in, imp_buf *out)
{
    unsigned acc = 0, bits = 0;
    size_t n = in.n;
    while (n && in.p[n - 1] == '=') n--;
    for (size_t i = 0; i < n; i++) {
        int d = base64_digit(in.p[i]);
        if (d < 0) return false;
        acc = (acc << 6 | (unsigned)d) & 0xFFFF;
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            char c = (char)(acc >> bits & 0xFF);
            imp_buf_add(out, &c, 1);
        }
    }
    return in.n % 4 == 0 && !out->failed;
}

static imp_status norm_precompiled(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    imp_vocab_str text;
    const json_t *v = json_object_get(j, "precompiled_charsmap");
    if (json_is_null(v) || (json_is_string(v) && json_string_length(v) == 0))
        return IMP_OK; /* maps nothing */
    IMP_TRY(imp_json_string(j, type, "precompiled_charsmap", &text, err));
    imp_norm_step *s = imp_tok_add_norm(t, NORM_CHARSMAP);
    if (!s) return too_many("the normalizer", err);
    imp_buf raw = {0};
    imp_status status;
    if (base64_decode(text, &raw))
        status = imp_charsmap_init(&s->map, t->arena, raw.data, raw.n, err);
    else
        status = raw.failed ? imp_tok_nomem(err) : bad_field(type, "precompiled_charsmap", err);
    imp_buf_deinit(&raw);
    return status;
}

imp_status imp_json_normalizer(imp_tokenizer *t, const json_t *j, imp_error *err)
{
    static const step_type types[] = {
        {"NFC", "type", norm_simple},
        {"NFD", "type", norm_simple},
        {"NFKC", "type", norm_simple},
        {"NFKD", "type", norm_simple},
        {"Lowercase", "type", norm_simple},
        {"StripAccents", "type", norm_simple},
        {"BertNormalizer", "type clean_text handle_chinese_chars strip_accents lowercase", norm_bert},
        {"Replace", "type pattern content", norm_replace},
        {"Prepend", "type prepend", norm_prepend},
        {"Strip", "type strip_left strip_right", norm_strip},
        {"Precompiled", "type precompiled_charsmap", norm_precompiled},
    };
    return walk(t, j, "normalizer", "normalizers", types, IMP_COUNT(types), 0, err);
}

/* ---- pre-tokenizer ----------------------------------------------------------------------------------------------- */

static imp_status behavior(const json_t *j, const char *type, imp_behavior *out, imp_error *err)
{
    static const char *const names[] = {[SPLIT_REMOVED] = "Removed",
                                        [SPLIT_ISOLATED] = "Isolated",
                                        [SPLIT_PREVIOUS] = "MergedWithPrevious",
                                        [SPLIT_NEXT] = "MergedWithNext",
                                        [SPLIT_CONTIGUOUS] = "Contiguous"};
    imp_vocab_str s;
    IMP_TRY(imp_json_string(j, type, "behavior", &s, err));
    for (size_t i = 0; i < IMP_COUNT(names); i++)
        if (strcmp(names[i], s.p) == 0) {
            *out = (imp_behavior)i;
            return IMP_OK;
        }
    return imp_fail_field(err, IMP_UNSUPPORTED, type, "the behavior \"%.60s\" of %s is not supported", s.p,
                          type);
}

static imp_status pre_split(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    imp_pre_step *s = imp_tok_add_pre(t, PRE_SPLIT);
    if (!s) return too_many("the pre_tokenizer", err);
    IMP_TRY(pattern(t, j, type, &s->text, &s->re, err));
    IMP_TRY(behavior(j, type, &s->behavior, err));
    return imp_json_bool_or(j, type, "invert", false, &s->invert, err);
}

static imp_status pre_byte_level(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    bool use_regex;
    imp_pre_step *s = imp_tok_add_pre(t, PRE_BYTE_LEVEL);
    if (!s) return too_many("the pre_tokenizer", err);
    IMP_TRY(imp_json_bool(j, type, "add_prefix_space", &s->add_space, err));
    IMP_TRY(imp_json_bool_or(j, type, "use_regex", true, &use_regex, err));
    return use_regex ? imp_regex_new(imp_pre_gpt2, strlen(imp_pre_gpt2), &s->re, err) : IMP_OK;
}

static imp_status pre_digits(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    bool single;
    imp_pre_step *s = imp_tok_add_pre(t, PRE_DIGITS);
    if (!s) return too_many("the pre_tokenizer", err);
    IMP_TRY(imp_json_bool(j, type, "individual_digits", &single, err));
    s->behavior = single ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
    return IMP_OK;
}

static imp_status pre_punct(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    imp_pre_step *s = imp_tok_add_pre(t, PRE_PUNCT);
    if (!s) return too_many("the pre_tokenizer", err);
    return json_object_get(j, "behavior") ? behavior(j, type, &s->behavior, err) : IMP_OK;
}

/* Words of \w and runs of neither \w nor space, as the Rust regex crate defines \w. */
static imp_status pre_whitespace(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
#define RUST_WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200C}\\x{200D}"
    static const char text[] = "[" RUST_WORD "]+|[^" RUST_WORD "\\s]+";
    (void)j, (void)type;
    imp_pre_step *s = imp_tok_add_pre(t, PRE_SPLIT);
    if (!s) return too_many("the pre_tokenizer", err);
    s->behavior = SPLIT_REMOVED;
    s->invert = true;
    return imp_regex_new(text, sizeof text - 1, &s->re, err);
}

static imp_status pre_space_split(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    (void)j, (void)type;
    imp_pre_step *s = imp_tok_add_pre(t, PRE_SPACE_SPLIT);
    if (!s) return too_many("the pre_tokenizer", err);
    s->behavior = SPLIT_REMOVED;
    return IMP_OK;
}

static imp_status pre_bert(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    (void)j, (void)type;
    return imp_tok_add_pre(t, PRE_BERT) ? IMP_OK : too_many("the pre_tokenizer", err);
}

/* The older add_prefix_space and the newer prepend_scheme, which must agree. */
static imp_status prepend_scheme(const json_t *j, const char *type, imp_prepend *out, imp_error *err)
{
    bool space;
    IMP_TRY(imp_json_bool_or(j, type, "add_prefix_space", true, &space, err));
    const json_t *v = json_object_get(j, "prepend_scheme");
    const char *name = json_is_string(v) ? json_string_value(v) : !v && space ? "always" : !v ? "never" : "";
    if (strcmp(name, "always") == 0)
        *out = PREPEND_ALWAYS;
    else if (strcmp(name, "first") == 0)
        *out = PREPEND_FIRST;
    else if (strcmp(name, "never") == 0)
        *out = PREPEND_NEVER;
    else
        return imp_fail_field(err, IMP_UNSUPPORTED, type, "the prepend_scheme \"%.60s\" is not supported",
                              name);
    if (!space && *out != PREPEND_NEVER)
        return imp_fail_field(err, IMP_FORMAT, type, "add_prefix_space and prepend_scheme of %s disagree",
                              type);
    return IMP_OK;
}

static imp_status one_character(imp_vocab_str s, const char *type, const char *key, imp_error *err)
{
    int32_t cp;
    if (s.n == 0 || imp_utf8_decode(s.p, s.n, &cp) != s.n || cp < 0) return bad_field(type, key, err);
    return IMP_OK;
}

static imp_status pre_metaspace(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    imp_pre_step *s = imp_tok_add_pre(t, PRE_METASPACE);
    if (!s) return too_many("the pre_tokenizer", err);
    IMP_TRY(copy_string(t, j, type, "replacement", &s->text, err));
    IMP_TRY(one_character(s->text, type, "replacement", err));
    IMP_TRY(prepend_scheme(j, type, &s->prepend, err));
    return imp_json_bool_or(j, type, "split", true, &s->split, err);
}

#define METASPACE_KEYS  "type replacement add_prefix_space prepend_scheme split str_rep"
#define BYTE_LEVEL_KEYS "type add_prefix_space trim_offsets use_regex"

imp_status imp_json_pre_tokenizer(imp_tokenizer *t, const json_t *j, imp_error *err)
{
    static const step_type types[] = {
        {"Split", "type pattern behavior invert", pre_split},
        {"ByteLevel", BYTE_LEVEL_KEYS, pre_byte_level},
        {"Digits", "type individual_digits", pre_digits},
        {"Punctuation", "type behavior", pre_punct},
        {"Whitespace", "type", pre_whitespace},
        {"WhitespaceSplit", "type", pre_space_split},
        {"BertPreTokenizer", "type", pre_bert},
        {"Metaspace", METASPACE_KEYS, pre_metaspace},
    };
    return walk(t, j, "pre_tokenizer", "pretokenizers", types, IMP_COUNT(types), 0, err);
}

/* ---- post-processor ---------------------------------------------------------------------------------------------- */

static imp_status check_id(const imp_tokenizer *t, const json_t *v, const char *type, uint32_t *out,
                           imp_error *err)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) >= t->n)
        return imp_fail_field(err, IMP_INVALID, type, "%s names a token id that is outside the vocabulary",
                              type);
    *out = (uint32_t)json_integer_value(v);
    return IMP_OK;
}

static imp_status add_around(imp_tokenizer *t, const uint32_t *before, size_t n_before, const uint32_t *after,
                             size_t n_after, imp_error *err)
{
    if (t->n_prefix + n_before > TOK_MAX_FIX || t->n_suffix + n_after > TOK_MAX_FIX)
        return imp_fail(err, IMP_UNSUPPORTED, "the post_processor adds more than %d tokens on one side",
                        TOK_MAX_FIX);
    memmove(t->prefix + n_before, t->prefix, t->n_prefix * sizeof *t->prefix);
    memcpy(t->prefix, before, n_before * sizeof *before);
    memcpy(t->suffix + t->n_suffix, after, n_after * sizeof *after);
    t->n_prefix += n_before;
    t->n_suffix += n_after;
    return IMP_OK;
}

static imp_status post_template(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    uint32_t side[2][TOK_MAX_FIX];
    size_t n[2] = {0, 0};
    int after = 0;
    const json_t *single = json_object_get(j, "single"), *special = json_object_get(j, "special_tokens");
    if (!json_is_array(single)) return bad_field(type, "single", err);
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i), *tok = json_object_get(item, "SpecialToken");
        imp_vocab_str name;
        if (!tok) {
            const json_t *seq = json_object_get(item, "Sequence");
            if (!seq || after++) return bad_field(type, "single", err);
            continue;
        }
        IMP_TRY(imp_json_string(tok, type, "id", &name, err));
        const json_t *ids = json_object_get(json_object_get(special, name.p), "ids");
        if (!json_is_array(ids)) return bad_field(type, "special_tokens", err);
        for (size_t k = 0; k < json_array_size(ids); k++) {
            if (n[after] == TOK_MAX_FIX)
                return imp_fail_field(err, IMP_UNSUPPORTED, type, "%s adds too many tokens", type);
            IMP_TRY(check_id(t, json_array_get(ids, k), type, &side[after][n[after]], err));
            n[after]++;
        }
    }
    if (!after) return bad_field(type, "single", err);
    return add_around(t, side[0], n[0], side[1], n[1], err);
}

static imp_status post_bert(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    uint32_t cls, sep;
    IMP_TRY(check_id(t, json_array_get(json_object_get(j, "cls"), 1), type, &cls, err));
    IMP_TRY(check_id(t, json_array_get(json_object_get(j, "sep"), 1), type, &sep, err));
    return add_around(t, &cls, 1, &sep, 1, err);
}

static imp_status post_nothing(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    (void)t, (void)j, (void)type, (void)err; /* ByteLevel changes offsets only */
    return IMP_OK;
}

imp_status imp_json_post_processor(imp_tokenizer *t, const json_t *j, imp_error *err)
{
    static const step_type types[] = {
        {"TemplateProcessing", "type single pair special_tokens", post_template},
        {"BertProcessing", "type sep cls", post_bert},
        {"RobertaProcessing", "type sep cls trim_offsets add_prefix_space", post_bert},
        {"ByteLevel", BYTE_LEVEL_KEYS, post_nothing},
    };
    return walk(t, j, "post_processor", "processors", types, IMP_COUNT(types), 0, err);
}

/* ---- decoder --------------------------------------------------------------------------------------------------------- */

/* Steps see one token at a time; Fuse makes one text of them, after which only its start can still be stripped, and
 * bytes made by ByteFallback belong to characters that are not whole yet. */
static imp_status new_dec(imp_tokenizer *t, imp_dec_kind kind, const char *type, imp_dec_step **out,
                          imp_error *err)
{
    bool bytes = t->n_dec && t->dec[t->n_dec - 1].kind == DEC_BYTE_FALLBACK;
    if (t->dec_fused || bytes)
        return imp_fail_field(err, IMP_UNSUPPORTED, type, "the decoder step %s after %s is not supported",
                              type, t->dec_fused ? "Fuse" : "ByteFallback");
    *out = imp_tok_add_dec(t, kind);
    return *out ? IMP_OK : too_many("the decoder", err);
}

static imp_status dec_byte_level(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    imp_dec_step *s;
    (void)j;
    return new_dec(t, DEC_BYTE_LEVEL, type, &s, err);
}

static imp_status dec_byte_fallback(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    imp_dec_step *s;
    (void)j;
    return new_dec(t, DEC_BYTE_FALLBACK, type, &s, err);
}

static imp_status dec_fuse(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    (void)j, (void)type, (void)err;
    t->dec_fused = true;
    return IMP_OK;
}

static imp_status dec_replace(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    imp_dec_step *s;
    imp_regex *re = NULL;
    IMP_TRY(new_dec(t, DEC_REPLACE, type, &s, err));
    IMP_TRY(pattern(t, j, type, &s->from, &re, err));
    if (re) {
        imp_regex_free(re);
        return imp_fail_field(err, IMP_UNSUPPORTED, type, "a decoder Replace by Regex is not supported");
    }
    return copy_string(t, j, type, "content", &s->to, err);
}

static imp_status dec_strip(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    imp_dec_step *s, at = {0};
    IMP_TRY(copy_string(t, j, type, "content", &at.from, err));
    IMP_TRY(one_character(at.from, type, "content", err));
    IMP_TRY(count(j, type, "start", &at.start, err));
    IMP_TRY(count(j, type, "stop", &at.stop, err));
    if (t->dec_fused) {
        if (at.stop || t->dec_strip_max)
            return imp_fail_field(err, IMP_UNSUPPORTED, type,
                                  "stripping the end of a whole text is not supported");
        t->dec_strip = at.from;
        t->dec_strip_max = at.start;
        return IMP_OK;
    }
    IMP_TRY(new_dec(t, DEC_STRIP, type, &s, err));
    at.kind = DEC_STRIP;
    *s = at;
    return IMP_OK;
}

static imp_status dec_metaspace(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    imp_dec_step *s;
    imp_prepend scheme;
    IMP_TRY(new_dec(t, DEC_METASPACE, type, &s, err));
    IMP_TRY(copy_string(t, j, type, "replacement", &s->from, err));
    IMP_TRY(one_character(s->from, type, "replacement", err));
    IMP_TRY(prepend_scheme(j, type, &scheme, err));
    s->flag = scheme != PREPEND_NEVER;
    return IMP_OK;
}

static imp_status dec_wordpiece(imp_tokenizer *t, const json_t *j, const char *type, imp_error *err)
{
    imp_dec_step *s;
    IMP_TRY(new_dec(t, DEC_WORDPIECE, type, &s, err));
    s->to = (imp_vocab_str){"", 0};
    IMP_TRY(copy_string(t, j, type, "prefix", &s->from, err));
    if (s->from.n == 0) return bad_field(type, "prefix", err);
    return imp_json_bool(j, type, "cleanup", &s->flag, err);
}

imp_status imp_json_decoder(imp_tokenizer *t, const json_t *j, imp_error *err)
{
    static const step_type types[] = {
        {"ByteLevel", BYTE_LEVEL_KEYS, dec_byte_level},
        {"ByteFallback", "type", dec_byte_fallback},
        {"Fuse", "type", dec_fuse},
        {"Replace", "type pattern content", dec_replace},
        {"Strip", "type content start stop", dec_strip},
        {"Metaspace", METASPACE_KEYS, dec_metaspace},
        {"WordPiece", "type prefix cleanup", dec_wordpiece},
    };
    t->dec_join = !j || json_is_null(j);
    return walk(t, j, "decoder", "decoders", types, IMP_COUNT(types), 0, err);
}
