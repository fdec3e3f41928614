/* tests/api/soak.c - many streams at once and many clients that never come to an end, against the whole server: HTTP, API,
 * engine and scheduler over a scripted device that computes nothing.
 *
 * The device takes a step a tick and chooses a letter by its position, so a client sees at once what was lost or came in
 * another order: the letters must follow each other in the alphabet. Server and clients are two processes; the server's
 * memory is read from outside.
 *   IMPETUS_SOAK=SECONDS: 2000 streams at a token a second for so long (at most 300), then 10000 slow clients; the bounds of
 *   time and memory are checked, too (`make soak`: 300). Else a tenth of it in seconds, where only what was lost, reordered
 *   or left is a failure. */
#include "test.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"
#include "dev/dev.h"
#include "http/http.h"

#define MODEL "models/stories260K.gguf"
enum { VOCAB = 512, LETTERS = 26, MAX_GAP_MS = 20000 };

static struct {
    bool full;
    unsigned n_stream, n_tok, n_slow, idle_s;
    uint64_t tick_ns;
    pid_t server;
    uint16_t port;
} g;

/* ---- the scripted device: takes the CPU's place, because the linker finds it first ------------------------------------ */

typedef struct null_exec {
    imp_exec exec;
    float *logits; /* [max_out][VOCAB] */
    uint32_t *set; /* [max_out] the one entry that is not 0 */
    uint64_t last_ns, next_ns;
} null_exec;

static int32_t g_letter[LETTERS]; /* token of each */
static atomic_bool g_ready;       /* letters are known */

static const char *null_refuses(const imp_device *d, const imp_graph *gr, imp_val v)
{
    (void)d, (void)gr, (void)v;
    return NULL;
}

static imp_status null_plan(imp_device *d, const imp_graph *gr, const imp_limits *l, imp_dev_memory *out,
                            imp_error *err)
{
    (void)d, (void)gr, (void)err;
    *out = (imp_dev_memory){.scratch = (uint64_t)l->max_out * VOCAB * sizeof(float)};
    return IMP_OK;
}

static imp_status null_compile(imp_device *d, const imp_graph *gr, const imp_limits *l, imp_exec **out,
                               imp_error *err)
{
    (void)gr, (void)err;
    null_exec *x = calloc(1, sizeof *x);
    x->exec.dev = d;
    x->logits = calloc((size_t)l->max_out * VOCAB, sizeof *x->logits);
    x->set = calloc(l->max_out, sizeof *x->set);
    *out = &x->exec;
    return IMP_OK;
}

static void wait_for_tick(null_exec *x)
{
    uint64_t now = imp_now_ns();
    x->next_ns += g.tick_ns;
    if (x->next_ns < now) x->next_ns = now; /* late: no tick is made up for */
    while ((now = imp_now_ns()) < x->next_ns) usleep((useconds_t)((x->next_ns - now) / 1000 + 1));
}

static imp_status null_run(imp_exec *base, const imp_batch *b, const float **out, imp_error *err)
{
    (void)err;
    null_exec *x = (null_exec *)base;
    bool decode = false;
    uint32_t o = 0, at = 0;
    for (uint32_t i = 0; i < b->n_seq; i++) {
        const imp_batch_seq *s = &b->seq[i];
        decode |= s->n_tok == 1 && s->n_past > 0;
        at += s->n_tok;
        for (; o < b->n_out && b->out_row[o] < at; o++) {
            uint32_t next = s->n_past + b->out_row[o] - s->first_tok + 1;
            x->logits[(size_t)o * VOCAB + x->set[o]] = 0;
            x->set[o] = (uint32_t)g_letter[next % LETTERS];
            x->logits[(size_t)o * VOCAB + x->set[o]] = 1;
        }
    }
    if (decode && atomic_load(&g_ready)) wait_for_tick(x);
    x->last_ns =
        1000 + 10 * b->n_tok; /* what the scheduler believes: steps are cheap, so it holds nobody back */
    *out = x->logits;
    return IMP_OK;
}

static void null_copy(imp_exec *x, uint32_t dst, uint32_t src)
{
    (void)x, (void)dst, (void)src;
}

static void null_free(imp_exec *base)
{
    null_exec *x = (null_exec *)base;
    free(x->logits);
    free(x->set);
    free(x);
}

static void null_close(imp_device *d)
{
    free(d);
}

