/* text/jinja/jinja_int.h - values, tree and evaluator of the Jinja interpreter, shared by the files of this folder.
 *
 * Idea:    lex.c cuts the source into tokens, parse.c makes the tree, eval.c and stmt.c walk it; value.c has what all
 *          values can do, ops.c the operators, filter*.c, test.c, method.c and func.c what templates call, json.c the
 *          way in from JSON and tojson.
 * Layout:  a val is 16 bytes; everything it points to lies in the render's arena, in the compiled template or in the
 *          caller's JSON, and never changes, but for namespaces, one-pass iterators and loops.
 * Always:  functions return false after jj_fail has recorded why; nothing recurses without jj_enter or a bounded tree.
 * Threads: a jj belongs to one call of compile or render. */
#ifndef IMP_JINJA_INT_H
#define IMP_JINJA_INT_H

#include "text/jinja.h"

#define JJ_TRY(e)                                                                                            \
    do {                                                                                                     \
        if (!(e)) return false;                                                                              \
    } while (0)

/* ---- values -------------------------------------------------------------------------------------- */

typedef enum jj_kind {
    JJ_MISSING, /* an argument that was not given; never seen by a template */
    JJ_UNDEF,
    JJ_NONE,
    JJ_BOOL,
    JJ_INT,
    JJ_FLOAT,
    JJ_STR,
    JJ_LIST,
    JJ_TUPLE,
    JJ_DICT,
    JJ_VIEW, /* dict.keys(), .values(), .items() */
    JJ_RANGE,
    JJ_ITER,  /* one pass over values computed before: what jinja2's generators are */
    JJ_NS,    /* namespace() */
    JJ_MACRO, /* also a call block's caller */
    JJ_FUNC,  /* a global function */
    JJ_METHOD,
    JJ_LOOP
} jj_kind;

typedef struct jj_str {
    const char *p; /* n bytes of valid UTF-8, not NUL-terminated */
    size_t n, n_cp;
    bool markup; /* went through safe or escape: joining it to other text escapes that text */
} jj_str;

typedef struct jj_undef {
    const jj_str *name;
    const char *owner; /* type name of what was asked for name; NULL: a variable */
    const char *hint;  /* a whole sentence instead; or NULL */
} jj_undef;

typedef struct jj_val {
    jj_kind kind;
    union {
        bool b;
        int64_t i;
        double f;
        const jj_str *s;
        struct jj_list *l;
        struct jj_dict *d; /* also of JJ_NS */
        struct jj_view *view;
        struct jj_range *range;
        struct jj_iter *iter;
        struct jj_macro *macro;
        struct jj_method *method;
        struct jj_loop *loop;
        const struct jj_func *func;
        const jj_undef *u; /* may be NULL */
    };
} jj_val;

typedef struct jj_list {
    jj_val *v;
    size_t n, cap;
} jj_list;

typedef struct jj_dict { /* in order of insertion */
    jj_val *key, *value;
    size_t n, cap;
    uint32_t *slot; /* [n_slot] a power of two: 1 + place in key; NULL while n is small */
    size_t n_slot;
} jj_dict;

typedef enum jj_view_kind { JJ_KEYS, JJ_VALUES, JJ_ITEMS } jj_view_kind;
typedef struct jj_view {
    const jj_dict *d;
    jj_view_kind kind;
} jj_view;
typedef struct jj_range {
    int64_t start, stop, step, n;
} jj_range;
typedef struct jj_iter {
    const jj_val *v;
    size_t n, pos;
} jj_iter;
typedef struct jj_loop {
    const jj_val *v;
    size_t n, index0;
    jj_val changed; /* what changed() was last given: a tuple, or JJ_MISSING */
} jj_loop;
typedef struct jj_macro {
    const struct jj_node *def; /* MACRO or CALL_BLOCK */
    struct jj_frame *env;      /* where it was defined */
} jj_macro;
typedef struct jj_method {
    jj_val self;
    const struct jj_method_def *def;
} jj_method;

