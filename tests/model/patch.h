/* tests/model/patch.h - altered copies of the tiny models, for the tests of variants and refusals.
 *
 * Idea: a folder is copied with keys of config.json replaced and names or shapes in the safetensors header changed; a
 *       GGUF file with single values overwritten in place. Everything lands in one temporary folder. */
#ifndef TESTS_MODEL_PATCH_H
#define TESTS_MODEL_PATCH_H

#include "run.h"

#include <ftw.h>
#include <jansson.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char patch_dir[64];

static inline int patch_begin(void **state)
{
    (void)state;
    snprintf(patch_dir, sizeof patch_dir, "/tmp/impetus-model-XXXXXX");
    return mkdtemp(patch_dir) ? 0 : -1;
}

static inline int patch_remove(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type, (void)at;
    return remove(path);
}

static inline void patch_clear(const char *dir)
{
    nftw(dir, patch_remove, 8, FTW_DEPTH | FTW_PHYS);
}

static inline int patch_end(void **state)
{
    (void)state;
    patch_clear(patch_dir);
    return 0;
}

static inline uint8_t *read_all(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *p = malloc(*n + 1);
    if (!p || fread(p, 1, *n, f) != *n) fail_msg("cannot read %s", path);
    p[*n] = 0;
    fclose(f);
    return p;
}

static inline void write_all(const char *path, const void *p, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f) != 0) fail_msg("cannot write %s", path);
}

/* Names of the header: every occurrence of from in a name becomes to; shapes: see shape below. */
typedef struct folder_patch {
    const char *config;    /* JSON object merged into config.json; null removes nothing but sets null */
    const char *remove;    /* key taken out of config.json */
    const char *from, *to; /* rename tensors */
    const char *reshape;   /* this tensor [n] becomes [1][n] */
    const char *extra;     /* a tensor of one number under this name */
    bool no_pooling;       /* leave out modules.json and 1_Pooling */
} folder_patch;

static inline void replace_in(char *out, size_t n_out, const char *s, const char *from, const char *to)
{
    const char *hit = from ? strstr(s, from) : NULL;
    if (hit)
        snprintf(out, n_out, "%.*s%s%s", (int)(hit - s), s, to, hit + strlen(from));
    else
        snprintf(out, n_out, "%s", s);
}

static inline void patch_safetensors(const char *src, const char *dst, const folder_patch *p)
{
    size_t n = 0;
    uint8_t *file = read_all(src, &n);
    assert_non_null(file);
    uint64_t n_header;
    memcpy(&n_header, file, 8);
    json_t *h = json_loadb((char *)file + 8, n_header, 0, NULL), *out = json_object();
    size_t n_data = n - 8 - n_header;
    const char *key;
    json_t *v;
    json_object_foreach(h, key, v)
    {
        char name[256];
        replace_in(name, sizeof name, key, p->from, p->to);
        if (p->reshape && strcmp(key, p->reshape) == 0)
            json_array_insert_new(json_object_get(v, "shape"), 0, json_integer(1));
        json_object_set(out, name, v);
    }
    if (p->extra)
        json_object_set_new(out, p->extra,
                            json_pack("{s:s,s:[i],s:[I,I]}", "dtype", "F32", "shape", 1, "data_offsets",
                                      (json_int_t)n_data, (json_int_t)n_data + 4));
    char *text = json_dumps(out, JSON_COMPACT);
    uint64_t n_text = strlen(text);
    FILE *f = fopen(dst, "wb");
    assert_non_null(f);
    fwrite(&n_text, 8, 1, f);
    fwrite(text, 1, n_text, f);
    fwrite(file + 8 + n_header, 1, n_data, f);
    if (p->extra) fwrite("\0\0\200?", 1, 4, f);
    fclose(f);
    free(text);
    free(file);
    json_decref(h);
    json_decref(out);
}

static inline void patch_config(const char *src, const char *dst, const folder_patch *p)
{
    json_t *c = json_load_file(src, 0, NULL);
    assert_non_null(c);
    if (p->config) {
        json_t *add = json_loads(p->config, 0, NULL);
        if (!add) fail_msg("test case is no JSON: %s", p->config);
        json_object_update(c, add);
        json_decref(add);
    }
    if (p->remove) json_object_del(c, p->remove);
    assert_int_equal(json_dump_file(c, dst, 0), 0);
    json_decref(c);
}

/* An altered copy of tests/data/models/NAME; its path is written to out. */
static inline void make_folder(const char *name, const folder_patch *p, char *out, size_t n_out)
{
    static const char *const copies[] = {"modules.json", "1_Pooling/config.json",
                                         "sentence_bert_config.json"};
    char src[1024], dst[1024];
    snprintf(out, n_out, "%s/%s", patch_dir, name);
    patch_clear(out);
    mkdir(out, 0700);
    snprintf(src, sizeof src, "tests/data/models/%s/config.json", name);
    snprintf(dst, sizeof dst, "%s/config.json", out);
    patch_config(src, dst, p);
    snprintf(src, sizeof src, "tests/data/models/%s/model.safetensors", name);
    snprintf(dst, sizeof dst, "%s/model.safetensors", out);
    patch_safetensors(src, dst, p);
    for (size_t i = 0; i < IMP_COUNT(copies) && !p->no_pooling; i++) {
        size_t n = 0;
        snprintf(src, sizeof src, "tests/data/models/%s/%s", name, copies[i]);
        uint8_t *b = read_all(src, &n);
        if (!b) continue;
        snprintf(dst, sizeof dst, "%s/1_Pooling", out);
        mkdir(dst, 0700);
        snprintf(dst, sizeof dst, "%s/%s", out, copies[i]);
        write_all(dst, b, n);
        free(b);
    }
}

/* Where bytes occur in a file; fails when they do not. */
static inline uint8_t *find_bytes(uint8_t *p, size_t n, const char *s)
{
    size_t k = strlen(s);
    for (size_t i = 0; i + k <= n; i++)
        if (memcmp(p + i, s, k) == 0) return p + i;
    fail_msg("the file does not contain %s", s);
    return NULL;
}

#endif
