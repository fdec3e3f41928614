/* tests/reference/peer_eval.c - one prompt of token ids through llama.cpp, to check our golden files against it.
 *
 * Place:  built against the library of build/peer by mk/peers.mk; no part of Impetus.
 * Use:    peer_eval MODEL.gguf logits|embed CONTEXT TRAINED [ADAPTER.gguf SCALE] < lines of ids
 *         writes f32 in host order to stdout: logits [ids][vocab], or one vector [dim], for each line.
 *         TRAINED replaces the original context that Phi-3's longrope compares CONTEXT with; 0: the file's.
 * Always: f32 KV cache, no flash attention, one thread, so that only the order of sums differs from a plain evaluation. */
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void quiet(enum ggml_log_level level, const char *text, void *user)
{
    (void)user;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static int evaluate(struct llama_context *ctx, const struct llama_model *model, int embed, llama_token *ids,
                    int n)
{
    struct llama_batch b = llama_batch_init(n, 0, 1);
    for (int i = 0; i < n; i++) {
        b.token[i] = ids[i];
        b.pos[i] = i;
        b.n_seq_id[i] = 1;
        b.seq_id[i][0] = 0;
        b.logits[i] = 1;
    }
    b.n_tokens = n;
    if (llama_get_memory(ctx)) llama_memory_clear(llama_get_memory(ctx), true);
    int rc = llama_model_has_encoder(model) || (embed && !llama_get_memory(ctx)) ? llama_encode(ctx, b)
                                                                                 : llama_decode(ctx, b);
    if (rc == 0 && embed) {
        const float *v = llama_get_embeddings_seq(ctx, 0);
        if (v)
            fwrite(v, sizeof *v, (size_t)llama_model_n_embd(model), stdout);
        else
            rc = 1;
    } else if (rc == 0) {
        size_t n_vocab = (size_t)llama_vocab_n_tokens(llama_model_get_vocab(model));
        for (int i = 0; i < n; i++) fwrite(llama_get_logits_ith(ctx, i), sizeof(float), n_vocab, stdout);
    }
    llama_batch_free(b);
    return rc;
}

int main(int argc, char **argv)
{
    if (argc != 5 && argc != 7) {
        fprintf(
            stderr,
            "usage: peer_eval MODEL.gguf logits|embed CONTEXT TRAINED [ADAPTER.gguf SCALE] < lines of ids\n");
        return 2;
    }
    int embed = !strcmp(argv[2], "embed");
    llama_log_set(quiet, NULL);
    struct llama_model_params mp = llama_model_default_params();
    struct llama_model_kv_override trained[2] = {
        {.tag = LLAMA_KV_OVERRIDE_TYPE_INT, .key = "phi3.rope.scaling.original_context_length"}};
    trained[0].val_i64 = atoi(argv[4]);
    if (trained[0].val_i64) mp.kv_overrides = trained;
    struct llama_model *model = llama_model_load_from_file(argv[1], mp);
    if (!model) return 1;
    struct llama_context_params cp = llama_context_default_params();
    cp.n_ctx = (uint32_t)atoi(argv[3]);
    cp.n_batch = cp.n_ubatch = cp.n_ctx;
    cp.n_threads = cp.n_threads_batch = 1;
    cp.type_k = cp.type_v = GGML_TYPE_F32;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    cp.embeddings = embed;
    struct llama_context *ctx = llama_init_from_model(model, cp);
    if (!ctx) return 1;
    if (argc == 7) {
        struct llama_adapter_lora *a = llama_adapter_lora_init(model, argv[5]);
        float scale = (float)atof(argv[6]);
        if (!a || llama_set_adapters_lora(ctx, &a, 1, &scale) != 0) return 1;
    }
    char line[1 << 16];
    int rc = 0;
    while (rc == 0 && fgets(line, sizeof line, stdin)) {
        llama_token ids[4096];
        int n = 0;
        for (char *p = strtok(line, " \n"); p && n < 4096; p = strtok(NULL, " \n")) ids[n++] = atoi(p);
        rc = n ? evaluate(ctx, model, embed, ids, n) : 0;
    }
    fflush(stdout);
    llama_free(ctx);
    llama_model_free(model);
    return rc != 0;
}
