/* fmt/mlpackage_read.c - packages to programs: the manifest, protobuf, blobs. mlpackage_check.c holds them to the rules.
 *
 * Idea:    a message's repeated fields are counted first, then read into arrays of that size. What is no ML Program
 *          (other model kinds, nested blocks, types without fixed shapes) is refused by name.
 * Always:  memory grows with the file only: every count is a count of fields that are there. */
#include "fmt/mlpackage_int.h"

#include <stdio.h>

#include "fmt/json_load.h"
#include "fmt/quote.h"

typedef struct reader {
    imp_mlpackage *p;
    imp_error *err;
    const uint8_t *base;  /* of model.mlmodel, for positions */
    const imp_mil_op *op; /* being read, for messages */
    pb_reader desc;       /* the model's description */
    bool has_desc;
} reader;

#define BAD(r, ...) imp_fail((r)->err, IMP_FORMAT, __VA_ARGS__)
#define NO_MEM(r)   imp_fail((r)->err, IMP_NOMEM, "out of memory while reading a package")
/* Walk the fields of one message; f is the current one. */
#define EACH_FIELD(r, msg, f)                                                                                \
    for (int pb_got_ = 0; (pb_got_ = pb_next(&(msg), &(f))) != 0;)                                           \
        if (pb_got_ < 0)                                                                                     \
            return imp_fail_at((r)->err, IMP_FORMAT, (uint64_t)((msg).p - (r)->base),                        \
                               "the model description is no valid protobuf message");                        \
        else

static imp_status unknown(reader *r, const char *message, uint32_t id)
{
    return imp_fail(r->err, IMP_FORMAT, "field %u of a %s is not one this format has", id, message);
}

/* How many fields of this id the message has. */
static uint32_t count(pb_reader msg, uint32_t id)
{
    pb_field f;
    uint32_t n = 0;
    while (pb_next(&msg, &f) > 0) n += f.id == id;
    return n;
}

static void *take(reader *r, size_t n, size_t size)
{
    return imp_arena_array(r->p->arena, n > 0 ? n : 1, size);
}

static imp_status text(reader *r, const pb_field *f, const char **out)
{
    const char *s = (const char *)f->sub.p;
    size_t n = pb_left(&f->sub);
    if (f->wire != PB_BYTES) return BAD(r, "a text field holds no text");
    if (memchr(s, 0, n) != NULL || !imp_utf8_valid(s, n)) return BAD(r, "a text is no valid UTF-8");
    *out = imp_arena_strndup(r->p->arena, s, n);
    return *out != NULL ? IMP_OK : NO_MEM(r);
}

static imp_status expect(reader *r, const pb_field *f, pb_wire w)
{
    return f->wire == w ? IMP_OK : BAD(r, "field %u has the wrong wire type", f->id);
}

/* ---- types ------------------------------------------------------------------------------------------------ */

static imp_status read_dim(reader *r, pb_reader m, uint64_t *out)
{
    pb_field f, g;
    bool found = false;
    EACH_FIELD(r, m, f)
    {
        if (f.id != 1 || f.wire != PB_BYTES)
            return imp_fail(r->err, IMP_UNSUPPORTED,
                            "a tensor has a flexible dimension; only fixed shapes are read");
        *out = 0;
        EACH_FIELD(r, f.sub, g)
        {
            if (g.id != 1 || g.wire != PB_VARINT) return unknown(r, "Dimension", g.id);
            *out = g.v;
        }
        found = true;
    }
    if (!found || *out == 0 || *out > 1u << 30) return BAD(r, "a tensor has a dimension out of range");
    return IMP_OK;
}

static imp_status read_tensor_type(reader *r, pb_reader m, imp_mil_type *t)
{
    pb_field f;
    uint64_t rank = 0, n = 1;
    EACH_FIELD(r, m, f)
    {
        if (f.id == 1 && f.wire == PB_VARINT) {
            t->dtype = (imp_mil_dtype)f.v;
            if (f.v > 100 || imp_mil_dtype_name(t->dtype) == NULL)
                return imp_fail(r->err, IMP_UNSUPPORTED, "a tensor has data type %llu, which is not read",
                                (unsigned long long)f.v);
        } else if (f.id == 2 && f.wire == PB_VARINT) {
            rank = f.v;
        } else if (f.id == 3 && f.wire == PB_BYTES) {
            if (t->rank == IMP_MIL_MAX_RANK)
                return imp_fail(r->err, IMP_UNSUPPORTED, "a tensor has more than %d dimensions",
                                IMP_MIL_MAX_RANK);
            IMP_TRY(read_dim(r, f.sub, &t->dim[t->rank]));
            if (!imp_mul_u64(n, t->dim[t->rank], &n) || n > 1ull << 40)
                return imp_fail(r->err, IMP_TOO_LARGE, "a tensor has too many elements");
            t->rank++;
        } else {
            return unknown(r, "TensorType", f.id);
        }
    }
    if (t->dtype == IMP_MIL_NONE) return BAD(r, "a tensor has no data type");
    if (rank != t->rank)
        return BAD(r, "a tensor says rank %llu and lists %u dimensions", (unsigned long long)rank, t->rank);
    return IMP_OK;
}