static inline jj_val jj_none(void)
{
    return (jj_val){.kind = JJ_NONE};
}
static inline jj_val jj_bool(bool b)
{
    return (jj_val){.kind = JJ_BOOL, .b = b};
}
static inline jj_val jj_int(int64_t i)
{
    return (jj_val){.kind = JJ_INT, .i = i};
}
static inline jj_val jj_float(double f)
{
    return (jj_val){.kind = JJ_FLOAT, .f = f};
}
static inline bool jj_is_int(jj_val v) /* Python's bool is an int */
{
    return v.kind == JJ_INT || v.kind == JJ_BOOL;
}
static inline bool jj_is_num(jj_val v)
{
    return jj_is_int(v) || v.kind == JJ_FLOAT;
}
static inline int64_t jj_as_int(jj_val v)
{
    return v.kind == JJ_BOOL ? v.b : v.i;
}
static inline double jj_as_float(jj_val v)
{
    return v.kind == JJ_FLOAT ? v.f : (double)jj_as_int(v);
}

/* ---- the call of compile or render --------------------------------------------------------------- */

typedef struct jj_binding {
    const jj_str *name; /* compared by address: names are interned by the parser */
    jj_val v;
    struct jj_binding *next;
} jj_binding;
typedef struct jj_frame {
    struct jj_frame *parent;
    jj_binding *first;
    bool kept; /* a macro was defined here and may outlive it */
} jj_frame;

typedef struct jj {
    imp_arena *arena;
    size_t mem_used, mem_cap;
    imp_buf *out; /* what is written lies behind out_start; captures are cut off its end again */
    size_t out_start, out_cap;
    uint64_t fuel;
    uint32_t depth, depth_cap;
    uint32_t line; /* of the node being evaluated */
    imp_status status;
    imp_error *err;
    jj_frame *env;
    jj_binding *spare;
    jj_dict *vars;
    jj_str *ascii; /* [128] one-character strings, made at the first need */
    int64_t now;
    enum { JJ_GO, JJ_BREAK, JJ_CONTINUE } jump;
} jj;

/* Record the error (with the line in front) and return false. */
bool jj_fail(jj *j, imp_status status, const char *fmt, ...) IMP_PRINTF(3, 4);
#define jj_type_error(j, ...) jj_fail(j, IMP_INVALID, __VA_ARGS__)
bool jj_fail_undef(jj *j, jj_val v); /* what is wrong with an undefined value that was used */
void *jj_alloc(jj *j, size_t n);     /* zeroed; NULL after jj_fail */
void *jj_array(jj *j, size_t n, size_t size);
bool jj_out_of_fuel(jj *j);
static inline bool jj_burn(jj *j, uint64_t n)
{
    if (j->fuel < n) return jj_out_of_fuel(j);
    j->fuel -= n;
    return true;
}
bool jj_enter(jj *j); /* one level deeper; pair with jj_leave */
static inline void jj_leave(jj *j)
{
    j->depth--;
}

/* ---- value.c: strings, containers, text of values ------------------------------------------------- */
size_t jj_count_cp(const char *p, size_t n);
/* borrow: p must outlive the call of render or compile. */
bool jj_str_borrow(jj *j, const char *p, size_t n, jj_val *out);
bool jj_str_copy(jj *j, const char *p, size_t n, jj_val *out);
bool jj_str_char(jj *j, const char *p, size_t n, jj_val *out); /* one character */
bool jj_str_z(jj *j, const char *z, jj_val *out);              /* a string literal */
bool jj_str_eq(const jj_str *a, const jj_str *b);
bool jj_str_is(const jj_str *a, const char *z);
size_t jj_str_at(const jj_str *s, size_t cp); /* byte offset of character cp <= n_cp */

bool jj_list_new(jj *j, size_t cap, jj_list **out);
bool jj_list_add(jj *j, jj_list *l, jj_val v);
jj_val jj_list_val(jj_list *l, bool tuple);
bool jj_pair(jj *j, jj_val a, jj_val b, jj_val *out); /* a tuple */
bool jj_iter_new(jj *j, const jj_val *v, size_t n, jj_val *out);
bool jj_dict_new(jj *j, jj_dict **out);
bool jj_dict_put(jj *j, jj_dict *d, jj_val key, jj_val value); /* the key is hashable, or it fails */
/* NULL: absent. Strings by bytes; numbers as Python compares them. */
const jj_val *jj_dict_find(const jj_dict *d, jj_val key);
const jj_val *jj_dict_find_str(const jj_dict *d, const jj_str *key);
bool jj_hashable(jj_val v);

