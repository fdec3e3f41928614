/* sched/kv_store.c - blocks of KV caches in a folder. See kv_store.h.
 *
 * Layout:  DIR/key: 16 secret bytes and their sum; DIR/HASH.kv: blocks; DIR/HASH.sum: sums of models' files (kv_model.c).
 * Idea:    the index of what is there lives in memory, made from the folder's listing at the start and again while a lot
 *          is written, for another server may use the folder too. When the folder is over its limit, what was used
 *          longest ago goes; using a block uses all before it too, later, so chains go from their ends.
 * Always:  lock guards everything in the structs below but for what says otherwise; it is never held while files are
 *          touched or `wake` is called. Memory that waits to be written is at most QUEUE_BYTES and a block, what was read
 *          and not taken at most AHEAD_BYTES and a block. */
#include "sched/kv_store.h"

#include <stdio.h>

#include "base/thread.h"
#include "sched/kv_index.h"
#include "sched/kv_model.h"

enum { QUEUE_BYTES = 64 << 20, AHEAD_BYTES = 64 << 20, AHEAD = 8, NAME_BYTES = 64 };
static const uint64_t KEEP_FREE = 1ull << 28; /* bytes of disk that are left to others */
static const uint64_t KEY_CHECK = 0x696d706b76736563;
static const char KEY_FILE[] = "key";

typedef struct key_file {
    uint8_t key[16];
    uint64_t check;
} key_file;

typedef struct save {
    struct save *next;
    imp_kv_model model;
    imp_kv_link link;
    char model_name[NAME_BYTES];
    void *data; /* owned */
} save;

struct imp_kv_load {
    imp_kv_load *next;
    imp_kv_book *book;
    uint64_t block_bytes;
    uint32_t n, n_read, n_taken;
    bool over;   /* no more are read */
    bool closed; /* nobody takes any; freed by who sees that it is not being read */
    bool busy;   /* the thread reads a block of it */
    void *data[AHEAD];
    imp_kv_link link[];
};

struct imp_kv_book {
    imp_kv_book *next;
    imp_kv_store *store;
    imp_kv_finder finder; /* the store's thread only, until ready */
    bool ready;
    bool in_use; /* the store's thread works on it */
    char model_name[NAME_BYTES];
    double block_s; /* to read and check a block, smoothed */
    void (*wake)(void *user);
    void *user;
};

struct imp_kv_store {
    imp_vault *vault;
    uint8_t key[16];
    uint64_t max_bytes;
    imp_mutex *lock;
    imp_cond *work, *done; /* for the thread; by the thread */
    imp_thread *thread;
    imp_kv_book *books;
    imp_kv_load *loads;
    save *first, *last; /* to be written */
    uint64_t queued_bytes;
    uint64_t ahead_bytes;   /* read, and not taken yet */
    bool quit, full;        /* full: the last block could not be written; said once */
    uint64_t written_bytes; /* since the folder was listed */
    imp_kv_index index;
    imp_kv_store_stats stats;
};

/* ---- the folder ------------------------------------------------------------------------------------------ */

static void see_file(void *ctx, const char *name, uint64_t bytes, int64_t used_ns)
{
    imp_kv_index *x = ctx;
    uint64_t hash[2];
    if (imp_kv_file_name_read(name, hash) && bytes > 0) (void)imp_kv_index_put(x, hash, bytes, used_ns);
}

/* The thread, or before it runs. */
static void list_folder(imp_kv_store *s)
{
    imp_kv_index x = {0};
    imp_vault_list(s->vault, see_file, &x);
    imp_mutex_lock(s->lock);
    imp_kv_index old = s->index;
    s->index = x;
    s->written_bytes = 0;
    imp_mutex_unlock(s->lock);
    imp_kv_index_deinit(&old);
}

static void spell(const uint64_t name[2], char out[IMP_KV_FILE_NAME])
{
    (void)snprintf(out, IMP_KV_FILE_NAME, "%016llx%016llx.kv", (unsigned long long)name[0],
                   (unsigned long long)name[1]);
}