/* The one tensor that a message holds in field 1. */
static imp_status read_only_tensor(reader *r, pb_reader m, imp_mil_type *t)
{
    pb_field f;
    EACH_FIELD(r, m, f)
    {
        if (f.id != 1 || f.wire != PB_BYTES || t->dtype != IMP_MIL_NONE)
            return imp_fail(r->err, IMP_UNSUPPORTED, "a value is neither a tensor nor a state of one");
        IMP_TRY(read_tensor_type(r, f.sub, t));
    }
    return t->dtype != IMP_MIL_NONE ? IMP_OK : BAD(r, "a value has no type");
}

static imp_status read_value_type(reader *r, pb_reader m, imp_mil_type *t)
{
    pb_field f, g;
    pb_reader first = m;
    *t = (imp_mil_type){0};
    if (pb_next(&first, &f) <= 0 || f.id != 5 || f.wire != PB_BYTES) return read_only_tensor(r, m, t);
    if (pb_left(&first) > 0 || pb_next(&f.sub, &g) <= 0 || g.id != 1 || g.wire != PB_BYTES)
        return BAD(r, "a state wraps no tensor");
    t->state = true;
    return read_only_tensor(r, g.sub, t);
}

/* ---- values ------------------------------------------------------------------------------------------------ */

/* Packed or single varints into elements of `size` bytes. */
static imp_status read_varints(reader *r, pb_reader m, size_t size, uint64_t n, uint8_t *out)
{
    pb_field f;
    uint64_t i = 0;
    EACH_FIELD(r, m, f)
    {
        if (f.id != 1 || (f.wire != PB_BYTES && f.wire != PB_VARINT))
            return unknown(r, "list of numbers", f.id);
        do {
            uint64_t v = f.v;
            if (f.wire == PB_BYTES) {
                if (pb_left(&f.sub) == 0) break;
                if (!pb_read_varint(&f.sub, &v)) return BAD(r, "a list of numbers is cut off");
            }
            if (i == n) return BAD(r, "a constant has more numbers than its shape");
            memcpy(out + i++ * size, &v, size);
        } while (f.wire == PB_BYTES);
    }
    return i == n ? IMP_OK : BAD(r, "a constant has fewer numbers than its shape");
}

static imp_status read_fixed(reader *r, pb_reader m, uint64_t n_bytes, uint8_t *out)
{
    pb_field f;
    uint64_t done = 0;
    EACH_FIELD(r, m, f)
    {
        const void *from = f.wire == PB_BYTES ? (const void *)f.sub.p : (const void *)&f.v;
        size_t n = f.wire == PB_BYTES ? pb_left(&f.sub) : 4;
        if (f.id != 1 || (f.wire != PB_BYTES && f.wire != PB_32)) return unknown(r, "tensor's bytes", f.id);
        if (n > n_bytes - done) return BAD(r, "a constant has more bytes than its shape");
        memcpy(out + done, from, n);
        done += n;
    }
    return done == n_bytes ? IMP_OK : BAD(r, "a constant has fewer bytes than its shape");
}

static imp_status read_strings(reader *r, pb_reader m, imp_mil_value *v)
{
    pb_field f;
    const char *s = NULL;
    if (v->type.rank != 0) return imp_fail(r->err, IMP_UNSUPPORTED, "an array of texts is not read");
    EACH_FIELD(r, m, f)
    {
        if (f.id != 1 || s != NULL) return BAD(r, "a text constant is not one text");
        IMP_TRY(text(r, &f, &s));
    }
    v->data = s;
    return s != NULL ? IMP_OK : BAD(r, "a text constant has no text");
}

/* The field of TensorValue that a dtype is stored in. */
static uint32_t storage_field(imp_mil_dtype t)
{
    switch (t) {
    case IMP_MIL_F32: return 1;
    case IMP_MIL_I16:
    case IMP_MIL_U16:
    case IMP_MIL_I32: return 2;
    case IMP_MIL_BOOL: return 3;
    case IMP_MIL_STRING: return 4;
    default: return 7;
    }
}

