/* dev/coreml/pack.h - weights in the forms Core ML unpacks itself: half precision, palettes, int8, int4.
 *
 * Place:   called by the compiler, once a weight; streams into weight.bin.
 * Idea:    a matrix is decoded in slabs of rows from whatever the source format is, rows and groups of rows shared out over
 *          the pool. Palettes are one-dimensional k-means over 16-bit codes sorted by counting; a palette serves the whole
 *          tensor or `group` rows of it. With calibrated inputs columns count by what they do to the output, and each column
 *          takes up the errors of those before it.
 * Source:  Core ML's constexpr ops; k-means after Lloyd; error feedback after Frantar et al. 2022 (GPTQ), in the form of
 *          Chee et al. 2023 (LDLQ), columns in the order of falling second moments. */
#ifndef IMP_ML_PACK_H
#define IMP_ML_PACK_H

#include "base/thread.h"
#include "fmt/mlpackage.h"
#include "tensor/tensor.h"

typedef enum imp_ml_kind { IMP_ML_HALF, IMP_ML_LUT, IMP_ML_INT8, IMP_ML_INT4 } imp_ml_kind;

typedef struct imp_ml_packing {
    imp_ml_kind kind;
    uint32_t bits;    /* LUT: 1, 2, 3, 4, 6, 8 */
    uint32_t group;   /* LUT: rows that share a palette, 0: all */
    uint32_t block;   /* INT4: columns that share a scale, 0: the row */
    bool int8_inputs; /* INT8: the layers' inputs are rounded to int8, too (W8A8) */
} imp_ml_packing;

/* "fp16", "lut4", "lut6g16", "lut4t" (one palette a tensor), "int8", "int4", "int4b32", "w8a8". false: none of these. */
bool imp_ml_packing_parse(const char *s, imp_ml_packing *out);
void imp_ml_packing_text(const imp_ml_packing *p, char out[16]);
/* The lowest specification version whose programs can hold it. */
int32_t imp_ml_packing_spec(const imp_ml_packing *p);

/* What is known of a layer's input x[k] over a calibration text. */
typedef struct imp_ml_input {
    uint64_t k;
    float *moment; /* [k][k] means of x_i x_j; NULL: only the diagonal is known */
    float *mean2;  /* [k] that diagonal */
    float *mean;   /* [k] */
} imp_ml_input;

/* A matrix in its packed form, in memory. */
typedef struct imp_ml_coded {
    imp_ml_packing how;       /* what was really used: a weight too small or of the wrong size stays fp16 */
    uint64_t n, k;            /* rows, columns */
    uint8_t *code;            /* fp16 numbers, or indices and integers of how's bits, LSB first; owned */
    uint16_t *table;          /* palettes or scales, fp16; owned */
    uint64_t n_code, n_table; /* bytes, elements */
    double err2, sum2;        /* sums of (w - w')^2 and w^2 */
    double out_err2,
        out_var2;       /* output's squared error over the calibration text, and its variance; 0: not known */
    uint64_t n_clamped; /* numbers beyond fp16's range */
} imp_ml_coded;

typedef struct imp_ml_code_job {
    const imp_tensor *t; /* [..][k]; its rows row0..row0+n_row-1 are coded */
    uint64_t row0, n_row;
    float
        *values; /* [n_row][k] to be coded instead of t's, overwritten with what the code means; NULL: t's */
    imp_ml_packing how;
    const imp_ml_input *input; /* NULL: all columns count alike and no error is fed back */
    imp_pool *pool;            /* NULL: the calling thread alone */
} imp_ml_code_job;
IMP_MUST_USE imp_status imp_ml_code(const imp_ml_code_job *job, imp_ml_coded *out, imp_error *err);
void imp_ml_coded_deinit(imp_ml_coded *c);

/* A coded matrix in weight.bin, as a convolution's weight [n][k][1][1]. */
typedef struct imp_ml_packed {
    imp_ml_packing how;
    uint64_t n, k;
    imp_mil_value part[2]; /* the numbers; palette or scales */
    uint64_t bytes;
} imp_ml_packed;
/* spec: of the program, decides between the two forms of palettes. */
IMP_MUST_USE imp_status imp_ml_pack(imp_mlwriter *w, const imp_ml_coded *c, int32_t spec, imp_ml_packed *out,
                                    imp_error *err);

/* Best palette of n_entry values for weighted numbers: centers ascending. x: [n]; weight NULL: all 1. Returns the mean
 * weighted squared error. */
typedef struct imp_ml_kmeans imp_ml_kmeans;
imp_ml_kmeans *imp_ml_kmeans_new(void); /* NULL: out of memory */
void imp_ml_kmeans_free(imp_ml_kmeans *s);
void imp_ml_kmeans_reset(imp_ml_kmeans *s);
void imp_ml_kmeans_add(imp_ml_kmeans *s, const float *x, const float *weight, uint64_t n);
double imp_ml_kmeans_solve(imp_ml_kmeans *s, uint32_t n_entry, float *center);
/* The palette's entry nearest to x. */
uint32_t imp_ml_nearest(const float *center, uint32_t n_entry, float x);

#endif
