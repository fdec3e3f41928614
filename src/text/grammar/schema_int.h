/* text/grammar/schema_int.h - JSON schemas as grammar expressions; shared by the schema_*.c files. */
#ifndef IMP_SCHEMA_INT_H
#define IMP_SCHEMA_INT_H

#include "text/grammar/grammar_int.h"

typedef struct schema {
    gr g;
    const json_t *root;
    json_t *keep;     /* array: schemas made by merging, alive until the end */
    imp_map *rule_of; /* pointer of a schema that a $ref names -> its rule */
    json_t **ref_key; /* the keys' storage */
    size_t n_ref, cap_ref;
    uint32_t depth;
    uint32_t any; /* rule of any value, + 1; 0: not made yet */
    size_t work;  /* schemas merged or built so far */
} schema;

/* Refuse: "schema keyword <keyword>: <why>"; returns 0. */
gr_expr schema_refuse(schema *s, imp_status st, const char *keyword, const char *why);
/* The text of any value that the schema (an object, true or false) accepts. */
gr_expr schema_value(schema *s, const json_t *x);

/* schema_merge.c: one schema that means "both", owned by s->keep; NULL: s->g.status says why. */
json_t *schema_both(schema *s, const json_t *a, const json_t *b);
/* With every allOf and $ref at its top folded in. */
const json_t *schema_flat(schema *s, const json_t *x);
/* Can no value that we would write for a be valid for b, and the reverse? */
bool schema_disjoint(schema *s, const json_t *a, const json_t *b);
/* Bits of the JSON types, in the order of schema_type_name. */
enum {
    T_NULL = 1,
    T_BOOL = 2,
    T_INT = 4,
    T_FRACTION = 8,
    T_STRING = 16,
    T_ARRAY = 32,
    T_OBJECT = 64,
    T_ALL = 127
};
/* What `type` allows (T_ALL without it); 0: malformed. */
uint32_t schema_types(schema *s, const json_t *x);
uint32_t schema_type_of(const json_t *value);
/* The types that are written for a schema: those of `type`, else those its keywords speak of. */
uint32_t schema_written_types(schema *s, const json_t *x);

/* What x's $ref names; NULL: s->g.status says why. */
const json_t *schema_resolve(schema *s, const json_t *x);

/* A whole number >= 0 under a key; dflt when it is not there. */
uint32_t schema_count(schema *s, const json_t *x, const char *key, uint32_t dflt);

/* schema_number.c */
gr_expr schema_number(schema *s, const json_t *x, bool integer);
/* schema_string.c: with the quotes */
gr_expr schema_string(schema *s, const json_t *x);
gr_expr schema_any_string(schema *s);
/* A key (with quotes, without escapes) that is none of the names. */
gr_expr schema_other_key(schema *s, const char *const *name, size_t n);
/* A value as it is, without spaces. */
gr_expr schema_literal(schema *s, const json_t *value);
/* schema_object.c */
gr_expr schema_object(schema *s, const json_t *x);
gr_expr schema_array(schema *s, const json_t *x);
gr_expr schema_space(schema *s); /* what may stand between the parts of an object or array */

#endif
