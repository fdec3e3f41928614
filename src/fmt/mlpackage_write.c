/* fmt/mlpackage_write.c - ML Programs to packages.
 *
 * Place:   called by dev/coreml with a finished program whose large values point into weight.bin.
 * Idea:    weights go to disk as they come, so that a converter holds one tensor at a time; the program follows.
 * Always:  Manifest identifiers come from the contents, so that the same model gives the same bytes. */
#include "fmt/mlpackage_int.h"

#include <stdio.h>

/* ---- the program as protobuf ----------------------------------------------------------------------------- */

static void put_tensor_type(imp_buf *b, uint32_t field, const imp_mil_type *t)
{
    size_t at = pb_open(b, field);
    pb_uint(b, 1, t->dtype);
    if (t->rank > 0) pb_uint(b, 2, t->rank);
    for (uint32_t i = 0; i < t->rank; i++) {
        size_t dim = pb_open(b, 3), size = pb_open(b, 1);
        pb_uint(b, 1, t->dim[i]);
        pb_close(b, size);
        pb_close(b, dim);
    }
    pb_close(b, at);
}

static void put_value_type(imp_buf *b, uint32_t field, const imp_mil_type *t)
{
    size_t at = pb_open(b, field);
    if (t->state) {
        size_t state = pb_open(b, 5), inner = pb_open(b, 1);
        put_tensor_type(b, 1, t);
        pb_close(b, inner);
        pb_close(b, state);
    } else {
        put_tensor_type(b, 1, t);
    }
    pb_close(b, at);
}

static void put_ints(imp_buf *b, const imp_mil_value *v, uint64_t n)
{
    size_t at = pb_open(b, 2), packed = pb_open(b, 1);
    for (uint64_t i = 0; i < n; i++)
        pb_varint(b, (uint64_t)(int64_t)imp_mil_element(v->type.dtype, v->data, i));
    pb_close(b, packed);
    pb_close(b, at);
}

static void put_tensor(imp_buf *b, const imp_mil_value *v)
{
    uint64_t n = imp_mil_n_elem(&v->type);
    size_t at;
    switch (v->type.dtype) {
    case IMP_MIL_F32:
        at = pb_open(b, 1);
        pb_bytes(b, 1, v->data, (size_t)n * 4);
        break;
    case IMP_MIL_I16:
    case IMP_MIL_U16:
    case IMP_MIL_I32: put_ints(b, v, n); return;
    case IMP_MIL_BOOL:
        at = pb_open(b, 3);
        pb_bytes(b, 1, v->data, (size_t)n);
        break;
    case IMP_MIL_STRING:
        at = pb_open(b, 4);
        pb_str(b, 1, v->data);
        break;
    default: at = pb_open(b, 7); pb_bytes(b, 1, v->data, (size_t)imp_mil_bytes(&v->type));
    }
    pb_close(b, at);
}

static void put_value(imp_buf *b, uint32_t field, const imp_mil_value *v)
{
    size_t at = pb_open(b, field);
    put_value_type(b, 2, &v->type);
    if (v->blob) {
        size_t blob = pb_open(b, 5);
        pb_str(b, 1, MLP_BLOB_FILE);
        pb_uint(b, 2, v->offset);
        pb_close(b, blob);
    } else {
        size_t now = pb_open(b, 3), tensor = pb_open(b, 1);
        put_tensor(b, v);
        pb_close(b, tensor);
        pb_close(b, now);
    }
    pb_close(b, at);
}

static void put_named_type(imp_buf *b, uint32_t field, const imp_mil_out *o)
{
    size_t at = pb_open(b, field);
    pb_str(b, 1, o->name);
    put_value_type(b, 2, &o->type);
    pb_close(b, at);
}

static void put_attr(imp_buf *b, const char *name, const imp_mil_value *v)
{
    size_t at = pb_open(b, 5);
    pb_str(b, 1, name);
    put_value(b, 2, v);
    pb_close(b, at);
}

static void put_arg(imp_buf *b, const imp_mil_arg *a)
{
    size_t entry = pb_open(b, 2);
    pb_str(b, 1, a->param);
    size_t arg = pb_open(b, 2);
    for (uint32_t i = 0; i < a->n; i++) {
        size_t bind = pb_open(b, 1);
        if (a->bind[i].value != NULL)
            put_value(b, 2, a->bind[i].value);
        else
            pb_str(b, 1, a->bind[i].name);
        pb_close(b, bind);
    }
    pb_close(b, arg);
    pb_close(b, entry);
}

