/*
 * Activations rounded to int8, and their products with int8 weights, on a CPU. build.py compiles this
 * file for the machine that it runs on, kernels.py says what the functions mean.
 *
 * Everything is row-major, and weights are read where they lie, so that a file mapped into memory
 * will do. Integer sums are exact and every float operation has the same operands in the same order
 * whatever the number of rows, threads and instructions: a row's result depends on that row alone.
 */
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "products.h"
#include "tiles.h"

/* Activations, rounded. */
typedef struct {
  int64_t width;
  int8_t *steps;   /* [rows, width] */
  float *scale;    /* [rows]: size of a step */
  int32_t *totals; /* [rows]: sum of the steps */
  int32_t *tiles;  /* the same steps in the order of AMX */
  int64_t *place;  /* [groups]: which tile high is the first of each group */
} rounded;

/* ---- activations ----------------------------------------------------------------------------- */

/* Space for some rounded rows of `width`, which begins at `memory`. */
static rounded rounded_at(char *memory, int64_t rows, int64_t width) {
  rounded some = {.width = width, .totals = (int32_t *)memory};
  some.scale = (float *)(some.totals + rows);
  some.steps = (int8_t *)(some.scale + rows);
  return some;
}

/* Largest |x|; bits of positive floats are in the order of the floats, and NaN is above them all. */
static float largest(const float *row, int64_t width) {
  uint32_t most = 0;
  for (int64_t i = 0; i < width; i++) {
    uint32_t bits = as_bits(row[i]) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  return as_float(most);
}

static void round_row(const void *x, int dtype, int64_t inputs, int activation, int64_t m,
                      const rounded *to) {
  float row[inputs];
  int8_t *steps = to->steps + m * to->width;
  read_row(x, dtype, inputs, activation, m, row);
  float size = largest(row, to->width) / 127.0f;
  to->scale[m] = size = size < 1e-30f ? 1e-30f : size;
  int32_t total = 0;
  for (int64_t i = 0; i < to->width; i++) steps[i] = (int8_t)round_even(row[i] / size);
  for (int64_t i = 0; i < to->width; i++) total += steps[i];
  to->totals[m] = total;
}

/* ---- int8: any CPU --------------------------------------------------------------------------- */

/* x86 multiplies unsigned by signed bytes: w + 128 here, the 128 sum(x) too much go afterwards. */
static inline int32_t dot(const int8_t *restrict w, const int8_t *restrict x, int64_t width) {
  int32_t sum = 0;
  for (int64_t i = 0; i < width; i++) sum += (int32_t)(uint8_t)(w[i] ^ -128) * (int32_t)x[i];
  return sum;
}

/* Some rows of a matrix times every row of activations, into columns from `column` on. */
static void row_by_row(const rounded *x, const group *g, const int8_t *w, const float *scale,
                       const float *bias, int64_t count, int64_t column) {
  int64_t width = x->width;
  for (int64_t j = 0; j < count; j++) {
    /* Two rows ahead: the hardware alone fetches too late to keep memory busy. */
    for (int64_t i = 0; i < width; i += 64) __builtin_prefetch(w + (j + 2) * width + i, 0, 1);
    for (int64_t t = 0; t < g->rows; t++) {
      int64_t row = row_of(g, t);
      int32_t sum = dot(w + j * width, x->steps + row * width, width) - 128 * x->totals[row];
      float value = (float)sum * scale[j] * x->scale[row];
      put(g, t, column + j, bias ? value + bias[j] : value);
    }
  }
}

/* ---- int8: tiles of AMX ---------------------------------------------------------------------- */

#ifdef HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>

int tiles_allowed;

/* Linux hands the tile registers to a process that asks; without them rows go one by one. */
int has_tiles(void) {
  const int request_permission = 0x1023, tile_data = 18;
  tiles_allowed = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return tiles_allowed;
}

/* Up to 16 rows of a group from row `from` on as tiles. */
static void pack(const rounded *x, const group *g, int64_t from, int32_t *tiles) {
  const int64_t *tokens = g->tokens ? g->tokens + from : 0;
  pack_rows((const char *)x->steps, tokens, g->first + from, g->rows - from, x->width, tiles);
}

/* Sums [16 weights, 16 activations] as results of the activations from row `from` on. */
static void finish(const float *sums, const rounded *x, const group *g, const float *scale,
                   const float *bias, int64_t from, int64_t column) {
  __m512i r[TILE];
  for (int t = 0; t < TILE; t++) r[t] = _mm512_load_si512(sums + t * TILE);
  transpose(r);
  __m512 scales = _mm512_loadu_ps(scale), shift = _mm512_setzero_ps();
  if (bias) shift = _mm512_loadu_ps(bias);
  int64_t rows = g->rows - from < TILE ? g->rows - from : TILE;
#pragma GCC unroll 16
  for (int64_t t = 0; t < TILE; t++) {
    if (t >= rows) break;
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(r[t]), scales);
    value = _mm512_mul_ps(value, _mm512_set1_ps(x->scale[row_of(g, from + t)]));
    if (bias) value = _mm512_add_ps(value, shift);
    int64_t place = (from + t) * g->stride + column;
    if (g->dtype == FLOAT32)
      _mm512_storeu_ps((float *)g->out + place, value);
    else
      _mm256_storeu_si256((__m256i *)((uint16_t *)g->out + place),
                          (__m256i)_mm512_cvtneps_pbh(value));
  }
}

