/* base/sum.c - a checksum about as fast as memory: for bytes that chance may have changed, not for what a person forges.
 *
 * Idea:    four lanes take 16 bytes each: the 128-bit product of the two words, each with a constant of its own, is folded
 *          to 64 bits; a lane is xored with that and multiplied by an odd number, which loses nothing of what it held.
 * Always:  the same on every machine (little-endian words).
 * Source:  products folded to mix: the idea of Wang Yi's wyhash. */
#include "base/base.h"

/* Bits like noise: the fractions of the square roots of 2, 3, 5, ... 23; those that multiply alone are odd. */
static const uint64_t ROOT[9] = {0x6a09e667f3bcc909, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b,
                                 0xa54ff53a5f1d36f1, 0x510e527fade682d1, 0x9b05688c2b3e6c1f,
                                 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179, 0xcbbb9d5dc1059ed9};

static inline uint64_t word(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

static inline uint64_t fold(uint64_t a, uint64_t b)
{
    unsigned __int128 p = (unsigned __int128)a * b;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static inline void take(uint64_t lane[4], const uint8_t *p)
{
    for (int i = 0; i < 4; i++) {
        uint64_t mixed = fold(word(p + 16 * i) ^ ROOT[2 * i], word(p + 16 * i + 8) ^ ROOT[2 * i + 1]);
        lane[i] = (lane[i] ^ mixed) * ROOT[8];
    }
}

uint64_t imp_sum64(const void *data, size_t n, uint64_t seed)
{
    const uint8_t *p = data;
    uint64_t lane[4], h = seed ^ (n * ROOT[8]);
    uint8_t rest[64] = {0};
    for (int i = 0; i < 4; i++) lane[i] = seed + ROOT[i];
    size_t left = n;
    for (; left >= 64; p += 64, left -= 64) take(lane, p);
    if (left > 0) {
        memcpy(rest, p, left);
        take(lane, rest);
    }
    for (int i = 0; i < 4; i++) {
        h = (h ^ lane[i] ^ (lane[i] >> 29)) * ROOT[2 * i + 1];
        h ^= h >> 32;
    }
    return fold(h ^ ROOT[0], ROOT[8]) ^ h;
}
