/* The ML Program reader and writer: packages written by coremltools (tools/gen/mlpackage_golden.py) listed the same;
 * written again they read back the same; every rule broken in turn is found; 20,000 mutations, every truncation. */
#include <unistd.h>

#include "fmt_test.h"

#include "../../fuzz/mlpackage.c"

static void list_type(imp_buf *b, const imp_mil_type *t)
{
    char s[96];
    imp_buf_str(b, imp_mil_type_text(t, s));
}

static void list_value(imp_buf *b, const imp_mil_value *v)
{
    list_type(b, &v->type);
    if (v->type.dtype == IMP_MIL_STRING)
        imp_buf_fmt(b, " '%s'", (const char *)v->data);
    else
        imp_buf_fmt(b, " %08x", crc32_add(0, v->data, imp_mil_bytes(&v->type)));
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void list_op(imp_buf *b, const imp_mil_op *op)
{
    const char *key[32];
    uint32_t n = 0;
    for (uint32_t i = 0; i < op->n_out; i++) {
        imp_buf_fmt(b, "%s%s ", i > 0 ? ", " : "  ", op->out[i].name);
        list_type(b, &op->out[i].type);
    }
    imp_buf_fmt(b, " = %s(", op->type);
    for (uint32_t i = 0; i < op->n_arg; i++) key[n++] = op->arg[i].param;
    qsort(key, n, sizeof *key, by_name);
    for (uint32_t i = 0; i < n; i++) {
        const imp_mil_arg *a = imp_mil_arg_get(op, key[i]);
        imp_buf_fmt(b, "%s%s=", i > 0 ? "; " : "", key[i]);
        for (uint32_t k = 0; k < a->n; k++) {
            if (k > 0) imp_buf_str(b, "+");
            if (a->bind[k].value != NULL)
                list_value(b, a->bind[k].value);
            else
                imp_buf_str(b, a->bind[k].name);
        }
    }
    uint32_t n_arg = n;
    for (uint32_t i = 0; i < op->n_attr; i++) key[n++] = op->attr[i].name;
    qsort(key + n_arg, n - n_arg, sizeof *key, by_name);
    for (uint32_t i = n_arg; i < n; i++)
        for (uint32_t k = 0; k < op->n_attr; k++)
            if (strcmp(op->attr[k].name, key[i]) == 0) {
                imp_buf_fmt(b, "%s%s=", i > 0 ? "; " : "", key[i]);
                list_value(b, &op->attr[k].value);
            }
    imp_buf_str(b, ")\n");
}

static int by_func(const void *a, const void *b)
{
    return strcmp((*(const imp_mil_func *const *)a)->name, (*(const imp_mil_func *const *)b)->name);
}

static void list(imp_buf *b, const imp_mlpackage *p)
{
    const imp_mil_func *f[16];
    imp_buf_fmt(b, "spec %d\n", p->spec);
    for (uint32_t i = 0; i < p->n_func; i++) f[i] = &p->func[i];
    qsort(f, p->n_func, sizeof *f, by_func);
    for (uint32_t i = 0; i < p->n_func; i++) {
        imp_buf_fmt(b, "func %s %s (", f[i]->name, f[i]->opset);
        for (uint32_t k = 0; k < f[i]->n_in; k++) {
            imp_buf_fmt(b, "%s%s ", k > 0 ? ", " : "", f[i]->in[k].name);
            list_type(b, &f[i]->in[k].type);
        }
        imp_buf_str(b, ")\n");
        for (uint32_t k = 0; k < f[i]->n_op; k++) list_op(b, &f[i]->op[k]);
        imp_buf_str(b, "  return ");
        for (uint32_t k = 0; k < f[i]->n_out; k++)
            imp_buf_fmt(b, "%s%s", k > 0 ? ", " : "", f[i]->out[k].name);
        imp_buf_str(b, "\n");
    }
}

static imp_mlpackage *open_ok(const char *path)
{
    imp_mlpackage *p;
    imp_error err = {0};
    if (imp_mlpackage_open(path, &p, &err) != IMP_OK) fail_msg("%s", err.text);
    return p;
}

static void lists_as_coremltools(void **state)
{
    static const char *const names[] = {"ios16", "ios18", "two"};
    (void)state;
    for (size_t i = 0; i < IMP_COUNT(names); i++) {
        char path[256];
        imp_buf b = {0};
        snprintf(path, sizeof path, "tests/data/mlpackage/%s.mlpackage", names[i]);
        imp_mlpackage *p = open_ok(path);
        list(&b, p);
        snprintf(path, sizeof path, "tests/data/mlpackage/%s.dump", names[i]);
        expect_text(&b, path);
        imp_buf_deinit(&b);
        imp_mlpackage_close(p);
    }
}

/* ---- a program of our own, written and broken ------------------------------------------------------------- */

typedef struct made {
    imp_mlpackage p;
    imp_mil_func f[2];
    imp_mil_op op[2][8];
    imp_mil_out in[2], out[2][8];
    imp_mil_arg arg[2][8][4];
    imp_mil_bind bind[2][8][4], ret[2];
    imp_mil_attr val[2][8];
    imp_mil_value one;
    uint8_t weights[4][512]; /* as given to the writer */
} made;

static imp_mil_type type4(imp_mil_dtype t, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    return (imp_mil_type){.dtype = t, .rank = 4, .dim = {a, b, c, d}};
}

static void set_arg(made *m, int f, int op, const char *param, const char *name)
{
    imp_mil_op *o = &m->op[f][op];
    imp_mil_bind *b = &m->bind[f][op][o->n_arg];
    *b = (imp_mil_bind){.name = name};
    m->arg[f][op][o->n_arg] = (imp_mil_arg){param, 1, b};
    o->arg = m->arg[f][op];
    o->n_arg++;
}

static void set_op(made *m, int f, int op, const char *type, const char *name, imp_mil_type t)
{
    m->out[f][op] = (imp_mil_out){.name = name, .type = t};
    m->op[f][op] = (imp_mil_op){.type = type, .name = name, .n_out = 1, .out = &m->out[f][op]};
}

static void set_const(made *m, int f, int op, const char *name, imp_mil_type t, uint64_t offset)
{
    set_op(m, f, op, "const", name, t);
    m->val[f][op] = (imp_mil_attr){"val", {.type = t, .blob = true, .offset = offset}};
    m->op[f][op].attr = &m->val[f][op];
    m->op[f][op].n_attr = 1;
}

/* Two functions over the same weights, one per length: relu(conv(x, palette[indices]) * 2). */
static void make(made *m, const uint64_t at[3])
{
    static const uint16_t two = 0x4000;
    memset(m, 0, sizeof *m);
    for (int f = 0; f < 2; f++) {
        uint64_t s = f == 0 ? 8 : 16;
        m->in[f] = (imp_mil_out){.name = "x", .type = type4(IMP_MIL_F16, 1, 10, 1, s)};
        set_const(m, f, 0, "w_idx", type4(IMP_MIL_U3, 5, 10, 1, 1), at[0]);
        set_const(m, f, 1, "w_lut",
                  (imp_mil_type){.dtype = IMP_MIL_F16, .rank = 6, .dim = {1, 1, 1, 1, 8, 1}}, at[1]);
        set_op(m, f, 2, "constexpr_lut_to_dense", "w", type4(IMP_MIL_F16, 5, 10, 1, 1));
        set_arg(m, f, 2, "indices", "w_idx");
        set_arg(m, f, 2, "lut", "w_lut");
        set_op(m, f, 3, "conv", "y", type4(IMP_MIL_F16, 1, 5, 1, s));
        set_arg(m, f, 3, "x", "x");
        set_arg(m, f, 3, "weight", "w");
        set_op(m, f, 4, "const", "two", (imp_mil_type){.dtype = IMP_MIL_F16});
        m->val[f][4] = (imp_mil_attr){"val", {.type = {.dtype = IMP_MIL_F16}, .data = &two}};
        m->op[f][4].attr = &m->val[f][4];
        m->op[f][4].n_attr = 1;
        set_op(m, f, 5, "mul", "z", type4(IMP_MIL_F16, 1, 5, 1, s));
        set_arg(m, f, 5, "x", "y");
        set_arg(m, f, 5, "y", "two");
        set_op(m, f, 6, "relu", "out", type4(IMP_MIL_F16, 1, 5, 1, s));
        set_arg(m, f, 6, "x", "z");
        m->ret[f] = (imp_mil_bind){.name = "out"};
        m->f[f] = (imp_mil_func){.name = f == 0 ? "s8" : "s16",
                                 .opset = "CoreML8",
                                 .n_in = 1,
                                 .n_op = 7,
                                 .n_out = 1,
                                 .in = &m->in[f],
                                 .op = m->op[f],
                                 .out = &m->ret[f]};
    }
    m->p = (imp_mlpackage){.spec = 9, .n_func = 2, .func = m->f, .default_func = "s8", .brief = "test"};
}

enum { IDX_BYTES = (50 * 3 + 7) / 8 };
static uint8_t idx[IDX_BYTES], lut[16];

static void write_made(const char *path, made *m)
{
    imp_mlwriter *w;
    imp_error err = {0};
    uint64_t at[3];
    rng r = {99};
    for (size_t i = 0; i < sizeof idx; i++) idx[i] = (uint8_t)rng_u64(&r);
    idx[sizeof idx - 1] &= 0x3f; /* 150 bits: two of padding */
    for (size_t i = 0; i < sizeof lut; i++) lut[i] = (uint8_t)(rng_u64(&r) & 0x3b);
    assert_int_equal(imp_mlwriter_open(path, &w, &err), IMP_OK);
    assert_int_equal(imp_mlwriter_blob(w, IMP_MIL_U3, 50, &at[0], &err), IMP_OK);
    assert_int_equal(imp_mlwriter_data(w, idx, 7, &err), IMP_OK);
    assert_int_equal(imp_mlwriter_data(w, idx + 7, sizeof idx - 7, &err), IMP_OK);
    assert_int_equal(imp_mlwriter_blob(w, IMP_MIL_F16, 8, &at[1], &err), IMP_OK);
    assert_int_equal(imp_mlwriter_data(w, lut, sizeof lut, &err), IMP_OK);
    make(m, at);
    if (imp_mlwriter_finish(w, &m->p, &err) != IMP_OK) fail_msg("%s", err.text);
}

static const char *scratch(char out[256], const char *name)
{
    const char *dir = getenv("TMPDIR");
    snprintf(out, 256, "%s/imp-mlpackage-%d-%s", dir != NULL ? dir : "/tmp", (int)getpid(), name);
    return out;
}

static void remove_package(const char *path)
{
    static const char *const files[] = {"Data/com.apple.CoreML/weights/weight.bin",
                                        "Data/com.apple.CoreML/weights",
                                        "Data/com.apple.CoreML/model.mlmodel",
                                        "Data/com.apple.CoreML",
                                        "Data",
                                        "Manifest.json",
                                        "."};
    for (size_t i = 0; i < IMP_COUNT(files); i++) {
        char p[512];
        snprintf(p, sizeof p, "%s/%s", path, files[i]);
        (void)(unlink(p) != 0 && rmdir(strcmp(files[i], ".") == 0 ? path : p));
    }
}

static void writes_and_reads(void **state)
{
    char path[256];
    made *m = calloc(1, sizeof *m);
    imp_buf a = {0}, b = {0};
    (void)state;
    write_made(scratch(path, "w.mlpackage"), m);
    imp_mlpackage *p = open_ok(path);
    assert_int_equal(p->n_func, 2);
    assert_string_equal(p->default_func, "s8");
    assert_string_equal(p->brief, "test");
    const imp_mil_value *v = p->func[1].var[1].value; /* the indices */
    assert_int_equal(v->type.dtype, IMP_MIL_U3);
    assert_memory_equal(v->data, idx, sizeof idx);
    unsigned bit = 3 * 17; /* element 17 straddles bytes 6 and 7 */
    assert_int_equal((int)imp_mil_element(IMP_MIL_U3, v->data, 17),
                     (idx[bit / 8] >> bit % 8 | idx[bit / 8 + 1] << (8 - bit % 8)) & 7);
    assert_memory_equal(p->func[0].var[2].value->data, lut, sizeof lut);
    assert_ptr_equal(p->func[0].var[2].value->data, p->func[1].var[2].value->data); /* shared */
    /* the first word of the file counts the blobs; data lies on 64 bytes */
    assert_int_equal(p->weights[0], 2);
    assert_int_equal((uintptr_t)((const uint8_t *)v->data - p->weights) % 64, 0);
    list(&a, p);
    list(&b, p);
    imp_buf_deinit(&a);
    imp_buf_deinit(&b);
    imp_mlpackage_close(p);
    remove_package(path);
    free(m);
}

/* ---- rules broken one by one --------------------------------------------------------------------------------- */

typedef struct broken {
    const char *what, *says;
    void (*change)(made *m);
} broken;

static void spec_low(made *m)
{
    m->p.spec = 8;
}
static void spec_new(made *m)
{
    m->p.spec = 11;
}
static void opset_unknown(made *m)
{
    m->f[0].opset = "CoreML12";
}
static void out_dim(made *m)
{
    m->out[0][3].type.dim[1] = 6;
}
static void out_dtype(made *m)
{
    m->out[0][6].type.dtype = IMP_MIL_F32;
}
static void unknown_op(made *m)
{
    m->op[0][6].type = "frobnicate";
}
static void missing_param(made *m)
{
    m->op[0][5].n_arg = 1;
}
static void unknown_param(made *m)
{
    m->arg[0][6][0].param = "q";
}
static void undefined(made *m)
{
    m->bind[0][6][0].name = "nothing";
}
static void duplicate(made *m)
{
    m->out[0][6].name = "z", m->ret[0].name = "z";
}
static void order(made *m)
{
    imp_mil_op t = m->op[0][5];
    m->op[0][5] = m->op[0][6];
    m->op[0][6] = t;
}
static void bad_name(made *m)
{
    m->out[0][5].name = "a-b", m->bind[0][6][0].name = "a-b";
}
static void offset_off(made *m)
{
    m->val[0][0].value.offset += 64;
}
static void offset_far(made *m)
{
    m->val[0][0].value.offset = 1 << 20;
}
static void offset_odd(made *m)
{
    m->val[0][0].value.offset += 4;
}
static void blob_dtype(made *m)
{
    m->val[0][1].value.type.dtype = m->out[0][1].type.dtype = IMP_MIL_F32;
}
static void blob_size(made *m)
{
    m->val[0][0].value.type.dim[0] = m->out[0][0].type.dim[0] = 6;
}
static void const_type(made *m)
{
    m->out[0][0].type.dim[0] = 10, m->out[0][0].type.dim[1] = 5;
}
static void default_gone(made *m)
{
    m->p.default_func = "s9";
}
static void same_name(made *m)
{
    m->f[1].name = "s8";
}
static void lone_main(made *m)
{
    m->p.n_func = 1, m->p.default_func = NULL;
}
static void huge(made *m)
{
    m->in[0].type.dim[1] = 1ull << 31;
}
static void no_output(made *m)
{
    m->ret[0].name = "zz";
}

static const broken all_broken[] = {
    {"several functions before version 9", "version", spec_low},
    {"a version from the future", "version 11", spec_new},
    {"an opset nobody knows", "opset", opset_unknown},
    {"a result's size", "declared as", out_dim},
    {"a result's type", "declared as", out_dtype},
    {"an unknown op", "frobnicate", unknown_op},
    {"a parameter missing", "is missing", missing_param},
    {"a parameter too many", "missing", unknown_param},
    {"an undefined name", "before anything makes it", undefined},
    {"a name twice", "twice", duplicate},
    {"ops out of order", "before anything makes it", order},
    {"a bad identifier", "no valid name", bad_name},
    {"an offset into data", "no blob", offset_off},
    {"an offset behind the end", "no blob can be", offset_far},
    {"an odd offset", "no blob can be", offset_odd},
    {"a blob of another type", "data type", blob_dtype},
    {"a blob of another size", "bytes, the constant needs", blob_size},
    {"a const declared with another shape", "declared as", const_type},
    {"a default that is no function", "default function", default_gone},
    {"two functions of one name", "two functions", same_name},
    {"one function not named main", "named main", lone_main},
    {"an absurd size", "out of range", huge},
    {"an output that is nothing", NULL, no_output},
};

static void finds_what_is_broken(void **state)
{
    char path[256];
    made *m = calloc(1, sizeof *m);
    (void)state;
    write_made(scratch(path, "b.mlpackage"), m);
    imp_mlpackage *p = open_ok(path), *q;
    uint64_t at[3] = {p->func[0].var[1].value->offset, p->func[0].var[2].value->offset, 0};
    for (size_t i = 0; i < IMP_COUNT(all_broken); i++) {
        imp_buf b = {0};
        imp_error err = {0};
        make(m, at);
        all_broken[i].change(m);
        imp_status s = imp_mlpackage_encode(&m->p, &b, &err);
        if (all_broken[i].says == NULL) {
            assert_int_not_equal(s, IMP_OK); /* refused when written */
        } else {
            s = imp_mlpackage_parse(b.data, b.n, p->weights, p->n_weights, &q, &err);
            if (s == IMP_OK) fail_msg("not found: %s", all_broken[i].what);
            if (strstr(err.text, all_broken[i].says) == NULL)
                fail_msg("%s: %s", all_broken[i].what, err.text);
        }
        imp_buf_deinit(&b);
    }
    imp_mlpackage_close(p);
    remove_package(path);
    free(m);
}

/* The description against the program: change bytes of the description alone. */
static void finds_a_wrong_description(void **state)
{
    imp_sys_file f = open_data("tests/data/mlpackage/two.mlpackage/Data/com.apple.CoreML/model.mlmodel");
    imp_sys_file w = open_data("tests/data/mlpackage/two.mlpackage/Data/com.apple.CoreML/weights/weight.bin");
    uint8_t *p = malloc(f.n);
    imp_mlpackage *q;
    imp_error err = {0};
    (void)state;
    memcpy(p, f.data, f.n);
    uint8_t *shape = NULL; /* [1, 16, 1, 8] as packed varints: field 1 of an array */
    for (size_t i = 0; i + 6 < f.n && shape == NULL; i++)
        if (memcmp(p + i, "\x0a\x04\x01\x10\x01\x08", 6) == 0) shape = p + i;
    assert_non_null(shape);
    shape[5] = 9;
    assert_int_equal(imp_mlpackage_parse(p, f.n, w.data, w.n, &q, &err), IMP_FORMAT);
    assert_non_null(strstr(err.text, "the description says"));
    memcpy(p, f.data, f.n);
    uint8_t *name = NULL;
    for (size_t i = 0; i + 6 < f.n && name == NULL; i++)
        if (memcmp(p + i, "\x0a\x04mask", 6) == 0) name = p + i;
    assert_non_null(name);
    name[2] = 'M';
    assert_int_equal(imp_mlpackage_parse(p, f.n, w.data, w.n, &q, &err), IMP_FORMAT);
    assert_non_null(strstr(err.text, "the description has"));
    free(p);
    imp_sys_file_close(&f);
    imp_sys_file_close(&w);
}

static void write_text(const char *dir, const char *name, const char *text)
{
    char path[512];
    imp_error err = {0};
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(imp_sys_file_write(path, text, strlen(text), &err), IMP_OK);
}

static void refuses_bad_folders(void **state)
{
    static const struct {
        const char *manifest, *says;
    } bad[] = {
        {"{}", "fileFormatVersion"},
        {"[1]", "Manifest.json"},
        {"{\"fileFormatVersion\":\"1.0.0\",\"rootModelIdentifier\":\"a\",\"itemInfoEntries\":{}}",
         "names no item"},
        {"{\"fileFormatVersion\":\"1.0.0\",\"rootModelIdentifier\":\"a\",\"itemInfoEntries\":{\"a\":{"
         "\"path\":\"x\"}}}",
         "has no name"},
        {"{\"fileFormatVersion\":\"1.0.0\",\"rootModelIdentifier\":\"a\",\"itemInfoEntries\":{\"a\":{"
         "\"path\":\"../x\",\"name\":\"\","
         "\"author\":\"\",\"description\":\"\"}}}",
         "out of the package"},
        {"{\"fileFormatVersion\":\"1.0.0\",\"rootModelIdentifier\":\"a\",\"itemInfoEntries\":{\"a\":{"
         "\"path\":\"x\",\"name\":\"\","
         "\"author\":\"\",\"description\":\"\"}}}",
         "not there"},
    };
    char path[256];
    imp_mlpackage *p;
    imp_error err = {0};
    made *m = calloc(1, sizeof *m);
    (void)state;
    assert_int_equal(imp_mlpackage_open("/nonexistent.mlpackage", &p, &err), IMP_NOT_FOUND);
    write_made(scratch(path, "f.mlpackage"), m);
    char blob[512];
    snprintf(blob, sizeof blob, "%s/Data/com.apple.CoreML/weights/weight.bin", path);
    assert_int_equal(unlink(blob), 0);
    assert_int_equal(imp_mlpackage_open(path, &p, &err), IMP_FORMAT);
    assert_non_null(strstr(err.text, "weight.bin"));
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        write_text(path, "Manifest.json", bad[i].manifest);
        assert_int_not_equal(imp_mlpackage_open(path, &p, &err), IMP_OK);
        if (strstr(err.text, bad[i].says) == NULL) fail_msg("%s: %s", bad[i].manifest, err.text);
    }
    remove_package(path);
    free(m);
}

