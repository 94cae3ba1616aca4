/*
 * qpopper-worker when others do not do what they should: tables that are broken, spools that change
 * under a transfer, clients that stall, talk garbage or leave, and channels that end.
 */
#include "config.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "daemon/role.h"
#include "tests/unit/worker_harness.h"

/* ---- tables that are not what they should be ---- */

static void
unordered(struct drop *drop)
{
	drop->messages[1].offset = 0;
}

static void
beyond_the_spool(struct drop *drop)
{
	drop->messages[2].content_length += 1u << 20;
}

static void
overflowing(struct drop *drop)
{
	drop->messages[1].content_length = UINT64_MAX - 10;
}

static void
wrong_sum(struct drop *drop)
{
	drop->result.total_octets++;
}

static void
without_uid(struct drop *drop)
{
	drop->messages[0].uid = 0;
}

static void
uid_outside(struct drop *drop)
{
	drop->messages[0].uid = MBOX_UID_IN_STRINGS + 1;
}

static void
uid_unterminated(struct drop *drop)
{
	drop->messages[0].uid = MBOX_UID_IN_STRINGS;
	memcpy(drop->strings, "abc", 3);
	drop->result.strings_size = 3;
	drop->size += 3;
}

static void
unsealed(struct drop *drop)
{
	drop->result.flags |= LOGIN_HAS_TABLE;
	drop->seals = F_SEAL_WRITE | F_SEAL_GROW;
}

static void
memfd_too_short(struct drop *drop)
{
	drop->result.flags |= LOGIN_HAS_TABLE;
	drop->size -= 8;
}

static void (*const hostile[])(struct drop *) = { unordered, beyond_the_spool, overflowing,
	wrong_sum, without_uid, uid_outside, uid_unterminated, unsealed, memfd_too_short };

START_TEST(a_broken_table_ends_the_session)
{
	struct client client;
	struct drop drop;

	make_spool(service.directory, 3, 5);
	ask_login(&client);
	make_drop(&drop, &client);
	hostile[_i](&drop);
	send_drop(&drop);
	expect_session_end(&client);
	expect_line(&client, "-ERR [SYS/TEMP]");
	expect_end(&client);
	expect_closed(&client);
	expect_log(_i < 7 ? "maildrop of alice: the table " : "maildrop of alice: the index ");
}
END_TEST

/* ---- spools that change ---- */

static void
append(void)
{
	static const char more[] = "From b@example.org Mon Nov  3 11:00:00 2025\n\nnew\n\n";
	int fd = open(spool.path, O_WRONLY | O_APPEND);

	ck_assert_int_eq(write(fd, more, strlen(more)), (ssize_t)strlen(more));
	close(fd);
}

/* One octet near the end of the first message. */
static void
rewrite(void)
{
	const struct mbox_message *first = &spool.table.messages[0];
	off_t offset = (off_t)(first->offset + first->content_length);
	int fd = open(spool.path, O_WRONLY);

	ck_assert_int_eq(pwrite(fd, "#", 1, offset), 1);
	close(fd);
}

static void
cut_short(void)
{
	ck_assert_int_eq(truncate(spool.path, CHUNK + 5), 0);
}

/* Change the spool when the client has read so many octets of RETR 1; returns what it got. */
static size_t
retrieve(struct client *client, size_t before, void (*change)(void), char *got, size_t expected)
{
	size_t size;

	say(client, "RETR 1\r\n");
	size = hear(client, got, before);
	change();
	return size + hear(client, got + size, expected - size);
}

START_TEST(a_delivery_during_a_transfer_does_no_harm)
{
	char *expected = malloc(ANSWER_MAX), *got = malloc(ANSWER_MAX);
	struct client client;
	size_t size;

	make_spool(service.directory, 2, BIG_LINES);
	size = expected_body(0, expected);
	ck_assert_uint_gt(size, 3 * CHUNK);
	for (size_t before = 0; before < size; before += CHUNK / 2) {
		make_spool(service.directory, 2, BIG_LINES);
		log_in(&client);
		ck_assert_uint_eq(retrieve(&client, before, append, got, size), size);
		ck_assert_mem_eq(got, expected, size);
		quit(&client);
	}
	free(expected);
	free(got);
}
END_TEST

static void (*const harmful[])(void) = { rewrite, cut_short };

START_TEST(a_rewrite_during_a_transfer_never_sends_wrong_octets)
{
	char *expected = malloc(ANSWER_MAX), *got = malloc(ANSWER_MAX);
	unsigned cut = 0;
	struct client client;
	size_t size, heard;

	make_spool(service.directory, 2, BIG_LINES);
	size = expected_body(0, expected);
	for (size_t before = 1; before < size; before += CHUNK / 2) {
		make_spool(service.directory, 2, BIG_LINES);
		log_in(&client);
		heard = retrieve(&client, before, harmful[_i], got, size);
		ck_assert_mem_eq(got, expected, heard);
		cut += heard < size;
		if (heard < size)
			expect_over(&client, "cut");
		else
			quit(&client);
	}
	ck_assert_uint_gt(cut, 2);
	free(expected);
	free(got);
}
END_TEST

