/* plan/parts.c - tensor names to groups, and types that suit a row. */
#include "plan/parts.h"

#include <stdio.h>
#include <stdlib.h>

/* Names behind "blk.N.", up to ".weight". */
static const struct {
    const char *name;
    imp_part part;
} layer_tensor[] = {
    {"attn_q", IMP_PART_Q},
    {"attn_qkv", IMP_PART_Q},
    {"attn_k", IMP_PART_K},
    {"attn_v", IMP_PART_V},
    {"attn_output", IMP_PART_O},
    {"ffn_gate", IMP_PART_GATE_UP},
    {"ffn_up", IMP_PART_GATE_UP},
    {"ffn_down", IMP_PART_DOWN},
    {"ffn_gate_exps", IMP_PART_GATE_UP},
    {"ffn_up_exps", IMP_PART_GATE_UP},
    {"ffn_down_exps", IMP_PART_DOWN},
};

static const char *const part_text[] = {
#define IMP_X(name, text) text,
    IMP_PART_LIST(IMP_X)
#undef IMP_X
};

int imp_group_of(const char *name, uint32_t n_layer)
{
    char *rest;
    if (!strcmp(name, "token_embd.weight")) return IMP_PART_EMBED;
    if (!strcmp(name, "output.weight")) return IMP_PART_OUTPUT;
    if (strncmp(name, "blk.", 4) != 0 || n_layer == 0) return -1;
    unsigned long layer = strtoul(name + 4, &rest, 10);
    if (*rest != '.' || layer >= n_layer) return -1;
    const char *key = rest + 1;
    for (size_t i = 0; i < IMP_COUNT(layer_tensor); i++) {
        size_t n = strlen(layer_tensor[i].name);
        if (strncmp(key, layer_tensor[i].name, n) != 0) continue;
        /* old files hold each expert alone: ffn_up.7.weight */
        const char *dot = key + n;
        if (*dot == '.' && dot[1] >= '0' && dot[1] <= '9') dot += 1 + strspn(dot + 1, "0123456789");
        if (strcmp(dot, ".weight") != 0) continue;
        int third = (int)(layer * IMP_THIRDS / n_layer);
        return 2 + ((int)layer_tensor[i].part - 2) * IMP_THIRDS + third;
    }
    return -1;
}

imp_part imp_group_part(int group)
{
    return group < 2 ? (imp_part)group : (imp_part)(2 + (group - 2) / IMP_THIRDS);
}

const char *imp_group_text(int group, uint32_t n_layer, char *buf, size_t cap)
{
    const char *part = part_text[imp_group_part(group)];
    if (group < 2) {
        (void)snprintf(buf, cap, "%s", part);
        return buf;
    }
    uint32_t third = (uint32_t)(group - 2) % IMP_THIRDS; /* layers with layer * 3 / n_layer == third */
    uint32_t first = (third * n_layer + IMP_THIRDS - 1) / IMP_THIRDS;
    uint32_t end = ((third + 1) * n_layer + IMP_THIRDS - 1) / IMP_THIRDS;
    if (end == first + 1)
        (void)snprintf(buf, cap, "%s, layer %u", part, first);
    else
        (void)snprintf(buf, cap, "%s, layers %u-%u", part, first, end - 1);
    return buf;
}

imp_dtype imp_type_for_row(imp_dtype want, uint64_t n_col)
{
    static const imp_dtype smaller[IMP_N_DTYPE] = {
        [IMP_Q2_K] = IMP_Q4_0, [IMP_Q3_K] = IMP_Q4_0, [IMP_Q4_K] = IMP_Q4_1,
        [IMP_Q5_K] = IMP_Q5_1, [IMP_Q6_K] = IMP_Q8_0,
    };
    if (n_col % imp_dtype_get(want)->block_elem == 0) return want;
    imp_dtype t = smaller[want];
    return t != IMP_DTYPE_NONE && n_col % imp_dtype_get(t)->block_elem == 0 ? t : IMP_F16;
}
