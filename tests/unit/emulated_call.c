/*
 * One call of a C function with what a file holds, and all its memory afterwards in another file, so
 * that a function runs in an emulator of another processor. DECLARATION and CALL, of that function,
 * come from the compiler's command line.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  int64_t is_buffer;
  int64_t value; /* number of the buffer, or the bits of the argument */
} argument;

static void *read_some(FILE *file, int64_t bytes) {
  void *some = aligned_alloc(64, (bytes + 64) / 64 * 64);
  if (!some || (int64_t)fread(some, 1, bytes, file) != bytes) exit(2);
  return some;
}

static int64_t read_one(FILE *file) {
  int64_t one;
  if (fread(&one, sizeof one, 1, file) != 1) exit(2);
  return one;
}

static char **buffers;
static argument *given;

static inline int64_t whole(int i) { return given[i].value; }
static inline void *pointer(int i) { return given[i].is_buffer ? buffers[given[i].value] : 0; }
static inline float number(int i) {
  float x;
  memcpy(&x, &given[i].value, sizeof x);
  return x;
}

DECLARATION

int main(int count, char **names) {
  FILE *file = count == 3 ? fopen(names[1], "rb") : 0;
  if (!file) return 2;
  int64_t many = read_one(file);
  int64_t bytes[many + 1];
  buffers = malloc((many + 1) * sizeof *buffers);
  for (int64_t i = 0; i < many; i++) {
    bytes[i] = read_one(file);
    buffers[i] = read_some(file, bytes[i]);
  }
  for (int64_t pointers = read_one(file); pointers > 0; pointers--) { /* in buffers, to buffers */
    int64_t in = read_one(file), at = read_one(file), to = read_one(file);
    memcpy(buffers[in] + at, &buffers[to], sizeof(char *));
  }
  int64_t arguments = read_one(file);
  given = read_some(file, arguments * sizeof(argument));
  fclose(file);
  int64_t result = CALL;
  file = fopen(names[2], "wb");
  if (!file) return 2;
  fwrite(&result, sizeof result, 1, file);
  for (int64_t i = 0; i < many; i++) fwrite(buffers[i], 1, bytes[i], file);
  return fclose(file) ? 2 : 0;
}
