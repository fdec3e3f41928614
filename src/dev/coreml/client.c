/* dev/coreml/client.c - talking to a worker: one question, one answer, a time limit. */
#include "dev/coreml/device.h"
#include "dev/coreml/worker.h"

enum { HELLO_MS = 20000 };

typedef struct channel {
    int fd;
    uint64_t deadline;
    const bool *stop;
} channel;

static imp_status channel_recv(void *ctx, void *p, size_t n, imp_error *err)
{
    const channel *c = ctx;
    return imp_proc_recv(c->fd, p, n, c->deadline, c->stop, err);
}

static imp_status channel_send(void *ctx, const void *p, size_t n, imp_error *err)
{
    const channel *c = ctx;
    return imp_proc_send(c->fd, p, n, c->deadline, err);
}

imp_status ml_ask(imp_proc *p, ml_kind kind, const void *body, ml_kind want, ml_body *out, uint32_t ms,
                  const bool *stop, imp_error *err)
{
    channel c = {imp_proc_socket(p), imp_now_ns() + (uint64_t)ms * 1000000u, stop};
    ml_port port = {channel_recv, channel_send, &c};
    ml_kind got;
    IMP_TRY(ml_wire_send(&port, kind, body, err));
    IMP_TRY(ml_wire_recv(&port, &got, out, err));
    if (got == want) return IMP_OK;
    if (got == ML_FAILED) return imp_fail(err, IMP_DEVICE, "%s", out->failed.text);
    return imp_fail(err, IMP_FORMAT, "the worker answered with a message of kind %u", (unsigned)got);
}

imp_status ml_worker_start(const ml_device *d, size_t n_shared, imp_proc **out, ml_welcome *info,
                           const bool *stop, imp_error *err)
{
    const char *argv[] = {d->program, IMP_COREML_WORKER_ARG, NULL};
    ml_body *answer = imp_sys_malloc(sizeof *answer);
    ml_hello hello = {0};
    *out = NULL;
    if (answer == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while starting a worker");
    memcpy(hello.runtime, d->runtime, sizeof hello.runtime);
    imp_proc *p;
    imp_status s = imp_proc_start(argv, n_shared, &p, err);
    if (s == IMP_OK) {
        s = ml_ask(p, ML_HELLO, &hello, ML_WELCOME, answer, HELLO_MS, stop, err);
        if (s == IMP_OK) {
            *out = p;
            *info = answer->welcome;
        } else {
            char how[64];
            bool gone = s == IMP_IO;
            imp_proc_end(p, gone ? 1000 : 0, how, sizeof how);
            if (gone && how[0] != '\0')
                s = imp_fail(err, IMP_DEVICE, "the worker %s when it was started", how);
        }
    }
    imp_sys_free(answer);
    return s;
}
