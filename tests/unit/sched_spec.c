/* Guesses over a device that only remembers tokens: answers are those without guesses, in fewer steps.
 *
 * The fake device derives each token from what it reads back through the block table: mostly from the last two tokens, so
 * that the text repeats itself, now and then from all of them, so that a guess that was wrong and left in the cache would
 * change the answer. The expected answer is computed here from the prompt alone. Its clock is the number of rows. */
#include "test.h"

#include "sched/sched_int.h"

enum { VOCAB = 23, MAX_BLOCK = 64, MAX_OUT = 64, RARE = 37 };

typedef struct fake {
    imp_exec exec;
    imp_device dev;
    int32_t cell[MAX_BLOCK][IMP_KV_BLOCK];
    float logits[MAX_OUT * VOCAB];
    uint64_t ns, a_row, sum_ns; /* of the last step; that each row adds to a step's 1000; of all steps */
    uint32_t most_tok, n_run;
    bool fresh; /* nothing repeats */
} fake;

static uint64_t mix(uint64_t h, int32_t id)
{
    return (h ^ (uint64_t)(uint32_t)id) * 0x9e3779b97f4a7c15ull + (h >> 29);
}

/* What follows ids[0..n-1]. */
static int32_t next_token(const fake *f, const int32_t *ids, uint32_t n)
{
    uint64_t h = 1;
    uint32_t from = f->fresh || n % RARE == 0 ? 0 : n - IMP_MIN(n, 2u);
    for (uint32_t i = from; i < n; i++) h = mix(h, ids[i]);
    return (int32_t)((h >> 33) % VOCAB);
}

static imp_status fake_run(imp_exec *x, const imp_batch *b, const float **out, imp_error *err)
{
    (void)err;
    fake *f = (fake *)x;
    static int32_t ids[1024];
    uint32_t o = 0;
    for (uint32_t i = 0; i < b->n_seq; i++) {
        const imp_batch_seq *s = &b->seq[i];
        for (uint32_t k = 0; k < s->n_tok; k++) {
            uint32_t pos = s->n_past + k;
            assert_int_equal(b->pos[s->first_tok + k], pos);
            f->cell[s->block[pos / IMP_KV_BLOCK]][pos % IMP_KV_BLOCK] = b->token[s->first_tok + k];
        }
        for (uint32_t p = 0; p < s->n_past + s->n_tok; p++)
            ids[p] = f->cell[s->block[p / IMP_KV_BLOCK]][p % IMP_KV_BLOCK];
        for (; o < b->n_out && b->out_row[o] < s->first_tok + s->n_tok; o++) {
            memset(f->logits + o * VOCAB, 0, VOCAB * sizeof(float));
            f->logits[o * VOCAB +
                      (uint32_t)next_token(f, ids, s->n_past + b->out_row[o] - s->first_tok + 1)] = 5;
        }
    }
    assert_int_equal(o, b->n_out);
    f->most_tok = IMP_MAX(f->most_tok, b->n_tok);
    f->ns = 1000 + b->n_tok * f->a_row;
    f->sum_ns += f->ns;
    f->n_run++;
    *out = f->logits;
    return IMP_OK;
}

static void fake_copy(imp_exec *x, uint32_t dst, uint32_t src)
{
    fake *f = (fake *)x;
    memcpy(f->cell[dst], f->cell[src], sizeof f->cell[dst]);
}

static uint64_t fake_ns(const imp_exec *x)
{
    return ((const fake *)x)->ns;
}

static const imp_device_ops any_rows = {
    .kind = "fake", .run = fake_run, .kv_copy = fake_copy, .last_ns = fake_ns, .same_rows = UINT32_MAX};
static const imp_device_ops eight_rows = {
    .kind = "fake", .run = fake_run, .kv_copy = fake_copy, .last_ns = fake_ns, .same_rows = 8};
static const imp_device_ops no_promise = {
    .kind = "fake", .run = fake_run, .kv_copy = fake_copy, .last_ns = fake_ns};

typedef struct client {
    int32_t got[600];
    size_t n_got;
    int n_done;
    imp_finish finish;
    imp_usage usage;
} client;

