/* fmt/mlproto.c - protobuf's wire format: tags, varints, length-prefixed messages.
 *
 * Source:  the published description of the encoding. Groups (wire types 3 and 4) are refused. */
#include "fmt/mlproto.h"

static size_t varint_put(uint8_t out[10], uint64_t v)
{
    size_t n = 0;
    while (v >= 0x80) out[n++] = (uint8_t)(v | 0x80), v >>= 7;
    out[n++] = (uint8_t)v;
    return n;
}

void pb_varint(imp_buf *b, uint64_t v)
{
    uint8_t t[10];
    imp_buf_add(b, t, varint_put(t, v));
}

void pb_uint(imp_buf *b, uint32_t field, uint64_t v)
{
    pb_varint(b, (uint64_t)field << 3 | PB_VARINT);
    pb_varint(b, v);
}

void pb_bytes(imp_buf *b, uint32_t field, const void *p, size_t n)
{
    pb_varint(b, (uint64_t)field << 3 | PB_BYTES);
    pb_varint(b, n);
    imp_buf_add(b, p, n);
}

void pb_str(imp_buf *b, uint32_t field, const char *s)
{
    pb_bytes(b, field, s, strlen(s));
}

size_t pb_open(imp_buf *b, uint32_t field)
{
    pb_varint(b, (uint64_t)field << 3 | PB_BYTES);
    return b->n;
}

void pb_close(imp_buf *b, size_t at)
{
    uint8_t t[10];
    if (b->failed) return;
    size_t body = b->n - at, n = varint_put(t, body);
    imp_buf_add(b, t, n); /* room for the length; its bytes move to the front */
    if (b->failed) return;
    memmove(b->data + at + n, b->data + at, body);
    memcpy(b->data + at, t, n);
}

bool pb_read_varint(pb_reader *r, uint64_t *v)
{
    *v = 0;
    for (unsigned shift = 0; shift < 64 && r->p < r->end; shift += 7) {
        uint8_t c = *r->p++;
        if (shift == 63 && c > 1) return false;
        *v |= (uint64_t)(c & 0x7f) << shift;
        if (c < 0x80) return true;
    }
    return false;
}

static bool fixed(pb_reader *r, size_t n, uint64_t *v)
{
    if (pb_left(r) < n) return false;
    *v = 0;
    memcpy(v, r->p, n);
    r->p += n;
    return true;
}

int pb_next(pb_reader *r, pb_field *f)
{
    uint64_t tag;
    if (r->p == r->end) return 0;
    if (!pb_read_varint(r, &tag) || tag >> 3 == 0 || tag >> 3 >= 1u << 29) return -1;
    *f = (pb_field){.id = (uint32_t)(tag >> 3), .wire = (pb_wire)(tag & 7)};
    switch (f->wire) {
    case PB_VARINT: return pb_read_varint(r, &f->v) ? 1 : -1;
    case PB_64: return fixed(r, 8, &f->v) ? 1 : -1;
    case PB_32: return fixed(r, 4, &f->v) ? 1 : -1;
    case PB_BYTES:
        if (!pb_read_varint(r, &f->v) || f->v > pb_left(r)) return -1;
        f->sub = (pb_reader){r->p, r->p + f->v};
        r->p += f->v;
        return 1;
    }
    return -1;
}
