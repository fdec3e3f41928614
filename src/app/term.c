/* app/term.c - progress bars, signals.
 *
 * Place:   main.c switches it on; long commands draw, serve and run catch signals.
 * Idea:    a bar redraws one line of stderr ten times a second at most; the signal handler knows whether such a line
 *          stands and clears it, using nothing but write() and sigaction().
 * Threads: counters are atomic; drawing happens in whichever thread wins a try-lock. */
#include "app/app.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

static bool show;
static atomic_bool line_drawn;
static struct {
    char label[48], unit[16], note[48];
    uint64_t total, start_ns;
    atomic_ullong done, last_ns;
    atomic_flag drawing;
    bool open;
} bar = {.drawing = ATOMIC_FLAG_INIT};

void app_term_init(bool quiet)
{
    show = !quiet && isatty(2);
}

bool app_term_shows_progress(void)
{
    return show;
}

static void draw(uint64_t now)
{
    enum { WIDTH = 28 };
    uint64_t done = atomic_load(&bar.done), total = bar.total ? bar.total : 1;
    double part = IMP_MIN(1.0, (double)done / (double)total);
    int full = (int)(part * WIDTH);
    char cells[WIDTH + 1], left[32] = "";
    for (int i = 0; i < WIDTH; i++) cells[i] = i < full ? '#' : '-';
    cells[WIDTH] = 0;
    double spent = (double)(now - bar.start_ns) * 1e-9;
    if (done && spent > 1) {
        double s = spent * (1 - part) / part;
        if (s >= 60)
            snprintf(left, sizeof left, "  %.0f min left", s / 60);
        else
            snprintf(left, sizeof left, "  %.0f s left", s);
    }
    fprintf(stderr, "\r%s [%s] %3.0f %%  %llu/%llu %s%s%s%s\033[K", bar.label, cells, part * 100,
            (unsigned long long)done, (unsigned long long)bar.total, bar.unit, left, bar.note[0] ? "  " : "",
            bar.note);
    fflush(stderr);
    atomic_store(&line_drawn, true);
}

void app_bar_begin(const char *label, uint64_t total, const char *unit)
{
    if (!show) return;
    snprintf(bar.label, sizeof bar.label, "%s", label);
    snprintf(bar.unit, sizeof bar.unit, "%s", unit);
    bar.note[0] = 0;
    bar.total = total;
    bar.start_ns = imp_now_ns();
    atomic_store(&bar.done, 0);
    atomic_store(&bar.last_ns, bar.start_ns);
    bar.open = true;
    draw(bar.start_ns);
}

void app_bar_add(uint64_t n)
{
    if (!bar.open) return;
    uint64_t done = atomic_fetch_add(&bar.done, n) + n, now = imp_now_ns();
    if (now - atomic_load(&bar.last_ns) < 100000000 && done < bar.total) return;
    if (atomic_flag_test_and_set(&bar.drawing)) return;
    atomic_store(&bar.last_ns, now);
    draw(now);
    atomic_flag_clear(&bar.drawing);
}

void app_bar_note(const char *note)
{
    if (bar.open) snprintf(bar.note, sizeof bar.note, "%s", note);
}

void app_bar_end(void)
{
    if (!bar.open) return;
    bar.open = false;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    atomic_store(&line_drawn, false);
}

/* ---- signals -------------------------------------------------------------------------------------- */

static volatile sig_atomic_t catching, n_caught, last_signal, hung_up;
static int wake[2] = {-1, -1};

static void on_signal(int sig)
{
    int saved = errno;
    last_signal = sig;
    if (atomic_load(&line_drawn)) (void)!write(2, "\r\033[K", 4);
    if (catching) {
        n_caught++;
        (void)!write(wake[1], "x", 1);
    } else {
        struct sigaction sa = {.sa_handler = SIG_DFL};
        sigaction(sig, &sa, NULL);
        raise(sig);
    }
    errno = saved;
}

/* A mapped model file that became shorter, or a disk that failed: there is nothing to go on with. */
static void on_lost_file(int sig)
{
    static const char text[] =
        "impetus: a model's file was changed or cut while it was in use, or its disk failed; "
        "start again, and replace models by renaming\n";
    (void)sig;
    if (atomic_load(&line_drawn)) (void)!write(2, "\r\033[K", 4);
    (void)!write(2, text, sizeof text - 1);
    _exit(APP_FAILED);
}

void app_signals_init(void)
{
    struct sigaction sa = {.sa_handler = on_signal};
    sigemptyset(&sa.sa_mask);
    struct sigaction lost = {.sa_handler = on_lost_file};
    sigemptyset(&lost.sa_mask);
    sigaction(SIGBUS, &lost, NULL);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    /* A reader that goes away (| head) ends the program without a word, even when the caller ignored the signal. */
    struct sigaction pipe_sa = {.sa_handler = SIG_DFL};
    sigemptyset(&pipe_sa.sa_mask);
    sigaction(SIGPIPE, &pipe_sa, NULL);
}

void app_signals_catch(bool on)
{
    if (on && wake[0] < 0) {
        if (pipe(wake)) return; /* without the pipe a signal simply ends the program */
        for (int i = 0; i < 2; i++) {
            fcntl(wake[i], F_SETFL, O_NONBLOCK);
            fcntl(wake[i], F_SETFD, FD_CLOEXEC);
        }
    }
    app_signals_clear();
    catching = on;
}

int app_signals_count(void)
{
    return n_caught;
}

bool app_signals_terminate(void)
{
    return last_signal == SIGTERM;
}

void app_signals_clear(void)
{
    char c[16];
    n_caught = 0;
    while (wake[0] >= 0 && read(wake[0], c, sizeof c) > 0) {
    }
}

static void on_hangup(int sig)
{
    int saved = errno;
    (void)sig;
    hung_up = 1;
    (void)!write(wake[1], "h", 1);
    errno = saved;
}

void app_signals_catch_hangup(void)
{
    struct sigaction sa = {.sa_handler = on_hangup};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGHUP, &sa, NULL);
}

bool app_signals_wait(void)
{
    struct pollfd p = {.fd = wake[0], .events = POLLIN};
    while (n_caught == 0) {
        char c[16];
        if (poll(&p, 1, 1000) > 0) (void)!read(wake[0], c, sizeof c);
        if (n_caught > 0 || !hung_up) continue;
        hung_up = 0;
        return false;
    }
    return true;
}

void app_signals_raise(void)
{
    struct sigaction sa = {.sa_handler = SIG_DFL};
    sigemptyset(&sa.sa_mask);
    sigaction(last_signal ? last_signal : SIGINT, &sa, NULL);
    raise(last_signal ? last_signal : SIGINT);
}