static imp_status read_tensor_value(reader *r, pb_reader m, imp_mil_value *v)
{
    pb_field f;
    if (v->data != NULL) return BAD(r, "a constant has two values");
    EACH_FIELD(r, m, f)
    {
        IMP_TRY(expect(r, &f, PB_BYTES));
        if (v->data != NULL || f.id != storage_field(v->type.dtype))
            return BAD(r, "a constant of type %s is stored as field %u, it belongs in field %u",
                       imp_mil_dtype_name(v->type.dtype), f.id, storage_field(v->type.dtype));
        if (f.id == 4) {
            IMP_TRY(read_strings(r, f.sub, v));
            continue;
        }
        uint64_t n = imp_mil_n_elem(&v->type), bytes = imp_mil_bytes(&v->type);
        /* A number takes at least one byte of the file, a sub-byte one its bits. */
        if (n / 8 > pb_left(&f.sub)) return BAD(r, "a constant has fewer numbers than its shape");
        uint8_t *data = take(r, (size_t)bytes, 1);
        if (data == NULL) return NO_MEM(r);
        if (f.id == 2 || f.id == 3)
            IMP_TRY(read_varints(r, f.sub, imp_mil_dtype_bits(v->type.dtype) / 8, n, data));
        else
            IMP_TRY(read_fixed(r, f.sub, bytes, data));
        v->data = data;
    }
    return v->data != NULL ? IMP_OK : BAD(r, "a constant has no value");
}

static imp_status read_immediate(reader *r, pb_reader m, imp_mil_value *v)
{
    pb_field f;
    EACH_FIELD(r, m, f)
    {
        if (f.id != 1 || f.wire != PB_BYTES)
            return imp_fail(r->err, IMP_UNSUPPORTED, "a constant is no tensor (tuple, list or dictionary)");
        IMP_TRY(read_tensor_value(r, f.sub, v));
    }
    return v->data != NULL ? IMP_OK : BAD(r, "a constant has no value");
}

static imp_status bind_blob(reader *r, imp_mil_value *v)
{
    const imp_mlpackage *p = r->p;
    mlp_blob m;
    uint64_t bytes = imp_mil_bytes(&v->type),
             bits = imp_mil_n_elem(&v->type) * imp_mil_dtype_bits(v->type.dtype);
    if (v->offset < MLP_ALIGN || v->offset % MLP_ALIGN != 0 || v->offset > p->n_weights ||
        p->n_weights - v->offset < sizeof m)
        return BAD(r,
                   "a constant points to byte %llu of weight.bin, where no blob can be (the file has %llu)",
                   (unsigned long long)v->offset, (unsigned long long)p->n_weights);
    memcpy(&m, p->weights + v->offset, sizeof m);
    if (m.sentinel != MLP_SENTINEL)
        return BAD(r, "there is no blob at byte %llu of weight.bin", (unsigned long long)v->offset);
    if (mlp_blob_id(v->type.dtype) == 0 || m.dtype != mlp_blob_id(v->type.dtype))
        return BAD(r, "the blob at byte %llu has data type %u, the constant is %s",
                   (unsigned long long)v->offset, m.dtype, imp_mil_dtype_name(v->type.dtype));
    if (m.n_bytes != bytes || m.padding_bits != bytes * 8 - bits)
        return BAD(r, "the blob at byte %llu has %llu bytes, the constant needs %llu",
                   (unsigned long long)v->offset, (unsigned long long)m.n_bytes, (unsigned long long)bytes);
    if (m.data_offset != v->offset + MLP_ALIGN || m.data_offset > p->n_weights ||
        m.n_bytes > p->n_weights - m.data_offset)
        return BAD(r, "the data of the blob at byte %llu is not behind it", (unsigned long long)v->offset);
    v->data = p->weights + m.data_offset;
    return IMP_OK;
}

static imp_status read_blob(reader *r, pb_reader m, imp_mil_value *v)
{
    pb_field f;
    const char *file = "";
    EACH_FIELD(r, m, f)
    {
        if (f.id == 1)
            IMP_TRY(text(r, &f, &file));
        else if (f.id == 2 && f.wire == PB_VARINT)
            v->offset = f.v;
        else
            return unknown(r, "BlobFileValue", f.id);
    }
    if (strcmp(file, MLP_BLOB_FILE) != 0)
        return BAD(r, "a constant lies in %s; it must be " MLP_BLOB_FILE, imp_quote_z(file).s);
    v->blob = true;
    return bind_blob(r, v);
}

