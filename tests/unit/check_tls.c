/*
 * TLS end to end: the server of tls.h against a client of OpenSSL, with the real signer loop in a
 * process of its own.
 */
#include "config.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "tests/unit/tls_harness.h"

#define MEMORY_GOAL (20u << 10) /* heap bytes of an idle connection */

/* ---- handshakes ---- */

static void
exchange_data(struct meeting *meeting)
{
	struct error error = { 0 };
	char buffer[64];
	size_t count;

	ck_assert_int_eq(
	    tls_read(meeting->server, buffer, sizeof buffer, &count, &error), TLS_WANT_READ);
	ck_assert_int_eq(SSL_write(meeting->client, "QUIT\r\n", 6), 6);
	ck_assert_int_eq(tls_read(meeting->server, buffer, 2, &count, &error), TLS_DONE);
	ck_assert_mem_eq(buffer, "QU", 2);
	ck_assert(tls_pending(meeting->server));
	ck_assert_int_eq(
	    tls_read(meeting->server, buffer, sizeof buffer, &count, &error), TLS_DONE);
	ck_assert_uint_eq(count, 4);
	ck_assert(!tls_pending(meeting->server));
	ck_assert_int_eq(tls_write(meeting->server, "+OK\r\n", 5, &count, &error), TLS_DONE);
	ck_assert_int_eq(SSL_read(meeting->client, buffer, sizeof buffer), 5);
	ck_assert_mem_eq(buffer, "+OK\r\n", 5);
	tls_shutdown(meeting->server);
	ck_assert_int_eq(SSL_read(meeting->client, buffer, sizeof buffer), 0);
	ck_assert_int_eq(SSL_get_error(meeting->client, 0), SSL_ERROR_ZERO_RETURN);
}

START_TEST(every_key_serves_both_versions)
{
	static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };
	static const char *const names[] = { "TLSv1.2", "TLSv1.3" };
	struct tls_description description;
	struct service service;
	struct meeting meeting;

	start_service(&service, &samples[_i]);
	for (int i = 0; i < 2; i++) {
		meet(&meeting, service.context, make_client(versions[i]), NULL);
		ck_assert_msg(meeting.result == TLS_DONE && meeting.client_result == 1, "%s: %s",
		    names[i], meeting.error.text);
		tls_describe(meeting.server, &description);
		ck_assert_str_eq(description.protocol, names[i]);
		ck_assert_int_ge(description.bits, 128);
		ck_assert(!description.resumed);
		exchange_data(&meeting);
		part(&meeting);
	}
	stop_service(&service);
}
END_TEST

struct algorithm_case {
	const struct sample *sample;
	int version;
	const char *algorithms;
	bool good;
};

static const struct algorithm_case algorithm_cases[] = {
	{ RSA_2048, TLS1_2_VERSION, "RSA+SHA256", true },
	{ RSA_2048, TLS1_2_VERSION, "RSA+SHA384", true },
	{ RSA_2048, TLS1_2_VERSION, "RSA+SHA512", true },
	{ RSA_2048, TLS1_3_VERSION, "rsa_pss_rsae_sha384:RSA+SHA256", true },
	{ RSA_2048, TLS1_3_VERSION, "rsa_pss_rsae_sha512:RSA+SHA256", true },
	{ RSA_2048, TLS1_2_VERSION, "RSA+SHA224", false },
	{ P_256, TLS1_2_VERSION, "ECDSA+SHA512", true },
	{ P_256, TLS1_2_VERSION, "ECDSA+SHA224", false },
	{ P_256, TLS1_3_VERSION, "rsa_pss_rsae_sha256:ECDSA+SHA384", false },
};

