/* text/toolcall.h - how a model writes calls of tools and its thoughts: found out from its chat template, and proven.
 *
 * Place:   layer 2. engine probes a template when a model is loaded and renders chats with what came of it; api reads answers
 *          through a reader while they are generated.
 * Idea:    a call is OPEN name MID arguments CLOSE, further ones follow after BETWEEN; the texts between the known parts of a
 *          rendered made-up conversation say what the model's OPEN, MID, BETWEEN and CLOSE are. Families that write one
 *          argument after the other (GLM) have the texts around keys and values, too. A template that writes no calls
 *          gets them, declarations and results from us, as text.
 * Always:  a format is used only when parse(render(x)) == x held for made-up calls (quotes, Unicode, nesting, several at
 *          once), read whole and cut in two at every place; else the model refuses tools.
 * Threads: a format is read-only; a reader belongs to one answer. */
#ifndef IMP_TOOLCALL_H
#define IMP_TOOLCALL_H

#include "text/grammar.h"
#include "text/jinja.h"

/* Find out the format. src: the template's source; bos, eos: as the template sees them, may be NULL. A model whose
 * template fails still gets a format that calls nothing (imp_toolfmt_why says why). NOMEM only. */
IMP_MUST_USE imp_status imp_toolfmt_probe(const imp_jinja *t, const char *src, const char *bos,
                                          const char *eos, imp_toolfmt **out);
void imp_toolfmt_free(imp_toolfmt *f); /* NULL is allowed */
const char *imp_toolfmt_why(const imp_toolfmt *f);
/* Does this text (a control token's) occur in what the format writes? Then answers must show that token. */
bool imp_toolfmt_has_text(const imp_toolfmt *f, const char *s, size_t n);
/* The variables of the template for a conversation; INVALID names what is malformed. json_decref *out. */
IMP_MUST_USE imp_status imp_toolfmt_vars(const imp_toolfmt *f, const imp_chat *c, json_t **out,
                                         imp_error *err);
/* Append the text of calls as the model writes them. */
void imp_toolfmt_write(const imp_toolfmt *f, const imp_tool_call *call, size_t n, imp_buf *out);
/* The prompt ends inside a thought that the answer goes on with. */
bool imp_toolfmt_in_thought(const imp_toolfmt *f, const char *prompt);

/* The answers to a request with tools. spec: {"tools": [{"type":"function","function":{"name","parameters"}}],
 * "choice": "auto" | "required" | "none" | {"name": NAME}, "one": bool, "in_thought": bool}. With auto the text is free up
 * to where a call begins. UNSUPPORTED names the schema keyword that is not kept to. */
IMP_MUST_USE imp_status imp_grammar_from_tools(const imp_toolfmt *f, const json_t *spec, imp_grammar **out,
                                               imp_error *err);

/* ---- reading answers ------------------------------------------------------------------------------------- */

typedef enum imp_part_kind {
    IMP_PART_TEXT,
    IMP_PART_THOUGHT,
    IMP_PART_CALL,    /* a call begins; its name */
    IMP_PART_ARGS,    /* more of its arguments, which are JSON when all came */
    IMP_PART_CALL_END /* it is complete; no text */
} imp_part_kind;
typedef void (*imp_part_fn)(void *user, imp_part_kind kind, const char *p, size_t n);

typedef struct imp_reader imp_reader;
/* f is borrowed until the reader goes. tools: the request's list, borrowed for the call; NULL: no calls are looked for.
 * What comes out does not depend on how the text is cut into pushes. */
IMP_MUST_USE imp_status imp_reader_new(const imp_toolfmt *f, const json_t *tools, bool in_thought,
                                       imp_part_fn fn, void *user, imp_reader **out);
void imp_reader_free(imp_reader *r); /* NULL is allowed */
/* false: the text broke off what had begun as a call, or memory ran out; nothing more comes out. */
bool imp_reader_push(imp_reader *r, const char *p, size_t n);
bool imp_reader_end(imp_reader *r); /* the text is over; false also: a call is not complete */

#endif
