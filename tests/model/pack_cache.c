/* Packed weights on disk: mapped at the next start, and never when anything about them or their model is not as it was.
 * What a region must be is always found by packing with the cache switched off. */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dev/cpu/cpu.h"
#include "dev/cpu/pack_cache.h"

static char root[] = "/tmp/impetus-packs-XXXXXX";
static char dir[100], model[100], other[100];

typedef struct loaded {
    imp_net *net;
    run r;
    const uint8_t *region;
    uint64_t bytes;
} loaded;

static void use_cache(const char *at, uint64_t max_bytes)
{
    imp_error err;
    check_ok(imp_pack_cache_configure(&(imp_pack_cache_config){at, max_bytes, 0}, &err), &err);
}

static void load(loaded *l, const char *path)
{
    imp_error err = {0};
    check_ok(imp_net_open(path, 0, &l->net, &err), &err);
    run_open(&l->r, "cpu", l->net->generate != NULL ? l->net->generate : l->net->embed);
    l->region = ((cpu_exec *)l->r.x)->weights;
    l->bytes = ((cpu_exec *)l->r.x)->weights_bytes;
}

static void unload(loaded *l) /* waits until its region is written */
{
    run_close(&l->r);
    imp_net_close(l->net);
}

/* The region of a model as packed without a cache. */
static uint8_t *packed(const char *path, uint64_t *n)
{
    loaded l;
    use_cache(NULL, 0);
    load(&l, path);
    uint8_t *copy = malloc(l.bytes);
    memcpy(copy, l.region, l.bytes);
    *n = l.bytes;
    unload(&l);
    use_cache(dir, 1 << 30);
    return copy;
}

/* Load once: the region is as expected, and comes from the cache or not. */
static void expect(const char *path, const uint8_t *want, uint64_t n, bool from_cache, const char *what)
{
    imp_pack_cache_info before, after;
    loaded l;
    imp_pack_cache_look(&before);
    load(&l, path);
    imp_pack_cache_look(&after);
    assert_int_equal(l.bytes, n);
    if (memcmp(l.region, want, n) != 0) fail_msg("%s: other weights than the model's", what);
    if (after.n_mapped - before.n_mapped != (from_cache ? 1 : 0))
        fail_msg("%s: from the cache: %d", what, !from_cache);
    unload(&l);
}

static void copy_file(const char *from, const char *to)
{
    imp_sys_file f;
    imp_error err;
    check_ok(imp_sys_file_open(from, true, &f, &err), &err);
    check_ok(imp_sys_file_write(to, f.data, f.n, &err), &err);
    imp_sys_file_close(&f);
}

static void flip(const char *path, int64_t at) /* negative: from the end */
{
    uint8_t b;
    struct stat st;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    off_t off = at < 0 ? st.st_size + at : at;
    assert_int_equal(pread(fd, &b, 1, off), 1);
    b ^= 0x10;
    assert_int_equal(pwrite(fd, &b, 1, off), 1);
    close(fd);
}

static void note(void *ctx, const char *name, uint64_t bytes, int64_t used_ns)
{
    (void)bytes, (void)used_ns;
    size_t n = strlen(name);
    if (n > 5 && strcmp(name + n - 5, ".pack") == 0) (void)snprintf(ctx, 300, "%s/%s", dir, name);
}
static void the_pack(char path[300])
{
    path[0] = '\0';
    imp_sys_list_dir(dir, note, path);
    assert_true(path[0] != '\0');
}

static int fresh_cache(void **state)
{
    (void)state;
    imp_sys_remove_tree(dir);
    copy_file("models/impetus-nano.gguf", model);
    use_cache(dir, 1 << 30);
    return 0;
}

static void mapped_next_time(void **state)
{
    (void)state;
    uint64_t n;
    uint8_t *want = packed(model, &n);
    expect(model, want, n, false, "nothing there");
    expect(model, want, n, true, "just written");
    usleep(2200000); /* from now on the times of the model's file tell of changes */
    expect(model, want, n, true, "source not trusted yet");
    expect(model, want, n, true, "source known");
    copy_file(model, other);
    expect(other, want, n, true, "a copy of the model");
    assert_int_equal(utimensat(AT_FDCWD, model, NULL, 0), 0);
    expect(model, want, n, true, "the same bytes with another time");
    use_cache(NULL, 0);
    expect(model, want, n, false, "switched off");
    free(want);
}