static uint64_t null_ns(const imp_exec *x)
{
    return ((const null_exec *)x)->last_ns;
}

imp_status imp_dev_cpu_open(uint32_t n_thread, imp_device **out, imp_error *err)
{
    static const imp_device_ops ops = {.kind = "cpu",
                                       .refuses = null_refuses,
                                       .plan = null_plan,
                                       .compile = null_compile,
                                       .run = null_run,
                                       .kv_copy = null_copy,
                                       .exec_free = null_free,
                                       .close = null_close,
                                       .last_ns = null_ns};
    (void)n_thread, (void)err;
    *out = calloc(1, sizeof **out);
    (*out)->ops = &ops;
    strcpy((*out)->name, "null0");
    return IMP_OK;
}

/* ---- the server's process ------------------------------------------------------------------------------------------ */

static void die(const imp_error *err)
{
    fprintf(stderr, "# the server: %s\n", err->text);
    _exit(1);
}

static void find_letters(const imp_model *m)
{
    unsigned found = 0;
    for (int32_t id = 0; id < VOCAB; id++) {
        size_t n;
        const char *p = imp_token_piece(m, id, &n);
        if (!p || n != 1 || *p < 'a' || *p > 'z') continue;
        g_letter[*p - 'a'] = id;
        found++;
    }
    if (found != LETTERS) _exit(1);
    atomic_store(&g_ready, true);
}

static void serve(int ready, int quit)
{
    imp_error err;
    imp_engine *e;
    imp_model *m;
    imp_http *h;
    imp_engine_config ec = {
        .device = "cpu", .n_parallel = g.n_stream, .n_batch = 8192, .n_queue = 8192, .quiet = true};
    imp_http_config hc = {.idle_s = g.idle_s};
    imp_log_set_level(IMP_LOG_ERROR);
    if (imp_engine_new(&ec, &e, &err) != IMP_OK || imp_engine_load(e, MODEL, "null", &m, &err) != IMP_OK)
        die(&err);
    find_letters(m);
    if (imp_http_start(e, &hc, &h, &err) != IMP_OK) die(&err);
    uint16_t port = imp_http_port(h);
    char c;
    if (write(ready, &port, sizeof port) != sizeof port || read(quit, &c, 1) < 0) _exit(1);
    imp_stats st;
    imp_engine_get_stats(e, &st);
    imp_http_stop(h, 1000);
    imp_engine_free(e);
    _exit(st.kv_block_used != 0 || st.n_running != 0); /* nothing may be left */
}

static int g_quit = -1;

static int setup(void **state)
{
    (void)state;
    int ready[2], quit[2];
    imp_sys_raise_max_files();
    const char *how = getenv("IMPETUS_SOAK");
    g.full = how && atoi(how) > 0;
    g.n_stream = g.full ? 2000 : 200;
    g.n_tok = g.full ? (unsigned)IMP_MIN(atoi(how), 300) : 60;
    g.n_slow = g.full ? 10000 : 1000;
    g.idle_s = g.full ? 60 : 2;
    g.tick_ns = g.full ? 1000000000 : 100000000;
    if (imp_sys_max_files() < g.n_slow + 500) {
        g.n_slow = imp_sys_max_files() - 500;
        print_message("only %u files may be open: %u slow clients\n", imp_sys_max_files(), g.n_slow);
    }
    if (pipe(ready) || pipe(quit)) return -1;
    g.server = fork();
    if (g.server == 0) {
        close(quit[1]);
        serve(ready[1], quit[0]);
    }
    g_quit = quit[1];
    close(quit[0]);
    close(ready[1]);
    return read(ready[0], &g.port, sizeof g.port) == sizeof g.port ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    if (g_quit >= 0) close(g_quit);
    if (g.server > 0 && waitpid(g.server, NULL, WNOHANG) == 0) {
        kill(g.server, SIGKILL);
        waitpid(g.server, NULL, 0);
    }
    return 0;
}

/* KiB that the server has in memory. */
static double resident(void)
{
    char path[64];
    long pages = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", (int)g.server);
    FILE *f = fopen(path, "r");
    if (!f || fscanf(f, "%*d %ld", &pages) != 1) pages = 0;
    if (f) fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / 1024;
}

/* ---- streams --------------------------------------------------------------------------------------------------------- */

typedef struct stream {
    int fd;
    unsigned n_match, n_letter, n_done; /* of the text that is waited for; letters; of "[DONE]" */
    bool in_text, whole;
    char last;
    double at;
} stream;

