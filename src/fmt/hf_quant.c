/* fmt/hf_quant.c - MLX-quantised layers of a model folder.
 *
 * Place:   called by hf.c once all shards are one directory.
 * Idea:    config.json says group and bits, for all layers and for single ones:
 *            "quantization": {"group_size": 64, "bits": 4, "mode": "affine", "model.layers.0.mlp.up_proj": {...} | false}
 *          a layer is quantised when it is listed so, else when x.scales exists. What is not understood is refused:
 *          a wrong guess here would give fluent nonsense.
 * Layout:  x.weight u32 [.., n_out, n_in * bits / 32]; x.scales, x.biases [.., n_out, n_in / group]
 * Source:  the quantisation section of MLX and mlx-lm's loader. */
#include <stdio.h>

#include "fmt/hf_quant.h"
#include "fmt/quote.h"

typedef struct spec {
    uint32_t bits, group;
} spec;

enum { NAME_CAP = 640 }; /* a safetensors name and a suffix */

static bool one_of(json_int_t v, const uint8_t *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (v == list[i]) return true;
    return false;
}

/* group_size, bits and mode of the object q, which stands at "quantization" or below it under the name `at`. */
static imp_status read_spec(const json_t *q, const char *at, spec *out, imp_error *err)
{
    static const uint8_t bits_ok[] = {2, 3, 4, 5, 6, 8}, group_ok[] = {32, 64, 128};
    const json_t *mode = json_object_get(q, "mode"), *bits = json_object_get(q, "bits"),
                 *group = json_object_get(q, "group_size");
    *out = (spec){0};
    if (mode != NULL && !json_is_string(mode))
        return imp_fail_field(err, IMP_FORMAT, "mode",
                              "config.json: the quantisation mode of %s is not a string", imp_quote_z(at).s);
    if (mode != NULL && strcmp(json_string_value(mode), "affine") != 0)
        return imp_fail_field(err, IMP_UNSUPPORTED, "mode",
                              "config.json: quantisation mode %s of %s is not supported; only affine is",
                              imp_quote_z(json_string_value(mode)).s, imp_quote_z(at).s);
    if (!json_is_integer(bits) || !json_is_integer(group))
        return imp_fail_field(err, IMP_FORMAT, "bits",
                              "config.json: %s lacks the whole numbers bits and group_size",
                              imp_quote_z(at).s);
    if (!one_of(json_integer_value(bits), bits_ok, IMP_COUNT(bits_ok)))
        return imp_fail_field(err, IMP_UNSUPPORTED, "bits",
                              "config.json: %s has %lld bits; 2, 3, 4, 5, 6 and 8 are supported",
                              imp_quote_z(at).s, (long long)json_integer_value(bits));
    if (!one_of(json_integer_value(group), group_ok, IMP_COUNT(group_ok)))
        return imp_fail_field(err, IMP_UNSUPPORTED, "group_size",
                              "config.json: %s has groups of %lld; 32, 64 and 128 are supported",
                              imp_quote_z(at).s, (long long)json_integer_value(group));
    *out = (spec){.bits = (uint32_t)json_integer_value(bits), .group = (uint32_t)json_integer_value(group)};
    return IMP_OK;
}

/* The object with MLX's description, NULL when the model is not quantised; other schemes are refused by name. */
static imp_status find_quantization(const json_t *config, json_t **out, imp_error *err)
{
    json_t *q = json_object_get(config, "quantization"), *qc = json_object_get(config, "quantization_config");
    *out = NULL;
    if (json_object_get(config, "compression_config") != NULL)
        return imp_fail_field(
            err, IMP_UNSUPPORTED, "compression_config",
            "config.json: compressed-tensors models are not supported; use an unquantised or MLX model");
    if (json_is_object(qc) && json_object_get(qc, "quant_method") != NULL) {
        const char *m = json_string_value(json_object_get(qc, "quant_method"));
        return imp_fail_field(
            err, IMP_UNSUPPORTED, "quant_method",
            "config.json: quantisation method %s is not supported; use an unquantised, MLX or GGUF "
            "model",
            imp_quote_z(m != NULL ? m : "?").s);
    }
    const char *name = q != NULL && !json_is_null(q) ? "quantization" : "quantization_config";
    if (q == NULL || json_is_null(q)) q = qc; /* MLX writes both names, older versions only the second */
    if (q == NULL || json_is_null(q)) return IMP_OK;
    if (!json_is_object(q))
        return imp_fail_field(err, IMP_FORMAT, name, "config.json: %s is not an object", name);
    *out = q;
    return IMP_OK;
}

/* Every key must be understood: the three numbers of the whole, or a module with an object, true or false. */
static imp_status check_keys(json_t *q, imp_error *err)
{
    const char *key;
    json_t *v;
    spec unused;
    json_object_foreach(q, key, v)
    {
        if (strcmp(key, "group_size") == 0 || strcmp(key, "bits") == 0 || strcmp(key, "mode") == 0) continue;
        if (json_is_boolean(v)) continue;
        if (!json_is_object(v))
            return imp_fail_field(err, IMP_UNSUPPORTED, "quantization",
                                  "config.json: quantization has %s, which is "
                                  "not understood",
                                  imp_quote_z(key).s);
        IMP_TRY(read_spec(v, key, &unused, err));
    }
    return IMP_OK;
}

