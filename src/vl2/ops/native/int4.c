/*
 * Products with int4 weights on a CPU with AVX-512, whose layout `Int4Weight` has. A row's result is
 * the same whatever stands beside it.
 */
#include <stdint.h>
#include <stdlib.h>

#ifdef __AVX512BW__
#include <immintrin.h>

#define COLUMNS 64 /* rows of weights that are packed together */
#define HALF (COLUMNS / 2)
#define FLOATS 16 /* in a register */
#define TOGETHER 4 /* rows of activations that share one unpacking */
#define AHEAD 4096 /* bytes to fetch ahead: the hardware alone fetches too late */

int has_int4(void) { return 1; }

/* Nibbles of 32 bytes as floats: row j low, row j + 32 high. */
static inline void unpack(const uint8_t *bytes, __m512 w[4]) {
  __m512i first = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes));
  __m512i second = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes + 1));
  __m512i low = _mm512_set1_epi32(15);
  w[0] = _mm512_cvtepi32_ps(_mm512_and_si512(first, low));
  w[1] = _mm512_cvtepi32_ps(_mm512_and_si512(second, low));
  w[2] = _mm512_cvtepi32_ps(_mm512_srli_epi32(first, 4));
  w[3] = _mm512_cvtepi32_ps(_mm512_srli_epi32(second, 4));
}

/* Rows of activations that share one unpacking, and where their results go. */
typedef struct {
  const float *x;        /* [*, width] */
  const float *totals;   /* [*, width / group]: sums of each group */
  int64_t row[TOGETHER]; /* which of these they are */
  int64_t width, group;
  float *out; /* [rows, stride] */
  int64_t stride;
} some_rows;

static float sum(const float *x, int64_t count) {
  float found = 0.0f;
  for (int64_t i = 0; i < count; i++) found += x[i];
  return found;
}

/*
 * 64 rows of weights times `count` rows of activations, a number that the compiler knows. Per group
 * the result is scale * sum(nibble x) + (zero - 8 scale) * sum(x); groups of scales lie `apart`.
 */
static inline __attribute__((always_inline)) void columns(const some_rows *r, const uint8_t *values,
                                                          const uint16_t *scale, int64_t apart,
                                                          const int count) {
  int64_t width = r->width, group = r->group, parts = width / group;
  const float *x[TOGETHER];
  for (int t = 0; t < count; t++) x[t] = r->x + r->row[t] * width;
  __m512 whole[TOGETHER][4], part[TOGETHER][4], w[4];
  for (int t = 0; t < count; t++)
    for (int q = 0; q < 4; q++) whole[t][q] = _mm512_setzero_ps();
  for (int64_t g = 0; g < parts; g++, scale += apart) {
    for (int t = 0; t < count; t++)
      for (int q = 0; q < 4; q++) part[t][q] = _mm512_setzero_ps();
    for (int64_t i = g * group; i < (g + 1) * group; i++) {
      _mm_prefetch((const char *)values + i * HALF + AHEAD, _MM_HINT_T1);
      unpack(values + i * HALF, w);
      for (int t = 0; t < count; t++) {
        __m512 factor = _mm512_set1_ps(x[t][i]);
        for (int q = 0; q < 4; q++) part[t][q] = _mm512_fmadd_ps(factor, w[q], part[t][q]);
      }
    }
    for (int q = 0; q < 4; q++) {
      __m512i both = _mm512_loadu_si512(scale + 2 * FLOATS * q);
      __m512 size = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
      __m512 zero = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)));
      zero = _mm512_fnmadd_ps(size, _mm512_set1_ps(8.0f), zero);
      for (int t = 0; t < count; t++) {
        __m512 shift = _mm512_set1_ps(r->totals[r->row[t] * parts + g]);
        whole[t][q] = _mm512_fmadd_ps(zero, shift, whole[t][q]);
        whole[t][q] = _mm512_fmadd_ps(size, part[t][q], whole[t][q]);
      }
    }
  }
  for (int t = 0; t < count; t++)
    for (int q = 0; q < 4; q++)
      _mm512_storeu_ps(r->out + t * r->stride + q * FLOATS, whole[t][q]);
}

int int4_linear(const float *x, int64_t rows, int64_t width, int64_t group,
                const int64_t *tokens, const int64_t *experts, const int64_t *ends, int64_t groups,
                const uint8_t *values, const uint16_t *scale, int64_t out_rows, float *out,
                int threads) {
  if (!ends) ends = &rows, groups = 1;
  int64_t parts = width / group, apart = 2 * out_rows;
  float *totals = malloc(rows * parts * sizeof(float));
  if (!totals) return -1;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < rows; t++)
      for (int64_t g = 0; g < parts; g++)
        totals[t * parts + g] = sum(x + t * width + g * group, group);
    for (int64_t g = 0, start = 0; g < groups; start = ends[g++]) {
      int64_t expert = experts ? experts[g] : g;
      const uint8_t *w = values + expert * out_rows * width / 2;
      const uint16_t *s = scale + expert * apart * parts;
#pragma omp for schedule(static) nowait
      for (int64_t j = 0; j < out_rows; j += COLUMNS)
        for (int64_t t = start, left; (left = ends[g] - t) > 0; t += TOGETHER) {
          some_rows r = {.x = x, .totals = totals, .width = width, .group = group,
                         .out = out + t * out_rows + j, .stride = out_rows};
          for (int64_t i = t; i < t + TOGETHER && i < ends[g]; i++)
            r.row[i - t] = tokens ? tokens[i] : i;
          const uint8_t *v = w + j * width / 2;
          const uint16_t *z = s + 2 * j;
          if (left >= TOGETHER)
            columns(&r, v, z, apart, TOGETHER);
          else if (left == 3)
            columns(&r, v, z, apart, 3);
          else if (left == 2)
            columns(&r, v, z, apart, 2);
          else
            columns(&r, v, z, apart, 1);
        }
    }
  }
  free(totals);
  return 0;
}
#else
int has_int4(void) { return 0; }
int int4_linear(void) { return -1; }
#endif
