/*
 * Activations and softmax with their gradients, to train in bfloat16: PyTorch spends as long in the
 * tanh of a GELU as in the two products around it.
 */
#include "floats.h"

#define PART 1024 /* numbers that are turned at a time: they stay in the cache */

/* A function of each number, from a table of all 65,536 bfloat16 numbers in the order of their bits. */
void activate(const uint16_t *x, int64_t count, const uint16_t *table, uint16_t *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < count; i++) out[i] = table[x[i]];
}

/* The change of each number from that of its function, by a table of slopes. */
void activate_backward(const uint16_t *x, const uint16_t *change, int64_t count, const float *slopes,
                       uint16_t *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t start = 0; start < count; start += PART) {
    int64_t many = count - start < PART ? count - start : PART;
    float by[PART], slope[PART];
    for (int64_t i = 0; i < many; i++) {
      uint32_t bits = x[start + i];
      __asm__("" : "+r"(bits)); /* loads one by one: a vectorised gather is slower */
      slope[i] = slopes[bits];
    }
    load(change, BFLOAT16, start, many, by);
    for (int64_t i = 0; i < many; i++) by[i] *= slope[i];
    store(by, many, out, BFLOAT16, start);
  }
}

/*
 * Each row of scale x to shares that add up to one. A mask [batch or 1, queries, width] holds 0 where
 * a share is nothing; `apart` is the distance from one batch's mask to the next one's. It leaves at
 * least one number of each row.
 */
void softmax(const uint16_t *x, int64_t rows, int64_t width, float scale, const uint8_t *mask,
             int64_t heads, int64_t queries, int64_t apart, uint16_t *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t m = 0; m < rows; m++) {
    float row[width];
    const uint8_t *seen = mask ? mask + m / (heads * queries) * apart + m % queries * width : 0;
    load(x, BFLOAT16, m * width, width, row);
    if (seen)
      for (int64_t i = 0; i < width; i++) row[i] = seen[i] ? row[i] : MINUS_INFINITY;
    float highest = highest_of(row, width);
    for (int64_t i = 0; i < width; i++) row[i] = exponential(scale * (row[i] - highest));
    if (seen)
      for (int64_t i = 0; i < width; i++) row[i] = seen[i] ? row[i] : 0.0f;
    float share = 1.0f / sum_of(row, width);
    for (int64_t i = 0; i < width; i++) row[i] *= share;
    store(row, width, out, BFLOAT16, m * width);
  }
}

/* The change of x from that of its shares: scale p (dp - sum(p dp)). */
void softmax_backward(const uint16_t *shares, const uint16_t *change, int64_t rows, int64_t width,
                      float scale, uint16_t *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t m = 0; m < rows; m++) {
    float p[width], by[width];
    load(shares, BFLOAT16, m * width, width, p);
    load(change, BFLOAT16, m * width, width, by);
    float sum = dot_of(p, by, width);
    for (int64_t i = 0; i < width; i++) by[i] = scale * p[i] * (by[i] - sum);
    store(by, width, out, BFLOAT16, m * width);
  }
}
