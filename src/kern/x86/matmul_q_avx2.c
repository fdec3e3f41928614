/* kern/x86/matmul_q_avx2.c - int8 matmul for AVX2: chains of VPMADDUBSW, then VPMADDWD by ones.
 *
 * Ranges:  two products of an unsigned weight up to max and |x| <= 127 are 254 * max; as many pairs are added in int16 as
 *          stay below 2^15: 8 for nibbles (30480), 4 up to 31 (31496), 2 up to 63 (32004). Signed weights go in as |w| and
 *          x * sign(w): 2 * 128 * 127 = 32512. */
#include "kern/x86/packed_256.h"

enum { P_Q8_OFFSET = 0 };

/* start + n words of x by n vectors of weights. */
IMP_INLINE vi p_dot(vi start, const vi *w, const uint8_t *x, int n, uint32_t max)
{
    const int group = max == 0 ? 1 : max <= 15 ? 8 : max <= 31 ? 4 : 2;
    __m256i sum = _mm256_setzero_si256();
    IMP_UNROLL
    for (int j = 0; j < n; j++) {
        __m256i xv = p_words(x, j);
        __m256i pair = max == 0 ? _mm256_maddubs_epi16(_mm256_abs_epi8(w[j]), _mm256_sign_epi8(xv, w[j]))
                                : _mm256_maddubs_epi16(w[j], xv);
        sum = j % group == 0 ? pair : _mm256_add_epi16(sum, pair);
        if (j % group == group - 1 || j == n - 1)
            start = _mm256_add_epi32(start, _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
    }
    return start;
}

#include "kern/body/matmul_p_body.h"

P_VARIANTS("avx2", avx2, IMP_CPU_AVX2)
