/* sched/kv_file.h - a block of a KV cache as a file. */
#ifndef IMP_KV_FILE_H
#define IMP_KV_FILE_H

#include "dev/dev.h"

enum { IMP_KV_FILE_VERSION = 1, IMP_KV_FILE_NAME = 40 };

/* Everything besides the tokens that the bytes of a cache depend on. No padding: compared as bytes. */
typedef struct imp_kv_model {
    uint64_t content[2]; /* sums of the weights' bytes */
    uint64_t graph[2];   /* of ops, shapes, constants and tables */
    uint64_t program[2]; /* of the program, device and instruction sets, which decide the last bits */
    uint64_t block_bytes;
    uint32_t kv_dtype, n_kv_layer, block_tok, layout; /* layout: of dev.h's kv_export */
} imp_kv_model;

/* A block's place: what comes before it, what is in it, whose it is. No padding. */
typedef struct imp_kv_link {
    uint64_t parent[2],
        hash[2];    /* of the chain up to the block before it, and up to and with this one (prefix.h) */
    uint64_t scope; /* whose requests may find it */
    uint64_t depth; /* blocks before it */
    int32_t token[IMP_KV_BLOCK];
} imp_kv_link;

typedef struct imp_kv_header {
    char magic[8];
    uint32_t version, header_bytes;
    char model_name[64]; /* for people */
    imp_kv_model model;
    imp_kv_link link;
    uint64_t data_sum[2];
    uint64_t sum; /* of the header up to here */
} imp_kv_header;

/* "0123456789abcdef0123456789abcdef.kv": by key, model and chain, so that it tells nothing of the tokens. */
void imp_kv_file_name(const uint8_t key[16], const imp_kv_model *m, const uint64_t hash[2],
                      char out[IMP_KV_FILE_NAME]);
/* The hash that a name spells; false: it is none of ours. */
bool imp_kv_file_name_read(const char *name, uint64_t out[2]);
/* The header of a file whose data are these m->block_bytes. */
void imp_kv_file_header(const imp_kv_model *m, const imp_kv_link *link, const char *model_name,
                        const void *data, imp_kv_header *out);
/* Are these n bytes the block that is wanted, whole? *data: the block's bytes, within p. FORMAT says what is wrong. */
IMP_MUST_USE imp_status imp_kv_file_check(const uint8_t *p, uint64_t n, const imp_kv_model *m,
                                          const imp_kv_link *want, const uint8_t **data, imp_error *err);
/* What a file's first bytes say, whatever model it is of. FORMAT: nothing that can be relied on. */
IMP_MUST_USE imp_status imp_kv_file_peek(const uint8_t *p, uint64_t n, imp_kv_header *out, imp_error *err);

#endif
