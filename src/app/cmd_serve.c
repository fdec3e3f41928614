/* app/cmd_serve.c - `impetus serve`: models over HTTP until a signal comes.
 *
 * Idea:    load what -m names first, then listen: a client that can connect can be served. The first SIGINT or SIGTERM
 *          stops listening and lets running answers finish (--drain seconds); a second one ends the program at once.
 *          SIGHUP reads API keys and certificate again and opens the access log anew.
 * Threads: the main thread sleeps; http and engine bring their own. */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "app/app.h"
#include "http/http.h"
#include "plan/host.h"

typedef struct server {
    app *a;
    imp_host host;
    imp_http_config conf;
    imp_http *http;
    FILE *say; /* where the report for people goes: stdout, or stderr beside --json */
} server;

/* For /api/hardware. */
static char *hardware_text(void *user)
{
    server *s = user;
    json_t *doc = app_host_json(&s->host, NULL);
    char *units = imp_units_json(s->a->engine);
    if (doc && units) json_object_set_new(doc, "units", json_loads(units, 0, NULL));
    imp_free(units);
    char *text = doc ? json_dumps(doc, JSON_COMPACT) : NULL;
    char *copy = text ? imp_sys_strdup(text) : NULL;
    free(text);
    json_decref(doc);
    return copy;
}

static void say_devices(server *s)
{
    char line[400];
    app_host_line(&s->host, line, sizeof line);
    fprintf(s->say, "device  cpu: %s\n", line);
    for (uint32_t i = 0; i < s->host.n_nvidia; i++)
        fprintf(s->say, "        cuda%u: %s\n", i, s->host.nvidia[i].name);
    for (uint32_t i = 0; i < s->host.n_other; i++)
        fprintf(s->say, "        %s (%s): not used, %s\n", s->host.other[i].name, s->host.other[i].where,
                s->host.other[i].reason);
}

static void say_model(void *user, const imp_model *m)
{
    server *s = user;
    const imp_model_info *i = imp_model_get_info(m);
    imp_memory mem;
    char param[32], size[32], total[32], weights[32], kv[32], scratch[32];
    imp_model_get_memory(m, &mem);
    fprintf(s->say, "model   %s: %s, %s, %s parameters, %s, context %u, on %s\n", i->id, i->arch, i->type,
            app_count_text(i->n_param, param), app_size_text(i->file_bytes, size), i->n_ctx, i->device);
    fprintf(s->say, "        memory %s = weights %s + KV cache %s + scratch and other %s; %s\n",
            app_size_text(mem.total, total), app_size_text(mem.weights, weights), app_size_text(mem.kv, kv),
            app_size_text(mem.scratch + mem.other, scratch),
            i->can_generate
                ? (i->template_id ? "chat, completions" : "completions; no chat: its template is not known")
                : "embeddings");
}

/* Models that wait to be named. */
static void say_more(server *s)
{
    imp_known_model *list;
    size_t n, n_more = 0;
    if (imp_engine_known(s->a->engine, &list, &n) != IMP_OK) return;
    for (size_t i = 0; i < n; i++) {
        if (list[i].state == IMP_MODEL_LOADED) continue;
        fprintf(s->say, "%s%s", n_more++ == 0 ? "on demand: " : ", ", list[i].id);
    }
    if (n_more > 0) fputc('\n', s->say);
    imp_free(list);
}

static void address(const server *s, char *out, size_t cap)
{
    const char *host = s->conf.host;
    bool v6 = strchr(host, ':') != NULL;
    if (!strcmp(host, "0.0.0.0") || !strcmp(host, "::")) host = "127.0.0.1", v6 = false;
    snprintf(out, cap, "%s://%s%s%s:%u", s->conf.tls_cert ? "https" : "http", v6 ? "[" : "", host,
             v6 ? "]" : "", imp_http_port(s->http));
}

static void say_listening(server *s)
{
    imp_model *m[1];
    char url[300];
    const char *key = s->conf.key_file ? " -H \"Authorization: Bearer $KEY\"" : "";
    address(s, url, sizeof url);
    fprintf(s->say, "Listening on %s\npage    %s/\n", url, url);
    if (imp_engine_models(s->a->engine, m, 1) == 0) {
        fflush(s->say);
        return;
    }
    const imp_model_info *i = imp_model_get_info(m[0]);
    fputs("try     ", s->say);
    if (!i->can_generate)
        fprintf(s->say,
                "curl %s/v1/embeddings%s -H 'Content-Type: application/json' -d "
                "'{\"model\":\"%s\",\"input\":\"Hello\"}'\n",
                url, key, i->id);
    else if (i->template_id)
        fprintf(s->say,
                "curl %s/v1/chat/completions%s -H 'Content-Type: application/json' -d "
                "'{\"model\":\"%s\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}'\n",
                url, key, i->id);
    else
        fprintf(s->say,
                "curl %s/v1/completions%s -H 'Content-Type: application/json' -d "
                "'{\"model\":\"%s\",\"prompt\":\"Once upon a time\",\"max_tokens\":60}'\n",
                url, key, i->id);
    imp_model_release(m[0]);
}

