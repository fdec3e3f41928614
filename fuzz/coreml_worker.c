/* fuzz/coreml_worker.c - any bytes as what one side of the worker's socket says to the other: it is answered or refused with
 * a reason, never more than what was agreed on is touched, and what the worker answers is in order itself.
 *
 * Input: one byte, then a stream of messages. Byte's lowest bit 0: to the worker; 1: to the device. */
#include <stdlib.h>

#include "dev/coreml/worker.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SHARED = 1 << 16 };

typedef struct stream {
    const uint8_t *in;
    size_t n;
    ml_head head; /* of what the worker sends */
    bool in_body;
} stream;

static void require(bool ok)
{
    if (!ok) abort();
}

static imp_status take(void *ctx, void *p, size_t n, imp_error *err)
{
    stream *s = ctx;
    if (n > s->n) return imp_fail(err, IMP_IO, "the other side has gone");
    memcpy(p, s->in, n);
    s->in += n;
    s->n -= n;
    return IMP_OK;
}

/* Whatever the worker says must pass the device's own check. */
static imp_status check(void *ctx, const void *p, size_t n, imp_error *err)
{
    stream *s = ctx;
    imp_error why;
    if (!s->in_body) {
        require(n == sizeof s->head);
        memcpy(&s->head, p, n);
        require(ml_wire_head(&s->head, &why) == IMP_OK);
    } else {
        ml_body *b = calloc(1, sizeof *b);
        require(b != NULL && n == s->head.n_bytes);
        memcpy(b, p, n);
        require(ml_wire_body((ml_kind)s->head.kind, b, &why) == IMP_OK);
        free(b);
    }
    s->in_body = !s->in_body;
    (void)err;
    return IMP_OK;
}

typedef struct work {
    ml_load load;
    uint8_t *shared;
} work;

static imp_status hello(void *ctx, const ml_hello *h, ml_welcome *out, imp_error *err)
{
    (void)ctx, (void)out;
    if (h->runtime[0] == 'n') return imp_fail(err, IMP_NOT_FOUND, "%s is not there", h->runtime);
    return IMP_OK;
}

static imp_status load(void *ctx, const ml_load *l, void *shared, ml_loaded *out, imp_error *err)
{
    work *w = ctx;
    (void)out, (void)err;
    w->load = *l;
    w->shared = shared;
    for (uint32_t i = 0; i < l->shape.n_len; i++) require(strlen(l->name[i]) > 0);
    for (uint32_t i = 0; i < l->n_package; i++) require(strlen(l->compiled[i]) > 0);
    return IMP_OK;
}

/* Touch all of the slots that the request names: a sanitiser sees what lies outside. */
static imp_status run(void *ctx, const ml_run *r, ml_ran *out, imp_error *err)
{
    work *w = ctx;
    const ml_load *l = &w->load;
    ml_slots sl;
    (void)out, (void)err;
    const ml_shape *sh = &l->shape;
    size_t s = sh->s[r->len];
    require(ml_slots_of(sh, &sl));
    for (uint32_t i = 0; i < r->n; i++) {
        uint8_t *slot = w->shared + i * sl.stride;
        memset(slot, 1, sh->width * s * 2);
        memset(slot + sl.mask, 2, s * 2);
        memset(slot + sl.pool, 3, s * 2);
        memset(slot + sl.out, 4, (size_t)sh->dim * 4);
        for (uint32_t k = 0; k < sh->n_kv; k++)
            for (int part = 0; part < 2; part++)
                memset(slot + ml_slot_kv(sh, &sl, k, part), 4, sh->kv_width[k] * s * 2);
        require(slot[0] == 1 && slot[sl.mask] == 2 && slot[sl.pool] == 3); /* no two overlap */
    }
    return IMP_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    stream s = {.in = data + 1, .n = size - 1};
    ml_port port = {.recv = take, .send = check, .ctx = &s};
    imp_error err = {0};
    if (data[0] & 1) {
        ml_body *b = malloc(sizeof *b);
        ml_kind kind;
        imp_status st = IMP_OK;
        require(b != NULL);
        while (st == IMP_OK) st = ml_wire_recv(&port, &kind, b, &err);
        require(err.status == st && err.text[0] != '\0');
        free(b);
        return 0;
    }
    work *w = calloc(1, sizeof *w);
    void *shared = malloc(SHARED);
    require(w != NULL && shared != NULL);
    ml_backend be = {hello, load, run, w};
    imp_status st = ml_worker_serve(&port, &be, shared, SHARED, &err);
    require(st == IMP_OK || err.text[0] != '\0');
    require(!s.in_body);
    free(shared);
    free(w);
    return 0;
}
