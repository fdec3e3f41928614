/* dev/cpu/pack_cache.c - packed weights kept on disk and mapped at the next start.
 *
 * Idea:    a file is named by what its region is made of: kernels, shapes, places, and samples of every tensor's bytes. That
 *          finds the file; whether it may be used is decided by more: the model's files are the ones it was made from and
 *          were not changed since (size, inode, times), or else all source bytes have the sum written down when it was
 *          packed; the first panel of each kernel, packed again, is the file's (so that a changed layout is noticed though
 *          nobody raised LAYOUT); and every byte of the region has its sum, which also brings the pages in. Whatever does
 *          not hold is packed again and replaced.
 * Layout:  header, zeros up to REGION_AT, the region, then a sum for each SUM_BYTES of it. REGION_AT and the size of writes
 *          let the system keep the file in large pages.
 * Always:  a file is complete before it has its name. Any number of processes may use and write the same ones: a writer has
 *          a temporary file of its own, and who has mapped a file that is then replaced or evicted keeps what it has.
 * Threads: written by one background thread a region. */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>

#include "dev/cpu/pack.h"

enum {
    LAYOUT = 1, /* of this file, and of what any kernel's pack() makes */
    REGION_AT = 2 << 20,
    SUM_BYTES = 4 << 20,
    SAMPLE_BYTES = 64,
    MAX_SAMPLED_PART = 8, /* experts of a weight that are sampled */
    MAX_FILES = 64,       /* files that a model's weights may lie in */
};
static const uint64_t KEEP_FREE = 1ull << 30; /* bytes of disk that are left to others */
static const int64_t SETTLED_NS = 2000000000; /* a further change of a file shows in its times after that */
static const char MAGIC[8] = {'I', 'M', 'P', 'P', 'A', 'C', 'K', 0};

/* Which files the region was made from. Renewed in place, so with a sum of its own. */
typedef struct kept_source {
    uint64_t stamp, check; /* check: stamp ^ CHECK; anything else: not known */
} kept_source;
static const uint64_t CHECK = 0x5041434b53544d50;

typedef struct kept_header {
    char magic[8];
    uint32_t layout, header_bytes;
    uint64_t key[2];
    uint64_t region_bytes, n_sum;
    uint64_t content; /* sum of the source */
    uint64_t sums;    /* sum of the sums */
    uint64_t sum;     /* of the header up to here */
    kept_source source;
} kept_header;

static struct {
    char dir[1024];
    uint64_t max_bytes, min_bytes;
    _Atomic uint32_t n_mapped, n_packed;
    atomic_flag complained; /* that nothing can be kept: once is enough */
} cache = {.complained = ATOMIC_FLAG_INIT};

imp_status imp_pack_cache_configure(const imp_pack_cache_config *c, imp_error *err)
{
    cache.dir[0] = '\0';
    cache.max_bytes = c->max_bytes;
    cache.min_bytes = c->min_bytes;
    atomic_flag_clear(&cache.complained);
    if (c->dir == NULL) return IMP_OK;
    size_t n = strlen(c->dir);
    if (n >= sizeof cache.dir)
        return imp_fail(err, IMP_INVALID, "the path of the cache of packed weights is too long");
    memcpy(cache.dir, c->dir, n + 1);
    return IMP_OK;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n > k && memcmp(s + n - k, end, k) == 0;
}

static void count_file(void *ctx, const char *name, uint64_t bytes, int64_t used_ns)
{
    imp_pack_cache_info *i = ctx;
    (void)used_ns;
    if (!ends_with(name, ".pack")) return;
    i->n_file++;
    i->bytes += bytes;
}

void imp_pack_cache_look(imp_pack_cache_info *out)
{
    *out = (imp_pack_cache_info){.max_bytes = cache.max_bytes,
                                 .n_mapped = atomic_load(&cache.n_mapped),
                                 .n_packed = atomic_load(&cache.n_packed)};
    memcpy(out->dir, cache.dir, sizeof out->dir);
    if (cache.dir[0] != '\0') imp_sys_list_dir(cache.dir, count_file, out);
}

/* ---- names and stamps -------------------------------------------------------------------------------------- */

typedef struct digest {
    uint64_t v[2];
} digest;

static void add(digest *d, const void *p, size_t n)
{
    for (int i = 0; i < 2; i++) d->v[i] = imp_sum64(p, n, d->v[i] + (uint64_t)i);
}

