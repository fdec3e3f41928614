/* fuzz/mlpackage.c - any bytes as an ML Program with its weights: it opens or it gives a reason; what opens has every
 * constant inside its bytes, and can be written again and read back the same.
 *
 * Input: u32 n, model.mlmodel's n bytes, then weight.bin. Run by `make fuzz`; replayed by `make test`. */
#include <stdlib.h>

#include "fmt/mlpackage.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile double sink;

static void require(bool ok)
{
    if (!ok) abort();
}

static void read_value(const imp_mil_value *v)
{
    uint64_t n = imp_mil_n_elem(&v->type);
    require(v->data != NULL);
    if (v->type.dtype == IMP_MIL_STRING)
        sink += (double)strlen(v->data);
    else
        sink += imp_mil_element(v->type.dtype, v->data, 0) + imp_mil_element(v->type.dtype, v->data, n - 1);
}

static void walk(const imp_mlpackage *p)
{
    for (uint32_t i = 0; i < p->n_func; i++) {
        const imp_mil_func *f = &p->func[i];
        for (uint32_t k = 0; k < f->n_var; k++)
            if (f->var[k].value != NULL) read_value(f->var[k].value);
        for (uint32_t k = 0; k < f->n_op; k++)
            for (uint32_t a = 0; a < f->op[k].n_arg; a++)
                for (uint32_t j = 0; j < f->op[k].arg[a].n; j++) {
                    const imp_mil_bind *b = &f->op[k].arg[a].bind[j];
                    if (b->value != NULL)
                        read_value(b->value);
                    else
                        require(b->var < f->n_var && strcmp(f->var[b->var].name, b->name) == 0);
                }
    }
}

static void write_again(const imp_mlpackage *p, const uint8_t *weights, size_t n)
{
    imp_buf a = {0}, b = {0};
    imp_mlpackage *q = NULL;
    imp_error err = {0};
    require(imp_mlpackage_encode(p, &a, &err) == IMP_OK);
    require(imp_mlpackage_parse(a.data, a.n, weights, n, &q, &err) == IMP_OK);
    require(imp_mlpackage_encode(q, &b, &err) == IMP_OK);
    require(a.n == b.n && memcmp(a.data, b.data, a.n) == 0);
    imp_mlpackage_close(q);
    imp_buf_deinit(&a);
    imp_buf_deinit(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t n;
    if (size < 4) return 0;
    memcpy(&n, data, 4);
    if (n > size - 4) n = (uint32_t)size - 4;
    imp_mlpackage *p = NULL;
    imp_error err = {0};
    imp_status s = imp_mlpackage_parse(data + 4, n, data + 4 + n, size - 4 - n, &p, &err);
    require((s == IMP_OK) == (p != NULL));
    if (s != IMP_OK) {
        require(err.status == s && err.text[0] != 0 && strchr(err.text, '\n') == NULL);
        return 0;
    }
    walk(p);
    write_again(p, data + 4 + n, size - 4 - n);
    imp_mlpackage_close(p);
    return 0;
}