/* One bit of the model, in the middle of a tensor; size and time of writing stay. */
static void overwritten_model(void **state)
{
    (void)state;
    uint64_t n, n_new;
    uint8_t *old = packed(model, &n);
    for (int settled = 0; settled < 2; settled++) {
        if (settled) usleep(2200000);
        expect(model, old, n, settled, "before");
        if (settled) expect(model, old, n, true, "before, source known");
        struct stat st;
        assert_int_equal(stat(model, &st), 0);
        flip(model, st.st_size / 2 + 12345);
        struct timespec t[2] = {st.st_atim, st.st_mtim};
        assert_int_equal(utimensat(AT_FDCWD, model, t, 0), 0);
        uint8_t *want = packed(model, &n_new);
        assert_int_equal(n, n_new);
        assert_true(memcmp(want, old, n) != 0);
        expect(model, want, n, false, "overwritten");
        expect(model, want, n, true, "the new one");
        free(want);
        flip(model, st.st_size / 2 + 12345);
        expect(model, old, n, false, "and back");
    }
    free(old);
}

static void damaged_files(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        int64_t flip, cut;
    } damage[] = {
        {"magic", 3, 0},
        {"layout", 8, 0},
        {"region begins", 2 << 20, 0},
        {"in the region", 9000001, 0},
        {"sums", -3, 0},
        {"one byte short", 0, 1},
        {"half", 0, 8 << 20},
        {"only a header", 0, INT64_MAX - 100},
        {"empty", 0, INT64_MAX},
    };
    uint64_t n;
    char path[300];
    uint8_t *want = packed(model, &n);
    expect(model, want, n, false, "first");
    for (size_t i = 0; i < IMP_COUNT(damage); i++) {
        struct stat st;
        the_pack(path);
        assert_int_equal(stat(path, &st), 0);
        if (damage[i].flip != 0) flip(path, damage[i].flip);
        off_t keep = damage[i].cut > st.st_size ? INT64_MAX - damage[i].cut : st.st_size - damage[i].cut;
        if (damage[i].cut != 0) assert_int_equal(truncate(path, keep), 0);
        expect(model, want, n, false, damage[i].what);
        expect(model, want, n, true, damage[i].what);
    }
    free(want);
}

static void goes_without(void **state)
{
    (void)state;
    uint64_t n;
    char below[120], path[300];
    uint8_t *want = packed(model, &n);
    (void)snprintf(below, sizeof below, "%s/folder", model);
    use_cache(below, 1 << 30); /* cannot be made: a file is in the way */
    expect(model, want, n, false, "no folder");
    expect(model, want, n, false, "no folder again");
    use_cache(dir, n / 2);
    expect(model, want, n, false, "limit too small");
    expect(model, want, n, false, "limit too small again");
    use_cache(dir, 1 << 30);
    expect(model, want, n, false, "room");
    the_pack(path);
    if (geteuid() != 0) assert_int_equal(chmod(dir, 0500), 0);
    expect(model, want, n, true, "read only");
    assert_int_equal(chmod(dir, 0700), 0);
    free(want);
}

static void oldest_goes_first(void **state)
{
    (void)state;
    static const char *const embed = "models/impetus-nano-embed.gguf";
    uint64_t n, n_embed;
    imp_pack_cache_info i;
    uint8_t *want = packed(model, &n), *vectors = packed(embed, &n_embed);
    uint64_t room = n + n_embed + (5 << 20); /* with what a file has beside its region */
    use_cache(dir, room);
    expect(model, want, n, false, "first");
    expect(embed, vectors, n_embed, false, "second");
    expect(model, want, n, true, "used again"); /* now the second is the older one */
    flip(model, (int64_t)1 << 22);
    uint8_t *changed = packed(model, &n);
    use_cache(dir, IMP_MAX(n, n_embed) + (5 << 20));
    loaded l;
    load(&l, model); /* replaces its own file or adds one; either way the limit holds */
    assert_memory_equal(l.region, changed, n);
    unload(&l);
    imp_pack_cache_look(&i);
    assert_true(i.n_file >= 1 && i.bytes <= i.max_bytes);
    expect(model, changed, n, true, "the newest stays");
    expect(embed, vectors, n_embed, false, "the oldest went");
    free(want), free(vectors), free(changed);
}

