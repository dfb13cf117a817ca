/* What products of activations with matrices share: how they are given, and what happens before. */
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

/* The numbers to multiply, [width], from a row of x, of which SWIGLU has gate and then up. */
static inline void activate(float *row, int64_t width, int activation) {
  if (activation == SWIGLU)
    for (int64_t i = 0; i < width; i++) row[i] = row[i] * sigmoid(row[i]) * row[width + i];
}

#endif
