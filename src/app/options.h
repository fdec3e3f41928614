/* app/options.h - the one table of options: flags, help text, config keys and environment variables.
 *
 * Place:   read by main.c (parsing), help.c (text), config.c (file, environment) and every command (values).
 * Idea:    a row says everything about an option once; `--ctx 4096`, `ctx = 4096` in config.ini and IMPETUS_CTX=4096
 *          go through the same parser with the same limits. Flags win, then variables, then the file, then the default.
 * Always:  a name may stand in two rows when their sets of commands are disjoint (`--ids` of tokenize and of logits). */
#ifndef IMP_APP_OPTIONS_H
#define IMP_APP_OPTIONS_H

#include "base/base.h"

typedef enum app_cmd_id {
    CMD_SERVE,
    CMD_RUN,
    CMD_EMBED,
    CMD_TOKENIZE,
    CMD_DETOKENIZE,
    CMD_LOGITS,
    CMD_PERPLEXITY,
    CMD_BENCH,
    CMD_CHECK,
    CMD_CONVERT,
    CMD_DEVICES,
    CMD_PLAN,
    CMD_SHOW,
    CMD_CALIBRATE,
    CMD_EXPLAIN,
    CMD_RENDER,
    CMD_QUANTIZE,
    CMD_LIST,
    CMD_RM,
    CMD_PS,
    CMD_STOP,
    CMD_CACHE,
    N_CMD
} app_cmd_id;

#define C_(x)    (1u << CMD_##x)
#define CMDS_ALL ((1u << N_CMD) - 1u)
#define CMDS_GEN (C_(RUN))
#define CMDS_LOAD                                                                                            \
    (C_(SERVE) | C_(RUN) | C_(EMBED) | C_(TOKENIZE) | C_(DETOKENIZE) | C_(LOGITS) | C_(PERPLEXITY))
#define CMDS_SIZED (CMDS_LOAD | C_(PLAN))
#define CMDS_ASK   (C_(SERVE) | C_(PS) | C_(STOP))
#define CMDS_RULES (CMDS_SIZED | C_(DEVICES))
#define CMDS_DEV   (CMDS_SIZED | C_(BENCH))
#define CMDS_STORE                                                                                           \
    (C_(SERVE) | C_(RUN) | C_(EMBED) | C_(PLAN) | C_(CALIBRATE) | C_(EXPLAIN) | C_(DEVICES) | C_(QUANTIZE))

typedef enum app_opt_type {
    TYPE_BOOL,  /* --json, --json=no */
    TYPE_UINT,  /* whole number */
    TYPE_SEED,  /* whole number of 64 bits, or "random" */
    TYPE_FLOAT, /* decimal number */
    TYPE_BYTES, /* whole number with K, M or G behind it (powers of 1024) */
    TYPE_STR,
    TYPE_CHOICE, /* one of the words in `choices`, separated by | */
    TYPE_STRS,   /* repeatable */
    TYPE_UINTS   /* 16,128 */
} app_opt_type;

