/* fmt/peft.c - a low-rank adapter as PEFT writes it.
 *
 * Place:   called by model/adapter.c, which knows what the tensors belong to.
 * Idea:    the config is read strictly: a key either changes nothing for inference, or is understood, or must have the value
 *          that asks for nothing (absent, null, false, 0, "" or empty); a key that nobody here knows counts as the last kind.
 * Layout:  adapter_config.json: peft_type, r, lora_alpha, use_rslora, rank_pattern, alpha_pattern, ...
 *          A pattern's key is a module's name or the end of one behind a dot.
 * Threads: an open adapter is read-only.
 * Source:  PEFT's LoraConfig and how it looks patterns up (peft/utils/other.py, get_pattern_key). */
#include "fmt/peft.h"

#include <float.h>
#include <jansson.h>
#include <math.h>

#include "fmt/json_load.h"
#include "fmt/quote.h"

enum { MAX_CONFIG = 1 << 20 };

struct imp_peft {
    imp_safetensors *st; /* owned */
    json_t *config;      /* owned */
};

/* Training, bookkeeping, and what the tensors say themselves. */
static const char *const harmless[] = {
    "auto_mapping",      "base_model_name_or_path",
    "eva_config",        "exclude_modules",
    "inference_mode",    "layers_pattern",
    "loftq_config",      "layers_to_transform",
    "lora_dropout",      "megatron_config",
    "megatron_core",     "peft_version",
    "qalora_group_size", "revision",
    "runtime_config",    "target_modules",
    "task_type",
};
static const char *const understood[] = {
    "peft_type",     "r",    "lora_alpha",        "use_rslora", "rank_pattern",
    "alpha_pattern", "bias", "init_lora_weights",
};

static bool is_in(const char *const *list, size_t n, const char *s)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i], s) == 0) return true;
    return false;
}

/* Does the value ask for nothing? */
static bool is_empty(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_NULL:
    case JSON_FALSE: return true;
    case JSON_INTEGER: return json_integer_value(v) == 0;
    case JSON_STRING: return json_string_length(v) == 0;
    case JSON_ARRAY: return json_array_size(v) == 0;
    case JSON_OBJECT: return json_object_size(v) == 0;
    default: return false;
    }
}

static imp_status no(imp_error *err, const char *key, const char *why)
{
    return imp_fail_field(err, IMP_UNSUPPORTED, key, "adapter_config.json: %s %s", imp_quote_z(key).s, why);
}

/* Initialisations that take a part out of the base model's weights need a base that was changed with them. */
static imp_status check_init(const json_t *v, imp_error *err)
{
    static const char *const plain[] = {"gaussian", "eva", "orthogonal"};
    const char *s = json_string_value(v); /* true and false leave the base as it is */
    if (s == NULL || is_in(plain, IMP_COUNT(plain), s)) return IMP_OK;
    return imp_fail_field(
        err, IMP_UNSUPPORTED, "init_lora_weights",
        "adapter_config.json: the adapter was made by %s, which changes the base model too; "
        "convert it to a plain LoRA (PEFT: path_initial_model_for_weight_conversion)",
        imp_quote_z(s).s);
}

/* {"module": number, ...} with plain names. */
static imp_status check_pattern(const json_t *config, const char *key, imp_error *err)
{
    json_t *map = json_object_get(config, key), *v;
    const char *name;
    if (map == NULL || json_is_null(map)) return IMP_OK;
    if (!json_is_object(map)) return no(err, key, "is not an object");
    json_object_foreach(map, name, v)
    {
        const char *s = name + (name[0] == '^');
        if (strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != strlen(s) ||
            *s == '\0')
            return no(err, name, "is a regular expression; only plain module names are understood there");
        double x = json_number_value(v);
        if (!json_is_number(v) || !isfinite(x) || (strcmp(key, "rank_pattern") == 0 && !(x >= 1)))
            return no(err, name, "has no number that can be used");
    }
    return IMP_OK;
}

static imp_status check_config(const json_t *c, imp_error *err)
{
    const json_t *type = json_object_get(c, "peft_type"), *bias = json_object_get(c, "bias");
    const char *kind = json_string_value(type), *key;
    json_t *v;
    if (kind == NULL)
        return imp_fail_field(err, IMP_FORMAT, "peft_type",
                              "adapter_config.json has no peft_type: it is no PEFT adapter");
    if (strcmp(kind, "LORA") != 0)
        return imp_fail_field(err, IMP_UNSUPPORTED, "peft_type",
                              "adapter_config.json: adapters of kind %s are not understood, only LORA",
                              imp_quote_z(kind).s);
    if (json_is_true(json_object_get(c, "use_dora")))
        return no(err, "use_dora", "is set: DoRA adapters are not understood, only plain LoRA");
    if (bias != NULL && !json_is_null(bias) &&
        (!json_is_string(bias) || strcmp(json_string_value(bias), "none") != 0))
        return no(err, "bias", "is not \"none\": adapters with biases are not understood");
    v = json_object_get(c, "init_lora_weights");
    if (v != NULL) IMP_TRY(check_init(v, err));
    json_object_foreach((json_t *)(uintptr_t)c, key, v)
    {
        if (is_in(harmless, IMP_COUNT(harmless), key) || is_in(understood, IMP_COUNT(understood), key) ||
            is_empty(v))
            continue;
        return no(err, key, "is set, and that is not understood");
    }
    json_int_t r = json_integer_value(json_object_get(c, "r"));
    double alpha = json_number_value(json_object_get(c, "lora_alpha"));
    if (r < 1) return no(err, "r", "is no rank");
    if (!json_is_number(json_object_get(c, "lora_alpha")) || !isfinite(alpha))
        return no(err, "lora_alpha", "is no number");
    IMP_TRY(check_pattern(c, "rank_pattern", err));
    return check_pattern(c, "alpha_pattern", err);
}

