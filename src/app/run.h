/* app/run.h - between cmd_run.c (one answer) and chat.c (the conversation on a terminal). */
#ifndef IMP_APP_RUN_H
#define IMP_APP_RUN_H

#include "app/app.h"

typedef struct app_answer {
    imp_buf text; /* what came, kept when keep is set */
    bool keep, silent;
    imp_usage usage;
    imp_finish finish;
    bool interrupted;
    size_t n_prompt;
} app_answer;

/* Generate from prompt text with the options' sampling, streaming to stdout. flags: for imp_tokenize. */
imp_status app_generate(app *a, imp_model *m, const char *prompt, size_t n, unsigned flags, app_answer *out);
void app_print_timings(const app_answer *ans);
/* The conversation; m can chat. */
app_result app_chat(app *a, imp_model *m);

#endif
