/*
 * Tiles of AMX: 16 rows of 64 bytes. A tile product multiplies 16 rows of weights, which are row-major
 * and need no packing, by up to 16 rows of activations, whose words of 4 bytes (4 of int8, 2 of
 * bfloat16) are transposed first. Sums of a row have one order, whatever stands beside it.
 */
#ifndef VL2_TILES_H
#define VL2_TILES_H

#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define HAS_TILES
#include <immintrin.h>
#include <stdint.h>

#define TILE 16  /* rows of a tile */
#define DEPTH 64 /* bytes of a tile's row */
#define WORDS (TILE * TILE)

extern int tiles_allowed; /* set before anything is multiplied */

static inline int64_t tiles_deep(int64_t bytes) { return (bytes + DEPTH - 1) / DEPTH; }
static inline int64_t tiles_high(int64_t rows) { return (rows + TILE - 1) / TILE; }

static inline void configure_tiles(void) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    config.bytes[i] = DEPTH;
    config.rows[i] = TILE;
  }
  __asm__ volatile("" : : "r"(&config) : "memory"); /* the intrinsic names only its first bytes */
  _tile_loadconfig(&config);
}

/* 16 x 16 words, in registers. */
static inline void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

/*
 * Up to 16 lines of `bytes` as tiles [bytes / 64] of words [16, 16]: the word at 4 i of line t stands at
 * [i, t], as the second operand of a tile product wants it. What is missing is 0.
 */
static inline void pack_lines(const char *const *lines, int64_t rows, int64_t bytes,
                              int32_t *tiles) {
  for (int64_t k = 0; k < bytes; k += DEPTH, tiles += WORDS) {
    __mmask64 kept = bytes - k < DEPTH ? (1ull << (bytes - k)) - 1 : ~0ull;
    __m512i r[TILE];
    for (int64_t t = 0; t < TILE; t++)
      r[t] = t < rows ? _mm512_maskz_loadu_epi8(kept, lines[t] + k) : _mm512_setzero_si512();
    transpose(r);
    for (int64_t t = 0; t < TILE; t++) _mm512_store_si512(tiles + t * TILE, r[t]);
  }
}
#endif
#endif
