/* dev/coreml/worker.c - the worker's loop: one request, one answer, until the socket closes.
 *
 * Always:  a request that is not understood ends the worker: the other side is this very program, so something is broken.
 * Threads: the process's main thread. */
#include "dev/coreml/worker.h"

#include <stdio.h>

#include "base/proc.h"

static imp_status socket_recv(void *ctx, void *p, size_t n, imp_error *err)
{
    (void)ctx;
    return imp_proc_recv(IMP_PROC_SOCKET_FD, p, n, UINT64_MAX, NULL, err);
}

static imp_status socket_send(void *ctx, const void *p, size_t n, imp_error *err)
{
    (void)ctx;
    return imp_proc_send(IMP_PROC_SOCKET_FD, p, n, UINT64_MAX, err);
}

typedef struct serving {
    const ml_backend *be;
    void *shared;
    size_t n_shared;
    bool greeted, loaded;
    ml_load load;
} serving;

/* The answer to a request, in *out. A status that is not OK is the answer too; *broken: the rules were broken. */
static imp_status answer(serving *s, ml_kind kind, const ml_body *in, ml_body *out, ml_kind *out_kind,
                         bool *broken, imp_error *err)
{
    ml_slots sl;
    *broken = true;
    if (kind == ML_HELLO && !s->greeted) {
        *broken = false;
        *out_kind = ML_WELCOME;
        imp_status st = s->be->hello(s->be->ctx, &in->hello, &out->welcome, err);
        s->greeted = st == IMP_OK;
        return st;
    }
    if (kind == ML_LOAD && s->greeted && !s->loaded) {
        const ml_load *l = &in->load;
        if (!ml_slots_of(&l->shape, &sl) || sl.total > s->n_shared)
            return imp_fail(err, IMP_FORMAT, "the texts do not fit into the shared memory");
        *broken = false;
        *out_kind = ML_LOADED;
        s->load = *l;
        imp_status st = s->be->load(s->be->ctx, &s->load, s->shared, &out->loaded, err);
        s->loaded = st == IMP_OK;
        return st;
    }
    if (kind == ML_RUN && s->loaded) {
        IMP_TRY(ml_wire_run_fits(&in->run, &s->load, err));
        *broken = false;
        *out_kind = ML_RAN;
        return s->be->run(s->be->ctx, &in->run, &out->ran, err);
    }
    return imp_fail(err, IMP_FORMAT, "a message of kind %u was not expected now", (unsigned)kind);
}

imp_status ml_worker_serve(const ml_port *p, const ml_backend *be, void *shared, size_t n_shared,
                           imp_error *err)
{
    serving s = {.be = be, .shared = shared, .n_shared = n_shared};
    struct two {
        ml_body in, out;
    } *m = imp_sys_malloc(sizeof *m);
    if (m == NULL) return imp_fail(err, IMP_NOMEM, "out of memory in the worker");
    imp_status st;
    for (;;) {
        ml_kind kind, out_kind = ML_FAILED;
        bool broken;
        st = ml_wire_recv(p, &kind, &m->in, err);
        if (st != IMP_OK) break;
        memset(&m->out, 0, sizeof m->out); /* no stale bytes leave the process */
        imp_error why = {0};
        st = answer(&s, kind, &m->in, &m->out, &out_kind, &broken, &why);
        if (st != IMP_OK) {
            memset(&m->out, 0, sizeof m->out);
            out_kind = ML_FAILED;
            m->out.failed.status = st;
            (void)snprintf(m->out.failed.text, sizeof m->out.failed.text, "%.*s", ML_WIRE_TEXT - 1, why.text);
        }
        imp_status sent = ml_wire_send(p, out_kind, &m->out, err);
        if (broken && st != IMP_OK) {
            if (err != NULL) *err = why;
            break;
        }
        if ((st = sent) != IMP_OK) break;
    }
    imp_sys_free(m);
    return st == IMP_IO ? IMP_OK : st;
}

int imp_coreml_worker_main(void)
{
    imp_error err = {0};
    void *shared;
    size_t n_shared;
    if (imp_proc_map_shared(1, &shared, &n_shared, &err) != IMP_OK) {
        fprintf(stderr, "impetus: this is a worker that the program starts itself: %s\n", err.text);
        return 2;
    }
    ml_runtime *r = ml_runtime_new();
    if (r == NULL) return 1;
    ml_backend be = ml_runtime_backend(r);
    ml_port port = {.recv = socket_recv, .send = socket_send};
    imp_status s = ml_worker_serve(&port, &be, shared, n_shared, &err);
    if (s != IMP_OK) fprintf(stderr, "impetus: the Core ML worker ends: %s\n", err.text);
    ml_runtime_free(r);
    return s == IMP_OK ? 0 : 1;
}
