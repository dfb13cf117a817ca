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
#include <string.h>

#define TILE 16  /* rows of a tile */
#define DEPTH 64 /* bytes of a tile's row */
#define WORDS (TILE * TILE)
#define ABREAST 3             /* tiles of activations that meet a weight while it is loaded */
#define ROWS (ABREAST * TILE) /* rows of activations of one product */
#define PAIR (2 * TILE)       /* rows of weights of one product */

enum { OF_INT8, OF_BFLOAT16 };

typedef float sums[2 * ABREAST][WORDS]; /* [half of the weights, tile of activations] */

/* Where PAIR rows of weights are. Tiles follow each other at `step`, rows of a tile at `stride`. */
typedef struct {
  const char *half[2], *end[2]; /* the first tiles, and the last ones where a row ends in them */
  int64_t step, stride, whole;  /* whole: tiles before the last ones */
} weights;

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
 * Up to 16 rows of x, of `bytes`, as tiles [bytes / 64] of words [16, 16]: the word at 4 i of row t stands
 * at [i, t], as the second operand of a tile product wants it. What is missing is 0. `tokens` says which
 * rows they are; without it they are those from `first` on.
 */
static inline void pack_rows(const char *x, const int64_t *tokens, int64_t first, int64_t rows,
                             int64_t bytes, int32_t *tiles) {
  const char *lines[TILE] = {0};
  if (rows > TILE) rows = TILE;
  for (int64_t t = 0; t < rows; t++) lines[t] = x + (tokens ? tokens[t] : first + t) * bytes;
  for (int64_t k = 0; k < bytes; k += DEPTH, tiles += WORDS) {
    __mmask64 kept = bytes - k < DEPTH ? (1ull << (bytes - k)) - 1 : ~0ull;
    __m512i r[TILE];
    for (int64_t t = 0; t < TILE; t++)
      r[t] = t < rows ? _mm512_maskz_loadu_epi8(kept, lines[t] + k) : _mm512_setzero_si512();
    transpose(r);
    for (int64_t t = 0; t < TILE; t++) _mm512_store_si512(tiles + t * TILE, r[t]);
  }
}

/*
 * Where PAIR rows of `bytes` are, of which the last 16 may be missing: then they are the first ones once
 * more. `ends` has room for the last tiles of rows that end in them.
 */
static inline weights weights_at(const char *values, int64_t rows, int64_t bytes, int64_t stride,
                                 char (*ends)[TILE * DEPTH]) {
  weights w = {.step = DEPTH, .stride = stride, .whole = bytes / DEPTH};
  for (int half = 0; half < 2; half++) {
    w.half[half] = rows < PAIR ? values : values + half * TILE * stride;
    w.end[half] = ends[half];
    if (w.whole == tiles_deep(bytes)) continue;
    int64_t done = w.whole * DEPTH;
    memset(ends[half], 0, TILE * DEPTH);
    for (int r = 0; r < TILE; r++)
      memcpy(ends[half] + r * DEPTH, w.half[half] + r * stride + done, bytes - done);
  }
  __asm__ volatile("" : : "r"(ends) : "memory"); /* intrinsics do not say what they read */
  return w;
}

/* Products of tile 6, of weights, with tile 7, of activations. */
#define DOT(to)                    \
  do {                             \
    if (kind == OF_INT8)            \
      _tile_dpbssd(to, 6, 7);      \
    else                           \
      _tile_dpbf16ps(to, 6, 7);    \
  } while (0)

/* Sums of PAIR rows of weights with `count` tiles of activations, a number that the compiler knows. */
static inline __attribute__((always_inline)) void tile_product(const int kind, const weights *w,
                                                               const int32_t *tiles, int64_t deep,
                                                               const char *next, sums found,
                                                               const int count) {
  const int32_t *first = tiles, *second = tiles + deep * WORDS, *third = second + deep * WORDS;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t k = 0; k < deep; k++) {
    int inside = k < w->whole;
    int64_t stride = inside ? w->stride : DEPTH;
    if (next) /* the hardware finds no stream in so many rows */
      for (int64_t line = 0; line < PAIR; line++)
        __builtin_prefetch(next + (k * PAIR + line) * DEPTH, 0, 2);
    _tile_loadd(6, inside ? w->half[0] + k * w->step : w->end[0], stride);
    _tile_loadd(7, first + k * WORDS, DEPTH);
    DOT(0);
    if (count > 1) {
      _tile_loadd(7, second + k * WORDS, DEPTH);
      DOT(1);
    }
    if (count > 2) {
      _tile_loadd(7, third + k * WORDS, DEPTH);
      DOT(2);
    }
    _tile_loadd(6, inside ? w->half[1] + k * w->step : w->end[1], stride);
    if (count > 2) {
      DOT(5);
      _tile_loadd(7, second + k * WORDS, DEPTH);
    }
    if (count > 1) {
      DOT(4);
      _tile_loadd(7, first + k * WORDS, DEPTH);
    }
    DOT(3);
  }
  _tile_stored(0, found[0], DEPTH);
  _tile_stored(1, found[1], DEPTH);
  _tile_stored(2, found[2], DEPTH);
  _tile_stored(3, found[3], DEPTH);
  _tile_stored(4, found[4], DEPTH);
  _tile_stored(5, found[5], DEPTH);
}

/* The same for up to ROWS rows of activations; `next` is what is multiplied next, or null. */
static inline __attribute__((always_inline)) int multiply_rows(const int kind, const weights *w, const int32_t *tiles, int64_t rows, int64_t deep,
                         const char *next, sums found) {
  if (rows > 2 * TILE) {
    tile_product(kind, w, tiles, deep, next, found, 3);
    return 3;
  }
  if (rows > TILE) {
    tile_product(kind, w, tiles, deep, next, found, 2);
    return 2;
  }
  tile_product(kind, w, tiles, deep, next, found, 1);
  return 1;
}

#undef DOT
#endif
#endif