static void put_op(imp_buf *b, const imp_mil_op *op)
{
    imp_mil_value name = {.type = {.dtype = IMP_MIL_STRING}, .data = op->name};
    size_t at = pb_open(b, 3);
    pb_str(b, 1, op->type);
    for (uint32_t i = 0; i < op->n_arg; i++) put_arg(b, &op->arg[i]);
    for (uint32_t i = 0; i < op->n_out; i++) put_named_type(b, 3, &op->out[i]);
    put_attr(b, "name", &name);
    for (uint32_t i = 0; i < op->n_attr; i++) put_attr(b, op->attr[i].name, &op->attr[i].value);
    pb_close(b, at);
}

static void put_func(imp_buf *b, const imp_mil_func *f)
{
    size_t entry = pb_open(b, 2);
    pb_str(b, 1, f->name);
    size_t func = pb_open(b, 2);
    for (uint32_t i = 0; i < f->n_in; i++) put_named_type(b, 1, &f->in[i]);
    pb_str(b, 2, f->opset);
    size_t special = pb_open(b, 3);
    pb_str(b, 1, f->opset);
    size_t block = pb_open(b, 2);
    for (uint32_t i = 0; i < f->n_out; i++) pb_str(b, 2, f->out[i].name);
    for (uint32_t i = 0; i < f->n_op; i++) put_op(b, &f->op[i]);
    pb_close(b, block);
    pb_close(b, special);
    pb_close(b, func);
    pb_close(b, entry);
}

/* ---- the description --------------------------------------------------------------------------------------- */

static void put_feature(imp_buf *b, uint32_t field, const char *name, const imp_mil_type *t)
{
    size_t at = pb_open(b, field);
    pb_str(b, 1, name);
    size_t type = pb_open(b, 3), state = 0;
    if (t->state) state = pb_open(b, 8);
    size_t array = pb_open(b, t->state ? 1 : 5), shape = pb_open(b, 1);
    for (uint32_t i = 0; i < t->rank; i++) pb_varint(b, t->dim[i]);
    pb_close(b, shape);
    pb_uint(b, 2, (uint64_t)mlp_array_type(t->dtype));
    pb_close(b, array);
    if (t->state) pb_close(b, state);
    pb_close(b, type);
    pb_close(b, at);
}

static const imp_mil_type *type_of(const imp_mil_func *f, const char *name)
{
    for (uint32_t i = 0; i < f->n_in; i++)
        if (strcmp(f->in[i].name, name) == 0) return &f->in[i].type;
    for (uint32_t i = 0; i < f->n_op; i++)
        for (uint32_t k = 0; k < f->op[i].n_out; k++)
            if (strcmp(f->op[i].out[k].name, name) == 0) return &f->op[i].out[k].type;
    return NULL;
}

/* Inputs, outputs and states of a function at the given field numbers. */
static imp_status put_features(imp_buf *b, const imp_mil_func *f, uint32_t in, uint32_t out, uint32_t state,
                               imp_error *err)
{
    for (uint32_t i = 0; i < f->n_in; i++)
        if (!f->in[i].type.state) put_feature(b, in, f->in[i].name, &f->in[i].type);
    for (uint32_t i = 0; i < f->n_out; i++) {
        const imp_mil_type *t = type_of(f, f->out[i].name);
        if (t == NULL)
            return imp_fail(err, IMP_INVALID, "function %s has no value named %s", f->name, f->out[i].name);
        put_feature(b, out, f->out[i].name, t);
    }
    for (uint32_t i = 0; i < f->n_in; i++)
        if (f->in[i].type.state) put_feature(b, state, f->in[i].name, &f->in[i].type);
    return IMP_OK;
}

static void put_metadata(imp_buf *b, const imp_mlpackage *p)
{
    size_t at = pb_open(b, 100);
    if (p->brief != NULL) pb_str(b, 1, p->brief);
    if (p->author != NULL) pb_str(b, 3, p->author);
    for (uint32_t i = 0; i < p->n_meta; i++) {
        size_t entry = pb_open(b, 100);
        pb_str(b, 1, p->meta[i][0]);
        pb_str(b, 2, p->meta[i][1]);
        pb_close(b, entry);
    }
    pb_close(b, at);
}

