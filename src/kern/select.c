/* kern/select.c - the variant tables and who gets chosen.
 *
 * Place:   baseline code, built for no particular CPU: the only caller of a variant's descriptor.
 * Idea:    the lists expand into tables in order of preference; the last entry that this CPU may run wins. */
#include "kern/attn_keys.h"

static const imp_matmul *const matmul_table[] = {
#define X(wtype, isa, bits) &imp_matmul_##wtype##_##isa,
#include "kern/matmul_list.inc"
#undef X
};
static const imp_vec *const vec_table[] = {
#define X(isa, bits) &imp_vec_##isa,
#include "kern/vec_list.inc"
#undef X
};
static const imp_attn *const attn_table[] = {
#define X(isa, bits) &imp_attn_##isa,
#include "kern/attn_list.inc"
#undef X
};
static const imp_peak *const peak_table[] = {
#define X(isa, bits) &imp_peak_##isa,
#include "kern/peak_list.inc"
#undef X
};

static bool can_run(uint64_t bits)
{
    return (imp_cpu_features() & bits) == bits;
}

static const imp_matmul *select_matmul(imp_dtype t, uint64_t k, bool f32_only)
{
    const imp_dtype_info *info = imp_dtype_get(t);
    if (t != IMP_AFFINE && (info == NULL || info->to_f32 == NULL)) return NULL;
    const imp_matmul *best = NULL;
    bool best_exact = false;
    for (size_t i = 0; i < IMP_COUNT(matmul_table); i++) {
        const imp_matmul *v = matmul_table[i];
        bool exact = v->dtype == t;
        if ((!exact && v->dtype != IMP_DTYPE_NONE) || k % v->k_multiple != 0 || !can_run(v->cpu)) continue;
        if ((best_exact && !exact) || (f32_only && v->x_form != IMP_X_F32)) continue;
        best = v;
        best_exact = exact;
    }
    return best;
}

const imp_matmul *imp_matmul_select(imp_dtype t, uint64_t k)
{
    return select_matmul(t, k, false);
}

const imp_matmul *imp_matmul_select_f32(imp_dtype t, uint64_t k)
{
    return select_matmul(t, k, true);
}

const imp_matmul *imp_matmul_at(size_t i)
{
    return i < IMP_COUNT(matmul_table) ? matmul_table[i] : NULL;
}

const imp_vec *imp_vec_at(size_t i)
{
    return i < IMP_COUNT(vec_table) ? vec_table[i] : NULL;
}

const imp_vec *imp_vec_get(void)
{
    size_t i = IMP_COUNT(vec_table) - 1;
    while (!can_run(vec_table[i]->cpu)) i--;
    return vec_table[i];
}

const imp_attn *imp_attn_at(size_t i)
{
    return i < IMP_COUNT(attn_table) ? attn_table[i] : NULL;
}

const imp_attn *imp_attn_get(void)
{
    size_t i = IMP_COUNT(attn_table) - 1;
    while (!can_run(attn_table[i]->cpu)) i--;
    return attn_table[i];
}

const imp_peak *imp_peak_at(size_t i)
{
    return i < IMP_COUNT(peak_table) ? peak_table[i] : NULL;
}

const imp_peak *imp_peak_get(void)
{
    size_t i = IMP_COUNT(peak_table) - 1;
    while (!can_run(peak_table[i]->cpu)) i--;
    return peak_table[i];
}

uint64_t imp_attn_part_floats(uint32_t n_row, uint32_t n_group, uint32_t head_dim)
{
    return (uint64_t)n_row * n_group * attn_part_stride(head_dim);
}

/* A tile of keys and one of values as f32; of every row and head: a chunk's part, the maximum and sum of those before, the
 * query in int8; a query rotated. */
uint64_t imp_attn_scratch_bytes(uint32_t n_row, uint32_t n_group, uint32_t head_dim)
{
    uint64_t n = (uint64_t)n_row * n_group, tile = (uint64_t)IMP_ATTN_TILE * head_dim * sizeof(float);
    uint64_t part = imp_attn_part_floats(n_row, n_group, head_dim) * sizeof(float);
    uint64_t query = n * ((head_dim + 31) / 32) * sizeof(imp_q8_block);
    return (2 * tile + part + 2 * n * sizeof(float) + query + head_dim * sizeof(float) + 63) & ~63ull;
}
