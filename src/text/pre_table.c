/* text/pre_table.c - the pre-tokenizers that GGUF files name, as data.
 *
 * Idea:    tokenizer.ggml.pre names what tokenizer.json spells out: a list of regular expressions, each isolating its
 *          matches in the pieces the ones before left, then bytes mapped to the visible alphabet. A name that is not
 *          here is refused: a near miss costs quality silently.
 * Source:  the tokenizer.json of the models named; llama.cpp's llama-vocab.cpp for which name stands for which. */
#include "text/internal.h"

#define CONTRACT_I "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACES     "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER      "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define LOWER      "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"

#define GPT2   "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LLAMA3 CONTRACT_I "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES
#define QWEN2  CONTRACT_I "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES
#define GPT4O                                                                                                \
    "[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]*[" LOWER "]+" CONTRACT_I "?|[^\\r\\n\\p{L}\\p{N}]?[" UPPER            \
    "]+[" LOWER "]*" CONTRACT_I "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES
#define TEKKEN                                                                                               \
    "[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]*[" LOWER "]+|[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]+[" LOWER               \
    "]*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES
#define DEEPSEEK_V3                                                                                          \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"     \
    " ?[\\p{P}\\p{S}]+[\\r\\n]*|" SPACES
/* letters with case, as DeepSeek lists them */
#define DEEPSEEK_LETTERS                                                                                     \
    "\\s?["                                                                                                  \
    "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}"          \
    "\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}"                    \
    "\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}"          \
    "\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}"          \
    "\\x{1CBD}-\\x{1CBF}\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}"        \
    "\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}"         \
    "\\x{1F5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}"         \
    "\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}"        \
    "\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}"          \
    "\\x{2126}\\x{2128}\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}"                   \
    "\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}"                   \
    "\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}"         \
    "\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}"        \
    "\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}"                       \
    "\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}"                   \
    "\\x{1E900}-\\x{1E943}"                                                                                  \
    "]+"
#define CJK_HANGUL "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"
#define CJK_KANA   "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+"
#define WIDE_PUNCT "\\s?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]+"

const char imp_pre_gpt2[] = GPT2;

static const imp_pre_def table[] = {
    {"gpt-2", {GPT2}, false, false, false},
    {"phi-2", {GPT2}, false, false, false},
    {"mpt", {GPT2}, false, false, false},
    {"olmo", {GPT2}, false, false, false},
    {"jais", {GPT2}, false, false, false},
    {"gigachat", {GPT2}, false, false, false},
    {"jina-es", {GPT2}, false, false, false},
    {"jina-de", {GPT2}, false, false, false},
    {"jina-v2-es", {GPT2}, false, false, false},
    {"jina-v2-de", {GPT2}, false, false, false},
    {"modern-bert", {GPT2}, false, false, false},
    {"exaone4", {GPT2}, false, false, false},
    {"roberta-bpe", {GPT2}, false, false, true},
    {"jina-v1-en", {GPT2}, false, false, true},
    {"jina-v2-code", {GPT2}, false, false, true},
    {"llama-bpe", {LLAMA3}, true, true, false},
    {"llama3", {LLAMA3}, true, true, false},
    {"llama-v3", {LLAMA3}, true, true, false},
    {"falcon3", {LLAMA3}, true, true, false},
    {"pixtral", {LLAMA3}, true, true, false},
    {"lfm2", {LLAMA3}, true, true, false},
    {"dbrx", {LLAMA3}, false, false, false},
    {"smaug-bpe", {LLAMA3}, false, false, false},
    {"glm4", {LLAMA3}, false, false, false},
    {"chatglm-bpe", {LLAMA3}, false, false, false},
    {"qwen2", {QWEN2}, false, false, false},
    {"deepseek-r1-qwen", {QWEN2}, false, false, false},
    {"stablelm2", {QWEN2}, false, false, false},
    {"megrez", {QWEN2}, false, false, false},
    {"gpt-4o", {GPT4O}, false, false, false},
    {"llama4", {GPT4O}, false, false, false},
    {"tekken", {TEKKEN}, true, true, false},
    {"starcoder", {"\\p{N}", GPT2}, false, false, false},
    {"refact", {"\\p{N}", GPT2}, false, false, false},
    {"command-r", {"\\p{N}", GPT2}, false, false, false},
    {"smollm", {"\\p{N}", GPT2}, false, false, false},
    {"codeshell", {"\\p{N}", GPT2}, false, false, false},
    {"exaone", {"\\p{N}", GPT2}, false, false, false},
    {"minerva-7b", {"\\p{N}", GPT2}, false, false, false},
    {"falcon", {"[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]"}, false, false, false},
    {"default", {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}, false, false, false},
    {"deepseek-llm",
     {"[\\r\\n]", DEEPSEEK_LETTERS, WIDE_PUNCT, "\\s+$", CJK_HANGUL, "\\p{N}+"},
     false,
     false,
     false},
    {"deepseek-coder", {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", CJK_HANGUL, "\\p{N}"}, false, false, false},
    {"deepseek-v3", {"\\p{N}{1,3}", CJK_KANA, DEEPSEEK_V3}, false, false, false},
};

const imp_pre_def *imp_pre_find(const char *name)
{
    for (size_t i = 0; i < IMP_COUNT(table); i++)
        if (strcmp(table[i].name, name) == 0) return &table[i];
    return NULL;
}
