/*
 * Attention of one new token of each of several sequences over a paged cache, on a CPU. Each cached
 * row is read once, whole, for all heads, which is what keeps memory busy.
 */
#include <omp.h>
#include <stdlib.h>

#include "floats.h"

#define ROWS 4   /* cached rows that go together */
#define PART 256 /* cached rows that a thread takes: fixed, so that no result depends on threads */

/* What all sequences share. A row of the pool holds the keys of all kv heads, and their values. */
typedef struct {
  const void *pool; /* [slots, 2, kv_heads, width] */
  int dtype;        /* of queries, pool and results */
  int64_t heads, kv_heads;
  int64_t width; /* of a head; a multiple of LANES */
} cache;

/* One head's state while rows go by: the values so far, weighted with exp(score - most). */
typedef struct {
  float *sum; /* [width] */
  float most, total;
} head;

static inline void fetch(const char *from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
}

/* ROWS rows, of which `count` are there, through all heads; dtype is known to the compiler. */
static inline __attribute__((always_inline)) void attend(const cache *c, const float *query,
                                                         const char *const rows[ROWS],
                                                         const char *const next[ROWS],
                                                         int64_t count, head *heads,
                                                         const int dtype) {
  int64_t size = size_of(dtype), shared = c->heads / c->kv_heads;
  float scores[c->heads * ROWS], keep[c->heads];
  for (int64_t h = 0; h < c->heads; h++) {
    lanes sums[ROWS] = {{0}}, x;
    int64_t key = h / shared * c->width * size;
    for (int r = 0; r < ROWS; r++) fetch(next[r] + key, c->width * size);
    for (int64_t i = 0; i < c->width; i += LANES) {
      memcpy(&x, query + h * c->width + i, sizeof x);
      for (int r = 0; r < ROWS; r++) sums[r] += x * lanes_at(rows[r] + key + i * size, dtype);
    }
    float *own = scores + h * ROWS, most = heads[h].most;
    for (int r = 0; r < ROWS; r++) own[r] = r < count ? sum_lanes(sums + r) : MINUS_INFINITY;
    for (int r = 0; r < ROWS; r++) most = own[r] > most ? own[r] : most;
    for (int r = 0; r < ROWS; r++) own[r] -= most;
    keep[h] = heads[h].most - most;
    heads[h].most = most;
  }
  for (int64_t h = 0; h < c->heads; h++) keep[h] = exponential(keep[h]);
  for (int64_t i = 0; i < c->heads * ROWS; i++) scores[i] = exponential(scores[i]);
  for (int64_t h = 0; h < c->heads; h++) {
    int64_t value = (c->kv_heads + h / shared) * c->width * size;
    float *own = scores + h * ROWS;
    for (int r = count; r < ROWS; r++) own[r] = 0.0f;
    for (int r = 0; r < ROWS; r++) fetch(next[r] + value, c->width * size);
    heads[h].total = heads[h].total * keep[h] + ((own[0] + own[1]) + (own[2] + own[3]));
    for (int64_t i = 0; i < c->width; i += LANES) {
      lanes x;
      memcpy(&x, heads[h].sum + i, sizeof x);
      x *= keep[h];
      for (int r = 0; r < ROWS; r++) x += own[r] * lanes_at(rows[r] + value + i * size, dtype);
      memcpy(heads[h].sum + i, &x, sizeof x);
    }
  }
}

/* One part of a sequence; behind its last row the last row stands again, and does not count. */
static void attend_part(const cache *c, const float *query, const int64_t *slots, int64_t length,
                        head *heads) {
  int64_t size = 2 * c->kv_heads * c->width * size_of(c->dtype); /* of a row */
  const char *pool = c->pool, *rows[ROWS], *next[ROWS];
  for (int64_t i = 0; i < length; i += ROWS) {
    for (int r = 0; r < ROWS; r++) {
      rows[r] = pool + slots[i + r < length ? i + r : length - 1] * size;
      next[r] = pool + slots[i + ROWS + r < length ? i + ROWS + r : length - 1] * size;
    }
    if (c->dtype == FLOAT32)
      attend(c, query, rows, next, length - i, heads, FLOAT32);
    else
      attend(c, query, rows, next, length - i, heads, BFLOAT16);
  }
}

/* The parts of a sequence as one; `head` is where its parts begin. */
static void merge(const cache *c, const head *parts, int64_t count, void *out, int64_t place) {
  float result[c->width], most = MINUS_INFINITY, total = 0.0f;
  memset(result, 0, sizeof result);
  for (int64_t p = 0; p < count; p++)
    most = parts[p * c->heads].most > most ? parts[p * c->heads].most : most;
  for (int64_t p = 0; p < count; p++) {
    const head *part = parts + p * c->heads;
    float weight = exponential(part->most - most);
    total += weight * part->total;
    for (int64_t i = 0; i < c->width; i++) result[i] += weight * part->sum[i];
  }
  for (int64_t i = 0; i < c->width; i++) result[i] /= total;
  store(result, c->width, out, c->dtype, place);
}

int decode_attention(const void *query, const void *pool, int dtype, int64_t heads,
                     int64_t kv_heads, int64_t width, float scale, const int64_t *slots,
                     const int64_t *ends, int64_t sequences, void *out, int threads) {
  cache c = {pool, dtype, heads, kv_heads, width};
  int64_t firsts[sequences + 1], queries = heads * width; /* first part of each sequence */
  firsts[0] = 0;
  for (int64_t s = 0; s < sequences; s++)
    firsts[s + 1] = firsts[s] + (ends[s] - (s ? ends[s - 1] : 0) + PART - 1) / PART;
  int64_t states = firsts[sequences] * heads;
  float *sums = calloc(states * width + threads * queries, sizeof(float));
  head *parts = malloc(states * sizeof(head));
  if (!sums || !parts) {
    free(sums);
    free(parts);
    return -1;
  }
  for (int64_t i = 0; i < states; i++) parts[i] = (head){sums + i * width, MINUS_INFINITY, 0};
#pragma omp parallel num_threads(threads)
  {
    float *wanted = sums + states * width + omp_get_thread_num() * queries;
#pragma omp for schedule(dynamic)
    for (int64_t part = 0; part < firsts[sequences]; part++) {
      int64_t s = 0;
      while (firsts[s + 1] <= part) s++;
      int64_t first = (s ? ends[s - 1] : 0) + (part - firsts[s]) * PART;
      int64_t length = ends[s] - first < PART ? ends[s] - first : PART;
      load(query, dtype, s * queries, queries, wanted);
      for (int64_t i = 0; i < queries; i++) wanted[i] *= scale;
      attend_part(&c, wanted, slots + first, length, parts + part * heads);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < sequences * heads; i++) {
      int64_t s = i / heads;
      merge(&c, parts + firsts[s] * heads + i % heads, firsts[s + 1] - firsts[s], out,
            i * width);
    }
  }
  free(sums);
  free(parts);
  return 0;
}
