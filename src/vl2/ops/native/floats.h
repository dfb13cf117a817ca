/* Floats: casts, and exp the same to the last bit in every loop that the compiler makes of it. */
#ifndef VL2_FLOATS_H
#define VL2_FLOATS_H

#include <stdint.h>
#include <string.h>

#define LANES 16 /* floats that are added up side by side, whatever registers there are */
#define MINUS_INFINITY (-__builtin_inff())

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef uint32_t words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t halves __attribute__((vector_size(LANES * sizeof(uint16_t))));
typedef float quarter __attribute__((vector_size(LANES * sizeof(float) / 4)));

enum { FLOAT32, BFLOAT16 };

static inline float as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static inline uint32_t as_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline float from_bfloat16(uint16_t x) { return as_float((uint32_t)x << 16); }

/* Nearest, ties to even, as torch casts. */
static inline uint16_t to_bfloat16(float x) {
  uint32_t bits = as_bits(x);
  int nan = (bits & 0x7fffffff) > 0x7f800000;
  return nan ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* Numbers of a float32 or bfloat16 tensor as float32, and back. */
static inline void load(const void *from, int dtype, int64_t start, int64_t count, float *to) {
  if (dtype == FLOAT32)
    memcpy(to, (const float *)from + start, count * sizeof(float));
  else
    for (int64_t i = 0; i < count; i++) to[i] = from_bfloat16(((const uint16_t *)from)[start + i]);
}

static inline void store(const float *from, int64_t count, void *to, int dtype, int64_t start) {
  if (dtype == FLOAT32)
    memcpy((float *)to + start, from, count * sizeof(float));
  else
    for (int64_t i = 0; i < count; i++) ((uint16_t *)to)[start + i] = to_bfloat16(from[i]);
}

/* Bytes of a number. */
static inline int64_t size_of(int dtype) { return dtype == FLOAT32 ? 4 : 2; }

/* LANES numbers of a float32 or bfloat16 tensor as float32. */
static inline lanes lanes_at(const char *from, int dtype) {
  lanes x;
  halves h;
  if (dtype == FLOAT32) {
    memcpy(&x, from, sizeof x);
    return x;
  }
  memcpy(&h, from, sizeof h);
  words w = __builtin_convertvector(h, words) << 16;
  memcpy(&x, &w, sizeof x);
  return x;
}

static inline float sum_lanes(const lanes *x) {
  quarter parts[4];
  memcpy(parts, x, sizeof parts);
  quarter total = (parts[0] + parts[1]) + (parts[2] + parts[3]);
  return (total[0] + total[1]) + (total[2] + total[3]);
}

/* Sum of products, lane by lane, so that the compiler need not reorder anything. */
static inline float dot_of(const float *x, const float *y, int64_t width) {
  lanes sums = {0}, a, b;
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) {
    memcpy(&a, x + i, sizeof a);
    memcpy(&b, y + i, sizeof b);
    sums += a * b;
  }
  float total = 0.0f;
  for (int lane = 0; lane < LANES; lane++) total += sums[lane];
  for (; i < width; i++) total += x[i] * y[i];
  return total;
}

static inline float highest_of(const float *x, int64_t count) {
  lanes highest, some;
  float most = MINUS_INFINITY;
  int64_t i = 0;
  for (int lane = 0; lane < LANES; lane++) highest[lane] = MINUS_INFINITY;
  for (; i + LANES <= count; i += LANES) {
    memcpy(&some, x + i, sizeof some);
    words above = (words)(some > highest);
    highest = (lanes)(((words)some & above) | ((words)highest & ~above));
  }
  for (int lane = 0; lane < LANES; lane++) most = highest[lane] > most ? highest[lane] : most;
  for (; i < count; i++) most = x[i] > most ? x[i] : most;
  return most;
}

static inline float sum_of(const float *x, int64_t count) {
  lanes sums = {0}, some;
  float total = 0.0f;
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    memcpy(&some, x + i, sizeof some);
    sums += some;
  }
  for (; i < count; i++) total += x[i];
  return total + sum_lanes(&sums);
}

/* Nearest whole number, ties to even, of |x| < 2^22: beyond 2^23 floats have no fraction. */
static inline float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

/*
 * exp(x) to about 1 unit in the last place, x kept within +-80. It is 2^n exp(r) with |r| <= ln(2) / 2
 * and the polynomial of Cephes' expf; ln(2) comes in two parts, so that r is exact.
 */
static inline float exponential(float x) {
  x = x < -80.0f ? -80.0f : x;
  x = x > 80.0f ? 80.0f : x;
  float n = round_even(x * 1.44269504f);
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * as_float((uint32_t)((int32_t)n + 127) << 23);
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

#endif
