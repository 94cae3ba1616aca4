/* lib/log: records there and back, escaping, cutting, losing without waiting, hostile datagrams. */
#include "config.h"

#include "lib/log.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HOSTILE_ROUNDS 30000

static int sockets[2]; /* of the sender, of the logger */
static struct log log_handle;
static char datagram[LOG_RECORD_MAX + 100];
static struct log_record record;

static void
connect_log(int type)
{
	ck_assert_int_eq(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, sockets), 0);
	log_start(&log_handle, sockets[0], "worker 3", false);
}

static void
connect_datagrams(void)
{
	connect_log(SOCK_DGRAM);
}

static ssize_t
receive(void)
{
	return recv(sockets[1], datagram, sizeof datagram, MSG_DONTWAIT);
}

static void
receive_record(void)
{
	ssize_t size = receive();

	ck_assert_int_gt(size, 0);
	ck_assert_int_le(size, LOG_RECORD_MAX);
	ck_assert(log_record_decode(datagram, (size_t)size, &record));
}

/* ---- escaping ---- */

static void
assert_escaped(const char *text, size_t size, size_t out_size, const char *expected)
{
	char out[300];

	memset(out, '#', sizeof out);
	ck_assert_ptr_eq(log_escape(text, size, out, out_size), out);
	ck_assert_str_eq(out, expected);
	ck_assert_int_eq(out[out_size], '#');
}

START_TEST(escape_makes_printable_ascii)
{
	char all[256];
	char out[2000];

	assert_escaped("plain text 123 ~", 16, 200, "plain text 123 ~");
	assert_escaped("a\r\nb", 4, 200, "a\\015\\012b");
	assert_escaped("\0\x7f\xff\x80", 4, 200, "\\000\\177\\377\\200");
	assert_escaped("back\\slash", 10, 200, "back\\134slash");
	assert_escaped("%n%s", 4, 200, "%n%s");
	assert_escaped("", 0, 200, "");
	for (int octet = 0; octet < 256; octet++)
		all[octet] = (char)octet;
	log_escape(all, sizeof all, out, sizeof out);
	ck_assert_uint_eq(strlen(out), 94 + (256 - 94) * 4);
	for (const char *octet = out; *octet != '\0'; octet++)
		ck_assert(*octet >= ' ' && *octet <= '~');
}
END_TEST

START_TEST(escape_cuts_with_dots_and_never_inside_an_escape)
{
	char untouched = '#';

	assert_escaped("0123456789", 10, 11, "0123456789");
	assert_escaped("0123456789", 10, 10, "012345...");
	assert_escaped("012\n", 4, 8, "012\\012");
	assert_escaped("012\n", 4, 7, "012...");
	assert_escaped("\n\n\n", 3, 12, "\\012\\012...");
	assert_escaped("\n\n\n", 3, 11, "\\012...");
	assert_escaped("0123456789", 10, 4, "...");
	assert_escaped("0123456789", 10, 3, "..");
	assert_escaped("0123456789", 10, 1, "");
	ck_assert_ptr_eq(log_escape("x", 1, &untouched, 0), &untouched);
	ck_assert_int_eq(untouched, '#');
}
END_TEST

/* ---- there and back ---- */

START_TEST(record_arrives_as_it_was_written)
{
	const struct log_field fields[] = { { "USER", "fred" }, { "HOST", "a b\r\n\xff" },
		{ "X2", "" } };

	connect_log(_i == 0 ? SOCK_DGRAM : SOCK_SEQPACKET);
	log_write_fields(&log_handle, LOG_LEVEL_NOTICE, fields, 3, "login of %s\n%d", "fred", 7);
	receive_record();
	ck_assert_int_eq(record.level, LOG_LEVEL_NOTICE);
	ck_assert_str_eq(record.process, "worker 3");
	ck_assert_str_eq(record.text, "login of fred\\0127");
	ck_assert_uint_eq(record.field_count, 3);
	ck_assert_str_eq(record.fields[0].name, "USER");
	ck_assert_str_eq(record.fields[0].value, "fred");
	ck_assert_str_eq(record.fields[1].value, "a b\\015\\012\\377");
	ck_assert_str_eq(record.fields[2].value, "");
	log_write(&log_handle, LOG_LEVEL_ERROR, "%s", "");
	receive_record();
	ck_assert_int_eq(record.level, LOG_LEVEL_ERROR);
	ck_assert_str_eq(record.text, "");
	ck_assert_uint_eq(record.field_count, 0);
}
END_TEST

