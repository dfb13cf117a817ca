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

/* Activations as floats, and how weights are stored. */
typedef struct {
  const float *rows; /* [*, width] */
  int64_t width;
  int weight_dtype;
} floats;

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
static inline __attribute__((always_inline)) void row_by_row(const floats *x, const group *g,
                                                             const char *w, const float *bias,
                                                             int64_t count, int64_t column,
                                                             const int dtype) {
  for (int64_t j = 0; j < count; j++, w += x->width * size_of(dtype)) {
    for (int64_t t = 0, some; t < g->rows; t += some) {
      const float *rows[TOGETHER];
      float found[TOGETHER];
      for (some = TOGETHER; some > g->rows - t;) some /= 2;
      for (int r = 0; r < some; r++) rows[r] = x->rows + row_of(g, t + r) * x->width;
      if (some == TOGETHER)
        dots(rows, w, x->width, found, TOGETHER, dtype);
      else if (some == 4)
        dots(rows, w, x->width, found, 4, dtype);
      else if (some == 2)
        dots(rows, w, x->width, found, 2, dtype);
      else
        dots(rows, w, x->width, found, 1, dtype);
      for (int r = 0; r < some; r++)
        put(g, t + r, column + j, bias ? found[r] + bias[j] : found[r]);
    }
  }
}

static void wide_block(const void *activations, const group *g, const matrix *m, int64_t from,
                       int64_t count, int64_t column) {
  const floats *x = activations;
  int64_t first = (g->expert * m->out + from) * x->width;
  const char *w = (const char *)m->values + first * size_of(x->weight_dtype);
  const float *bias = m->bias ? m->bias + from : 0;
  if (x->weight_dtype == FLOAT32)
    row_by_row(x, g, w, bias, count, column, FLOAT32);
  else
    row_by_row(x, g, w, bias, count, column, BFLOAT16);
}

int wide_linear(const void *x, int dtype, int64_t rows, int64_t inputs, int activation,
                const int64_t *tokens, const int64_t *experts, const int64_t *ends,
                int64_t group_count, const matrix *matrices, int64_t count, int weight_dtype,
                void *out, int out_dtype, int threads) {
  if (!ends) ends = &rows, group_count = 1;
  int64_t width = width_of(inputs, activation);
  groups all = {tokens, experts, ends, group_count, out, out_dtype, columns_of(matrices, count)};
  int plain = dtype == FLOAT32 && activation == PLAIN;
  float *made = plain ? 0 : malloc((rows * width + 1) * sizeof(float));
  if (!plain && !made) return -1;
  floats numbers = {plain ? x : made, width, weight_dtype};
#pragma omp parallel num_threads(threads)
  {
    if (!plain) {
#pragma omp for schedule(static)
      for (int64_t m = 0; m < rows; m++) {
        float row[inputs];
        read_row(x, dtype, inputs, activation, m, row);
        memcpy(made + m * width, row, width * sizeof(float));
      }
    }
    multiply(&numbers, &all, matrices, count, wide_block);
  }
  free(made);
  return 0;
}
