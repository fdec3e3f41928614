/* sched/fair.c - who has had how much: turns among clients.
 *
 * Idea:    a counter of served tokens a client; whoever has the least is next. A client that comes (again) starts at the
 *          least counter of those that are here.
 * Always:  more clients at once than places share places; nobody is refused.
 * Source:  Sheng et al. 2024, "Fairness in serving large language models" (virtual token counter). */
#include "sched/fair.h"

uint32_t imp_fair_enter(imp_fair *f, uint64_t client)
{
    uint32_t at = (uint32_t)(client % IMP_FAIR_CLIENTS), oldest = UINT32_MAX;
    bool known = false;
    double least = -1;
    for (uint32_t i = 0; i < IMP_FAIR_CLIENTS; i++) {
        if (f->c[i].used != 0 && f->c[i].client == client) {
            at = i;
            known = true;
        }
        if (f->c[i].n_job > 0 && (least < 0 || f->c[i].served < least)) least = f->c[i].served;
        if (f->c[i].n_job == 0 && (oldest == UINT32_MAX || f->c[i].used < f->c[oldest].used)) oldest = i;
    }
    if (!known && oldest != UINT32_MAX) {
        at = oldest;
        f->c[at].client = client;
        f->c[at].served = 0;
    }
    if (f->c[at].n_job == 0) f->c[at].served = IMP_MAX(f->c[at].served, least);
    f->c[at].n_job++;
    f->c[at].used = ++f->clock;
    return at;
}

void imp_fair_leave(imp_fair *f, uint32_t at)
{
    f->c[at].n_job--;
}

void imp_fair_serve(imp_fair *f, uint32_t at, double tok)
{
    f->c[at].served += tok;
}
