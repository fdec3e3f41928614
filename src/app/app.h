/* app/app.h - what the commands of the impetus program share.
 *
 * Place:   layer 10: main.c finds the command and its options, calls app_cmd.run and turns the result into the exit
 *          code (0 ok, 1 failed, 2 wrong usage). Each command is one file.
 * Idea:    a command returns IMP_OK or fills app->err with one sentence; nothing but main.c ends the process.
 * Threads: commands run on the main thread; request callbacks only hand over (request.c). */
#ifndef IMP_APP_H
#define IMP_APP_H

#include <jansson.h>
#include <stdio.h>

#include "app/options.h"
#include "app/term.h"

typedef struct app {
    app_options opt;
    const char **arg; /* positional, borrowed from argv */
    size_t n_arg;
    imp_arena *arena; /* lives as long as the command */
    imp_error err;
    imp_engine *engine; /* freed by main.c */
} app;

/* What a command ends with: the exit code, but for INTERRUPTED (Ctrl-C), which ends as the signal would. */
typedef enum app_result { APP_OK = 0, APP_FAILED = 1, APP_USAGE = 2, APP_INTERRUPTED = 130 } app_result;

typedef struct app_cmd {
    const char *name, *usage, *brief;
    size_t min_arg, max_arg; /* positional arguments; SIZE_MAX: any number */
    const char *text;        /* paragraph of `impetus help COMMAND` */
    app_result (*run)(app *a);
} app_cmd;

app_result cmd_serve(app *a);
app_result cmd_run(app *a);
app_result cmd_embed(app *a);
app_result cmd_tokenize(app *a);
app_result cmd_detokenize(app *a);
app_result cmd_logits(app *a);
app_result cmd_perplexity(app *a);
app_result cmd_bench(app *a);
app_result cmd_check(app *a);
app_result cmd_convert(app *a);
app_result cmd_devices(app *a);
app_result cmd_plan(app *a);
app_result cmd_show(app *a);
app_result cmd_calibrate(app *a);
app_result cmd_explain(app *a);
app_result cmd_render(app *a);
app_result cmd_quantize(app *a);
app_result cmd_list(app *a);
app_result cmd_rm(app *a);
app_result cmd_ps(app *a);
app_result cmd_cache(app *a);
app_result cmd_stop(app *a);

/* ---- help.c ---- */
const app_cmd *app_cmd_at(app_cmd_id id);
app_cmd_id app_cmd_find(const char *name); /* N_CMD: none */
const char *app_nearest_cmd(const char *name);
void app_help_all(FILE *to);
void app_help_cmd(FILE *to, app_cmd_id id);

/* ---- model.c ---- */
/* The path a MODEL argument means: it is there, or a sentence says what to do. */
imp_status app_model_path(app *a, const char *model, const char **path, imp_error *err);
/* Where the Core ML device keeps and finds things; before any device is opened. */
imp_status app_configure_coreml(app *a);
/* What CPU devices do with packed weights, from the options. */
imp_status app_configure_pack_cache(app *a);
/* The engine as the options ask for it; idempotent. */
imp_status app_engine(app *a);
/* The adapters of --lora, for the model called base; NULL: for every request of any model. */
imp_status app_adapters_add(app *a, const char *base);
imp_status app_load(app *a, const char *model, const char *id, imp_model **out);
/* Say so when its context is beyond what it was made for. */
void app_warn_ctx(const imp_model *m);
/* The database's path: --database, or the usual place; NULL when the environment does not say where that is. */
const char *app_db_path(app *a);
/* Where caches of prompts are kept: --kv-cache, or a folder of the user's. false: there is none. */
bool app_kv_cache_dir(app *a, char *out, size_t cap);
/* The compute threads that the options ask for, at least 1. */
uint32_t app_n_thread(const app *a);
bool app_has_suffix(const char *s, const char *suffix);

/* ---- store.c ---- */
/* Folders in which a bare name is looked up: the user's store first, then those of the program. false: no more. */
bool app_store_dir(unsigned i, char *out, size_t cap);
/* Every model in the store and the folders of --models-dir, each name once. */
typedef struct app_stored {
    const char *id, *path; /* arena */
    unsigned origin;       /* as i of app_store_dir; UINT_MAX: --models-dir */
} app_stored;
imp_status app_store_list(app *a, app_stored **out, size_t *n);
/* The path of the model called `name`, from the arena; NULL: there is none. */
const char *app_store_find(app *a, const char *name);
/* serve: the models of -m, checked before anything is loaded; then all that the engine shall know, those of -m first.
 * on_loaded: each pinned model, once it is loaded. */
