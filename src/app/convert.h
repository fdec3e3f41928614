/* app/convert.h - what the files of `impetus convert` share. */
#ifndef IMP_APP_CONVERT_H
#define IMP_APP_CONVERT_H

#include "app/app.h"
#include "base/thread.h"
#include "dev/coreml/runner.h"
#include "model/net.h"

/* Texts as tokens; text[] points into ids. */
typedef struct conv_texts {
    imp_ids *ids; /* owned, with what they hold */
    imp_ml_text *text;
    uint32_t n, cap;
    uint64_t n_tok;
} conv_texts;

/* What a package has to hold: at most this loss, at least this cosine. */
typedef struct conv_bar {
    double loss, cosine; /* 1 and 0: anything will do */
    bool holds; /* it is searched for, and convert fails without it; else it is only told when it is missed */
} conv_bar;

typedef struct conversion {
    app *a;
    imp_net *net;
    const imp_graph *g;
    imp_ml_options opt;
    imp_ml_report report;
    const char *out;
    uint64_t shown; /* progress that the bar has seen */
    imp_pool *pool;
    conv_texts fit;       /* the calibration text */
    uint32_t n_held_out;  /* of its lines, at the end */
    imp_ml_packing *form; /* [n + 1] by LINEAR node, owned */
    imp_ml_tuned *tuned;  /* owned; NULL: no calibration */
    uint32_t n_kept;      /* matrices that were kept in a better form */
    conv_bar bar;
    /* verification */
    conv_texts check;
    bool compares;     /* vectors or logits are compared; else only ranges are looked at */
    float *want, *got; /* [n][dim], owned */
    imp_ml_distance distance;
    imp_ml_overflow over;
} conversion;

/* convert_texts.c: one text a line that fits the longest length, most_tok tokens at most; path NULL: our own few. */
IMP_MUST_USE imp_status conv_read_texts(conversion *c, const char *path, uint64_t most_tok, conv_texts *out);
void conv_texts_deinit(conv_texts *t);

/* convert_verify.c */
IMP_MUST_USE imp_status conv_prepare_verify(conversion *c);
IMP_MUST_USE imp_status conv_verify(conversion *c);

/* convert_search.c: compress by the calibration text as the options say, then write the package. */
IMP_MUST_USE imp_status conv_convert(conversion *c);
/* The smallest form, or mixture of the one asked for and better ones, that holds c->bar. */
IMP_MUST_USE imp_status conv_search(conversion *c);

#endif