START_TEST(debug_records_only_when_wanted)
{
	connect_datagrams();
	log_write(&log_handle, LOG_LEVEL_DEBUG, "secret");
	ck_assert_int_eq(receive(), -1);
	log_start(&log_handle, sockets[0], "worker 3", true);
	log_write(&log_handle, LOG_LEVEL_DEBUG, "wanted");
	receive_record();
	ck_assert_int_eq(record.level, LOG_LEVEL_DEBUG);
}
END_TEST

START_TEST(long_record_is_cut_at_the_maximum)
{
	static char text[3 * LOG_RECORD_MAX];
	struct log_field fields[] = { { "FIRST", "value" }, { "LONG", text }, { "LATE", "lost" } };

	connect_datagrams();
	memset(text, 't', sizeof text - 1);
	log_write(&log_handle, LOG_LEVEL_INFO, "%s", text);
	receive_record();
	ck_assert_uint_ge(strlen(record.text), LOG_RECORD_MAX - 20);
	ck_assert_str_eq(record.text + strlen(record.text) - 4, "t...");
	log_write_fields(&log_handle, LOG_LEVEL_INFO, fields, 3, "%s", text);
	receive_record();
	ck_assert_uint_ge(strlen(record.text), LOG_RECORD_MAX / 2 - 10);
	ck_assert_uint_eq(record.field_count, 2); /* a long text leaves room for fields */
	ck_assert_str_eq(record.fields[0].value, "value");
	ck_assert_str_eq(record.fields[1].value + strlen(record.fields[1].value) - 4, "t...");
	memset(text, '\n', sizeof text - 1);
	log_write(&log_handle, LOG_LEVEL_INFO, "%s", text);
	receive_record();
	ck_assert_ptr_nonnull(strstr(record.text, "\\012..."));
}
END_TEST

START_TEST(every_length_near_the_maximum_is_decodable)
{
	static char text[LOG_RECORD_MAX + 50];
	const struct log_field fields[] = { { "A", text }, { "BC", "d" }, { "EFG", text } };

	connect_datagrams();
	for (size_t size = LOG_RECORD_MAX - 60; size < sizeof text; size++) {
		memset(text, 'x', size - 1);
		text[size - 1] = '\0';
		log_write(&log_handle, LOG_LEVEL_INFO, "%s", text);
		receive_record();
		log_write_fields(&log_handle, LOG_LEVEL_INFO, fields, 3, "%s", text + 2000);
		receive_record();
		ck_assert_uint_ge(record.field_count, 1);
	}
}
END_TEST

START_TEST(surplus_fields_are_left_out)
{
	struct log_field fields[LOG_FIELDS_MAX + 5];

	connect_datagrams();
	for (size_t index = 0; index < LOG_FIELDS_MAX + 5; index++)
		fields[index] = (struct log_field){ "NAME", "value" };
	log_write_fields(&log_handle, LOG_LEVEL_INFO, fields, LOG_FIELDS_MAX + 5, "many");
	receive_record();
	ck_assert_uint_eq(record.field_count, LOG_FIELDS_MAX);
	log_handle.dropped = 1;
	log_write_fields(&log_handle, LOG_LEVEL_INFO, fields, LOG_FIELDS_MAX, "many");
	receive_record();
	ck_assert_uint_eq(record.field_count, LOG_FIELDS_MAX);
	ck_assert_str_eq(record.fields[0].name, "DROPPED");
}
END_TEST

