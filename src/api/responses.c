/* api/responses.c - OpenAI's Responses API: requests, their input items, and the answers that later ones refer to.
 *
 * Place:   fields.c and generate.c for the request; how answers are written is in responses_answer.c.
 * Idea:    a response is kept as the list of items it was made from and made, as JSON; a request that names it gets them in
 *          front of its own. GET shows what was answered.
 * Always:  the store is bounded in bytes and count, the longest unused goes first; only the client (API key) that made a
 *          response sees it.
 * Threads: the store has its lock.
 * Source:  OpenAI API reference, "Responses". */
#include "api/responses.h"

#include <stdio.h>

enum { MAX_KEPT = 1024, MAX_KEPT_BYTES = 64 << 20, MAX_ITEMS = 4096 };

typedef struct kept {
    char id[48];
    uint64_t client, used;
    char *items, *answer; /* owned; JSON */
    size_t n_bytes;
} kept;

struct imp_responses {
    imp_mutex *mu;
    uint64_t clock;
    size_t n, n_bytes;
    kept kept[MAX_KEPT];
};

/* ---- the store ----------------------------------------------------------------------------------------------- */

imp_status imp_responses_new(struct imp_responses **out)
{
    struct imp_responses *r = imp_sys_calloc(1, sizeof *r);
    *out = NULL;
    if (r == NULL || imp_mutex_new(&r->mu) != IMP_OK) {
        imp_sys_free(r);
        return IMP_NOMEM;
    }
    *out = r;
    return IMP_OK;
}

/* The last one takes the place. */
static void forget(struct imp_responses *r, kept *k)
{
    r->n_bytes -= k->n_bytes;
    imp_sys_free(k->items);
    imp_sys_free(k->answer);
    *k = r->kept[--r->n];
    r->kept[r->n] = (kept){0};
}

void imp_responses_free(struct imp_responses *r)
{
    if (r == NULL) return;
    while (r->n > 0) forget(r, &r->kept[0]);
    imp_mutex_free(r->mu);
    imp_sys_free(r);
}

static kept *find(struct imp_responses *r, const char *id, uint64_t client)
{
    for (size_t i = 0; i < r->n; i++)
        if (r->kept[i].client == client && strcmp(r->kept[i].id, id) == 0) {
            r->kept[i].used = ++r->clock;
            return &r->kept[i];
        }
    return NULL;
}

void imp_responses_keep(struct imp_responses *r, const char *id, uint64_t client, const imp_buf *items,
                        const imp_buf *answer)
{
    size_t n = items->n + answer->n;
    if (items->failed || answer->failed || n > MAX_KEPT_BYTES / 4)
        return; /* then it is simply not known later */
    kept k = {.client = client,
              .items = imp_sys_strdup(items->data),
              .answer = imp_sys_strdup(answer->data),
              .n_bytes = n};
    (void)snprintf(k.id, sizeof k.id, "%s", id);
    if (k.items == NULL || k.answer == NULL) {
        imp_sys_free(k.items);
        imp_sys_free(k.answer);
        return;
    }
    imp_mutex_lock(r->mu);
    while (r->n > 0 && (r->n == MAX_KEPT || r->n_bytes + n > MAX_KEPT_BYTES)) {
        kept *old = &r->kept[0];
        for (size_t i = 1; i < r->n; i++)
            if (r->kept[i].used < old->used) old = &r->kept[i];
        forget(r, old);
    }
    k.used = ++r->clock;
    r->kept[r->n++] = k;
    r->n_bytes += n;
    imp_mutex_unlock(r->mu);
}

void imp_api_response_one(imp_api *a, const imp_api_request *rq, const char *id, const imp_api_sink *s)
{
    struct imp_responses *r = a->responses;
    bool del = strcmp(rq->method, "DELETE") == 0, found;
    imp_buf b = {0};
    imp_mutex_lock(r->mu);
    kept *k = find(r, id, rq->who.client);
    found = k != NULL;
    if (found && del) {
        imp_buf_fmt(&b, "{\"id\":\"%s\",\"object\":\"response\",\"deleted\":true}", k->id);
        forget(r, k);
    } else if (found) {
        imp_buf_str(&b, k->answer);
    }
    imp_mutex_unlock(r->mu);
    if (found)
        imp_api_answer(s, 200, &b);
    else
        imp_api_error(s, IMP_OPENAI, 404, "response_id", "not_found", NULL, 0,
                      "that response is not kept here (any more)");
}

/* ---- fields ------------------------------------------------------------------------------------------------------ */

static imp_status bad(imp_error *err, const char *field, const char *text)
{
    return imp_fail_field(err, IMP_INVALID, field, "'%s' %s", field, text);
}