/* Whether a and b agree in all dims but the last. */
static bool same_rows(const imp_tensor *a, const imp_tensor *b)
{
    if (a->n_dim != b->n_dim || a->n_dim < 2) return false;
    for (uint32_t i = 0; i + 1 < a->n_dim; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

static imp_status join(imp_hf_entry *w, const imp_tensor *scales, const imp_tensor *biases, spec s,
                       imp_error *err)
{
    imp_quoted name = imp_quote_z(w->name);
    imp_tensor *t = &w->t;
    uint64_t n_bit, n_col;
    if (t->dtype != IMP_U32)
        return imp_fail(err, IMP_FORMAT,
                        "%s has scales and is to be quantised, but its dtype is %s instead of u32", name.s,
                        imp_dtype_get(t->dtype)->name);
    if (biases == NULL)
        return imp_fail(err, IMP_FORMAT, "%s has scales but no biases, which affine quantisation needs",
                        name.s);
    if (scales->dtype != biases->dtype ||
        (scales->dtype != IMP_F16 && scales->dtype != IMP_BF16 && scales->dtype != IMP_F32))
        return imp_fail(err, IMP_FORMAT,
                        "the scales and biases of %s are %s and %s; both must be f16, bf16 or f32", name.s,
                        imp_dtype_get(scales->dtype)->name, imp_dtype_get(biases->dtype)->name);
    if (!same_rows(t, scales) || !same_rows(t, biases) ||
        imp_tensor_n_col(scales) != imp_tensor_n_col(biases))
        return imp_fail(err, IMP_FORMAT, "%s, its scales and its biases differ in shape", name.s);
    if (!imp_mul_u64(imp_tensor_n_col(t), 32, &n_bit) || n_bit % s.bits != 0 ||
        (n_col = n_bit / s.bits) % s.group != 0 || n_col / s.group != imp_tensor_n_col(scales))
        return imp_fail(
            err, IMP_FORMAT,
            "%s has rows of %llu words and %llu scales, which does not fit %u bits in groups of %u", name.s,
            (unsigned long long)imp_tensor_n_col(t), (unsigned long long)imp_tensor_n_col(scales), s.bits,
            s.group);
    t->dtype = IMP_AFFINE;
    t->dim[t->n_dim - 1] = n_col;
    t->bits = s.bits;
    t->group = s.group;
    t->scale_dtype = scales->dtype;
    t->scales = scales->data;
    t->biases = biases->data;
    return IMP_OK;
}

/* Index of "<path><suffix>"; false: absent. */
static bool lookup(const imp_map *map, const char *path, size_t n_path, const char *suffix, uint32_t *out)
{
    char name[NAME_CAP];
    int n = snprintf(name, sizeof name, "%.*s%s", (int)n_path, path, suffix);
    return n > 0 && (size_t)n < sizeof name && imp_map_get(map, name, (size_t)n, out);
}

/* The one layer at e[i], when it is a quantised one; gone[] marks the parts that were taken up. */
static imp_status join_layer(json_t *q, const imp_map *map, imp_hf_entry *e, uint64_t i, bool *gone,
                             imp_error *err)
{
    static const char suffix[] = ".weight";
    const char *name = e[i].name;
    size_t n = strlen(name);
    uint32_t is = 0, ib = 0;
    spec s;
    char path[NAME_CAP];
    if (n < sizeof suffix || n >= sizeof path || strcmp(name + n - (sizeof suffix - 1), suffix) != 0)
        return IMP_OK;
    n -= sizeof suffix - 1;
    memcpy(path, name, n);
    path[n] = 0;
    bool has_scales = lookup(map, path, n, ".scales", &is);
    const json_t *own = q != NULL ? json_object_get(q, path) : NULL;
    bool wanted = own != NULL ? !json_is_false(own) : has_scales;
    if (!wanted && !has_scales) return IMP_OK;
    if (!wanted && e[i].t.dtype != IMP_U32) return IMP_OK; /* listed as not quantised, and it is not */
    if (!wanted)
        return imp_fail(err, IMP_FORMAT, "%s is packed, but config.json says that it is not quantised",
                        imp_quote_z(name).s);
    if (q == NULL && e[i].t.dtype != IMP_U32) return IMP_OK; /* "scales" of some other meaning */
    if (q == NULL)
        return imp_fail(err, IMP_FORMAT,
                        "%s is packed, but config.json has no \"quantization\" that says how",
                        imp_quote_z(name).s);
    if (!has_scales)
        return imp_fail(err, IMP_FORMAT, "config.json says that %s is quantised, but it has no scales",
                        imp_quote_z(name).s);
    IMP_TRY(json_is_object(own) ? read_spec(own, path, &s, err) : read_spec(q, "quantization", &s, err));
    bool has_biases = lookup(map, path, n, ".biases", &ib);
    IMP_TRY(join(&e[i], &e[is].t, has_biases ? &e[ib].t : NULL, s, err));
    gone[is] = gone[ib] = true;
    return IMP_OK;
}

imp_status imp_hf_join_affine(const json_t *config, const imp_map *map, imp_hf_entry *e, uint64_t *n,
                              imp_error *err)
{
    json_t *q;
    IMP_TRY(find_quantization(config, &q, err));
    if (q != NULL) {
        spec unused;
        IMP_TRY(read_spec(q, "quantization", &unused, err));
        IMP_TRY(check_keys(q, err));
    }
    bool *gone = imp_sys_calloc((size_t)*n, sizeof *gone);
    if (gone == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for the model's directory");
    imp_status s = IMP_OK;
    for (uint64_t i = 0; i < *n && s == IMP_OK; i++) s = join_layer(q, map, e, i, gone, err);
    uint64_t kept = 0;
    for (uint64_t i = 0; i < *n && s == IMP_OK; i++)
        if (!gone[i]) e[kept++] = e[i];
    if (s == IMP_OK) *n = kept;
    imp_sys_free(gone);
    return s;
}
