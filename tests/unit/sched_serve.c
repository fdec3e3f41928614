/* The scheduler's manners over a scripted device: known beginnings, pace beside prompts, embeddings beside generation,
 * turns among clients. Times are the device's own (virtual), so nothing depends on this machine. */
#include "test.h"

#include <math.h>

#include "base/thread.h"
#include "sched/sched_int.h"

enum { VOCAB = 53, EMBED_DIM = 2, MAX_BLOCK = 128, MAX_OUT = 64 };

/* Tokens lie in the blocks that the tables name; the next token is a hash of all that are read back. A step takes 1 ms and
 * 0.1 ms a token, an embedding 0.2 ms a token. */
typedef struct fake {
    imp_exec exec;
    imp_device dev;
    int32_t cell[MAX_BLOCK][IMP_KV_BLOCK];
    float logits[MAX_OUT * VOCAB];
    float vectors[64 * EMBED_DIM];
    uint64_t last_ns, now_ns;
    uint32_t n_computed, n_copied;
    uint32_t order[64], n_order; /* first token of prompts in the order they were begun */
} fake;

static double step_s(const imp_cost_shape *sh, bool embed)
{
    return embed ? 2e-4 * sh->n_tok : 1e-3 + 1e-4 * sh->n_tok;
}
static double predict(void *user, const imp_cost_shape *sh, bool embed)
{
    (void)user;
    return step_s(sh, embed);
}

static uint64_t mix(uint64_t h, int32_t id)
{
    return (h ^ (uint64_t)(uint32_t)id) * 0x9e3779b97f4a7c15ull + (h >> 29);
}

static imp_status fake_run(imp_exec *x, const imp_batch *b, const float **out, imp_error *err)
{
    (void)err;
    fake *f = (fake *)x;
    uint32_t o = 0, at = 0;
    bool embed = b->seq[0].block == NULL;
    imp_cost_shape sh = {.n_tok = b->n_tok};
    f->last_ns = (uint64_t)(step_s(&sh, embed) * 1e9);
    f->now_ns += f->last_ns;
    f->n_computed += b->n_tok;
    for (uint32_t i = 0; i < b->n_seq && !embed; i++) {
        const imp_batch_seq *s = &b->seq[i];
        at += s->n_tok;
        if (s->n_past == 0 && f->n_order < 64) f->order[f->n_order++] = (uint32_t)b->token[s->first_tok];
        for (uint32_t k = 0; k < s->n_tok; k++)
            f->cell[s->block[(s->n_past + k) / IMP_KV_BLOCK]][(s->n_past + k) % IMP_KV_BLOCK] =
                b->token[s->first_tok + k];
        for (; o < b->n_out && b->out_row[o] < at; o++) {
            uint64_t h = 1;
            for (uint32_t p = 0; p <= s->n_past + b->out_row[o] - s->first_tok; p++)
                h = mix(h, f->cell[s->block[p / IMP_KV_BLOCK]][p % IMP_KV_BLOCK]);
            for (int32_t v = 0; v < VOCAB; v++)
                f->logits[o * VOCAB + (uint32_t)v] = v == (int32_t)((h >> 33) % VOCAB);
        }
    }
    *out = embed ? f->vectors : f->logits;
    return IMP_OK;
}

static void fake_copy(imp_exec *x, uint32_t dst, uint32_t src)
{
    fake *f = (fake *)x;
    memcpy(f->cell[dst], f->cell[src], sizeof f->cell[dst]);
    f->n_copied++;
}

static uint64_t fake_ns(const imp_exec *x)
{
    return ((const fake *)x)->last_ns;
}

static const imp_device_ops fake_ops = {
    .kind = "fake", .run = fake_run, .kv_copy = fake_copy, .last_ns = fake_ns};

typedef struct client {
    const fake *f;
    int32_t got[600];
    uint64_t at_ns[600];
    size_t n_got;
    int n_done;
    imp_usage usage;
} client;

