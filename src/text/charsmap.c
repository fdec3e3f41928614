/* text/charsmap.c - SentencePiece's precompiled character map: a double-array trie from byte strings to text.
 *
 * Place:   normaliser steps CHARSMAP and CHARSMAP_LONGEST.
 * Layout:  u32 trie_bytes, trie_bytes / 4 units of u32 (little endian), then NUL-terminated strings. A unit holds its
 *          label in bits 0-7 and 31, "a value follows" in bit 8, the shift of its offset in bit 9, the offset in bits
 *          10-30; a value is a position in the strings.
 * Idea:    two readers of the same map exist: SentencePiece replaces the longest match at each position; the
 *          `tokenizers` library looks at grapheme clusters shorter than 6 bytes and takes the *shortest* match of a
 *          cluster for the whole of it. A file is read the way its own library reads it.
 * Always:  every unit index and text position is checked; a broken trie ends the walk.
 * Source:  darts-clone; sentencepiece normalizer.cc. */
#include <utf8proc.h>

#include "text/internal.h"

imp_status imp_charsmap_init(imp_charsmap *m, imp_arena *a, const void *p, size_t n, imp_error *err)
{
    memset(m, 0, sizeof *m);
    const uint8_t *b = p;
    if (n < 4)
        return imp_fail(err, IMP_FORMAT, "the precompiled character map is %zu bytes long, too short", n);
    uint32_t trie = (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
    if (trie % 4 || trie == 0 || trie > n - 4)
        return imp_fail(err, IMP_FORMAT, "the precompiled character map says its trie has %u bytes, of %zu",
                        trie, n);
    uint32_t *unit = imp_arena_array(a, trie / 4, sizeof *unit);
    char *text = imp_arena_strndup(a, (const char *)b + 4 + trie, n - 4 - trie);
    if (!unit || !text) return imp_tok_nomem(err);
    for (size_t i = 0; i < trie / 4; i++) {
        const uint8_t *u = b + 4 + i * 4;
        unit[i] = (uint32_t)u[0] | (uint32_t)u[1] << 8 | (uint32_t)u[2] << 16 | (uint32_t)u[3] << 24;
    }
    *m = (imp_charsmap){unit, trie / 4, text, n - 4 - trie};
    return IMP_OK;
}

static size_t unit_offset(uint32_t u)
{
    return (size_t)(u >> 10) << ((u & 0x200) >> 6);
}

/* The shortest or longest entry that s[0..n-1] starts with: its length, 0 when none; *value its text position. */
static size_t lookup(const imp_charsmap *m, const char *s, size_t n, bool longest, size_t *value)
{
    size_t found = 0;
    size_t at = unit_offset(m->unit[0]);
    for (size_t i = 0; i < n; i++) {
        uint8_t c = (uint8_t)s[i];
        if (c == 0) break;
        at ^= c;
        if (at >= m->n_unit || (m->unit[at] & 0x800000FFu) != c) break;
        uint32_t u = m->unit[at];
        at ^= unit_offset(u);
        if (u & 0x100) {
            if (at >= m->n_unit) break;
            size_t v = m->unit[at] & 0x7FFFFFFFu;
            if (v < m->n_text) {
                *value = v;
                found = i + 1;
                if (!longest) break;
            }
        }
    }
    return found;
}

static void add_text(const imp_charsmap *m, size_t v, imp_buf *out)
{
    const char *end = memchr(m->text + v, 0, m->n_text - v);
    imp_buf_add(out, m->text + v, end ? (size_t)(end - m->text) - v : m->n_text - v);
}

void imp_charsmap_longest(const imp_charsmap *m, const char *s, size_t n, imp_buf *out)
{
    for (size_t i = 0; i < n;) {
        size_t v, len = lookup(m, s + i, n - i, true, &v);
        if (len) {
            add_text(m, v, out);
        } else {
            int32_t cp;
            len = imp_utf8_decode(s + i, n - i, &cp);
            imp_buf_add(out, s + i, len);
        }
        i += len;
    }
}

/* Bytes of the grapheme cluster at s (at least one character; a malformed byte stands alone). */
static size_t cluster(const char *s, size_t n)
{
    int32_t prev, cp, state = 0;
    size_t i = imp_utf8_decode(s, n, &prev);
    if (prev < 0) return i;
    while (i < n) {
        size_t len = imp_utf8_decode(s + i, n - i, &cp);
        if (cp < 0 || utf8proc_grapheme_break_stateful(prev, cp, &state)) break;
        i += len;
        prev = cp;
    }
    return i;
}

void imp_charsmap_graphemes(const imp_charsmap *m, const char *s, size_t n, imp_buf *out)
{
    for (size_t i = 0; i < n;) {
        size_t len = cluster(s + i, n - i), v;
        if (len < 6 && lookup(m, s + i, len, false, &v)) {
            add_text(m, v, out);
            i += len;
            continue;
        }
        for (size_t end = i + len; i < end;) {
            int32_t cp;
            size_t one = imp_utf8_decode(s + i, end - i, &cp);
            if (lookup(m, s + i, one, false, &v))
                add_text(m, v, out);
            else
                imp_buf_add(out, s + i, one);
            i += one;
        }
    }
}
