/* A growable byte buffer with a hard maximum, filled at the end and consumed from the front. */
#ifndef QPOPPER_LIB_BUFFER_H
#define QPOPPER_LIB_BUFFER_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

struct buffer {
	char *bytes;  /* heap, owned; NULL while capacity is 0 */
	size_t start; /* first byte not yet consumed */
	size_t end;   /* behind the last byte */
	size_t capacity;
	size_t maximum; /* never grows beyond; bytes */
	bool overflow;	/* an append did not fit (or memory was exhausted): nothing was appended,
			   and every later append fails too until buffer_reset */
};

/* An empty buffer that owns no memory yet. */
void buffer_start(struct buffer *buffer, size_t maximum);

/* Wipe and free the memory; the buffer is as after buffer_start. */
void buffer_reset(struct buffer *buffer);

/* Free the memory if there is nothing in the buffer: what an idle session keeps is nothing. */
void buffer_relax(struct buffer *buffer);

/*
 * Lend memory (heap, capacity bytes) to a buffer that owns none, so that it need not grow. False:
 * it owns some, and the memory stays the caller's.
 */
bool buffer_adopt(struct buffer *buffer, char *bytes, size_t capacity);

/*
 * Take the memory of an empty buffer whose capacity is this: pointer, now the caller's and not
 * wiped. NULL: something waits in it, or it owns less.
 */
char *buffer_take_back(struct buffer *buffer, size_t capacity);

/* The bytes that wait: pointer and size. The pointer is valid until the next change. */
const char *buffer_bytes(const struct buffer *buffer);
size_t buffer_size(const struct buffer *buffer);

/* Append; false (and overflow set) if it does not fit. All or nothing. */
bool buffer_append(struct buffer *buffer, const void *bytes, size_t size);
bool buffer_append_format(struct buffer *buffer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/*
 * Room for at least size bytes at the end: pointer to it, NULL if it does not fit. Whatever was
 * written there is taken over by buffer_commit.
 */
char *buffer_reserve(struct buffer *buffer, size_t size);
void buffer_commit(struct buffer *buffer, size_t size);

/* Drop size bytes (at most what waits) from the front. */
void buffer_consume(struct buffer *buffer, size_t size);

#endif
