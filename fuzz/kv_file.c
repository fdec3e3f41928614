/* fuzz/kv_file.c - any bytes as a saved block of a KV cache: nothing but the very block that is wanted is taken.
 *
 * The sums are put right first, as one who forges a file would, so that what lies behind them is reached; and the bytes are
 * tried as they are. Run by `make fuzz`; its corpus (tools/gen/kv_corpus.py) is replayed by `make test`. */
#include <stdlib.h>

#include "sched/kv_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { BLOCK_BYTES = 96 };

static void require(bool ok)
{
    if (!ok) abort();
}

static void wanted(imp_kv_model *m, imp_kv_link *l)
{
    *m = (imp_kv_model){.content = {1, 2},
                        .graph = {3, 4},
                        .program = {5, 6},
                        .block_bytes = BLOCK_BYTES,
                        .kv_dtype = 1,
                        .n_kv_layer = 2,
                        .block_tok = IMP_KV_BLOCK,
                        .layout = 1};
    *l = (imp_kv_link){.parent = {7, 8}, .hash = {9, 10}, .scope = 11, .depth = 12};
    for (int32_t i = 0; i < IMP_KV_BLOCK; i++) l->token[i] = i;
}

static void try_file(const uint8_t *p, size_t n)
{
    imp_kv_model m;
    imp_kv_link l;
    imp_kv_header h;
    imp_error err = {0};
    const uint8_t *block;
    wanted(&m, &l);
    imp_status s = imp_kv_file_check(p, n, &m, &l, &block, &err);
    require((s == IMP_OK) == (block != NULL));
    if (s != IMP_OK) {
        require(s == IMP_FORMAT && err.text[0] != 0 && strchr(err.text, '\n') == NULL);
    } else { /* then it is the file that would be written for these bytes, but for the name in it */
        require(n == sizeof h + BLOCK_BYTES && block == p + sizeof h);
        imp_kv_file_header(&m, &l, "", block, &h);
        imp_kv_header was;
        memcpy(&was, p, sizeof was);
        require(memcmp(&was.model, &h.model, sizeof h.model) == 0 &&
                memcmp(&was.link, &h.link, sizeof h.link) == 0);
        require(memcmp(was.data_sum, h.data_sum, sizeof h.data_sum) == 0);
    }
    if (imp_kv_file_peek(p, n, &h, &err) == IMP_OK)
        require(memchr(h.model_name, 0, sizeof h.model_name) != NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    try_file(data, size);
    uint8_t *copy = malloc(size + 1);
    require(copy != NULL);
    memcpy(copy, data, size);
    imp_kv_header h;
    if (size >= sizeof h) {
        uint64_t n = size - sizeof h;
        memcpy(&h, copy, sizeof h);
        for (unsigned i = 0; i < 2 && n > 0; i++) h.data_sum[i] = imp_sum64(copy + sizeof h, n, i);
        h.sum = imp_sum64(&h, offsetof(imp_kv_header, sum), IMP_KV_FILE_VERSION);
        memcpy(copy, &h, sizeof h);
        try_file(copy, size);
    }
    uint64_t hash[2];
    copy[size] = 0;
    (void)imp_kv_file_name_read((const char *)copy, hash); /* as a file's name */
    free(copy);
    return 0;
}
