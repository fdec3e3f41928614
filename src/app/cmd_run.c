/* app/cmd_run.c - `impetus run`: one prompt in, text out as it comes; on a terminal without a prompt, a chat (chat.c). */
#include <unistd.h>

#include "app/run.h"

static bool write_text(void *user, const char *p, size_t n)
{
    app_answer *ans = user;
    if (ans->keep) imp_buf_add(&ans->text, p, n);
    if (ans->silent) return true;
    return fwrite(p, 1, n, stdout) == n && fflush(stdout) == 0;
}

static void fill_sampling(const app_options *o, imp_sampling *s)
{
    imp_sampling_default(s);
    if (opt_set(o, OPT_TEMP)) s->temperature = (float)o->v[OPT_TEMP].f;
    if (opt_set(o, OPT_TOP_K)) s->top_k = (int32_t)o->v[OPT_TOP_K].u;
    if (opt_set(o, OPT_TOP_P)) s->top_p = (float)o->v[OPT_TOP_P].f;
    if (opt_set(o, OPT_MIN_P)) s->min_p = (float)o->v[OPT_MIN_P].f;
    if (opt_set(o, OPT_REPEAT_PENALTY)) s->repeat_penalty = (float)o->v[OPT_REPEAT_PENALTY].f;
    if (opt_set(o, OPT_REPEAT_LAST)) s->repeat_last_n = (int32_t)o->v[OPT_REPEAT_LAST].u;
    s->seed = o->v[OPT_SEED].u;
}

imp_status app_generate(app *a, imp_model *m, const char *prompt, size_t n, unsigned flags, app_answer *out)
{
    const app_options *o = &a->opt;
    int32_t *ids;
    size_t n_ids;
    app_outcome end;
    IMP_TRY(imp_tokenize(m, prompt, n, flags, &ids, &n_ids, &a->err));
    imp_request q = {.kind = IMP_REQUEST_GENERATE,
                     .ids = ids,
                     .n_ids = &n_ids,
                     .n_input = 1,
                     .max_tok = opt_u32(o, OPT_MAX_TOK),
                     .stop = o->v[OPT_STOP].strs,
                     .n_stop = o->v[OPT_STOP].n,
                     .ignore_eos = opt_on(o, OPT_IGNORE_EOS),
                     .fresh_text = !opt_on(o, OPT_RAW)};
    fill_sampling(o, &q.sampling);
    app_sink sink = {.text = write_text, .user = out};
    app_signals_catch(true);
    imp_status s = app_request_run(a->engine, m, &q, &sink, &end, &a->err);
    out->interrupted = end.interrupted;
    out->usage = end.usage;
    out->finish = end.finish;
    out->n_prompt = n_ids;
    imp_free(ids);
    if (s == IMP_OK && out->text.failed) s = imp_fail(&a->err, IMP_NOMEM, "no memory for the answer");
    return s == IMP_OK ? app_out_flush(&a->err) : s;
}

void app_print_timings(const app_answer *ans)
{
    const imp_usage *u = &ans->usage;
    fprintf(stderr, "prompt %u tokens", u->n_prompt);
    if (u->n_cached) fprintf(stderr, " (%u cached)", u->n_cached);
    if (u->prefill_ms > 0)
        fprintf(stderr, ", %.1f ms, %.1f tok/s", u->prefill_ms,
                (u->n_prompt - u->n_cached) / u->prefill_ms * 1e3);
    fprintf(stderr, "; answer %u tokens", u->n_generated);
    if (u->decode_ms > 0 && u->n_generated > 1)
        fprintf(stderr, ", %.1f ms, %.1f tok/s", u->decode_ms, (u->n_generated - 1) / u->decode_ms * 1e3);
    fprintf(stderr, "; waited %.1f ms\n", u->queue_ms);
}

static const char *finish_name(imp_finish f)
{
    static const char *const name[] = {"stop", "length", "cancelled", "error"};
    return name[f];
}

