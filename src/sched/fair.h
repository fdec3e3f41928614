/* sched/fair.h - who has had how much: turns among clients. */
#ifndef IMP_FAIR_H
#define IMP_FAIR_H

#include "base/base.h"

enum { IMP_FAIR_CLIENTS = 256, IMP_FAIR_GENERATED = 2 };

typedef struct imp_fair { /* zeroed to begin; scheduler thread only */
    struct {
        uint64_t client; /* 0: all who have no key */
        double served;   /* tokens, a generated one counts IMP_FAIR_GENERATED */
        uint32_t n_job;  /* its requests that wait or run */
        uint64_t used;
    } c[IMP_FAIR_CLIENTS];
    uint64_t clock;
} imp_fair;

/* A request of the client has come; gives its place. Who comes after a pause does not bring the turns that it missed. */
uint32_t imp_fair_enter(imp_fair *f, uint64_t client);
void imp_fair_leave(imp_fair *f, uint32_t at);
void imp_fair_serve(imp_fair *f, uint32_t at, double tok);

#endif
