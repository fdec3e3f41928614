/* app/check.h - between cmd_check.c (structure, values) and check_text.c (tokenizer). */
#ifndef IMP_APP_CHECK_H
#define IMP_APP_CHECK_H

#include "app/app.h"
#include "model/net.h"

typedef struct app_report {
    app *a;
    json_t *problems, *tensors, *tokenizer; /* owned */
    size_t n_problem, n_tensor, n_round_trip, n_normalised;
    bool structure;
    char arch[32];
} app_report;

void app_problem(app_report *r, const char *fmt, ...) IMP_PRINTF(2, 3);
/* Fills r->tokenizer; problems go to the list. Fails only for lack of memory. */
imp_status app_check_tokenizer(app_report *r, const imp_net *net);

#endif