/* The answer to RETR of message i: true if it was sent, octet for octet, false if refused. */
static bool
sent_or_refused(const struct client *client, unsigned i)
{
	char *expected = malloc(ANSWER_MAX), *got = malloc(ANSWER_MAX);
	size_t size = expected_body(i, expected);
	bool sent;

	ck_assert_uint_eq(hear(client, got, 4), 4);
	sent = memcmp(got, "+OK ", 4) == 0;
	if (sent) {
		ck_assert_uint_eq(hear(client, got + 4, size - 4), size - 4);
		ck_assert_mem_eq(got, expected, size);
	} else {
		ck_assert_mem_eq(got, "-ERR", 4);
		expect_line(client, " [SYS/TEMP]");
	}
	free(expected);
	free(got);
	return sent;
}

START_TEST(what_was_read_ahead_is_right_or_not_sent)
{
	enum {
		MESSAGES = 60,
		BEFORE = 6
	};
	struct client client;
	char text[32];
	unsigned sent = 0;

	make_spool(service.directory, MESSAGES, 200);
	log_in(&client);
	for (unsigned i = 0; i < MESSAGES; i++) {
		if (i == BEFORE) { /* all that follows is overwritten */
			off_t from = (off_t)spool.table.messages[i].offset;
			size_t size = buffer_size(&spool.bytes) - (size_t)from;
			char *other = malloc(size);
			int fd = open(spool.path, O_WRONLY);
			memset(other, '#', size);
			ck_assert_int_eq(pwrite(fd, other, size, from), (ssize_t)size);
			close(fd);
			free(other);
		}
		snprintf(text, sizeof text, "RETR %u\r\n", i + 1);
		say(&client, text);
		sent += sent_or_refused(&client, i);
	}
	ck_assert_uint_gt(sent, BEFORE); /* from memory */
	ck_assert_uint_lt(sent, MESSAGES);
	say(&client, "RETR 1\r\n");
	expect_body(&client, 0);
	quit(&client);
}
END_TEST

START_TEST(a_changed_message_is_refused_before_it_begins)
{
	struct client client;

	make_spool(service.directory, 2, 50);
	log_in(&client);
	rewrite();
	say(&client, "RETR 1\r\nTOP 1 0\r\nRETR 2\r\n");
	expect_line(&client, "-ERR [SYS/TEMP]");
	expect_line(&client, "-ERR [SYS/TEMP]");
	expect_body(&client, 1);
	quit(&client);
}
END_TEST

START_TEST(a_racy_index_is_verified_before_use)
{
	struct client client;
	struct drop drop;

	make_spool(service.directory, 2, 50);
	ask_login(&client);
	make_drop(&drop, &client);
	drop.result.flags |= LOGIN_RACY;
	drop.messages[1].digest[0] ^= 1;
	send_drop(&drop);
	expect_line(&client, "+OK");
	expect_authenticated(&client);
	say(&client, "RETR 1\r\nRETR 1\r\nRETR 2\r\n");
	expect_body(&client, 0);
	expect_body(&client, 0);
	expect_line(&client, "-ERR [SYS/TEMP]");
	quit(&client);
}
END_TEST

START_TEST(a_spool_in_memory_is_served_too)
{
	struct client client;

	if (access("/dev/shm", W_OK) != 0)
		return;
	make_spool("/dev/shm", 2, BIG_LINES);
	unlink(spool.path);
	log_in(&client); /* as one that may block: by the reader threads */
	say(&client, "RETR 1\r\nRETR 2\r\n");
	expect_body(&client, 0);
	expect_body(&client, 1);
	quit(&client);
}
END_TEST

/* ---- time, and ends of all kinds ---- */

static void
hurry(void)
{
	set_defaults();
	service.settings->login_timeout = 1;
	service.settings->timeout = 10;
	start_service();
}

START_TEST(clients_that_do_nothing_are_closed)
{
	struct client silent, idle, deaf;
	struct message message;

	make_spool(service.directory, 1, 10 * BIG_LINES);
	connect_client(&silent);
	expect_line(&silent, "+OK");
	expect_line(&silent, "-ERR POP timeout");
	expect_end(&silent);
	expect_closed(&silent);
	log_in(&idle);
	log_in(&deaf);
	say(&deaf, "RETR 1\r\n");
	expect_line(&idle, "-ERR POP timeout");
	expect_over(&idle, "timeout");
	expect_session_end(&deaf);
	expect_message(
	    service.master, ROLE_WORKER, ROLE_MASTER, MESSAGE_CONNECTION_CLOSED, &message);
	expect_log("end timeout");
}
END_TEST