/* 64 bytes from the beginning, the middle and the end. */
static void add_samples(digest *d, const uint8_t *p, uint64_t n)
{
    uint64_t at[3] = {0, n / 2, n < SAMPLE_BYTES ? 0 : n - SAMPLE_BYTES};
    for (int i = 0; i < 3; i++) add(d, p + at[i], IMP_MIN(n - at[i], (uint64_t)SAMPLE_BYTES));
}

static void add_tensor(digest *d, const imp_tensor *t)
{
    uint64_t shape[8] = {t->dtype, t->n_dim, t->bits, t->group, t->scale_dtype};
    add(d, shape, sizeof shape);
    add(d, t->dim, sizeof t->dim);
    uint64_t bytes = imp_tensor_n_row(t) * imp_tensor_row_bytes(t);
    add_samples(d, t->data, bytes);
    imp_sys_file_forget(t->data, bytes); /* the system brings in far more than the samples */
    if (t->dtype != IMP_AFFINE) return;
    uint64_t half = (imp_tensor_bytes(t) - bytes) / 2;
    add_samples(d, t->scales, half);
    add_samples(d, t->biases, half);
}

/* Where the source bytes lie. */
typedef struct files {
    uint32_t n;
    imp_sys_file_id id[MAX_FILES];
} files;

/* false: not in a mapped file, or in too many. */
static bool note_file(files *f, const void *p, uint64_t n)
{
    imp_sys_file_id id;
    if (!imp_sys_file_id_of(p, n, &id)) return false;
    for (uint32_t i = 0; i < f->n; i++)
        if (memcmp(&f->id[i], &id, sizeof id) == 0) return true;
    if (f->n == MAX_FILES) return false;
    f->id[f->n++] = id;
    return true;
}

static bool note_tensor(files *f, const imp_tensor *t)
{
    uint64_t bytes = imp_tensor_n_row(t) * imp_tensor_row_bytes(t);
    if (!note_file(f, t->data, bytes)) return false;
    uint64_t half = (imp_tensor_bytes(t) - bytes) / 2;
    return t->dtype != IMP_AFFINE || (note_file(f, t->scales, half) && note_file(f, t->biases, half));
}

/* false: the source is not in files alone. */
static bool stamp_of(const cpu_exec *x, uint64_t *stamp, bool *fresh)
{
    files f = {0};
    *fresh = false;
    for (imp_val v = 1; v <= imp_graph_n(x->graph); v++) {
        const cpu_weight *w = &x->weight[v];
        for (uint32_t i = 0; w->part_bytes != 0 && i < w->n_part; i++)
            if (!note_tensor(&f, &w->part[i])) return false;
        if (x->vector_at[v] != UINT64_MAX && !note_tensor(&f, imp_graph_node(x->graph, v)->u.weight.part))
            return false;
    }
    int64_t now = imp_sys_clock_ns();
    for (uint32_t i = 0; i < f.n; i++) *fresh = *fresh || now - f.id[i].changed_ns < SETTLED_NS;
    *stamp = imp_sum64(f.id, f.n * sizeof f.id[0], LAYOUT);
    return f.n > 0;
}

bool imp_cpu_kept_name(const cpu_exec *x, cpu_kept *k)
{
    digest d = {{LAYOUT, SUM_BYTES}};
    if (cache.dir[0] == '\0' || x->weights_bytes < cache.min_bytes) return false;
    if (!stamp_of(x, &k->stamp, &k->fresh)) return false;
    add(&d, &x->weights_bytes, sizeof x->weights_bytes);
    for (imp_val v = 1; v <= imp_graph_n(x->graph); v++) {
        const cpu_weight *w = &x->weight[v];
        if (x->vector_at[v] != UINT64_MAX) {
            add(&d, &x->vector_at[v], sizeof x->vector_at[v]);
            add_tensor(&d, imp_graph_node(x->graph, v)->u.weight.part);
        }
        if (w->part_bytes == 0) continue;
        uint64_t place[4] = {w->at, w->part_bytes, w->n_part, w->mm->n_step};
        add(&d, w->mm->name, strlen(w->mm->name));
        add(&d, place, sizeof place);
        uint32_t stride = (w->n_part + MAX_SAMPLED_PART - 1) / MAX_SAMPLED_PART;
        for (uint32_t i = 0; i < w->n_part; i += stride) add_tensor(&d, &w->part[i]);
    }
    memcpy(k->key, d.v, sizeof k->key);
    int n =
        snprintf(k->path, sizeof k->path, "%s/%016" PRIx64 "%016" PRIx64 ".pack", cache.dir, d.v[0], d.v[1]);
    return n > 0 && (size_t)n < sizeof k->path;
}