imp_status app_models_check(app *a);
imp_status app_models_add(app *a, void (*on_loaded)(void *user, const imp_model *m), void *user);

/* ---- ask.c ---- */
/* One request to the server of --host and --port; its JSON answer, a new reference. body NULL: GET. The server's own error
 * text fails the call. */
imp_status app_ask(app *a, const char *path, json_t *body, json_t **out, imp_error *err);

/* ---- request.c ---- */
/* What a command wants to hear while a request runs. Any may be NULL. text: on the main thread, in order; false
 * cancels. vector: on the scheduler's thread, must be quick; the floats are valid during the call. */
typedef struct app_sink {
    bool (*text)(void *user, const char *p, size_t n);
    void (*vector)(void *user, size_t index, const float *v, size_t n);
    void *user;
} app_sink;
typedef struct app_outcome {
    imp_finish finish;
    imp_usage usage;
    bool interrupted; /* the user pressed Ctrl-C */
} app_outcome;
/* Submit and wait for the end; on_event and user of *r are filled in here. Ctrl-C cancels the request when
 * app_signals_catch is on. ERROR finishes return the error. */
imp_status app_request_run(imp_engine *e, imp_model *m, imp_request *r, const app_sink *sink,
                           app_outcome *out, imp_error *err);

/* ---- hardware.c ---- */
struct imp_host;
struct imp_ceilings;
/* What a device of ours does here: weight types as bits of imp_dtype; why: when it cannot be opened. */
typedef struct app_unit {
    bool usable;
    uint64_t runs, refused;
    char why[256];
} app_unit;
void app_unit_open(app_unit *u, const char *kind, uint32_t n_thread);
void app_types_text(uint64_t types, char *out, size_t cap); /* "q4_0 q8_0" */
/* The devices that are measured one by one, of all that may be here: "cpu0", "cuda0", "cuda1", ...; NULL: no more. */
enum { APP_DEVICES = 10 };
const char *app_device_name(size_t i);
/* Is device `name` among those of --device ("cpu,cuda1"; "cuda" is "cuda0")? asked NULL or "auto": all are. */
bool app_device_asked(const char *asked, const char *name);

/* The machine as JSON; ceilings NULL: not measured. NULL: out of memory. */
struct imp_machine;
int app_choice(const app *a, app_opt_id id); /* auto 0, on 1, off -1 */
/* The settings that rule units out, as set or "as measured". */
struct imp_place_rules app_rules(const app *a);
json_t *app_rules_json(const app *a);
void app_rules_print(const app *a);
/* How fast caches go from unit to unit, for every ordered pair of n calibrated ones. */
json_t *app_transfers_json(const struct imp_machine *m, size_t n);
void app_transfers_print(const struct imp_machine *m, size_t n);
json_t *app_host_json(const struct imp_host *h, const struct imp_ceilings *c);
/* One line: "Intel ..., 2 cores, 24 GB, avx2 avx512". */
void app_host_line(const struct imp_host *h, char *out, size_t cap);
/* The set bits' names with sep between them. */
void app_isa_text(uint64_t isa, const char *sep, char *out, size_t cap);
/* Measure with the threads the options ask for. */
imp_status app_measure(app *a, const struct imp_host *h, uint32_t ms, struct imp_ceilings *out);

/* ---- io.c ---- */
/* Standard input to its end; *text in buf. */
imp_status app_read_stdin(imp_buf *buf, imp_error *err);
/* The next line of stdin without its newline; false: end. */
bool app_read_line(FILE *f, imp_buf *line);
/* Print the document on stdout with a newline and free it; NULL means out of memory. */
app_result app_print_json(app *a, json_t *doc);
json_t *app_json_text(const char *s, size_t n); /* malformed UTF-8 becomes U+FFFD */
json_t *app_json_round(double v,
                       int digits); /* rounded to `digits` significant digits; null when not finite */
void app_print_float(FILE *f,
                     float v); /* shortest form that reads back as the same float; null if not finite */
const char *app_size_text(uint64_t bytes, char out[32]);  /* "1.25 GB" (10^9) */
const char *app_count_text(uint64_t count, char out[32]); /* "1.24 B" */
/* Close stdout for good: IO when something could not be written ("No space left on device"). */
imp_status app_out_finish(imp_error *err);
imp_status app_out_flush(imp_error *err);

app_result app_usage(app *a, const char *fmt, ...) IMP_PRINTF(2, 3);  /* fills err, returns APP_USAGE */
app_result app_failed(app *a, const char *fmt, ...) IMP_PRINTF(2, 3); /* fills err, returns APP_FAILED */

#endif
