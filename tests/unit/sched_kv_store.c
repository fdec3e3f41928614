/* Blocks of KV caches on disk: a file is what was asked for, whole, or it counts as absent. Every byte of a header changed,
 * every length, links, other owners, other models; writers killed at 200 moments; every call to the system failing in
 * turn; a full disk; two stores on one folder; the limit. */
#include "test.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/thread.h"
#include "base/vault.h"
#include "model/net.h"
#include "sched/kv_index.h"
#include "sched/kv_store.h"

static char dir[256];
static imp_net *net;
static uint64_t block_bytes;

static void empty_dir(void)
{
    (void)snprintf(dir, sizeof dir, "build/tests/kv-store-%ld", (long)getpid());
    imp_sys_remove_tree(dir);
}

static const char *in_dir(const char *name)
{
    static char path[400];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* ---- the file ---------------------------------------------------------------------------------------------- */

static imp_kv_model some_model(void)
{
    return (imp_kv_model){.content = {1, 2},
                          .graph = {3, 4},
                          .program = {5, 6},
                          .block_bytes = 512,
                          .kv_dtype = 1,
                          .n_kv_layer = 2,
                          .block_tok = IMP_KV_BLOCK,
                          .layout = 1};
}

static imp_kv_link some_link(uint64_t seed)
{
    imp_kv_link l = {.parent = {seed, 11}, .hash = {seed, 12}, .scope = 7, .depth = 3};
    for (int32_t i = 0; i < IMP_KV_BLOCK; i++) l.token[i] = i * 3;
    return l;
}

static void a_file_is_what_was_asked_for(void **state)
{
    (void)state;
    imp_kv_model m = some_model();
    imp_kv_link l = some_link(1);
    uint8_t file[sizeof(imp_kv_header) + 512], bad[sizeof file + 1];
    rng r = {5};
    for (size_t i = 0; i < 512; i++) file[sizeof(imp_kv_header) + i] = (uint8_t)rng_below(&r, 256);
    imp_kv_header h;
    imp_kv_file_header(&m, &l, "a model", file + sizeof h, &h);
    memcpy(file, &h, sizeof h);
    const uint8_t *data;
    imp_error err;
    assert_int_equal(imp_kv_file_check(file, sizeof file, &m, &l, &data, &err), IMP_OK);
    assert_ptr_equal(data, file + sizeof h);
    for (size_t i = 0; i < sizeof file; i++) /* every bit would do: sums cover all */
        for (unsigned bit = 0; bit < 8; bit += 7) {
            memcpy(bad, file, sizeof file);
            bad[i] ^= (uint8_t)(1u << bit);
            assert_int_equal(imp_kv_file_check(bad, sizeof file, &m, &l, &data, &err), IMP_FORMAT);
            assert_null(data);
        }
    for (size_t n = 0; n < sizeof file; n++)
        assert_int_equal(imp_kv_file_check(file, n, &m, &l, &data, &err), IMP_FORMAT);
    memcpy(bad, file, sizeof file);
    assert_int_equal(imp_kv_file_check(bad, sizeof file + 1, &m, &l, &data, &err), IMP_FORMAT);
    /* right in itself, but of something else: each word of model and place */
    for (size_t i = 0; i < sizeof m / 4; i++) {
        imp_kv_model other = m;
        ((uint32_t *)(void *)&other)[i] ^= 1;
        assert_int_equal(imp_kv_file_check(file, sizeof file, &other, &l, &data, &err), IMP_FORMAT);
    }
    for (size_t i = 0; i < sizeof l / 4; i++) {
        imp_kv_link other = l;
        ((uint32_t *)(void *)&other)[i] ^= 1;
        assert_int_equal(imp_kv_file_check(file, sizeof file, &m, &other, &data, &err), IMP_FORMAT);
    }
    uint8_t key[16] = {1};
    char name[IMP_KV_FILE_NAME], other[IMP_KV_FILE_NAME];
    uint64_t hash[2];
    imp_kv_file_name(key, &m, l.hash, name);
    assert_true(imp_kv_file_name_read(name, hash));
    m.content[0]++;
    imp_kv_file_name(key, &m, l.hash, other);
    assert_string_not_equal(name, other);
    static const char *const not_ours[] = {"",
                                           "key",
                                           "0123.kv",
                                           "../../../../etc/passwd",
                                           "0123456789abcdef0123456789abcdef.kvx",
                                           "0123456789ABCDEF0123456789abcdef.kv"};
    for (size_t i = 0; i < IMP_COUNT(not_ours); i++) assert_false(imp_kv_file_name_read(not_ours[i], hash));
}

/* ---- the index, beside a plain list --------------------------------------------------------------------------- */

static void the_index_is_a_list(void **state)
{
    (void)state;
    enum { N = 300 };
    imp_kv_index x = {0};
    uint64_t bytes[N] = {0};
    int64_t used[N] = {0};
    rng r = {77};
    for (int step = 0; step < 20000; step++) {
        uint32_t i = rng_below(&r, N);
        uint64_t name[2] = {(uint64_t)(i % 17) << 60 | i % 7, i}; /* many share a place */
        if (rng_below(&r, 2) == 0) {
            bytes[i] = 1 + rng_below(&r, 1000);
            used[i] = step;
            assert_true(imp_kv_index_put(&x, name, bytes[i], used[i]));
        } else {
            bytes[i] = 0;
            imp_kv_index_remove(&x, name);
        }
        if (step % 64 != 0) continue;
        uint64_t n = 0, sum = 0;
        int64_t oldest = INT64_MAX;
        for (uint32_t k = 0; k < N; k++) {
            uint64_t one[2] = {(uint64_t)(k % 17) << 60 | k % 7, k};
            const imp_kv_entry *e = imp_kv_index_find(&x, one);
            assert_int_equal(e != NULL ? e->bytes : 0, bytes[k]);
            n += bytes[k] != 0;
            sum += bytes[k];
            if (bytes[k] != 0) oldest = IMP_MIN(oldest, used[k]);
        }
        assert_int_equal(x.n, n);
        assert_int_equal(x.bytes, sum);
        if (n > 0) assert_int_equal(imp_kv_index_oldest(&x)->used_ns, oldest);
    }
    imp_kv_index_deinit(&x);
}

/* ---- the folder ------------------------------------------------------------------------------------------------- */

static void the_folder_is_ours_alone(void **state)
{
    (void)state;
    empty_dir();
    imp_vault *v;
    imp_error err;
    uint8_t *p;
    uint64_t n;
    struct stat st;
    assert_int_equal(imp_vault_open(dir, &v, &err), IMP_OK);
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    imp_vault_part part[2] = {{"ab", 2}, {"cde", 3}};
    assert_int_equal(imp_vault_write(v, "a", part, 2, false, &err), IMP_OK);
    assert_int_equal(stat(in_dir("a"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(imp_vault_read(v, "a", 5, &p, &n, &err), IMP_OK);
    assert_int_equal(n, 5);
    assert_memory_equal(p, "abcde", 5);
    imp_sys_free(p);
    assert_int_equal(imp_vault_read(v, "a", 4, &p, &n, &err), IMP_TOO_LARGE);
    assert_int_equal(imp_vault_read(v, "b", 4, &p, &n, &err), IMP_NOT_FOUND);
    assert_int_equal(imp_vault_write(v, "a", part, 1, true, &err), IMP_INVALID); /* there already */
    assert_int_equal(symlink("a", in_dir("link")), 0);
    assert_int_equal(imp_vault_read(v, "link", 9, &p, &n, &err), IMP_INVALID);
    assert_int_equal(imp_vault_write(v, "link", part, 1, false, &err),
                     IMP_OK); /* in its place, not through it */
    assert_int_equal(imp_vault_read(v, "a", 5, &p, &n, &err), IMP_OK);
    assert_int_equal(n, 5);
    imp_sys_free(p);
    assert_int_equal(mkfifo(in_dir("pipe"), 0600), 0);
    assert_int_equal(imp_vault_read(v, "pipe", 9, &p, &n, &err), IMP_INVALID);
    assert_int_equal(mkdir(in_dir("sub"), 0700), 0);
    assert_int_equal(imp_vault_read(v, "sub", 9, &p, &n, &err), IMP_INVALID);
    assert_int_equal(chmod(in_dir("a"), 0622), 0);
    assert_int_equal(imp_vault_read(v, "a", 5, &p, &n, &err), IMP_INVALID);
    assert_int_equal(chmod(in_dir("a"), 0600), 0);
    if (geteuid() == 0) { /* only root can give a file away */
        assert_int_equal(chown(in_dir("a"), 1, (gid_t)-1), 0);
        assert_int_equal(imp_vault_read(v, "a", 5, &p, &n, &err), IMP_INVALID);
    }
    imp_vault_close(v);
    char other[300];
    (void)snprintf(other, sizeof other, "%s-link", dir);
    (void)unlink(other);
    assert_int_equal(symlink(strrchr(dir, '/') + 1, other), 0);
    assert_int_equal(imp_vault_open(other, &v, &err), IMP_INVALID);
    strcat(other, "/");
    assert_int_equal(imp_vault_open(other, &v, &err), IMP_INVALID);
    other[strlen(other) - 1] = '\0';
    assert_int_equal(unlink(other), 0);
    assert_int_equal(chmod(dir, 0770), 0);
    assert_int_equal(imp_vault_open(dir, &v, &err), IMP_INVALID);
    assert_int_equal(chmod(dir, 0700), 0);
    if (geteuid() == 0) {
        assert_int_equal(chown(dir, 1, (gid_t)-1), 0);
        assert_int_equal(imp_vault_open(dir, &v, &err), IMP_INVALID);
    }
    empty_dir();
}

/* ---- the store -------------------------------------------------------------------------------------------------- */

static imp_mutex *mu;
static imp_cond *cv;
static uint64_t n_woken;

static void on_wake(void *user)
{
    (void)user;
    imp_mutex_lock(mu);
    n_woken++;
    imp_cond_broadcast(cv);
    imp_mutex_unlock(mu);
}

typedef struct desk {
    imp_kv_store *s;
    imp_kv_book *b;
} desk;

/* NULL members: it failed, as it may when calls fail. */
static desk desk_open(uint64_t max_bytes, imp_dtype type)
{
    desk d = {0};
    imp_error err;
    if (imp_kv_store_open(dir, max_bytes, &d.s, &err) != IMP_OK) return d;
    imp_kv_book_config c = {.store = d.s,
                            .graph = net->generate,
                            .device = "cpu0",
                            .model_name = "stories",
                            .kv_dtype = type,
                            .wake = on_wake};
    if (imp_kv_book_open(&c, &d.b) != IMP_OK) return d;
    while (!imp_kv_book_is_ready(d.b)) usleep(200);
    return d;
}

static void desk_close(desk *d)
{
    imp_kv_book_close(d->b);
    imp_kv_store_close(d->s);
    *d = (desk){0};
}

static void put(desk *d, const imp_kv_link *l, uint64_t value)
{
    uint64_t *p = imp_kv_book_buffer(d->b, 10000);
    if (p == NULL) return;
    for (uint64_t i = 0; i < block_bytes / 8; i++) p[i] = value;
    imp_kv_book_save(d->b, l, p);
}

/* The value of all its words; UINT64_MAX: it is absent. */
static uint64_t get(desk *d, const imp_kv_link *l)
{
    uint64_t *p = NULL, value = UINT64_MAX;
    bool over = false;
    imp_kv_load *load = imp_kv_load_new(d->b, l, 1);
    if (load == NULL) return value;
    imp_mutex_lock(mu);
    while ((p = imp_kv_load_take(load, &over)) == NULL && !over) (void)imp_cond_wait_ms(cv, mu, 1000);
    imp_mutex_unlock(mu);
    imp_kv_load_close(load);
    if (p == NULL) return value;
    value = p[0];
    for (uint64_t i = 0; i < block_bytes / 8; i++) assert_int_equal(p[i], value);
    imp_sys_free(p);
    return value;
}

static void what_is_saved_is_found(void **state)
{
    (void)state;
    empty_dir();
    imp_kv_link l[20];
    for (uint64_t i = 0; i < 20; i++) l[i] = some_link(i);
    desk d = desk_open(1 << 30, IMP_F16);
    for (uint64_t i = 0; i < 20; i++) {
        assert_false(imp_kv_book_has(d.b, l[i].hash));
        put(&d, &l[i], 100 + i);
    }
    desk_close(&d); /* writes what waits */
    d = desk_open(1 << 30, IMP_F16);
    for (uint64_t i = 0; i < 20; i++) {
        assert_true(imp_kv_book_has(d.b, l[i].hash));
        assert_int_equal(get(&d, &l[i]), 100 + i);
    }
    imp_kv_link other = l[3];
    other.scope++;
    assert_int_equal(get(&d, &other), UINT64_MAX); /* another client, though the name is the same */
    other = l[4];
    other.token[63]++;
    assert_int_equal(get(&d, &other), UINT64_MAX);
    imp_kv_store_stats st;
    imp_kv_store_get_stats(d.s, &st);
    assert_int_equal(st.n_loaded, 20);
    assert_int_equal(st.n_refused, 2);
    /* a load that is given up while it is read */
    imp_kv_load *load = imp_kv_load_new(d.b, l, 20);
    bool over;
    for (int i = 0; i < 5; i++) imp_sys_free(imp_kv_load_take(load, &over));
    imp_kv_load_close(load);
    desk_close(&d);
    d = desk_open(1 << 30, IMP_Q8_0); /* another type of cache: nothing */
    assert_false(imp_kv_book_has(d.b, l[0].hash));
    desk_close(&d);
    assert_int_equal(unlink(in_dir("key")), 0); /* another secret: nothing */
    d = desk_open(1 << 30, IMP_F16);
    assert_false(imp_kv_book_has(d.b, l[0].hash));
    desk_close(&d);
    empty_dir();
}

typedef struct file_list {
    char name[64][IMP_KV_FILE_NAME];
    uint32_t n;
    uint64_t bytes;
} file_list;

static void see(void *ctx, const char *name, uint64_t bytes, int64_t used_ns)
{
    file_list *f = ctx;
    uint64_t hash[2];
    (void)used_ns;
    if (!imp_kv_file_name_read(name, hash)) return;
    if (f->n < 64) (void)snprintf(f->name[f->n], sizeof f->name[0], "%.39s", name);
    f->n++;
    f->bytes += bytes;
}

static void damaged_files_are_absent(void **state)
{
    (void)state;
    empty_dir();
    imp_kv_link l[12];
    desk d = desk_open(1 << 30, IMP_F16);
    for (uint64_t i = 0; i < 12; i++) l[i] = some_link(i), put(&d, &l[i], i);
    desk_close(&d);
    imp_log_set_level(IMP_LOG_ERROR);
    rng r = {9};
    for (int round = 0; round < 60; round++) {
        file_list f = {0};
        imp_sys_list_dir(dir, see, &f);
        assert_int_equal(f.n, 12);
        char path[400], to[400];
        (void)snprintf(path, sizeof path, "%s/%s", dir, f.name[rng_below(&r, 12)]);
        (void)snprintf(to, sizeof to, "%s/%s", dir, f.name[rng_below(&r, 12)]);
        struct stat st;
        assert_int_equal(stat(path, &st), 0);
        uint8_t byte;
        off_t at = (off_t)(rng_u64(&r) % (uint64_t)st.st_size);
        int fd, kind = round % 6;
        switch (kind) {
        case 0: /* a bit */
            fd = open(path, O_RDWR);
            assert_int_equal(pread(fd, &byte, 1, at), 1);
            byte ^= (uint8_t)(1u << rng_below(&r, 8));
            assert_int_equal(pwrite(fd, &byte, 1, at), 1);
            close(fd);
            break;
        case 1: assert_int_equal(truncate(path, at), 0); break;
        case 2: assert_int_equal(truncate(path, st.st_size + 1 + at), 0); break;
        case 3: /* a link to a file that is right */
            (void)snprintf(to, sizeof to, "%s/elsewhere", dir);
            assert_int_equal(rename(path, to), 0);
            assert_int_equal(symlink("elsewhere", path), 0);
            break;
        case 4: /* one block under another's name */
            assert_int_equal(unlink(path), 0);
            if (strcmp(path, to) != 0) assert_int_equal(link(to, path), 0);
            break;
        case 5:
            assert_int_equal(unlink(path), 0);
            assert_int_equal(mkdir(path, 0700), 0);
            break;
        }
        d = desk_open(1 << 30, IMP_F16);
        int n_absent = 0;
        for (uint64_t i = 0; i < 12; i++) {
            uint64_t v = get(&d, &l[i]);
            assert_true(v == i || v == UINT64_MAX);
            n_absent += v == UINT64_MAX;
        }
        assert_int_equal(n_absent, 1);
        desk_close(&d);
        if (kind == 5) assert_int_equal(rmdir(path), 0);
        d = desk_open(1 << 30, IMP_F16); /* what is computed again takes the damaged one's place */
        for (uint64_t i = 0; i < 12; i++) put(&d, &l[i], i);
        desk_close(&d);
        (void)unlink(in_dir("elsewhere"));
    }
    imp_log_set_level(IMP_LOG_WARN);
    empty_dir();
}

/* ---- ends of all kinds ---------------------------------------------------------------------------------------- */

/* A child overwrites the same few blocks with ever new values until it is killed, 200 times. */
static void killed_writers_leave_old_or_new(void **state)
{
    (void)state;
    enum { N = 4, ROUNDS = 200 };
    empty_dir();
    imp_kv_link l[N];
    uint64_t best[N], n_new = 0;
    desk d = desk_open(1 << 30, IMP_F16);
    for (uint64_t i = 0; i < N; i++) l[i] = some_link(i), best[i] = i, put(&d, &l[i], i);
    desk_close(&d);
    rng r = {31};
    uint64_t value = N;
    for (int round = 0; round < ROUNDS; round++) {
        int fd[2];
        assert_int_equal(pipe(fd), 0);
        fflush(NULL);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            d = desk_open(1 << 30, IMP_F16);
            char ready = 1;
            if (write(fd[1], &ready, 1) != 1) _exit(1);
            for (;; value++) put(&d, &l[value % N], value);
        }
        char ready;
        assert_int_equal(read(fd[0], &ready, 1), 1);
        close(fd[0]), close(fd[1]);
        usleep(rng_below(&r, 6000));
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, NULL, 0), child);
        d = desk_open(1 << 30, IMP_F16);
        for (uint64_t i = 0; i < N; i++) {
            uint64_t v = get(&d, &l[i]); /* every word the same, or it would say so */
            assert_int_not_equal(v, UINT64_MAX);
            assert_int_equal(v % N, i);
            assert_true(v >= best[i]);
            n_new += v > best[i];
            best[i] = v;
            value = IMP_MAX(value, v + 1);
        }
        imp_kv_store_stats st;
        imp_kv_store_get_stats(d.s, &st);
        assert_int_equal(st.n_refused, 0);
        value = (value + N - 1) / N * N;
        desk_close(&d);
    }
    assert_true(n_new > 20); /* the children did write */
    print_message("# %llu blocks were new\n", (unsigned long long)n_new);
    empty_dir();
}

static void every_call_may_fail(void **state)
{
    (void)state;
    empty_dir();
    imp_kv_link l[3];
    for (uint64_t i = 0; i < 3; i++) l[i] = some_link(i);
    imp_log_set_level(IMP_LOG_ERROR);
    uint64_t n_call = 400, n_absent = 0, n_there = 0;
    for (uint64_t n = 0; n < n_call; n++) {
        uint64_t before = imp_sys_n_call();
        imp_sys_fail_at(n); /* 0: none */
        for (int life = 0; life < 2; life++) {
            desk d = desk_open(1 << 30, IMP_F16);
            for (uint64_t i = 0; d.b != NULL && i < 3; i++) {
                uint64_t v = get(&d, &l[i]);
                assert_true(v == 100 + i || v == UINT64_MAX);
                n_absent += v == UINT64_MAX, n_there += v != UINT64_MAX;
                put(&d, &l[i], 100 + i);
            }
            desk_close(&d);
        }
        imp_sys_fail_at(0);
        if (n == 0) n_call = imp_sys_n_call() - before + 1;
        if (n % 2 == 0) empty_dir(); /* from nothing, and over what is there */
    }
    assert_true(n_call > 60 && n_absent > 60 && n_there > n_call);
    print_message("# %llu calls\n", (unsigned long long)n_call);
    imp_log_set_level(IMP_LOG_WARN);
    desk d = desk_open(1 << 30, IMP_F16);
    put(&d, &l[0], 5);
    desk_close(&d);
    d = desk_open(1 << 30, IMP_F16);
    assert_int_equal(get(&d, &l[0]), 5);
    desk_close(&d);
    empty_dir();
}

/* No file may grow beyond a few bytes: as on a full disk, what is there stays and nothing half is left. */
static void a_full_disk_loses_nothing(void **state)
{
    (void)state;
    empty_dir();
    imp_kv_link l[4];
    desk d = desk_open(1 << 30, IMP_F16);
    for (uint64_t i = 0; i < 4; i++) l[i] = some_link(i);
    put(&d, &l[0], 1), put(&d, &l[1], 2);
    desk_close(&d);
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = sizeof(imp_kv_header) + block_bytes / 2;
    (void)signal(SIGXFSZ, SIG_IGN);
    imp_log_set_level(IMP_LOG_ERROR);
    d = desk_open(1 << 30, IMP_F16);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    for (uint64_t i = 0; i < 4; i++) put(&d, &l[i], 50 + i);
    desk_close(&d);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    imp_log_set_level(IMP_LOG_WARN);
    d = desk_open(1 << 30, IMP_F16);
    for (uint64_t i = 0; i < 4; i++) assert_int_equal(get(&d, &l[i]), i < 2 ? i + 1 : UINT64_MAX);
    put(&d, &l[3], 9);
    desk_close(&d);
    d = desk_open(1 << 30, IMP_F16);
    assert_int_equal(get(&d, &l[3]), 9);
    desk_close(&d);
    empty_dir();
}

static void the_limit_is_kept(void **state)
{
    (void)state;
    empty_dir();
    uint64_t file = sizeof(imp_kv_header) + block_bytes, max = 10 * file + file / 2;
    desk a = desk_open(max, IMP_F16), b = desk_open(max, IMP_F16); /* two on one folder */
    imp_kv_link first = some_link(1000);
    put(&a, &first, 3);
    while (!imp_kv_book_has(a.b, first.hash)) usleep(200);
    for (uint64_t i = 0; i < 60; i++) {
        imp_kv_link l = some_link(i);
        desk *w = i % 3 == 2 ? &b : &a;
        put(w, &l, i);
        while (!imp_kv_book_has(w->b, l.hash))
            usleep(200); /* so that it is older than what is used from now on */
        if (i % 4 == 0) assert_int_equal(get(&a, &first), 3); /* what is used stays */
        file_list f = {0};
        imp_sys_list_dir(dir, see, &f);
        assert_true(f.bytes <= 2 * max);
    }
    desk_close(&a);
    desk_close(&b);
    a = desk_open(max, IMP_F16);
    assert_int_equal(get(&a, &first), 3);
    imp_kv_link l = some_link(2000);
    put(&a, &l, 1);
    for (uint64_t i = 0; i < 4; i++) l = some_link(3000 + i), put(&a, &l, i);
    desk_close(&a);
    file_list f = {0};
    imp_sys_list_dir(dir, see, &f);
    assert_true(f.bytes <= max && f.n >= 5);
    empty_dir();
}

/* Two processes begin on an empty folder at once: one secret, and both find what either wrote. */
static void two_begin_at_once(void **state)
{
    (void)state;
    for (int round = 0; round < 20; round++) {
        empty_dir();
        imp_kv_link l[2] = {some_link(0), some_link(1)};
        fflush(NULL);
        pid_t child[2];
        for (uint64_t i = 0; i < 2; i++) {
            child[i] = fork();
            assert_true(child[i] >= 0);
            if (child[i] > 0) continue;
            desk d = desk_open(1 << 30, IMP_F16);
            put(&d, &l[i], 7 + i);
            desk_close(&d);
            _exit(0);
        }
        for (int i = 0; i < 2; i++) assert_int_equal(waitpid(child[i], NULL, 0), child[i]);
        desk d = desk_open(1 << 30, IMP_F16);
        for (uint64_t i = 0; i < 2; i++) assert_int_equal(get(&d, &l[i]), 7 + i);
        desk_close(&d);
    }
    empty_dir();
}

static int setup(void **state)
{
    (void)state;
    imp_error err;
    if (imp_net_open("models/stories260K.gguf", 0, &net, &err) != IMP_OK) return 1;
    block_bytes = imp_dev_kv_block_bytes(net->generate, IMP_F16);
    return imp_mutex_new(&mu) != IMP_OK || imp_cond_new(&cv) != IMP_OK;
}

static int teardown(void **state)
{
    (void)state;
    empty_dir();
    imp_net_close(net);
    imp_mutex_free(mu);
    imp_cond_free(cv);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_is_what_was_asked_for),
        cmocka_unit_test(the_index_is_a_list),
        cmocka_unit_test(the_folder_is_ours_alone),
        cmocka_unit_test(what_is_saved_is_found),
        cmocka_unit_test(damaged_files_are_absent),
        cmocka_unit_test(killed_writers_leave_old_or_new),
        cmocka_unit_test(every_call_may_fail),
        cmocka_unit_test(a_full_disk_loses_nothing),
        cmocka_unit_test(the_limit_is_kept),
        cmocka_unit_test(two_begin_at_once),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
