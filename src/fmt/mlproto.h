/* fmt/mlproto.h - protobuf's wire format, as little of it as ML Programs need; private to src/fmt.
 *
 * Idea:    writing appends to a buffer and puts a message's length in front when it is closed; reading walks the
 *          fields of one message in place. */
#ifndef IMP_FMT_MLPROTO_H
#define IMP_FMT_MLPROTO_H

#include "base/base.h"

typedef enum pb_wire { PB_VARINT = 0, PB_64 = 1, PB_BYTES = 2, PB_32 = 5 } pb_wire;

/* ---- writing ---- */
void pb_varint(imp_buf *b, uint64_t v);
void pb_uint(imp_buf *b, uint32_t field, uint64_t v);
void pb_bytes(imp_buf *b, uint32_t field, const void *p, size_t n);
void pb_str(imp_buf *b, uint32_t field, const char *s);
size_t pb_open(imp_buf *b, uint32_t field); /* begin a submessage; give the result to pb_close */
void pb_close(imp_buf *b, size_t at);

/* ---- reading ---- */
typedef struct pb_reader {
    const uint8_t *p, *end;
} pb_reader;
typedef struct pb_field {
    uint32_t id;
    pb_wire wire;
    uint64_t v;    /* varint, or the bits of 32 and 64 bit fields */
    pb_reader sub; /* bytes */
} pb_field;

/* 1: a field, 0: the end, -1: malformed. */
int pb_next(pb_reader *r, pb_field *f);
bool pb_read_varint(pb_reader *r, uint64_t *v);
static inline size_t pb_left(const pb_reader *r)
{
    return (size_t)(r->end - r->p);
}

#endif
