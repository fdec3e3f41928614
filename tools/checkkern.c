/* tools/checkkern.c - checks every CPU kernel variant, and measures those that passed.
 *
 * usage:   checkkern [--op PART] [--mask BITS] [--seed N] [--bench] [--json FILE]
 *            --op     only variants whose name (matmul/q8_0_avx2, vec/neon, attn/ref) contains PART
 *            --mask   CPU feature bits to use, as IMPETUS_CPU_MASK: avx2,avxvnni or -avx512
 * Idea:    the lists of src/kern expand into what is run here: a new variant is checked by its list line alone. Each runs in
 *          a forked child, so that a crash is one variant's failure. Variants this CPU lacks are reported "not run here".
 * Always:  exit code 0 only when every variant that could run passed. */
#include <sys/wait.h>

#include "../tests/kern/check_attn.h"
#include "../tests/kern/check_matmul.h"
#include "../tests/kern/check_vec.h"
#include "../tests/kern/bench.h"

enum op_kind { OP_CPU, OP_MATMUL, OP_VEC, OP_ATTN };
enum verdict { NOT_RUN, PASSED, FAILED };
enum { MAX_BENCH = 12, MAX_ITEM = 128 };

struct item {
    char name[64];
    enum op_kind kind;
    const void *variant;
    uint64_t cpu;
    enum verdict verdict;
    double worst, seconds;
    struct bench_result bench[MAX_BENCH];
    size_t n_bench;
};

struct options {
    const char *op, *json;
    uint64_t mask, seed;
    bool bench;
};

/* ---- the descriptors agree with the lists; selection and the mask do what kern.h says ---------------------------- */
static const struct listed {
    const char *name;
    uint64_t bits;
} listed_matmul[] = {
#define X(wtype, isa, bits) {#wtype "_" #isa, bits},
#include "kern/matmul_list.inc"
#undef X
};

static void check_lists(struct check *c)
{
    snprintf(c->where, sizeof c->where, "lists");
    for (size_t i = 0; i < IMP_COUNT(listed_matmul); i++) {
        const imp_matmul *v = imp_matmul_at(i);
        if (v == NULL || strcmp(v->name, listed_matmul[i].name) != 0 || v->cpu != listed_matmul[i].bits)
            fail(c, "descriptor differs from its line", i, 0, 0, 0);
        else if (v->n_step == 0 || v->k_multiple == 0 || (v->pack == NULL) != (v->packed_bytes == NULL))
            fail(c, "descriptor is incomplete", i, 0, 0, 0);
    }
    if (imp_matmul_at(IMP_COUNT(listed_matmul)) != NULL) fail(c, "more variants than lines", 0, 0, 0, 0);
    for (int t = 0; t < IMP_N_DTYPE; t++) {
        const imp_dtype_info *info = imp_dtype_get((imp_dtype)t);
        bool weight = t == IMP_AFFINE || (info && info->to_f32);
        for (uint64_t k = 1; k <= 4096; k *= 2) {
            const imp_matmul *v = imp_matmul_select((imp_dtype)t, k);
            if ((v != NULL) != weight) fail(c, "selection", (size_t)t, v != NULL, weight, 0);
            if (v && (k % v->k_multiple != 0 || (v->dtype != IMP_DTYPE_NONE && v->dtype != (imp_dtype)t)))
                fail(c, "selected variant does not fit", (size_t)t, 0, 0, 0);
        }
    }
    uint64_t mask = 1;
    if (!imp_cpu_mask_parse("avx2,neon", &mask) || mask != (IMP_CPU_AVX2 | IMP_CPU_NEON))
        fail(c, "mask", 0, 0, 0, 0);
    if (!imp_cpu_mask_parse("-avx512", &mask) || mask != ~(uint64_t)IMP_CPU_AVX512)
        fail(c, "mask", 1, 0, 0, 0);
    if (!imp_cpu_mask_parse("0x3", &mask) || mask != 3) fail(c, "mask", 2, 0, 0, 0);
    if (imp_cpu_mask_parse("sse9", &mask) || imp_cpu_mask_parse("0xg", &mask))
        fail(c, "mask nonsense", 3, 0, 0, 0);
    uint64_t all = imp_cpu_features();
    imp_cpu_set_mask(0);
    if (imp_cpu_features() != 0 || imp_vec_get()->cpu != 0 || imp_attn_get()->cpu != 0 ||
        imp_peak_get()->cpu != 0 || imp_matmul_select(IMP_Q8_0, 64)->cpu != 0)
        fail(c, "mask 0", 0, 0, 0, 0);
    imp_cpu_set_mask(all);
}