/* ---- reading ------------------------------------------------------------------------------------------------- */

static uint64_t n_sum_of(uint64_t region_bytes)
{
    return (region_bytes + SUM_BYTES - 1) / SUM_BYTES;
}

/* Where the sums are; the region's size is a plan's and far below overflow. */
static uint64_t sums_at(uint64_t region_bytes)
{
    return REGION_AT + (region_bytes + 63) / 64 * 64;
}

static uint64_t header_sum(const kept_header *h)
{
    return imp_sum64(h, offsetof(kept_header, sum), LAYOUT);
}

static const uint64_t *sums_of(const imp_sys_file *f, uint64_t region_bytes)
{
    return (const uint64_t *)(const void *)(f->data + sums_at(region_bytes));
}

/* What is wrong with header and size; NULL: nothing. */
static const char *check_header(const cpu_exec *x, const cpu_kept *k, const imp_sys_file *f, kept_header *h)
{
    uint64_t n_sum = n_sum_of(x->weights_bytes);
    if (f->n < REGION_AT) return "it is cut short";
    memcpy(h, f->data, sizeof *h);
    if (memcmp(h->magic, MAGIC, sizeof MAGIC) != 0 || h->sum != header_sum(h)) return "its header is damaged";
    if (h->layout != LAYOUT || h->header_bytes != sizeof *h || memcmp(h->key, k->key, sizeof h->key) != 0 ||
        h->region_bytes != x->weights_bytes || h->n_sum != n_sum)
        return "it is of another layout";
    if (f->n != sums_at(x->weights_bytes) + n_sum * sizeof(uint64_t)) return "it is cut short";
    if (h->sums != imp_sum64(sums_of(f, x->weights_bytes), n_sum * sizeof(uint64_t), LAYOUT))
        return "its sums are damaged";
    return NULL;
}

/* Is the first panel of each kernel, packed now, what the region holds? */
static bool same_panels(const cpu_exec *x, const uint8_t *region)
{
    const imp_matmul *seen[16];
    uint32_t n_seen = 0;
    for (imp_val v = 1; v <= imp_graph_n(x->graph) && n_seen < IMP_COUNT(seen); v++) {
        const cpu_weight *w = &x->weight[v];
        bool skip = w->part_bytes == 0 || w->part->dtype == IMP_AFFINE; /* those are packed whole only */
        for (uint32_t i = 0; i < n_seen && !skip; i++) skip = seen[i] == w->mm;
        if (skip) continue;
        seen[n_seen++] = w->mm;
        cpu_piece p = {.w = w, .rows = IMP_MIN(imp_tensor_n_row(w->part), (uint64_t)w->mm->n_step)};
        imp_tensor t = imp_cpu_piece_source(&p);
        uint64_t bytes = w->mm->packed_bytes(p.rows, imp_tensor_n_col(&t));
        uint8_t *panel = imp_sys_calloc(1, bytes + 64);
        if (panel == NULL) return false;
        w->mm->pack(&t, panel + (64 - (uintptr_t)panel % 64));
        imp_sys_file_forget(t.data, imp_tensor_n_row(&t) * imp_tensor_row_bytes(&t));
        bool same = memcmp(panel + (64 - (uintptr_t)panel % 64), region + w->at, bytes) == 0;
        imp_sys_free(panel);
        if (!same) return false;
    }
    return true;
}

typedef struct check_job {
    const uint8_t *region;
    const uint64_t *sums;
    uint64_t bytes;
    _Atomic uint64_t next, n_bad;
} check_job;

static void check_some(void *ctx, uint32_t ith, uint32_t n_thread)
{
    check_job *j = ctx;
    (void)ith, (void)n_thread;
    for (uint64_t at; (at = atomic_fetch_add(&j->next, 1) * SUM_BYTES) < j->bytes;) {
        uint64_t n = IMP_MIN(j->bytes - at, (uint64_t)SUM_BYTES);
        if (imp_sum64(j->region + at, n, at) != j->sums[at / SUM_BYTES]) atomic_fetch_add(&j->n_bad, 1);
    }
}

static bool is_whole(cpu_device *d, const uint8_t *region, const uint64_t *sums, uint64_t bytes)
{
    check_job j = {.region = region, .sums = sums, .bytes = bytes};
    imp_mutex_lock(d->lock);
    imp_pool_run_open(d->pool, check_some, &j);
    imp_mutex_unlock(d->lock);
    return atomic_load(&j.n_bad) == 0;
}