/* Room for n more bytes. */
static void make_room(imp_kv_store *s, uint64_t n)
{
    bool listed = s->written_bytes <= s->max_bytes / 16;
    for (;;) {
        char file[IMP_KV_FILE_NAME];
        imp_mutex_lock(s->lock);
        bool over = s->index.bytes + n > s->max_bytes;
        const imp_kv_entry *old = over ? imp_kv_index_oldest(&s->index) : NULL;
        uint64_t name[2] = {old != NULL ? old->name[0] : 0, old != NULL ? old->name[1] : 0};
        imp_mutex_unlock(s->lock);
        if (!listed) { /* others may have written, used or removed some */
            listed = true;
            list_folder(s);
            continue;
        }
        if (old == NULL) return;
        spell(name, file);
        (void)imp_vault_remove(s->vault, file);
        imp_mutex_lock(s->lock);
        imp_kv_index_remove(&s->index, name);
        s->stats.n_evicted++;
        imp_mutex_unlock(s->lock);
    }
}

static imp_status read_key(imp_kv_store *s, imp_error *err)
{
    key_file k;
    uint64_t got;
    IMP_TRY(imp_vault_peek(s->vault, KEY_FILE, &k, sizeof k, &got, err));
    if (got != sizeof k || k.check != imp_sum64(k.key, sizeof k.key, KEY_CHECK))
        return imp_fail(err, IMP_FORMAT, "%.300s/%s is damaged", imp_vault_path(s->vault), KEY_FILE);
    memcpy(s->key, k.key, sizeof s->key);
    return IMP_OK;
}

/* The secret that is there, or a new one. Two that start at once agree on the one that was first. */
static imp_status get_key(imp_kv_store *s, imp_error *err)
{
    imp_status st = read_key(s, err);
    if (st != IMP_NOT_FOUND && st != IMP_FORMAT) return st;
    if (st == IMP_FORMAT) {
        imp_log(IMP_LOG_WARN, "%s; what was saved with it counts as absent", err->text);
        if (!imp_vault_remove(s->vault, KEY_FILE)) return st;
    }
    key_file k;
    if (imp_sys_random(k.key, sizeof k.key) != IMP_OK)
        return imp_fail(err, IMP_IO, "the system gives no random numbers");
    k.check = imp_sum64(k.key, sizeof k.key, KEY_CHECK);
    imp_vault_part part = {&k, sizeof k};
    st = imp_vault_write(s->vault, KEY_FILE, &part, 1, true, err);
    return st == IMP_OK || st == IMP_INVALID ? read_key(s, err) : st;
}

/* ---- the thread ------------------------------------------------------------------------------------------ */

static void write_block(imp_kv_store *s, const save *w)
{
    imp_kv_header h;
    char file[IMP_KV_FILE_NAME];
    uint64_t name[2], bytes = sizeof h + w->model.block_bytes;
    imp_error err;
    imp_kv_file_name(s->key, &w->model, w->link.hash, file);
    (void)imp_kv_file_name_read(file, name);
    if (bytes > s->max_bytes) return;
    make_room(s, bytes);
    uint64_t left = imp_sys_disk_free(imp_vault_path(s->vault));
    imp_status st =
        left != 0 && left < bytes + KEEP_FREE
            ? imp_fail(&err, IMP_IO, "the disk of %.300s is nearly full", imp_vault_path(s->vault))
            : IMP_OK;
    if (st == IMP_OK) {
        imp_kv_file_header(&w->model, &w->link, w->model_name, w->data, &h);
        imp_vault_part part[2] = {{&h, sizeof h}, {w->data, w->model.block_bytes}};
        st = imp_vault_write(s->vault, file, part, 2, false, &err);
    }
    imp_mutex_lock(s->lock);
    bool say = st != IMP_OK && !s->full;
    s->full = st != IMP_OK;
    if (st == IMP_OK && imp_kv_index_put(&s->index, name, bytes, imp_sys_clock_ns())) {
        s->stats.n_saved++;
        s->written_bytes += bytes;
    }
    imp_mutex_unlock(s->lock);
    if (say) imp_log(IMP_LOG_WARN, "caches are not saved: %s", err.text);
}