START_TEST(garbage_is_survived)
{
	struct client client;
	char garbage[3000];

	connect_client(&client);
	expect_line(&client, "+OK");
	for (size_t i = 0; i < sizeof garbage; i++)
		garbage[i] = (char)(i * 7919 % 251 + 1);
	for (int i = 0; i < 20; i++)
		send(client.fd, garbage, sizeof garbage, MSG_NOSIGNAL);
	while (hear(&client, garbage, sizeof garbage) > 0)
		;
	expect_closed(&client);
	ask_login(&client);
	send_failure(&client, LOGIN_REFUSED);
	expect_line(&client, "-ERR [AUTH]");
}
END_TEST

START_TEST(a_client_that_leaves_during_its_login_gives_the_maildrop_back)
{
	struct client client;
	struct drop drop;

	make_spool(service.directory, 1, 5);
	ask_login(&client);
	setsockopt(
	    client.fd, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 }, sizeof(struct linger));
	close(client.fd);
	expect_closed(&client);
	make_drop(&drop, &client);
	send_drop(&drop);
	expect_session_end(&client);
}
END_TEST

START_TEST(a_drain_ends_idle_logins_at_once_and_sessions_in_time)
{
	struct message_drain drain = { .seconds = 1 };
	struct client stranger, user;

	make_spool(service.directory, 1, 5);
	connect_client(&stranger);
	expect_line(&stranger, "+OK");
	log_in(&user);
	send_message(service.master, MESSAGE_DRAIN, &drain, NULL, 0, NULL, 0);
	expect_line(&stranger, "-ERR [SYS/TEMP]");
	expect_end(&stranger);
	expect_closed(&stranger);
	say(&user, "STAT\r\n");
	expect_line(&user, "+OK 1 ");
	expect_line(&user, "-ERR [SYS/TEMP]");
	expect_over(&user, "drained");
	expect_exit(ROLE_EXIT_DONE);
}
END_TEST

START_TEST(another_account_check_takes_over)
{
	struct message_channel message = { .role = ROLE_AUTH };
	struct client first, second;
	struct drop drop;
	int pair[2];

	make_spool(service.directory, 1, 5);
	ask_login(&first);
	close(service.auth);
	connect_client(&second);
	say(&second, "USER bob\r\nPASS secret\r\n");
	nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
	make_channel(pair);
	service.auth = pair[0];
	send_message(service.master, MESSAGE_CHANNEL, &message, NULL, 0, &pair[1], 1);
	close(pair[1]);
	expect_request(&second, "bob", "secret");
	make_drop(&drop, &second);
	send_drop(&drop);
	expect_line(&second, "+OK Qpopper");
	expect_line(&second, "+OK");
	expect_line(&second, "+OK alice has");
	expect_authenticated(&second);
	expect_line(&first, "-ERR [SYS/TEMP]"); /* its check died with the old channel */
	expect_end(&first);
	make_drop(&drop, &first);
	send_drop(&drop);
	expect_session_end(&first);
}
END_TEST

START_TEST(without_a_monitor_there_is_no_service)
{
	struct client stranger, user;

	make_spool(service.directory, 1, 5);
	connect_client(&stranger);
	expect_line(&stranger, "+OK");
	log_in(&user);
	close(service.monitor);
	expect_line(&stranger, "-ERR [SYS/TEMP]");
	expect_end(&stranger);
	expect_line(&user, "-ERR [SYS/TEMP]");
	expect_end(&user);
	expect_exit(ROLE_EXIT_DONE);
}
END_TEST

START_TEST(a_broken_message_ends_the_worker)
{
	ck_assert_int_eq(send(service.master, "nonsense", 8, 0), 8);
	expect_exit(ROLE_EXIT_CHANNEL);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("worker_faults");
	SRunner *runner;
	int failed;

	add_case(suite, "tables", set_up, a_broken_table_ends_the_session,
	    sizeof hostile / sizeof hostile[0]);
	add_case(suite, "delivery", set_up, a_delivery_during_a_transfer_does_no_harm, 1);
	add_case(suite, "rewrite", set_up, a_rewrite_during_a_transfer_never_sends_wrong_octets, 2);
	add_case(suite, "ahead", set_up, what_was_read_ahead_is_right_or_not_sent, 1);
	add_case(suite, "changed", set_up, a_changed_message_is_refused_before_it_begins, 1);
	add_case(suite, "racy", set_up, a_racy_index_is_verified_before_use, 1);
	add_case(suite, "memory", set_up, a_spool_in_memory_is_served_too, 1);
	add_case(suite, "time", hurry, clients_that_do_nothing_are_closed, 1);
	add_case(suite, "garbage", set_up, garbage_is_survived, 1);
	add_case(suite, "leaving", set_up,
	    a_client_that_leaves_during_its_login_gives_the_maildrop_back, 1);
	add_case(suite, "drain", set_up, a_drain_ends_idle_logins_at_once_and_sessions_in_time, 1);
	add_case(suite, "channel", set_up, another_account_check_takes_over, 1);
	add_case(suite, "monitor", set_up, without_a_monitor_there_is_no_service, 1);
	add_case(suite, "message", set_up, a_broken_message_ends_the_worker, 1);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
