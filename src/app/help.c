/* app/help.c - the commands, their help text, and what the user may have meant.
 *
 * Place:   main.c and options.c ask it. The text of an option comes from the table in options.h. */
#include "app/app.h"

static const app_cmd commands[N_CMD] = {
    [CMD_SERVE] =
        {"serve", "[-m MODEL]... [-m NAME=MODEL]... [--port P]", "serve models over HTTP", 0, 0,
         "Loads the models of -m; those of the store and of --models-dir are loaded when a request names "
         "one, "
         "and go\n"
         "when others need the memory or nobody has used them for --keep-alive. Answers the OpenAI API "
         "(chat, completions, embeddings, streaming) and the\n"
         "embeddings of the Ollama API. Ctrl-C lets running answers finish; a second one stops at once.",
         cmd_serve},
    [CMD_RUN] =
        {"run", "MODEL [PROMPT]", "continue a prompt, or chat", 1, 2,
         "With a PROMPT (or text on standard input) the answer is written to standard output. Without one on "
         "a\n"
         "terminal a chat begins: /help lists what it understands, Ctrl-C stops an answer, Ctrl-D leaves.\n"
         "The model's chat template is used unless --raw is given.",
         cmd_run},
    [CMD_EMBED] =
        {"embed", "MODEL [TEXT...|-]", "texts to vectors, one JSON line a text", 1, SIZE_MAX,
         "Each TEXT gives one line with a JSON array. '-', or no TEXT, reads one text a line from standard "
         "input.",
         cmd_embed},
    [CMD_TOKENIZE] =
        {"tokenize", "MODEL [TEXT|-]", "text to token ids", 1, 2,
         "Special tokens are added as the model wants them and recognised in the text, unless --no-special.",
         cmd_tokenize},
    [CMD_DETOKENIZE] = {"detokenize", "MODEL ID...", "token ids to text", 2, SIZE_MAX,
                        "IDs stand apart or with commas between them.", cmd_detokenize},
    [CMD_LOGITS] =
        {"logits", "MODEL [PROMPT] [--ids ID,...]", "logits after every position of a prompt", 1, 2,
         "For comparing with other engines: --json gives {\"ids\":[...],\"logits\":[[...] per position]}.\n"
         "Without --json: the ten likeliest next tokens.",
         cmd_logits},
    [CMD_PERPLEXITY] =
        {"perplexity", "MODEL FILE [--against MODEL2]", "how well a model predicts a text", 2, 2,
         "The text is cut into windows of --ctx tokens (default 512) that do not overlap; a window's first\n"
         "token is replaced by BOS when the model adds one; the second half of each window is scored with\n"
         "the first half as its context. This is the method of llama.cpp's perplexity tool.\n"
         "--against compares the distributions of MODEL with those of MODEL2 on the same positions:\n"
         "KL(MODEL2 || MODEL), and how often both name the same likeliest token.",
         cmd_perplexity},
    [CMD_BENCH] = {"bench", "MODEL", "measure prefill and decode speed beside the machine's ceilings", 1, 1,
                   "Runs the compiled graph on the device, without sampling: prefill of --prompt tokens, "
                   "then --gen steps\n"
                   "at --depth with --batch sequences. Read bandwidth and arithmetic peaks are measured in "
                   "the same run.",
                   cmd_bench},
    [CMD_CHECK] = {"check", "MODEL|PACKAGE", "check a model's files", 1, 1,
                   "Structure, every tensor's values (NaN, infinity, range), tokenizer round trips and "
                   "special tokens.\n"
                   "Exit code 1 when something is wrong.",
                   cmd_check},
    [CMD_CONVERT] =
        {"convert", "MODEL OUT.mlpackage --to coreml", "a model as a Core ML package", 2, 2,
         "Models that embed become one function a length; models that generate become the prefill of "
         "--buckets tokens,\n"
         "which gives keys and values, in as many packages as --chunk asks for. What would run on the "
         "Apple Neural Engine\n"
         "is predicted, not measured.",
         cmd_convert},
    [CMD_DEVICES] = {"devices", "", "what this machine has, with measured ceilings", 0, 0,
                     "Cores, caches, memory and instruction sets, and what was measured just now: read "
                     "bandwidth, int8 and\n"
                     "f32 peaks. Hardware that this build has no driver for is listed as such.",
                     cmd_devices},
    [CMD_PLAN] =
        {"plan", "MODEL", "what a model would take and where it would run", 1, 1,
         "Memory as the allocator will take it, the largest context that fits, and every device (and pair: "
         "prefill on\n"
         "one, decode on another) with predicted times, or the reason why not. --assume plans for a "
         "published "
         "machine.",
         cmd_plan},
    [CMD_CALIBRATE] =
        {"calibrate", "", "measure this machine's devices and keep the result", 0, 0,
         "Read bandwidth, arithmetic peaks, the cost of an op, and matrix products of each weight type at "
         "common\n"
         "sizes. Predictions start from it; it counts while hardware, system and driver stay as they are.",
         cmd_calibrate},
    [CMD_EXPLAIN] =
        {"explain", "REQUEST_ID|last", "why a request ran where it did", 1, 1,
         "Every candidate with predicted times, what bound it, exclusions with reasons, the runner-up, and "
         "what\n"
         "really happened. The last 1000 requests of run, embed and serve are kept.",
         cmd_explain},
    [CMD_SHOW] = {"show", "MODEL", "what a model is", 1, 1,
                  "Architecture, sizes, types, tokenizer. -v adds the file's metadata.", cmd_show},
    [CMD_RENDER] =
        {"render", "MODEL|FILE.jinja CONVERSATION.json", "the prompt text that a chat becomes", 2, 2,
         "CONVERSATION.json holds {\"messages\":[...],\"tools\":[...]}; other keys are variables of the "
         "template. '-' reads it\n"
         "from standard input. MODEL's own template and its BOS and EOS are used, or those of the file.",
         cmd_render},
    [CMD_QUANTIZE] =
        {"quantize", "IN OUT.gguf --type T", "a model's matrices in another type", 2, 2,
         "IN is a GGUF file. Norms, biases and the like stay as they are; a tensor whose rows are no whole "
         "blocks of T\n"
         "gets a type with smaller blocks, and the command says so. --calibration lets the model read a text "
         "first and\n"
         "weighs errors by how strongly each column is used.",
         cmd_quantize},
    [CMD_LIST] = {"list", "", "the models in the store", 0, 0,
                  "What a bare name finds: the user's models, those that came with the program, and those of "
                  "--models-dir.",
                  cmd_list},
    [CMD_RM] =
        {"rm", "MODEL", "remove a model from the store", 1, 1,
         "MODEL is a name of the user's own store. A server that has it loaded goes on with it until it "
         "is unloaded.",
         cmd_rm},
    [CMD_CACHE] = {"cache", "[list|clear]", "beginnings of prompts that are kept on disk", 0, 1,
                   "What 'impetus serve --kv-cache-max SIZE' has saved, by model; clear removes all of it. A "
                   "server may "
                   "run\n"
                   "meanwhile: what is gone counts as never saved.",
                   cmd_cache},
    [CMD_PS] =
        {"ps", "", "the models that a running server has loaded", 0, 0,
         "Asks the server at --host and --port: memory, device, context, and when it will be unloaded.",
         cmd_ps},
    [CMD_STOP] =
        {"stop", "MODEL", "unload a model from a running server", 1, 1,
         "Requests that run are finished first. The next request that names it loads it again. Models "
         "that are pinned\n"
         "(-m) stay.",
         cmd_stop},
};

