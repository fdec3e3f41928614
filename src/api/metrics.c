/* api/metrics.c - /metrics in Prometheus text, from the engine's counters and ours.
 *
 * Idea:    ours are called impetus_*. What vLLM has, too, is there once more under vLLM's names, because routers (the
 *          Gateway API inference extension's endpoint picker, and others) balance replicas by those. They are totals over
 *          all models of the server; the label model_name lists the models.
 * Threads: counters are atomics; a reading is not one instant, each number is right on its own.
 * Source:  Prometheus exposition format 0.0.4. */
#include "api/internal.h"

static const double g_bound[IMP_N_BUCKET] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                             0.25,  0.5,    1,     2.5,  5,     10,   30};

void imp_hist_add(imp_hist *h, double seconds)
{
    size_t i = 0;
    while (i < IMP_N_BUCKET && seconds > g_bound[i]) i++;
    atomic_fetch_add(&h->bucket[i], 1);
    atomic_fetch_add(&h->sum_us, (uint64_t)(seconds * 1e6));
}

static void write_hist(imp_buf *b, const char *name, const char *label, imp_hist *h)
{
    uint64_t n = 0;
    for (size_t i = 0; i <= IMP_N_BUCKET; i++) {
        n += atomic_load(&h->bucket[i]);
        imp_buf_fmt(b, "%s_bucket{%s%s", name, label, label[0] ? "," : "");
        if (i < IMP_N_BUCKET)
            imp_buf_fmt(b, "le=\"%g\"} %llu\n", g_bound[i], (unsigned long long)n);
        else
            imp_buf_fmt(b, "le=\"+Inf\"} %llu\n", (unsigned long long)n);
    }
    const char *open = label[0] ? "{" : "", *close = label[0] ? "}" : "";
    imp_buf_fmt(b, "%s_sum%s%s%s %.6f\n", name, open, label, close, (double)atomic_load(&h->sum_us) * 1e-6);
    imp_buf_fmt(b, "%s_count%s%s%s %llu\n", name, open, label, close, (unsigned long long)n);
}

