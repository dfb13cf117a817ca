/*
 * What is little work but many operations of PyTorch: norms, rotary positions, rows by
 * expert and their weighted sum, and what choosing a token needs of the logits.
 */
#include <stdlib.h>

#include "floats.h"

#define PEAK_PART 8192 /* logits that a thread takes: fixed, so that no sum depends on threads */
#define PEAK_STEP 256  /* that are raised to powers at a time */

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
 * Places of the n k choices by expert, those of one in their order: which choice stands at each, of
 * which token that is, and behind which place each expert ends.
 */
void group_rows(const int64_t *experts, int64_t tokens, int64_t k, int64_t total, int64_t *order,
                int64_t *token, int64_t *ends) {
  memset(ends, 0, total * sizeof(int64_t));
  for (int64_t i = 0; i < tokens * k; i++)
    if (experts[i] + 1 < total) ends[experts[i] + 1]++;
  for (int64_t e = 1; e < total; e++) ends[e] += ends[e - 1]; /* where each begins */
  for (int64_t i = 0; i < tokens * k; i++) {
    int64_t place = ends[experts[i]]++;
    order[place] = i;
    token[place] = i / k;
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

/* What a part of a row of logits says of it. */
typedef struct {
  int64_t best; /* first place of the highest */
  float most;   /* the highest */
  float rest;   /* sum of exp(logit - most) of all others, NaN if any is */
} peak;

/* Sum of exp(x - shift), some at a time. */
static float sum_exp(const float *x, int64_t count, float shift) {
  float powers[PEAK_STEP], total = 0.0f;
  lanes sums = {0}, some;
  for (; count > 0; x += PEAK_STEP, count -= PEAK_STEP) {
    int64_t here = count < PEAK_STEP ? count : PEAK_STEP;
    for (int64_t i = 0; i < here; i++) powers[i] = exponential(x[i] - shift);
    for (int64_t i = here; i < PEAK_STEP; i++) powers[i] = 0.0f;
    for (int64_t i = 0; i < PEAK_STEP; i += LANES) {
      memcpy(&some, powers + i, sizeof some);
      sums += some;
    }
  }
  for (int lane = 0; lane < LANES; lane++) total += sums[lane];
  return total;
}

/* First place of a number that is among the count; the last if it is not. */
static int64_t place_of(const float *x, int64_t count, float number) {
  int64_t i = 0;
  for (int found = 0; i + PEAK_STEP < count; i += PEAK_STEP) {
    for (int j = 0; j < PEAK_STEP; j++) found |= x[i + j] == number;
    if (found) break;
  }
  while (i + 1 < count && x[i] != number) i++;
  return i;
}

static peak peak_of(const float *row, int64_t first, int64_t count) {
  float most = highest_of(row, count);
  if (most == MINUS_INFINITY) return (peak){first, most, sum_exp(row, count, 0.0f)}; /* 0 or NaN */
  int64_t best = place_of(row, count, most);
  return (peak){first + best, most,
                sum_exp(row, best, most) + sum_exp(row + best + 1, count - best - 1, most)};
}

/* The place of the highest logit of each row, the logit, and the sum of exp(other - highest). */
int row_peaks(const float *logits, int64_t rows, int64_t width, int64_t *best, float *most,
              float *rest, int threads) {
  int64_t parts = (width + PEAK_PART - 1) / PEAK_PART;
  peak *found = malloc(rows * parts * sizeof(peak) + 1);
  if (!found) return -1;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows * parts; i++) {
    int64_t first = i % parts * PEAK_PART;
    int64_t count = width - first < PEAK_PART ? width - first : PEAK_PART;
    found[i] = peak_of(logits + i / parts * width + first, first, count);
  }
  for (int64_t r = 0; r < rows; r++) {
    const peak *own = found + r * parts;
    int64_t highest = 0;
    for (int64_t p = 1; p < parts; p++)
      if (own[p].most > own[highest].most) highest = p;
    best[r] = own[highest].best;
    most[r] = own[highest].most;
    rest[r] = own[highest].rest + (most[r] - most[r]); /* NaN if that is infinite */
    for (int64_t p = 0; p < parts; p++)
      if (p != highest) rest[r] += (1.0f + own[p].rest) * exponential(own[p].most - most[r]);
  }
  free(found);
  return 0;
}
