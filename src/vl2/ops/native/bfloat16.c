/*
 * Products in bfloat16 of many rows, on tiles of AMX: linear layers, and the SwiGLU of experts. Weights
 * are bfloat16, read where they lie, or int4 (ops/int4.py), of which 64 rows at a time become bfloat16.
 * Sums are float32; a row's result depends on that row alone. No shape is compiled or remembered.
 */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "products.h"
#include "tiles.h"

enum { WIDE, INT4 }; /* how weights are held */

#ifdef HAS_TILES
#define CHUNK (10 * ROWS)         /* rows that are packed at a time: more would not stay in a cache */
#define COLUMNS 64                /* rows of int4 weights that are packed together */
#define BYTES 2                   /* of a number */

/* How one matrix is read. */
typedef struct {
  const char *values;
  const uint16_t *scale; /* of int4: [groups, out, 2], size and zero */
  int64_t out, width, group;
  int held;
} reading;

/* A thread's space for weights that do not stand in memory as tiles want them. */
typedef struct {
  char *unpacked;              /* of int4: [4, deep] tiles; of bfloat16: rows that are too few */
  char ends[2][TILE * DEPTH];  /* the last tiles, filled up with zeros */
} space;

/* Words [16] of one pair of inputs, for 64 rows of weights, from two lines of nibbles. */
static inline void unpack_pair(const uint8_t *lines, const __m512 *size, const __m512 *zero,
                               __m512i *words) {
  const __m512i low = _mm512_set1_epi32(15);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int part = 0; part < 2; part++) {
    __m512 found[2][2]; /* [line, half of a byte] */
    for (int line = 0; line < 2; line++) {
      const __m128i *from = (const __m128i *)(lines + line * PAIR) + part;
      __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from));
      __m512 first = _mm512_cvtepi32_ps(_mm512_and_si512(bytes, low));
      __m512 second = _mm512_cvtepi32_ps(_mm512_srli_epi32(bytes, 4));
      found[line][0] = _mm512_fmadd_ps(size[part], first, zero[part]);
      found[line][1] = _mm512_fmadd_ps(size[part + 2], second, zero[part + 2]);
    }
    for (int half = 0; half < 2; half++) {
      __m512i both = (__m512i)_mm512_cvtne2ps_pbh(found[1][half], found[0][half]);
      words[part + 2 * half] = _mm512_permutexvar_epi16(order, both);
    }
  }
}

/* 64 rows of int4 weights from row `row` on as tiles [4, deep] of bfloat16. */
static void unpack_rows(const reading *from, int64_t row, char *to) {
  int64_t deep = tiles_deep(from->width * BYTES);
  const uint8_t *lines = (const uint8_t *)from->values + row * from->width / 2;
  for (int64_t k = 0; k < deep; k++) {
    __m512 size[4], zero[4];
    const uint16_t *scale = from->scale + (k * PAIR / from->group * from->out + row) * 2;
    for (int q = 0; q < 4; q++) {
      __m512i both = _mm512_loadu_si512(scale + PAIR * q);
      size[q] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
      zero[q] = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)));
      zero[q] = _mm512_fnmadd_ps(size[q], _mm512_set1_ps(8.0f), zero[q]);
    }
    __m512i words[4][TILE], some[4];
    for (int i = 0; i < TILE; i++) {
      unpack_pair(lines + (k * PAIR + 2 * i) * PAIR, size, zero, some);
      for (int q = 0; q < 4; q++) words[q][i] = some[q];
    }
    for (int q = 0; q < 4; q++) {
      transpose(words[q]);
      char *tile = to + (q * deep + k) * WORDS * 4;
      for (int i = 0; i < TILE; i++) _mm512_store_si512(tile + i * DEPTH, words[q][i]);
    }
  }
}

/* Ready to multiply the PAIR rows from row `row` on, which are asked for in order. */
static weights ready(const reading *from, int64_t row, space *own) {
  int64_t bytes = from->width * BYTES, deep = tiles_deep(bytes);
  weights w = {.stride = DEPTH, .step = WORDS * 4, .whole = deep};
  if (from->held == INT4) {
    if (row % COLUMNS == 0) unpack_rows(from, row, own->unpacked);
    w.half[0] = own->unpacked + row % COLUMNS / TILE * deep * w.step;
    w.half[1] = w.half[0] + deep * w.step;
    return w;
  }
  const char *values = from->values + row * bytes;
  int64_t rows = from->out - row;
  if (rows >= PAIR) return weights_at(values, PAIR, bytes, bytes, own->ends);
  memset(own->unpacked, 0, PAIR * deep * DEPTH); /* a product reads whole tiles */
  for (int64_t r = 0; r < rows; r++)
    memcpy(own->unpacked + r * deep * DEPTH, values + r * bytes, bytes);
  return weights_at(own->unpacked, PAIR, deep * DEPTH, deep * DEPTH, own->ends);
}