static void head(imp_buf *b, const char *name, const char *type, const char *help)
{
    imp_buf_fmt(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void one(imp_buf *b, const char *name, const char *type, double value, const char *help)
{
    head(b, name, type, help);
    imp_buf_fmt(b, "%s %.15g\n", name, value);
}

static void write_engine(imp_buf *b, const imp_stats *s)
{
    one(b, "impetus_requests_total", "counter", (double)s->n_request, "Requests the engine accepted.");
    one(b, "impetus_requests_done_total", "counter", (double)s->n_done, "Requests that ended normally.");
    one(b, "impetus_requests_cancelled_total", "counter", (double)s->n_cancelled,
        "Requests that were cancelled.");
    one(b, "impetus_requests_failed_total", "counter", (double)s->n_failed,
        "Requests that ended with an error.");
    one(b, "impetus_requests_refused_total", "counter", (double)s->n_refused,
        "Requests refused at submission.");
    one(b, "impetus_prompt_tokens_total", "counter", (double)s->n_prompt_tok, "Prompt tokens computed.");
    one(b, "impetus_generated_tokens_total", "counter", (double)s->n_generated_tok, "Tokens generated.");
    one(b, "impetus_embedded_tokens_total", "counter", (double)s->n_embedded_tok, "Tokens embedded.");
    one(b, "impetus_steps_total", "counter", (double)s->n_step, "Scheduler steps.");
    one(b, "impetus_step_seconds_total", "counter", s->step_s, "Time spent in scheduler steps.");
    one(b, "impetus_prefill_seconds_total", "counter", s->prefill_s, "Time spent on prompts.");
    one(b, "impetus_decode_seconds_total", "counter", s->decode_s, "Time spent on generation.");
    one(b, "impetus_requests_running", "gauge", s->n_running, "Requests that run now.");
    one(b, "impetus_requests_waiting", "gauge", s->n_waiting, "Requests that wait in the queue.");
    one(b, "impetus_kv_blocks_used", "gauge", s->kv_block_used, "KV cache blocks in use.");
    one(b, "impetus_kv_blocks_total", "gauge", s->kv_block_total, "KV cache blocks there are.");
    one(b, "impetus_kv_blocks_cached", "gauge", s->kv_block_cached,
        "KV cache blocks kept because a later prompt may begin the same way.");
    one(b, "impetus_prefix_cache_queries_total", "counter", (double)s->n_cache_query_tok,
        "Prompt tokens looked up in the prefix cache.");
    one(b, "impetus_prefix_cache_hits_total", "counter", (double)s->n_cache_hit_tok,
        "Prompt tokens found there and not computed again.");
    one(b, "impetus_restored_tokens_total", "counter", (double)s->n_restored_tok,
        "Prompt tokens whose cache was read from disk.");
    one(b, "impetus_kv_disk_bytes", "gauge", (double)s->kv_disk_bytes, "KV cache blocks kept on disk.");
    one(b, "impetus_kv_disk_blocks", "gauge", (double)s->kv_disk_files, "How many there are.");
    one(b, "impetus_kv_disk_saved_total", "counter", (double)s->n_kv_saved, "Blocks written there.");
    one(b, "impetus_kv_disk_loaded_total", "counter", (double)s->n_kv_loaded, "Blocks read from there.");
    one(b, "impetus_kv_disk_refused_total", "counter", (double)s->n_kv_refused,
        "Blocks there that were damaged or not what was wanted, and counted as absent.");
    one(b, "impetus_kv_disk_evicted_total", "counter", (double)s->n_kv_evicted,
        "Blocks removed there to keep to the limit.");
    one(b, "impetus_preemptions_total", "counter", (double)s->n_preempted,
        "Times a running request had to make room.");
    one(b, "impetus_drafted_tokens_total", "counter", (double)s->n_drafted_tok,
        "Guessed tokens that were computed.");
    one(b, "impetus_accepted_tokens_total", "counter", (double)s->n_accepted_tok,
        "Guessed tokens that were right.");
}

static void write_http(imp_buf *b, const imp_api_http_stats *s)
{
    one(b, "impetus_http_connections_total", "counter", (double)s->n_connection, "Connections accepted.");
    one(b, "impetus_http_connections_open", "gauge", (double)s->n_connection_open, "Connections open now.");
    one(b, "impetus_http_received_bytes_total", "counter", (double)s->n_bytes_in, "Bytes of request bodies.");
    one(b, "impetus_http_sent_bytes_total", "counter", (double)s->n_bytes_out, "Bytes of answer bodies.");
    one(b, "impetus_http_refused_host_total", "counter", (double)s->n_refused_host,
        "Requests with a wrong Host.");
    one(b, "impetus_http_refused_origin_total", "counter", (double)s->n_refused_origin,
        "Requests with a foreign Origin.");
    one(b, "impetus_http_refused_key_total", "counter", (double)s->n_refused_key,
        "Requests without the API key.");
    one(b, "impetus_http_client_gone_total", "counter", (double)s->n_gone,
        "Requests cancelled: the client went away.");
    one(b, "impetus_http_client_slow_total", "counter", (double)s->n_slow,
        "Requests cancelled: the client did not read.");
}

static void write_routes(imp_api *a, imp_buf *b)
{
    head(b, "impetus_http_requests_total", "counter", "Answers by path and class of status.");
    for (size_t r = 0; r <= IMP_N_ROUTE; r++) {
        const char *name = r < IMP_N_ROUTE ? imp_api_route_name(r) : "other";
        for (int c = 1; name && c < 6; c++) {
            uint64_t n = atomic_load(&a->n_answer[r][c]);
            if (n)
                imp_buf_fmt(b, "impetus_http_requests_total{path=\"%s\",code=\"%dxx\"} %llu\n", name, c,
                            (unsigned long long)n);
        }
    }
    head(b, "impetus_http_request_seconds", "histogram",
         "Time from the request's header to the end of its answer.");
    for (size_t r = 0; r < IMP_N_ROUTE; r++) {
        const char *name = imp_api_route_name(r);
        char label[96];
        if (!name || !atomic_load(&a->duration[r].sum_us)) continue;
        snprintf(label, sizeof label, "path=\"%s\"", name);
        write_hist(b, "impetus_http_request_seconds", label, &a->duration[r]);
    }
}

/* ---- vLLM's names ------------------------------------------------------------------------------------ */

/* Prometheus: backslash, quote and newline of a label's value are escaped. */
void imp_api_label(imp_buf *b, const char *s)
{
    for (; *s; s++) {
        if (*s == '\n')
            imp_buf_str(b, "\\n");
        else if (*s == '"' || *s == '\\')
            imp_buf_fmt(b, "\\%c", *s);
        else
            imp_buf_add(b, s, 1);
    }
}

static void model_label(imp_api *a, imp_buf *b)
{
    imp_model **list;
    size_t n = imp_api_list(a, &list);
    imp_buf_str(b, "model_name=\"");
    for (size_t i = 0; list && i < n; i++) {
        if (i) imp_buf_str(b, ",");
        imp_api_label(b, imp_model_get_info(list[i])->id);
    }
    imp_buf_str(b, "\"");
    if (list) imp_api_list_free(list, n);
}

static void vllm_one(imp_buf *b, const char *label, const char *name, const char *type, double value,
                     const char *help)
{
    head(b, name, type, help);
    imp_buf_fmt(b, "%s{%s} %.15g\n", name, label, value);
}

static void vllm_hist(imp_buf *b, const char *label, const char *name, imp_hist *h, const char *help)
{
    head(b, name, "histogram", help);
    write_hist(b, name, label, h);
}

static void vllm_finished(imp_api *a, imp_buf *b, const char *label)
{
    static const struct {
        imp_finish finish;
        const char *name;
    } reason[] = {{IMP_FINISH_STOP, "stop"}, {IMP_FINISH_LENGTH, "length"}, {IMP_FINISH_CANCELLED, "abort"}};
    head(b, "vllm:request_success_total", "counter", "Requests that ended, by reason.");
    for (size_t i = 0; i < IMP_COUNT(reason); i++)
        imp_buf_fmt(b, "vllm:request_success_total{%s,finished_reason=\"%s\"} %llu\n", label, reason[i].name,
                    (unsigned long long)atomic_load(&a->n_finish[reason[i].finish]));
}

static void write_vllm(imp_api *a, imp_buf *b, const imp_stats *s)
{
    imp_buf l = {0};
    model_label(a, &l);
    b->failed |= l.failed;
    const char *label = l.data ? l.data : "";
    double kv = s->kv_block_total ? (double)s->kv_block_used / s->kv_block_total : 0;
    vllm_one(b, label, "vllm:num_requests_running", "gauge", s->n_running, "Requests that run now.");
    vllm_one(b, label, "vllm:num_requests_waiting", "gauge", s->n_waiting,
             "Requests that wait in the queue.");
    vllm_one(b, label, "vllm:kv_cache_usage_perc", "gauge", kv, "KV cache blocks in use; 1 is all of them.");
    vllm_one(b, label, "vllm:gpu_cache_usage_perc", "gauge", kv, "The same under its older name.");
    head(b, "vllm:cache_config_info", "gauge", "Block size in tokens, and blocks.");
    imp_buf_fmt(b, "vllm:cache_config_info{%s,block_size=\"64\",num_gpu_blocks=\"%u\"} 1\n", label,
                s->kv_block_total);
    vllm_one(b, label, "vllm:prefix_cache_queries_total", "counter", (double)s->n_cache_query_tok,
             "Prompt tokens looked up in the prefix cache.");
    vllm_one(b, label, "vllm:prefix_cache_hits_total", "counter", (double)s->n_cache_hit_tok,
             "Prompt tokens found there.");
    vllm_one(b, label, "vllm:num_preemptions_total", "counter", (double)s->n_preempted,
             "Times a running request had to make room.");
    vllm_one(b, label, "vllm:prompt_tokens_total", "counter", (double)s->n_prompt_tok,
             "Prompt tokens computed.");
    vllm_one(b, label, "vllm:generation_tokens_total", "counter", (double)s->n_generated_tok,
             "Tokens generated.");
    vllm_finished(a, b, label);
    vllm_hist(b, label, "vllm:time_to_first_token_seconds", &a->first_token,
              "From the request to its first text.");
    vllm_hist(b, label, "vllm:inter_token_latency_seconds", &a->inter_token,
              "From one token's text to the next.");
    vllm_hist(b, label, "vllm:time_per_output_token_seconds", &a->inter_token,
              "The same under its older name.");
    vllm_hist(b, label, "vllm:request_time_per_output_token_seconds", &a->output_token,
              "Between tokens after the first, the mean of each request.");
    vllm_hist(b, label, "vllm:e2e_request_latency_seconds", &a->request,
              "From a request to the end of its answer.");
    imp_api_adapter_metrics(a, b);
    imp_buf_deinit(&l);
}

void imp_api_metrics(imp_api *a, const imp_api_sink *s)
{
    imp_buf b = {0};
    imp_stats st = {0};
    imp_engine_get_stats(a->config.engine, &st);
    head(&b, "impetus_info", "gauge", "Version of the program.");
    imp_buf_str(&b, "impetus_info{version=\"" IMPETUS_VERSION "\"} 1\n");
    one(&b, "impetus_uptime_seconds", "gauge", (double)(imp_now_ns() - a->start_ns) * 1e-9,
        "Since the server started.");
    write_engine(&b, &st);
    if (a->http_stats) {
        imp_api_http_stats h = {0};
        a->http_stats(a->http_user, &h);
        write_http(&b, &h);
    }
    write_routes(a, &b);
    head(&b, "impetus_time_to_first_token_seconds", "histogram", "From the request to its first text.");
    write_hist(&b, "impetus_time_to_first_token_seconds", "", &a->first_token);
    head(&b, "impetus_time_per_output_token_seconds", "histogram",
         "Between tokens after the first, per request.");
    write_hist(&b, "impetus_time_per_output_token_seconds", "", &a->output_token);
    write_vllm(a, &b, &st);
    if (b.failed) {
        imp_api_answer(s, 503, &b);
        return;
    }
    s->begin(s->user, 200, "text/plain; version=0.0.4; charset=utf-8", NULL, 0, false);
    s->write(s->user, b.data, b.n);
    s->end(s->user);
    imp_buf_deinit(&b);
}

void imp_api_observe(imp_api *a, const char *path, int status, double seconds)
{
    size_t r = imp_api_route_index(path);
    if (status < 100 || status > 599) return;
    atomic_fetch_add(&a->n_answer[r][status / 100], 1);
    imp_hist_add(&a->duration[r], seconds);
}
