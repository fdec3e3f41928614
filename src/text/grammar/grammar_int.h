/* text/grammar/grammar_int.h - the inside of grammars: expressions, the automaton, interned tables. Private to
 * text/grammar. */
#ifndef IMP_GRAMMAR_INT_H
#define IMP_GRAMMAR_INT_H

#include <stdatomic.h>

#include "text/grammar.h"

/* ---- expressions: what the readers (schema, GBNF, regex) build ------------------------------- */

enum {
    GR_MAX_EXPR = 400000,  /* expressions a grammar may have */
    GR_MAX_EDGE = 1500000, /* edges of its automaton */
    GR_MAX_DEPTH = 128,    /* nesting of what the readers read */
    GR_UNLIMITED = UINT32_MAX
};

typedef uint32_t gr_expr; /* index; 0 is the empty text */

typedef struct gr_range {
    int32_t lo, hi; /* code points, inclusive */
} gr_range;

typedef enum gr_kind { GR_EMPTY, GR_NEVER, GR_TEXT, GR_CLASS, GR_SEQ, GR_ALT, GR_REPEAT, GR_CALL } gr_kind;

typedef struct gr_node {
    gr_kind kind;
    uint32_t a, b;     /* SEQ, ALT: both sides (long lists lean to the right); REPEAT: a; CALL: a is the rule;
                          TEXT: bytes a .. a+b of `text`; CLASS: ranges a .. a+b of `range` */
    uint32_t min, max; /* REPEAT; max GR_UNLIMITED: no end */
    uint32_t depth;    /* nesting to the left, which recursion follows */
} gr_node;

typedef struct gr_rule {
    const char *name; /* arena */
    gr_expr body;
    bool defined;
} gr_rule;

typedef struct gr {
    imp_arena *memory;
    gr_node *node;
    uint32_t n_node, cap_node;
    gr_rule *rule;
    uint32_t n_rule, cap_rule;
    imp_buf text, range; /* bytes; gr_range */
    imp_buf wide[3];     /* gr_range: what \\d \\w \\s are at most (regex.c); made when needed */
    imp_error *err;
    imp_status status; /* the first failure; everything after it does nothing */
} gr;

IMP_MUST_USE imp_status gr_init(gr *g, imp_error *err);
void gr_deinit(gr *g);
/* Record a failure (the first one counts); returns 0 so that builders can return it. */
gr_expr gr_fail(gr *g, imp_status s, const char *fmt, ...) IMP_PRINTF(3, 4);

gr_expr gr_never(gr *g); /* matches nothing */
gr_expr gr_text(gr *g, const char *s, size_t n);
gr_expr gr_str(gr *g, const char *s);
gr_expr gr_class(gr *g, const gr_range *r, size_t n, bool negated); /* any order, may overlap */
gr_expr gr_seq(gr *g, const gr_expr *x, size_t n);
gr_expr gr_alt(gr *g, const gr_expr *x, size_t n); /* n == 0: never */
gr_expr gr_seq2(gr *g, gr_expr a, gr_expr b);
gr_expr gr_alt2(gr *g, gr_expr a, gr_expr b);
gr_expr gr_repeat(gr *g, gr_expr a, uint32_t min, uint32_t max);
gr_expr gr_opt(gr *g, gr_expr a);
gr_expr gr_call(gr *g, uint32_t rule);
/* A new rule; name is copied. */
uint32_t gr_rule_new(gr *g, const char *name, size_t n);
void gr_rule_set(gr *g, uint32_t rule, gr_expr body);

/* A growing list of expressions. */
typedef struct gr_list {
    imp_buf b;
} gr_list;
void gr_push(gr *g, gr_list *l, gr_expr x);
size_t gr_count(const gr_list *l);
gr_expr gr_take_seq(gr *g, gr_list *l); /* and empties it */
gr_expr gr_take_alt(gr *g, gr_list *l);