static imp_status read_value(reader *r, pb_reader m, imp_mil_value *v)
{
    pb_field f;
    pb_reader again = m;
    *v = (imp_mil_value){0};
    EACH_FIELD(r, m, f)
    if (f.id == 2) {
        IMP_TRY(expect(r, &f, PB_BYTES));
        IMP_TRY(read_value_type(r, f.sub, &v->type));
    }
    if (v->type.dtype == IMP_MIL_NONE || v->type.state) return BAD(r, "a constant has no type");
    EACH_FIELD(r, again, f)
    {
        if (f.id == 2 || f.id == 1) continue;
        IMP_TRY(expect(r, &f, PB_BYTES));
        if (v->data != NULL) return BAD(r, "a constant has two values");
        if (f.id == 3)
            IMP_TRY(read_immediate(r, f.sub, v));
        else if (f.id == 5)
            IMP_TRY(read_blob(r, f.sub, v));
        else
            return unknown(r, "Value", f.id);
    }
    return v->data != NULL ? IMP_OK : BAD(r, "a constant has no value");
}

/* ---- operations ---------------------------------------------------------------------------------------------- */

static imp_status read_named_type(reader *r, pb_reader m, imp_mil_out *o)
{
    pb_field f;
    EACH_FIELD(r, m, f)
    {
        if (f.id == 1) {
            IMP_TRY(text(r, &f, &o->name));
        } else if (f.id == 2 && f.wire == PB_BYTES) {
            IMP_TRY(read_value_type(r, f.sub, &o->type));
        } else {
            return unknown(r, "NamedValueType", f.id);
        }
    }
    if (o->name == NULL || o->type.dtype == IMP_MIL_NONE) return BAD(r, "a value has no name or no type");
    return IMP_OK;
}

static imp_status read_binding(reader *r, pb_reader m, imp_mil_bind *b)
{
    pb_field f;
    EACH_FIELD(r, m, f)
    {
        if (b->name != NULL || b->value != NULL) return BAD(r, "a binding has two values");
        if (f.id == 1) {
            IMP_TRY(text(r, &f, &b->name));
        } else if (f.id == 2 && f.wire == PB_BYTES) {
            imp_mil_value *v = take(r, 1, sizeof *v);
            if (v == NULL) return NO_MEM(r);
            IMP_TRY(read_value(r, f.sub, v));
            b->value = v;
        } else {
            return unknown(r, "Binding", f.id);
        }
    }
    return b->name != NULL || b->value != NULL ? IMP_OK : BAD(r, "a binding is empty");
}

/* One entry of a map: its key and the bytes of its value. */
static imp_status read_entry(reader *r, pb_reader m, const char **key, pb_reader *value)
{
    pb_field f;
    *key = "";
    *value = (pb_reader){m.p, m.p};
    EACH_FIELD(r, m, f)
    {
        IMP_TRY(expect(r, &f, PB_BYTES));
        if (f.id == 1)
            IMP_TRY(text(r, &f, key));
        else if (f.id == 2)
            *value = f.sub;
        else
            return unknown(r, "map entry", f.id);
    }
    return IMP_OK;
}

static imp_status read_arg(reader *r, pb_reader m, imp_mil_arg *a)
{
    pb_reader value;
    pb_field f;
    IMP_TRY(read_entry(r, m, &a->param, &value));
    uint32_t n = count(value, 1);
    if ((a->bind = take(r, n, sizeof *a->bind)) == NULL) return NO_MEM(r);
    EACH_FIELD(r, value, f)
    {
        if (f.id != 1 || f.wire != PB_BYTES) return unknown(r, "Argument", f.id);
        IMP_TRY(read_binding(r, f.sub, &a->bind[a->n]));
        a->n++;
    }
    return a->n > 0 ? IMP_OK : BAD(r, "parameter %s is bound to nothing", imp_quote_z(a->param).s);
}

/* "name" becomes the op's name, the others are kept. */
static imp_status read_attr(reader *r, pb_reader m, imp_mil_op *op)
{
    pb_reader value;
    imp_mil_attr a = {0};
    IMP_TRY(read_entry(r, m, &a.name, &value));
    IMP_TRY(read_value(r, value, &a.value));
    if (strcmp(a.name, "name") != 0) {
        op->attr[op->n_attr++] = a;
        return IMP_OK;
    }
    if (a.value.type.dtype != IMP_MIL_STRING || a.value.type.rank != 0)
        return BAD(r, "an op's name is no text");
    op->name = a.value.data;
    return IMP_OK;
}

static imp_status read_op(reader *r, pb_reader m, imp_mil_op *op)
{
    pb_field f;
    op->arg = take(r, count(m, 2), sizeof *op->arg);
    op->out = take(r, count(m, 3), sizeof *op->out);
    op->attr = take(r, count(m, 5), sizeof *op->attr);
    if (op->arg == NULL || op->out == NULL || op->attr == NULL) return NO_MEM(r);
    EACH_FIELD(r, m, f)
    {
        IMP_TRY(expect(r, &f, PB_BYTES));
        switch (f.id) {
        case 1: IMP_TRY(text(r, &f, &op->type)); break;
        case 2: IMP_TRY(read_arg(r, f.sub, &op->arg[op->n_arg++])); break;
        case 3: IMP_TRY(read_named_type(r, f.sub, &op->out[op->n_out++])); break;
        case 4: return imp_fail(r->err, IMP_UNSUPPORTED, "an op has nested blocks, which are not read");
        case 5: IMP_TRY(read_attr(r, f.sub, op)); break;
        default: return unknown(r, "Operation", f.id);
        }
    }
    if (op->type == NULL) return BAD(r, "an op has no type");
    if (op->n_out > IMP_MIL_MAX_OUT) return imp_fail(r->err, IMP_TOO_LARGE, "an op has too many results");
    return IMP_OK;
}