/* The block of this place in a chain. NULL: it is not there, whole and right. */
static void *read_block(imp_kv_store *s, imp_kv_book *b, const imp_kv_link *link)
{
    char file[IMP_KV_FILE_NAME];
    uint64_t name[2], n, bytes = sizeof(imp_kv_header) + b->finder.model.block_bytes;
    uint8_t *p;
    const uint8_t *data;
    imp_error err;
    uint64_t t0 = imp_now_ns();
    imp_kv_file_name(s->key, &b->finder.model, link->hash, file);
    (void)imp_kv_file_name_read(file, name);
    imp_status st = imp_vault_read(s->vault, file, bytes, &p, &n, &err);
    bool there = st != IMP_NOT_FOUND, bad = st != IMP_OK && there;
    if (st == IMP_OK && imp_kv_file_check(p, n, &b->finder.model, link, &data, &err) != IMP_OK) {
        imp_error why = err;
        (void)imp_fail(&err, IMP_FORMAT, "%.200s/%s: %.100s", imp_vault_path(s->vault), file, why.text);
        bad = true;
        imp_sys_free(p);
    }
    if (bad) imp_log(IMP_LOG_WARN, "%s; it counts as absent", err.text);
    bool ok = there && !bad;
    if (ok) {
        memmove(p, data,
                b->finder.model.block_bytes); /* the block begins the memory, so that it can be freed */
        imp_vault_touch(s->vault, file);
    }
    imp_mutex_lock(s->lock);
    imp_kv_entry *e = imp_kv_index_find(&s->index, name);
    if (!ok && e != NULL) imp_kv_index_remove(&s->index, name);
    if (ok && e != NULL) e->used_ns = imp_sys_clock_ns();
    s->stats.n_loaded += ok;
    s->stats.n_refused += bad;
    if (ok) b->block_s += 0.2 * ((double)(imp_now_ns() - t0) * 1e-9 - b->block_s);
    imp_mutex_unlock(s->lock);
    return ok ? p : NULL;
}

/* Locked. */
static void free_load(imp_kv_store *s, imp_kv_load *l)
{
    for (imp_kv_load **at = &s->loads; *at != NULL; at = &(*at)->next) {
        if (*at != l) continue;
        *at = l->next;
        break;
    }
    for (; l->n_taken < l->n_read; l->n_taken++) {
        imp_sys_free(l->data[l->n_taken % AHEAD]);
        s->ahead_bytes -= l->block_bytes;
    }
    imp_cond_broadcast(s->work); /* others may read ahead now */
    imp_sys_free(l);
}

/* Locked, let go while it works. */
static void load_one(imp_kv_store *s, imp_kv_load *l)
{
    imp_kv_book *b = l->book;
    l->busy = b->in_use = true;
    uint32_t i = l->n_read;
    imp_mutex_unlock(s->lock);
    void *p = read_block(s, b, &l->link[i]);
    imp_mutex_lock(s->lock);
    l->busy = false;
    if (p != NULL) l->data[l->n_read++ % AHEAD] = p, s->ahead_bytes += l->block_bytes;
    l->over = p == NULL || l->n_read == l->n;
    if (l->closed) free_load(s, l);
    imp_mutex_unlock(s->lock);
    b->wake(b->user);
    imp_mutex_lock(s->lock);
    b->in_use = false;
    imp_cond_broadcast(s->done);
}

static void find_out(imp_kv_store *s, imp_kv_book *b)
{
    b->in_use = true;
    imp_mutex_unlock(s->lock);
    bool known = imp_kv_finder_step(&b->finder, s->vault);
    imp_mutex_lock(s->lock);
    b->ready = known;
    b->in_use = false;
    imp_cond_broadcast(s->done);
}

static void save_one(imp_kv_store *s)
{
    save *w = s->first;
    s->first = w->next;
    if (s->first == NULL) s->last = NULL;
    imp_mutex_unlock(s->lock);
    write_block(s, w);
    imp_mutex_lock(s->lock);
    s->queued_bytes -= w->model.block_bytes;
    imp_cond_broadcast(s->done);
    imp_sys_free(w->data);
    imp_sys_free(w);
}

static imp_kv_load *next_load(const imp_kv_store *s)
{
    imp_kv_load *l = s->ahead_bytes < AHEAD_BYTES ? s->loads : NULL;
    while (l != NULL && (l->over || l->closed || l->n_read - l->n_taken == AHEAD)) l = l->next;
    return l;
}

