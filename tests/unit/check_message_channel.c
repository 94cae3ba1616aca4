/* Messages over a socket: they travel whole or not at all, and no descriptor is lost. */
#include "config.h"

#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/unit/message_samples.h"

static int pair[2];
static unsigned descriptors_before;

static unsigned
count_descriptors(void)
{
	DIR *directory = opendir("/proc/self/fd");
	unsigned count = 0;

	ck_assert_ptr_nonnull(directory);
	while (readdir(directory))
		count++;
	closedir(directory);
	return count;
}

static void
open_pair(void)
{
	struct error error = { 0 };

	ck_assert_int_eq(message_channel_pair(pair, true, &error), 0);
	descriptors_before = count_descriptors();
}

static void
close_pair(void)
{
	close(pair[0]);
	close(pair[1]);
}

/* Sends any bytes with any number of descriptors, past the checks of message_send. */
static void
send_raw(const void *bytes, size_t size, unsigned fd_count)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(16 * sizeof(int))];
	} control = { 0 };
	struct iovec part = { (void *)(uintptr_t)bytes, size };
	struct msghdr packet = { .msg_iov = &part, .msg_iovlen = 1 };
	int fds[16];

	for (unsigned i = 0; i < fd_count; i++)
		fds[i] = pair[0];
	if (fd_count) {
		packet.msg_control = control.bytes;
		packet.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		CMSG_FIRSTHDR(&packet)->cmsg_level = SOL_SOCKET;
		CMSG_FIRSTHDR(&packet)->cmsg_type = SCM_RIGHTS;
		CMSG_FIRSTHDR(&packet)->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&packet)), fds, fd_count * sizeof(int));
	}
	ck_assert_int_eq(sendmsg(pair[0], &packet, 0), (ssize_t)size);
}

static int
receive(unsigned type, struct message *message, struct error *error)
{
	bool got;
	int result =
	    message_receive(pair[1], sender_of(type), receiver_of(type), message, &got, error);

	ck_assert_int_eq(got, result == 0);
	return result;
}

START_TEST(every_type_travels)
{
	unsigned type = all_types[_i];
	struct message sent, received;
	struct error error = { 0 };
	int fds[MESSAGE_FDS_MAX];

	make_valid(type, &sent);
	for (unsigned i = 0; i < sent.fd_count; i++)
		fds[i] = pair[0];
	ck_assert_int_eq(
	    message_send(pair[0], (enum message_type)type, sent.payload.bytes,
		sent.tail_size ? sent.tail : NULL, sent.tail_size, fds, sent.fd_count, &error),
	    0);
	ck_assert_int_eq(receive(type, &received, &error), 0);
	ck_assert_mem_eq(&received, &sent, packet_size(&sent));
	ck_assert_uint_eq(received.tail_size, sent.tail_size);
	ck_assert_ptr_eq(received.tail, received.payload.bytes + message_payload_size(type));
	ck_assert_uint_eq(received.fd_count, sent.fd_count);
	for (unsigned i = 0; i < received.fd_count; i++)
		ck_assert_int_eq(fcntl(received.fds[i], F_GETFD), FD_CLOEXEC);
	message_close(&received);
	message_close(&received);
	ck_assert_uint_eq(count_descriptors(), descriptors_before);
}
END_TEST

START_TEST(wrong_sizes_and_descriptor_counts_leak_nothing)
{
	unsigned type = all_types[_i];
	struct message sent, received;
	struct error error = { 0 };

	make_valid(type, &sent);
	for (size_t size = 1; size <= packet_size(&sent) + 1; size++) {
		bool whole = size == packet_size(&sent);

		send_raw(&sent, size, whole ? message_row(type)->maximum_fds + 1 : sent.fd_count);
		ck_assert_int_eq(receive(type, &received, &error), -1);
		ck_assert_int_eq(error.code, ERROR_FORMAT);
		ck_assert_uint_eq(received.fd_count, 0);
	}
	ck_assert_uint_eq(count_descriptors(), descriptors_before);
}
END_TEST

START_TEST(surplus_descriptors_are_refused_and_closed)
{
	struct message sent, received;
	struct error error = { 0 };

	make_valid(MESSAGE_WORKER_START, &sent);
	for (unsigned count = MESSAGE_FDS_MAX + 1; count <= 16; count++) {
		send_raw(&sent, packet_size(&sent), count);
		ck_assert_int_eq(receive(MESSAGE_WORKER_START, &received, &error), -1);
		ck_assert_int_eq(error.code, ERROR_FORMAT);
	}
	ck_assert_uint_eq(count_descriptors(), descriptors_before);
}
END_TEST

START_TEST(oversized_packet_is_refused)
{
	static unsigned char bytes[MESSAGE_SIZE_MAX + 1];
	struct message received;
	struct error error = { 0 };

	bytes[0] = MESSAGE_DRAIN;
	send_raw(bytes, sizeof bytes, 1);
	ck_assert_int_eq(receive(MESSAGE_DRAIN, &received, &error), -1);
	ck_assert_int_eq(error.code, ERROR_FORMAT);
	ck_assert_uint_eq(count_descriptors(), descriptors_before);
}
END_TEST