const char *jj_type_name(jj_val v); /* Python's */
bool jj_truth(jj_val v);
bool jj_len(jj *j, jj_val v, int64_t *out);
bool jj_has_len(jj_val v);
bool jj_iterable(jj_val v);
/* All that iterating over v gives; v is borrowed or new. An iterator is used up. */
bool jj_items(jj *j, jj_val v, const jj_val **out, size_t *n);
bool jj_view_at(jj *j, const jj_view *v, size_t i, jj_val *out);

/* Writing: to the end of the output, which a capture takes away again. */
bool jj_put(jj *j, const char *p, size_t n);
bool jj_put_z(jj *j, const char *z);
bool jj_put_cp(jj *j, int32_t cp);
bool jj_put_str(jj *j, jj_val v);  /* str(v) */
bool jj_put_repr(jj *j, jj_val v); /* repr(v) */
static inline size_t jj_mark(const jj *j)
{
    return j->out->n;
}
bool jj_take(jj *j, size_t mark, jj_val *out);
bool jj_to_str(jj *j, jj_val v, const jj_str **out); /* str(v) */
size_t jj_float_repr(double f, char out[40]);

/* ---- ops.c ----------------------------------------------------------------------------------------- */
typedef enum jj_op {
    JJ_ADD,
    JJ_SUB,
    JJ_MUL,
    JJ_DIV,
    JJ_FLOORDIV,
    JJ_MOD,
    JJ_POW,
    JJ_EQ,
    JJ_NE,
    JJ_LT,
    JJ_LE,
    JJ_GT,
    JJ_GE,
    JJ_IN,
    JJ_NOT_IN
} jj_op;
bool jj_arith(jj *j, jj_op op, jj_val a, jj_val b, jj_val *out);
bool jj_negate(jj *j, jj_val a, jj_val *out);
bool jj_same(jj_val a, jj_val b); /* Python's `is` */
bool jj_equal(jj *j, jj_val a, jj_val b, bool *out);
bool jj_compare(jj *j, jj_op op, jj_val a, jj_val b, bool *out); /* EQ .. NOT_IN */
/* Stable; keys[i] belongs to v[i]; both are reordered. */
bool jj_sort(jj *j, jj_val *v, jj_val *keys, size_t n, bool reverse);
bool jj_getattr(jj *j, jj_val obj, const jj_str *name, jj_val *out);
bool jj_getitem(jj *j, jj_val obj, jj_val key, jj_val *out);
bool jj_slice(jj *j, jj_val obj, jj_val start, jj_val stop, jj_val step, jj_val *out);
bool jj_undef_attr(jj *j, jj_val obj, const jj_str *name, jj_val *out);

/* ---- strings.c: what Python's str does -------------------------------------------------------------- */
typedef enum jj_case { JJ_UPPER, JJ_LOWER, JJ_TITLE, JJ_CAPITAL, JJ_SWAP, JJ_FOLD, JJ_WORDS } jj_case;
bool jj_is_space(int32_t cp);
bool jj_is_printable(int32_t cp);
bool jj_change_case(jj *j, const jj_str *s, jj_case how, jj_val *out);
/* side: -1 left, 1 right, 0 both; chars NULL: white space */
bool jj_strip(jj *j, const jj_str *s, const jj_str *chars, int side, jj_val *out);
bool jj_replace(jj *j, const jj_str *s, const jj_str *old, const jj_str *with, int64_t count, jj_val *out);
bool jj_splitlines(jj *j, const jj_str *s, bool keep, jj_list **out);
bool jj_substr(jj *j, const jj_str *s, size_t cp_from, size_t cp_to, jj_val *out);
bool jj_find(jj *j, const jj_str *s, const jj_str *what, size_t from, size_t to, bool last,
             size_t *at); /* bytes */
bool jj_escape(jj *j, jj_val v, jj_val *out);
bool jj_pad(jj *j, const jj_str *s, int64_t width, int align, const jj_str *fill,
            jj_val *out); /* -1 < 0 ^ 1 > */
bool jj_parse_int(const jj_str *s, int base, int64_t *out, bool *overflow);
bool jj_parse_float(const jj_str *s, double *out);
bool jj_is_class(int32_t cp, int which); /* JJ_IS_* */
enum {
    JJ_IS_ALPHA,
    JJ_IS_DECIMAL,
    JJ_IS_DIGIT,
    JJ_IS_NUMERIC,
    JJ_IS_LOWER,
    JJ_IS_UPPER,
    JJ_IS_TITLE,
    JJ_IS_WORD
};