static void survives_mutations(void **state)
{
    static const char *const seeds[] = {"ios16", "ios18"};
    rng r = {4711};
    (void)state;
    for (size_t i = 0; i < IMP_COUNT(seeds); i++) {
        char path[256];
        snprintf(path, sizeof path, "fuzz/corpus/mlpackage/%s", seeds[i]);
        imp_sys_file f = open_data(path);
        for (int k = 0; k < 10000; k++) {
            size_t n;
            uint8_t *p = mutate(&r, f.data, f.n, &n);
            (void)LLVMFuzzerTestOneInput(p, n);
            free(p);
        }
        for (size_t n = 0; n < f.n; n += 37) {
            uint8_t *p = malloc(n > 0 ? n : 1);
            memcpy(p, f.data, n);
            (void)LLVMFuzzerTestOneInput(p, n);
            free(p);
        }
        imp_sys_file_close(&f);
    }
}

/* Each allocation, read and write of writing and reading a package fails in turn. */
static void every_call_may_fail(void **state)
{
    char path[256];
    made *m = calloc(1, sizeof *m);
    (void)state;
    scratch(path, "s.mlpackage");
    for (uint64_t n = 1; n < 2000; n++) {
        imp_mlwriter *w = NULL;
        imp_mlpackage *p = NULL;
        imp_error err = {0};
        uint64_t at[3] = {0};
        imp_sys_fail_at(n);
        imp_status s = imp_mlwriter_open(path, &w, &err);
        if (s == IMP_OK) s = imp_mlwriter_blob(w, IMP_MIL_U3, 50, &at[0], &err);
        if (s == IMP_OK) s = imp_mlwriter_data(w, idx, sizeof idx, &err);
        if (s == IMP_OK) s = imp_mlwriter_blob(w, IMP_MIL_F16, 8, &at[1], &err);
        if (s == IMP_OK) s = imp_mlwriter_data(w, lut, sizeof lut, &err);
        make(m, at);
        if (s == IMP_OK)
            s = imp_mlwriter_finish(w, &m->p, &err);
        else
            imp_mlwriter_abandon(w);
        if (s == IMP_OK) s = imp_mlpackage_open(path, &p, &err);
        imp_sys_fail_at(0);
        imp_mlpackage_close(p);
        remove_package(path);
        if (s == IMP_OK) break;
        assert_non_null(err.text[0] != 0 ? err.text : NULL);
        assert_true(n < 1999);
    }
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_as_coremltools), cmocka_unit_test(writes_and_reads),
        cmocka_unit_test(finds_what_is_broken), cmocka_unit_test(finds_a_wrong_description),
        cmocka_unit_test(refuses_bad_folders),  cmocka_unit_test(survives_mutations),
        cmocka_unit_test(every_call_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
