/*
 * Products in float32 of a few rows with matrices as they are stored, float32 or bfloat16, on a CPU:
 * a weight is read once, where it lies, and becomes a float in a register.
 *
 * Sums have an order that does not depend on the number of rows or threads: a row's result depends on
 * that row alone.
 */
#include <stdlib.h>

#include "products.h"

#define TOGETHER 8 /* rows of activations that meet a row of weights at a time */
#define AHEAD 2    /* rows of weights that are asked for ahead: the hardware alone is late */

/* Some rows that meet the same expert, and where their results go. */
typedef struct {
  const float *x;        /* [*, width] */
  const int64_t *tokens; /* [rows]: which row of x each is, or null: those from `first` on */
  int64_t first, rows, width;
  float *out; /* [rows, stride] */
  int64_t stride;
} group;

static inline const float *row_of(const group *g, int64_t t) {
  return g->x + (g->tokens ? g->tokens[t] : g->first + t) * g->width;
}

/* LANES products of each row from place i on, added to its sums. */
static inline __attribute__((always_inline)) void add(const float *const *x, const char *w,
                                                      int64_t i, lanes (*sums)[2], const int half,
                                                      const int count, const int dtype) {
  lanes weights = lanes_at(w + i * size_of(dtype), dtype), numbers;
  for (int r = 0; r < count; r++) {
    memcpy(&numbers, x[r] + i, sizeof numbers);
    sums[r][half] += numbers * weights;
  }
}

/* Sums of products of a row of weights with `count` rows; the compiler knows count and dtype. */
static inline __attribute__((always_inline)) void dots(const float *const *x, const char *w,
                                                       int64_t width, float *found,
                                                       const int count, const int dtype) {
  lanes sums[TOGETHER][2] = {{{0}}};
  int64_t i = 0, size = size_of(dtype);
  for (; i + 2 * LANES <= width; i += 2 * LANES) {
    for (int64_t byte = 0; byte < 2 * LANES * size; byte += 64)
      __builtin_prefetch(w + (AHEAD * width + i) * size + byte, 0, 1);
    add(x, w, i, sums, 0, count, dtype);
    add(x, w, i + LANES, sums, 1, count, dtype);
  }
  if (i + LANES <= width) {
    add(x, w, i, sums, 0, count, dtype);
    i += LANES;
  }
  for (int r = 0; r < count; r++) {
    sums[r][0] += sums[r][1];
    found[r] = sum_lanes(sums[r]);
  }
  for (float weight; i < width; i++) {
    load(w, dtype, i, 1, &weight);
    for (int r = 0; r < count; r++) found[r] += x[r][i] * weight;
  }
}

/* Some rows of a matrix times every row of activations, into columns from `column` on. */
static inline __attribute__((always_inline)) void row_by_row(const group *g, const char *w,
                                                             const float *bias, int64_t count,
                                                             int64_t column, const int dtype) {
  int64_t bytes = g->width * size_of(dtype);
  for (int64_t j = 0; j < count; j++, w += bytes) {
    for (int64_t t = 0, some; t < g->rows; t += some) {
      const float *x[TOGETHER];
      float found[TOGETHER];
      for (some = TOGETHER; some > g->rows - t;) some /= 2;
      for (int r = 0; r < some; r++) x[r] = row_of(g, t + r);
      if (some == TOGETHER)
        dots(x, w, g->width, found, TOGETHER, dtype);
      else if (some == 4)
        dots(x, w, g->width, found, 4, dtype);
      else if (some == 2)
        dots(x, w, g->width, found, 2, dtype);
      else
        dots(x, w, g->width, found, 1, dtype);
      for (int r = 0; r < some; r++)
        g->out[(t + r) * g->stride + column + j] = bias ? found[r] + bias[j] : found[r];
    }
  }
}

/* One group through one matrix, shared among the threads of a parallel region. */
static void multiply(const group *g, const matrix *m, int dtype, int64_t expert, int64_t column) {
  int64_t bytes = g->width * size_of(dtype);
  const char *w = (const char *)m->values + expert * m->out * bytes;
#pragma omp for schedule(static) nowait
  for (int64_t j = 0; j < m->out; j += BLOCK) {
    int64_t count = m->out - j < BLOCK ? m->out - j : BLOCK;
    const float *bias = m->bias ? m->bias + j : 0;
    if (dtype == FLOAT32)
      row_by_row(g, w + j * bytes, bias, count, column + j, FLOAT32);
    else
      row_by_row(g, w + j * bytes, bias, count, column + j, BFLOAT16);
  }
}

int wide_linear(const void *x, int dtype, int64_t rows, int64_t inputs, int activation,
                const int64_t *tokens, const int64_t *experts, const int64_t *ends, int64_t groups,
                const matrix *matrices, int64_t count, int weight_dtype, float *out, int threads) {
  if (!ends) ends = &rows, groups = 1;
  int64_t width = activation == SWIGLU ? inputs / 2 : inputs, stride = 0;
  for (int64_t i = 0; i < count; i++) stride += matrices[i].out;
  int plain = dtype == FLOAT32 && activation == PLAIN;
  float *numbers = plain ? 0 : malloc((rows * width + 1) * sizeof(float));
  if (!plain && !numbers) return -1;
#pragma omp parallel num_threads(threads)
  {
    if (!plain) {
#pragma omp for schedule(static)
      for (int64_t m = 0; m < rows; m++) {
        float row[inputs];
        load(x, dtype, m * inputs, inputs, row);
        activate(row, width, activation);
        memcpy(numbers + m * width, row, width * sizeof(float));
      }
    }
    for (int64_t g = 0, start = 0; g < groups; start = ends[g++]) {
      group some = {.x = plain ? x : numbers, .tokens = tokens ? tokens + start : 0,
                    .first = start, .rows = ends[g] - start, .width = width,
                    .out = out + start * stride, .stride = stride};
      int64_t column = 0;
      for (int64_t i = 0; some.rows && i < count; column += matrices[i++].out)
        multiply(&some, matrices + i, weight_dtype, experts ? experts[g] : g, column);
    }
  }
  free(numbers);
  return 0;
}