static void on_event(void *user, uint64_t id, const imp_event *ev)
{
    (void)id;
    client *c = user;
    assert_int_equal(c->n_done, 0);
    if (ev->kind == IMP_EVENT_TEXT)
        for (size_t i = 0; i < ev->n_tokens; i++) c->got[c->n_got++] = ev->tokens[i].id;
    if (ev->kind != IMP_EVENT_DONE) return;
    c->n_done++;
    c->finish = ev->finish;
    c->usage = ev->usage;
}

typedef struct rig {
    fake *f;
    imp_sched *s;
} rig;

static rig rig_new(const imp_device_ops *ops, int speculate, uint32_t n_block, uint32_t n_parallel,
                   uint32_t n_batch)
{
    rig r = {.f = calloc(1, sizeof(fake))};
    r.f->dev.ops = ops;
    r.f->exec.dev = &r.f->dev;
    r.f->a_row = 50;
    static const imp_net net = {.cfg = {.n_vocab = VOCAB}};
    imp_sched_config c = {.net = &net,
                          .generate = &r.f->exec,
                          .generate_limits = {.max_tok = n_batch,
                                              .max_seq = n_parallel,
                                              .max_out = MAX_OUT,
                                              .max_ctx = 512,
                                              .n_kv_block = n_block},
                          .n_ctx = 512,
                          .n_queue = 100,
                          .speculate = speculate};
    imp_error e;
    assert_int_equal(imp_sched_new(&c, &r.s, &e), IMP_OK);
    return r;
}

static void rig_free(rig *r)
{
    imp_sched_free(r->s);
    free(r->f);
}

static void submit(rig *r, uint64_t id, const int32_t *ids, size_t n, uint32_t max_tok, client *c)
{
    imp_request q = {.kind = IMP_REQUEST_GENERATE,
                     .ids = ids,
                     .n_ids = &n,
                     .n_input = 1,
                     .max_tok = max_tok,
                     .want_logprobs = true,
                     .on_event = on_event,
                     .user = c};
    q.sampling = (imp_sampling){.top_p = 1, .repeat_penalty = 1};
    imp_error e;
    memset(c, 0, sizeof *c);
    assert_int_equal(imp_sched_submit(r->s, &q, id, &e), IMP_OK);
}

static void check_answer(const fake *f, const int32_t *prompt, size_t n, uint32_t max_tok, const client *c)
{
    int32_t ids[1024];
    memcpy(ids, prompt, n * sizeof *ids);
    assert_int_equal(c->n_done, 1);
    assert_int_equal(c->finish, IMP_FINISH_LENGTH);
    assert_int_equal(c->n_got, max_tok);
    assert_int_equal(c->usage.n_generated, max_tok);
    for (uint32_t i = 0; i < max_tok; i++) {
        ids[n + i] = next_token(f, ids, (uint32_t)n + i);
        assert_int_equal(c->got[i], ids[n + i]);
    }
}

static void drain(rig *r)
{
    for (int i = 0; imp_sched_has_work(r->s); i++) {
        (void)imp_sched_step(r->s);
        assert_true(i < 100000);
    }
}

enum { N = 60 };

