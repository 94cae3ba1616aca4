/*
 * qpopper-worker in ordinary service: answers octet for octet, logins of all outcomes, updates, and
 * the messages between worker, master and monitor that go with them.
 */
#include "config.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/role.h"
#include "tests/unit/worker_harness.h"

START_TEST(messages_are_sent_octet_for_octet)
{
	struct client client;
	char text[64];

	make_spool(service.directory, 9, 40);
	log_in(&client);
	for (unsigned i = 0; i < 9; i++) {
		snprintf(text, sizeof text, "RETR %u\r\n", i + 1);
		say(&client, text);
		expect_body(&client, i);
	}
	say(&client, "TOP 2 1\r\nRETR 10\r\n");
	expect_line(&client, "+OK Top of message 2");
	expect_line(&client, "Subject: 1\r\n");
	expect_line(&client, "\r\n");
	expect_line(&client, "..line 0 of message 1\r\n");
	expect_line(&client, ".\r\n");
	expect_line(&client, "-ERR Message 10 does not exist");
	expect_log("alice at 127.0.0.1 (127.0.0.1): -ERR Message 10");
	quit(&client);
}
END_TEST

/* Many are read at once; what one client has read must not reach another, nor the wrong message. */
START_TEST(two_clients_fetch_in_and_out_of_order)
{
	enum {
		MESSAGES = 60,
		TOGETHER = 4
	};
	struct client orderly, jumpy;
	char text[16 * TOGETHER];

	make_spool(service.directory, MESSAGES, 300);
	ck_assert_uint_gt(buffer_size(&spool.bytes), 2 * CHUNK);
	log_in(&orderly);
	log_in(&jumpy);
	srandom(3);
	for (unsigned first = 0; first < MESSAGES; first += TOGETHER) {
		size_t size = 0;
		for (unsigned i = 0; i < TOGETHER; i++)
			size += (size_t)snprintf(
			    text + size, sizeof text - size, "RETR %u\r\n", first + i + 1);
		say(&orderly, text);
		for (unsigned i = 0; i < TOGETHER; i++)
			expect_body(&orderly, first + i);
		for (unsigned i = first % 3; i < TOGETHER; i++) {
			unsigned message = (unsigned)random() % MESSAGES;
			snprintf(text, sizeof text, "RETR %u\r\n", message + 1);
			say(&jumpy, text);
			expect_body(&jumpy, message);
		}
	}
	quit(&orderly);
	quit(&jumpy);
}
END_TEST

/* All commands of a session, sent whole or octet by octet; returns all answers. */
static size_t
run_script(bool whole, char *answers)
{
	static const char script[] = "USER alice\nPASS secret\r\nSTAT\r\nLIST\r\nUIDL\r\nRETR 1\r\n"
				     "TOP 3 2\r\nRETR 2\r\nFOO\r\nNOOP\r\nQUIT\r\n";
	struct client client;
	struct drop drop;
	size_t size;

	connect_client(&client);
	for (const char *octet = script; !whole && *octet != '\0'; octet++)
		say(&client, (char[2]){ *octet, '\0' });
	if (whole)
		say(&client, script);
	expect_request(&client, "alice", "secret");
	make_drop(&drop, &client);
	send_drop(&drop);
	size = hear(&client, answers, ANSWER_MAX);
	expect_authenticated(&client);
	expect_session_end(&client);
	close(client.fd);
	expect_closed(&client);
	return size;
}

START_TEST(commands_may_come_in_one_piece_or_octet_by_octet)
{
	char *whole = malloc(ANSWER_MAX), *pieces = malloc(ANSWER_MAX);
	size_t size;

	make_spool(service.directory, 3, 3000);
	size = run_script(true, whole);
	ck_assert_uint_gt(size, 2 * 3000 * 20);
	ck_assert_uint_eq(run_script(false, pieces), size);
	ck_assert_mem_eq(whole, pieces, size);
	free(whole);
	free(pieces);
}
END_TEST

START_TEST(failed_logins_are_answered_by_their_kind)
{
	static const struct {
		enum login_status status;
		const char *answer;
	} cases[] = {
		{ LOGIN_REFUSED, "-ERR [AUTH]" },
		{ LOGIN_IN_USE, "-ERR [IN-USE]" },
		{ LOGIN_TEMPORARY, "-ERR [SYS/TEMP]" },
		{ LOGIN_PERMANENT, "-ERR [SYS/PERM]" },
	};
	struct client client;

	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		ask_login(&client);
		send_failure(&client, cases[i].status);
		expect_line(&client, cases[i].answer);
		expect_end(&client);
		expect_closed(&client);
		if (cases[i].status == LOGIN_REFUSED)
			expect_log("[AUTH] Failed attempted login to alice from host (127.0.0.1)");
	}
}
END_TEST