imp_status imp_mlpackage_encode(const imp_mlpackage *p, imp_buf *b, imp_error *err)
{
    imp_status s = IMP_OK;
    pb_uint(b, 1, (uint64_t)p->spec);
    size_t desc = pb_open(b, 2);
    if (p->default_func == NULL) {
        s = put_features(b, &p->func[0], 1, 10, 13, err);
    } else {
        for (uint32_t i = 0; i < p->n_func && s == IMP_OK; i++) {
            size_t at = pb_open(b, 20);
            pb_str(b, 1, p->func[i].name);
            s = put_features(b, &p->func[i], 2, 3, 6, err);
            pb_close(b, at);
        }
        pb_str(b, 21, p->default_func);
    }
    IMP_TRY(s);
    if (p->brief != NULL || p->author != NULL || p->n_meta > 0) put_metadata(b, p);
    pb_close(b, desc);
    size_t program = pb_open(b, 502);
    pb_uint(b, 1, 1);
    for (uint32_t i = 0; i < p->n_func; i++) put_func(b, &p->func[i]);
    pb_close(b, program);
    return b->failed ? imp_fail(err, IMP_NOMEM, "out of memory while writing the program") : IMP_OK;
}

/* ---- the package -------------------------------------------------------------------------------------------- */

struct imp_mlwriter {
    char *path;
    imp_sys_out *weights;
    uint32_t n_blob;
    uint64_t blob_left; /* bytes the open blob still wants */
};

static const char *below(const imp_mlwriter *w, const char *rest, char out[4096])
{
    snprintf(out, 4096, "%s%s", w->path, rest);
    return out;
}

imp_status imp_mlwriter_open(const char *path, imp_mlwriter **out, imp_error *err)
{
    static const char *const folders[] = {"", "/Data", "/Data/" MLP_AUTHOR, "/Data/" MLP_AUTHOR "/weights"};
    static const char *const before[] = {"/Manifest.json", "/Data/" MLP_AUTHOR "/model.mlmodel",
                                         "/Data/" MLP_AUTHOR "/weights/weight.bin"};
    char name[4096];
    *out = NULL;
    if (strlen(path) > sizeof name - 100) return imp_fail(err, IMP_INVALID, "the package's path is too long");
    imp_mlwriter *w = imp_sys_calloc(1, sizeof *w);
    if (w != NULL) w->path = imp_sys_strdup(path);
    if (w == NULL || w->path == NULL) {
        imp_sys_free(w);
        return imp_fail(err, IMP_NOMEM, "out of memory while writing %s", path);
    }
    imp_status s = IMP_OK;
    for (size_t i = 0; i < IMP_COUNT(folders) && s == IMP_OK; i++)
        s = imp_sys_make_dir(below(w, folders[i], name), err);
    for (size_t i = 0; i < IMP_COUNT(before) && s == IMP_OK; i++)
        imp_sys_remove_tree(below(w, before[i], name)); /* half a package must not look like the old one */
    if (s == IMP_OK)
        s = imp_sys_out_open_cache(below(w, "/Data/" MLP_AUTHOR "/weights/weight.bin", name), &w->weights,
                                   err);
    static const uint32_t header[MLP_ALIGN / 4] = {0, 2};
    if (s == IMP_OK) s = imp_sys_out_write(w->weights, header, sizeof header, err);
    if (s != IMP_OK) {
        imp_mlwriter_abandon(w);
        return s;
    }
    *out = w;
    return IMP_OK;
}

void imp_mlwriter_abandon(imp_mlwriter *w)
{
    if (w == NULL) return;
    if (w->weights != NULL) (void)!imp_sys_out_close(w->weights, false, NULL);
    imp_sys_free(w->path);
    imp_sys_free(w);
}

static imp_status pad(imp_mlwriter *w, imp_error *err)
{
    static const uint8_t zero[MLP_ALIGN];
    uint64_t over = imp_sys_out_n(w->weights) % MLP_ALIGN;
    return over == 0 ? IMP_OK : imp_sys_out_write(w->weights, zero, MLP_ALIGN - (size_t)over, err);
}

