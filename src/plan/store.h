/* plan/store.h - what is kept between runs: calibrations, what was learned, explanations. One sqlite file.
 *
 * Idea:    a row counts only while the machine is the one it was measured on: each carries a fingerprint of hardware,
 *          system and driver. A file that sqlite calls damaged is set aside and begun anew, with a message.
 * Threads: any; sqlite serialises. */
#ifndef IMP_STORE_H
#define IMP_STORE_H

#include "plan/learn.h"

typedef struct imp_store imp_store;

/* Folders are made. IO: the file cannot be opened or made. */
IMP_MUST_USE imp_status imp_store_open(const char *path, imp_store **out, imp_error *err);
void imp_store_close(imp_store *s); /* NULL is allowed */
bool imp_store_was_rebuilt(const imp_store *s);

/* Of hardware, system and driver. `device`: what identifies the unit beyond that (its name, driver version). */
void imp_store_fingerprint(const char *device, char out[128]);
typedef struct imp_store_machine {      /* what a fingerprint is made of */
    const char *arch, *release, *build; /* processor, version and build of the system */
    uint64_t hardware;                  /* hash of cores, memory, instruction sets */
    const char *device, *driver;
} imp_store_machine;
void imp_store_fingerprint_of(const imp_store_machine *m, char out[128]);
/* A unit that was calibrated under another fingerprint: what has changed since. NULL: nothing, or never calibrated. */
const char *imp_store_changed(imp_store *s, const char *unit, const char *fingerprint);

typedef struct imp_calibration {
    imp_machine machine; /* measured fields are marked so */
    char fingerprint[128];
    int64_t at; /* Unix seconds */
} imp_calibration;
IMP_MUST_USE imp_status imp_store_put_calibration(imp_store *s, const char *unit, const imp_calibration *c,
                                                  imp_error *err);
/* NOT_FOUND: never measured, or the machine has changed since. */
IMP_MUST_USE imp_status imp_store_get_calibration(imp_store *s, const char *unit, const char *fingerprint,
                                                  imp_calibration *out, imp_error *err);
/* Corrections of a unit: keys, values and variances. */
IMP_MUST_USE imp_status imp_store_put_learned(imp_store *s, const char *unit, const char *fingerprint,
                                              const imp_learn *l, imp_error *err);
/* Into a learner that was just made; NOT_FOUND: nothing is known of this unit on this machine. */
IMP_MUST_USE imp_status imp_store_get_learned(imp_store *s, const char *unit, const char *fingerprint,
                                              imp_learn *l, imp_error *err);
/* What types cost a model (mix.h), as bytes of a fixed size; key: model, text and CPU. NOT_FOUND: nothing of that size. */
IMP_MUST_USE imp_status imp_store_put_mix(imp_store *s, const char *key, const void *data, size_t n,
                                          imp_error *err);
IMP_MUST_USE imp_status imp_store_get_mix(imp_store *s, const char *key, void *data, size_t n,
                                          imp_error *err);
/* Explanations as JSON text; the last 1000 are kept. */
IMP_MUST_USE imp_status imp_store_put_explanation(imp_store *s, uint64_t id, const char *json,
                                                  imp_error *err);
/* id 0: the last. *json: imp_sys_free it. */
IMP_MUST_USE imp_status imp_store_get_explanation(imp_store *s, uint64_t id, char **json, imp_error *err);

#endif