START_TEST(signature_algorithms)
{
	const struct algorithm_case *item = &algorithm_cases[_i];
	SSL_CTX *client;
	struct service service;
	struct meeting meeting;

	start_service(&service, item->sample);
	client = make_client(item->version);
	ck_assert_int_eq(SSL_CTX_set1_sigalgs_list(client, (uintptr_t)item->algorithms), 1);
	meet(&meeting, service.context, client, NULL);
	ck_assert_msg((meeting.result == TLS_DONE) == item->good, "%s: %s", item->algorithms,
	    meeting.error.text);
	part(&meeting);
	stop_service(&service);
}
END_TEST

START_TEST(old_and_excluded_versions_are_refused)
{
	struct service service;
	struct meeting meeting;
	struct error error = { 0 };

	start_service(&service, P_256);
	meet(&meeting, service.context, make_client(TLS1_1_VERSION), NULL);
	ck_assert_int_eq(meeting.result, TLS_FAILED);
	ck_assert_int_ne(meeting.client_result, 1);
	part(&meeting);
	for (int i = 0; i < 2; i++) {
		struct tls_context *context;

		service.settings->tls_version = i ? TLS_VERSION_1_3 : TLS_VERSION_1_2;
		ck_assert_int_eq(tls_context_new(service.settings, &context, &error), 0);
		tls_set_signer(context, service.channel);
		meet(&meeting, context, make_client(i ? TLS1_2_VERSION : TLS1_3_VERSION), NULL);
		ck_assert_int_eq(meeting.result, TLS_FAILED);
		part(&meeting);
		meet(&meeting, context, make_client(0), NULL);
		ck_assert_int_eq(meeting.result, TLS_DONE);
		part(&meeting);
		tls_context_free(context);
	}
	stop_service(&service);
}
END_TEST

START_TEST(alpn_is_pop3_or_nothing)
{
	static const unsigned char imap[] = "\4imap";
	static const unsigned char both[] = "\4imap\4pop3";
	const unsigned char *chosen;
	unsigned length;
	SSL_CTX *client;
	struct service service;
	struct meeting meeting;

	start_service(&service, P_256);
	client = make_client(0);
	SSL_CTX_set_alpn_protos(client, imap, 5);
	meet(&meeting, service.context, client, NULL);
	ck_assert_int_eq(meeting.result, TLS_FAILED);
	part(&meeting);
	client = make_client(0);
	SSL_CTX_set_alpn_protos(client, both, 10);
	meet(&meeting, service.context, client, NULL);
	ck_assert_int_eq(meeting.result, TLS_DONE);
	SSL_get0_alpn_selected(meeting.client, &chosen, &length);
	ck_assert_uint_eq(length, 4);
	ck_assert_mem_eq(chosen, "pop3", 4);
	part(&meeting);
	stop_service(&service);
}
END_TEST

START_TEST(no_forward_secrecy_no_service)
{
	SSL_CTX *client;
	struct service service;
	struct meeting meeting;

	start_service(&service, RSA_2048);
	client = make_client(TLS1_2_VERSION);
	ck_assert_int_eq(SSL_CTX_set_cipher_list(client, "kRSA"), 1);
	meet(&meeting, service.context, client, NULL);
	ck_assert_int_eq(meeting.result, TLS_FAILED);
	part(&meeting);
	stop_service(&service);
}
END_TEST

START_TEST(renegotiation_is_refused)
{
	struct service service;
	struct meeting meeting;
	struct error error = { 0 };
	char buffer[16];
	size_t count;

	start_service(&service, P_256);
	meet(&meeting, service.context, make_client(TLS1_2_VERSION), NULL);
	ck_assert_int_eq(SSL_renegotiate(meeting.client), 1);
	for (int i = 0; i < 4; i++) {
		ck_assert_int_ne(SSL_do_handshake(meeting.client), 1);
		tls_read(meeting.server, buffer, sizeof buffer, &count, &error);
	}
	part(&meeting);
	stop_service(&service);
}
END_TEST

/* ---- tickets ---- */

