/*
 * Fuzz target: the POP3 engine with a scripted host. The first two octets choose settings and
 * state, the rest is what the client sends; it is played whole and in pieces, and both must give
 * the same answers. Every answer must be made of CRLF lines of printable octets, first lines within
 * 512 octets.
 *
 * Build with -fsanitize=fuzzer, or with -DFUZZ_STANDALONE for a program that runs the files it is
 * given (AFL's @@, or a corpus as a regression test).
 */
#include "config.h"

#include "daemon/pop3_internal.h"
#include "tests/unit/pop3_harness.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
prepare(struct pop3_harness *harness, const uint8_t choice[2])
{
	harness_prepare(harness, choice[0] & 7);
	harness->settings.clear_text_password = (enum settings_clear_text)(choice[0] >> 3) % 5;
	harness->settings.downcase_user = (choice[0] & 0x40) != 0;
	harness->settings.trim_domain = (choice[0] & 0x80) != 0;
	harness->settings.shy = (choice[1] & 1) != 0;
	harness->host.apop_offered = (choice[1] & 2) != 0;
	harness->host.tls_offered = (choice[1] & 4) != 0;
	harness->host.local = (choice[1] & 8) != 0;
	harness->message_ready = (choice[1] & 0x40) == 0;
	harness->update_done = (choice[1] & 0x80) == 0;
}

static void
check_line(const char *line, size_t length)
{
	size_t i;

	if (length > POP3_REPLY_MAX || length < 2 || line[length - 2] != '\r')
		abort();
	for (i = 0; i < length - 2; i++)
		if (line[i] < 0x20 || line[i] > 0x7e)
			abort();
}

static void
check_output(const struct buffer *output)
{
	const char *line = buffer_bytes(output);
	size_t left = buffer_size(output);

	while (left > 0) {
		const char *end = memchr(line, '\n', left);
		size_t length;

		if (end == NULL)
			abort();
		length = (size_t)(end - line) + 1;
		check_line(line, length);
		line += length;
		left -= length;
	}
}

static void
play(struct pop3_harness *harness, const uint8_t *data, size_t size, enum harness_cut cut)
{
	prepare(harness, data);
	harness->cut = cut;
	harness_connect(harness, (data[1] & 0x10) != 0);
	if ((data[1] & 0x20) != 0)
		harness_say(harness, HARNESS_LOGIN);
	harness_send(harness, (const char *)data + 2, size - 2);
	check_output(&harness->output);
}

static bool
same(const struct buffer *a, const struct buffer *b)
{
	return buffer_size(a) == buffer_size(b) &&
	       memcmp(buffer_bytes(a), buffer_bytes(b), buffer_size(a)) == 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct pop3_harness whole, pieces;

	if (size < 2)
		return 0;
	play(&whole, data, size, HARNESS_WHOLE);
	play(&pieces, data, size, size % 2 == 0 ? HARNESS_BYTES : HARNESS_RANDOM);
	if (!same(&whole.output, &pieces.output) || !same(&whole.events, &pieces.events))
		abort();
	harness_end(&whole);
	harness_end(&pieces);
	return 0;
}

#ifdef FUZZ_STANDALONE
#include <stdio.h>

#define FILE_MAX (1u << 20)

int
main(int argc, char **argv)
{
	static uint8_t data[FILE_MAX];
	int i;

	for (i = 1; i < argc; i++) {
		FILE *file = fopen(argv[i], "rb");
		size_t size;

		if (file == NULL) {
			perror(argv[i]);
			return 1;
		}
		size = fread(data, 1, sizeof(data), file);
		fclose(file);
		LLVMFuzzerTestOneInput(data, size);
	}
	return 0;
}
#endif
