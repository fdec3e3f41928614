/* model/source.c - the open files of a model: a directory of tensors under canonical names.
 *
 * Place:   between fmt and the rest of this folder. Knows how files spell tensors, not what they are for.
 * Idea:    every tensor is entered once, under its name without the prefixes that wrappers add ("model.", "bert.")
 *          and with gamma and beta of old BERT checkpoints renamed; lookups mark it used. What nobody used at the end
 *          is a part of the model that we would silently leave out, so it is refused, except for a short list.
 * Always:  canonical names are unique (two spellings of one tensor are refused). */
#include "model/model_int.h"

#include <stdio.h>

static bool ends_with(const char *s, size_t n, const char *tail)
{
    size_t k = strlen(tail);
    return n >= k && memcmp(s + n - k, tail, k) == 0;
}

static bool starts_with(const char *s, const char *head)
{
    return strncmp(s, head, strlen(head)) == 0;
}

imp_status imp_source_open(const char *path, imp_net_source **out, imp_error *err)
{
    *out = NULL;
    imp_net_source *src = imp_sys_calloc(1, sizeof *src);
    if (!src) return imp_fail(err, IMP_NOMEM, "out of memory while opening %s", path);
    src->arena = imp_arena_new(1 << 16);
    imp_status st = src->arena ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory while opening %s", path);
    if (st == IMP_OK) {
        if (imp_sys_is_dir(path) || ends_with(path, strlen(path), ".safetensors"))
            st = imp_hf_open(path, &src->hf, err);
        else
            st = imp_gguf_open(path, &src->gguf, err);
    }
    if (st != IMP_OK) {
        imp_source_close(src);
        return st;
    }
    *out = src;
    return IMP_OK;
}

void imp_source_close(imp_net_source *src)
{
    if (!src) return;
    imp_map_free(src->map);
    if (src->gguf) imp_gguf_close(src->gguf);
    if (src->hf) imp_hf_close(src->hf);
    imp_arena_free(src->arena);
    imp_sys_free(src);
}

/* The name without prefixes of wrapping classes. */
static const char *without_prefix(const imp_arch *a, const char *raw)
{
    static const char *const decoder_prefix[] = {"language_model.model.", "model.language_model.",
                                                 "language_model.", "model.", NULL};
    static const char *const encoder_prefix[] = {"bert.",       "roberta.", "distilbert.",
                                                 "nomic_bert.", "model.",   NULL};
    bool encoder = a->family != IMP_FAMILY_DECODER;
    for (const char *const *p = encoder ? encoder_prefix : decoder_prefix; *p; p++)
        if (starts_with(raw, *p)) return raw + strlen(*p);
    return raw;
}

/* The same with the oldest spellings changed, in the arena when they had to be. */
static const char *canonical(imp_net_source *src, const imp_arch *a, const char *raw)
{
    bool encoder = a->family != IMP_FAMILY_DECODER;
    const char *s = without_prefix(a, raw);
    size_t n = strlen(s);
    bool gamma = encoder && ends_with(s, n, ".gamma"), beta = encoder && ends_with(s, n, ".beta");
    if (!gamma && !beta) return s;
    size_t stem = n - (gamma ? 5 : 4);
    char *copy = imp_arena_alloc(src->arena, stem + sizeof "weight");
    if (!copy) return NULL;
    memcpy(copy, s, stem);
    memcpy(copy + stem, gamma ? "weight" : "bias", gamma ? 7 : 5);
    return copy;
}

static imp_status add_entry(imp_net_source *src, const imp_arch *a, const char *raw, const imp_tensor *t,
                            imp_error *err)
{
    const char *name = src->hf ? canonical(src, a, raw) : raw;
    if (!name) return imp_fail(err, IMP_NOMEM, "out of memory while listing tensors");
    imp_status st = imp_map_put(src->map, name, strlen(name), src->n_entry);
    if (st == IMP_INVALID)
        return imp_fail(err, IMP_FORMAT, "tensor %s is there twice under different prefixes", raw);
    if (st != IMP_OK) return imp_fail(err, st, "out of memory while listing tensors");
    src->entry[src->n_entry++] = (imp_entry){.name = name, .raw = raw, .t = t};
    return IMP_OK;
}

