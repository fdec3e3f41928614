/* engine/folder.c - which models a folder holds, and what they are called. */
#include "engine/folder.h"

#include <stdio.h>

static const char *const g_suffix[] = {".gguf", ".safetensors"};

static bool ends_with(const char *s, size_t n, const char *tail)
{
    size_t k = strlen(tail);
    return n > k && memcmp(s + n - k, tail, k) == 0;
}

char *imp_model_default_id(const char *path)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    size_t begin = n;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    for (size_t i = 0; i < IMP_COUNT(g_suffix); i++)
        if (ends_with(path + begin, n - begin, g_suffix[i])) n -= strlen(g_suffix[i]);
    char *id = imp_sys_malloc(n - begin + 1);
    if (id == NULL) return NULL;
    memcpy(id, path + begin, n - begin);
    id[n - begin] = '\0';
    return id;
}

typedef struct walk {
    const char *folder;
    void (*fn)(void *user, const char *id, const char *path);
    void *user;
} walk;

static void look_at(void *user, const char *name)
{
    const walk *w = user;
    char path[4096], config[4200];
    int n = snprintf(path, sizeof path, "%s/%s", w->folder, name);
    if (name[0] == '.' || n < 0 || (size_t)n >= sizeof path || !imp_utf8_valid(name, strlen(name))) return;
    (void)snprintf(config, sizeof config, "%s/config.json", path);
    bool file = ends_with(name, strlen(name), ".gguf") && imp_sys_is_file(path);
    if (!file && !imp_sys_is_file(config)) return;
    char *id = imp_model_default_id(path);
    if (id != NULL) w->fn(w->user, id, path);
    imp_sys_free(id);
}

imp_status imp_folder_models(const char *folder, void (*fn)(void *user, const char *id, const char *path),
                             void *user, imp_error *err)
{
    walk w = {folder, fn, user};
    return imp_sys_list(folder, look_at, &w, err);
}
