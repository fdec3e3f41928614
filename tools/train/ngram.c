/* tools/train/ngram.c - held-out perplexity of a 5-gram model, the baseline that impetus-nano has to beat.
 *
 * Place:   a program of its own: cc -O2 -o ngram tools/train/ngram.c -lm
 *          ngram TRAIN.u16 TEST.u16...    files of 16-bit token ids as prepare.py writes them
 * Idea:    interpolated modified Kneser-Ney: the highest order counts occurrences, every lower one the distinct
 *          words in front; three discounts an order from the counts of counts; order 0 is uniform.
 * Layout:  per order one open-addressing table of n-grams (64-bit fingerprints) and one of their contexts.
 * Source:  Chen and Goodman 1998, An Empirical Study of Smoothing Techniques, section 3. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { ORDER = 5, VOCAB = 8192 };

typedef struct gram {
    uint64_t key; /* 0: free */
    uint32_t n, ctx;
} gram;

typedef struct context {
    uint64_t key;
    uint64_t total;
    uint32_t types[3]; /* with count 1, 2, 3 and more */
} context;

static struct level {
    gram *g;
    context *c;
    uint64_t g_mask, c_mask;
    double discount[4];
} level[ORDER + 1];

static void die(const char *what)
{
    fprintf(stderr, "ngram: %s\n", what);
    exit(1);
}

static uint64_t fingerprint(const uint16_t *t, int n)
{
    uint64_t h = 0x9E3779B97F4A7C15u * (uint64_t)(n + 1);
    for (int i = 0; i < n; i++) {
        h ^= t[i] + 1u;
        h *= 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    return h ? h : 1;
}

static gram *find_gram(struct level *l, uint64_t key)
{
    uint64_t i = key & l->g_mask;
    while (l->g[i].key && l->g[i].key != key) i = (i + 1) & l->g_mask;
    return &l->g[i];
}

static context *find_context(struct level *l, uint64_t key)
{
    uint64_t i = key & l->c_mask;
    while (l->c[i].key && l->c[i].key != key) i = (i + 1) & l->c_mask;
    return &l->c[i];
}

static void count(const uint16_t *t, int n)
{
    for (; n >= 1; t++, n--) { /* a gram seen for the first time is one more word in front of its tail */
        struct level *l = &level[n];
        uint64_t key = fingerprint(t, n);
        gram *g = find_gram(l, key);
        g->n++;
        if (g->key) return;
        g->key = key;
        context *c = find_context(l, fingerprint(t, n - 1));
        c->key = fingerprint(t, n - 1);
        g->ctx = (uint32_t)(c - l->c);
    }
}

static void finish(struct level *l)
{
    double of[5] = {0};
    for (uint64_t i = 0; i <= l->g_mask; i++) {
        const gram *g = &l->g[i];
        if (!g->key) continue;
        context *c = &l->c[g->ctx];
        c->total += g->n;
        c->types[(g->n > 3 ? 3 : g->n) - 1]++;
        if (g->n <= 4) of[g->n]++;
    }
    double y = of[1] / (of[1] + 2 * of[2]);
    for (int k = 1; k <= 3; k++) l->discount[k] = of[k] > 0 ? k - (k + 1) * y * of[k + 1] / of[k] : 0;
}

/* Probability of t[n-1] after the n-1 words before it. */
static double probability(const uint16_t *t, int n)
{
    double p = 1.0 / VOCAB;
    for (int k = 1; k <= n; k++) {
        struct level *l = &level[k];
        const uint16_t *s = t + (n - k);
        const context *c = find_context(l, fingerprint(s, k - 1));
        if (!c->key) break;
        const gram *g = find_gram(l, fingerprint(s, k));
        double mine = g->key ? g->n - l->discount[g->n > 3 ? 3 : g->n] : 0, left = 0;
        for (int j = 0; j < 3; j++) left += l->discount[j + 1] * c->types[j];
        p = (mine + left * p) / (double)c->total;
    }
    return p;
}

static uint16_t *load(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END)) die(path);
    long size = ftell(f);
    rewind(f);
    uint16_t *t = malloc((size_t)size + 1);
    if (!t || size < 2 || fread(t, 1, (size_t)size, f) != (size_t)size) die(path);
    fclose(f);
    *n = (size_t)size / 2;
    return t;
}

int main(int argc, char **argv)
{
    if (argc < 3) die("usage: ngram TRAIN.u16 TEST.u16...");
    size_t n;
    uint16_t *t = load(argv[1], &n);
    for (int k = 1; k <= ORDER; k++) {
        uint64_t size = 1 << 16;
        while (k > 1 && size < 2 * n) size *= 2;
        level[k].g = calloc(size, sizeof(gram));
        level[k].c = calloc(size, sizeof(context));
        level[k].g_mask = level[k].c_mask = size - 1;
        if (!level[k].g || !level[k].c) die("out of memory");
    }
    for (size_t i = 0; i + ORDER <= n; i++) count(t + i, ORDER);
    for (int k = 1; k <= ORDER; k++) finish(&level[k]);
    double sum = 0; /* a distribution sums to one: checked on a context of the training text */
    for (int w = 0; w < VOCAB; w++) {
        uint16_t s[ORDER] = {t[100], t[101], t[102], t[103], (uint16_t)w};
        sum += probability(s, ORDER);
    }
    if (fabs(sum - 1) > 1e-6) die("probabilities do not sum to one");
    for (int a = 2; a < argc; a++) {
        size_t m;
        uint16_t *x = load(argv[a], &m);
        double nll = 0;
        for (size_t i = 1; i < m; i++) {
            int k = i + 1 < ORDER ? (int)i + 1 : ORDER;
            nll -= log(probability(x + i + 1 - k, k));
        }
        printf("{\"file\":\"%s\",\"tokens\":%zu,\"ppl\":%.3f}\n", argv[a], m - 1, exp(nll / (double)(m - 1)));
        free(x);
    }
    return 0;
}