static void on_event(void *user, uint64_t id, const imp_event *ev)
{
    (void)id;
    client *c = user;
    for (size_t i = 0; ev->kind == IMP_EVENT_TEXT && i < ev->n_tokens; i++) {
        c->at_ns[c->n_got] = c->f->now_ns;
        c->got[c->n_got++] = ev->tokens[i].id;
    }
    if (ev->kind == IMP_EVENT_EMBEDDING) c->at_ns[c->n_got++] = c->f->now_ns;
    if (ev->kind == IMP_EVENT_DONE) c->n_done++, c->usage = ev->usage;
}

typedef struct rig {
    fake *f;
    imp_sched *s;
} rig;

static rig rig_new(uint32_t n_block, uint32_t n_parallel, double pace)
{
    static imp_net net;
    rig r = {.f = calloc(1, sizeof(fake))};
    r.f->dev.ops = &fake_ops;
    r.f->exec.dev = &r.f->dev;
    net = (imp_net){.cfg = {.n_vocab = VOCAB, .embed_dim = EMBED_DIM}};
    imp_sched_config c = {.net = &net,
                          .generate = &r.f->exec,
                          .embed = &r.f->exec,
                          .generate_limits = {.max_tok = 512,
                                              .max_seq = n_parallel,
                                              .max_out = 16,
                                              .max_ctx = 4096,
                                              .n_kv_block = n_block},
                          .embed_limits = {.max_tok = 4096, .max_seq = 64},
                          .n_ctx = 4096,
                          .n_queue = 100,
                          .pace = pace,
                          .hooks = {.predict = predict}};
    imp_error e;
    assert_int_equal(imp_sched_new(&c, &r.s, &e), IMP_OK);
    return r;
}

static void rig_free(rig *r)
{
    imp_sched_drop_cache(r->s);
    assert_int_equal(r->s->kv.n_free, r->s->kv.n_block);
    assert_int_equal(r->s->prefix.n_node, 0);
    imp_sched_free(r->s);
    free(r->f);
}

static int32_t ids[4096];
static uint64_t scope; /* of the next requests */

static void ask(rig *r, client *c, size_t n, uint32_t max_tok, uint64_t who, int32_t priority)
{
    static uint64_t id;
    imp_request q = {.kind = IMP_REQUEST_GENERATE,
                     .ids = ids,
                     .n_ids = &n,
                     .n_input = 1,
                     .max_tok = max_tok,
                     .want_logprobs = true,
                     .client = who,
                     .cache_scope = scope,
                     .priority = priority,
                     .on_event = on_event,
                     .user = c};
    q.sampling = (imp_sampling){.top_p = 1, .repeat_penalty = 1};
    imp_error e;
    *c = (client){.f = r->f};
    assert_int_equal(imp_sched_submit(r->s, &q, ++id, &e), IMP_OK);
}

static void finish(rig *r)
{
    while (imp_sched_has_work(r->s)) assert_true(imp_sched_step(r->s));
}

static void check(const client *c, size_t n, uint32_t max_tok)
{
    uint64_t h = 1;
    for (size_t i = 0; i < n; i++) h = mix(h, ids[i]);
    assert_int_equal(c->n_got, max_tok);
    for (uint32_t i = 0; i < max_tok; i++) {
        assert_int_equal(c->got[i], (h >> 33) % VOCAB);
        h = mix(h, c->got[i]);
    }
}

static void fill(uint64_t seed)
{
    rng r = {seed};
    for (size_t i = 0; i < IMP_COUNT(ids); i++) ids[i] = (int32_t)rng_below(&r, VOCAB);
}

/* The second request computes what is new; a whole prompt again computes one token; what differs inside a block is copied up
 * to there; and a generated answer counts as a beginning too. */
