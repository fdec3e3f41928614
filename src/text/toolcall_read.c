/* text/toolcall_read.c - an answer as it comes, taken apart: thoughts, text, calls.
 *
 * Place:   api pushes the engine's text events through one reader an answer.
 * Idea:    what is not decided stays in a buffer; each state looks at its beginning and takes from it, hands something out, or
 *          waits for more. So nothing depends on where the text was cut. White space before a call and around thoughts
 *          is format, not content: it is held back until something follows.
 * Always:  arguments come out as they were written, or, where a family writes them one by one, as the JSON they mean. */
#include "text/toolcall_int.h"

typedef enum state {
    START, /* nothing but white space came */
    THOUGHT,
    AFTER_THOUGHT,
    TEXT,
    NAME, /* behind `open` or `between` */
    MID,
    ARGS, /* inside the JSON object */
    NEXT_KEY,
    KEY,
    RAW,   /* a value that is text */
    VALUE, /* a value that is JSON */
    CLOSE, /* behind the arguments */
    TAIL,  /* behind all calls */
    BROKEN
} state;

struct imp_reader {
    const imp_toolfmt *f;
    imp_part_fn fn;
    void *user;
    state state;
    bool calls, over; /* calls are looked for; the text is over */
    bool spoke;       /* the thought or text of this state has begun */
    uint32_t depth;   /* ARGS */
    bool quoted, escaped;
    uint32_t n_key;
    imp_buf buf;
    imp_buf name;      /* of the call under way, with its NUL */
    imp_buf text_keys; /* "name\0key\0" of every parameter that holds text */
};

static void emit(imp_reader *r, imp_part_kind kind, const char *p, size_t n)
{
    if (n > 0 || kind == IMP_PART_CALL || kind == IMP_PART_CALL_END) r->fn(r->user, kind, p, n);
}