static SSL_SESSION *
session_of(struct meeting *meeting)
{
	char buffer[8];

	/* In TLS 1.3 the ticket comes behind the handshake. */
	ck_assert_int_eq(SSL_read(meeting->client, buffer, sizeof buffer), -1);
	/* A session whose connection is not shut down counts as bad. */
	SSL_set_shutdown(meeting->client, SSL_SENT_SHUTDOWN);
	return SSL_get1_session(meeting->client);
}

START_TEST(tickets_resume_without_the_signer)
{
	static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };
	struct tls_description description;
	struct service service;
	struct meeting meeting;
	SSL_SESSION *session;

	start_service(&service, P_256);
	meet(&meeting, service.context, make_client(versions[_i]), NULL);
	session = session_of(&meeting);
	part(&meeting);
	tls_set_signer(service.context, -1);
	meet(&meeting, service.context, make_client(versions[_i]), session);
	ck_assert_int_eq(meeting.result, TLS_DONE);
	tls_describe(meeting.server, &description);
	ck_assert(description.resumed);
	part(&meeting);
	SSL_SESSION_free(session);
	stop_service(&service);
}
END_TEST

/* ---- connections ---- */

enum {
	LARGE = 1 << 20
};

/* Octets of which no two records have the same, sent by a server and read by its client. */
struct large_write {
	struct meeting meeting;
	char sent[LARGE], received[LARGE];
	size_t out, in;
	unsigned parts; /* writes that could not send everything they had encrypted */
};

static struct large_write *
start_large_write(const struct service *service, SSL_CTX *client)
{
	struct large_write *large = calloc(1, sizeof *large);

	ck_assert_ptr_nonnull(large);
	for (size_t i = 0; i < LARGE; i++)
		large->sent[i] = (char)(i * 7 + i / 4096);
	meet(&large->meeting, service->context, client, NULL);
	ck_assert_int_eq(large->meeting.result, TLS_DONE);
	return large;
}

/* The server writes until its socket is full, or everything is written. */
static void
write_until_full(struct large_write *large)
{
	enum tls_result result = TLS_DONE;
	struct error error = { 0 };
	size_t count;

	while (result == TLS_DONE && large->out < LARGE) {
		/* from other memory each time */
		char *moved = malloc(LARGE - large->out);
		ck_assert_ptr_nonnull(moved);
		memcpy(moved, large->sent + large->out, LARGE - large->out);
		result =
		    tls_write(large->meeting.server, moved, LARGE - large->out, &count, &error);
		free(moved);
		ck_assert(result == TLS_DONE || result == TLS_WANT_WRITE);
		ck_assert(result == TLS_DONE ? count > 0 : count == 0);
		large->out += count;
	}
	large->parts += result == TLS_WANT_WRITE;
}

static void
read_all(struct large_write *large, size_t most)
{
	size_t count;

	while (large->in < most && SSL_read_ex(large->meeting.client, large->received + large->in,
				       most - large->in, &count) == 1)
		large->in += count;
}

static void
end_large_write(struct large_write *large)
{
	ck_assert_uint_gt(large->parts, 1);
	ck_assert_uint_eq(large->out, LARGE);
	ck_assert_mem_eq(large->sent, large->received, LARGE);
	part(&large->meeting);
	free(large);
}

START_TEST(a_large_write_goes_out_in_parts)
{
	struct service service;
	struct large_write *large;

	start_service(&service, P_256);
	large = start_large_write(&service, make_client(_i == 0 ? 0 : TLS1_2_VERSION));
	while (large->in < LARGE) {
		write_until_full(large);
		read_all(large, LARGE);
	}
	end_large_write(large);
	stop_service(&service);
}
END_TEST