static imp_status read_block(reader *r, pb_reader m, imp_mil_func *fn)
{
    pb_field f;
    fn->op = take(r, count(m, 3), sizeof *fn->op);
    fn->out = take(r, count(m, 2), sizeof *fn->out);
    if (fn->op == NULL || fn->out == NULL) return NO_MEM(r);
    EACH_FIELD(r, m, f)
    {
        IMP_TRY(expect(r, &f, PB_BYTES));
        if (f.id == 2) {
            IMP_TRY(text(r, &f, &fn->out[fn->n_out++].name));
        } else if (f.id == 3) {
            imp_mil_op *op = &fn->op[fn->n_op];
            imp_status s = read_op(r, f.sub, op);
            if (s == IMP_FORMAT && r->err != NULL) {
                char why[sizeof r->err->text];
                memcpy(why, r->err->text, sizeof why);
                return BAD(r, "op %u (%s) of function %s: %.300s", fn->n_op,
                           op->type != NULL ? imp_quote_z(op->type).s : "?", imp_quote_z(fn->name).s, why);
            }
            IMP_TRY(s);
            fn->n_op++;
        } else if (f.id != 4) {
            return unknown(r, "Block", f.id);
        }
    }
    return IMP_OK;
}

static imp_status read_func(reader *r, pb_reader m, imp_mil_func *fn)
{
    pb_field f;
    pb_reader body, block;
    IMP_TRY(read_entry(r, m, &fn->name, &body));
    const char *key = NULL;
    if ((fn->in = take(r, count(body, 1), sizeof *fn->in)) == NULL) return NO_MEM(r);
    EACH_FIELD(r, body, f)
    {
        IMP_TRY(expect(r, &f, PB_BYTES));
        if (f.id == 1) {
            IMP_TRY(read_named_type(r, f.sub, &fn->in[fn->n_in++]));
        } else if (f.id == 2) {
            IMP_TRY(text(r, &f, &fn->opset));
        } else if (f.id == 3) {
            if (key != NULL)
                return imp_fail(r->err, IMP_UNSUPPORTED, "function %s has several specialisations",
                                imp_quote_z(fn->name).s);
            IMP_TRY(read_entry(r, f.sub, &key, &block));
            IMP_TRY(read_block(r, block, fn));
        } else if (f.id != 4) {
            return unknown(r, "Function", f.id);
        }
    }
    if (fn->opset == NULL || key == NULL || strcmp(fn->opset, key) != 0)
        return BAD(r, "function %s names the opset %s and has a body for %s", imp_quote_z(fn->name).s,
                   imp_quote_z(fn->opset != NULL ? fn->opset : "").s, imp_quote_z(key != NULL ? key : "").s);
    return IMP_OK;
}

static imp_status read_program(reader *r, pb_reader m)
{
    pb_field f;
    uint64_t version = 0;
    if ((r->p->func = take(r, count(m, 2), sizeof *r->p->func)) == NULL) return NO_MEM(r);
    EACH_FIELD(r, m, f)
    {
        if (f.id == 1 && f.wire == PB_VARINT)
            version = f.v;
        else if (f.id == 2 && f.wire == PB_BYTES)
            IMP_TRY(read_func(r, f.sub, &r->p->func[r->p->n_func++]));
        else if (f.id != 3 && f.id != 4) /* a comment, and who built it */
            return unknown(r, "Program", f.id);
    }
    if (version != 1)
        return BAD(r, "the program's version is %llu, it must be 1", (unsigned long long)version);
    return r->p->n_func > 0 ? IMP_OK : BAD(r, "the program has no function");
}

/* ---- the description ------------------------------------------------------------------------------------------- */

static imp_status read_array(reader *r, pb_reader m, imp_mil_type *t, bool *has_shape)
{
    pb_field f;
    EACH_FIELD(r, m, f)
    {
        if (f.id == 1) {
            *has_shape = true;
            do {
                uint64_t v = f.v;
                if (f.wire == PB_BYTES) {
                    if (pb_left(&f.sub) == 0) break;
                    if (!pb_read_varint(&f.sub, &v)) return BAD(r, "a feature's shape is cut off");
                }
                if (t->rank == IMP_MIL_MAX_RANK) return BAD(r, "a feature has too many dimensions");
                t->dim[t->rank++] = v;
            } while (f.wire == PB_BYTES);
        } else if (f.id == 2 && f.wire == PB_VARINT) {
            t->dtype = mlp_array_dtype(f.v);
        } else if (f.id == 21 || f.id == 31) {
            return imp_fail(r->err, IMP_UNSUPPORTED,
                            "an input has flexible shapes; only fixed ones are read");
        }
    }
    return IMP_OK;
}