static void drop(imp_reader *r, size_t n)
{
    if (n == 0) return;
    memmove(r->buf.data, r->buf.data + n, r->buf.n - n);
    r->buf.n -= n;
    r->buf.data[r->buf.n] = '\0';
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static size_t spaces(const imp_reader *r)
{
    size_t n = 0;
    while (n < r->buf.n && is_space(r->buf.data[n])) n++;
    return n;
}

typedef enum found { NO, YES, MORE } found;

/* Does s begin with the piece? *used: bytes it takes. Over: what is not there will not come. */
static found match(const imp_reader *r, size_t at, const char *piece, size_t *used)
{
    const char *s = r->buf.data + at;
    size_t n = r->buf.n - at, i = 0;
    if (piece == NULL) return NO;
    for (; *piece != '\0'; piece++) {
        if (*piece == IMP_SLOT) {
            size_t from = i;
            while (i < n && imp_tool_name_byte(s[i])) i++;
            if (i == n && !r->over) return MORE;
            if (i == from) return NO;
            continue;
        }
        if (i == n) return r->over ? NO : MORE;
        if (s[i++] != *piece) return NO;
    }
    *used = i;
    return YES;
}

/* How many bytes at the end of the buffer, from `from`, may be the beginning of what. */
static size_t partial(const imp_reader *r, size_t from, const char *what)
{
    size_t n = r->buf.n - from, m = strlen(what), k = IMP_MIN(n, m - 1);
    if (r->over) return 0;
    while (k > 0 && memcmp(r->buf.data + r->buf.n - k, what, k) != 0) k--;
    return k;
}

static const char *find(const imp_reader *r, const char *what)
{
    return r->buf.n > 0 ? memmem(r->buf.data, r->buf.n, what, strlen(what)) : NULL;
}

/* Hand out the first n bytes but for white space at their end, which may turn out to be format. */
static void speak(imp_reader *r, imp_part_kind kind, size_t n)
{
    size_t keep = n;
    while (keep > 0 && is_space(r->buf.data[keep - 1])) keep--;
    emit(r, kind, r->buf.data, keep);
    if (keep > 0) r->spoke = true;
    drop(r, keep);
}

/* ---- before calls -------------------------------------------------------------------------------------------- */

static void go(imp_reader *r, state s)
{
    r->state = s;
    r->spoke = false;
}

static bool on_start(imp_reader *r, bool thoughts)
{
    const imp_toolfmt *f = r->f;
    size_t skip = spaces(r), used = 0;
    if (skip == r->buf.n) { /* nothing but white space so far */
        if (!r->over || skip == 0) return false;
        if (!thoughts) drop(r, skip);
        go(r, TEXT);
        return true;
    }
    found t = thoughts ? match(r, skip, f->think_open, &used) : NO;
    if (t == YES) {
        drop(r, skip + used);
        go(r, THOUGHT);
        return true;
    }
    found c = NO, tag = NO;
    size_t at = skip;
    if (r->calls && f->trigger == NULL) {
        tag = match(r, at, f->tag, &used);
        if (tag == YES) at += used;
        c = tag == MORE ? MORE : match(r, at, f->open, &used);
    }
    if (c == YES) {
        drop(r, at + used);
        go(r, NAME);
        return true;
    }
    if (t == MORE || c == MORE) return false;
    if (!thoughts) drop(r, skip); /* white space behind a thought is none of the answer */
    go(r, TEXT);
    return true;
}

static bool on_thought(imp_reader *r)
{
    if (!r->spoke) drop(r, spaces(r));
    const char *end = find(r, r->f->think_close);
    if (end != NULL) {
        size_t n = (size_t)(end - r->buf.data), m = n;
        while (m > 0 && is_space(r->buf.data[m - 1])) m--;
        emit(r, IMP_PART_THOUGHT, r->buf.data, m);
        drop(r, n + strlen(r->f->think_close));
        go(r, AFTER_THOUGHT);
        return true;
    }
    speak(r, IMP_PART_THOUGHT, r->buf.n - partial(r, 0, r->f->think_close));
    return false;
}

static bool on_text(imp_reader *r)
{
    const char *trigger = r->calls ? r->f->trigger : NULL;
    if (trigger == NULL) {
        emit(r, IMP_PART_TEXT, r->buf.data, r->buf.n);
        drop(r, r->buf.n);
        return false;
    }
    const char *at = find(r, trigger);
    if (at == NULL) {
        if (r->over) {
            emit(r, IMP_PART_TEXT, r->buf.data, r->buf.n);
            drop(r, r->buf.n);
        } else {
            speak(r, IMP_PART_TEXT, r->buf.n - partial(r, 0, trigger));
        }
        return false;
    }
    size_t n = (size_t)(at - r->buf.data), used = 0;
    speak(r, IMP_PART_TEXT, n);
    found m = match(r, spaces(r), r->f->open, &used);
    if (m == YES) {
        drop(r, spaces(r) + used);
        go(r, NAME);
    } else if (m == NO) {
        go(r, BROKEN);
    }
    return m != MORE;
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

static bool on_name(imp_reader *r)
{
    size_t n = 0;
    while (n < r->buf.n && imp_tool_name_byte(r->buf.data[n])) n++;
    if (n == r->buf.n && !r->over) return false;
    if (n == 0) {
        go(r, BROKEN);
        return true;
    }
    r->name.n = 0;
    imp_buf_add(&r->name, r->buf.data, n);
    drop(r, n);
    emit(r, IMP_PART_CALL, r->name.data, r->name.n);
    r->depth = 0;
    r->quoted = r->escaped = false;
    r->n_key = 0;
    go(r, MID);
    return true;
}

static bool on_mid(imp_reader *r)
{
    size_t used = 0;
    found m = match(r, 0, r->f->mid, &used);
    if (m == MORE) return false;
    if (m == YES) drop(r, used);
    go(r, m == NO ? BROKEN : r->f->key_open != NULL ? NEXT_KEY : ARGS);
    return true;
}

static bool on_args(imp_reader *r)
{
    size_t i = 0;
    if (r->depth == 0) {
        drop(r, spaces(r));
        if (r->buf.n == 0) return false;
        if (r->buf.data[0] != '{') {
            go(r, BROKEN);
            return true;
        }
    }
    for (bool done = false; i < r->buf.n && !done; i++) {
        char c = r->buf.data[i];
        if (r->escaped) {
            r->escaped = false;
        } else if (r->quoted) {
            r->escaped = c == '\\';
            r->quoted = c != '"';
        } else if (c == '"') {
            r->quoted = true;
        } else if (c == '{' || c == '[') {
            r->depth++;
        } else if (c == '}' || c == ']') {
            done = --r->depth == 0;
        }
    }
    emit(r, IMP_PART_ARGS, r->buf.data, i);
    drop(r, i);
    if (r->depth > 0) return false;
    go(r, CLOSE);
    return true;
}

/* Behind the arguments of a call, or before one more of them. */
static bool on_close(imp_reader *r)
{
    size_t n_key = 0, n_more = 0, n_end = 0;
    found key = r->state == NEXT_KEY ? match(r, 0, r->f->key_open, &n_key) : NO;
    found more = match(r, 0, r->f->between, &n_more), end = match(r, 0, r->f->close, &n_end);
    if (key == YES) {
        drop(r, n_key);
        go(r, KEY);
        return true;
    }
    if (key == MORE || more == MORE) return false;
    if (more != YES && end != YES) {
        if (end == NO) go(r, BROKEN);
        return end == NO;
    }
    if (r->f->key_open != NULL) emit(r, IMP_PART_ARGS, r->n_key == 0 ? "{}" : "}", r->n_key == 0 ? 2 : 1);
    emit(r, IMP_PART_CALL_END, "", 0);
    drop(r, more == YES ? n_more : n_end);
    go(r, more == YES ? NAME : TAIL);
    return true;
}

/* Behind the last call there is nothing but white space, unless one more follows in its own way. */
static bool on_tail(imp_reader *r)
{
    size_t used = 0, skip = spaces(r);
    if (skip == r->buf.n) {
        if (r->over) drop(r, skip);
        return false;
    }
    found m = r->f->many ? match(r, skip, r->f->open, &used) : NO;
    if (m == YES) {
        drop(r, skip + used);
        go(r, NAME);
    } else if (m == NO) {
        drop(r, skip);
        go(r, TEXT);
    }
    return m != MORE;
}

/* ---- arguments one by one ----------------------------------------------------------------------------------------- */

/* A piece of text as it stands inside a JSON string. */
static void emit_escaped(imp_reader *r, const char *p, size_t n)
{
    imp_buf b = {0};
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)p[i];
        if (c == '"' || c == '\\')
            imp_buf_fmt(&b, "\\%c", c);
        else if (c < 0x20)
            imp_buf_fmt(&b, "\\u%04x", c);
        else
            imp_buf_add(&b, p + i, 1);
    }
    if (b.failed) r->buf.failed = true;
    emit(r, IMP_PART_ARGS, b.data, b.failed ? 0 : b.n);
    imp_buf_deinit(&b);
}