static void beginnings_are_not_computed_again(void **state)
{
    (void)state;
    rig r = rig_new(64, 4, 0);
    client c;
    fill(1);
    ask(&r, &c, 1000, 30, 0, 0), finish(&r), check(&c, 1000, 30);
    assert_int_equal(c.usage.n_cached, 0);
    uint32_t before = r.f->n_computed;
    ask(&r, &c, 1000, 30, 0, 0), finish(&r), check(&c, 1000, 30);
    assert_int_equal(c.usage.n_cached, 999);
    assert_int_equal(r.f->n_computed - before, 30); /* the last of the prompt, 29 generated */
    int32_t kept = ids[700];
    ids[700] = (kept + 1) % VOCAB; /* in block 10, 60 tokens in */
    ask(&r, &c, 1000, 5, 0, 0), finish(&r), check(&c, 1000, 5);
    assert_int_equal(c.usage.n_cached, 700);
    ids[700] = kept;
    memcpy(ids + 1000, (int32_t[]){0}, 4);
    ask(&r, &c, 1000, 40, 0, 0), finish(&r);
    memcpy(ids + 1000, c.got, 40 * sizeof ids[0]); /* the next turn of a chat: prompt, answer, more */
    ask(&r, &c, 1100, 5, 0, 0), finish(&r), check(&c, 1100, 5);
    assert_int_equal(c.usage.n_cached, 1039); /* the last token of an answer is never computed */
    ask(&r, &c, 64, 5, 0, 0), finish(&r),
        check(&c, 64, 5); /* a whole block: its last token must be computed */
    assert_int_equal(c.usage.n_cached, 63);
    ask(&r, &c, 1, 5, 0, 0), finish(&r), check(&c, 1, 5);
    assert_int_equal(c.usage.n_cached, 0);
    imp_stats st = {0};
    imp_sched_add_stats(r.s, &st);
    assert_int_equal(st.kv_block_used, 0);
    assert_true(st.kv_block_cached > 16 && st.n_cache_hit_tok == 999 + 700 + 999 + 1039 + 63);
    rig_free(&r);
}

/* Sixteen at once with one system prompt: it is computed once. */
static void shared_prompts_wait_for_the_first(void **state)
{
    (void)state;
    rig r = rig_new(128, 16, 0);
    static client c[16];
    fill(2);
    for (int i = 0; i < 16; i++) {
        ids[640] = i; /* ten whole blocks in common */
        ask(&r, &c[i], 650, 4, 0, 0);
    }
    finish(&r);
    for (int i = 0; i < 16; i++) ids[640] = i, check(&c[i], 650, 4);
    assert_true(r.f->n_computed < 640 + 16 * (10 + 4) + 64);
    rig_free(&r);
}

/* What one scope asked is news to another, whole blocks and ends alike, and while both run; it costs neither its own. */
static void scopes_share_nothing(void **state)
{
    (void)state;
    rig r = rig_new(128, 4, 0);
    static client c[3];
    fill(8);
    for (uint64_t round = 0; round < 2; round++)
        for (scope = 0; scope < 3; scope++) {
            ask(&r, &c[0], 300, 20, 0, 0), finish(&r), check(&c[0], 300, 20);
            assert_int_equal(c[0].usage.n_cached, round ? 299 : 0);
            ask(&r, &c[0], 30, 4, 0, 0), finish(&r), check(&c[0], 30, 4);
            assert_int_equal(c[0].usage.n_cached, 29); /* of its own */
        }
    fill(9);
    for (scope = 0; scope < 3; scope++) ask(&r, &c[scope], 640, 4, 0, 0);
    uint32_t before = r.f->n_computed;
    finish(&r);
    for (int i = 0; i < 3; i++) {
        check(&c[i], 640, 4);
        assert_int_equal(c[i].usage.n_cached, 0);
    }
    assert_true(r.f->n_computed - before >= 3 * 640);
    scope = 0;
    rig_free(&r);
}

/* Little room: what is used again and again outlives what came once. */
static void eviction_keeps_what_is_used(void **state)
{
    (void)state;
    rig r = rig_new(70, 2, 0);
    client c;
    for (uint64_t i = 0; i < 30; i++) {
        fill(1000);
        ask(&r, &c, 512, 2, 0, 0), finish(&r), check(&c, 512, 2);
        if (i > 0) assert_int_equal(c.usage.n_cached, 511);
        fill(2000 + i);
        ask(&r, &c, 900, 2, 0, 0), finish(&r), check(&c, 900, 2);
        assert_true(c.usage.n_cached < 8);
    }
    rig_free(&r);
}