static uint64_t g_gap[MAX_GAP_MS + 1]; /* gaps between tokens by their milliseconds */
static unsigned n_wrong;

static void take_letter(stream *s, char c, double now)
{
    if (s->n_letter > 0) {
        if (c != (s->last == 'z' ? 'a' : s->last + 1)) n_wrong++;
        double ms = (now - s->at) * 1e3;
        g_gap[ms < MAX_GAP_MS ? (size_t)ms : MAX_GAP_MS]++;
    }
    s->last = c;
    s->at = now;
    s->n_letter++;
}

static void take_byte(stream *s, char c, double now)
{
    static const char text[] = "\"text\":\"", done[] = "[DONE]";
    if (s->in_text && c != '"') take_letter(s, c, now);
    if (s->in_text) {
        s->in_text = c != '"';
        return;
    }
    s->n_match = c == text[s->n_match] ? s->n_match + 1 : c == text[0];
    if (text[s->n_match] == '\0') s->in_text = true, s->n_match = 0;
    s->n_done = c == done[s->n_done] ? s->n_done + 1 : c == done[0];
    if (done[s->n_done] == '\0') s->whole = true, s->n_done = 0;
}

static int open_stream(unsigned n_tok)
{
    client c = client_open(g.port);
    char body[200];
    int n =
        snprintf(body, sizeof body,
                 "{\"prompt\":\"Once upon a time\",\"max_tokens\":%u,\"temperature\":0,\"ignore_eos\":true,"
                 "\"stream\":true}",
                 n_tok);
    assert_true(c.fd >= 0);
    assert_true(client_post(&c, g.port, "/v1/completions", body, (size_t)n));
    return c.fd;
}

/* Gap in ms that a share q of all is not above. */
static double quantile(double q)
{
    uint64_t n = 0, at = 0;
    for (size_t i = 0; i <= MAX_GAP_MS; i++) n += g_gap[i];
    for (size_t i = 0; i <= MAX_GAP_MS; i++)
        if ((double)(at += g_gap[i]) >= q * (double)n) return (double)i + 1;
    return MAX_GAP_MS;
}

/* Read all of them to their ends; the most memory the server had meanwhile. */
static double follow(stream *s, unsigned n)
{
    int ep = epoll_create1(0);
    static char buf[65536];
    double most = 0, sampled = 0;
    unsigned left = n;
    for (unsigned i = 0; i < n; i++) {
        struct epoll_event ev = {.events = EPOLLIN, .data.u32 = i};
        assert_int_equal(epoll_ctl(ep, EPOLL_CTL_ADD, s[i].fd, &ev), 0);
    }
    double until = now_s() + (double)g.n_tok * (double)g.tick_ns * 1e-9 * 2 + 60;
    while (left > 0 && now_s() < until) {
        struct epoll_event ev[256];
        int k = epoll_wait(ep, ev, 256, 200);
        double now = now_s();
        for (int i = 0; i < k; i++) {
            stream *x = &s[ev[i].data.u32];
            ssize_t r = recv(x->fd, buf, sizeof buf, MSG_DONTWAIT);
            for (ssize_t b = 0; b < r; b++) take_byte(x, buf[b], now);
            if (!x->whole && !(r == 0 || (r < 0 && errno != EAGAIN))) continue;
            epoll_ctl(ep, EPOLL_CTL_DEL, x->fd, NULL);
            left--;
        }
        if (now - sampled > 0.5) most = fmax(most, resident()), sampled = now;
    }
    close(ep);
    return most;
}