static void many_processes(void **state)
{
    (void)state;
    enum { N = 4 };
    uint64_t n;
    imp_pack_cache_info i;
    uint8_t *want = packed(model, &n);
    pid_t pid[N];
    for (int p = 0; p < N; p++) {
        pid[p] = fork();
        if (pid[p] != 0) continue;
        int bad = 0;
        for (int k = 0; k < 3; k++) {
            loaded l;
            load(&l, model);
            bad |= l.bytes != n || memcmp(l.region, want, n) != 0;
            unload(&l);
        }
        _exit(bad);
    }
    for (int p = 0; p < N; p++) {
        int st;
        assert_int_equal(waitpid(pid[p], &st, 0), pid[p]);
        assert_true(WIFEXITED(st) && WEXITSTATUS(st) == 0);
    }
    imp_pack_cache_look(&i);
    assert_int_equal(i.n_file, 1);
    expect(model, want, n, true, "after all of them");
    free(want);
}

static void count_all(void *ctx, const char *name, uint64_t bytes, int64_t used_ns)
{
    (void)name, (void)bytes, (void)used_ns;
    ++*(int *)ctx;
}

static void leftovers_are_removed(void **state)
{
    (void)state;
    uint64_t n;
    char path[300];
    imp_error err;
    imp_sys_out *alive;
    int count = 0;
    uint8_t *want = packed(model, &n);
    check_ok(imp_sys_make_dirs(dir, &err), &err);
    (void)snprintf(path, sizeof path, "%s/0123.pack.99999-7.tmp", dir);
    check_ok(imp_sys_file_write(path, "abc", 3, &err), &err);
    (void)snprintf(path, sizeof path, "%s/4567.pack", dir);
    check_ok(imp_sys_out_open_cache(path, &alive, &err), &err);
    expect(model, want, n, false, "beside leftovers");
    imp_sys_list_dir(dir, count_all, &count);
    assert_int_equal(count, 2); /* the pack, and the file that is being written */
    check_ok(imp_sys_out_close(alive, false, &err), &err);
    free(want);
}

/* The Nth call to the system fails, with an empty cache and with a full one. */
static void every_call_may_fail(void **state)
{
    (void)state;
    uint64_t n;
    uint8_t *want = packed(model, &n);
    imp_net *net;
    imp_error err;
    for (int warm = 0; warm < 2; warm++) {
        for (uint64_t nth = 1, last = 1000; nth <= last; nth++) {
            imp_device *d;
            imp_exec *x = NULL;
            imp_limits lim = {.max_tok = 8,
                              .max_seq = 1,
                              .max_out = 1,
                              .max_ctx = 64,
                              .n_kv_block = 1,
                              .kv_dtype = IMP_F16};
            if (!warm) imp_sys_remove_tree(dir);
            check_ok(imp_net_open(model, 0, &net, &err), &err);
            check_ok(imp_dev_open("cpu", 2, &d, &err), &err);
            uint64_t before = imp_sys_n_call();
            imp_sys_fail_at(nth);
            imp_status s = d->ops->compile(d, net->generate, &lim, &x, &err);
            if (s == IMP_OK) {
                assert_memory_equal(((cpu_exec *)x)->weights, want, n);
                d->ops->exec_free(x);
            } else {
                assert_int_equal(s, IMP_NOMEM);
            }
            imp_sys_fail_at(0);
            if (imp_sys_n_call() - before < nth) last = 0; /* it was not reached any more */
            d->ops->close(d);
            imp_net_close(net);
        }
        expect(model, want, n, true,
               "afterwards"); /* the last round, in which nothing failed, has left it there */
    }
    free(want);
}

int main(void)
{
    if (mkdtemp(root) == NULL) return 1;
    (void)snprintf(dir, sizeof dir, "%s/a/packs", root);
    (void)snprintf(model, sizeof model, "%s/model.gguf", root);
    (void)snprintf(other, sizeof other, "%s/other.gguf", root);
    imp_log_set_level(IMP_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(mapped_next_time, fresh_cache),
        cmocka_unit_test_setup(overwritten_model, fresh_cache),
        cmocka_unit_test_setup(damaged_files, fresh_cache),
        cmocka_unit_test_setup(goes_without, fresh_cache),
        cmocka_unit_test_setup(oldest_goes_first, fresh_cache),
        cmocka_unit_test_setup(many_processes, fresh_cache),
        cmocka_unit_test_setup(leftovers_are_removed, fresh_cache),
        cmocka_unit_test_setup(every_call_may_fail, fresh_cache),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    imp_sys_remove_tree(root);
    return failed;
}