/* ---- losing ---- */

START_TEST(full_socket_drops_counts_and_tells)
{
	char expected[16];
	int written = 0;

	alarm(10);
	connect_log(_i == 0 ? SOCK_DGRAM : SOCK_SEQPACKET);
	while (log_handle.dropped < 5 && written++ < 100000)
		log_write(&log_handle, LOG_LEVEL_INFO, "record %d", written);
	ck_assert_uint_eq(log_handle.dropped, 5);
	while (receive() > 0)
		;
	log_write(&log_handle, LOG_LEVEL_INFO, "afterwards");
	ck_assert_uint_eq(log_handle.dropped, 0);
	receive_record();
	snprintf(expected, sizeof expected, "%d", 5);
	ck_assert_str_eq(record.text, "afterwards");
	ck_assert_str_eq(record.fields[0].name, "DROPPED");
	ck_assert_str_eq(record.fields[0].value, expected);
	log_write(&log_handle, LOG_LEVEL_INFO, "next");
	receive_record();
	ck_assert_uint_eq(record.field_count, 0);
}
END_TEST

START_TEST(dead_logger_kills_nobody)
{
	connect_log(_i == 0 ? SOCK_DGRAM : SOCK_SEQPACKET);
	close(sockets[1]);
	log_write(&log_handle, LOG_LEVEL_INFO, "nobody hears");
	log_write(&log_handle, LOG_LEVEL_INFO, "nobody hears");
	ck_assert_uint_eq(log_handle.dropped, 2);
	log_handle.dropped = UINT32_MAX;
	log_write(&log_handle, LOG_LEVEL_INFO, "nobody hears");
	ck_assert_uint_eq(log_handle.dropped, UINT32_MAX);
}
END_TEST

/* ---- standard error ---- */

static int
redirect_standard_error(void)
{
	int ends[2];

	ck_assert_int_eq(pipe2(ends, O_CLOEXEC), 0);
	ck_assert_int_eq(dup2(ends[1], STDERR_FILENO), STDERR_FILENO);
	log_start(&log_handle, -1, "monitor", false);
	ck_assert(log_handle.standard_error);
	return ends[0];
}

static const char *
read_line(int fd)
{
	ssize_t size = read(fd, datagram, sizeof datagram - 1);

	ck_assert_int_gt(size, 0);
	datagram[size] = '\0';
	return datagram;
}

START_TEST(standard_error_gets_one_line)
{
	const struct log_field fields[] = { { "USER", "fred" }, { "HOST", "x y\nUID=0" } };
	int fd = redirect_standard_error();

	log_write(&log_handle, LOG_LEVEL_NOTICE, "started %s", "well\n");
	ck_assert_str_eq(read_line(fd), "notice monitor: started well\\012\n");
	log_write_fields(&log_handle, LOG_LEVEL_WARNING, fields, 2, "probe");
	ck_assert_str_eq(
	    read_line(fd), "warning monitor: probe USER=fred HOST=x\\040y\\012UID=0\n");
	log_write(&log_handle, LOG_LEVEL_ERROR, "e");
	ck_assert_str_eq(read_line(fd), "error monitor: e\n");
	log_write(&log_handle, LOG_LEVEL_INFO, "i");
	ck_assert_str_eq(read_line(fd), "info monitor: i\n");
	log_handle.debug = true;
	log_write(&log_handle, LOG_LEVEL_DEBUG, "d");
	ck_assert_str_eq(read_line(fd), "debug monitor: d\n");
}
END_TEST

static void
assert_long_line(int fd)
{
	ssize_t size = read(fd, datagram, sizeof datagram);

	ck_assert_int_gt(size, LOG_RECORD_MAX - 20);
	ck_assert_int_le(size, LOG_RECORD_MAX);
	ck_assert_ptr_eq(memchr(datagram, '\n', (size_t)size), datagram + size - 1);
}