/* Two streams run while a prompt of 4000 tokens is read: no token comes more than half later than it would alone. */
static void streams_keep_their_pace(void **state)
{
    (void)state;
    static client a, b, long_one;
    for (int paced = 0; paced < 2; paced++) {
        rig r = rig_new(128, 4, paced ? 1.4 : 0);
        fill(3);
        ask(&r, &a, 10, 400, 0, 0);
        fill(4);
        ask(&r, &b, 10, 400, 0, 0);
        for (int i = 0; i < 20; i++) imp_sched_step(r.s);
        fill(5);
        ask(&r, &long_one, 4000, 5, 0, 0);
        finish(&r);
        check(&long_one, 4000, 5);
        double most = 0, alone = 1e-3 + 2e-4;
        for (size_t i = 1; i < a.n_got; i++) most = fmax(most, (double)(a.at_ns[i] - a.at_ns[i - 1]) * 1e-9);
        if (paced)
            assert_true(most <= 1.5 * alone);
        else
            assert_true(most > 10 * alone); /* the test can tell the difference */
        if (paced) assert_true(long_one.at_ns[0] > a.at_ns[300]);
        rig_free(&r);
    }
}

/* Short prompts that come beside a stream are read at once, not in pieces, and generate together; also behind a long one
 * that is read in pieces. */
static void short_prompts_are_read_whole(void **state)
{
    (void)state;
    static client a, c[7], long_one;
    for (int with_long = 0; with_long < 2; with_long++) {
        rig r = rig_new(128, 12, 1.4);
        fill(20);
        ask(&r, &a, 10, 400, 0, 0);
        for (int i = 0; i < 5; i++) imp_sched_step(r.s);
        fill(21);
        if (with_long) ask(&r, &long_one, 3000, 5, 0, 0);
        imp_sched_step(r.s);
        for (uint64_t i = 0; i < 7; i++) fill(30 + i), ask(&r, &c[i], 64, 100, 0, 0);
        uint64_t from = r.f->now_ns;
        finish(&r);
        /* 448 tokens at once are 46 ms; in pieces that keep to 1.4 of a step they were more than 400 ms */
        for (int i = 0; i < 7; i++) assert_true(c[i].at_ns[0] - from < 60000000);
        for (uint64_t i = 0; i < 7; i++) fill(30 + i), check(&c[i], 64, 100);
        rig_free(&r);
    }
}

/* Short prompts that never end: what the stream loses to them is bounded, however many come. */
static void a_flood_of_short_prompts_is_paced(void **state)
{
    (void)state;
    static client a, c[200];
    rig r = rig_new(128, 2, 1.4); /* one at a time beside the stream */
    fill(40);
    ask(&r, &a, 10, 400, 0, 0);
    for (int i = 0; i < 5; i++) imp_sched_step(r.s);
    for (uint64_t i = 0; i < 90; i++) fill(50 + i), ids[0] = 1, ask(&r, &c[i], 100, 1, 0, 0);
    finish(&r);
    double alone = 1.1e-3, hold = 64 * alone, whole = (double)(a.at_ns[399] - a.at_ns[5]) * 1e-9;
    assert_true(whole > 394 * alone * 1.2 && whole < 394 * alone * 1.5 + hold);
    rig_free(&r);
}

/* Embeddings beside a stream: a given share of its time and no more, in the long run and a step; none is forgotten. */
static void embeddings_do_not_disturb(void **state)
{
    (void)state;
    static client gen, vec;
    rig r = rig_new(32, 4, 1.4);
    fill(6);
    ask(&r, &gen, 10, 300, 0, 0);
    imp_sched_step(r.s);
    size_t n[200];
    static int32_t text[200 * 20];
    for (int i = 0; i < 200; i++)
        n[i] = i % 2 ? 2 : 18; /* 0.4 and 3.6 ms; a step of the stream takes 1.1 ms */
    imp_request q = {.kind = IMP_REQUEST_EMBED,
                     .ids = text,
                     .n_ids = n,
                     .n_input = 200,
                     .on_event = on_event,
                     .user = &vec};
    vec = (client){.f = r.f};
    imp_error e;
    assert_int_equal(imp_sched_submit(r.s, &q, 9999, &e), IMP_OK);
    const double share = 0.25;
    double lane = 0, most = 0, used = 0;
    for (bool more = true; gen.n_done == 0 || more;) { /* as the engine does it */
        double d, t;
        (void)imp_sched_step_generate(r.s, &d);
        lane += share * d;
        (void)imp_sched_step_embed(r.s, d > 0 ? lane : INFINITY, &t, &more);
        lane -= t;
        if (gen.n_done > 0) continue;
        used += t;
        most = fmax(most, t);
        assert_true(lane >= -1e-12);
    }
    assert_int_equal(vec.n_got, 200);
    double whole = (double)(gen.at_ns[299] - gen.at_ns[0]) * 1e-9;
    assert_true(used > 0.15 * whole && whole <= 299 * 1.1e-3 * (1 + share) + 4e-3);
    assert_true(most <= 3.6e-3 + 1e-9); /* never more than one long input at once */
    rig_free(&r);
}

