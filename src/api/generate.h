/* api/generate.h - what the endpoints that generate text share; included by generate.c and the files of each API. */
#ifndef IMP_API_GENERATE_H
#define IMP_API_GENERATE_H

#include "api/internal.h"
#include "text/toolcall.h"

typedef struct gen_call gen_call;

/* A call of a tool in an answer. */
typedef struct gen_tool {
    char id[48];
    imp_buf name, args; /* args: a JSON object when it is complete */
} gen_tool;

typedef struct gen_reading { /* whose text a reader reads */
    gen_call *g;
    size_t index;
} gen_reading;

/* The answer to one engine request. */
typedef struct gen_choice {
    imp_buf text;      /* all text so far; not kept when streaming */
    imp_buf lp[4];     /* parts of the logprobs object, as the API's format wants them */
    uint32_t text_pos; /* characters before the next token (completions' text_offset) */
    size_t n_tok;      /* tokens in lp */
    imp_finish finish;
    const char *stop; /* the stop string that ended it, in the call's arena */
    imp_usage usage;
    /* where the model may think or call (tools_answer.c) */
    imp_reader *reader; /* NULL: all text is text */
    gen_reading reading;
    imp_buf thought;        /* not kept when streaming */
    gen_tool *tool;         /* [n_tool], owned */
    size_t n_tool, n_whole; /* n_whole: of those that are complete */
    bool broken;
    int block,
        n_block; /* formats that stream numbered blocks: the kind of the open one, 0: none; how many began */
} gen_choice;

typedef struct gen_prompt {
    int32_t *ids; /* owned by imp_free when `engine`, else in the arena */
    size_t n;
    bool engine;
    const char *text; /* echo: in the arena */
    size_t n_text;
} gen_prompt;

/* How one API writes answers. open, piece and close append to g->out while it streams. */
typedef struct gen_format {
    const char *id_prefix, *stream_type; /* the stream's content type */
    /* The tokens of a TEXT event, appended to choice->lp; NULL: the API has no probabilities. */
    void (*tokens)(gen_call *g, gen_choice *c, const imp_event *ev);
    void (*open)(gen_call *g, size_t i); /* what choice i starts with */
    void (*piece)(gen_call *g, size_t i, const char *text, size_t n);
    /* thoughts and calls; NULL: the API has none. k counts the choice's calls */
    void (*thought)(gen_call *g, size_t i, const char *text, size_t n);
    void (*call)(gen_call *g, size_t i, size_t k);
    void (*args)(gen_call *g, size_t i, size_t k, const char *text, size_t n);
    void (*call_end)(gen_call *g, size_t i, size_t k);
    void (*close)(gen_call *g, size_t i);    /* choice i has its finish and usage */
    void (*end)(gen_call *g, imp_buf *b);    /* a stream's last words; g->base.err says whether it failed */
    const char *cut;                         /* its last words when there is no memory for others */
    void (*answer)(gen_call *g, imp_buf *b); /* everything at once */
    const struct gen_words *words;           /* openai.c's two APIs */
} gen_format;

/* What differs between OpenAI's chat and text completions. All write to out. */
typedef struct gen_words {
    const char *object, *chunk_object;
    void (*logprobs)(const gen_choice *c, imp_buf *out); /* "logprobs":... */
    /* The part of a chunk's choice before "logprobs". */
    void (*delta)(imp_buf *out, const char *text, size_t n);
    const char *role_delta;                           /* first chunk of a choice; NULL: none */
    const char *last_delta;                           /* in the chunk that ends a choice */
    void (*whole)(imp_buf *out, const gen_choice *c); /* the same in a complete answer */
} gen_words;

struct gen_call {
    imp_api_call base; /* first */
    imp_api_params p;
    const gen_format *format;
    imp_model *model;     /* a reference, until the last event */
    const char *model_id; /* in the arena */
    char id[48];
    int64_t created;
    gen_choice *choice; /* [n_slot], in the arena */
    gen_prompt *prompt; /* [n_prompt], in the arena */
    size_t n_prompt;
    imp_api_lora lora;          /* until the requests are submitted */
    bool in_thought;            /* the prompt ends inside a thought */
    imp_constraint *constraint; /* until the requests are submitted */
    imp_buf head;               /* start of every chunk, up to "choices":[ */
    imp_buf out;                /* what the sink has not got yet */
    uint32_t n_event;           /* formats that number their events */
};

extern const gen_format imp_gen_chat, imp_gen_completion, imp_gen_ollama_chat, imp_gen_ollama_generate,
    imp_gen_messages, imp_gen_responses;

#define IMP_OPENAI_CUT                                                                                       \
    "data: {\"error\":{\"message\":\"the server is out of "                                                  \
    "memory\",\"type\":\"server_error\",\"param\":null,"                                                     \
    "\"code\":\"out_of_memory\"}}\n\ndata: [DONE]\n\n"
/* openai.c: the frame of both its APIs. */
void imp_openai_open(gen_call *g, size_t i);
void imp_openai_piece(gen_call *g, size_t i, const char *text, size_t n);
void imp_openai_thought(gen_call *g, size_t i, const char *text, size_t n);
void imp_openai_call(gen_call *g, size_t i, size_t k);
void imp_openai_args(gen_call *g, size_t i, size_t k, const char *text, size_t n);
void imp_openai_call_end(gen_call *g, size_t i, size_t k);
void imp_openai_close(gen_call *g, size_t i);
void imp_openai_end(gen_call *g, imp_buf *b);
void imp_openai_answer(gen_call *g, imp_buf *b);

/* tools_answer.c: readers for all choices, where they are needed; text for one; its end, before `close`. */
imp_status imp_gen_read(gen_call *g, bool in_thought, imp_error *err);
void imp_gen_push(gen_call *g, gen_choice *c, const char *p, size_t n);
void imp_gen_end(gen_call *g, gen_choice *c);
bool imp_gen_calls(const gen_choice *c); /* it ended with calls */
void imp_gen_free_choice(gen_choice *c);

/* The text of one token for logprobs; appended to out. */
void imp_gen_token_text(const gen_call *g, int32_t id, imp_buf *out);

#endif