/* 32 rows of weights, or 16, times all rows of a group; `next` is multiplied next, or null. */
static void tile_by_tile(const rounded *x, const group *g, const int8_t *w, const float *scale,
                         const float *bias, int64_t column, int64_t count, const char *next) {
  int64_t deep = tiles_deep(x->width);
  const int32_t *tiles = x->tiles + x->place[g->number] * deep * WORDS;
  char ends[2][TILE * DEPTH] __attribute__((aligned(64)));
  sums found __attribute__((aligned(64)));
  weights at = weights_at((const char *)w, count, x->width, x->width, ends);
  for (int64_t row = 0; row < g->rows; row += ROWS, next = 0) {
    const int32_t *some = tiles + row * deep * TILE;
    int high = multiply_rows(OF_INT8, &at, some, g->rows - row, deep, next, found);
    for (int64_t half = 0; half < count / TILE; half++)
      for (int i = 0; i < high; i++)
        finish(found[ABREAST * half + i], x, g, scale + half * TILE,
               bias ? bias + half * TILE : bias, row + i * TILE, column + half * TILE);
  }
}

/* Whether so many rows go through tiles: one row is faster row by row. */
static int tiled(int64_t rows) { return tiles_allowed && rows > 1; }
#else
int has_tiles(void) { return 0; }
#endif

/* ---- int8: the product ----------------------------------------------------------------------- */

static void int8_block(const void *activations, const group *g, const matrix *m, int64_t from,
                       int64_t count, int64_t column) {
  const rounded *x = activations;
  const int8_t *w = (const int8_t *)m->values + (g->expert * m->out + from) * x->width;
  const float *scale = m->scale + g->expert * m->out + from, *bias = m->bias ? m->bias + from : 0;
  int64_t done = 0;
#ifdef HAS_TILES
  if (tiled(g->rows)) {
    done = count / TILE * TILE;
    const char *next = from + 2 * BLOCK <= m->out ? (const char *)w + BLOCK * x->width : 0;
    if (done) tile_by_tile(x, g, w, scale, bias, column, done, next);
  }
#endif
  if (done < count)
    row_by_row(x, g, w + done * x->width, scale + done, bias ? bias + done : 0, count - done,
               column + done);
}

#define ALIGNED(bytes) (((bytes) + 63) / 64 * 64)

int int8_linear(const void *x, int dtype, int64_t rows, int64_t inputs, int activation,
                const int64_t *tokens, const int64_t *experts, const int64_t *ends,
                int64_t group_count, const matrix *matrices, int64_t count, void *out,
                int out_dtype, int threads) {
  if (!ends) ends = &rows, group_count = 1;
  int64_t width = width_of(inputs, activation), blocks = 0, deep = 0;
  groups all = {tokens, experts, ends, group_count, out, out_dtype, columns_of(matrices, count)};
  int64_t place[all.count + 1];
#ifdef HAS_TILES
  deep = tiles_deep(width) * WORDS;
  for (int64_t n = 0; n < all.count; n++) {
    int64_t some = group_at(&all, n).rows;
    place[n] = blocks;
    if (tiled(some)) blocks += tiles_high(some);
  }
#endif
  char *memory = aligned_alloc(64, ALIGNED(blocks * deep * 4) + ALIGNED(rows * (width + 8)));
  if (!memory) return -1;
  rounded numbers = rounded_at(memory + ALIGNED(blocks * deep * 4), rows, width);
  numbers.tiles = (int32_t *)memory;
  numbers.place = place;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t m = 0; m < rows; m++) round_row(x, dtype, inputs, activation, m, &numbers);