/* ---- arguments and callables -------------------------------------------------------------------------- */
typedef struct jj_args {
    jj_val *v;
    size_t n;
    const jj_str **name; /* [n_kw] */
    jj_val *kw;
    size_t n_kw;
} jj_args;
/* Put arguments in the order of names (comma separated, those behind '|' may be missing); out[] holds JJ_MISSING for
 * what was not given. who: for the error. */
bool jj_bind(jj *j, const char *who, const char *names, const jj_args *a, jj_val *out, size_t n_out);

typedef struct jj_filter_def {
    const char *name;
    bool (*run)(jj *j, jj_val in, const jj_args *a, jj_val *out);
} jj_filter_def;
const jj_filter_def *jj_filter_find(const char *name, size_t n);
typedef struct jj_test_def {
    const char *name;
    bool (*run)(jj *j, jj_val in, const jj_args *a, bool *out);
} jj_test_def;
const jj_test_def *jj_test_find(const char *name, size_t n);
extern const jj_filter_def jj_text_filters[], jj_seq_filters[]; /* end with name NULL */

typedef struct jj_method_def {
    const char *name;
    /* NULL: there in Python, and not here */
    bool (*run)(jj *j, const jj_val *self, const jj_args *a, jj_val *out);
    bool unsafe; /* the sandbox hides it */
} jj_method_def;
/* The attribute `name` that every value of this type has; NULL: none. */
const jj_method_def *jj_method_find(jj_val self, const jj_str *name);
extern const jj_method_def jj_str_methods[];

typedef struct jj_func {
    const char *name;
    bool (*run)(jj *j, const jj_args *a, jj_val *out); /* NULL: not here */
} jj_func;
const jj_func *jj_func_find(const jj_str *name);
bool jj_call(jj *j, jj_val f, const jj_args *a, jj_val *out);
bool jj_call_macro(jj *j, jj_macro *m, const jj_args *a, jj_val *out); /* eval.c */

bool jj_format_percent(jj *j, const jj_str *fmt, jj_val args, jj_val *out);     /* fmt % args */
bool jj_format_braces(jj *j, const jj_str *fmt, const jj_args *a, jj_val *out); /* fmt.format(...) */

/* ---- json.c ------------------------------------------------------------------------------------------- */
bool jj_from_json(jj *j, const json_t *v, jj_val *out, uint64_t *n_value);
bool jj_tojson(jj *j, jj_val in, const jj_args *a, jj_val *out);

/* ---- tokens and tree ------------------------------------------------------------------------------------ */
typedef enum jj_tok_kind {
    JJ_T_EOF,
    JJ_T_DATA,
    JJ_T_BLOCK_BEGIN,
    JJ_T_BLOCK_END,
    JJ_T_VAR_BEGIN,
    JJ_T_VAR_END,
    JJ_T_NAME,
    JJ_T_STRING,
    JJ_T_INT,
    JJ_T_FLOAT,
    JJ_T_ADD,
    JJ_T_SUB,
    JJ_T_MUL,
    JJ_T_DIV,
    JJ_T_FLOORDIV,
    JJ_T_MOD,
    JJ_T_POW,
    JJ_T_TILDE,
    JJ_T_EQ,
    JJ_T_NE,
    JJ_T_LT,
    JJ_T_LE,
    JJ_T_GT,
    JJ_T_GE,
    JJ_T_ASSIGN,
    JJ_T_DOT,
    JJ_T_COMMA,
    JJ_T_COLON,
    JJ_T_PIPE,
    JJ_T_SEMICOLON,
    JJ_T_LPAREN,
    JJ_T_RPAREN,
    JJ_T_LBRACKET,
    JJ_T_RBRACKET,
    JJ_T_LBRACE,
    JJ_T_RBRACE
} jj_tok_kind;

typedef struct jj_tok {
    jj_tok_kind kind;
    uint32_t line;
    const char *p; /* NAME, DATA: the text */
    size_t n;
    jj_val value; /* STRING, INT, FLOAT */
} jj_tok;

enum { JJ_MAX_BRACKET = 128 };
typedef struct jj_lex {
    jj *j;
    const char *src; /* line ends are \n */
    size_t n, pos;
    uint32_t line;
    enum { JJ_LEX_ROOT, JJ_LEX_BLOCK, JJ_LEX_VAR } state;
    jj_tok_kind pending; /* what follows the data token just given: *_BEGIN, or EOF for none */
    size_t pending_end;
    bool line_starting;
    char bracket[JJ_MAX_BRACKET];
    size_t n_bracket;
} jj_lex;
/* src is normalised in place. */
void jj_lex_init(jj_lex *x, jj *j, char *src, size_t n);
bool jj_lex_next(jj_lex *x, jj_tok *out);