static int64_t
milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void
delay_failures(void)
{
	set_defaults();
	service.settings->failure_delay = 1;
	service.settings->login_tries = 3;
	start_service();
}

START_TEST(refusals_come_at_whole_multiples_of_the_delay)
{
	struct pollfd auth = { .fd = service.auth, .events = POLLIN };
	struct client client;
	int64_t start = milliseconds();

	ask_login(&client);
	send_failure(&client, LOGIN_REFUSED);
	expect_line(&client, "-ERR [AUTH]");
	ck_assert_int_ge(milliseconds() - start, 1000);
	ck_assert_int_lt(milliseconds() - start, 2900);

	start = milliseconds(); /* a verdict that comes later than the delay */
	say(&client, "USER alice\r\nPASS wrong\r\n");
	expect_line(&client, "+OK");
	expect_request(&client, "alice", "wrong");
	nanosleep(&(struct timespec){ .tv_sec = 1, .tv_nsec = 100000000 }, NULL);
	send_failure(&client, LOGIN_REFUSED);
	expect_line(&client, "-ERR [AUTH]");
	ck_assert_int_ge(milliseconds() - start, 2000);

	start = milliseconds(); /* a name that nobody can have is not asked for */
	say(&client, "USER ../alice\r\nPASS wrong\r\n");
	expect_line(&client, "+OK");
	expect_line(&client, "-ERR [AUTH]");
	ck_assert_int_ge(milliseconds() - start, 1000);
	ck_assert_int_eq(poll(&auth, 1, 0), 0);
	expect_end(&client);
}
END_TEST

static void
send_update_result(const struct client *client, enum update_status status)
{
	struct message_update_result result = { .session = client->session,
		.status = status,
		.deleted = 2,
		.deleted_octets = 300,
		.left = 1,
		.left_octets = 100 };

	send_message(service.monitor, MESSAGE_UPDATE_RESULT, &result, NULL, 0, NULL, 0);
}

/* Log in with a trusted unique-id on message 3, delete 1 and 3, and quit. */
static void
delete_two(struct client *client)
{
	struct message message;
	struct mbox_message records[2];
	struct drop drop;

	ask_login(client);
	make_drop(&drop, client);
	drop.messages[0].uid = MBOX_UID_IN_STRINGS;
	drop.messages[2].uid = MBOX_UID_IN_STRINGS + 3;
	memcpy(drop.strings, "ab\0third", 9);
	drop.result.strings_size = 9;
	drop.size += 9;
	send_drop(&drop);
	expect_line(client, "+OK alice has 3");
	expect_authenticated(client);
	say(client, "UIDL 3\r\nDELE 2\r\nDELE 3\r\nQUIT\r\n");
	expect_line(client, "+OK 3 third\r\n");
	expect_line(client, "+OK");
	expect_line(client, "+OK");
	expect_message(service.monitor, ROLE_WORKER, ROLE_MONITOR, MESSAGE_UPDATE, &message);
	ck_assert_uint_eq(message.fd_count, 1);
	ck_assert_uint_eq(message.payload.update.records, 2);
	ck_assert_uint_eq(message.payload.update.expected, 3);
	ck_assert_uint_eq(message.tail_size, sizeof records + 6);
	memcpy(records, message.tail, sizeof records);
	ck_assert_uint_eq(records[0].flags, MBOX_TOMBSTONE);
	records[0].flags = 0;
	ck_assert_mem_eq(&records[0], &spool.table.messages[1], sizeof records[0]);
	ck_assert_uint_eq(records[1].offset, spool.table.messages[2].offset);
	ck_assert_uint_eq(records[1].uid, MBOX_UID_IN_STRINGS);
	ck_assert_str_eq((const char *)message.tail + sizeof records, "third");
	message_close(&message);
}

START_TEST(quit_is_answered_when_the_update_is_done)
{
	struct client client;

	make_spool(service.directory, 3, 5);
	delete_two(&client);
	send_update_result(&client, UPDATE_DONE);
	expect_line(&client, "+OK Pop server at ");
	expect_end(&client);
	expect_closed(&client);
	expect_log("2 deleted, 1 left");
	expect_log("Stats: alice 2 300 1 100 127.0.0.1 127.0.0.1");
	delete_two(&client);
	send_update_result(&client, UPDATE_LOCKED);
	expect_line(&client, "-ERR [SYS/TEMP]");
	expect_end(&client);
	expect_closed(&client);
	expect_log("end update-failed");
}
END_TEST