/* ---- items ------------------------------------------------------------------------------------------------------------ */
static struct item *add_item(struct item *items, size_t *n, enum op_kind kind, const void *variant,
                             uint64_t cpu, const char *group, const char *name)
{
    if (*n == MAX_ITEM) {
        fprintf(stderr, "checkkern: more than %d variants: raise MAX_ITEM\n", MAX_ITEM);
        exit(3);
    }
    struct item *it = &items[(*n)++];
    *it = (struct item){.kind = kind, .variant = variant, .cpu = cpu};
    snprintf(it->name, sizeof it->name, "%s/%s", group, name);
    return it;
}

static size_t collect(struct item *items)
{
    size_t n = 0;
    add_item(items, &n, OP_CPU, NULL, 0, "cpu", "lists");
    const imp_matmul *m;
    const imp_vec *v;
    const imp_attn *a;
    for (size_t i = 0; (v = imp_vec_at(i)) != NULL; i++)
        add_item(items, &n, OP_VEC, v, v->cpu, "vec", v->isa);
    for (size_t i = 0; (a = imp_attn_at(i)) != NULL; i++)
        add_item(items, &n, OP_ATTN, a, a->cpu, "attn", a->isa);
    for (size_t i = 0; (m = imp_matmul_at(i)) != NULL; i++)
        add_item(items, &n, OP_MATMUL, m, m->cpu, "matmul", m->name);
    return n;
}

/* ---- in the child -------------------------------------------------------------------------------------------------- */
struct child_report {
    double worst;
    size_t n_bench;
    struct bench_result bench[MAX_BENCH];
};

static int child_main(const struct item *it, const struct options *o, const struct ceilings *ceil, int out)
{
    static struct check c;
    static struct child_report r;
    c.rng = o->seed;
    switch (it->kind) {
    case OP_CPU: check_lists(&c); break;
    case OP_MATMUL: check_matmul(&c, it->variant); break;
    case OP_VEC: check_vec(&c, it->variant); break;
    case OP_ATTN: check_attn(&c, it->variant); break;
    }
    r.worst = c.worst;
    if (!c.failed && o->bench) {
        if (it->kind == OP_MATMUL) r.n_bench = bench_matmul(it->variant, ceil, r.bench, MAX_BENCH);
        if (it->kind == OP_VEC) r.n_bench = bench_vec(it->variant, ceil, r.bench, MAX_BENCH);
        if (it->kind == OP_ATTN) r.n_bench = bench_attn(it->variant, ceil, r.bench, MAX_BENCH);
    }
    if (write(out, &r, sizeof r) != (ssize_t)sizeof r) return 3;
    return c.failed ? 1 : 0;
}

static void run_item(struct item *it, const struct options *o, const struct ceilings *ceil)
{
    int fd[2], state = 0;
    uint64_t begin = imp_now_ns();
    fflush(NULL);
    pid_t pid = -1;
    if (pipe(fd) != 0 || (pid = fork()) < 0) {
        fprintf(stderr, "checkkern: cannot start a child\n");
        exit(3);
    }
    if (pid == 0) {
        close(fd[0]);
        _exit(child_main(it, o, ceil, fd[1]));
    }
    close(fd[1]);
    static struct child_report r;
    size_t got = 0;
    ssize_t n;
    while (got < sizeof r && (n = read(fd[0], (uint8_t *)&r + got, sizeof r - got)) > 0) got += (size_t)n;
    close(fd[0]);
    waitpid(pid, &state, 0);
    it->seconds = (double)(imp_now_ns() - begin) / 1e9;
    it->verdict = WIFEXITED(state) && WEXITSTATUS(state) == 0 && got == sizeof r ? PASSED : FAILED;
    if (WIFSIGNALED(state))
        fprintf(stderr, "checkkern: %s: killed by signal %d\n", it->name, WTERMSIG(state));
    if (got != sizeof r) return;
    it->worst = r.worst;
    it->n_bench = r.n_bench;
    memcpy(it->bench, r.bench, sizeof r.bench);
}

/* ---- report --------------------------------------------------------------------------------------------------------- */
static const char *const verdict_names[] = {"not run here", "passed", "FAILED"};

static void print_item(const struct item *it)
{
    printf("%-28s %-12s", it->name, verdict_names[it->verdict]);
    if (it->verdict == PASSED)
        printf("  worst error %3.0f %% of the bound  %.1f s", 100 * it->worst, it->seconds);
    printf("\n");
    for (size_t i = 0; i < it->n_bench; i++) {
        const struct bench_result *b = &it->bench[i];
        printf("    %-36s %10.4f ms %8.1f GB/s %8.1f GOP/s", b->what, b->ms, b->gb_s, b->gop_s);
        if (b->share > 0) printf("  %3.0f %% of %s", 100 * b->share, b->bound);
        printf("\n");
    }
}