static app_result print_answer_json(app *a, const imp_model *m, const app_answer *ans)
{
    const imp_usage *u = &ans->usage;
    const imp_model_info *i = imp_model_get_info(m);
    return app_print_json(
        a, json_pack("{s:o, s:o, s:s, s:{s:i, s:i, s:i}, s:{s:o, s:o, s:o}}", "model",
                     app_json_text(i->id, strlen(i->id)), "text",
                     app_json_text(ans->text.data ? ans->text.data : "", ans->text.n), "finish",
                     finish_name(ans->finish), "usage", "prompt_tokens", (int)u->n_prompt, "cached_tokens",
                     (int)u->n_cached, "completion_tokens", (int)u->n_generated, "timings", "queue_ms",
                     app_json_round(u->queue_ms, 6), "prefill_ms", app_json_round(u->prefill_ms, 6),
                     "decode_ms", app_json_round(u->decode_ms, 6)));
}

/* The prompt through the model's template as one user message. */
static imp_status render(app *a, imp_model *m, const char *prompt, char **out)
{
    const char *system = opt_str(&a->opt, OPT_SYSTEM);
    imp_message msg[2];
    size_t n = 0;
    if (system) msg[n++] = (imp_message){.role = "system", .content = system};
    msg[n++] = (imp_message){.role = "user", .content = prompt};
    imp_status s = imp_chat_render(m, msg, n, out, &a->err);
    if (s != IMP_UNSUPPORTED) return s;
    return imp_fail(&a->err, s, "the chat template of '%.100s' is not known; continue plain text with --raw",
                    imp_model_get_info(m)->id);
}

static app_result run_once(app *a, imp_model *m, const char *prompt, size_t n)
{
    bool raw = opt_on(&a->opt, OPT_RAW), json = opt_on(&a->opt, OPT_JSON);
    app_answer ans = {.keep = json, .silent = json};
    char *text = NULL;
    imp_status s;
    if (raw) {
        s = app_generate(a, m, prompt, n, IMP_TOK_ADD_SPECIAL | IMP_TOK_PARSE_SPECIAL, &ans);
    } else {
        s = render(a, m, prompt, &text);
        if (s == IMP_OK) s = app_generate(a, m, text, strlen(text), IMP_TOK_PARSE_SPECIAL, &ans);
    }
    app_result r = s == IMP_OK ? APP_OK : APP_FAILED;
    if (r == APP_OK && json)
        r = print_answer_json(a, m, &ans);
    else if (r == APP_OK)
        putchar('\n');
    if (r == APP_OK && app_out_flush(&a->err) != IMP_OK) r = APP_FAILED;
    if (r == APP_OK && opt_on(&a->opt, OPT_VERBOSE)) app_print_timings(&ans);
    if (r == APP_OK && ans.interrupted) r = APP_INTERRUPTED;
    imp_free(text);
    imp_buf_deinit(&ans.text);
    return r;
}

app_result cmd_run(app *a)
{
    imp_model *m;
    imp_buf prompt = {0};
    bool chat = a->n_arg < 2 && isatty(0);
    if (chat && opt_on(&a->opt, OPT_JSON))
        return app_usage(a, "--json needs a PROMPT, or text on standard input");
    if (chat && opt_on(&a->opt, OPT_RAW))
        return app_usage(a, "--raw needs a PROMPT, or text on standard input");
    if (opt_on(&a->opt, OPT_RAW) && opt_set(&a->opt, OPT_SYSTEM))
        return app_usage(a, "--system needs the chat template; leave out --raw");
    if (app_load(a, a->arg[0], NULL, &m) != IMP_OK) return APP_FAILED;
    if (!imp_model_get_info(m)->can_generate)
        return app_failed(a, "'%.200s' makes embeddings and cannot generate text; use 'impetus embed'",
                          a->arg[0]);
    if (chat) return app_chat(a, m);
    if (a->n_arg > 1 && strcmp(a->arg[1], "-"))
        imp_buf_str(&prompt, a->arg[1]);
    else if (app_read_stdin(&prompt, &a->err) != IMP_OK)
        return imp_buf_deinit(&prompt), APP_FAILED;
    app_result r = prompt.failed ? app_failed(a, "no memory for the prompt")
                                 : run_once(a, m, prompt.data ? prompt.data : "", prompt.n);
    imp_buf_deinit(&prompt);
    return r;
}