/* All lengths, pools that hold them all and pools that take memory back again and again, many at once and alone. */
static void guesses_change_no_answer(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_block, n_parallel, n_batch;
    } c[] = {{64, 8, 128}, {9, 8, 37}, {8, 16, 16}, {8, 1, 512}, {64, 2, 5}};
    static int32_t prompt[N][300];
    static client cl[N];
    for (size_t k = 0; k < IMP_COUNT(c); k++) {
        rng r = {k + 1};
        rig g = rig_new(&any_rows, 0, c[k].n_block, c[k].n_parallel, c[k].n_batch);
        size_t n[N];
        uint32_t max_tok[N];
        for (int i = 0; i < N; i++) {
            n[i] = 1 + rng_below(&r, rng_below(&r, 4) == 0 ? 300 : 20);
            max_tok[i] = 1 + rng_below(&r, 200);
            for (size_t p = 0; p < n[i]; p++) prompt[i][p] = (int32_t)rng_below(&r, VOCAB);
            submit(&g, (uint64_t)i + 1, prompt[i], n[i], max_tok[i], &cl[i]);
            if (rng_below(&r, 3) == 0) (void)imp_sched_step(g.s);
        }
        drain(&g);
        for (int i = 0; i < N; i++) check_answer(g.f, prompt[i], n[i], max_tok[i], &cl[i]);
        assert_true(g.f->most_tok <= c[k].n_batch);
        imp_stats st = {0};
        imp_sched_add_stats(g.s, &st);
        assert_true(st.n_accepted_tok > 0 && st.n_accepted_tok <= st.n_drafted_tok);
        uint64_t n_tok = 0;
        for (int i = 0; i < N; i++) n_tok += max_tok[i];
        assert_int_equal(st.n_generated_tok, n_tok);
        imp_sched_drop_cache(g.s);
        assert_int_equal(g.s->kv.n_free, g.s->kv.n_block); /* every block came back */
        rig_free(&g);
    }
}

/* Steps for 400 tokens of one request. */
static uint32_t steps(const imp_device_ops *ops, int speculate, uint64_t a_row, bool fresh,
                      uint32_t *most_tok)
{
    rig g = rig_new(ops, speculate, 16, 1, 64);
    static client c;
    int32_t prompt[2] = {1, 2};
    g.f->a_row = a_row;
    g.f->fresh = fresh;
    submit(&g, 1, prompt, 2, 400, &c);
    drain(&g);
    check_answer(g.f, prompt, 2, 400, &c);
    uint32_t n = g.f->n_run;
    if (most_tok != NULL) *most_tok = g.f->most_tok;
    rig_free(&g);
    return n;
}

static void repeated_text_takes_fewer_steps(void **state)
{
    (void)state;
    uint32_t most;
    uint32_t n = steps(&any_rows, 0, 50, false, &most);
    print_message("# 400 tokens of text that repeats itself in %u steps of up to %u rows\n", n, most);
    assert_true(n < 200 && most > 8);
    assert_int_equal(steps(&any_rows, -1, 50, false, &most), 400);
    assert_int_equal(most, 2); /* the prompt */
}

/* Where the device keeps a row's bits in steps of up to 8 rows only, guesses keep to that; where it promises nothing there
 * are none, unless they are asked for. */
static void guesses_keep_to_the_rows_that_change_nothing(void **state)
{
    (void)state;
    uint32_t most;
    uint32_t n = steps(&eight_rows, 0, 50, false, &most);
    assert_true(n < 200 && most == 8);
    assert_int_equal(steps(&no_promise, 0, 50, false, NULL), 400);
    assert_true(steps(&no_promise, 1, 50, false, NULL) < 200);
}

/* The time that n requests of 300 tokens take together. */
static double time_of(int speculate, int n, uint64_t a_row, bool fresh, uint64_t *n_drafted)
{
    rig g = rig_new(&any_rows, speculate, 64, 8, 64);
    static client cl[8];
    int32_t prompt[8][2];
    g.f->a_row = a_row;
    g.f->fresh = fresh;
    for (int i = 0; i < n; i++) {
        prompt[i][0] = prompt[i][1] = i;
        submit(&g, (uint64_t)i + 1, prompt[i], 2, 300, &cl[i]);
    }
    drain(&g);
    for (int i = 0; i < n; i++) check_answer(g.f, prompt[i], 2, 300, &cl[i]);
    imp_stats st = {0};
    imp_sched_add_stats(g.s, &st);
    *n_drafted = st.n_drafted_tok;
    double t = (double)g.f->sum_ns;
    rig_free(&g);
    return t;
}

/* Where a row costs as much as a step, or nothing repeats, alone and in a full batch: next to nothing is lost. Where a row
 * costs little, a batch gains too. */
