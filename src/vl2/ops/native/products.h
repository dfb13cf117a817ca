/*
 * What products of activations with matrices share: which rows meet which matrices, what happens to
 * rows before, and how threads share the work.
 */
#ifndef VL2_PRODUCTS_H
#define VL2_PRODUCTS_H

#include "floats.h"

#define BLOCK 32 /* rows of weights that one thread takes at a time */

enum { PLAIN, SWIGLU };

/* Matrices [out, width], one per expert, one behind the other. */
typedef struct {
  const void *values; /* [experts, out, width] */
  const float *scale; /* [experts, out], of int8 */
  const float *bias;  /* [out], or null */
  int64_t out;
} matrix;

/* Rows by the expert that they meet, and where all results go. */
typedef struct {
  const int64_t *tokens;  /* which row of x each is, or null: they are in order */
  const int64_t *experts; /* [count]: whose matrices each group meets, or null: those of its number */
  const int64_t *ends;    /* [count]: after the last row of each group */
  int64_t count;
  void *out; /* float32 or bfloat16 [rows, stride] */
  int dtype;
  int64_t stride;
} groups;

/* Some rows that meet the same expert, and where their results go. */
typedef struct {
  int64_t number, expert;
  const int64_t *tokens; /* [rows]: which row of x each is, or null: those from `first` on */
  int64_t first, rows;
  void *out; /* [rows, stride] */
  int dtype;
  int64_t stride;
} group;

static inline group group_at(const groups *all, int64_t number) {
  int64_t first = number ? all->ends[number - 1] : 0;
  return (group){.number = number,
                 .expert = all->experts ? all->experts[number] : number,
                 .tokens = all->tokens ? all->tokens + first : 0,
                 .first = first,
                 .rows = all->ends[number] - first,
                 .out = (char *)all->out + first * all->stride * size_of(all->dtype),
                 .dtype = all->dtype,
                 .stride = all->stride};
}

/* Which row of x row t of a group is. */
static inline int64_t row_of(const group *g, int64_t t) {
  return g->tokens ? g->tokens[t] : g->first + t;
}

/* The result of row t in a column. */
static inline void put(const group *g, int64_t t, int64_t column, float value) {
  int64_t place = t * g->stride + column;
  if (g->dtype == FLOAT32)
    ((float *)g->out)[place] = value;
  else
    ((uint16_t *)g->out)[place] = to_bfloat16(value);
}

/* Columns of the results of some matrices, which stand side by side. */
static inline int64_t columns_of(const matrix *matrices, int64_t count) {
  int64_t columns = 0;
  for (int64_t i = 0; i < count; i++) columns += matrices[i].out;
  return columns;
}

/* Numbers of a row of x that meet a matrix: SWIGLU makes one of gate and up. */
static inline int64_t width_of(int64_t inputs, int activation) {
  return activation == SWIGLU ? inputs / 2 : inputs;
}

/* Row m of x as the numbers to multiply, of which SWIGLU has gate and then up. */
static inline void read_row(const void *x, int dtype, int64_t inputs, int activation, int64_t m,
                            float *row) {
  int64_t width = width_of(inputs, activation);
  load(x, dtype, m * inputs, inputs, row);
  if (activation == SWIGLU)
    for (int64_t i = 0; i < width; i++) row[i] = row[i] * sigmoid(row[i]) * row[width + i];
}

/* Rows of a matrix from `from` on times the activations x of a group, into columns from `column` on. */
typedef void product(const void *x, const group *g, const matrix *m, int64_t from, int64_t count,
                     int64_t column);

/* All groups through all matrices, in blocks that the threads of a parallel region share. */
static inline void multiply(const void *x, const groups *all, const matrix *matrices, int64_t count,
                            product *block) {
  for (int64_t number = 0; number < all->count; number++) {
    group g = group_at(all, number);
    int64_t column = 0;
    for (const matrix *m = matrices; g.rows && m < matrices + count; column += m++->out)
#pragma omp for schedule(static) nowait
      for (int64_t j = 0; j < m->out; j += BLOCK)
        block(x, &g, m, j, m->out - j < BLOCK ? m->out - j : BLOCK, column + j);
  }
}

#endif