/* X(id, "name", short or 0, type, min, max, default or NULL, "METAVAR or choices", commands, "help") */
#define APP_OPT_LIST(X)                                                                                      \
    X(MODELS, "model", 'm', TYPE_STRS, 0, 0, NULL, "[NAME=]PATH", C_(SERVE),                                 \
      "a model to serve; repeat for more")                                                                   \
    X(PIN, "pin", 0, TYPE_BOOL, 0, 0, "yes", "", C_(SERVE),                                                  \
      "load the models of -m at once and keep them; --pin=no: as those of the store")                        \
    X(ON_DEMAND, "on-demand", 0, TYPE_BOOL, 0, 0, "yes", "", C_(SERVE),                                      \
      "models of the store are loaded when a request names one; --on-demand=no: only those of -m")           \
    X(MODELS_DIR, "models-dir", 0, TYPE_STRS, 0, 0, NULL, "DIR", C_(SERVE) | C_(LIST),                       \
      "a further folder with models; repeat for more")                                                       \
    X(ALIAS, "alias", 0, TYPE_STRS, 0, 0, NULL, "NAME=MODEL", C_(SERVE),                                     \
      "another name for a model; repeat for more")                                                           \
    X(LORA, "lora", 0, TYPE_STRS, 0, 0, NULL, "[NAME=]FILE[:SCALE]", CMDS_SIZED,                             \
      "an adapter (LoRA), GGUF or PEFT; serve: requests choose it by NAME, else it is always used; repeat "  \
      "for more")                                                                                            \
    X(LORA_DIR, "lora-dir", 0, TYPE_STR, 0, 0, NULL, "DIR", C_(SERVE),                                       \
      "clients may load adapters below this folder (POST /v1/load_lora_adapter)")                            \
    X(LORA_RANK, "max-lora-rank", 0, TYPE_UINT, 1, 4096, NULL, "N", C_(SERVE) | C_(PLAN),                    \
      "room for adapters that are loaded later, by rank; default 64 with --lora-dir, else as --lora needs")  \
    X(KEEP_ALIVE, "keep-alive", 0, TYPE_STR, 0, 0, "5m", "TIME", C_(SERVE),                                  \
      "how long a model that is not pinned stays loaded after its last request, such as 90s or 1h; -1: "     \
      "until others need the room")                                                                          \
    X(HOST, "host", 0, TYPE_STR, 0, 0, "127.0.0.1", "H", CMDS_ASK, "address of the server")                  \
    X(PORT, "port", 0, TYPE_UINT, 0, 65535, "8080", "P", CMDS_ASK, "its port; serve: 0 takes any free one")  \
    X(KEY_FILE, "api-key-file", 0, TYPE_STR, 0, 0, NULL, "FILE", CMDS_ASK,                                   \
      "file with the keys that clients must send, one a line: KEY [NAME] [priority=N] [cache=GROUP]")        \
    X(TLS_CERT, "tls-cert", 0, TYPE_STR, 0, 0, NULL, "FILE", C_(SERVE),                                      \
      "certificate (PEM) to serve HTTPS with; read again when it changes")                                   \
    X(TLS_KEY, "tls-key", 0, TYPE_STR, 0, 0, NULL, "FILE", C_(SERVE), "its private key (PEM, no password)")  \
    X(ACCESS_LOG, "access-log", 0, TYPE_STR, 0, 0, NULL, "FILE", C_(SERVE),                                  \
      "append a line of JSON for each request to FILE, without its texts; '-': stderr")                      \
    X(ORIGINS, "origin", 0, TYPE_STRS, 0, 0, NULL, "URL", C_(SERVE),                                         \
      "a web origin that may call; repeat for more")                                                         \
    X(ALLOW_HOSTS, "allow-host", 0, TYPE_STRS, 0, 0, NULL, "NAME", C_(SERVE),                                \
      "a further host name that clients may use; repeat for more")                                           \
    X(DRAIN, "drain", 0, TYPE_UINT, 0, 86400, "30", "S", C_(SERVE),                                          \
      "seconds that running answers get at the end")                                                         \
    X(MAX_BODY, "max-body", 0, TYPE_BYTES, 1024, 1e12, "32M", "SIZE", C_(SERVE), "largest request")          \
    X(MAX_CONN, "max-connections", 0, TYPE_UINT, 16, 1e6, "16384", "N", C_(SERVE),                           \
      "clients at once; fewer when the system allows fewer open files")                                      \
    X(QUEUE, "queue", 0, TYPE_UINT, 1, 1e6, "1024", "N", C_(SERVE), "requests that may wait before 429")     \
    X(DEVICE, "device", 0, TYPE_STR, 0, 0, NULL, "D,...", CMDS_DEV | C_(CALIBRATE) | C_(QUANTIZE),           \
      "where to compute: cpu, cuda (an NVIDIA GPU), coreml, ref (the slow reference), sim:PROFILE; "         \
      "default: all "                                                                                        \
      "there are")                                                                                           \
    X(POLICY, "policy", 0, TYPE_CHOICE, 0, 0, NULL, "latency|throughput|energy", CMDS_LOAD | C_(PLAN),       \
      "what devices are chosen by; default latency")                                                         \
    X(WATT_CAP, "watt-cap", 0, TYPE_FLOAT, 0.1, 100000, NULL, "W", CMDS_LOAD | C_(PLAN),                     \
      "leave out devices that draw more")                                                                    \
    X(JOULE_CAP, "joule-cap", 0, TYPE_FLOAT, 0.001, 1e9, NULL, "J", CMDS_LOAD | C_(PLAN),                    \
      "leave out choices that are thought to take more for a request")                                       \
    X(NPU_EMBED, "embeddings-on-npu", 0, TYPE_CHOICE, 0, 0, NULL, "auto|on|off", CMDS_RULES,                 \
      "embeddings only on NPUs, or never; auto: as measured (default)")                                      \
    X(NPU_MAX_MB, "max-npu-model-mb", 0, TYPE_UINT, 1, 1e9, NULL, "MB", CMDS_RULES,                          \
      "larger models never go to an NPU; default: as measured")                                              \
    X(MATRIX_UNITS, "gpu-matrix-units", 0, TYPE_CHOICE, 0, 0, NULL, "auto|off", CMDS_RULES,                  \
      "off: expect no more of a GPU than its plain f32 rate until it was measured")                          \
    X(COREML_UNITS, "coreml-units", 0, TYPE_CHOICE, 0, 0, NULL, "ane|all|cpu", CMDS_DEV,                     \
      "where Core ML may run: the Neural Engine and the CPU (default), everywhere, or the CPU alone")        \
    X(COREML_RUNTIME, "coreml-runtime", 0, TYPE_STR, 0, 0, NULL, "FILE", CMDS_DEV,                           \
      "a library in place of the system's Objective-C runtime and Core ML, for tests")                       \
    X(PACK_CACHE, "pack-cache", 0, TYPE_STR, 0, 0, NULL, "DIR|off", CMDS_DEV | C_(DEVICES),                  \
      "where packed weights are kept for the next start; default: among the user's caches")                  \
    X(PACK_CACHE_MAX, "pack-cache-max", 0, TYPE_BYTES, 0, 1e15, "32G", "SIZE", CMDS_DEV | C_(DEVICES),       \
      "packed weights kept at most; those not used for longest go first")                                    \
    X(KV_CACHE, "kv-cache", 0, TYPE_STR, 0, 0, NULL, "DIR", C_(SERVE) | C_(CACHE),                           \
      "where beginnings of prompts are kept for the next start; default: among the user's caches")           \
    X(KV_CACHE_MAX, "kv-cache-max", 0, TYPE_BYTES, 0, 1e15, "0", "SIZE", C_(SERVE),                          \
      "so much of them at most, those not used for longest go first; default 0: none, for they hold what "   \
      "prompts said")                                                                                        \
    X(DATABASE, "database", 0, TYPE_STR, 0, 0, NULL, "FILE", CMDS_STORE,                                     \
      "where calibration and explanations are kept; default: impetus.db among the user's data")              \
    X(ASSUME, "assume", 0, TYPE_STR, 0, 0, NULL, "PROFILE", C_(PLAN),                                        \
      "plan for a published machine, such as apple-m3-max; everything printed is SIMULATED")                 \
    X(PROFILES, "profiles", 0, TYPE_BOOL, 0, 0, NULL, "", C_(DEVICES), "list the published profiles")        \
    X(QUICK, "quick", 0, TYPE_BOOL, 0, 0, NULL, "", C_(CALIBRATE), "measure less, in about 3 seconds")       \
    X(THREADS, "threads", 't', TYPE_UINT, 1, 1024, NULL, "N",                                                \
      CMDS_DEV | C_(CHECK) | C_(CONVERT) | C_(DEVICES) | C_(CALIBRATE) | C_(QUANTIZE),                       \
      "compute threads; default: one a physical core")                                                       \
    X(CTX, "ctx", 'c', TYPE_UINT, 16, 16777216, NULL, "N", CMDS_SIZED,                                       \
      "tokens a sequence may hold; default: the model's own limit, as far as memory allows")                 \
    X(PARALLEL, "parallel", 0, TYPE_UINT, 1, 4096, NULL, "N", C_(SERVE) | C_(PLAN),                          \
      "sequences that generate at once; default 8")                                                          \
    X(STEP_TOK, "step-tokens", 0, TYPE_UINT, 1, 65536, NULL, "N", CMDS_DEV,                                  \
      "tokens one step may process; default 512")                                                            \
    X(MEMORY, "memory", 0, TYPE_BYTES, 1048576, 1e15, NULL, "SIZE", CMDS_SIZED,                              \
      "memory limit, such as 8G; default: what the machine has available")                                   \
    X(KV_TYPE, "kv-type", 0, TYPE_CHOICE, 0, 0, NULL, "f32|f16|q8_0|q4", CMDS_DEV,                           \
      "type of the KV cache; default f16; q4: 4-bit keys, 8-bit values")                                     \
    X(SPECULATE, "speculate", 0, TYPE_CHOICE, 0, 0, NULL, "auto|on|off", C_(SERVE) | C_(RUN),                \
      "guess tokens ahead from what the text repeats: where that changes no answer (auto, default), also "   \
      "elsewhere, or never")                                                                                 \
    X(MAX_TOK, "max-tokens", 'n', TYPE_UINT, 1, 16777216, NULL, "N", CMDS_GEN,                               \
      "tokens to generate at most; default: until the model ends or the context is full")                    \
    X(TEMP, "temp", 0, TYPE_FLOAT, 0, 100, NULL, "T", CMDS_GEN,                                              \
      "sampling temperature; 0 is greedy; default 0.8")                                                      \
    X(SEED, "seed", 's', TYPE_SEED, 0, 0, "random", "S", CMDS_GEN, "seed of the sampler, or 'random'")       \
    X(TOP_K, "top-k", 0, TYPE_UINT, 0, 2147483647, NULL, "K", CMDS_GEN,                                      \
      "keep the K likeliest tokens; 0: off; default 40")                                                     \
    X(TOP_P, "top-p", 0, TYPE_FLOAT, 0, 1, NULL, "P", CMDS_GEN,                                              \
      "keep the likeliest tokens up to this share; 1: off; default 0.95")                                    \
    X(MIN_P, "min-p", 0, TYPE_FLOAT, 0, 1, NULL, "P", CMDS_GEN,                                              \
      "drop tokens less likely than P times the best; 0: off; default 0.05")                                 \
    X(REPEAT_PENALTY, "repeat-penalty", 0, TYPE_FLOAT, 0.01, 100, NULL, "F", CMDS_GEN,                       \
      "make tokens of the window less likely; 1: off; default 1")                                            \
    X(REPEAT_LAST, "repeat-last", 0, TYPE_UINT, 0, 16777216, NULL, "N", CMDS_GEN,                            \
      "window of the penalties in tokens")                                                                   \
    X(STOP, "stop", 0, TYPE_STRS, 0, 0, NULL, "TEXT", CMDS_GEN, "end before this text; repeat for more")     \
    X(SYSTEM, "system", 0, TYPE_STR, 0, 0, NULL, "TEXT", CMDS_GEN, "system message of the chat")             \
    X(RAW, "raw", 0, TYPE_BOOL, 0, 0, NULL, "", CMDS_GEN,                                                    \
      "continue the prompt as it is, without a chat template")                                               \
    X(IGNORE_EOS, "ignore-eos", 0, TYPE_BOOL, 0, 0, NULL, "", CMDS_GEN, "go on after the end-of-text token") \
    X(VERBOSE, "verbose", 'v', TYPE_BOOL, 0, 0, NULL, "", C_(RUN) | C_(CHECK) | C_(CONVERT) | C_(SHOW),      \
      "say more: timings (run, on stderr), every tensor (check), metadata (show)")                           \
    X(DIMS, "dimensions", 0, TYPE_UINT, 1, 1048576, NULL, "N", C_(EMBED),                                    \
      "shorten the vectors to N numbers and normalise again")                                                \
    X(NO_NORM, "no-normalize", 0, TYPE_BOOL, 0, 0, NULL, "", C_(EMBED),                                      \
      "leave out the model's own normalisation")                                                             \
    X(IDS_ONLY, "ids", 0, TYPE_BOOL, 0, 0, NULL, "", C_(TOKENIZE), "print the ids only, in one line")        \
    X(NO_SPECIAL, "no-special", 0, TYPE_BOOL, 0, 0, NULL, "", C_(TOKENIZE) | C_(LOGITS),                     \
      "plain text: add no special tokens and recognise none in the text")                                    \
    X(SPECIAL, "special", 0, TYPE_BOOL, 0, 0, NULL, "", C_(DETOKENIZE), "spell special tokens too")          \
    X(IDS, "ids", 0, TYPE_UINTS, 0, 2147483647, NULL, "ID,...", C_(LOGITS), "token ids instead of a prompt") \
    X(AGAINST, "against", 0, TYPE_STR, 0, 0, NULL, "MODEL2", C_(PERPLEXITY),                                 \
      "compare with a second model: KL divergence and top-1 agreement")                                      \
    X(EMBED, "embed", 0, TYPE_BOOL, 0, 0, NULL, "", C_(BENCH), "measure embeddings instead of text")         \
    X(PP, "prompt", 'p', TYPE_UINTS, 1, 1048576, "512", "N,...", C_(BENCH), "prompt lengths to measure")     \
    X(TG, "gen", 'n', TYPE_UINTS, 1, 1048576, "128", "N,...", C_(BENCH), "generated lengths to measure")     \
    X(BATCHES, "batch", 'b', TYPE_UINTS, 1, 4096, "1", "B,...", C_(BENCH),                                   \
      "sequences at once (texts: default 1,32)")                                                             \
    X(DEPTHS, "depth", 'd', TYPE_UINTS, 0, 1048576, "0", "N,...", C_(BENCH),                                 \
      "tokens in the cache before generating")                                                               \
    X(TOKENS, "tokens", 0, TYPE_UINTS, 2, 1048576, "16,128", "N,...", C_(BENCH),                             \
      "text lengths of bench --embed")                                                                       \
    X(REPEAT, "repeat", 'r', TYPE_UINT, 1, 1000, "5", "R", C_(BENCH),                                        \
      "runs of each measurement; medians are printed")                                                       \
    X(PLAN_PROMPT, "prompt", 'p', TYPE_UINT, 1, 16777216, NULL, "P", C_(PLAN),                               \
      "prompt tokens that must fit")                                                                         \
    X(PLAN_GEN, "gen", 'n', TYPE_UINT, 1, 16777216, NULL, "G", C_(PLAN), "generated tokens that must fit")   \
    X(PLAN_BATCH, "batch", 'b', TYPE_UINT, 1, 4096, NULL, "B", C_(PLAN), "sequences at once; as --parallel") \
    X(PPL_WINDOWS, "windows", 0, TYPE_UINT, 1, 1e9, NULL, "N", C_(PERPLEXITY), "stop after N windows")       \
    X(TO, "to", 0, TYPE_CHOICE, 0, 0, NULL, "coreml", C_(CONVERT), "what to convert to")                     \
    X(BUCKETS, "buckets", 0, TYPE_UINTS, 1, 32768, "64,128,256,512", "N,...", C_(CONVERT),                   \
      "lengths in tokens, one function each")                                                                \
    X(COMPRESS, "compress", 0, TYPE_STR, 0, 0, "fp16", "FORM", C_(CONVERT),                                  \
      "fp16, lut4, lut6 (1|2|3|4|6|8; gN: a palette for N rows, t: one), int8, int4, int4b32, w8a8")         \
    X(FIT_TEXT, "calibration", 0, TYPE_STR, 0, 0, NULL, "FILE", C_(CONVERT),                                 \
      "one text a line, like those the model will see: compressed weights are fitted to it")                 \
    X(DECODE, "decode", 0, TYPE_UINT, 2, 32768, NULL, "N", C_(CONVERT),                                      \
      "models that generate: also a decode function with states for N tokens, and the head")                 \
    X(MAX_LOSS, "max-loss", 0, TYPE_FLOAT, 0, 1, NULL, "L", C_(CONVERT),                                     \
      "take the smallest form that loses at most L of the retrieval order, such as 0.005; with --compress: " \
      "that form, with matrices that matter kept in better ones")                                            \
    X(MIN_COSINE, "min-cosine", 0, TYPE_FLOAT, 0, 1, NULL, "C", C_(CONVERT),                                 \
      "the same for the smallest cosine of a vector with the model's own")                                   \
    X(PURE, "pure", 0, TYPE_BOOL, 0, 0, NULL, "", C_(CONVERT),                                               \
      "every matrix in the form of --compress, whatever is lost; else --calibration holds encoders to a "    \
      "cosine of 0.999 (int8, lut6, lut8) or a loss of 0.5 % (smaller forms, w8a8)")                         \
    X(VERIFY, "verify", 0, TYPE_BOOL, 0, 0, NULL, "", C_(CONVERT),                                           \
      "evaluate the package and compare it with the model")                                                  \
    X(TEXT, "text", 0, TYPE_STR, 0, 0, NULL, "FILE", C_(CONVERT), "one text a line to verify with")          \
    X(SPEC, "spec", 0, TYPE_UINT, 7, 10, NULL, "V", C_(CONVERT),                                             \
      "Core ML specification version; default: the lowest that can hold it")                                 \
    X(CHUNK, "chunk", 0, TYPE_BYTES, 1024, 1e12, NULL, "SIZE", C_(CONVERT),                                  \
      "weights of one package at most; default 950 MB")                                                      \
    X(TYPE, "type", 0, TYPE_STR, 0, 0, NULL, "T", C_(QUANTIZE),                                              \
      "type of the matrices: mixed, f32, f16, bf16, q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, q3_k, "  \
      "q2_k")                                                                                                \
    X(CALIBRATION, "calibration", 0, TYPE_STR, 0, 0, NULL, "FILE", C_(QUANTIZE) | C_(PLAN),                  \
      "a text to measure on: which columns matter, what types cost; mixed: default the model's own words")   \
    X(MIXED, "mixed", 0, TYPE_BOOL, 0, 0, NULL, "", C_(PLAN),                                                \
      "which type each part of the model should get, measured and priced")                                   \
    X(MAX_KL, "max-kl", 0, TYPE_FLOAT, 1e-6, 10, "0.01", "X", C_(PLAN) | C_(QUANTIZE),                       \
      "mixed: the divergence from the source that is allowed, nats a token")                                 \
    X(GOAL, "goal", 0, TYPE_CHOICE, 0, 0, "balance", "balance|time|size", C_(PLAN) | C_(QUANTIZE),           \
      "mixed: what is made small within that")                                                               \
    X(REPORT, "report", 0, TYPE_STR, 0, 0, NULL, "FILE", C_(QUANTIZE),                                       \
      "write what became of every tensor as JSON")                                                           \
    X(NO_MEASURE, "no-measure", 0, TYPE_BOOL, 0, 0, NULL, "", C_(DEVICES), "list only; measure nothing")     \
    X(GENERATION_PROMPT, "generation-prompt", 0, TYPE_BOOL, 0, 0, NULL, "", C_(RENDER),                      \
      "end where the assistant's answer begins")                                                             \
    X(JSON, "json", 0, TYPE_BOOL, 0, 0, NULL, "", CMDS_ALL, "one JSON document on stdout")                   \
    X(QUIET, "quiet", 'q', TYPE_BOOL, 0, 0, NULL, "", CMDS_ALL, "no progress on stderr")                     \
    X(LOG_LEVEL, "log-level", 0, TYPE_CHOICE, 0, 0, "warn", "error|warn|info|debug", CMDS_ALL,               \
      "what is logged on stderr")                                                                            \
    X(CPU_MASK, "cpu-mask", 0, TYPE_STR, 0, 0, NULL, "BITS", CMDS_ALL,                                       \
      "CPU features to use: 'avx2' (only these) or '-avx512' (not these)")                                   \
    X(CONFIG, "config", 0, TYPE_STR, 0, 0, NULL, "FILE", CMDS_ALL,                                           \
      "configuration file to read instead of the usual one")