static void
update_on_abort(void)
{
	set_defaults();
	service.settings->update_on_abort = true;
	start_service();
}

/* The message with the marks of a session that is over, and the session lock. */
static void
expect_marks(uint32_t records, const uint16_t *flags)
{
	struct message message;
	struct mbox_message record;

	expect_message(service.monitor, ROLE_WORKER, ROLE_MONITOR, MESSAGE_UPDATE, &message);
	ck_assert_uint_ge(message.fd_count, 1);
	ck_assert_uint_eq(message.payload.update.records, records);
	for (uint32_t i = 0; i < records; i++) {
		if (message.fd_count > 1)
			ck_assert_int_eq(pread(message.fds[1], &record, sizeof record,
					     (off_t)(i * sizeof record)),
			    sizeof record);
		else
			memcpy(&record, message.tail + i * sizeof record, sizeof record);
		ck_assert_uint_eq(record.flags, flags[i]);
	}
	message_close(&message);
}

START_TEST(marks_of_a_client_that_vanishes_are_applied_if_asked_for)
{
	const uint16_t flags[] = { MBOX_READ, MBOX_TOMBSTONE };
	struct client client;

	make_spool(service.directory, 3, 5);
	log_in(&client);
	say(&client, "RETR 1\r\nDELE 2\r\n");
	expect_body(&client, 0);
	expect_line(&client, "+OK");
	close(client.fd);
	expect_marks(2, flags);
	expect_log("end eof, 1 retrieved, 1 deleted, 2 left");
	send_update_result(&client, UPDATE_LOCKED);
	expect_log("what a session that is over had marked was not applied");
}
END_TEST

START_TEST(read_marks_of_an_indexed_maildrop_are_left_behind)
{
	const uint16_t flags[] = { MBOX_READ };
	struct client client;

	make_spool(service.directory, 1000, 2);
	log_in(&client);
	say(&client, "RETR 1000\r\nQUIT\r\n");
	expect_body(&client, 999);
	expect_line(&client, "+OK Pop server at ");
	expect_marks(1, flags);
}
END_TEST

static void
log_everything(void)
{
	set_defaults();
	service.settings->statistics = true;
	start_service();
}

START_TEST(a_thousand_messages_travel_in_memfds)
{
	struct client client;
	struct message message;
	struct stat status;
	char text[32];

	make_spool(service.directory, 1000, 2);
	log_in(&client);
	say(&client, "LIST\r\n");
	expect_line(&client, "+OK 1000 ");
	for (unsigned i = 0; i <= 1000; i++)
		expect_line(&client, "");
	say(&client, "RETR 1000\r\n");
	expect_body(&client, 999);
	for (unsigned i = 1; i <= 500; i++) {
		snprintf(text, sizeof text, "DELE %u\r\n", 2 * i);
		say(&client, text);
		expect_line(&client, "+OK");
	}
	say(&client, "QUIT\r\n");
	expect_message(service.monitor, ROLE_WORKER, ROLE_MONITOR, MESSAGE_UPDATE, &message);
	ck_assert_uint_eq(message.fd_count, 2);
	ck_assert_uint_eq(message.payload.update.records, 500);
	ck_assert_int_eq(fstat(message.fds[1], &status), 0);
	ck_assert_uint_eq((size_t)status.st_size, 500 * sizeof(struct mbox_message));
	ck_assert_int_eq(fcntl(message.fds[1], F_GET_SEALS) & FULL_SEALS, FULL_SEALS);
	message_close(&message);
	send_update_result(&client, UPDATE_DONE);
	expect_line(&client, "+OK");
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("worker");
	SRunner *runner;
	int failed;

	add_case(suite, "octets", set_up, messages_are_sent_octet_for_octet, 1);
	add_case(suite, "ahead", set_up, two_clients_fetch_in_and_out_of_order, 1);
	add_case(suite, "pipelining", set_up, commands_may_come_in_one_piece_or_octet_by_octet, 1);
	add_case(suite, "failures", set_up, failed_logins_are_answered_by_their_kind, 1);
	add_case(suite, "delay", delay_failures, refusals_come_at_whole_multiples_of_the_delay, 1);
	add_case(suite, "update", log_everything, quit_is_answered_when_the_update_is_done, 1);
	add_case(suite, "abort", update_on_abort,
	    marks_of_a_client_that_vanishes_are_applied_if_asked_for, 1);
	add_case(suite, "marks", set_up, read_marks_of_an_indexed_maildrop_are_left_behind, 1);
	add_case(suite, "memfd", set_up, a_thousand_messages_travel_in_memfds, 1);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
