/* fmt/hf.c - a model folder as Hugging Face and MLX write it.
 *
 * Place:   called by model loading; gives configs as JSON, text files as bytes and all shards as one tensor directory.
 * Idea:    only names fixed here are opened in the folder, besides shards (and the pooling folder) whose names must
 *          be plain: a config cannot make us read a file elsewhere.
 * Layout:  config.json; model.safetensors, or model.safetensors.index.json {"weight_map": {tensor: shard}} and its
 *          shards; optional: generation_config.json, tokenizer.json, tokenizer_config.json, special_tokens_map.json,
 *          vocab.txt, chat_template.jinja, modules.json, <pooling>/config.json, sentence_bert_config.json
 * Always:  every tensor name is in the directory once; affine layers are joined (hf_quant.c).
 * Threads: an open folder is read-only.
 * Source:  the loaders of transformers, sentence-transformers and mlx-lm. */
#include "fmt/hf.h"
#include "fmt/hf_quant.h"
#include "fmt/json_load.h"
#include "fmt/quote.h"
#include "fmt/safetensors.h"

enum {
    MAX_CONFIG = 16 << 20, /* bytes of a config file */
    MAX_INDEX = 64 << 20,  /* bytes of the shard index */
    MAX_TEXT = 512 << 20,  /* bytes of tokenizer.json, vocab.txt */
    MAX_TEMPLATE = 1 << 20,
    MAX_SHARD = 1024,
    MAX_SHARD_NAME = 255
};

struct imp_hf {
    char *dir; /* owned, without a trailing slash */
    json_t *config, *generation, *tokenizer_config, *special_tokens, *pooling,
        *sbert; /* owned; NULL: absent */
    bool normalize;
    imp_sys_file tokenizer, vocab, template;
    bool has_tokenizer, has_vocab, has_template;
    imp_safetensors **shard; /* [n_shard], owned */
    uint64_t n_shard, file_bytes;
    imp_hf_entry *tensor; /* [n_tensor], owned; names and data borrowed from the shards */
    uint64_t n_tensor;
    imp_map *map; /* name -> index in tensor */
};

/* ---- files of the folder ---------------------------------------------------------------------- */
static imp_status path_of(const imp_hf *h, const char *name, imp_buf *out, imp_error *err)
{
    imp_buf_fmt(out, "%s/%s", h->dir, name);
    return out->failed ? imp_fail(err, IMP_NOMEM, "not enough memory to open %s", h->dir) : IMP_OK;
}

/* Open dir/name when it is there: *found. */
static imp_status open_file(const imp_hf *h, const char *name, uint64_t limit, imp_sys_file *out, bool *found,
                            imp_error *err)
{
    imp_buf path = {0};
    *out = (imp_sys_file){0};
    *found = false;
    imp_status s = path_of(h, name, &path, err);
    if (s == IMP_OK && imp_sys_is_file(path.data)) {
        s = imp_sys_file_open(path.data, true, out, err);
        if (s == IMP_OK && out->n > limit) {
            s = imp_fail(err, IMP_TOO_LARGE, "%s has %llu bytes, the limit is %llu", path.data,
                         (unsigned long long)out->n, (unsigned long long)limit);
            imp_sys_file_close(out);
            *out = (imp_sys_file){0};
        }
        *found = s == IMP_OK;
    }
    imp_buf_deinit(&path);
    return s;
}

static imp_status open_json(const imp_hf *h, const char *name, uint64_t limit, json_t **out, imp_error *err)
{
    imp_sys_file f;
    bool found;
    *out = NULL;
    IMP_TRY(open_file(h, name, limit, &f, &found, err));
    if (!found) return IMP_OK;
    imp_status s = imp_json_load_any((const char *)f.data, (size_t)f.n, name, out, err);
    imp_sys_file_close(&f);
    if (s != IMP_OK) return imp_fail_in(err, s, h->dir);
    return IMP_OK;
}

static imp_status open_object(const imp_hf *h, const char *name, uint64_t limit, json_t **out, imp_error *err)
{
    IMP_TRY(open_json(h, name, limit, out, err));
    if (*out == NULL || json_is_object(*out)) return IMP_OK;
    json_decref(*out);
    *out = NULL;
    return imp_fail(err, IMP_FORMAT, "%s/%s is not a JSON object", h->dir, name);
}