typedef enum app_opt_id {
#define APP_X(id, ...) OPT_##id,
    APP_OPT_LIST(APP_X)
#undef APP_X
        N_OPT
} app_opt_id;

typedef struct app_opt {
    const char *name;
    char letter; /* 0: none */
    app_opt_type type;
    double min, max;
    const char *def;
    const char *meta; /* word for the value in help; TYPE_CHOICE: the choices */
    uint32_t cmds;
    const char *help;
} app_opt;

typedef struct app_value {
    bool set;       /* by a flag, a variable, the file or the default */
    bool explicit_; /* not by the default */
    bool on;
    uint64_t u;
    double f;
    const char *str;
    const char **strs; /* TYPE_STRS */
    uint64_t *uints;   /* TYPE_UINTS */
    size_t n;
} app_value;

typedef struct app_options {
    imp_arena *arena; /* owns every string and list; borrowed from the caller */
    app_cmd_id cmd;
    app_value v[N_OPT];
} app_options;

const char *app_cmd_name(app_cmd_id cmd);
const app_opt *app_opt_at(app_opt_id id);
/* The row of this name (or letter, then name is NULL) for the command; N_OPT: none. '_' counts as '-'. */
app_opt_id app_opt_find(app_cmd_id cmd, const char *name, size_t n_name, char letter);
/* The name of any command's option, whatever the command: a key that is known somewhere. */
bool app_opt_known(const char *name, size_t n_name);
bool app_opt_takes_value(const app_opt *o);