imp_status imp_source_index(imp_net_source *src, const imp_arch *a, imp_error *err)
{
    uint64_t n = src->gguf ? imp_gguf_n_tensor(src->gguf) : imp_hf_n_tensor(src->hf);
    if (n == 0)
        return imp_fail(err, IMP_FORMAT, "the file holds no tensors: it is a vocabulary or metadata alone");
    if (n > UINT32_MAX) return imp_fail(err, IMP_TOO_LARGE, "the file lists too many tensors");
    src->arch = a;
    src->map = imp_map_new((size_t)n);
    src->entry = imp_arena_array(src->arena, (size_t)n, sizeof *src->entry);
    if (!src->map || !src->entry) return imp_fail(err, IMP_NOMEM, "out of memory while listing tensors");
    for (uint64_t i = 0; i < n; i++) {
        const imp_tensor *t;
        const char *raw;
        if (src->gguf) {
            imp_str s;
            t = imp_gguf_tensor_at(src->gguf, i, &s);
            raw = imp_arena_strndup(src->arena, s.p, s.n);
            if (!raw) return imp_fail(err, IMP_NOMEM, "out of memory while listing tensors");
        } else {
            t = imp_hf_tensor_at(src->hf, i, &raw);
        }
        IMP_TRY(add_entry(src, a, raw, t, err));
    }
    return IMP_OK;
}

/* pattern with '#' replaced by layer, then expert; false: cut off. */
static bool expand(const char *pattern, int layer, int expert, const char *suffix, char *out, size_t n_out)
{
    size_t n = 0;
    int next = layer;
    for (const char *p = pattern; *p; p++) {
        int k;
        if (*p == '#') {
            k = snprintf(out + n, n_out - n, "%d", next);
            next = expert;
        } else {
            k = snprintf(out + n, n_out - n, "%c", *p);
        }
        if (k < 0 || (size_t)k >= n_out - n) return false;
        n += (size_t)k;
    }
    int k = snprintf(out + n, n_out - n, "%s", suffix);
    return k >= 0 && (size_t)k < n_out - n;
}

/* GGUF's own spelling; experts of old Mixtral files stand one by one as blk.N.ffn_gate.E. */
static void spell_gguf(const char *key, int layer, int expert, const char *suffix, char *out, size_t n_out)
{
    if (expert >= 0)
        snprintf(out, n_out, "blk.%d.%.*s.%d%s", layer, (int)(strlen(key) - 4), key, expert, suffix);
    else if (layer >= 0)
        snprintf(out, n_out, "blk.%d.%s%s", layer, key, suffix);
    else
        snprintf(out, n_out, "%s%s", key, suffix);
}

static imp_entry *lookup(imp_net_source *src, const char *name)
{
    uint32_t i;
    return imp_map_get(src->map, name, strlen(name), &i) ? &src->entry[i] : NULL;
}

imp_entry *imp_source_find(imp_net_source *src, const imp_arch *a, const char *key, int layer, int expert,
                           const char *suffix)
{
    char name[192];
    if (src->gguf) {
        spell_gguf(key, layer, expert, suffix, name, sizeof name);
        return lookup(src, name);
    }
    for (size_t i = 0; i < IMP_COUNT(a->names) && a->names[i]; i++) {
        for (const imp_name *row = a->names[i]; row->key; row++) {
            if (strcmp(row->key, key) != 0 || !expand(row->name, layer, expert, suffix, name, sizeof name))
                continue;
            imp_entry *e = lookup(src, name);
            if (e) return e;
        }
    }
    return NULL;
}

void imp_source_spell(const imp_net_source *src, const imp_arch *a, const char *key, int layer, int expert,
                      const char *suffix, char *out, size_t n_out)
{
    spell_gguf(key, layer, expert, suffix, out, n_out);
    if (src->gguf) return;
    for (size_t i = 0; i < IMP_COUNT(a->names) && a->names[i]; i++)
        for (const imp_name *row = a->names[i]; row->key; row++)
            if (strcmp(row->key, key) == 0 && expand(row->name, layer, expert, suffix, out, n_out)) return;
}

