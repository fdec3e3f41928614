/* sched/kv_file.c - a block of a KV cache as a file: 64 tokens of one sequence, all layers.
 *
 * Place:   kv_store.c reads and writes them.
 * Idea:    nothing in a file is ever trusted or used as a size: who reads knows every field that the file must have (the
 *          model, the place in the chain, the very tokens) and compares. What differs makes the file none at all.
 *          A file holds its own tokens and the hash of the chain before it, not all tokens of the chain: the hash has 128
 *          bits under a secret key, so equal hashes mean equal chains, and a long prompt is not written down again with
 *          each of its blocks.
 * Layout:  imp_kv_header, then the block as dev.h's kv_export gives it. In this machine's byte order: another one's files
 *          have another version.
 * Source:  none; llama.cpp's state files were looked at for what users expect of them. */
#include "sched/kv_file.h"

#include <stdio.h>

static const char MAGIC[8] = {'I', 'M', 'P', 'K', 'V', 'B', 'L', 'K'};

_Static_assert(sizeof(imp_kv_model) == 7 * 8 + 4 * 4, "compared as bytes: no padding");
_Static_assert(sizeof(imp_kv_link) == 6 * 8 + IMP_KV_BLOCK * 4, "compared as bytes: no padding");
_Static_assert(sizeof(imp_kv_header) == 16 + 64 + sizeof(imp_kv_model) + sizeof(imp_kv_link) + 24,
               "summed as bytes: no padding");

void imp_kv_file_name(const uint8_t key[16], const imp_kv_model *m, const uint64_t hash[2],
                      char out[IMP_KV_FILE_NAME])
{
    struct {
        imp_kv_model m;
        uint64_t hash[2];
    } in = {*m, {hash[0], hash[1]}};
    uint64_t h[2];
    imp_siphash(key, &in, sizeof in, h);
    (void)snprintf(out, IMP_KV_FILE_NAME, "%016llx%016llx.kv", (unsigned long long)h[0],
                   (unsigned long long)h[1]);
}

bool imp_kv_file_name_read(const char *name, uint64_t out[2])
{
    out[0] = out[1] = 0;
    for (unsigned i = 0; i < 32; i++) {
        char c = name[i];
        uint64_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint64_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (uint64_t)(c - 'a') + 10;
        else
            return false;
        out[i / 16] = out[i / 16] << 4 | digit;
    }
    return strcmp(name + 32, ".kv") == 0;
}

static uint64_t header_sum(const imp_kv_header *h)
{
    return imp_sum64(h, offsetof(imp_kv_header, sum), IMP_KV_FILE_VERSION);
}

static void sum_data(const void *data, uint64_t n, uint64_t sum[2])
{
    for (unsigned i = 0; i < 2; i++) sum[i] = imp_sum64(data, (size_t)n, i);
}

void imp_kv_file_header(const imp_kv_model *m, const imp_kv_link *link, const char *model_name,
                        const void *data, imp_kv_header *out)
{
    *out = (imp_kv_header){
        .version = IMP_KV_FILE_VERSION, .header_bytes = sizeof *out, .model = *m, .link = *link};
    memcpy(out->magic, MAGIC, sizeof MAGIC);
    (void)snprintf(out->model_name, sizeof out->model_name, "%.63s", model_name);
    sum_data(data, m->block_bytes, out->data_sum);
    out->sum = header_sum(out);
}

imp_status imp_kv_file_peek(const uint8_t *p, uint64_t n, imp_kv_header *out, imp_error *err)
{
    if (n < sizeof *out) return imp_fail(err, IMP_FORMAT, "it is cut short");
    memcpy(out, p, sizeof *out);
    if (memcmp(out->magic, MAGIC, sizeof MAGIC) != 0)
        return imp_fail(err, IMP_FORMAT, "it is no block of a KV cache");
    if (out->version != IMP_KV_FILE_VERSION || out->header_bytes != sizeof *out)
        return imp_fail(err, IMP_FORMAT, "it was written by another version");
    if (out->sum != header_sum(out)) return imp_fail(err, IMP_FORMAT, "its header is damaged");
    out->model_name[sizeof out->model_name - 1] = '\0';
    return IMP_OK;
}

imp_status imp_kv_file_check(const uint8_t *p, uint64_t n, const imp_kv_model *m, const imp_kv_link *want,
                             const uint8_t **data, imp_error *err)
{
    imp_kv_header h;
    *data = NULL;
    IMP_TRY(imp_kv_file_peek(p, n, &h, err));
    const imp_kv_model *f = &h.model;
    if (memcmp(f->content, m->content, sizeof f->content) != 0 ||
        memcmp(f->graph, m->graph, sizeof f->graph) != 0)
        return imp_fail(err, IMP_FORMAT, "it belongs to another model");
    if (memcmp(f->program, m->program, sizeof f->program) != 0)
        return imp_fail(err, IMP_FORMAT, "it was computed by another program or device");
    if (memcmp(f, m, sizeof *f) != 0)
        return imp_fail(err, IMP_FORMAT, "its cache has another type, layout or size");
    if (h.link.scope != want->scope) return imp_fail(err, IMP_FORMAT, "it is another client's");
    if (memcmp(&h.link, want, sizeof *want) != 0) return imp_fail(err, IMP_FORMAT, "it holds other tokens");
    if (n - sizeof h != m->block_bytes)
        return imp_fail(err, IMP_FORMAT,
                        n - sizeof h < m->block_bytes ? "it is cut short" : "it is too long");
    uint64_t sum[2];
    sum_data(p + sizeof h, m->block_bytes, sum);
    if (memcmp(sum, h.data_sum, sizeof sum) != 0) return imp_fail(err, IMP_FORMAT, "its data are damaged");
    *data = p + sizeof h;
    return IMP_OK;
}