START_TEST(long_line_ends_in_one_line_feed)
{
	static char text[2 * LOG_RECORD_MAX];
	struct log_field field = { "LONG", text };
	int fd = redirect_standard_error();

	memset(text, _i == 0 ? ' ' : 'x', sizeof text - 1);
	log_write(&log_handle, LOG_LEVEL_INFO, "%s", text);
	assert_long_line(fd);
	log_write_fields(&log_handle, LOG_LEVEL_INFO, &field, 1, "%s", text);
	assert_long_line(fd);
	ck_assert_uint_eq(log_handle.dropped, 0);
}
END_TEST

START_TEST(full_standard_error_does_not_wait)
{
	int fd = redirect_standard_error();
	int written = 0;

	alarm(10);
	while (log_handle.dropped < 3 && written++ < 1000000)
		log_write(&log_handle, LOG_LEVEL_INFO, "line %d", written);
	ck_assert_uint_eq(log_handle.dropped, 3);
	fcntl(fd, F_SETFL, O_NONBLOCK);
	while (read(fd, datagram, sizeof datagram) > 0)
		;
	log_write(&log_handle, LOG_LEVEL_INFO, "afterwards");
	ck_assert_str_eq(read_line(fd), "info monitor: afterwards DROPPED=3\n");
}
END_TEST

/* ---- decoding ---- */

static bool
decode(const char *bytes, size_t size)
{
	memcpy(datagram, bytes, size);
	return log_record_decode(datagram, size, &record);
}

#define DECODE(literal) decode(literal, sizeof literal) /* with the NUL at its end */

START_TEST(malformed_datagrams_are_refused)
{
	static char big[LOG_RECORD_MAX + 1] = "Q6p\0";
	char name[70] = "Q6p\0t";

	ck_assert(DECODE("Q6p\0t"));
	ck_assert(DECODE("Q6p\0t\0NAME\0value"));
	ck_assert(!decode("", 0));
	ck_assert(!decode("Q", 1));
	ck_assert(!decode("Q6", 2));
	ck_assert(!DECODE("Q6"));
	ck_assert(!DECODE("Q6p"));
	ck_assert(!decode("Q6p\0t", 5)); /* not terminated */
	ck_assert(!DECODE("X6p\0t"));
	ck_assert(!DECODE("Q6p\0t\0NAME"));
	ck_assert(!DECODE("Q6p\0t\0name\0value"));
	ck_assert(!DECODE("Q6p\0t\0_NAME\0value"));
	ck_assert(!DECODE("Q6p\0t\0NA=ME\0value"));
	ck_assert(!DECODE("Q6p\0t\0\0value"));
	memset(name + 6, 'N', 56);
	ck_assert(decode(name, 6 + 56 + 2));
	name[6 + 56] = 'N';
	ck_assert(!decode(name, 6 + 57 + 2));
	memset(big + 4, 't', sizeof big - 5);
	ck_assert(!decode(big, sizeof big));
	big[sizeof big - 2] = '\0';
	ck_assert(decode(big, sizeof big - 1));
}
END_TEST

START_TEST(number_of_fields_is_bounded)
{
	char bytes[500] = "Q6p\0t";
	size_t size = 6;

	for (int count = 0; count < LOG_FIELDS_MAX; count++, size += 4)
		memcpy(bytes + size, "N\0v", 4);
	ck_assert(decode(bytes, size));
	ck_assert_uint_eq(record.field_count, LOG_FIELDS_MAX);
	memcpy(bytes + size, "N\0v", 4);
	ck_assert(!decode(bytes, size + 4));
}
END_TEST

START_TEST(levels_are_bounded_and_control_octets_replaced)
{
	ck_assert(DECODE("Q0p\0t"));
	ck_assert_int_eq(record.level, LOG_LEVEL_ERROR);
	ck_assert(DECODE("Q\xffp\0t"));
	ck_assert(record.level >= LOG_LEVEL_ERROR && record.level <= LOG_LEVEL_DEBUG);
	ck_assert(DECODE("Q9p\r\0a\nb\x1b[0m\xff\0N\0v\tw"));
	ck_assert_int_eq(record.level, LOG_LEVEL_DEBUG);
	ck_assert_str_eq(record.process, "p?");
	ck_assert_str_eq(record.text, "a?b?[0m?");
	ck_assert_str_eq(record.fields[0].value, "v?w");
}
END_TEST