static void print_features(FILE *f, const char *sep, const char *quote)
{
    const char *s = "";
    for (unsigned i = 0; i < 64; i++) {
        if (!(imp_cpu_features() >> i & 1) || !imp_cpu_bit_name(i)) continue;
        fprintf(f, "%s%s%s%s", s, quote, imp_cpu_bit_name(i), quote);
        s = sep;
    }
}

static bool write_json(const char *path, const struct item *items, size_t n, const struct ceilings *c)
{
    FILE *f = fopen(path, "w");
    if (f == NULL) return false;
    fprintf(f, "{\"cpu\":[");
    print_features(f, ",", "\"");
    fprintf(f, "],\"ceilings\":{\"read_gb_s\":%.2f", c->read_gb_s);
    for (size_t i = 0; i < c->n_isa; i++)
        fprintf(f, ",\"%s\":{\"int8_gop_s\":%.1f,\"w4a8_gop_s\":%.1f,\"f32_gflop_s\":%.1f}", c->isa[i].isa,
                c->isa[i].int8_gop_s, c->isa[i].w4a8_gop_s, c->isa[i].f32_gop_s);
    fprintf(f, "},\"variants\":[");
    for (size_t i = 0; i < n; i++) {
        const struct item *it = &items[i];
        fprintf(f, "%s\n{\"name\":\"%s\",\"result\":\"%s\",\"worst\":%.4f,\"bench\":[", i ? "," : "",
                it->name, verdict_names[it->verdict], it->worst);
        for (size_t j = 0; j < it->n_bench; j++) {
            const struct bench_result *b = &it->bench[j];
            fprintf(
                f,
                "%s{\"what\":\"%s\",\"ms\":%.5f,\"gb_s\":%.2f,\"gop_s\":%.2f,\"share\":%.4f,\"of\":\"%s\"}",
                j ? "," : "", b->what, b->ms, b->gb_s, b->gop_s, b->share, b->bound);
        }
        fprintf(f, "]}");
    }
    fprintf(f, "]}\n");
    return fclose(f) == 0;
}

static bool parse_options(int argc, char **argv, struct options *o)
{
    *o = (struct options){.mask = UINT64_MAX, .seed = 1};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        char *end = NULL;
        if (strcmp(argv[i], "--bench") == 0) {
            o->bench = true;
            continue;
        }
        if (value == NULL) return false;
        if (strcmp(argv[i], "--op") == 0)
            o->op = value;
        else if (strcmp(argv[i], "--json") == 0)
            o->json = value;
        else if (strcmp(argv[i], "--mask") == 0 && imp_cpu_mask_parse(value, &o->mask))
            end = NULL;
        else if (strcmp(argv[i], "--seed") == 0 && (o->seed = strtoull(value, &end, 0), *end == 0))
            end = NULL;
        else
            return false;
        i++;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct options o;
    if (!parse_options(argc, argv, &o)) {
        fprintf(stderr, "usage: checkkern [--op PART] [--mask BITS] [--seed N] [--bench] [--json FILE]\n");
        return 2;
    }
    imp_cpu_set_mask(o.mask);
    static struct item items[MAX_ITEM];
    size_t n = collect(items), count[3] = {0}, kept = 0;
    struct ceilings ceil = {0};
    printf("cpu: ");
    print_features(stdout, " ", "");
    printf("\n");
    if (o.bench) {
        ceil = measure_ceilings();
        printf("ceilings of one thread: read %.1f GB/s\n", ceil.read_gb_s);
        for (size_t i = 0; i < ceil.n_isa; i++)
            printf("    %-12s int8 %.0f GOP/s, 4 by 8 bits %.0f GOP/s, f32 %.0f GFLOP/s\n", ceil.isa[i].isa,
                   ceil.isa[i].int8_gop_s, ceil.isa[i].w4a8_gop_s, ceil.isa[i].f32_gop_s);
    }
    for (size_t i = 0; i < n; i++) {
        if (o.op && strstr(items[i].name, o.op) == NULL) continue;
        struct item *it = &items[kept++];
        if (it != &items[i]) *it = items[i];
        if ((imp_cpu_features() & it->cpu) == it->cpu) run_item(it, &o, &ceil);
        count[it->verdict]++;
        print_item(it);
    }
    printf("%zu passed, %zu failed, %zu not run here\n", count[PASSED], count[FAILED], count[NOT_RUN]);
    if (o.json && !write_json(o.json, items, kept, &ceil)) {
        fprintf(stderr, "checkkern: cannot write %s\n", o.json);
        return 1;
    }
    return count[FAILED] > 0 || kept == 0;
}