#ifdef HAS_TILES
    for (int64_t n = 0; n < all.count; n++) {
      group some = group_at(&all, n);
      if (!tiled(some.rows)) continue;
#pragma omp for schedule(static) nowait
      for (int64_t b = 0; b < tiles_high(some.rows); b++)
        pack(&numbers, &some, b * TILE, numbers.tiles + (place[n] + b) * deep);
    }
    if (blocks) {
#pragma omp barrier
      configure_tiles();
    }
#endif
    multiply(&numbers, &all, matrices, count, int8_block);
#ifdef HAS_TILES
    if (blocks) _tile_release();
#endif
  }
  free(memory);
  return 0;
}

#ifdef HAS_TILES
/* Rows of a group times a matrix of its expert, from a column on, by one thread. */
static void alone(rounded *x, const group *g, const matrix *m, int64_t column) {
  for (int64_t b = 0; b < tiles_high(g->rows); b++)
    pack(x, g, b * TILE, x->tiles + b * tiles_deep(x->width) * WORDS);
  for (int64_t j = 0; j < m->out; j += BLOCK)
    int8_block(x, g, m, j, m->out - j < BLOCK ? m->out - j : BLOCK, column + j);
}

/*
 * The SwiGLU of experts, whose gate, up and down follow each other: what int8_linear does in two steps
 * for all experts is done for one expert after the other, so that its rows stay in the cache.
 */
int int8_experts(const void *x, int dtype, int64_t rows, int64_t width, const int64_t *tokens,
                 const int64_t *ends, int64_t experts, const matrix *matrices, float *out,
                 int threads) {
  int64_t inner = matrices[0].out, most = 0, first[1] = {0};
  groups all = {tokens, 0, ends, experts, out, FLOAT32, width};
  for (int64_t e = 0; e < experts; e++) {
    int64_t some = group_at(&all, e).rows;
    most = some > most ? some : most;
  }
  int64_t deep = tiles_deep(width > inner ? width : inner);
  int64_t tile_bytes = tiles_high(most) * deep * WORDS * 4, both = ALIGNED(most * 2 * inner * 4);
  int64_t own = tile_bytes + both + ALIGNED(most * (inner + 8));
  char *memory = aligned_alloc(64, ALIGNED(rows * (width + 8)) + threads * own);
  if (!memory) return -1;
  rounded numbers = rounded_at(memory + threads * own, rows, width);
#pragma omp parallel num_threads(threads)
  {
    char *mine = memory + omp_get_thread_num() * own;
    rounded given = numbers, hidden = rounded_at(mine + tile_bytes + both, most, inner);
    given.tiles = hidden.tiles = (int32_t *)mine;
    given.place = hidden.place = first;
#pragma omp for schedule(static)
    for (int64_t m = 0; m < rows; m++) round_row(x, dtype, width, PLAIN, m, &numbers);
    configure_tiles();
#pragma omp for schedule(dynamic)
    for (int64_t e = 0; e < experts; e++) {
      group g = group_at(&all, e), rise = g, fall = g;
      if (!g.rows) continue;
      rise.number = fall.number = 0;
      rise.out = mine + tile_bytes;
      rise.stride = 2 * inner;
      alone(&given, &rise, matrices, 0);
      alone(&given, &rise, matrices + 1, inner);
      for (int64_t m = 0; m < g.rows; m++)
        round_row(rise.out, FLOAT32, 2 * inner, SWIGLU, m, &hidden);
      fall.tokens = 0;
      fall.first = 0;
      alone(&hidden, &fall, matrices + 2, 0);
    }
    _tile_release();
  }
  free(memory);
  return 0;
}
#else
int int8_experts(void) { return -1; }
#endif