static void store_main(void *arg)
{
    imp_kv_store *s = arg;
    imp_mutex_lock(s->lock);
    for (;;) {
        imp_kv_load *l = next_load(s);
        imp_kv_book *b = s->books;
        while (b != NULL && b->ready) b = b->next;
        if (l != NULL)
            load_one(s, l);
        else if (s->first != NULL)
            save_one(s);
        else if (b != NULL)
            find_out(s, b);
        else if (s->quit)
            break;
        else
            imp_cond_wait(s->work, s->lock);
    }
    imp_mutex_unlock(s->lock);
}

/* ---- open and close ---------------------------------------------------------------------------------------- */

imp_status imp_kv_store_open(const char *dir, uint64_t max_bytes, imp_kv_store **out, imp_error *err)
{
    *out = NULL;
    imp_kv_store *s = imp_sys_calloc(1, sizeof *s);
    if (s == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    s->max_bytes = max_bytes;
    imp_status st = imp_mutex_new(&s->lock);
    if (st == IMP_OK) st = imp_cond_new(&s->work);
    if (st == IMP_OK) st = imp_cond_new(&s->done);
    if (st != IMP_OK) (void)imp_fail(err, st, "out of memory");
    if (st == IMP_OK) st = imp_vault_open(dir, &s->vault, err);
    if (st == IMP_OK) st = get_key(s, err);
    if (st == IMP_OK) {
        list_folder(s);
        st = imp_thread_start(store_main, s, &s->thread);
        if (st != IMP_OK) (void)imp_fail(err, st, "cannot start a thread for saved caches");
    }
    if (st != IMP_OK) {
        imp_kv_store_close(s);
        return st;
    }
    *out = s;
    return IMP_OK;
}

void imp_kv_store_close(imp_kv_store *s)
{
    if (s == NULL) return;
    if (s->thread != NULL) {
        imp_mutex_lock(s->lock);
        s->quit = true;
        imp_cond_broadcast(s->work);
        imp_mutex_unlock(s->lock);
        imp_thread_join(s->thread);
    }
    imp_kv_index_deinit(&s->index);
    imp_vault_close(s->vault);
    imp_cond_free(s->work);
    imp_cond_free(s->done);
    imp_mutex_free(s->lock);
    imp_sys_free(s);
}

const uint8_t *imp_kv_store_key(const imp_kv_store *s)
{
    return s->key;
}

void imp_kv_store_get_stats(imp_kv_store *s, imp_kv_store_stats *out)
{
    imp_mutex_lock(s->lock);
    *out = s->stats;
    out->bytes = s->index.bytes;
    out->n_file = s->index.n;
    imp_mutex_unlock(s->lock);
}

imp_status imp_kv_book_open(const imp_kv_book_config *c, imp_kv_book **out)
{
    imp_kv_store *s = c->store;
    imp_kv_book *b = *out = imp_sys_calloc(1, sizeof *b);
    if (b == NULL) return IMP_NOMEM;
    *b = (imp_kv_book){.store = s, .wake = c->wake, .user = c->user};
    b->finder.graph = c->graph;
    b->finder.device = c->device;
    b->finder.model.kv_dtype = c->kv_dtype;
    b->block_s =
        1e-4 + 1e-9 * (double)imp_dev_kv_block_bytes(c->graph, c->kv_dtype); /* until it is measured */
    (void)snprintf(b->model_name, sizeof b->model_name, "%.63s", c->model_name);
    imp_mutex_lock(s->lock);
    b->next = s->books;
    s->books = b;
    imp_cond_broadcast(s->work);
    imp_mutex_unlock(s->lock);
    return IMP_OK;
}

void imp_kv_book_close(imp_kv_book *b)
{
    if (b == NULL) return;
    imp_kv_store *s = b->store;
    imp_mutex_lock(s->lock);
    for (imp_kv_book **at = &s->books; *at != NULL; at = &(*at)->next) {
        if (*at != b) continue;
        *at = b->next; /* the thread takes it up no more */
        break;
    }
    while (b->in_use) imp_cond_wait(s->done, s->lock);
    imp_mutex_unlock(s->lock);
    imp_sys_free(b);
}

bool imp_kv_book_is_ready(imp_kv_book *b)
{
    imp_mutex_lock(b->store->lock);
    bool ready = b->ready;
    imp_mutex_unlock(b->store->lock);
    return ready;
}

bool imp_kv_book_has_room(imp_kv_book *b)
{
    imp_mutex_lock(b->store->lock);
    bool room = b->ready && b->store->queued_bytes < QUEUE_BYTES;
    imp_mutex_unlock(b->store->lock);
    return room;
}

double imp_kv_book_block_s(imp_kv_book *b)
{
    imp_mutex_lock(b->store->lock);
    double s = b->block_s;
    imp_mutex_unlock(b->store->lock);
    return s;
}

bool imp_kv_book_has(imp_kv_book *b, const uint64_t hash[2])
{
    char file[IMP_KV_FILE_NAME];
    uint64_t name[2];
    bool has = false;
    imp_mutex_lock(b->store->lock);
    if (b->ready) {
        imp_kv_file_name(b->store->key, &b->finder.model, hash, file);
        has = imp_kv_file_name_read(file, name) && imp_kv_index_find(&b->store->index, name) != NULL;
    }
    imp_mutex_unlock(b->store->lock);
    return has;
}

/* ---- saving ------------------------------------------------------------------------------------------------ */

void *imp_kv_book_buffer(imp_kv_book *b, uint32_t wait_ms)
{
    imp_kv_store *s = b->store;
    imp_mutex_lock(s->lock);
    while (b->ready && !s->full && s->queued_bytes >= QUEUE_BYTES && wait_ms > 0)
        if (!imp_cond_wait_ms(s->done, s->lock, wait_ms)) wait_ms = 0;
    bool room = b->ready && s->queued_bytes < QUEUE_BYTES;
    uint64_t bytes = room ? b->finder.model.block_bytes : 0; /* not the thread's any more once it is ready */
    s->queued_bytes += bytes;
    imp_mutex_unlock(s->lock);
    void *p = room ? imp_sys_malloc(bytes) : NULL;
    if (room && p == NULL) imp_kv_book_save(b, NULL, NULL);
    return p;
}

void imp_kv_book_save(imp_kv_book *b, const imp_kv_link *link, void *buffer)
{
    imp_kv_store *s = b->store;
    save *w = link != NULL ? imp_sys_calloc(1, sizeof *w) : NULL;
    imp_mutex_lock(s->lock);
    if (w != NULL) {
        w->model = b->finder.model;
        w->link = *link;
        memcpy(w->model_name, b->model_name, sizeof w->model_name);
        w->data = buffer;
        if (s->last != NULL)
            s->last->next = w;
        else
            s->first = w;
        s->last = w;
        imp_cond_broadcast(s->work);
    } else {
        s->queued_bytes -= b->finder.model.block_bytes;
    }
    imp_mutex_unlock(s->lock);
    if (w == NULL) imp_sys_free(buffer);
}

/* ---- loads --------------------------------------------------------------------------------------------------- */

imp_kv_load *imp_kv_load_new(imp_kv_book *b, const imp_kv_link *link, uint32_t n)
{
    imp_kv_store *s = b->store;
    imp_kv_load *l = imp_sys_calloc(1, sizeof *l + n * sizeof *link);
    if (l == NULL) return NULL;
    l->book = b;
    l->n = n;
    l->block_bytes = b->finder.model.block_bytes;
    memcpy(l->link, link, n * sizeof *link);
    imp_mutex_lock(s->lock);
    imp_kv_load **at = &s->loads; /* who came first is read first */
    while (*at != NULL) at = &(*at)->next;
    *at = l;
    imp_cond_broadcast(s->work);
    imp_mutex_unlock(s->lock);
    return l;
}

void *imp_kv_load_take(imp_kv_load *l, bool *over)
{
    imp_kv_store *s = l->book->store;
    imp_mutex_lock(s->lock);
    void *p = l->n_taken < l->n_read ? l->data[l->n_taken++ % AHEAD] : NULL;
    *over = p == NULL && l->over;
    if (p != NULL) {
        s->ahead_bytes -= l->block_bytes;
        imp_cond_broadcast(s->work);
    }
    imp_mutex_unlock(s->lock);
    return p;
}

bool imp_kv_load_has_news(imp_kv_load *l)
{
    imp_mutex_lock(l->book->store->lock);
    bool news = l->n_taken < l->n_read || l->over;
    imp_mutex_unlock(l->book->store->lock);
    return news;
}

void imp_kv_load_close(imp_kv_load *l)
{
    imp_kv_store *s = l->book->store;
    imp_mutex_lock(s->lock);
    l->closed = true;
    if (!l->busy) free_load(s, l);
    imp_mutex_unlock(s->lock);
}