static void sum_piece(void *ctx, const cpu_piece *p)
{
    uint64_t *sum = ctx;
    imp_tensor t = imp_cpu_piece_source(p);
    sum[p->index] = imp_cpu_piece_sum(p);
    imp_sys_file_forget(t.data, imp_tensor_n_row(&t) * imp_tensor_row_bytes(&t));
}

/* Is the model the one that was packed? When only its files' times say no, all of its bytes decide, and the new times are
 * written down. */
static bool same_source(cpu_device *d, const cpu_exec *x, const cpu_kept *k, const kept_header *h)
{
    if (h->source.stamp == k->stamp && h->source.check == (k->stamp ^ CHECK)) return true;
    uint64_t *sum = imp_sys_calloc(imp_cpu_n_piece(x) + 1, sizeof *sum);
    if (sum == NULL) return false;
    imp_cpu_each_piece(d, x, sum_piece, sum);
    bool same = imp_cpu_content(x, sum) == h->content;
    imp_sys_free(sum);
    kept_source now = {k->stamp, k->stamp ^ CHECK};
    if (same && !k->fresh) (void)imp_sys_file_patch(k->path, offsetof(kept_header, source), &now, sizeof now);
    return same;
}

const uint8_t *imp_cpu_kept_map(cpu_device *d, const cpu_exec *x, const cpu_kept *k, imp_sys_file *file)
{
    kept_header h;
    imp_error err;
    *file = (imp_sys_file){0};
    if (!imp_sys_is_file(k->path)) return NULL;
    const char *why = NULL;
    if (imp_sys_file_open(k->path, true, file, &err) != IMP_OK) why = err.text;
    if (why == NULL) imp_sys_file_wish_huge(file);
    if (why == NULL && !file->mapped) why = "it cannot be mapped";
    if (why == NULL) why = check_header(x, k, file, &h);
    if (why == NULL) imp_sys_file_forget(file->data, REGION_AT);
    const uint8_t *region = why == NULL ? file->data + REGION_AT : NULL;
    if (why == NULL && !same_source(d, x, k, &h)) why = "the model has changed since";
    if (why == NULL && !same_panels(x, region)) why = "it is of another layout";
    if (why == NULL && !is_whole(d, region, sums_of(file, x->weights_bytes), x->weights_bytes))
        why = "it is damaged";
    if (why == NULL) {
        imp_sys_touch(k->path);
        atomic_fetch_add(&cache.n_mapped, 1);
        imp_log(IMP_LOG_INFO, "packed weights mapped from %s", k->path);
        return region;
    }
    imp_log(IMP_LOG_WARN, "%s is not used: %s; packing the weights again", k->path, why);
    if (file->data != NULL) imp_sys_file_close(file);
    return NULL;
}

/* ---- writing ------------------------------------------------------------------------------------------------- */

struct cpu_keep {
    cpu_kept k;
    imp_thread *thread;
    const uint8_t *region; /* borrowed */
    uint64_t bytes, content;
};

static void complain(const char *why)
{
    if (!atomic_flag_test_and_set(&cache.complained))
        imp_log(IMP_LOG_WARN, "packed weights are not kept for the next start: %s", why);
}

typedef struct old_files {
    uint64_t bytes;   /* of all */
    char oldest[256]; /* "": none */
    int64_t oldest_ns;
    const char *spare; /* name that is about to be replaced */
} old_files;

static void see_file(void *ctx, const char *name, uint64_t bytes, int64_t used_ns)
{
    old_files *o = ctx;
    char path[1400];
    if (strstr(name, ".pack.") != NULL && ends_with(name, ".tmp") &&
        snprintf(path, sizeof path, "%s/%.300s", cache.dir, name) > 0)
        imp_sys_remove_left(path);
    if (!ends_with(name, ".pack") || strcmp(name, o->spare) == 0) return;
    o->bytes += bytes;
    if (strlen(name) >= sizeof o->oldest || (o->oldest[0] != '\0' && used_ns >= o->oldest_ns)) return;
    memcpy(o->oldest, name, strlen(name) + 1);
    o->oldest_ns = used_ns;
}

