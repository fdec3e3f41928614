/* app/chat.c - the conversation of `impetus run MODEL` on a terminal.
 *
 * Idea:    all messages are kept and rendered anew each turn; libedit reads the lines and keeps their history in
 *          memory. Ctrl-C while an answer runs ends that answer; at the prompt it drops the line; Ctrl-D leaves.
 * Memory:  messages are the heap's, freed by /clear and at the end. */
#include <errno.h>
#include <histedit.h>
#include <unistd.h>

#include "app/run.h"

typedef struct chat {
    app *a;
    imp_model *m;
    imp_message *msg; /* owned, with its strings */
    size_t n, cap;
} chat;

static const char help_text[] = "  /help   this text\n"
                                "  /clear  forget the conversation\n"
                                "  /bye    leave (also Ctrl-D)\n"
                                "  Ctrl-C  stop the answer, or drop the line\n"
                                "  A line that ends with \\ goes on in the next.\n";

static imp_status add_message(chat *c, const char *role, const char *text, size_t n)
{
    if (c->n == c->cap) {
        imp_message *grown = imp_sys_realloc(c->msg, (c->cap + 16) * sizeof *grown);
        if (!grown) return imp_fail(&c->a->err, IMP_NOMEM, "no memory for the conversation");
        c->msg = grown;
        c->cap += 16;
    }
    char *copy = imp_sys_malloc(n + 1);
    if (!copy) return imp_fail(&c->a->err, IMP_NOMEM, "no memory for the conversation");
    memcpy(copy, text, n);
    copy[n] = 0;
    c->msg[c->n++] = (imp_message){.role = role, .content = copy};
    return IMP_OK;
}

static void drop_messages(chat *c, size_t keep)
{
    while (c->n > keep) imp_sys_free((char *)(uintptr_t)c->msg[--c->n].content);
}

static imp_status start_conversation(chat *c)
{
    const char *system = opt_str(&c->a->opt, OPT_SYSTEM);
    drop_messages(c, 0);
    return system ? add_message(c, "system", system, strlen(system)) : IMP_OK;
}

/* One turn. A failed one leaves the conversation as it was and says why; false: leave (output lost, SIGTERM). */
static bool turn(chat *c, const char *text, size_t n)
{
    app *a = c->a;
    app_answer ans = {.keep = true};
    char *prompt = NULL;
    size_t before = c->n;
    imp_status s = add_message(c, "user", text, n);
    if (s == IMP_OK) s = imp_chat_render(c->m, c->msg, c->n, &prompt, &a->err);
    if (s == IMP_OK) s = app_generate(a, c->m, prompt, strlen(prompt), IMP_TOK_PARSE_SPECIAL, &ans);
    app_signals_catch(false);
    if (s == IMP_OK) s = add_message(c, "assistant", ans.text.data ? ans.text.data : "", ans.text.n);
    if (s == IMP_OK) {
        puts(ans.interrupted ? " [stopped]\n" : "\n");
        if (opt_on(&a->opt, OPT_VERBOSE)) app_print_timings(&ans);
    } else {
        drop_messages(c, before);
        fprintf(stderr, "%s%s\n", a->err.text, s == IMP_TOO_LARGE ? " (/clear starts anew)" : "");
    }
    imp_free(prompt);
    imp_buf_deinit(&ans.text);
    return s != IMP_IO && !(ans.interrupted && app_signals_terminate());
}

static bool more_lines; /* libedit's prompt callback has no context of ours */

static const char *prompt_text(EditLine *el)
{
    (void)el;
    return more_lines ? "... " : ">>> ";
}

/* The next input, lines that end with a backslash joined. false: the end. Ctrl-C gives an empty one. */
static bool read_input(EditLine *el, imp_buf *in)
{
    in->n = 0;
    more_lines = false;
    for (;;) {
        int n = 0;
        errno = 0;
        app_signals_catch(true);
        const char *line = el_gets(el, &n);
        bool interrupted = app_signals_count() > 0;
        app_signals_catch(false);
        if (interrupted) {
            if (app_signals_terminate()) return false;
            in->n = 0;
            el_reset(el);
            putchar('\n');
            return true;
        }
        if (!line || n <= 0) {
            putchar('\n');
            return false;
        }
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) n--;
        more_lines = n > 0 && line[n - 1] == '\\';
        imp_buf_add(in, line, (size_t)(more_lines ? n - 1 : n));
        if (!more_lines) return true;
        imp_buf_str(in, "\n");
    }
}

/* A line of the user's. false: leave. */
static bool handle(chat *c, const imp_buf *in)
{
    const char *s = in->data ? in->data : "";
    if (in->n == 0 || strspn(s, " \t\n") == in->n) return true;
    if (s[0] != '/') return turn(c, s, in->n);
    if (!strcmp(s, "/bye") || !strcmp(s, "/exit") || !strcmp(s, "/quit")) return false;
    if (!strcmp(s, "/clear")) {
        if (start_conversation(c) != IMP_OK) return false;
        puts("The conversation is forgotten.");
    } else if (!strcmp(s, "/help") || !strcmp(s, "/?")) {
        fputs(help_text, stdout);
    } else {
        printf("%s is not known; /help lists what is.\n", s);
    }
    return true;
}

app_result app_chat(app *a, imp_model *m)
{
    chat c = {.a = a, .m = m};
    imp_buf in = {0};
    HistEvent ev;
    if (!imp_model_get_info(m)->template_id)
        return app_failed(
            a, "the chat template of '%.100s' is not known; continue plain text with --raw and a PROMPT",
            imp_model_get_info(m)->id);
    EditLine *el = el_init("impetus", stdin, stdout, stderr);
    History *hist = history_init();
    app_result r = APP_OK;
    if (!el || !hist || start_conversation(&c) != IMP_OK) {
        r = app_failed(a, "the terminal could not be set up for a chat");
    } else {
        el_set(el, EL_PROMPT, prompt_text);
        el_set(el, EL_EDITOR, "emacs");
        el_set(el, EL_SIGNAL, 1);
        history(hist, &ev, H_SETSIZE, 500);
        history(hist, &ev, H_SETUNIQUE, 1);
        el_set(el, EL_HIST, history, hist);
        printf("%s - /help for help, Ctrl-D to leave\n", imp_model_get_info(m)->id);
        while (read_input(el, &in)) {
            if (in.failed) break;
            if (in.n) history(hist, &ev, H_ENTER, in.data);
            if (!handle(&c, &in)) break;
        }
    }
    if (hist) history_end(hist);
    if (el) el_end(el);
    drop_messages(&c, 0);
    imp_sys_free(c.msg);
    imp_buf_deinit(&in);
    return r;
}
