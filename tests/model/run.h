/* tests/model/run.h - run a loaded model on a device, one sequence, for the tests of this folder. */
#ifndef TESTS_MODEL_RUN_H
#define TESTS_MODEL_RUN_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/base.h"
#include "dev/dev.h"
#include "model/net.h"

enum { RUN_MAX_CTX = 512, RUN_N_BLOCK = RUN_MAX_CTX / IMP_KV_BLOCK };

typedef struct run {
    imp_device *dev;
    imp_exec *x;
    uint32_t block[RUN_N_BLOCK]; /* scattered on purpose */
    uint32_t n_past;
    uint64_t width;
    const imp_adapter_use *use; /* [n_use] of the sequence */
    uint32_t n_use;
} run;

static inline void check_ok(imp_status st, const imp_error *err)
{
    if (st != IMP_OK) fail_msg("%s: %s", imp_status_name(st), err->text);
}

static inline void run_open_lora(run *r, const char *kind, const imp_graph *g, uint32_t lora_rank)
{
    imp_error err = {0};
    *r = (run){0};
    check_ok(imp_dev_open(kind, 2, &r->dev, &err), &err);
    imp_limits lim = {.max_tok = 256,
                      .max_seq = 4,
                      .max_out = 256,
                      .max_ctx = RUN_MAX_CTX,
                      .n_kv_block = imp_graph_n_kv_layer(g) ? RUN_N_BLOCK : 0,
                      .lora_rank = lora_rank,
                      .kv_dtype = IMP_F32};
    check_ok(r->dev->ops->compile(r->dev, g, &lim, &r->x, &err), &err);
    for (uint32_t i = 0; i < RUN_N_BLOCK; i++) r->block[i] = (i * 5 + 3) % RUN_N_BLOCK;
    r->width = imp_graph_node(g, imp_graph_output(g))->width;
}

static inline void run_open(run *r, const char *kind, const imp_graph *g)
{
    run_open_lora(r, kind, g, 0);
}

static inline void run_close(run *r)
{
    r->dev->ops->exec_free(r->x);
    r->dev->ops->close(r->dev);
}

/* n tokens behind those already run; rows: which of them are wanted. The result is the device's until the next run. */
static inline const float *run_step(run *r, const int32_t *ids, uint32_t n, const uint32_t *rows,
                                    uint32_t n_rows)
{
    imp_error err = {0};
    int32_t pos[256];
    const float *out = NULL;
    assert_true(n <= 256);
    for (uint32_t i = 0; i < n; i++) pos[i] = (int32_t)(r->n_past + i);
    imp_batch_seq seq = {
        .first_tok = 0, .n_tok = n, .n_past = r->n_past, .block = r->block, .use = r->use, .n_use = r->n_use};
    imp_batch b = {
        .n_tok = n, .n_seq = 1, .n_out = n_rows, .token = ids, .pos = pos, .seq = &seq, .out_row = rows};
    check_ok(r->x->dev->ops->run(r->x, &b, &out, &err), &err);
    r->n_past += n;
    return out;
}

static inline uint32_t arg_max(const float *v, uint64_t n)
{
    uint32_t best = 0;
    for (uint64_t i = 1; i < n; i++)
        if (v[i] > v[best]) best = (uint32_t)i;
    return best;
}

#endif