imp_status imp_mlwriter_blob(imp_mlwriter *w, imp_mil_dtype t, uint64_t n_elem, uint64_t *offset,
                             imp_error *err)
{
    uint64_t bits;
    if (mlp_blob_id(t) == 0 || !imp_mul_u64(n_elem, imp_mil_dtype_bits(t), &bits) || w->blob_left != 0)
        return imp_fail(err, IMP_INVALID, "weight.bin cannot take this tensor");
    IMP_TRY(pad(w, err));
    *offset = imp_sys_out_n(w->weights);
    w->blob_left = (bits + 7) / 8;
    mlp_blob m = {.sentinel = MLP_SENTINEL,
                  .dtype = mlp_blob_id(t),
                  .n_bytes = w->blob_left,
                  .data_offset = *offset + MLP_ALIGN,
                  .padding_bits = w->blob_left * 8 - bits};
    w->n_blob++;
    return imp_sys_out_write(w->weights, &m, sizeof m, err);
}

imp_status imp_mlwriter_data(imp_mlwriter *w, const void *p, uint64_t n, imp_error *err)
{
    if (n > w->blob_left) return imp_fail(err, IMP_INTERNAL, "more bytes than the blob holds");
    w->blob_left -= n;
    return imp_sys_out_write(w->weights, p, (size_t)n, err);
}

/* An identifier in the form of a UUID from bytes. */
static void identify(const imp_buf *b, uint64_t seed, char out[37])
{
    uint64_t x = imp_hash(b->data, b->n, seed), y = imp_hash(b->data, b->n, x);
    snprintf(out, 37, "%08x-%04x-4%03x-a%03x-%012llx", (unsigned)(x >> 32), (unsigned)(x >> 16 & 0xffff),
             (unsigned)(x & 0xfff), (unsigned)(y >> 48 & 0xfff), (unsigned long long)(y & 0xffffffffffff));
}

/* Nothing waits for the disk: a package can be made again from its model. */
static imp_status write_small(const char *path, const imp_buf *b, imp_error *err)
{
    imp_sys_out *o;
    IMP_TRY(imp_sys_out_open_cache(path, &o, err));
    imp_status s = imp_sys_out_write(o, b->data, b->n, err);
    if (s == IMP_OK) return imp_sys_out_close(o, true, err);
    (void)!imp_sys_out_close(o, false, NULL);
    return s;
}

static imp_status write_manifest(const imp_mlwriter *w, const imp_buf *model, imp_error *err)
{
    char spec[37], weights[37], name[4096];
    imp_buf b = {0};
    identify(model, 1, spec);
    identify(model, 2, weights);
    imp_buf_fmt(&b, "{\n    \"fileFormatVersion\": \"1.0.0\",\n    \"itemInfoEntries\": {\n");
    imp_buf_fmt(&b,
                "        \"%s\": {\n            \"author\": \"" MLP_AUTHOR
                "\",\n            \"description\": \"CoreML Model Specification\",\n            \"name\": "
                "\"model.mlmodel\",\n            \"path\": \"" MLP_AUTHOR "/model.mlmodel\"\n        },\n",
                spec);
    imp_buf_fmt(&b,
                "        \"%s\": {\n            \"author\": \"" MLP_AUTHOR
                "\",\n            \"description\": \"CoreML Model Weights\",\n            \"name\": "
                "\"weights\",\n            \"path\": \"" MLP_AUTHOR "/weights\"\n        }\n    },\n",
                weights);
    imp_buf_fmt(&b, "    \"rootModelIdentifier\": \"%s\"\n}\n", spec);
    imp_status s = b.failed ? imp_fail(err, IMP_NOMEM, "out of memory while writing the manifest")
                            : write_small(below(w, "/Manifest.json", name), &b, err);
    imp_buf_deinit(&b);
    return s;
}

imp_status imp_mlwriter_finish(imp_mlwriter *w, const imp_mlpackage *p, imp_error *err)
{
    char name[4096];
    imp_buf model = {0};
    imp_status s = w->blob_left == 0 ? pad(w, err) : imp_fail(err, IMP_INTERNAL, "a blob is not complete");
    if (s == IMP_OK) s = imp_sys_out_patch(w->weights, 0, &w->n_blob, sizeof w->n_blob, err);
    if (s == IMP_OK) s = imp_sys_out_close(w->weights, true, err), w->weights = NULL;
    if (s == IMP_OK) s = imp_mlpackage_encode(p, &model, err);
    if (s == IMP_OK) s = write_small(below(w, "/Data/" MLP_AUTHOR "/model.mlmodel", name), &model, err);
    if (s == IMP_OK) s = write_manifest(w, &model, err);
    imp_buf_deinit(&model);
    imp_mlwriter_abandon(w);
    return s;
}
