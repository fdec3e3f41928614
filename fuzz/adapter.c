/* fuzz/adapter.c - any bytes as a low-rank adapter for a model: it is refused with a reason, or every part of it fits the
 * weight it changes, can be computed with to its last element, and is the same when it is opened again.
 *
 * Input: one byte, then a file. The byte's lowest bit 0: a GGUF file; 1: u32 n, n bytes of adapter_config.json, then the
 * tensors. Its next two bits choose the model. Run by `make fuzz`; its corpus (tools/gen/adapter_corpus.py) is replayed by
 * `make test`. Started in the repository's root, whose tests/data/models it opens. */
#include <math.h>
#include <stdlib.h>

#include "model/adapter.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { N_MODEL = 4 };

static volatile float sink; /* what was computed goes here, so that it is computed */

static void require(bool ok)
{
    if (!ok) abort();
}

/* Opened once: reading an adapter changes nothing in them. */
static const imp_net *model(unsigned i)
{
    static const char *const path[N_MODEL] = {"tests/data/models/llama.gguf", "tests/data/models/llama",
                                              "tests/data/models/nomic-bert.gguf", "tests/data/models/qwen3"};
    static imp_net *net[N_MODEL];
    imp_error err = {0};
    if (net[i] == NULL) require(imp_net_open(path[i], 0, &net[i], &err) == IMP_OK);
    return net[i];
}

/* y[n] = w[n][k] . x, as a device computes it. */
static void multiply(const imp_matmul *mm, const imp_tensor *w, const void *wp, const float *x, float *y)
{
    uint64_t n = w->dim[0], k = w->dim[1], n_scratch = mm->scratch_bytes != NULL ? mm->scratch_bytes(k) : 0;
    void *scratch = aligned_alloc(64, (n_scratch + 64) & ~63ull);
    require(scratch != NULL && mm->x_form == IMP_X_F32);
    mm->run(&(imp_matmul_args){.w = w,
                               .wp = wp,
                               .x = x,
                               .x_stride = k * sizeof *x,
                               .y = y,
                               .y_stride = n,
                               .m = 1,
                               .n1 = (uint32_t)n,
                               .scratch = scratch});
    free(scratch);
}

static float *numbers(uint64_t n)
{
    float *x = malloc(n * sizeof *x);
    require(x != NULL);
    for (uint64_t i = 0; i < n; i++) x[i] = 1;
    return x;
}

/* base: the weight that it changes, [n][k]; of an embedding [token][width]. */
static void check_part(const imp_adapter *a, const imp_adapter_part *p, const imp_tensor *base, bool embed)
{
    uint64_t rank = p->b.dim[1], n = base->dim[embed ? 1 : 0], k = base->dim[embed ? 0 : 1];
    require(rank >= 1 && rank <= a->rank && a->rank <= IMP_MAX_LORA_RANK && isfinite(p->scale));
    require(p->b.dim[0] == n && p->a.dim[0] == (embed ? k : rank) && p->a.dim[1] == (embed ? rank : k));
    float *x = numbers(k), *h = numbers(rank), *y = numbers(n);
    if (embed) {
        require(p->mm_a == NULL);
        for (uint64_t r = 0; r < k; r++) imp_tensor_row_f32(&p->a, r, h);
    } else {
        multiply(p->mm_a, &p->a, p->wp_a, x, h);
    }
    multiply(p->mm_b, &p->b, p->wp_b, h, y);
    sink = y[n - 1];
    free(x);
    free(h);
    free(y);
}

static void check_adapter(const imp_net *net, const imp_adapter *a)
{
    const imp_graph *graph[2] = {net->generate, net->embed};
    uint32_t n_part = 0;
    for (int i = 0; i < 2; i++)
        for (imp_val v = 1; graph[i] != NULL && v <= imp_graph_n(graph[i]); v++) {
            const imp_adapter_part *p = imp_adapter_at(a, graph[i], v);
            if (p == NULL) continue;
            const imp_node *node = imp_graph_node(graph[i], v);
            bool embed = node->op == IMP_OP_EMBED;
            require(embed || node->op == IMP_OP_LINEAR);
            const imp_node *w = imp_graph_node(graph[i], node->in[embed ? 0 : 1]);
            check_part(a, p, &w->u.weight.part[0], embed);
            n_part++;
        }
    require(n_part > 0);
}

/* A copy that ends where it ends, so that a read past it is seen; as aligned as a mapped file. */
static uint8_t *copy_of(const uint8_t *p, size_t n)
{
    uint8_t *c = malloc(n + (n == 0));
    require(c != NULL);
    if (n > 0) memcpy(c, p, n);
    return c;
}

static imp_status open_adapter(const imp_net *net, const uint8_t *config, size_t n_config,
                               const uint8_t *file, size_t n, bool peft, imp_adapter **a)
{
    imp_error err = {0};
    imp_status s = peft ? imp_adapter_from_peft(net, (const char *)config, n_config, file, n, a, &err)
                        : imp_adapter_from_gguf(net, file, n, a, &err);
    require((s == IMP_OK) == (*a != NULL));
    require(s == IMP_OK || (err.status == s && err.text[0] != 0 && strchr(err.text, '\n') == NULL));
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t n_config = 0;
    if (size < 1) return 0;
    bool peft = data[0] & 1;
    const imp_net *net = model(data[0] >> 1 & 3);
    data++, size--;
    if (peft) {
        if (size < sizeof n_config) return 0;
        memcpy(&n_config, data, sizeof n_config);
        data += sizeof n_config, size -= sizeof n_config;
        if (n_config > size) return 0;
    }
    uint8_t *config = copy_of(data, n_config), *file = copy_of(data + n_config, size - n_config);
    imp_adapter *a = NULL, *again = NULL;
    imp_status s = open_adapter(net, config, n_config, file, size - n_config, peft, &a);
    if (s == IMP_OK) {
        check_adapter(net, a);
        require(open_adapter(net, config, n_config, file, size - n_config, peft, &again) == IMP_OK);
        require(memcmp(a->id, again->id, sizeof a->id) == 0 && a->bytes == again->bytes);
    }
    imp_adapter_unref(a);
    imp_adapter_unref(again);
    free(config);
    free(file);
    return 0;
}
