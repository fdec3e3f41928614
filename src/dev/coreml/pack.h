/* dev/coreml/pack.h - weights in the forms Core ML unpacks itself: half precision, palettes, int8, int4.
 *
 * Place:   called by the compiler, once a weight; streams into weight.bin.
 * Idea:    a weight is read row by row from whatever the source format is. Palettes are one-dimensional k-means over
 *          16-bit codes sorted by counting; a palette serves the whole tensor or `group` rows of it.
 * Source:  Core ML's constexpr ops; k-means after Lloyd, started at quantiles. */
#ifndef IMP_ML_PACK_H
#define IMP_ML_PACK_H

#include "fmt/mlpackage.h"
#include "tensor/tensor.h"

typedef enum imp_ml_kind { IMP_ML_HALF, IMP_ML_LUT, IMP_ML_INT8, IMP_ML_INT4 } imp_ml_kind;

typedef struct imp_ml_packing {
    imp_ml_kind kind;
    uint32_t bits;  /* LUT: 1, 2, 3, 4, 6, 8 */
    uint32_t group; /* LUT: rows that share a palette, 0: all */
    uint32_t block; /* INT4: columns that share a scale, 0: the row */
} imp_ml_packing;

/* "fp16", "lut4", "lut6g16", "lut4t" (one palette a tensor), "int8", "int4", "int4b32". false: none of these. */
bool imp_ml_packing_parse(const char *s, imp_ml_packing *out);
void imp_ml_packing_text(const imp_ml_packing *p, char out[16]);
/* The lowest specification version whose programs can hold it. */
int32_t imp_ml_packing_spec(const imp_ml_packing *p);

typedef struct imp_ml_packed {
    imp_ml_packing how;    /* what was really used: a weight too small or of the wrong size stays fp16 */
    uint64_t n, k;         /* rows, columns */
    imp_mil_value part[2]; /* in weight.bin: the numbers; palette or scales */
    uint64_t bytes;        /* in weight.bin */
    double err2, sum2;     /* sums of (w - w')^2 and w^2 */
    uint64_t n_clamped;    /* beyond fp16's range */
} imp_ml_packed;

/* Pack a matrix [n][k] (n_dim 2) as convolution weight [n][k][1][1]. spec: of the program, decides between the two forms
 * of palettes. col_weight: importance of every column for palettes, [k], NULL: all alike. */
IMP_MUST_USE imp_status imp_ml_pack(imp_mlwriter *w, const imp_tensor *t, const imp_ml_packing *how,
                                    int32_t spec, const float *col_weight, imp_ml_packed *out,
                                    imp_error *err);

/* Best palette of n_entry values for weighted numbers: centers ascending. x: [n]; weight NULL: all 1. Returns the mean
 * weighted squared error. scratch from imp_ml_kmeans_scratch. */
typedef struct imp_ml_kmeans imp_ml_kmeans;
imp_ml_kmeans *imp_ml_kmeans_new(void); /* NULL: out of memory */
void imp_ml_kmeans_free(imp_ml_kmeans *s);
void imp_ml_kmeans_reset(imp_ml_kmeans *s);
void imp_ml_kmeans_add(imp_ml_kmeans *s, const float *x, const float *weight, uint64_t n);
double imp_ml_kmeans_solve(imp_ml_kmeans *s, uint32_t n_entry, float *center);
/* The palette's entry nearest to x. */
uint32_t imp_ml_nearest(const float *center, uint32_t n_entry, float x);

#endif
