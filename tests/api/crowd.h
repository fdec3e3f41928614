/* tests/api/crowd.h - many requests to one engine at once: what each came to, and waiting for them.
 *
 * Always: MAX_GEN, the most tokens of an answer, is defined before this is included; crowd_begin before the first request. */
#ifndef TEST_CROWD_H
#define TEST_CROWD_H

#include "base/thread.h"
#include "engine/engine_int.h"

typedef struct outcome {
    imp_token_prob tok[MAX_GEN + 1];
    size_t n_tok, n_text;
    char text[2048]; /* ends with 0 */
    imp_finish finish;
    imp_usage usage;
    int n_done;
} outcome;

static imp_mutex *crowd_lock;
static imp_cond *crowd_less;
static uint32_t crowd_n; /* requests that have not ended */

static int crowd_begin(void)
{
    return imp_mutex_new(&crowd_lock) != IMP_OK || imp_cond_new(&crowd_less) != IMP_OK;
}

/* imp_request.on_event; user: its outcome. */
static void on_event(void *user, uint64_t id, const imp_event *ev)
{
    (void)id;
    outcome *o = user;
    if (ev->kind == IMP_EVENT_TEXT) {
        for (size_t i = 0; i < ev->n_tokens && o->n_tok <= MAX_GEN; i++) o->tok[o->n_tok++] = ev->tokens[i];
        if (o->n_text + ev->n_text < sizeof o->text) {
            memcpy(o->text + o->n_text, ev->text, ev->n_text);
            o->n_text += ev->n_text;
        }
    }
    if (ev->kind != IMP_EVENT_DONE) return;
    imp_mutex_lock(crowd_lock);
    o->n_done++;
    o->finish = ev->finish;
    o->usage = ev->usage;
    crowd_n--;
    imp_cond_broadcast(crowd_less);
    imp_mutex_unlock(crowd_lock);
}

/* Submits q for the outcome o, made anew; its number. */
static uint64_t crowd_add(imp_model *m, imp_request *q, outcome *o)
{
    uint64_t id = 0;
    imp_error err;
    memset(o, 0, sizeof *o);
    q->on_event = on_event;
    q->user = o;
    imp_mutex_lock(crowd_lock);
    crowd_n++;
    imp_mutex_unlock(crowd_lock);
    if (imp_submit(m, q, &id, &err) != IMP_OK) fail_msg("%s", err.text);
    return id;
}

static void wait_until(uint32_t most_open)
{
    imp_mutex_lock(crowd_lock);
    while (crowd_n > most_open) imp_cond_wait(crowd_less, crowd_lock);
    imp_mutex_unlock(crowd_lock);
}

#endif