imp_status imp_peft_parse(const char *config, size_t n_config, const uint8_t *tensors, uint64_t n,
                          imp_peft **out, imp_error *err)
{
    *out = NULL;
    imp_peft *p = imp_sys_calloc(1, sizeof *p);
    if (p == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory to open an adapter");
    imp_status s = imp_json_load(config, n_config, "adapter_config.json", &p->config, err);
    if (s == IMP_OK) s = check_config(p->config, err);
    if (s == IMP_OK && tensors != NULL) s = imp_safetensors_parse(tensors, n, &p->st, err);
    if (s != IMP_OK) {
        imp_peft_close(p);
        return s;
    }
    *out = p;
    return IMP_OK;
}

/* folder/name into buf; the folder of a file when path is one. */
static void beside(const char *path, bool is_dir, const char *name, imp_buf *buf)
{
    const char *slash = strrchr(path, '/');
    if (is_dir)
        imp_buf_fmt(buf, "%s/%s", path, name);
    else if (slash != NULL)
        imp_buf_fmt(buf, "%.*s/%s", (int)(slash - path), path, name);
    else
        imp_buf_str(buf, name);
}

static imp_status open_config(const char *path, imp_peft **out, imp_error *err)
{
    imp_sys_file f;
    IMP_TRY(imp_sys_file_open(path, false, &f, err));
    imp_status s = f.n > MAX_CONFIG ? imp_fail(err, IMP_TOO_LARGE, "the file is larger than a config can be")
                                    : imp_peft_parse((const char *)f.data, (size_t)f.n, NULL, 0, out, err);
    imp_sys_file_close(&f);
    return s == IMP_OK ? s : imp_fail_in(err, s, path);
}

imp_status imp_peft_open(const char *path, imp_peft **out, imp_error *err)
{
    bool dir = imp_sys_is_dir(path);
    imp_buf config = {0}, tensors = {0}, pickled = {0};
    *out = NULL;
    beside(path, dir, "adapter_config.json", &config);
    beside(path, dir, "adapter_model.safetensors", &tensors);
    beside(path, dir, "adapter_model.bin", &pickled);
    const char *file = dir ? tensors.data : path;
    imp_status s = IMP_OK;
    if (config.failed || tensors.failed || pickled.failed)
        s = imp_fail(err, IMP_NOMEM, "not enough memory to open an adapter");
    else if (!imp_sys_is_file(config.data))
        s = imp_fail(err, IMP_NOT_FOUND,
                     "there is no %.300s: give a GGUF adapter, or a folder that PEFT wrote", config.data);
    else if (!imp_sys_is_file(file) && imp_sys_is_file(pickled.data))
        s = imp_fail(err, IMP_UNSUPPORTED, "%.300s is a pickle, which is not read: save it as safetensors",
                     pickled.data);
    if (s == IMP_OK) s = open_config(config.data, out, err);
    if (s == IMP_OK) s = imp_safetensors_open(file, &(*out)->st, err);
    if (s != IMP_OK) {
        imp_peft_close(*out);
        *out = NULL;
    }
    imp_buf_deinit(&config);
    imp_buf_deinit(&tensors);
    imp_buf_deinit(&pickled);
    return s;
}

void imp_peft_close(imp_peft *p)
{
    if (p == NULL) return;
    imp_safetensors_close(p->st);
    json_decref(p->config);
    imp_sys_free(p);
}

const imp_safetensors *imp_peft_tensors(const imp_peft *p)
{
    return p->st;
}

/* The pattern's number for a module, or what stands for all. */
static double number_for(const imp_peft *p, const char *pattern, const char *all, const char *module)
{
    json_t *map = json_object_get(p->config, pattern), *v;
    const char *key;
    size_t n = strlen(module);
    json_object_foreach(map, key, v)
    {
        bool whole = key[0] == '^';
        const char *name = key + whole;
        size_t k = strlen(name);
        bool tail = !whole && n > k && module[n - k - 1] == '.' && strcmp(module + n - k, name) == 0;
        if (tail || strcmp(module, name) == 0) return json_number_value(v);
    }
    return json_number_value(json_object_get(p->config, all));
}

imp_status imp_peft_scale(const imp_peft *p, const char *module, uint64_t rank, float *out, imp_error *err)
{
    double r = number_for(p, "rank_pattern", "r", module),
           alpha = number_for(p, "alpha_pattern", "lora_alpha", module);
    if (r < (double)rank || r > (double)rank)
        return imp_fail_field(err, IMP_FORMAT, "r",
                              "adapter_config.json says rank %.0f for %s, its matrices have %llu", r,
                              imp_quote_z(module).s, (unsigned long long)rank);
    double scale = alpha / (json_is_true(json_object_get(p->config, "use_rslora")) ? sqrt(r) : r);
    if (!(fabs(scale) <= (double)FLT_MAX))
        return imp_fail_field(err, IMP_FORMAT, "lora_alpha",
                              "adapter_config.json: the alpha of %s is too large for a scale",
                              imp_quote_z(module).s);
    *out = (float)scale;
    return IMP_OK;
}