/* A position in the text of a grammar or regular expression. */
typedef struct gr_reader {
    gr *g;
    const char *s;
    size_t n, i;
    uint32_t depth;
    const char *what; /* "grammar": faults are told by line; else by character */
    bool by_line;
} gr_reader;
/* Record what is wrong here; returns 0. */
gr_expr gr_bad(gr_reader *r, imp_status s, const char *what);
bool gr_more(const gr_reader *r); /* not at the end, and nothing failed */
bool gr_take(gr_reader *r, char c);
bool gr_number(gr_reader *r, uint32_t *out);    /* decimal; false: there is none */
int32_t gr_hex(gr_reader *r, uint32_t n_digit); /* exactly so many digits */
int32_t gr_character(gr_reader *r);             /* one UTF-8 character */
int32_t gr_valid(gr_reader *r, int32_t cp);     /* a code point that exists, or a failure */

/* How a set of characters is written in the output; NULL: as its characters. */
typedef gr_expr (*gr_spell_fn)(gr *g, const gr_range *r, size_t n);
/* A regular expression as an expression. anchored: the whole text matches; else a match is found somewhere in it (JSON
 * schema's `pattern`). ^ and $ are understood at the ends of the outermost alternatives. */
gr_expr gr_regex(gr *g, const char *re, size_t n, bool anchored, gr_spell_fn spell);

/* ---- the automaton ----------------------------------------------------------------------------- */

typedef enum gr_edge_kind { GR_EDGE_BYTES, GR_EDGE_EMPTY, GR_EDGE_CALL } gr_edge_kind;
typedef struct gr_edge {
    uint8_t kind, lo, hi;
    uint32_t to;   /* CALL: where it returns to */
    uint32_t call; /* CALL: the rule's first state */
} gr_edge;

struct imp_grammar {
    _Atomic uint32_t refs;
    uint32_t n_state, n_edge, start;
    uint32_t *first; /* [n_state + 1] its edges */
    gr_edge *edge;   /* [n_edge] */
    uint8_t *final;  /* [n_state] a rule (or the grammar) ends here */
};

/* From the expression of the grammar's start. TOO_LARGE, INVALID (left recursion, a rule that is used but not given). */
IMP_MUST_USE imp_status gr_compile(gr *g, gr_expr start, imp_grammar **out);

/* ---- interned word lists: equal lists have one number ------------------------------------------- */

typedef struct gr_intern {
    uint32_t *word; /* all lists, one after the other */
    size_t n_word, cap_word;
    size_t *at; /* [n + 1] */
    uint32_t n, cap;
    uint32_t *slot; /* [n_slot] number + 1; 0: free */
    uint32_t n_slot;
} gr_intern;
void gr_intern_deinit(gr_intern *t);
void gr_intern_clear(gr_intern *t);
bool gr_intern_add(gr_intern *t, const uint32_t *w, size_t n, uint32_t *id); /* false: out of memory */
static inline const uint32_t *gr_intern_get(const gr_intern *t, uint32_t id, size_t *n)
{
    *n = t->at[id + 1] - t->at[id];
    return t->word + t->at[id];
}
size_t gr_intern_bytes(const gr_intern *t);

/* ---- the vocabulary ------------------------------------------------------------------------------- */

/* The tree in the order of a walk that visits a node before its children. Node 0 is the root (no byte). */
struct imp_vocab_tree {
    uint32_t n_node, n_vocab, n_token; /* n_token: entries of `token` */
    uint8_t *byte;                     /* [n_node] */
    uint16_t *depth;                   /* [n_node] bytes from the root */
    uint32_t *skip;                    /* [n_node] the first node behind its subtree */
    uint32_t *parent;                  /* [n_node] */
    uint32_t *token_first;             /* [n_node + 1] tokens that are spelled by the path to it */
    int32_t *token;                    /* [n_token] ids */
    uint32_t *node_of;                 /* [n_vocab] its node; 0: never allowed */
    int32_t *end;                      /* [n_end] */
    size_t n_end;
    uint32_t max_depth;
};

#endif
