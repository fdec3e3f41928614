/* text/toolcall_int.h - the inside of call formats; shared by the toolcall*.c files. */
#ifndef IMP_TOOLCALL_INT_H
#define IMP_TOOLCALL_INT_H

#include "text/toolcall.h"

#define IMP_SLOT '\x01' /* in a piece: where a call's id stands */

enum { IMP_CALL_ID_LEN = 9 }; /* what every template takes: nine letters or digits */

struct imp_toolfmt {
    imp_arena *memory;
    char name[16]; /* "": calls nothing */
    char why[240]; /* then: why */
    /* the conversation */
    bool system_role;   /* the template has one */
    bool shows_tools;   /* it declares the tools; else we do, in words */
    bool writes_calls;  /* it writes calls; else we do, as content */
    bool takes_results; /* it has messages of role "tool"; else results are the user's */
    bool args_text;     /* it wants arguments as JSON text, not as an object */
    bool null_content;  /* a message that only calls has the content null, not "" */
    /* the calls */
    bool many; /* several in one answer */
    const char *
        trigger; /* begins `open` wherever it stands; NULL: a call is the whole answer, from its first byte */
    const char *tag; /* may stand before a call without trigger; NULL: none */
    const char *open, *mid, *between, *close;
    const char *key_open, *key_close, *value_close; /* NULL: arguments are a JSON object */
    const char *think_open, *think_close;           /* NULL: the model has no thoughts */
};

/* Is this byte part of a tool's name? */
static inline bool imp_tool_name_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
}
/* Does a parameter hold text and nothing else? schema: one entry of "properties". */
bool imp_tool_is_text(const json_t *schema);
/* The parameters of entry i of a tools list, and its name; NULL: malformed. */
const json_t *imp_tool_function(const json_t *tools, size_t i);
/* Append JSON as the templates' tojson writes it. */
bool imp_tool_dump(const json_t *v, imp_buf *out);

#endif
