/*
 * Growable byte buffers, used in every process. Sizes come from callers that may have them from
 * outside, so that all arithmetic on them is checked. The bytes may be passwords: memory is wiped
 * before it is given back.
 */
#include "config.h"

#include "lib/buffer.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY	512
#define FORMAT_ON_STACK 512 /* longer texts are formatted on the heap */

void
buffer_start(struct buffer *buffer, size_t maximum)
{
	*buffer = (struct buffer){ .maximum = maximum };
}

static void
give_back(struct buffer *buffer)
{
	if (buffer->bytes == NULL)
		return;
	explicit_bzero(buffer->bytes, buffer->capacity);
	free(buffer->bytes);
}

void
buffer_reset(struct buffer *buffer)
{
	give_back(buffer);
	buffer_start(buffer, buffer->maximum);
}

static void
forget(struct buffer *buffer)
{
	buffer->bytes = NULL;
	buffer->start = buffer->end = buffer->capacity = 0;
}

void
buffer_relax(struct buffer *buffer)
{
	if (buffer_size(buffer) != 0)
		return;
	give_back(buffer);
	forget(buffer);
}

bool
buffer_adopt(struct buffer *buffer, char *bytes, size_t capacity)
{
	if (buffer->bytes != NULL || capacity > buffer->maximum)
		return false;
	buffer->bytes = bytes;
	buffer->capacity = capacity;
	return true;
}

char *
buffer_take_back(struct buffer *buffer, size_t capacity)
{
	char *bytes = buffer->bytes;

	if (buffer_size(buffer) != 0 || buffer->capacity != capacity)
		return NULL;
	forget(buffer);
	return bytes;
}

const char *
buffer_bytes(const struct buffer *buffer)
{
	return buffer->bytes == NULL ? "" : buffer->bytes + buffer->start;
}

size_t
buffer_size(const struct buffer *buffer)
{
	return buffer->end - buffer->start;
}

static void
move_to_front(struct buffer *buffer)
{
	size_t size = buffer_size(buffer);

	memmove(buffer->bytes, buffer->bytes + buffer->start, size);
	buffer->start = 0;
	buffer->end = size;
}

/* At least needed, doubled so that many small appends stay cheap, and within the maximum. */
static size_t
next_capacity(const struct buffer *buffer, size_t needed)
{
	size_t capacity = buffer->capacity == 0 ? FIRST_CAPACITY : buffer->capacity;

	while (capacity < needed && capacity <= SIZE_MAX / 2)
		capacity *= 2;
	if (capacity < needed || capacity > buffer->maximum)
		capacity = buffer->maximum;
	return capacity;
}

static bool
grow(struct buffer *buffer, size_t needed)
{
	size_t size = buffer_size(buffer);
	size_t capacity = next_capacity(buffer, needed);
	char *bytes;

	if (capacity == 0)
		return false;
	bytes = malloc(capacity); /* not realloc, which would leave an unwiped copy behind */
	if (bytes == NULL)
		return false;
	memcpy(bytes, buffer_bytes(buffer), size);
	give_back(buffer);
	buffer->bytes = bytes;
	buffer->capacity = capacity;
	buffer->start = 0;
	buffer->end = size;
	return true;
}

char *
buffer_reserve(struct buffer *buffer, size_t size)
{
	size_t waiting = buffer_size(buffer);
	size_t needed;

	if (buffer->overflow || __builtin_add_overflow(waiting, size, &needed) ||
	    needed > buffer->maximum)
		return NULL;
	if (buffer->bytes != NULL && buffer->capacity - buffer->end >= size)
		return buffer->bytes + buffer->end;
	/* Moving is worth it when it frees as much as it copies; otherwise room is better made. */
	if (needed <= buffer->capacity && buffer->bytes != NULL &&
	    (buffer->start >= waiting || buffer->capacity == buffer->maximum))
		move_to_front(buffer);
	else if (!grow(buffer, needed > buffer->capacity ? needed : buffer->capacity + 1))
		return NULL;
	return buffer->bytes + buffer->end;
}

void
buffer_commit(struct buffer *buffer, size_t size)
{
	size_t room = buffer->capacity - buffer->end;

	buffer->end += size < room ? size : room;
}

bool
buffer_append(struct buffer *buffer, const void *bytes, size_t size)
{
	char *room;

	if (size == 0)
		return !buffer->overflow;
	room = buffer_reserve(buffer, size);
	if (room == NULL) {
		buffer->overflow = true;
		return false;
	}
	memcpy(room, bytes, size);
	buffer_commit(buffer, size);
	return true;
}

static bool __attribute__((format(printf, 2, 0)))
append_long_format(struct buffer *buffer, const char *format, va_list arguments)
{
	char *text;
	bool appended;
	int length = vasprintf(&text, format, arguments);

	if (length < 0) {
		buffer->overflow = true;
		return false;
	}
	appended = buffer_append(buffer, text, (size_t)length);
	explicit_bzero(text, (size_t)length);
	free(text);
	return appended;
}

bool
buffer_append_format(struct buffer *buffer, const char *format, ...)
{
	char text[FORMAT_ON_STACK];
	va_list arguments;
	bool appended;
	int length;

	va_start(arguments, format);
	length = vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	if (length >= 0 && (size_t)length < sizeof text)
		return buffer_append(buffer, text, (size_t)length);
	va_start(arguments, format);
	appended = append_long_format(buffer, format, arguments);
	va_end(arguments);
	return appended;
}

void
buffer_consume(struct buffer *buffer, size_t size)
{
	if (size < buffer_size(buffer))
		buffer->start += size;
	else
		buffer->start = buffer->end = 0;
}