/* What a read has to send goes behind the records that wait, and what was written counts once. */
START_TEST(new_keys_in_the_middle_of_a_write_do_no_harm)
{
	struct service service;
	struct large_write *large;
	struct error error = { 0 };
	char buffer[16];
	size_t count;

	start_service(&service, P_256);
	large = start_large_write(&service, make_client(0));
	while (large->in < LARGE) {
		SSL *client = large->meeting.client;

		write_until_full(large);
		/* now and then make room before the server reads */
		read_all(large, large->in + large->parts % 3 * 100000 < LARGE
				    ? large->in + large->parts % 3 * 100000
				    : LARGE);
		ck_assert_int_eq(SSL_key_update(client, SSL_KEY_UPDATE_REQUESTED), 1);
		ck_assert_int_eq(SSL_write_ex(client, "NOOP\r\n", 6, &count), 1);
		ck_assert_int_eq(
		    tls_read(large->meeting.server, buffer, sizeof buffer, &count, &error),
		    TLS_DONE);
		ck_assert_uint_eq(count, 6);
		write_until_full(large);
		read_all(large, LARGE);
	}
	end_large_write(large);
	stop_service(&service);
}
END_TEST

START_TEST(an_end_without_notice_is_a_close)
{
	struct service service;
	struct meeting meeting;
	struct error error = { 0 };
	char buffer[16];
	size_t count;

	start_service(&service, P_256);
	meet(&meeting, service.context, make_client(0), NULL);
	shutdown(meeting.sockets[1], SHUT_WR);
	ck_assert_int_eq(
	    tls_read(meeting.server, buffer, sizeof buffer, &count, &error), TLS_CLOSED);
	tls_shutdown(meeting.server);
	part(&meeting);
	meet(&meeting, service.context, make_client(0), NULL);
	ck_assert_int_eq(
	    send(meeting.sockets[1], "\x17\x03\x03\x00\x14nonsensenonsensenons", 25, 0), 25);
	ck_assert_int_eq(
	    tls_read(meeting.server, buffer, sizeof buffer, &count, &error), TLS_FAILED);
	ck_assert_int_eq(error.code, ERROR_FORMAT);
	part(&meeting);
	stop_service(&service);
}
END_TEST

START_TEST(an_idle_connection_is_small)
{
	enum {
		COUNT = 50
	};
	struct tls_connection *connections[COUNT];
	struct service service;
	struct meeting meeting;
	size_t before = 0, used;

	start_service(&service, P_256);
	for (int i = -1; i < COUNT; i++) {
		meet(&meeting, service.context, make_client(0), NULL);
		ck_assert_int_eq(meeting.result, TLS_DONE);
		if (i >= 0)
			connections[i] = meeting.server;
		else
			tls_connection_free(meeting.server);
		meeting.server = NULL;
		part(&meeting);
		if (i < 0)
			before = mallinfo2().uordblks;
	}
	used = (mallinfo2().uordblks - before) / COUNT;
	ck_assert_msg(used <= MEMORY_GOAL, "%zu bytes", used);
	for (int i = 0; i < COUNT; i++)
		tls_connection_free(connections[i]);
	stop_service(&service);
}
END_TEST

static TCase *
handshake_case(void)
{
	TCase *tests = tcase_create("handshake");

	tcase_set_timeout(tests, 60);
	tcase_add_checked_fixture(tests, make_directory, remove_directory);
	tcase_add_loop_test(tests, every_key_serves_both_versions, 0, SAMPLE_COUNT);
	tcase_add_loop_test(
	    tests, signature_algorithms, 0, sizeof algorithm_cases / sizeof algorithm_cases[0]);
	tcase_add_test(tests, old_and_excluded_versions_are_refused);
	tcase_add_test(tests, alpn_is_pop3_or_nothing);
	tcase_add_test(tests, no_forward_secrecy_no_service);
	tcase_add_test(tests, renegotiation_is_refused);
	tcase_add_loop_test(tests, tickets_resume_without_the_signer, 0, 2);
	tcase_add_loop_test(tests, a_large_write_goes_out_in_parts, 0, 2);
	tcase_add_test(tests, new_keys_in_the_middle_of_a_write_do_no_harm);
	tcase_add_test(tests, an_end_without_notice_is_a_close);
	tcase_add_test(tests, an_idle_connection_is_small);
	return tests;
}

int
main(void)
{
	Suite *suite = suite_create("tls");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, handshake_case());
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