/* The number at *s, moved behind it; -1: there is none, or it is no layer's. */
static int layer_at(const char **s)
{
    int n = -1;
    for (; **s >= '0' && **s <= '9'; (*s)++) {
        if (n > IMP_MAX_LAYER) return -1;
        n = (n < 0 ? 0 : n) * 10 + (**s - '0');
    }
    return n < IMP_MAX_LAYER ? n : -1;
}

/* Is the name what the pattern says, with a layer for its one '#'? */
static bool fits(const char *pattern, const char *name, int *layer)
{
    *layer = -1;
    for (; *pattern; pattern++) {
        if (*pattern == '#') {
            if (*layer >= 0 || (*layer = layer_at(&name)) < 0) return false;
        } else if (*name++ != *pattern) {
            return false;
        }
    }
    return *name == '\0';
}

bool imp_source_name(const imp_arch *a, bool gguf, const char *name, const char **key, int *layer)
{
    const char *s = without_prefix(a, name);
    for (size_t i = 0; !gguf && i < IMP_COUNT(a->names) && a->names[i]; i++)
        for (const imp_name *row = a->names[i]; row->key; row++)
            if (fits(row->name, s, layer)) return *key = row->key, true;
    *layer = -1;
    if (gguf && starts_with(name, "blk.")) {
        name += 4;
        *layer = layer_at(&name);
        if (*layer < 0 || *name++ != '.') return false;
    }
    *key = name;
    return gguf;
}

/* Tensors that change no result of ours: buffers that are computed, heads of other tasks, a tied output's copy. */
static bool ignorable(const imp_net_source *src, const imp_spec *s, const imp_entry *e)
{
    static const char *const encoder_head[] = {
        "pooler.", /* BERT: next-sentence task */
        "cls.",
        "lm_head.",
        "vocab_transform.",
        "vocab_layer_norm.", /* masked-word task */
        "vocab_projector.",
        "head.",
        "decoder.",
    };
    static const char *const vision[] = {"vision_tower.", "multi_modal_projector.", "model.vision_tower.",
                                         "model.multi_modal_projector."};
    size_t n = strlen(e->name);
    if (ends_with(e->name, n, "rotary_emb.inv_freq") || ends_with(e->name, n, "embeddings.position_ids"))
        return true;
    if (s->arch->family != IMP_FAMILY_DECODER) {
        for (size_t i = 0; i < IMP_COUNT(encoder_head); i++)
            if (starts_with(e->name, encoder_head[i])) return true;
        return false;
    }
    if (src->hf && s->tied == IMP_PRESENT && starts_with(e->name, "lm_head.")) return true;
    if (src->hf && strcmp(s->arch->name, "gemma3") == 0)
        for (size_t i = 0; i < IMP_COUNT(vision); i++)
            if (starts_with(e->raw, vision[i])) return true;
    return false;
}

imp_status imp_source_check_all_used(const imp_net_source *src, const imp_spec *s, imp_error *err)
{
    uint32_t n_extra = 0, n_vision = 0, first = 0;
    for (uint32_t i = 0; i < src->n_entry; i++) {
        const imp_entry *e = &src->entry[i];
        if (e->used) continue;
        if (ignorable(src, s, e)) {
            n_vision += strstr(e->raw, "vision_tower.") != NULL;
            continue;
        }
        if (n_extra++ == 0) first = i;
    }
    if (n_vision) imp_log(IMP_LOG_INFO, "the model's vision part (%u tensors) is not served", n_vision);
    if (n_extra == 0) return IMP_OK;
    return imp_fail_field(err, IMP_UNSUPPORTED, "tensor",
                          "tensor %s (and %u more) is no part of a %s model as this program understands it",
                          src->entry[first].raw, n_extra - 1, s->arch->name);
}