START_TEST(empty_packet_with_descriptors_is_an_end)
{
	struct message received;
	struct error error = { 0 };

	send_raw("", 0, 2);
	ck_assert_int_eq(receive(MESSAGE_DRAIN, &received, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CLOSED);
	ck_assert_uint_eq(count_descriptors(), descriptors_before);
}
END_TEST

START_TEST(nothing_waiting_is_no_error)
{
	struct message received;
	struct error error = { 0 };
	bool got = true;

	ck_assert_int_eq(
	    message_receive(pair[1], ROLE_MASTER, ROLE_WORKER, &received, &got, &error), 0);
	ck_assert(!got);
	message_close(&received);
}
END_TEST

START_TEST(closed_and_full_channels_are_told_apart)
{
	struct message_drain drain = { 1, 0 };
	struct message received;
	struct error error = { 0 };
	int sent = 0;

	while (message_send(pair[0], MESSAGE_DRAIN, &drain, NULL, 0, NULL, 0, &error) == 0)
		ck_assert_int_lt(sent++, 100000);
	ck_assert_int_eq(error.code, ERROR_LIMIT);
	close(pair[1]);
	ck_assert_int_eq(
	    message_send(pair[0], MESSAGE_DRAIN, &drain, NULL, 0, NULL, 0, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CLOSED);
	pair[1] = dup(pair[0]);
	close(pair[0]);
	pair[0] = -1;
	ck_assert_int_eq(receive(MESSAGE_DRAIN, &received, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CLOSED);
}
END_TEST

START_TEST(sending_checks_its_sizes)
{
	struct message_drain drain = { 1, 0 };
	struct error error = { 0 };

	ck_assert_int_eq(message_send(pair[0], MESSAGE_DRAIN, &drain, "x", 1, NULL, 0, &error), -1);
	ck_assert_int_eq(error.code, ERROR_INTERNAL);
	ck_assert_int_eq(
	    message_send(pair[0], MESSAGE_DRAIN, &drain, NULL, 0, pair, 1, &error), -1);
	ck_assert_int_eq(error.code, ERROR_INTERNAL);
	ck_assert_int_eq(
	    message_send(pair[0], (enum message_type)99, &drain, NULL, 0, NULL, 0, &error), -1);
	ck_assert_int_eq(error.code, ERROR_INTERNAL);
}
END_TEST

START_TEST(taken_descriptors_stay_open)
{
	struct message sent, received;
	struct error error = { 0 };
	int fd;

	make_valid(MESSAGE_CHANNEL, &sent);
	send_raw(&sent, packet_size(&sent), 1);
	ck_assert_int_eq(receive(MESSAGE_CHANNEL, &received, &error), 0);
	fd = message_take_fd(&received, 0);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(message_take_fd(&received, 0), -1);
	ck_assert_int_eq(message_take_fd(&received, 1), -1);
	message_close(&received);
	ck_assert_int_eq(fcntl(fd, F_GETFD), FD_CLOEXEC);
	close(fd);
	ck_assert_uint_eq(count_descriptors(), descriptors_before);
}
END_TEST

/* xorshift: the same bytes in every run. */
static uint32_t
next_random(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

START_TEST(random_bytes_never_crash_or_leak)
{
	struct message sent, received;
	struct error error = { 0 };
	uint32_t state = 20260101;

	for (int round = 0; round < 20000; round++) {
		unsigned type = all_types[next_random(&state) % TYPE_COUNT];
		unsigned changes = next_random(&state) % 4;
		unsigned fd_count;
		size_t size;

		make_valid(type, &sent);
		size = packet_size(&sent);
		fd_count = sent.fd_count;
		for (unsigned i = 0; i < changes; i++)
			((unsigned char *)&sent)[next_random(&state) % size] =
			    (unsigned char)next_random(&state);
		if (next_random(&state) % 8 == 0)
			size = 1 + next_random(&state) % size;
		if (next_random(&state) % 8 == 0)
			fd_count = next_random(&state) % 6;
		send_raw(&sent, size, fd_count);
		if (receive(type, &received, &error) == 0)
			message_close(&received);
		else
			ck_assert_int_eq(error.code, ERROR_FORMAT);
	}
	ck_assert_uint_eq(count_descriptors(), descriptors_before);
}
END_TEST

static TCase *
channel_case(void)
{
	TCase *channel = tcase_create("channel");

	tcase_set_timeout(channel, 60);
	tcase_add_checked_fixture(channel, open_pair, close_pair);
	tcase_add_loop_test(channel, every_type_travels, 0, TYPE_COUNT);
	tcase_add_loop_test(channel, wrong_sizes_and_descriptor_counts_leak_nothing, 0, TYPE_COUNT);
	tcase_add_test(channel, surplus_descriptors_are_refused_and_closed);
	tcase_add_test(channel, oversized_packet_is_refused);
	tcase_add_test(channel, empty_packet_with_descriptors_is_an_end);
	tcase_add_test(channel, nothing_waiting_is_no_error);
	tcase_add_test(channel, closed_and_full_channels_are_told_apart);
	tcase_add_test(channel, sending_checks_its_sizes);
	tcase_add_test(channel, taken_descriptors_stay_open);
	tcase_add_test(channel, random_bytes_never_crash_or_leak);
	return channel;
}

int
main(void)
{
	Suite *suite = suite_create("message_channel");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, channel_case());
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