static void
assert_string_inside(const char *string, const char *bytes, size_t size)
{
	ck_assert(string >= bytes && string < bytes + size);
	ck_assert_ptr_nonnull(memchr(string, '\0', size - (size_t)(string - bytes)));
	for (; *string != '\0'; string++)
		ck_assert(*string >= ' ' && *string <= '~');
}

/* Random octets, mostly of the kind that gets far into the decoder. */
static size_t
make_hostile(char *bytes, size_t maximum)
{
	static const char likely[] = "\0\0\0NAMEQ67\n\xff_";
	size_t size = (size_t)random() % (maximum + 1);

	for (size_t index = 0; index < size; index++)
		bytes[index] = random() % 4 == 0 ? (char)random()
						 : likely[(size_t)random() % (sizeof likely - 1)];
	if (size > 2 && random() % 8 != 0) {
		bytes[0] = 'Q';
		bytes[size - 1] = '\0';
	}
	return size;
}

START_TEST(hostile_datagrams_stay_inside_their_bounds)
{
	int accepted = 0;

	srandom(20240502);
	for (int round = 0; round < HOSTILE_ROUNDS; round++) {
		size_t maximum = round % 100 == 0 ? LOG_RECORD_MAX + 50 : 40;
		char scratch[LOG_RECORD_MAX + 50];
		size_t size = make_hostile(scratch, maximum);
		char *bytes = malloc(size + 1); /* so that tools see every step outside */

		memcpy(bytes, scratch, size);
		if (log_record_decode(bytes, size, &record)) {
			accepted++;
			ck_assert(
			    record.level >= LOG_LEVEL_ERROR && record.level <= LOG_LEVEL_DEBUG);
			assert_string_inside(record.process, bytes, size);
			assert_string_inside(record.text, bytes, size);
			ck_assert_uint_le(record.field_count, LOG_FIELDS_MAX);
			for (size_t index = 0; index < record.field_count; index++) {
				assert_string_inside(record.fields[index].name, bytes, size);
				assert_string_inside(record.fields[index].value, bytes, size);
			}
		}
		free(bytes);
	}
	ck_assert_int_gt(accepted, HOSTILE_ROUNDS / 1000);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("log");
	TCase *tests = tcase_create("log");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, tests);
	tcase_set_timeout(tests, 60);
	tcase_add_test(tests, escape_makes_printable_ascii);
	tcase_add_test(tests, escape_cuts_with_dots_and_never_inside_an_escape);
	tcase_add_loop_test(tests, record_arrives_as_it_was_written, 0, 2);
	tcase_add_test(tests, debug_records_only_when_wanted);
	tcase_add_test(tests, long_record_is_cut_at_the_maximum);
	tcase_add_test(tests, every_length_near_the_maximum_is_decodable);
	tcase_add_test(tests, surplus_fields_are_left_out);
	tcase_add_loop_test(tests, full_socket_drops_counts_and_tells, 0, 2);
	tcase_add_loop_test(tests, dead_logger_kills_nobody, 0, 2);
	tcase_add_test(tests, standard_error_gets_one_line);
	tcase_add_loop_test(tests, long_line_ends_in_one_line_feed, 0, 2);
	tcase_add_test(tests, full_standard_error_does_not_wait);
	tcase_add_test(tests, malformed_datagrams_are_refused);
	tcase_add_test(tests, number_of_fields_is_bounded);
	tcase_add_test(tests, levels_are_bounded_and_control_octets_replaced);
	tcase_add_test(tests, hostile_datagrams_stay_inside_their_bounds);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