/* Room for n bytes more: the longest unused files go. false: there is none. */
static bool make_room(const char *path, uint64_t n, char *why, size_t cap)
{
    char victim[1400];
    if (n > cache.max_bytes) {
        (void)snprintf(why, cap, "%" PRIu64 " MiB are more than its limit of %" PRIu64 " MiB", n >> 20,
                       cache.max_bytes >> 20);
        return false;
    }
    for (;;) {
        old_files o = {.spare = strrchr(path, '/') + 1};
        imp_sys_list_dir(cache.dir, see_file, &o);
        if (o.bytes + n <= cache.max_bytes) break;
        int len = snprintf(victim, sizeof victim, "%s/%s", cache.dir, o.oldest);
        if (o.oldest[0] == '\0' || len < 0 || (size_t)len >= sizeof victim || !imp_sys_remove(victim)) {
            (void)snprintf(why, cap, "older files in %.300s cannot be removed", cache.dir);
            return false;
        }
        imp_log(IMP_LOG_INFO, "%s was removed: the cache of packed weights is full", victim);
    }
    uint64_t left = imp_sys_disk_free(cache.dir);
    if (left >= n && left - n >= KEEP_FREE) return true;
    (void)snprintf(why, cap, "the disk of %.300s has only %" PRIu64 " MiB left", cache.dir, left >> 20);
    return false;
}

/* Header last, so that a file with a header is written. */
static imp_status write_region(const cpu_keep *job, uint64_t *sums, imp_sys_out *o, imp_error *err)
{
    static const uint8_t zeros[64];
    uint64_t n_sum = n_sum_of(job->bytes), tail = sums_at(job->bytes) - REGION_AT - job->bytes;
    IMP_TRY(imp_sys_out_skip(o, REGION_AT, err));
    for (uint64_t at = 0; at < job->bytes; at += SUM_BYTES) {
        uint64_t n = IMP_MIN(job->bytes - at, (uint64_t)SUM_BYTES);
        sums[at / SUM_BYTES] = imp_sum64(job->region + at, n, at);
        IMP_TRY(imp_sys_out_write(o, job->region + at, n, err));
    }
    IMP_TRY(imp_sys_out_write(o, zeros, tail, err));
    IMP_TRY(imp_sys_out_write(o, sums, n_sum * sizeof *sums, err));
    kept_header h = {.layout = LAYOUT,
                     .header_bytes = sizeof h,
                     .key = {job->k.key[0], job->k.key[1]},
                     .region_bytes = job->bytes,
                     .n_sum = n_sum,
                     .content = job->content,
                     .sums = imp_sum64(sums, n_sum * sizeof *sums, LAYOUT)};
    memcpy(h.magic, MAGIC, sizeof MAGIC);
    h.sum = header_sum(&h);
    if (!job->k.fresh) h.source = (kept_source){job->k.stamp, job->k.stamp ^ CHECK};
    return imp_sys_out_patch(o, 0, &h, sizeof h, err);
}

static void keep(void *arg)
{
    cpu_keep *job = arg;
    imp_sys_out *o = NULL;
    imp_error err = {0};
    imp_sys_thread_idle();
    uint64_t n = sums_at(job->bytes) + n_sum_of(job->bytes) * sizeof(uint64_t);
    uint64_t *sums = imp_sys_calloc(n_sum_of(job->bytes), sizeof *sums);
    imp_status s = sums == NULL ? imp_fail(&err, IMP_NOMEM, "out of memory") : IMP_OK;
    if (s == IMP_OK) s = imp_sys_make_dirs(cache.dir, &err);
    if (s == IMP_OK && !make_room(job->k.path, n, err.text, sizeof err.text)) s = IMP_NO_FIT;
    if (s == IMP_OK) s = imp_sys_out_open_cache(job->k.path, &o, &err);
    if (s == IMP_OK) s = write_region(job, sums, o, &err);
    imp_status closed = imp_sys_out_close(o, s == IMP_OK, s == IMP_OK ? &err : NULL);
    imp_sys_free(sums);
    if (s == IMP_OK && closed == IMP_OK)
        imp_log(IMP_LOG_INFO, "packed weights written to %s", job->k.path);
    else
        complain(err.text);
}

cpu_keep *imp_cpu_keep_start(const cpu_exec *x, const cpu_kept *k, const uint8_t *region, uint64_t content)
{
    uint64_t stamp;
    bool fresh;
    atomic_fetch_add(&cache.n_packed, 1);
    if (!stamp_of(x, &stamp, &fresh) || stamp != k->stamp) return NULL; /* changed while it was packed */
    cpu_keep *job = imp_sys_calloc(1, sizeof *job);
    if (job == NULL) return NULL;
    *job = (cpu_keep){.k = *k, .region = region, .bytes = x->weights_bytes, .content = content};
    if (imp_thread_start(keep, job, &job->thread) == IMP_OK) return job;
    imp_sys_free(job);
    return NULL;
}

void imp_cpu_keep_join(cpu_keep *job)
{
    if (job == NULL) return;
    imp_thread_join(job->thread);
    imp_sys_free(job);
}