static app_result say_json(server *s)
{
    enum { MAX = 64 };
    imp_model *m[MAX];
    char url[300];
    json_t *list = json_array();
    size_t n = imp_engine_models(s->a->engine, m, MAX);
    for (size_t k = 0; k < IMP_MIN(n, (size_t)MAX); k++) {
        const imp_model_info *i = imp_model_get_info(m[k]);
        imp_memory mem;
        imp_model_get_memory(m[k], &mem);
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:i, s:I}", "id", i->id, "arch", i->arch,
                                              "type", i->type, "device", i->device, "ctx", (int)i->n_ctx,
                                              "memory", (json_int_t)mem.total));
        imp_model_release(m[k]);
    }
    address(s, url, sizeof url);
    app_result r = app_print_json(
        s->a, json_pack("{s:s, s:i, s:o}", "listening", url, "pid", (int)getpid(), "models", list));
    if (r == APP_OK && app_out_flush(&s->a->err) != IMP_OK)
        r = APP_FAILED; /* nobody would know the address */
    return r;
}

static imp_status configure(server *s)
{
    const app_options *o = &s->a->opt;
    s->conf = (imp_http_config){.host = opt_str(o, OPT_HOST),
                                .port = (uint16_t)o->v[OPT_PORT].u,
                                .key_file = opt_str(o, OPT_KEY_FILE),
                                .tls_cert = opt_str(o, OPT_TLS_CERT),
                                .tls_key = opt_str(o, OPT_TLS_KEY),
                                .access_log = opt_str(o, OPT_ACCESS_LOG),
                                .origins = o->v[OPT_ORIGINS].strs,
                                .n_origin = o->v[OPT_ORIGINS].n,
                                .hosts = o->v[OPT_ALLOW_HOSTS].strs,
                                .n_host = o->v[OPT_ALLOW_HOSTS].n,
                                .max_body_bytes = o->v[OPT_MAX_BODY].u,
                                .max_connections = (uint32_t)o->v[OPT_MAX_CONN].u,
                                .lora_dir = opt_str(o, OPT_LORA_DIR),
                                .hardware = hardware_text,
                                .user = s};
    return imp_http_check(&s->conf, &s->a->err);
}

static void on_second_signal(int sig)
{
    (void)sig;
    _exit(APP_FAILED);
}

static void wait_and_stop(server *s)
{
    while (!app_signals_wait()) imp_http_reload(s->http); /* SIGHUP */
    struct sigaction sa = {.sa_handler = on_second_signal};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    if (app_signals_count() > 1) _exit(APP_FAILED);
    fputs("stopping: running answers may finish; once more stops at once\n", stderr);
    imp_http_stop(s->http, (uint32_t)s->a->opt.v[OPT_DRAIN].u * 1000u);
}

app_result cmd_serve(app *a)
{
    bool json = opt_on(&a->opt, OPT_JSON);
    server s = {.a = a, .say = json ? stderr : stdout};
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigemptyset(&ignore.sa_mask);
    sigaction(SIGPIPE, &ignore, NULL); /* a client that goes away must not end the server */
    if (a->opt.v[OPT_MODELS].n == 0 && !opt_on(&a->opt, OPT_ON_DEMAND))
        return app_usage(a, "no model; give at least one with -m PATH");
    if (configure(&s) != IMP_OK || app_models_check(a) != IMP_OK || imp_host_read(&s.host, &a->err) != IMP_OK)
        return APP_FAILED;
    say_devices(&s);
    fflush(s.say);
    if (app_engine(a) != IMP_OK || app_models_add(a, say_model, &s) != IMP_OK) return APP_FAILED;
    say_more(&s);
    imp_sys_raise_max_files();
    app_signals_catch(true);
    app_signals_catch_hangup();
    if (imp_http_start(a->engine, &s.conf, &s.http, &a->err) != IMP_OK) return APP_FAILED;
    say_listening(&s);
    /* a report that cannot be written: nobody would know the address */
    if (json ? say_json(&s) != APP_OK : app_out_flush(&a->err) != IMP_OK) {
        imp_http_stop(s.http, 0);
        return APP_FAILED;
    }
    wait_and_stop(&s);
    return APP_OK;
}