static bool holds_text(const imp_reader *r, const char *key, size_t n)
{
    const char *p = r->text_keys.data, *end = p + r->text_keys.n;
    while (p != NULL && p < end) {
        const char *k = p + strlen(p) + 1;
        if (strcmp(p, r->name.data) == 0 && strlen(k) == n && memcmp(k, key, n) == 0) return true;
        p = k + strlen(k) + 1;
    }
    return false;
}

static bool on_key(imp_reader *r)
{
    const char *end = find(r, r->f->key_close);
    if (end == NULL) return false;
    size_t n = (size_t)(end - r->buf.data);
    bool raw = holds_text(r, r->buf.data, n);
    emit(r, IMP_PART_ARGS, r->n_key == 0 ? "{\"" : ", \"", r->n_key == 0 ? 2 : 3);
    r->n_key++;
    emit_escaped(r, r->buf.data, n);
    emit(r, IMP_PART_ARGS, raw ? "\": \"" : "\": ", raw ? 4 : 3);
    drop(r, n + strlen(r->f->key_close));
    go(r, raw ? RAW : VALUE);
    return true;
}

static bool on_raw(imp_reader *r)
{
    const char *end = find(r, r->f->value_close);
    size_t n = end != NULL ? (size_t)(end - r->buf.data) : r->buf.n - partial(r, 0, r->f->value_close);
    emit_escaped(r, r->buf.data, n);
    drop(r, n);
    if (end == NULL) return false;
    emit(r, IMP_PART_ARGS, "\"", 1);
    drop(r, strlen(r->f->value_close));
    go(r, NEXT_KEY);
    return true;
}