/* Compare one described feature with the function's type for that name. */
static imp_status match_feature(reader *r, pb_reader m, const imp_mil_func *fn, bool output, bool state)
{
    pb_field f, g, h;
    const char *name = "";
    imp_mil_type t = {.state = state};
    bool has_shape = false;
    EACH_FIELD(r, m, f)
    {
        if (f.id == 1) IMP_TRY(text(r, &f, &name));
        if (f.id != 3 || f.wire != PB_BYTES) continue;
        EACH_FIELD(r, f.sub, g)
        {
            if (g.id == 5 && g.wire == PB_BYTES && !state) IMP_TRY(read_array(r, g.sub, &t, &has_shape));
            if (g.id != 8 || g.wire != PB_BYTES || !state) continue;
            EACH_FIELD(r, g.sub, h)
            if (h.id == 1 && h.wire == PB_BYTES) IMP_TRY(read_array(r, h.sub, &t, &has_shape));
        }
    }
    const imp_mil_type *want = NULL;
    for (uint32_t i = 0; i < fn->n_in && !output; i++)
        if (strcmp(fn->in[i].name, name) == 0 && fn->in[i].type.state == state) want = &fn->in[i].type;
    for (uint32_t i = 0; i < fn->n_out && output; i++)
        if (strcmp(fn->out[i].name, name) == 0) want = &fn->var[fn->out[i].var].type;
    if (want == NULL)
        return BAD(r, "the description has %s %s, function %s does not", output ? "an output" : "an input",
                   imp_quote_z(name).s, fn->name);
    if (output && !has_shape) t.rank = want->rank, memcpy(t.dim, want->dim, sizeof t.dim);
    char a[96], b[96];
    if (!imp_mil_type_equal(&t, want))
        return BAD(r, "the description says %s is %s, function %s says %s", imp_quote_z(name).s,
                   t.dtype != IMP_MIL_NONE ? imp_mil_type_text(&t, a) : "of no known type", fn->name,
                   imp_mil_type_text(want, b));
    return IMP_OK;
}

static imp_status match_features(reader *r, pb_reader m, const imp_mil_func *fn, uint32_t in, uint32_t out,
                                 uint32_t state)
{
    pb_field f;
    uint32_t n_in = 0, n_out = 0;
    EACH_FIELD(r, m, f)
    {
        if (f.wire != PB_BYTES || (f.id != in && f.id != out && f.id != state)) continue;
        IMP_TRY(match_feature(r, f.sub, fn, f.id == out, f.id == state));
        n_in += f.id != out;
        n_out += f.id == out;
    }
    if (n_in != fn->n_in || n_out != fn->n_out)
        return BAD(r, "the description lists %u inputs and %u outputs, function %s has %u and %u", n_in,
                   n_out, fn->name, fn->n_in, fn->n_out);
    return IMP_OK;
}

static imp_status match_function(reader *r, pb_reader m)
{
    pb_field f;
    pb_reader again = m;
    const char *name = "";
    EACH_FIELD(r, m, f)
    if (f.id == 1) IMP_TRY(text(r, &f, &name));
    const imp_mil_func *fn = imp_mlpackage_func(r->p, name);
    if (fn == NULL)
        return BAD(r, "the description has a function %s, the program does not", imp_quote_z(name).s);
    return match_features(r, again, fn, 2, 3, 6);
}

static imp_status match_description(reader *r)
{
    pb_reader m = r->desc;
    pb_field f;
    imp_mlpackage *p = r->p;
    uint32_t n = 0;
    EACH_FIELD(r, m, f)
    {
        if (f.id == 21) IMP_TRY(text(r, &f, &p->default_func));
        if (f.id != 20 || f.wire != PB_BYTES) continue;
        IMP_TRY(match_function(r, f.sub));
        n++;
    }
    if (n == 0) {
        if (p->n_func != 1 || strcmp(p->func[0].name, "main") != 0)
            return BAD(r, "the description lists no functions, so the program must have one named main");
        p->default_func = NULL;
        return match_features(r, r->desc, &p->func[0], 1, 10, 13);
    }
    if (n != p->n_func) return BAD(r, "the description lists %u functions, the program has %u", n, p->n_func);
    if (p->default_func == NULL || imp_mlpackage_func(p, p->default_func) == NULL)
        return BAD(r, "the default function is none of the program's");
    if (p->spec < 9) return BAD(r, "several functions need specification version 9, this is %d", p->spec);
    return IMP_OK;
}