/* Parse text into option id; where: how the user wrote it ("--ctx", "IMPETUS_CTX", "config.ini line 3: ctx").
 * INVALID: err says what is wrong with the value and what would be right. */
imp_status app_opt_assign(app_options *o, app_opt_id id, const char *where, const char *text, imp_error *err);
imp_status app_opt_defaults(app_options *o, imp_error *err);

/* Flags and positional arguments of argv[0..argc-1] (after the command's name). *args points into arena. */
imp_status app_opt_parse_argv(app_options *o, int argc, char **argv, const char ***args, size_t *n_args,
                              bool *want_help, imp_error *err);
/* Variables, then the file, for whatever no flag has set. */
imp_status app_opt_parse_env(app_options *o, char **environ_, imp_error *err);
imp_status app_opt_parse_file(app_options *o, imp_error *err);

/* The word of the list nearest to `word`, NULL when none is near. next(ctx, i) gives word i, NULL at the end. */
const char *app_nearest(const char *word, const char *(*next)(const void *ctx, size_t i), const void *ctx);
const char *app_nearest_opt(app_cmd_id cmd, const char *name);

static inline bool opt_on(const app_options *o, app_opt_id id)
{
    return o->v[id].set && o->v[id].on;
}
static inline bool opt_set(const app_options *o, app_opt_id id)
{
    return o->v[id].set;
}
/* 0 when not set */
static inline uint32_t opt_u32(const app_options *o, app_opt_id id)
{
    return o->v[id].set ? (uint32_t)o->v[id].u : 0;
}
static inline const char *opt_str(const app_options *o, app_opt_id id)
{
    return o->v[id].set ? o->v[id].str : NULL;
}

#endif
