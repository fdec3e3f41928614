/* fuzz/safetensors.c - any bytes as a safetensors file: it opens or it gives a reason; what opens can be read to its
 * last element.
 *
 * Run by `make fuzz`; its corpus is replayed by `make test`, and tests/unit/fmt_hostile.c feeds it mutations. */
#include <stdlib.h>

#include "fmt/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink; /* what was read goes here, so that it is read */

static void require(bool ok)
{
    if (!ok) abort();
}

static uint64_t read_tensors(const imp_safetensors *s)
{
    uint64_t sum = 0, bytes = 0;
    for (uint64_t i = 0; i < imp_safetensors_n(s); i++) {
        const char *name;
        const imp_tensor *t = imp_safetensors_at(s, i, &name);
        require(imp_safetensors_get(s, name) == t);
        bytes += imp_tensor_bytes(t);
        require(bytes <= imp_safetensors_file_bytes(s));
        if (imp_tensor_n_elem(t) == 0) continue;
        uint64_t n_col = imp_tensor_n_col(t), n_row = imp_tensor_n_row(t);
        float *row = malloc(n_col * sizeof *row);
        require(row != NULL);
        for (uint64_t r = 0; r < n_row; r++) {
            imp_tensor_row_f32(t, r, row);
            sum += row[n_col - 1] > 0;
        }
        free(row);
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    imp_safetensors *f = NULL;
    imp_error err = {0};
    imp_status s = imp_safetensors_parse(data, size, &f, &err);
    require((s == IMP_OK) == (f != NULL));
    if (s != IMP_OK) {
        require(err.status == s && err.text[0] != 0 && strchr(err.text, '\n') == NULL);
        return 0;
    }
    const char *format = imp_safetensors_metadata(f, "format");
    sink = read_tensors(f) + (format != NULL ? strlen(format) : 0);
    imp_safetensors_close(f);
    return 0;
}
