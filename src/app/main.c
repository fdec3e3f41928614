/* app/main.c - the impetus command: finds the command and its options, runs it, ends the process.
 *
 * Idea:    options come from flags, IMPETUS_* variables and config.ini, in that order of right; a command fills
 *          app.err and returns its result; here it becomes one line on stderr and the exit code.
 * Threads: main thread. */
#include <stdlib.h>

#include "app/app.h"
#include "dev/coreml/worker.h"
#include "kern/kern.h"

extern char **environ;

static void say(const char *cmd, const char *text)
{
    fprintf(stderr, "impetus%s%s: %s\n", cmd ? " " : "", cmd ? cmd : "", text);
}

static imp_status options_read(app *a, int argc, char **argv, bool *want_help)
{
    IMP_TRY(app_opt_parse_argv(&a->opt, argc, argv, &a->arg, &a->n_arg, want_help, &a->err));
    if (*want_help) return IMP_OK;
    IMP_TRY(app_opt_parse_env(&a->opt, environ, &a->err));
    IMP_TRY(app_opt_parse_file(&a->opt, &a->err));
    return app_opt_defaults(&a->opt, &a->err);
}

static imp_status arguments_check(app *a, const app_cmd *c)
{
    if (a->n_arg < c->min_arg)
        return imp_fail(&a->err, IMP_INVALID, "%s is missing; usage: impetus %s %s",
                        a->n_arg == 0 ? "an argument" : "a further argument", c->name, c->usage);
    if (a->n_arg > c->max_arg)
        return imp_fail(&a->err, IMP_INVALID, "'%.80s' is one argument too many; usage: impetus %s %s",
                        a->arg[c->max_arg], c->name, c->usage);
    return IMP_OK;
}

/* What holds for every command: log level, CPU mask, progress, signals. */
static imp_status settings_apply(app *a)
{
    static const char *const level[] = {"error", "warn", "info", "debug"};
    for (size_t i = 0; i < IMP_COUNT(level); i++)
        if (!strcmp(opt_str(&a->opt, OPT_LOG_LEVEL), level[i])) imp_log_set_level((imp_log_level)i);
    uint64_t mask;
    if (opt_set(&a->opt, OPT_CPU_MASK)) {
        if (!imp_cpu_mask_parse(opt_str(&a->opt, OPT_CPU_MASK), &mask))
            return imp_fail(&a->err, IMP_INVALID,
                            "--cpu-mask: '%.80s' is not understood; 'impetus devices' names the bits",
                            opt_str(&a->opt, OPT_CPU_MASK));
        imp_cpu_set_mask(mask);
    }
    IMP_TRY(app_configure_coreml(a));
    IMP_TRY(app_configure_pack_cache(a));
    app_term_init(opt_on(&a->opt, OPT_QUIET));
    app_signals_init();
    return IMP_OK;
}

static int run_command(app_cmd_id id, int argc, char **argv)
{
    const app_cmd *c = app_cmd_at(id);
    app a = {.arena = imp_arena_new(1 << 14)};
    bool want_help = false;
    app_result r = APP_USAGE;
    if (!a.arena) {
        say(c->name, "out of memory");
        return APP_FAILED;
    }
    a.opt.arena = a.arena;
    a.opt.cmd = id;
    if (options_read(&a, argc, argv, &want_help) == IMP_OK) {
        if (want_help) {
            app_help_cmd(stdout, id);
            r = APP_OK;
        } else if (arguments_check(&a, c) == IMP_OK && settings_apply(&a) == IMP_OK) {
            r = c->run(&a);
        }
    }
    app_bar_end();
    imp_engine_free(a.engine);
    if (r == APP_OK && app_out_finish(&a.err) != IMP_OK) r = APP_FAILED;
    if (r == APP_INTERRUPTED) {
        fflush(NULL);
        app_signals_raise();
    }
    if (r != APP_OK) say(c->name, a.err.text[0] ? a.err.text : imp_status_text(a.err.status));
    imp_arena_free(a.arena);
    return r;
}

static int unknown_command(const char *name)
{
    char text[200];
    const char *near = app_nearest_cmd(name);
    if (near)
        snprintf(text, sizeof text, "unknown command '%.60s'; did you mean '%s'?", name, near);
    else
        snprintf(text, sizeof text, "unknown command '%.60s'; 'impetus help' lists the commands", name);
    say(NULL, text);
    return APP_USAGE;
}

/* The result of a command that only prints. */
static int printed(const char *name)
{
    imp_error err = {0};
    if (app_out_finish(&err) == IMP_OK) return APP_OK;
    say(name, err.text);
    return APP_FAILED;
}

static int help_command(const char *name)
{
    if (!name) {
        app_help_all(stdout);
    } else {
        app_cmd_id id = app_cmd_find(name);
        if (id == N_CMD) return unknown_command(name);
        app_help_cmd(stdout, id);
    }
    return printed("help");
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        app_help_all(stderr);
        return APP_USAGE;
    }
    const char *name = argv[1];
    if (argc == 2 && !strcmp(name, IMP_COREML_WORKER_ARG)) return imp_coreml_worker_main();
    if (!strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h"))
        return help_command(argc > 2 ? argv[2] : NULL);
    if (!strcmp(name, "--version") || !strcmp(name, "version")) {
        puts("impetus " IMPETUS_VERSION);
        return printed("--version");
    }
    app_cmd_id id = app_cmd_find(name);
    if (id == N_CMD) return unknown_command(name);
    return run_command(id, argc - 2, argv + 2);
}
