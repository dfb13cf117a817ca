/*
 * What is little work but many operations of PyTorch: norms, rotary positions, the weighted sum of
 * experts and products of heads.
 */
#include <stdlib.h>

#include "floats.h"

/* x / sqrt(mean(x^2) + eps) in float32, cast to the dtype of x, times the weight in that dtype. */
void rms_norm(const void *x, const void *weight, int dtype, int64_t rows, int64_t width, float eps,
              void *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 8)
  for (int64_t m = 0; m < rows; m++) {
    float row[width], factor[width];
    load(x, dtype, m * width, width, row);
    load(weight, dtype, 0, width, factor);
    float size = 1.0f / __builtin_sqrtf(dot_of(row, row, width) / width + eps);
    for (int64_t i = 0; i < width; i++) row[i] *= size;
    if (dtype == BFLOAT16)
      for (int64_t i = 0; i < width; i++) row[i] = from_bfloat16(to_bfloat16(row[i]));
    for (int64_t i = 0; i < width; i++) row[i] *= factor[i];
    store(row, width, out, dtype, m * width);
  }
}

/* silu(gate) * up of rows that lie `stride` apart, rounded once. */
void swiglu(const void *gate, const void *up, int dtype, int64_t rows, int64_t width,
            int64_t stride, void *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 8)
  for (int64_t m = 0; m < rows; m++) {
    float row[width], factor[width];
    load(gate, dtype, m * stride, width, row);
    load(up, dtype, m * stride, width, factor);
    for (int64_t i = 0; i < width; i++) row[i] = row[i] * sigmoid(row[i]) * factor[i];
    store(row, width, out, dtype, m * width);
  }
}

/* Channel i against channel i + width / 2 of every head, by the angles of its token. */
void rope(const void *x, int dtype, int64_t tokens, int64_t heads, int64_t width, const float *cos,
          const float *sin, void *out, int threads) {
  int64_t half = width / 2;
#pragma omp parallel for num_threads(threads) schedule(static) if (tokens > 8)
  for (int64_t t = 0; t < tokens; t++) {
    const float *c = cos + t * width, *s = sin + t * width;
    float row[width], turned[width];
    for (int64_t h = 0; h < heads; h++) {
      int64_t place = (t * heads + h) * width;
      load(x, dtype, place, width, row);
      for (int64_t i = 0; i < half; i++) {
        turned[i] = row[i] * c[i] + -row[half + i] * s[i];
        turned[half + i] = row[half + i] * c[half + i] + row[i] * s[half + i];
      }
      store(turned, width, out, dtype, place);
    }
  }
}

/*
 * Weighted sum of the k rows of each token; `order` says which choice t k + j a row is of, null that
 * rows stand in the order of the choices.
 */
int combine(const void *rows, int dtype, const int64_t *order, const float *weights, int64_t tokens,
            int64_t k, int64_t width, float *out, int threads) {
  int64_t *place = malloc((tokens * k + 1) * sizeof(int64_t));
  if (!place) return -1;
  for (int64_t i = 0; i < tokens * k; i++) place[order ? order[i] : i] = i;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < tokens; t++) {
    float row[width], *sum = out + t * width;
    for (int64_t j = 0; j < k; j++) {
      float weight = weights[t * k + j];
      load(rows, dtype, place[t * k + j] * width, width, row);
      if (j)
        for (int64_t i = 0; i < width; i++) sum[i] += row[i] * weight;
      else
        for (int64_t i = 0; i < width; i++) sum[i] = row[i] * weight;
    }
  }
  free(place);
  return 0;
}

/*
 * x [tokens, heads, in] times a matrix per head, which lie `apart` numbers from each other: rows are
 * those of the result, [out, in], or if `turned` those of x, [in, out]. Sums are float32.
 */
int head_linear(const void *x, int dtype, int64_t tokens, int64_t heads, int64_t in,
                const void *weight, int64_t apart, int64_t width_out, int turned, void *out,
                int threads) {
  int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
  for (int64_t h = 0; h < heads; h++) {
    float *numbers = malloc((tokens * (in + width_out) + in + width_out) * sizeof(float));
    failed |= !numbers;
    if (!numbers) continue;
    float *from = numbers, *to = from + tokens * in, *row = to + tokens * width_out;
    for (int64_t t = 0; t < tokens; t++) load(x, dtype, (t * heads + h) * in, in, from + t * in);
    memset(to, 0, tokens * width_out * sizeof(float));
    for (int64_t j = 0; j < (turned ? in : width_out); j++) {
      int64_t width = turned ? width_out : in;
      load(weight, dtype, h * apart + j * width, width, row);
      for (int64_t t = 0; t < tokens; t++)
        if (turned)
          for (int64_t i = 0; i < width; i++) to[t * width + i] += from[t * in + j] * row[i];
        else
          to[t * width_out + j] = dot_of(from + t * in, row, width);
    }
    for (int64_t t = 0; t < tokens; t++)
      store(to + t * width_out, width_out, out, dtype, (t * heads + h) * width_out);
    free(numbers);
  }
  return failed;
}