/* One client floods, another comes later: it does not wait for the flood. Less priority numbers go first of all. */
static void clients_take_turns(void **state)
{
    (void)state;
    static client flood[40], late, urgent;
    rig r = rig_new(64, 1, 0);
    for (int i = 0; i < 40; i++) {
        fill(100 + (uint64_t)i);
        ids[0] = 1;
        ask(&r, &flood[i], 20, 10, 7, 0);
    }
    for (int i = 0; i < 25; i++) imp_sched_step(r.s);
    fill(500), ids[0] = 2;
    ask(&r, &late, 20, 10, 8, 0);
    fill(501), ids[0] = 3;
    ask(&r, &urgent, 20, 10, 7, -5);
    finish(&r);
    uint32_t at_late = 0, at_urgent = 0;
    for (uint32_t i = 0; i < r.f->n_order; i++) {
        if (r.f->order[i] == 2) at_late = i;
        if (r.f->order[i] == 3) at_urgent = i;
    }
    assert_int_equal(at_urgent, 3); /* after those that had begun */
    assert_int_equal(at_late, 4);
    rig_free(&r);
}

/* Three clients, one asking three times as much at once: over a while each gets a third. */
static void turns_are_equal(void **state)
{
    (void)state;
    static client c[90];
    rig r = rig_new(64, 1, 0);
    for (int i = 0; i < 90; i++) {
        fill(1000 + (uint64_t)i);
        ids[0] = i < 54 ? 1 : i < 72 ? 2 : 3;
        ask(&r, &c[i], 20 + (size_t)(i % 7), 5, (uint64_t)ids[0], 0);
    }
    uint32_t n[4] = {0};
    while (r.f->n_order < 42) imp_sched_step(r.s);
    for (uint32_t i = 0; i < 42; i++) n[r.f->order[i]]++;
    for (int i = 1; i < 4; i++) assert_in_range(n[i], 13, 15);
    finish(&r);
    rig_free(&r);
}

/* The published vectors of SipHash-2-4 with 128 bits: key 00..0f, input 00, 01, .. */
static void siphash_is_siphash(void **state)
{
    (void)state;
    static const uint8_t want[2][16] = {
        {0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02, 0x93},
        {0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc, 0x45}};
    uint8_t key[16];
    for (uint8_t i = 0; i < 16; i++) key[i] = i;
    for (size_t n = 0; n < 2; n++) {
        uint64_t out[2];
        imp_siphash(key, key, n, out);
        for (int k = 0; k < 16; k++) assert_int_equal((uint8_t)(out[k / 8] >> (8 * (k % 8))), want[n][k]);
    }
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(siphash_is_siphash),
        cmocka_unit_test(beginnings_are_not_computed_again),
        cmocka_unit_test(shared_prompts_wait_for_the_first),
        cmocka_unit_test(scopes_share_nothing),
        cmocka_unit_test(eviction_keeps_what_is_used),
        cmocka_unit_test(streams_keep_their_pace),
        cmocka_unit_test(short_prompts_are_read_whole),
        cmocka_unit_test(a_flood_of_short_prompts_is_paced),
        cmocka_unit_test(embeddings_do_not_disturb),
        cmocka_unit_test(clients_take_turns),
        cmocka_unit_test(turns_are_equal),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