static imp_status read_metadata(reader *r, pb_reader m)
{
    pb_field f;
    imp_mlpackage *p = r->p;
    const char *(*meta)[2] = take(r, count(m, 100), sizeof *meta);
    if (meta == NULL) return NO_MEM(r);
    p->meta = meta;
    EACH_FIELD(r, m, f)
    {
        if (f.id == 1) IMP_TRY(text(r, &f, &p->brief));
        if (f.id == 3) IMP_TRY(text(r, &f, &p->author));
        if (f.id != 100 || f.wire != PB_BYTES) continue;
        pb_reader value;
        const char *key;
        IMP_TRY(read_entry(r, f.sub, &key, &value));
        pb_field v = {.wire = PB_BYTES, .sub = value};
        meta[p->n_meta][0] = key;
        IMP_TRY(text(r, &v, &meta[p->n_meta][1]));
        p->n_meta++;
    }
    return IMP_OK;
}

/* ---- the model ---------------------------------------------------------------------------------------------------- */

static imp_status read_model(reader *r, pb_reader m)
{
    pb_field f;
    pb_reader program = {0}, again;
    uint64_t spec = 0;
    EACH_FIELD(r, m, f)
    {
        if (f.id == 1 && f.wire == PB_VARINT) {
            spec = f.v;
        } else if (f.id == 2 && f.wire == PB_BYTES) {
            r->desc = f.sub, r->has_desc = true;
        } else if (f.id == 502 && f.wire == PB_BYTES) {
            program = f.sub;
        } else if (f.id != 10) {
            return imp_fail(r->err, IMP_UNSUPPORTED, "the model is no ML Program (model kind %u)", f.id);
        }
    }
    if (spec < IMP_MIL_SPEC_MIN || spec > IMP_MIL_SPEC_MAX)
        return imp_fail(r->err, IMP_UNSUPPORTED, "specification version %llu is not read; %d to %d are",
                        (unsigned long long)spec, IMP_MIL_SPEC_MIN, IMP_MIL_SPEC_MAX);
    r->p->spec = (int32_t)spec;
    if (program.p == NULL || !r->has_desc) return BAD(r, "the model has no program or no description");
    again = r->desc;
    EACH_FIELD(r, again, f)
    if (f.id == 100 && f.wire == PB_BYTES) IMP_TRY(read_metadata(r, f.sub));
    IMP_TRY(read_program(r, program));
    IMP_TRY(mlp_check(r->p, r->err));
    return match_description(r);
}

static imp_status check_weights(reader *r)
{
    uint32_t head[2];
    if (r->p->n_weights == 0) return IMP_OK; /* nothing is stored there */
    if (r->p->n_weights < MLP_ALIGN) return BAD(r, "weight.bin is shorter than its header");
    memcpy(head, r->p->weights, sizeof head);
    if (head[1] != 2) return BAD(r, "weight.bin has version %u, it must be 2", head[1]);
    if (head[0] > r->p->n_weights / MLP_ALIGN)
        return BAD(r, "weight.bin says it has %u blobs, it is too short for them", head[0]);
    return IMP_OK;
}

static imp_status parse_into(imp_mlpackage *p, const uint8_t *model, size_t n, imp_error *err)
{
    imp_error own = {0};
    reader r = {.p = p, .err = err != NULL ? err : &own, .base = model};
    if ((p->arena = imp_arena_new(1 << 16)) == NULL) return NO_MEM(&r);
    IMP_TRY(check_weights(&r));
    return read_model(&r, (pb_reader){model, model + n});
}