const app_cmd *app_cmd_at(app_cmd_id id)
{
    return &commands[id];
}

const char *app_cmd_name(app_cmd_id id)
{
    return commands[id].name;
}

app_cmd_id app_cmd_find(const char *name)
{
    for (int i = 0; i < N_CMD; i++)
        if (!strcmp(commands[i].name, name)) return (app_cmd_id)i;
    return N_CMD;
}

/* ---- what was meant ------------------------------------------------------------------------------- */

/* Edits (insert, delete, replace, swap of neighbours) from a to b; 99 when either is long. */
static unsigned edit_distance(const char *a, const char *b)
{
    enum { CAP = 32 };
    unsigned d[CAP + 1][CAP + 1];
    size_t na = strlen(a), nb = strlen(b);
    if (na > CAP || nb > CAP) return 99;
    for (size_t i = 0; i <= na; i++) d[i][0] = (unsigned)i;
    for (size_t j = 0; j <= nb; j++) d[0][j] = (unsigned)j;
    for (size_t i = 1; i <= na; i++)
        for (size_t j = 1; j <= nb; j++) {
            unsigned best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            best = IMP_MIN(best, IMP_MIN(d[i - 1][j], d[i][j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                best = IMP_MIN(best, d[i - 2][j - 2] + 1);
            d[i][j] = best;
        }
    return d[na][nb];
}

const char *app_nearest(const char *word, const char *(*next)(const void *ctx, size_t i), const void *ctx)
{
    const char *best = NULL, *w;
    unsigned best_d = 99;
    for (size_t i = 0; (w = next(ctx, i)) != NULL; i++) {
        unsigned d = edit_distance(word, w);
        if (d < best_d) best_d = d, best = w;
    }
    size_t n = strlen(word);
    return best_d <= (n <= 3 ? 1u : n <= 7 ? 2u : 3u) ? best : NULL;
}

static const char *nth_cmd(const void *ctx, size_t i)
{
    (void)ctx;
    return i < N_CMD ? commands[i].name : NULL;
}

const char *app_nearest_cmd(const char *name)
{
    return app_nearest(name, nth_cmd, NULL);
}

static const char *nth_opt(const void *ctx, size_t n)
{
    app_cmd_id cmd = *(const app_cmd_id *)ctx;
    for (int i = 0; i < N_OPT; i++)
        if ((app_opt_at((app_opt_id)i)->cmds & (1u << cmd)) && n-- == 0)
            return app_opt_at((app_opt_id)i)->name;
    return NULL;
}

const char *app_nearest_opt(app_cmd_id cmd, const char *name)
{
    return app_nearest(name, nth_opt, &cmd);
}

/* ---- text ------------------------------------------------------------------------------------------- */

void app_help_all(FILE *to)
{
    fputs("impetus " IMPETUS_VERSION " - serves language models and embeddings on the machine at hand\n\n"
          "usage: impetus COMMAND [ARGUMENT...] [--FLAG...]\n\n",
          to);
    for (int i = 0; i < N_CMD; i++) fprintf(to, "  %-12s%s\n", commands[i].name, commands[i].brief);
    fputs("  help        this text; 'impetus help COMMAND' tells more\n"
          "  --version   the version\n\n"
          "MODEL is a GGUF file, a folder with config.json and safetensors, or a .safetensors file in one.\n"
          "--json prints one JSON document on standard output. Every flag --some-flag is also the key "
          "some-flag of\n"
          "config.ini and the variable IMPETUS_SOME_FLAG; flags win, then variables, then the file.\n"
          "Exit codes: 0 ok, 1 failed, 2 wrong usage.\n",
          to);
}

static void help_opt(FILE *to, const app_opt *o)
{
    char left[64], head[4] = "";
    if (o->letter) snprintf(head, sizeof head, "-%c,", o->letter);
    snprintf(left, sizeof left, "%3s --%s%s%s", head, o->name, o->meta[0] ? " " : "", o->meta);
    fprintf(to, "  %-28s%s%s", left, strlen(left) > 27 ? " " : "", o->help);
    if (o->def) fprintf(to, "; default %s", o->def);
    fputc('\n', to);
}

void app_help_cmd(FILE *to, app_cmd_id id)
{
    const app_cmd *c = &commands[id];
    fprintf(to, "usage: impetus %s %s\n\n%s\n\n", c->name, c->usage, c->text);
    for (int i = 0; i < N_OPT; i++)
        if (app_opt_at((app_opt_id)i)->cmds & (1u << id)) help_opt(to, app_opt_at((app_opt_id)i));
    fputs("   -h, --help               this text\n", to);
}