/* A name that stays in its folder: no separator, not hidden, printable ASCII. */
static bool is_plain_name(const char *s)
{
    size_t n = strlen(s);
    if (n == 0 || n > MAX_SHARD_NAME || s[0] == '.') return false;
    for (size_t i = 0; i < n; i++)
        if (s[i] <= 0x20 || s[i] >= 0x7f || s[i] == '/' || s[i] == '\\' || s[i] == ':') return false;
    return true;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

/* ---- sentence-transformers -------------------------------------------------------------------- */
static imp_status open_pooling(imp_hf *h, const char *folder, imp_error *err)
{
    imp_buf name = {0};
    imp_buf_fmt(&name, "%s/config.json", folder);
    imp_status s = name.failed ? imp_fail(err, IMP_NOMEM, "not enough memory to open %s", h->dir)
                               : open_object(h, name.data, MAX_CONFIG, &h->pooling, err);
    imp_buf_deinit(&name);
    return s;
}

/* One module of modules.json: Transformer, Pooling or Normalize; any other would change the vectors. */
static imp_status read_module(imp_hf *h, const json_t *m, imp_error *err)
{
    const char *type = json_string_value(json_object_get(m, "type"));
    const char *path = json_string_value(json_object_get(m, "path"));
    if (type == NULL || path == NULL)
        return imp_fail(err, IMP_FORMAT, "%s/modules.json has a module without type and path", h->dir);
    const char *last = strrchr(type, '.');
    last = last != NULL ? last + 1 : type;
    if (strcmp(last, "Transformer") == 0) return IMP_OK;
    if (strcmp(last, "Normalize") == 0) {
        h->normalize = true;
        return IMP_OK;
    }
    if (strcmp(last, "Pooling") != 0)
        return imp_fail_field(err, IMP_UNSUPPORTED, "modules.json",
                              "%s/modules.json has a module of type %s, which is "
                              "not supported",
                              h->dir, imp_quote_z(type).s);
    if (!is_plain_name(path))
        return imp_fail_field(err, IMP_FORMAT, "modules.json",
                              "%s/modules.json names the folder %s, which is not a plain "
                              "name",
                              h->dir, imp_quote_z(path).s);
    if (h->pooling != NULL)
        return imp_fail_field(err, IMP_UNSUPPORTED, "modules.json", "%s/modules.json has two pooling modules",
                              h->dir);
    IMP_TRY(open_pooling(h, path, err));
    if (h->pooling == NULL)
        return imp_fail(err, IMP_NOT_FOUND, "%s/%s/config.json is missing; modules.json names it", h->dir,
                        path);
    return IMP_OK;
}

static imp_status open_sentence(imp_hf *h, imp_error *err)
{
    /* The config of the Transformer module; its name went with the model's class once. */
    static const char *const sbert[] = {"sentence_bert_config.json", "sentence_roberta_config.json",
                                        "sentence_distilbert_config.json",
                                        "sentence_xlm-roberta_config.json"};
    json_t *modules;
    for (size_t i = 0; i < IMP_COUNT(sbert) && h->sbert == NULL; i++)
        IMP_TRY(open_object(h, sbert[i], MAX_CONFIG, &h->sbert, err));
    IMP_TRY(open_json(h, "modules.json", MAX_CONFIG, &modules, err));
    if (modules == NULL) return open_pooling(h, "1_Pooling", err);
    imp_status s = IMP_OK;
    if (!json_is_array(modules))
        s = imp_fail(err, IMP_FORMAT, "%s/modules.json is not a list of modules", h->dir);
    for (size_t i = 0; i < json_array_size(modules) && s == IMP_OK; i++)
        s = read_module(h, json_array_get(modules, i), err);
    json_decref(modules);
    return s;
}

/* ---- shards ----------------------------------------------------------------------------------- */
static imp_status open_shard(imp_hf *h, const char *name, imp_safetensors **out, imp_error *err)
{
    imp_buf path = {0};
    *out = NULL;
    imp_status s = path_of(h, name, &path, err);
    if (s == IMP_OK && !imp_sys_is_file(path.data))
        s = imp_fail(err, IMP_NOT_FOUND, "%s is missing; the model's index names it", path.data);
    if (s == IMP_OK) s = imp_safetensors_open(path.data, out, err);
    imp_buf_deinit(&path);
    return s;
}

/* Room for all shards of the index, at most MAX_SHARD. */
static imp_status room_for_shards(imp_hf *h, uint64_t n, imp_error *err)
{
    h->shard = imp_sys_calloc((size_t)n, sizeof(imp_safetensors *));
    if (h->shard == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for the model's directory");
    return IMP_OK;
}

/* The shards that the index names, in the order of their first mention; then every tensor it names must be in its
 * shard. */
static imp_status open_indexed(imp_hf *h, json_t *weight_map, imp_error *err)
{
    const char *key;
    json_t *v;
    imp_map *seen = imp_map_new(16); /* shard name -> index in h->shard */
    imp_status s =
        seen == NULL ? imp_fail(err, IMP_NOMEM, "not enough memory for the model's directory") : IMP_OK;
    json_object_foreach(weight_map, key, v)
    {
        const char *name = json_string_value(v);
        uint32_t at = 0;
        if (s != IMP_OK) break;
        if (name == NULL || !is_plain_name(name) || !ends_with(name, ".safetensors")) {
            s = imp_fail(err, IMP_FORMAT,
                         "the index of %s puts tensor %s into %s, which is not the plain name of a "
                         ".safetensors file",
                         h->dir, imp_quote_z(key).s, imp_quote_z(name != NULL ? name : "?").s);
            break;
        }
        if (!imp_map_get(seen, name, strlen(name), &at)) {
            if (h->n_shard == MAX_SHARD) {
                s = imp_fail(err, IMP_TOO_LARGE, "the index of %s names more than %d shards", h->dir,
                             MAX_SHARD);
                break;
            }
            at = (uint32_t)h->n_shard;
            s = open_shard(h, name, &h->shard[at], err);
            if (s != IMP_OK) break;
            h->n_shard++;
            s = imp_map_put(seen, name, strlen(name), at);
            if (s != IMP_OK) s = imp_fail(err, IMP_NOMEM, "not enough memory for the model's directory");
        }
        if (s == IMP_OK && imp_safetensors_get(h->shard[at], key) == NULL)
            s = imp_fail(err, IMP_FORMAT, "tensor %s is not in %s, where the index of %s puts it",
                         imp_quote_z(key).s, name, h->dir);
    }
    imp_map_free(seen);
    return s;
}

static imp_status open_index(imp_hf *h, const json_t *index, imp_error *err)
{
    json_t *weight_map = json_object_get(index, "weight_map");
    if (!json_is_object(weight_map) || json_object_size(weight_map) == 0)
        return imp_fail(err, IMP_FORMAT, "%s/model.safetensors.index.json has no weight_map", h->dir);
    IMP_TRY(room_for_shards(h, MAX_SHARD, err));
    return open_indexed(h, weight_map, err);
}

static bool names_shard(const json_t *index, const char *shard)
{
    const char *key;
    json_t *v;
    json_object_foreach(json_object_get(index, "weight_map"), key, v)
    {
        if (json_is_string(v) && strcmp(json_string_value(v), shard) == 0) return true;
    }
    return false;
}

/* single: the one .safetensors file that the caller asked for, or NULL. */
static imp_status open_weights(imp_hf *h, const char *single, imp_error *err)
{
    static const char index_name[] = "model.safetensors.index.json", whole[] = "model.safetensors";
    imp_buf path = {0};
    imp_status s = path_of(h, whole, &path, err);
    bool has_whole = s == IMP_OK && imp_sys_is_file(path.data);
    imp_buf_deinit(&path);
    IMP_TRY(s);
    if (single == NULL && has_whole) single = whole; /* as transformers: the whole file before the index */
    if (single != NULL && strcmp(single, whole) == 0) {
        IMP_TRY(room_for_shards(h, 1, err));
        IMP_TRY(open_shard(h, single, &h->shard[0], err));
        h->n_shard = 1;
        return IMP_OK;
    }
    json_t *index;
    IMP_TRY(open_object(h, index_name, MAX_INDEX, &index, err));
    if (index != NULL && (single == NULL || names_shard(index, single))) s = open_index(h, index, err);
    bool done = h->shard != NULL || s != IMP_OK;
    json_decref(index);
    if (done) return s;
    if (single == NULL)
        return imp_fail(err, IMP_NOT_FOUND, "neither %s nor %s is in %s: is this the folder of a model?",
                        whole, index_name, h->dir);
    IMP_TRY(room_for_shards(h, 1, err));
    IMP_TRY(open_shard(h, single, &h->shard[0], err));
    h->n_shard = 1;
    return IMP_OK;
}

/* ---- one directory over all shards ------------------------------------------------------------- */
static imp_status build_map(imp_hf *h, imp_error *err)
{
    imp_map_free(h->map);
    h->map = imp_map_new((size_t)h->n_tensor);
    if (h->map == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for the model's directory");
    for (uint64_t i = 0; i < h->n_tensor; i++) {
        const char *name = h->tensor[i].name;
        imp_status s = imp_map_put(h->map, name, strlen(name), (uint32_t)i);
        if (s == IMP_INVALID)
            return imp_fail(err, IMP_FORMAT, "tensor %s stands in two shards of %s", imp_quote_z(name).s,
                            h->dir);
        if (s != IMP_OK) return imp_fail(err, s, "not enough memory for the model's directory");
    }
    return IMP_OK;
}

static imp_status build_directory(imp_hf *h, imp_error *err)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < h->n_shard; i++) {
        n += imp_safetensors_n(h->shard[i]);
        h->file_bytes += imp_safetensors_file_bytes(h->shard[i]);
    }
    h->tensor = imp_sys_calloc((size_t)n, sizeof *h->tensor);
    if (h->tensor == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for the model's directory");
    for (uint64_t i = 0; i < h->n_shard; i++)
        for (uint64_t k = 0; k < imp_safetensors_n(h->shard[i]); k++) {
            imp_hf_entry *e = &h->tensor[h->n_tensor++];
            e->t = *imp_safetensors_at(h->shard[i], k, &e->name);
        }
    IMP_TRY(build_map(h, err));
    imp_status s = imp_hf_join_affine(h->config, h->map, h->tensor, &h->n_tensor, err);
    if (s != IMP_OK) return imp_fail_in(err, s, h->dir);
    return h->n_tensor == n ? IMP_OK : build_map(h, err);
}

/* ---- open and close --------------------------------------------------------------------------- */
static imp_status open_configs(imp_hf *h, imp_error *err)
{
    IMP_TRY(open_object(h, "config.json", MAX_CONFIG, &h->config, err));
    if (h->config == NULL)
        return imp_fail(err, IMP_NOT_FOUND, "%s/config.json is missing: is this the folder of a model?",
                        h->dir);
    IMP_TRY(open_object(h, "generation_config.json", MAX_CONFIG, &h->generation, err));
    IMP_TRY(open_object(h, "tokenizer_config.json", MAX_CONFIG, &h->tokenizer_config, err));
    IMP_TRY(open_object(h, "special_tokens_map.json", MAX_CONFIG, &h->special_tokens, err));
    IMP_TRY(open_file(h, "tokenizer.json", MAX_TEXT, &h->tokenizer, &h->has_tokenizer, err));
    IMP_TRY(open_file(h, "vocab.txt", MAX_TEXT, &h->vocab, &h->has_vocab, err));
    IMP_TRY(open_file(h, "chat_template.jinja", MAX_TEMPLATE, &h->template, &h->has_template, err));
    return open_sentence(h, err);
}

/* Split path into the folder and, when it is a file, that file's name (inside path). */
static imp_status split_path(imp_hf *h, const char *path, const char **single, imp_error *err)
{
    size_t n = strlen(path);
    *single = NULL;
    if (imp_sys_is_dir(path)) {
        while (n > 1 && path[n - 1] == '/') n--;
        h->dir = imp_sys_strdup(path);
        if (h->dir != NULL) h->dir[n] = 0;
    } else if (!imp_sys_is_file(path)) {
        return imp_fail(err, IMP_NOT_FOUND, "%s does not exist", path);
    } else {
        const char *slash = strrchr(path, '/');
        *single = slash != NULL ? slash + 1 : path;
        if (!ends_with(*single, ".safetensors"))
            return imp_fail(err, IMP_INVALID, "%s is neither a folder nor a .safetensors file", path);
        h->dir = imp_sys_strdup(slash == NULL ? "." : slash == path ? "/" : path);
        if (h->dir != NULL && slash != NULL && slash != path) h->dir[slash - path] = 0;
    }
    return h->dir == NULL ? imp_fail(err, IMP_NOMEM, "not enough memory to open %s", path) : IMP_OK;
}

imp_status imp_hf_open(const char *path, imp_hf **out, imp_error *err)
{
    const char *single;
    *out = NULL;
    imp_hf *h = imp_sys_calloc(1, sizeof *h);
    if (h == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory to open %s", path);
    imp_status s = split_path(h, path, &single, err);
    if (s == IMP_OK) s = open_configs(h, err);
    if (s == IMP_OK) s = open_weights(h, single, err);
    if (s == IMP_OK) s = build_directory(h, err);
    if (s != IMP_OK) {
        imp_hf_close(h);
        return s;
    }
    *out = h;
    return IMP_OK;
}

void imp_hf_close(imp_hf *h)
{
    if (h == NULL) return;
    json_decref(h->config);
    json_decref(h->generation);
    json_decref(h->tokenizer_config);
    json_decref(h->special_tokens);
    json_decref(h->pooling);
    json_decref(h->sbert);
    imp_sys_file_close(&h->tokenizer);
    imp_sys_file_close(&h->vocab);
    imp_sys_file_close(&h->template);
    for (uint64_t i = 0; i < h->n_shard; i++) imp_safetensors_close(h->shard[i]);
    imp_sys_free(h->shard);
    imp_map_free(h->map);
    imp_sys_free(h->tensor);
    imp_sys_free(h->dir);
    imp_sys_free(h);
}

/* ---- read ------------------------------------------------------------------------------------- */
const json_t *imp_hf_config(const imp_hf *h)
{
    return h->config;
}
const json_t *imp_hf_generation_config(const imp_hf *h)
{
    return h->generation;
}
const json_t *imp_hf_tokenizer_config(const imp_hf *h)
{
    return h->tokenizer_config;
}
const json_t *imp_hf_special_tokens_map(const imp_hf *h)
{
    return h->special_tokens;
}
const json_t *imp_hf_pooling(const imp_hf *h)
{
    return h->pooling;
}
bool imp_hf_has_normalize(const imp_hf *h)
{
    return h->normalize;
}
const json_t *imp_hf_sbert(const imp_hf *h)
{
    return h->sbert;
}

static bool text(bool found, const imp_sys_file *f, const char **p, size_t *n)
{
    if (!found) return false;
    *p = f->data != NULL ? (const char *)f->data : "";
    *n = (size_t)f->n;
    return true;
}

bool imp_hf_tokenizer_json(const imp_hf *h, const char **p, size_t *n)
{
    return text(h->has_tokenizer, &h->tokenizer, p, n);
}

bool imp_hf_vocab_txt(const imp_hf *h, const char **p, size_t *n)
{
    return text(h->has_vocab, &h->vocab, p, n);
}

bool imp_hf_chat_template(const imp_hf *h, const char **p, size_t *n)
{
    if (text(h->has_template, &h->template, p, n)) return true;
    const json_t *t = json_object_get(h->tokenizer_config, "chat_template");
    /* A list of named templates: the one called default. */
    for (size_t i = 0; json_is_array(t) && i < json_array_size(t); i++) {
        const json_t *one = json_array_get(t, i);
        const char *name = json_string_value(json_object_get(one, "name"));
        if (name != NULL && strcmp(name, "default") == 0) {
            t = json_object_get(one, "template");
            break;
        }
    }
    if (!json_is_string(t)) return false;
    *p = json_string_value(t);
    *n = json_string_length(t);
    return true;
}

uint64_t imp_hf_n_tensor(const imp_hf *h)
{
    return h->n_tensor;
}

const imp_tensor *imp_hf_tensor_at(const imp_hf *h, uint64_t i, const char **name)
{
    if (name != NULL) *name = h->tensor[i].name;
    return &h->tensor[i].t;
}

const imp_tensor *imp_hf_tensor(const imp_hf *h, const char *name)
{
    uint32_t i;
    return imp_map_get(h->map, name, strlen(name), &i) ? &h->tensor[i].t : NULL;
}

uint64_t imp_hf_bytes(const imp_hf *h)
{
    return sizeof *h + h->n_shard * sizeof *h->shard + h->n_tensor * sizeof *h->tensor +
           imp_map_bytes(h->map);
}

uint64_t imp_hf_file_bytes(const imp_hf *h)
{
    return h->file_bytes;
}
