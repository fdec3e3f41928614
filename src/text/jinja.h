/* text/jinja.h - chat templates: our own interpreter of the Jinja language.
 *
 * Place:   layer 2, text to text; engine renders chats with it, app's `render` shows them.
 * Idea:    a template is compiled once into a tree and rendered any number of times. The result is, byte for byte, what
 *          Python's jinja2 gives in the immutable sandbox that Hugging Face transformers sets up for chat templates:
 *          trim_blocks, lstrip_blocks, break and continue, {% generation %}, raise_exception, strftime_now, and tojson
 *          as json.dumps without ASCII escapes.
 * Always:  a template is data from a stranger: it sees JSON values and nothing of the host; steps, output, memory and
 *          depth are bounded. What is not understood is refused by name, at compile time where the text shows it.
 * Threads: a compiled template is read-only; render it from any number of threads.
 * Source:  the template designer documentation of Jinja 3.1; the chat template documentation of transformers. */
#ifndef IMP_JINJA_H
#define IMP_JINJA_H

#include <jansson.h>

#include "base/base.h"

typedef struct imp_jinja imp_jinja;

/* 0 anywhere takes the default. */
typedef struct imp_jinja_limits {
    uint64_t fuel;    /* steps, about one a tree node; 800 000, and 256 more for each JSON value given */
    size_t out_bytes; /* 8 MiB */
    size_t mem_bytes; /* values made while rendering; 32 MiB */
    uint32_t depth;   /* nested evaluation; 600 */
    int64_t now;      /* Unix time that strftime_now shows, in the local time zone; 0: the clock's */
} imp_jinja_limits;

/* src: UTF-8, at most 1 MiB; borrowed for the call. FORMAT: not UTF-8 or malformed, with the line; UNSUPPORTED: a tag,
 * filter, test or function that is not understood, by name; TOO_LARGE; NOMEM. */
IMP_MUST_USE imp_status imp_jinja_compile(const char *src, size_t n, imp_jinja **out, imp_error *err);
void imp_jinja_free(imp_jinja *t); /* NULL is allowed */

/* Append the rendered text to *out. vars: an object, the template's variables; borrowed and not changed. limits may be
 * NULL. INVALID: the template raised an error, with its own words where it has some; TOO_LARGE: a limit was reached;
 * UNSUPPORTED; NOMEM. On failure *out is as it was. */
IMP_MUST_USE imp_status imp_jinja_render(const imp_jinja *t, const json_t *vars,
                                         const imp_jinja_limits *limits, imp_buf *out, imp_error *err);

#endif
