/*
 * SwiGLU experts in float32 for a few dozen tokens each, on a CPU with AVX-512. A general product of
 * so few rows packs the weights, which costs about as much as it does. Here tokens are packed, 16 to
 * a register, and each weight is read once, where it lies, for up to 64 of them.
 */
#include <stdlib.h>

#include "floats.h"

#ifdef __AVX512F__
#include <immintrin.h>

#define MOST 64   /* tokens that go together */
#define STRIP 24  /* rows of weights that go together: a multiple of 6 and of 8 */
#define CHUNK 128 /* numbers that are added up before they join the sum: it rounds less */

int has_experts(void) { return 1; }

/*
 * `tall` rows of weights [rows, width] times `wide` registers of tokens x [width, stride], both known
 * to the compiler, as the dtype is: 24 sums in registers. Of fewer rows the last one is computed
 * several times. Weights in bfloat16 become floats a chunk at a time, which stays in the cache.
 */
static inline __attribute__((always_inline)) void multiply(const float *x, int64_t stride,
                                                           const char *w, int64_t width,
                                                           int64_t rows, float found[STRIP][MOST],
                                                           const int wide, const int tall,
                                                           const int dtype) {
  __m512 sums[8][4];
  const char *from[8];
  const float *row[8];
  float widened[8][CHUNK];
  int64_t size = size_of(dtype);
  for (int r = 0; r < tall; r++) from[r] = w + (r < rows ? r : rows - 1) * width * size;
  for (int64_t start = 0; start < width; start += CHUNK) {
    int64_t count = width - start < CHUNK ? width - start : CHUNK;
    for (int r = 0; r < tall; r++) {
      row[r] = dtype == FLOAT32 ? (const float *)from[r] + start : widened[r];
      if (dtype != FLOAT32) load(from[r], dtype, start, count, widened[r]);
      for (int c = 0; c < wide; c++) sums[r][c] = _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < count; k++) {
      __m512 tokens[4];
      if (k * size % 64 == 0) /* the rows that come next: the hardware alone fetches too late */
        for (int r = 0; r < tall; r++)
          __builtin_prefetch(from[r] + (tall * width + start + k) * size, 0, 2);
      for (int c = 0; c < wide; c++)
        tokens[c] = _mm512_loadu_ps(x + (start + k) * stride + c * LANES);
      for (int r = 0; r < tall; r++) {
        __m512 weight = _mm512_set1_ps(row[r][k]);
        for (int c = 0; c < wide; c++)
          sums[r][c] = _mm512_fmadd_ps(weight, tokens[c], sums[r][c]);
      }
    }
    for (int r = 0; r < tall; r++)
      for (int c = 0; c < wide; c++) {
        float *place = &found[r][c * LANES];
        if (start) sums[r][c] = _mm512_add_ps(sums[r][c], _mm512_loadu_ps(place));
        _mm512_storeu_ps(place, sums[r][c]);
      }
  }
}

/* Up to 24 rows of weights times up to 64 tokens, as many at a time as registers hold. */
static inline __attribute__((always_inline)) void strip(const float *x, int64_t stride,
                                                        int64_t tokens, const char *w,
                                                        int64_t width, int64_t rows,
                                                        float found[STRIP][MOST],
                                                        const int dtype) {
  int64_t wide = (tokens + LANES - 1) / LANES, tall = wide == 4 ? 6 : 8;
  for (int64_t r = 0; r < rows; r += tall, w += tall * width * size_of(dtype)) {
    if (wide == 4)
      multiply(x, stride, w, width, rows - r, found + r, 4, 6, dtype);
    else if (wide == 3)
      multiply(x, stride, w, width, rows - r, found + r, 3, 8, dtype);
    else if (wide == 2)
      multiply(x, stride, w, width, rows - r, found + r, 2, 8, dtype);
    else
      multiply(x, stride, w, width, rows - r, found + r, 1, 8, dtype);
  }
}

/* The same from row j of a matrix on. */
static void product(const float *x, int64_t stride, int64_t tokens, const void *w, int dtype,
                    int64_t width, int64_t j, int64_t rows, float found[STRIP][MOST]) {
  const char *from = (const char *)w + j * width * size_of(dtype);
  if (dtype == FLOAT32)
    strip(x, stride, tokens, from, width, rows, found, FLOAT32);
  else
    strip(x, stride, tokens, from, width, rows, found, BFLOAT16);
}

