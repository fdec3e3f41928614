/* fmt/mlpackage_int.h - what the files of the ML Program format share; private to src/fmt. */
#ifndef IMP_FMT_MLPACKAGE_INT_H
#define IMP_FMT_MLPACKAGE_INT_H

#include "fmt/mlpackage.h"
#include "fmt/mlproto.h"

#define MLP_BLOB_FILE "@model_path/weights/weight.bin"
#define MLP_AUTHOR    "com.apple.CoreML"
#define MLP_SENTINEL  0xDEADBEEFu

enum {
    MLP_ALIGN = 64,
    MLP_ARRAY_F16 = 65552,
    MLP_ARRAY_F32 = 65568,
    MLP_ARRAY_I8 = 131080,
    MLP_ARRAY_I32 = 131104
};

/* Metadata of one blob as it lies in weight.bin. */
typedef struct mlp_blob {
    uint32_t sentinel, dtype;
    uint64_t n_bytes, data_offset, padding_bits, reserved[4];
} mlp_blob;

uint32_t mlp_blob_id(imp_mil_dtype t);      /* dtype id in weight.bin, 0: none */
int32_t mlp_array_type(imp_mil_dtype t);    /* ArrayFeatureType.dataType, 0: none */
imp_mil_dtype mlp_array_dtype(uint64_t id); /* the other way round */
bool mlp_identifier(const char *s);         /* [A-Za-z_][A-Za-z0-9_@]* */
int32_t mlp_opset_spec(const char *opset);  /* "CoreML8" -> 9; 0: none */

/* mlpackage_check.c: resolve names, infer types, hold the program to every rule. */
imp_status mlp_check(imp_mlpackage *p, imp_error *err);

#endif