imp_status imp_api_responses_params(imp_api_params *p, imp_error *err)
{
    const char *key;
    json_t *v;
    if (p->input == NULL) return bad(err, "input", "is missing");
    if (!json_is_string(p->input) && !json_is_array(p->input))
        return bad(err, "input", "must be a string or a list of items");
    if (json_array_size(p->input) > MAX_ITEMS || (json_is_array(p->input) && json_array_size(p->input) == 0))
        return bad(err, "input", "must hold 1 to 4096 items");
    if (p->text != NULL && !json_is_object(p->text)) return bad(err, "text", "must be an object");
    json_object_foreach(p->text, key, v)
    {
        if (json_is_null(v) || strcmp(key, "format") == 0) continue;
        if (strcmp(key, "verbosity") != 0 || !json_is_string(v) ||
            strcmp(json_string_value(v), "medium") != 0)
            return imp_fail_field(err, IMP_INVALID, "text",
                                  "'text.%.40s' is not a field that this server understands", key);
    }
    if (p->reasoning != NULL && !json_is_object(p->reasoning))
        return bad(err, "reasoning", "must be an object");
    json_object_foreach(p->reasoning, key, v)
    {
        if (json_is_null(v) || strcmp(key, "summary") == 0 || strcmp(key, "generate_summary") == 0) continue;
        if (strcmp(key, "effort") != 0 || !json_is_string(v))
            return imp_fail_field(err, IMP_INVALID, "reasoning",
                                  "'reasoning.%.40s' is not a field that this server understands", key);
        p->effort = json_string_value(v);
    }
    return IMP_OK;
}

/* ---- input items ---------------------------------------------------------------------------------------------------- */

/* Text of a message or result: a string, or parts. */
static imp_status item_text(imp_api_params *p, const json_t *v, const char *name, const char **out,
                            imp_error *err)
{
    imp_buf b = {0};
    size_t i;
    const json_t *part;
    imp_status s = IMP_OK;
    if (json_is_string(v)) {
        *out = json_string_value(v);
        return IMP_OK;
    }
    if (!json_is_array(v)) return bad(err, name, "must be a string or a list of text parts");
    json_array_foreach((json_t *)v, i, part)
    {
        static const char *const known[] = {"input_text", "output_text", "text", "reasoning_text",
                                            "summary_text"};
        const char *type = json_string_value(json_object_get(part, "type")),
                   *text = json_string_value(json_object_get(part, "text"));
        bool good = false;
        for (size_t k = 0; k < IMP_COUNT(known) && type != NULL; k++)
            good = good || strcmp(type, known[k]) == 0;
        if (!good || text == NULL)
            s = bad(err, name, "holds a part that is no text: this server takes text only");
        if (s != IMP_OK) break;
        imp_buf_str(&b, text);
    }
    *out = b.failed || s != IMP_OK ? NULL : imp_arena_strndup(p->arena, b.data ? b.data : "", b.n);
    imp_buf_deinit(&b);
    if (s != IMP_OK) return s;
    return *out != NULL ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory");
}

/* The assistant's message under way: thoughts, text and calls in a row are one. */
static imp_message *assistant(imp_api_params *p, imp_tool_call *call, bool text)
{
    imp_message *m = p->n_msg > 0 ? &p->msg[p->n_msg - 1] : NULL;
    bool same = m != NULL && strcmp(m->role, "assistant") == 0 &&
                !(text && (m->n_calls > 0 || m->content[0] != '\0'));
    if (same) return m;
    m = &p->msg[p->n_msg++];
    *m = (imp_message){.role = "assistant", .content = "", .calls = call};
    return m;
}

static imp_status one_item(imp_api_params *p, const json_t *v, size_t i, imp_tool_call *call, imp_error *err)
{
    char name[64];
    (void)snprintf(name, sizeof name, "input[%zu]", i);
    if (!json_is_object(v)) return bad(err, name, "must be an object");
    const char *type = json_string_value(json_object_get(v, "type")),
               *role = json_string_value(json_object_get(v, "role"));
    if (type == NULL) type = role != NULL ? "message" : "";
    if (strcmp(type, "function_call") == 0) {
        imp_message *m = assistant(p, call, false);
        if (m->n_calls == 0) m->calls = call;
        /* calls lie in one array in the items' order, so those of one message are neighbours */
        return imp_api_call_of(p, json_object_get(v, "call_id"), json_object_get(v, "name"),
                               json_object_get(v, "arguments"), name,
                               (imp_tool_call *)&m->calls[m->n_calls++], err);
    }
    if (strcmp(type, "function_call_output") == 0) {
        imp_message *m = &p->msg[p->n_msg++];
        *m = (imp_message){.role = "tool", .call_id = json_string_value(json_object_get(v, "call_id"))};
        if (m->call_id == NULL) return bad(err, name, "needs a 'call_id'");
        return item_text(p, json_object_get(v, "output"), name, &m->content, err);
    }
    if (strcmp(type, "reasoning") == 0) {
        const json_t *content = json_object_get(v, "content");
        return json_array_size(content) > 0
                   ? item_text(p, content, name, &assistant(p, call, true)->thought, err)
                   : IMP_OK;
    }
    if (strcmp(type, "message") != 0 || role == NULL)
        return imp_fail_field(err, IMP_INVALID, name,
                              "'%s' is of type '%.40s', which this server does not take", name, type);
    if (strcmp(role, "assistant") == 0)
        return item_text(p, json_object_get(v, "content"), name, &assistant(p, call, true)->content, err);
    bool system = strcmp(role, "system") == 0 || strcmp(role, "developer") == 0;
    if (!system && strcmp(role, "user") != 0)
        return bad(err, name, "must have the role user, assistant, system or developer");
    imp_message *m = &p->msg[p->n_msg++];
    *m = (imp_message){.role = system ? "system" : "user"};
    return item_text(p, json_object_get(v, "content"), name, &m->content, err);
}