static void streams(void **state)
{
    (void)state;
    stream *s = calloc(g.n_stream, sizeof *s);
    for (unsigned i = 0; i < 4; i++)
        s[i].fd = open_stream(4); /* once, so that what is set up once is not counted */
    (void)follow(s, 4);
    for (unsigned i = 0; i < 4; i++) close(s[i].fd);
    memset(s, 0, g.n_stream * sizeof *s);
    memset(g_gap, 0, sizeof g_gap);
    double before = resident(), t0 = now_s();
    for (unsigned i = 0; i < g.n_stream; i++) s[i].fd = open_stream(g.n_tok);
    double most = follow(s, g.n_stream);
    unsigned n_lost = 0, n_cut = 0;
    for (unsigned i = 0; i < g.n_stream; i++) {
        n_lost += s[i].n_letter != g.n_tok;
        n_cut += !s[i].whole;
        close(s[i].fd);
    }
    free(s);
    double each = (most - before) / g.n_stream, p99 = quantile(0.99) * 1e-3, tick = (double)g.tick_ns * 1e-9;
    print_message("%u streams, %u tokens each, one every %.1f s, in %.1f s: %u lost, %u out of order, %u "
                  "cut; between tokens "
                  "p50 %.3f s, p99 %.3f s, most %.3f s; %.1f KiB a stream\n",
                  g.n_stream, g.n_tok, tick, now_s() - t0, n_lost, n_wrong, n_cut, quantile(0.5) * 1e-3, p99,
                  quantile(1) * 1e-3, each);
    assert_int_equal(n_lost, 0);
    assert_int_equal(n_wrong, 0);
    assert_int_equal(n_cut, 0);
    if (!g.full) return;
    assert_true(p99 <= 1.1 * tick);
    assert_true(each <= 32);
}

/* ---- slow clients ----------------------------------------------------------------------------------------------------- */

static atomic_bool g_stop;
static double g_health[20000];
static unsigned n_health, n_sick;

static void *ask_health(void *arg)
{
    (void)arg;
    while (!atomic_load(&g_stop) && n_health < IMP_COUNT(g_health)) {
        double t = now_s();
        answer a = get(g.port, "/health");
        if (a.status != 200) n_sick++;
        free(a.body);
        g_health[n_health++] = now_s() - t;
        usleep(20000);
    }
    return NULL;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct slow {
    client c;
    double from, cut;
} slow;

static void slow_clients(void **state)
{
    (void)state;
    slow *s = calloc(g.n_slow, sizeof *s);
    pthread_t t;
    pthread_create(&t, NULL, ask_health, NULL);
    unsigned left = 0, n_refused = 0;
    for (unsigned i = 0; i < g.n_slow; i++) {
        s[i].c = client_open(g.port);
        s[i].from = now_s();
        if (s[i].c.fd >= 0 && client_send(&s[i].c, "GET /health HTTP/1.1\r\nX-", 24))
            left++;
        else
            n_refused++;
    }
    double opened = now_s(), until = opened + 30, last_byte = 0, longest = 0;
    while (left > 0 && now_s() < until) {
        bool send = now_s() - last_byte > 2; /* each of them a byte every 2 s */
        if (send) last_byte = now_s();
        for (unsigned i = 0; i < g.n_slow; i++) {
            char c;
            if (s[i].c.fd < 0) continue;
            ssize_t n = recv(s[i].c.fd, &c, 1, MSG_DONTWAIT);
            if (n == 0 || (n < 0 && errno != EAGAIN) || (send && !client_send(&s[i].c, "a", 1))) {
                longest = fmax(longest, now_s() - s[i].from);
                client_close(&s[i].c);
                left--;
            }
        }
        usleep(50000);
    }
    atomic_store(&g_stop, true);
    pthread_join(t, NULL);
    qsort(g_health, n_health, sizeof *g_health, by_size);
    double p99 = n_health ? g_health[(size_t)(0.99 * (n_health - 1))] : 0;
    print_message("%u slow clients (%u refused) all cut after %.1f s at most; /health meanwhile, %u times: "
                  "p50 %.1f ms, p99 "
                  "%.1f ms, most %.1f ms; the server has %.0f MiB\n",
                  g.n_slow, n_refused, longest, n_health, n_health ? g_health[n_health / 2] * 1e3 : 0,
                  p99 * 1e3, n_health ? g_health[n_health - 1] * 1e3 : 0, resident() / 1024);
    for (unsigned i = 0; i < g.n_slow; i++) client_close(&s[i].c);
    free(s);
    assert_int_equal(left, 0);
    assert_int_equal(n_sick, 0);
    if (!g.full) return;
    assert_int_equal(n_refused, 0);
    assert_true(longest <= 10);
    assert_true(p99 < 0.05);
}

/* The server ends well, and nothing of all this is left in it. */
static void ends_clean(void **state)
{
    (void)state;
    int status = -1;
    close(g_quit);
    g_quit = -1;
    assert_true(waitpid(g.server, &status, 0) == g.server);
    g.server = 0;
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streams),
        cmocka_unit_test(slow_clients),
        cmocka_unit_test(ends_clean),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