typedef enum jj_node_kind {
    JJ_N_CONST,
    JJ_N_NAME,    /* name */
    JJ_N_NSREF,   /* name . attr */
    JJ_N_LIST,    /* a: items */
    JJ_N_TUPLE,   /* a: items */
    JJ_N_DICT,    /* a: key, value, key, value ... */
    JJ_N_GETATTR, /* a . name */
    JJ_N_GETITEM, /* a [b] */
    JJ_N_SLICE,   /* a [b : c : d], each but a may be NULL */
    JJ_N_CALL,    /* a (args) */
    JJ_N_FILTER,  /* a | filter (args); a is NULL at the start of a filter block's chain */
    JJ_N_TEST,    /* a is test (args) */
    JJ_N_NOT,
    JJ_N_NEG,
    JJ_N_POS,
    JJ_N_AND, /* a, b */
    JJ_N_OR,
    JJ_N_ARITH,        /* a op b */
    JJ_N_CONCAT,       /* a: parts */
    JJ_N_COMPARE,      /* a, then b: operands with op */
    JJ_N_COND,         /* b if a else c; c may be NULL */
    JJ_N_DATA,         /* value */
    JJ_N_PRINT,        /* a: expressions */
    JJ_N_IF,           /* a: test, body, other: the else body (an elif is an IF alone in it) */
    JJ_N_FOR,          /* target, a: iterable, b: condition or NULL, body, other; name: "loop" */
    JJ_N_SET,          /* target = a */
    JJ_N_SET_BLOCK,    /* target, a: filter chain or NULL, body */
    JJ_N_MACRO,        /* name, params, body */
    JJ_N_CALL_BLOCK,   /* a: the call, params, body */
    JJ_N_FILTER_BLOCK, /* a: filter chain, body */
    JJ_N_WITH,         /* target: names, a: values, body */
    JJ_N_SCOPE,        /* body in a scope of its own */
    JJ_N_BREAK,
    JJ_N_CONTINUE
} jj_node_kind;

typedef struct jj_arg {
    const jj_str *name; /* keyword; NULL: positional */
    enum { JJ_ARG_PLAIN, JJ_ARG_STAR, JJ_ARG_STARSTAR } how;
    struct jj_node *value;
    struct jj_arg *next;
} jj_arg;
typedef struct jj_param {
    const jj_str *name;
    struct jj_node *fallback; /* or NULL */
    struct jj_param *next;
} jj_param;
typedef struct jj_names { /* of variables that a scope holds as undefined until they are set */
    const jj_str *name;
    struct jj_names *next;
} jj_names;

typedef struct jj_node {
    jj_node_kind kind;
    uint32_t line;
    uint16_t height; /* of the tree below */
    uint8_t op;      /* jj_op of ARITH and of a COMPARE's operands */
    uint32_t n;      /* args, params or items */
    const jj_str *name, *attr;
    const jj_str *varargs, *kwargs, *caller; /* MACRO, CALL_BLOCK: the body speaks of them; or NULL */
    struct jj_node *a, *b, *c, *d, *target, *body, *other, *next;
    union {
        jj_arg *args;
        jj_param *params;
    };
    jj_names *unset;
    union {
        const jj_filter_def *filter;
        const jj_test_def *test;
    };
    jj_val value;
} jj_node;

/* The statements of the whole template; *unset: of its outermost scope. */
bool jj_parse(jj *j, char *src, size_t n, jj_node **body, jj_names **unset);
/* Find what each scope holds as undefined at its start (see scope.c). */
bool jj_scopes(jj *j, jj_node *body, jj_names **unset);

bool jj_eval(jj *j, const jj_node *e, jj_val *out);
bool jj_exec(jj *j, const jj_node *body);
bool jj_assign(jj *j, const jj_node *target, jj_val v);
bool jj_eval_args(jj *j, const jj_node *n, jj_args *out);
jj_frame *jj_frame_push(jj *j, jj_frame *parent, const jj_names *unset);
bool jj_bind_name(jj *j, jj_frame *f, const jj_str *name, jj_val v);

#endif