imp_status imp_mlpackage_parse(const void *model, size_t n_model, const void *weights, size_t n_weights,
                               imp_mlpackage **out, imp_error *err)
{
    *out = NULL;
    imp_mlpackage *p = imp_sys_calloc(1, sizeof *p);
    if (p == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while reading a package");
    p->weights = weights;
    p->n_weights = n_weights;
    imp_status s = parse_into(p, model, n_model, err);
    if (s != IMP_OK) {
        imp_mlpackage_close(p);
        return s;
    }
    *out = p;
    return IMP_OK;
}

void imp_mlpackage_close(imp_mlpackage *p)
{
    if (p == NULL) return;
    imp_arena_free(p->arena);
    imp_sys_file_close(&p->model_file);
    imp_sys_file_close(&p->weight_file);
    imp_sys_free(p);
}

const imp_mil_func *imp_mlpackage_func(const imp_mlpackage *p, const char *name)
{
    for (uint32_t i = 0; i < p->n_func; i++)
        if (strcmp(p->func[i].name, name) == 0) return &p->func[i];
    return NULL;
}

/* ---- the folder ----------------------------------------------------------------------------------------------------- */

/* An item of the manifest: all four texts there, its path below Data and no way out of it. */
static imp_status check_item(const char *path, const char *id, const json_t *item, imp_error *err)
{
    static const char *const keys[] = {"path", "name", "author", "description"};
    char name[4096];
    for (size_t i = 0; i < IMP_COUNT(keys); i++)
        if (!json_is_string(json_object_get(item, keys[i])))
            return imp_fail(err, IMP_FORMAT, "Manifest.json: item %s has no %s", imp_quote_z(id).s, keys[i]);
    const char *at = json_string_value(json_object_get(item, "path"));
    if (at[0] == '/' || strstr(at, "..") != NULL)
        return imp_fail(err, IMP_FORMAT, "Manifest.json: the path %s leads out of the package",
                        imp_quote_z(at).s);
    int n = snprintf(name, sizeof name, "%s/Data/%s", path, at);
    if (n < 0 || (size_t)n >= sizeof name || (!imp_sys_is_file(name) && !imp_sys_is_dir(name)))
        return imp_fail(err, IMP_NOT_FOUND, "Manifest.json names Data/%s, which is not there",
                        imp_quote_z(at).s);
    return IMP_OK;
}

/* The paths of the model and of its weights (NULL: none), below Data. */
static imp_status check_manifest(const char *path, const json_t *m, const char **model, const char **weights,
                                 imp_error *err)
{
    const char *version = json_string_value(json_object_get(m, "fileFormatVersion"));
    const char *root = json_string_value(json_object_get(m, "rootModelIdentifier"));
    json_t *items = json_object_get(m, "itemInfoEntries"), *item;
    const char *id;
    if (version == NULL || strcmp(version, "1.0.0") != 0)
        return imp_fail(err, IMP_FORMAT, "Manifest.json: fileFormatVersion must be 1.0.0");
    if (root == NULL || !json_is_object(items) || json_object_get(items, root) == NULL)
        return imp_fail(err, IMP_FORMAT, "Manifest.json: rootModelIdentifier names no item");
    json_object_foreach(items, id, item)
    {
        IMP_TRY(check_item(path, id, item, err));
        const char *at = json_string_value(json_object_get(item, "path"));
        if (strcmp(id, root) == 0)
            *model = at;
        else if (strcmp(json_string_value(json_object_get(item, "name")), "weights") == 0)
            *weights = at;
    }
    return IMP_OK;
}

static imp_status open_files(const char *path, const json_t *manifest, imp_mlpackage *p, imp_error *err)
{
    const char *model = NULL, *weights = NULL;
    char name[4096];
    IMP_TRY(check_manifest(path, manifest, &model, &weights, err));
    snprintf(name, sizeof name, "%s/Data/%s", path, model);
    IMP_TRY(imp_sys_file_open(name, true, &p->model_file, err));
    if (weights == NULL) return IMP_OK;
    snprintf(name, sizeof name, "%s/Data/%s/weight.bin", path, weights);
    if (!imp_sys_is_file(name))
        return IMP_OK; /* a program may hold everything itself; a blob then is missing */
    IMP_TRY(imp_sys_file_open(name, true, &p->weight_file, err));
    p->weights = p->weight_file.data;
    p->n_weights = p->weight_file.n;
    return IMP_OK;
}

static imp_status open_manifest(const char *path, json_t **out, imp_error *err)
{
    imp_sys_file f;
    char name[4096];
    int n = snprintf(name, sizeof name, "%s/Manifest.json", path);
    if (n < 0 || (size_t)n >= sizeof name - 64) return imp_fail(err, IMP_INVALID, "the path is too long");
    IMP_TRY(imp_sys_file_open(name, false, &f, err));
    imp_status s = imp_json_load((const char *)f.data, (size_t)f.n, "Manifest.json", out, err);
    imp_sys_file_close(&f);
    return s;
}

imp_status imp_mlpackage_open(const char *path, imp_mlpackage **out, imp_error *err)
{
    json_t *manifest;
    *out = NULL;
    IMP_TRY(open_manifest(path, &manifest, err));
    imp_mlpackage *p = imp_sys_calloc(1, sizeof *p);
    imp_status s = p != NULL ? open_files(path, manifest, p, err)
                             : imp_fail(err, IMP_NOMEM, "out of memory while reading a package");
    json_decref(manifest);
    if (s == IMP_OK) s = parse_into(p, p->model_file.data, (size_t)p->model_file.n, err);
    if (s != IMP_OK) {
        imp_mlpackage_close(p);
        return imp_fail_in(err, s, path);
    }
    *out = p;
    return IMP_OK;
}