/* The JSON that a value means; text when it is none. false: it may go on behind this value_close. */
static bool emit_value(imp_reader *r, size_t n)
{
    static const char *const word[][2] = {{"True", "true"}, {"False", "false"}, {"None", "null"}};
    const char *p = r->buf.data;
    json_t *v = n > 0 ? json_loadb(p, n, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL) : NULL;
    bool json = v != NULL;
    json_decref(v);
    if (!json && n > 0 && strchr("{[\"", p[0]) != NULL && !r->over) return false;
    for (size_t i = 0; i < IMP_COUNT(word) && !json; i++)
        if (n == strlen(word[i][0]) && memcmp(p, word[i][0], n) == 0) {
            emit(r, IMP_PART_ARGS, word[i][1], strlen(word[i][1]));
            return true;
        }
    if (json) {
        emit(r, IMP_PART_ARGS, p, n);
        return true;
    }
    emit(r, IMP_PART_ARGS, "\"", 1);
    emit_escaped(r, p, n);
    emit(r, IMP_PART_ARGS, "\"", 1);
    return true;
}

static bool on_value(imp_reader *r)
{
    size_t m = strlen(r->f->value_close), from = 0;
    for (;;) {
        const char *end =
            r->buf.n > from ? memmem(r->buf.data + from, r->buf.n - from, r->f->value_close, m) : NULL;
        if (end == NULL) return false;
        size_t n = (size_t)(end - r->buf.data);
        if (emit_value(r, n)) {
            drop(r, n + m);
            go(r, NEXT_KEY);
            return true;
        }
        from = n + 1;
    }
}

/* ---- the reader ------------------------------------------------------------------------------------------------------ */

static bool step(imp_reader *r)
{
    switch (r->state) {
    case START: return on_start(r, true);
    case AFTER_THOUGHT: return on_start(r, false);
    case THOUGHT: return on_thought(r);
    case TEXT: return on_text(r);
    case NAME: return on_name(r);
    case MID: return on_mid(r);
    case ARGS: return on_args(r);
    case NEXT_KEY:
    case CLOSE: return on_close(r);
    case KEY: return on_key(r);
    case RAW: return on_raw(r);
    case VALUE: return on_value(r);
    case TAIL: return on_tail(r);
    case BROKEN: break;
    }
    return false;
}

static bool run(imp_reader *r)
{
    while (!r->buf.failed && step(r)) {
    }
    return !r->buf.failed && !r->name.failed && r->state != BROKEN;
}

imp_status imp_reader_new(const imp_toolfmt *f, const json_t *tools, bool in_thought, imp_part_fn fn,
                          void *user, imp_reader **out)
{
    imp_reader *r = imp_sys_calloc(1, sizeof *r);
    *out = NULL;
    if (r == NULL) return IMP_NOMEM;
    r->f = f;
    r->fn = fn;
    r->user = user;
    r->calls = tools != NULL && imp_toolfmt_name(f) != NULL;
    r->state = in_thought ? THOUGHT : START;
    for (size_t i = 0; r->calls && i < json_array_size(tools); i++) {
        const json_t *fun = imp_tool_function(tools, i), *schema;
        const char *key, *name = json_string_value(json_object_get(fun, "name"));
        json_t *list = json_object_get(json_object_get(fun, "parameters"), "properties");
        json_object_foreach(list, key, schema)
        {
            if (!imp_tool_is_text(schema) || name == NULL) continue;
            imp_buf_add(&r->text_keys, name, strlen(name) + 1);
            imp_buf_add(&r->text_keys, key, strlen(key) + 1);
        }
    }
    if (!imp_buf_reserve(&r->buf, 256) || r->text_keys.failed) {
        imp_reader_free(r);
        return IMP_NOMEM;
    }
    *out = r;
    return IMP_OK;
}

void imp_reader_free(imp_reader *r)
{
    if (r == NULL) return;
    imp_buf_deinit(&r->buf);
    imp_buf_deinit(&r->name);
    imp_buf_deinit(&r->text_keys);
    imp_sys_free(r);
}

bool imp_reader_push(imp_reader *r, const char *p, size_t n)
{
    imp_buf_add(&r->buf, p, n);
    return run(r);
}

bool imp_reader_end(imp_reader *r)
{
    r->over = true;
    bool good = run(r);
    return good && r->state <= TEXT ? true : good && r->state == TAIL;
}