/* The items of the response before, then the request's own. */
static imp_status gather(imp_api *a, uint64_t client, imp_api_params *p, imp_error *err)
{
    if (p->previous != NULL) {
        imp_mutex_lock(a->responses->mu);
        kept *k = find(a->responses, p->previous, client);
        p->items = k != NULL ? json_loads(k->items, 0, NULL) : NULL;
        imp_mutex_unlock(a->responses->mu);
        if (p->items == NULL)
            return imp_fail_field(
                err, IMP_NOT_FOUND, "previous_response_id",
                "the response '%.60s' is not kept here (any more): send the whole conversation", p->previous);
    } else {
        p->items = json_array();
    }
    int st;
    if (json_is_string(p->input))
        st = json_array_append_new(
            p->items, json_pack("{s:s, s:s, s:O}", "type", "message", "role", "user", "content", p->input));
    else
        st = json_array_extend(p->items, p->input);
    return st == 0 ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory");
}

/* What the answer repeats of the request, as JSON members. */
static imp_status echo(imp_api_params *p, imp_error *err)
{
    static const char *const key[] = {"instructions", "max_output_tokens", "previous_response_id", "metadata",
                                      "reasoning"};
    imp_buf b = {0};
    for (size_t i = 0; i < IMP_COUNT(key); i++) {
        json_t *v = json_object_get(p->root, key[i]);
        char *s = v != NULL ? json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
        imp_buf_fmt(&b, ",\"%s\":", key[i]);
        imp_buf_str(&b, s != NULL ? s : strcmp(key[i], "metadata") == 0 ? "{}" : "null");
        imp_api_json_free(s);
    }
    static const struct {
        const char *key, *otherwise;
    } more[] = {{"temperature", "0.8"},
                {"top_p", "0.95"},
                {"tools", "[]"},
                {"tool_choice", "\"auto\""},
                {"parallel_tool_calls", "true"},
                {"store", "true"},
                {"text", "{\"format\":{\"type\":\"text\"}}"}};
    for (size_t i = 0; i < IMP_COUNT(more); i++) {
        json_t *v = json_object_get(p->root, more[i].key);
        char *s = v != NULL && !json_is_null(v) ? json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
        imp_buf_fmt(&b, ",\"%s\":", more[i].key);
        imp_buf_str(&b, s != NULL ? s : more[i].otherwise);
        imp_api_json_free(s);
    }
    imp_buf_str(&b, ",\"truncation\":\"disabled\",\"service_tier\":\"default\"");
    p->echo_text = b.failed ? NULL : imp_arena_strndup(p->arena, b.data, b.n);
    imp_buf_deinit(&b);
    return p->echo_text != NULL ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory");
}

imp_status imp_api_responses_input(imp_api *a, uint64_t client, imp_api_params *p, imp_error *err)
{
    IMP_TRY(gather(a, client, p, err));
    size_t n = json_array_size(p->items), i, k = 0;
    json_t *v;
    if (n > MAX_ITEMS) return bad(err, "input", "and what came before it hold more than 4096 items");
    p->msg = imp_arena_array(p->arena, n + 1, sizeof *p->msg);
    imp_tool_call *call = imp_arena_array(p->arena, n + 1, sizeof *call);
    char *text = json_dumps(p->items, JSON_COMPACT);
    p->items_text = text != NULL ? imp_arena_strndup(p->arena, text, strlen(text)) : NULL;
    imp_api_json_free(text);
    if (p->msg == NULL || call == NULL || p->items_text == NULL)
        return imp_fail(err, IMP_NOMEM, "out of memory");
    if (p->system != NULL) p->msg[p->n_msg++] = (imp_message){.role = "system", .content = p->system};
    json_array_foreach(p->items, i, v) IMP_TRY(one_item(p, v, i, &call[k++], err));
    return echo(p, err);
}
