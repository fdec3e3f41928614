/* fuzz/replay.c - a main() for a fuzz target without libFuzzer: every file of a corpus folder, once.
 *
 * usage: NAME-replay FOLDER      prints one line of TAP; a folder without files is a failure */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The whole file in a block of exactly its size, so that a sanitiser sees the first byte behind it. */
static int replay(const char *folder, const char *name)
{
    char path[4096];
    int n_path = snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = n_path > 0 && (size_t)n_path < sizeof path ? fopen(path, "rb") : NULL;
    if (f == NULL) return 0;
    if (fseek(f, 0, SEEK_END) != 0 || ftell(f) < 0) {
        fclose(f);
        return 0;
    }
    size_t n = (size_t)ftell(f);
    rewind(f);
    uint8_t *p = malloc(n > 0 ? n : 1);
    int ok = p != NULL && fread(p, 1, n, f) == n;
    fclose(f);
    if (ok) {
        printf("# %s\n", name); /* the last one printed is the one that crashed */
        fflush(stdout);
        (void)LLVMFuzzerTestOneInput(p, n);
    }
    free(p);
    return ok;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    DIR *d = opendir(argv[1]);
    unsigned n = 0, bad = 0;
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.') continue;
        if (replay(argv[1], e->d_name))
            n++;
        else
            bad++;
    }
    if (d != NULL) closedir(d);
    printf("1..1\n%s 1 - %s: %u files replayed, %u unreadable\n", n > 0 && bad == 0 ? "ok" : "not ok",
           argv[1], n, bad);
    return n > 0 && bad == 0 ? 0 : 1;
}
