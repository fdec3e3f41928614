/* app/mixed.h - the mixed-precision plan of a model, as `plan --mixed` and `quantize --type mixed` share it. */
#ifndef IMP_APP_MIXED_H
#define IMP_APP_MIXED_H

#include "app/app.h"
#include "plan/mix.h"

/* The unit a plan is made for. */
typedef struct app_mix_unit {
    const imp_learn *learn; /* borrowed */
    const char *name;
    bool simulated, calibrated;
    uint32_t n_prompt, n_gen; /* the request that is priced */
} app_mix_unit;

/* cmd_plan.c: the unit that would decode for this model, by --device, or --assume. */
imp_status app_plan_unit(app *a, const char *path, const imp_net *net, app_mix_unit *out);

typedef struct app_mixed {
    app_mix_unit unit;
    imp_mix mix;
    uint32_t n_layer, n_token, n_held_out; /* of the text */
    const char *text;                      /* --calibration, or NULL: the model's own words */
    imp_importance *importance;            /* owned */
} app_mixed;

/* Measure on the CPU, price for the unit, choose; options --calibration, --max-kl, --goal. The graph of net is as it was
 * afterwards. What is known of the model from an earlier run is taken from the database. */
imp_status app_mixed_make(app *a, const char *path, imp_net *net, const app_mix_unit *unit, app_mixed *out);
void app_mixed_deinit(app_mixed *m);
json_t *app_mixed_json(const app_mixed *m);
void app_mixed_print(const app_mixed *m);

#endif