/* How many of the tokens that are left go together: 48, but 64 where 16 would be left alone. */
static int64_t together(int64_t left) {
  int64_t registers = (left + LANES - 1) / LANES;
  int64_t taken = registers % 3 == 1 ? 4 * LANES : 3 * LANES;
  return taken < left ? taken : left;
}

static int64_t padded(int64_t tokens) { return (tokens + LANES - 1) / LANES * LANES; }

/* Rows of x as columns [hidden, padded(tokens)]; columns without a token are 0. */
static void pack(const float *x, int64_t hidden, const int64_t *tokens, int64_t count,
                 float *columns) {
  int64_t stride = padded(count);
#pragma omp for schedule(static) nowait
  for (int64_t k = 0; k < hidden; k++)
    for (int64_t t = 0; t < stride; t++)
      columns[k * stride + t] = t < count ? x[tokens[t] * hidden + k] : 0.0f;
}

/* silu(gate x) * up x of `count` tokens, as columns [inner, padded(count)]. */
static void rise(const float *columns, int64_t hidden, int64_t count, const void *gate,
                 const void *up, int dtype, int64_t inner, float *out) {
  int64_t stride = padded(count);
#pragma omp for schedule(static) nowait
  for (int64_t j = 0; j < inner; j += STRIP) {
    int64_t rows = inner - j < STRIP ? inner - j : STRIP;
    float gates[STRIP][MOST], ups[STRIP][MOST];
    for (int64_t t = 0, some; t < stride; t += some) {
      some = together(stride - t);
      product(columns + t, stride, some, gate, dtype, hidden, j, rows, gates);
      product(columns + t, stride, some, up, dtype, hidden, j, rows, ups);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < some; i++)
          out[(j + r) * stride + t + i] = gates[r][i] * sigmoid(gates[r][i]) * ups[r][i];
    }
  }
}

/* down times columns [inner, padded(count)], as rows [count, hidden]. */
static void fall(const float *columns, int64_t inner, int64_t count, const void *down, int dtype,
                 int64_t hidden, float *out) {
  int64_t stride = padded(count);
#pragma omp for schedule(static) nowait
  for (int64_t j = 0; j < hidden; j += STRIP) {
    int64_t rows = hidden - j < STRIP ? hidden - j : STRIP;
    float found[STRIP][MOST];
    for (int64_t t = 0, some; t < stride; t += some) {
      some = together(stride - t);
      product(columns + t, stride, some, down, dtype, inner, j, rows, found);
      for (int64_t i = 0; i < some && t + i < count; i++)
        for (int64_t r = 0; r < rows; r++) out[(t + i) * hidden + j + r] = found[r][i];
    }
  }
}

/* The matrices of expert e of a stack [experts, numbers]. */
static const void *of_expert(const void *stack, int dtype, int64_t e, int64_t numbers) {
  return (const char *)stack + e * numbers * size_of(dtype);
}

int float_experts(const float *x, const int64_t *tokens, const int64_t *ends, int64_t experts,
                  int64_t hidden, int64_t inner, const void *gate, const void *up,
                  const void *down, int dtype, float *out, int threads) {
  int64_t columns = 0, part = inner * hidden;
  for (int64_t e = 0, start = 0; e < experts; start = ends[e++]) columns += padded(ends[e] - start);
  float *packed = aligned_alloc(64, (columns ? columns : LANES) * (hidden + inner) * sizeof(float));
  if (!packed) return -1;
  float *middle = packed + columns * hidden;
#pragma omp parallel num_threads(threads)
  {
    int64_t at = 0;
    for (int64_t e = 0, start = 0; e < experts; start = ends[e++]) {
      pack(x, hidden, tokens + start, ends[e] - start, packed + at * hidden);
      at += padded(ends[e] - start);
    }
#pragma omp barrier
    at = 0;
    for (int64_t e = 0, start = 0; e < experts; start = ends[e++]) {
      int64_t count = ends[e] - start;
      if (count) rise(packed + at * hidden, hidden, count, of_expert(gate, dtype, e, part),
                      of_expert(up, dtype, e, part), dtype, inner, middle + at * inner);
      at += padded(count);
    }
#pragma omp barrier
    at = 0;
    for (int64_t e = 0, start = 0; e < experts; start = ends[e++]) {
      int64_t count = ends[e] - start;
      if (count) fall(middle + at * inner, inner, count, of_expert(down, dtype, e, part), dtype,
                      hidden, out + start * hidden);
      at += padded(count);
    }
  }
  free(packed);
  return 0;
}
#else
int has_experts(void) { return 0; }
int float_experts(void) { return -1; }
#endif