/* What lies behind PAIR rows of weights that are read where they lie, or null. */
static const char *behind(const reading *from, int64_t row) {
  int there = from->held == WIDE && row + 2 * PAIR <= from->out;
  return there ? from->values + (row + PAIR) * from->width * BYTES : 0;
}

/* Sums [weights, activations] of some rows into columns of `out` [*, stride]. */
static void write_rows(sums found, int count, int64_t rows, int64_t columns, const float *bias,
                       uint16_t *out, int64_t stride) {
  for (int half = 0; half < 2 && half * TILE < columns; half++) {
    int64_t left = columns - half * TILE;
    __mmask16 kept = left < TILE ? (1 << left) - 1 : 0xffff;
    __m512 shift = bias ? _mm512_maskz_loadu_ps(kept, bias + half * TILE) : _mm512_setzero_ps();
    for (int i = 0; i < count; i++) {
      __m512i r[TILE];
      for (int t = 0; t < TILE; t++) r[t] = _mm512_load_si512(found[ABREAST * half + i] + t * TILE);
      transpose(r);
      int64_t some = rows - i * TILE < TILE ? rows - i * TILE : TILE;
#pragma GCC unroll 16
      for (int64_t t = 0; t < TILE; t++) {
        if (t >= some) break;
        __m256i value = (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps((__m512)r[t], shift));
        _mm256_mask_storeu_epi16(out + (i * TILE + t) * stride + half * TILE, kept, value);
      }
    }
  }
}

/* Room of a thread for weights of `width` inputs. */
static int64_t room(int64_t width) { return COLUMNS * tiles_deep(width * BYTES) * DEPTH; }

int tile_linear(const char *x, int64_t rows, int64_t width, const matrix *matrices, int64_t count,
                int held, int64_t group, uint16_t *out, int64_t stride, int threads) {
  int64_t bytes = width * BYTES, deep = tiles_deep(bytes);
  int64_t chunk = rows < CHUNK ? (rows + ROWS - 1) / ROWS * ROWS : CHUNK;
  char *memory = aligned_alloc(64, chunk * deep * DEPTH + threads * room(width));
  if (!memory) return -1;
  int32_t *tiles = (int32_t *)(memory + threads * room(width));
#pragma omp parallel num_threads(threads)
  {
    space own __attribute__((aligned(64)));
    sums found __attribute__((aligned(64)));
    own.unpacked = memory + omp_get_thread_num() * room(width);
    configure_tiles();
    for (int64_t start = 0; start < rows; start += chunk) {
      int64_t some = rows - start < chunk ? rows - start : chunk;
#pragma omp for schedule(static)
      for (int64_t b = 0; b < tiles_high(some); b++)
        pack_rows(x, 0, start + b * TILE, some - b * TILE, bytes, tiles + b * deep * WORDS);
      for (int64_t i = 0, column = 0; i < count; column += matrices[i++].out) {
        const matrix *m = matrices + i;
        reading from = {m->values, (const uint16_t *)m->scale, m->out, width, group, held};
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < m->out; block += COLUMNS)
          for (int64_t j = block; j < block + COLUMNS && j < m->out; j += PAIR) {
            weights w = ready(&from, j, &own);
            for (int64_t t = 0; t < some; t += ROWS) {
              const char *next = t || start ? 0 : behind(&from, j);
              int high = multiply_rows(OF_BFLOAT16, &w, tiles + t * deep * TILE, some - t, deep, next, found);
              int64_t columns = m->out - j < PAIR ? m->out - j : PAIR;
              write_rows(found, high, some - t, columns, m->bias ? m->bias + j : 0,
                         out + (start + t) * stride + column + j, stride);
            }
          }
      }
#pragma omp barrier
    }
    _tile_release();
  }
  free(memory);
  return 0;
}