static void guesses_stop_where_they_do_not_pay(void **state)
{
    (void)state;
    static const struct {
        int n;
        uint64_t a_row;
        bool fresh;
        double most;
    } c[] = {{1, 100000, false, 1.02}, {8, 100000, false, 1.02}, {1, 50, true, 1.02},
             {8, 50, true, 1.02},      {1, 50, false, 0.6},      {8, 50, false, 0.8}};
    for (size_t i = 0; i < IMP_COUNT(c); i++) {
        uint64_t n;
        double without = time_of(-1, c[i].n, c[i].a_row, c[i].fresh, &n);
        assert_int_equal(n, 0);
        double share = time_of(0, c[i].n, c[i].a_row, c[i].fresh, &n) / without;
        print_message("# %d at once, a row %g of a step, %s text: %.3f of the time, %llu guesses\n", c[i].n,
                      (double)c[i].a_row / (double)(1000 + c[i].a_row), c[i].fresh ? "fresh" : "repeated",
                      share, (unsigned long long)n);
        assert_true(share <= c[i].most);
    }
}

static void a_guess_is_the_longest_end_that_stood_before(void **state)
{
    (void)state;
    imp_spec_rates all;
    imp_spec_rates_init(&all);
    imp_spec p = {0};
    int32_t ids[64] = {5, 1, 2, 3, 9, 2, 3, 7, 1, 2, 3}, token[IMP_SPEC_MAX];
    float chance[IMP_SPEC_MAX];
    imp_spec_follow(&p, &all, ids, 11, 11);
    assert_int_equal(p.len, 3); /* "1 2 3", not the later "2 3" */
    assert_int_equal(imp_spec_guess(&p, &all, ids, 9, token, chance), 9);
    int32_t want[] = {9, 2, 3, 7, 1, 2, 3, 9, 2}; /* behind the end it goes round */
    assert_memory_equal(token, want, sizeof want);
    for (int i = 1; i < 9; i++) assert_true(chance[i] >= chance[i - 1]); /* longer matches are surer */
    float before = chance[0];
    ids[11] = 9;
    imp_spec_follow(&p, &all, ids, 12, 11);
    assert_int_equal(p.len, 4);
    ids[12] = 4; /* wrong: never seen */
    imp_spec_follow(&p, &all, ids, 13, 11);
    assert_int_equal(p.len, 0);
    assert_int_equal(imp_spec_guess(&p, &all, ids, 9, token, chance), 0);
    for (int i = 0; i < 200; i++) { /* guesses behind one token that are always wrong */
        int32_t pair[] = {8, 1, 8, 2};
        imp_spec q = {.rates = p.rates};
        imp_spec_follow(&q, &all, pair, 3, 3);
        imp_spec_follow(&q, &all, pair, 4, 3);
        p.rates = q.rates;
    }
    int32_t pair[] = {8, 1, 8};
    imp_spec q = {.rates = p.rates};
    imp_spec_follow(&q, &all, pair, 3, 3);
    assert_int_equal(imp_spec_guess(&q, &all, pair, 1, token, chance), 1);
    assert_true(chance[0] < 0.02f && chance[0] < before);
}

static void guessing_calls_no_heap(void **state)
{
    (void)state;
    rig g = rig_new(&any_rows, 0, 32, 4, 64);
    static client cl[4];
    int32_t prompt[3] = {1, 2, 3};
    for (int i = 0; i < 4; i++) submit(&g, (uint64_t)i + 1, prompt, 3, 400, &cl[i]);
    for (int i = 0; i < 10; i++) (void)imp_sched_step(g.s);
    uint64_t before = imp_sys_n_alloc();
    while (cl[0].n_got < 300) (void)imp_sched_step(g.s);
    assert_int_equal(imp_sys_n_alloc(), before);
    rig_free(&g);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(guesses_change_no_answer),
        cmocka_unit_test(repeated_text_takes_fewer_steps),
        cmocka_unit_test(guesses_keep_to_the_rows_that_change_nothing),
        cmocka_unit_test(guesses_stop_where_they_do_not_pay),
        cmocka_unit_test(a_guess_is_the_longest_end_that_stood_before),
        cmocka_unit_test(guessing_calls_no_heap),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