/* silu(gate) * up of PAIR columns of the hidden layer, into their places in its tiles. */
static void activate_tiles(sums gate, sums up, int count, int64_t deep, int32_t *tiles) {
  for (int i = 0; i < count; i++)
    for (int half = 0; half < 2; half++) {
      float *g = gate[ABREAST * half + i], *u = up[ABREAST * half + i];
      for (int j = 0; j < WORDS; j++) g[j] = g[j] * sigmoid(g[j]) * u[j];
      for (int pair = 0; pair < TILE / 2; pair++) {
        __m512 even = _mm512_load_ps(g + 2 * pair * TILE), odd = _mm512_load_ps(g + (2 * pair + 1) * TILE);
        __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
        __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
        _mm512_store_si512(tiles + i * deep * WORDS + (half * TILE / 2 + pair) * TILE,
                           _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
    }
}

/* The rows of one expert through its SwiGLU. */
static void one_expert(const reading *gate, const reading *up, const reading *down,
                       const int32_t *tiles, int32_t *hidden, int64_t rows, uint16_t *out,
                       space *own, space *other) {
  sums left __attribute__((aligned(64))), right __attribute__((aligned(64)));
  int64_t deep = tiles_deep(gate->width * BYTES), inner = tiles_deep(down->width * BYTES);
  for (int64_t j = 0; j < gate->out; j += PAIR) {
    weights g = ready(gate, j, own), u = ready(up, j, other);
    for (int64_t t = 0; t < rows; t += ROWS) {
      const int32_t *some = tiles + t * deep * TILE;
      int high = multiply_rows(OF_BFLOAT16, &g, some, rows - t, deep, t ? 0 : behind(gate, j), left);
      multiply_rows(OF_BFLOAT16, &u, some, rows - t, deep, t ? 0 : behind(up, j), right);
      activate_tiles(left, right, high, inner, hidden + t * inner * TILE + j / PAIR * WORDS);
    }
  }
  for (int64_t j = 0; j < down->out; j += PAIR) {
    weights d = ready(down, j, own);
    int64_t columns = down->out - j < PAIR ? down->out - j : PAIR;
    for (int64_t t = 0; t < rows; t += ROWS) {
      const int32_t *some = hidden + t * inner * TILE;
      int high = multiply_rows(OF_BFLOAT16, &d, some, rows - t, inner, t ? 0 : behind(down, j), left);
      write_rows(left, high, rows - t, columns, 0, out + t * down->out + j, down->out);
    }
  }
}

/* One expert's matrix of a stack. */
static reading of_expert(const matrix *m, int64_t expert, int64_t width, int held, int64_t group) {
  int64_t numbers = m->out * width;
  reading one = {.out = m->out, .width = width, .group = group, .held = held};
  one.values = (const char *)m->values + expert * (held == INT4 ? numbers / 2 : numbers * BYTES);
  if (held == INT4) one.scale = (const uint16_t *)m->scale + expert * 2 * numbers / group;
  return one;
}

int tile_experts(const char *x, const int64_t *tokens, const int64_t *ends, int64_t experts,
                 const matrix *matrices, int held, int64_t up_group, int64_t down_group,
                 int64_t width, int64_t inner, uint16_t *out, int threads) {
  int64_t bytes = width * BYTES, deep = tiles_deep(bytes), most = 0;
  for (int64_t e = 0, start = 0; e < experts; start = ends[e++])
    most = ends[e] - start > most ? ends[e] - start : most;
  most = (most + ROWS - 1) / ROWS * ROWS;
  int64_t wide = width > inner ? width : inner, each = 2 * room(wide);
  int64_t own_bytes = each + most * (deep + tiles_deep(inner * BYTES)) * DEPTH;
  char *memory = aligned_alloc(64, threads * own_bytes);
  if (!memory) return -1;
#pragma omp parallel num_threads(threads)
  {
    space own __attribute__((aligned(64))), other __attribute__((aligned(64)));
    own.unpacked = memory + omp_get_thread_num() * own_bytes;
    other.unpacked = own.unpacked + room(wide);
    int32_t *tiles = (int32_t *)(own.unpacked + each), *hidden = tiles + most * deep * TILE;
    configure_tiles();
#pragma omp for schedule(dynamic)
    for (int64_t e = 0; e < experts; e++) {
      int64_t start = e ? ends[e - 1] : 0, rows = ends[e] - start;
      if (!rows) continue;
      for (int64_t b = 0; b < rows; b += TILE)
        pack_rows(x, tokens + start + b, 0, rows - b, bytes, tiles + b * deep * TILE);
      reading gate = of_expert(matrices, e, width, held, up_group);
      reading up = of_expert(matrices + 1, e, width, held, up_group);
      reading down = of_expert(matrices + 2, e, inner, held, down_group);
      one_expert(&gate, &up, &down, tiles, hidden, rows, out + start * width, &own, &other);
    }
    _tile_release();
  }
  free(memory);
  return 0;
}
#else
int tile_linear(void) { return -1; }
int tile_experts(void) { return -1; }
#endif
