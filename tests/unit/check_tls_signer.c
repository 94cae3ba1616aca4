/* The signer: what it signs, whom it serves, and what a worker does when it fails. */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/tls_key_file.h"
#include "daemon/tls_signer.h"
#include "tests/unit/tls_harness.h"

/* ---- a signer that fails ---- */

START_TEST(a_dead_signer_fails_the_handshake_until_replaced)
{
	struct service service;
	struct meeting meeting;

	start_service(&service, P_256);
	stop_signer(&service);
	for (int i = 0; i < 2; i++) {
		meet(&meeting, service.context, make_client(0), NULL);
		ck_assert_int_eq(meeting.result, TLS_FAILED);
		ck_assert_int_eq(meeting.error.code, ERROR_CLOSED);
		part(&meeting);
	}
	close(service.channel);
	start_signer(&service);
	tls_set_signer(service.context, service.channel);
	meet(&meeting, service.context, make_client(0), NULL);
	ck_assert_int_eq(meeting.result, TLS_DONE);
	part(&meeting);
	stop_service(&service);
}
END_TEST

/* What a false signer sends in place of an answer. */
struct lie {
	struct message_header header;
	struct message_signature signature;
	unsigned char tail[8];
	size_t size;
	enum error_code code;
};

#define SIGNATURE_HEADER(tail)                                                                     \
	{                                                                                          \
		MESSAGE_SIGNATURE, tail, 0                                                         \
	}

static const struct lie lies[] = {
	{ .header = { 999, 0, 0 }, .size = 24, .code = ERROR_FORMAT },
	{ .header = SIGNATURE_HEADER(0), .size = 5, .code = ERROR_FORMAT },
	{ SIGNATURE_HEADER(8), { 77, SIGNATURE_MADE }, "xxxxxxx", 24, ERROR_FORMAT },
	{ SIGNATURE_HEADER(0), { 1, SIGNATURE_REFUSED }, "", 16, ERROR_DENIED },
};

START_TEST(garbage_of_the_signer_fails_the_handshake)
{
	const struct lie *lie = &lies[_i];
	struct service service;
	struct meeting meeting;
	struct error error;
	int pair[2];

	start_service(&service, P_256);
	ck_assert_int_eq(message_channel_pair(pair, false, &error), 0);
	ck_assert_int_eq(send(pair[1], lie, lie->size, 0), (ssize_t)lie->size);
	tls_set_signer(service.context, pair[0]);
	meet(&meeting, service.context, make_client(0), NULL);
	ck_assert_int_eq(meeting.result, TLS_FAILED);
	ck_assert_int_eq(meeting.error.code, lie->code);
	part(&meeting);
	close(pair[0]);
	close(pair[1]);
	stop_service(&service);
}
END_TEST

START_TEST(a_signature_that_is_none_fails_the_client)
{
	struct lie lie = { SIGNATURE_HEADER(8), { 1, SIGNATURE_MADE }, "xxxxxxx", 24, ERROR_NONE };
	struct service service;
	struct meeting meeting;
	struct error error;
	int pair[2];

	start_service(&service, P_256);
	ck_assert_int_eq(message_channel_pair(pair, false, &error), 0);
	ck_assert_int_eq(send(pair[1], &lie, lie.size, 0), (ssize_t)lie.size);
	tls_set_signer(service.context, pair[0]);
	meet(&meeting, service.context, make_client(0), NULL);
	ck_assert_int_ne(meeting.client_result, 1);
	ck_assert_int_eq(meeting.result, TLS_FAILED);
	part(&meeting);
	close(pair[0]);
	close(pair[1]);
	stop_service(&service);
}
END_TEST

static double
seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

START_TEST(a_silent_signer_costs_one_wait)
{
	struct lie late = { SIGNATURE_HEADER(0), { 1, SIGNATURE_REFUSED }, "", 16, ERROR_NONE };
	struct service service;
	struct meeting meeting;
	struct error error;
	double start;
	int pair[2];

	start_service(&service, P_256);
	ck_assert_int_eq(message_channel_pair(pair, false, &error), 0);
	tls_set_signer(service.context, pair[0]);
	for (int i = 0; i < 2; i++) {
		start = seconds();
		meet(&meeting, service.context, make_client(0), NULL);
		ck_assert_int_eq(meeting.result, TLS_FAILED);
		ck_assert_int_eq(meeting.error.code, ERROR_TIMEOUT);
		ck_assert(i ? seconds() - start < 1 : seconds() - start > TLS_SIGNER_TIMEOUT - 1);
		part(&meeting);
	}
	/* The late answer is thrown away, the next one counts. */
	ck_assert_int_eq(send(pair[1], &late, late.size, 0), (ssize_t)late.size);
	late.signature.request = 2;
	ck_assert_int_eq(send(pair[1], &late, late.size, 0), (ssize_t)late.size);
	meet(&meeting, service.context, make_client(0), NULL);
	ck_assert_int_eq(meeting.error.code, ERROR_DENIED);
	part(&meeting);
	close(pair[0]);
	close(pair[1]);
	stop_service(&service);
}
END_TEST

/* ---- what the signer signs ---- */

struct request_case {
	const struct sample *sample;
	struct message_sign sign;
	size_t size;
	bool good;
};

#define PKCS1 MESSAGE_PADDING_PKCS1
#define PSS   MESSAGE_PADDING_PSS

static const struct request_case request_cases[] = {
	{ RSA_2048, { 1, SIGN_DIGEST, PKCS1, "SHA2-256", "", 0, 0 }, 32, true },
	{ RSA_2048, { 1, SIGN_DIGEST, PSS, "SHA2-384", "SHA2-384", 48, 0 }, 48, true },
	{ RSA_2048, { 1, SIGN_DIGEST, PSS, "SHA2-384", "SHA2-256", 48, 0 }, 48, false },
	{ RSA_2048, { 1, SIGN_DIGEST, PSS, "SHA2-256", "", 20, 0 }, 32, false },
	{ RSA_2048, { 1, SIGN_DIGEST, PKCS1, "SHA2-256", "", 0, 0 }, 31, false },
	{ RSA_2048, { 1, SIGN_DIGEST, PKCS1, "SHA1", "", 0, 0 }, 20, false },
	{ RSA_2048, { 1, SIGN_DIGEST, PKCS1, "MD5", "", 0, 0 }, 16, false },
	{ RSA_2048, { 1, SIGN_DIGEST, 0, "SHA2-256", "", 0, 0 }, 32, false },
	{ RSA_2048, { 1, SIGN_MESSAGE, 0, "", "", 0, 0 }, 130, false },
	{ RSA_PSS, { 1, SIGN_DIGEST, PSS, "SHA2-256", "", -1, 0 }, 32, true },
	{ RSA_PSS, { 1, SIGN_DIGEST, PKCS1, "SHA2-256", "", 0, 0 }, 32, false },
	{ P_256, { 1, SIGN_DIGEST, 0, "SHA2-512", "", 0, 0 }, 64, true },
	{ P_256, { 1, SIGN_DIGEST, PKCS1, "SHA2-256", "", 0, 0 }, 32, false },
	{ P_256, { 1, SIGN_MESSAGE, 0, "", "", 0, 0 }, 130, false },
	{ ED25519, { 1, SIGN_MESSAGE, 0, "", "", 0, 0 }, MESSAGE_SIGN_INPUT_MAX, true },
	{ ED25519, { 1, SIGN_DIGEST, 0, "SHA2-256", "", 0, 0 }, 32, false },
};

START_TEST(the_signer_signs_for_tls_only)
{
	static const unsigned char input[MESSAGE_SIGN_INPUT_MAX];
	const struct request_case *item = &request_cases[_i];
	struct message answer;
	struct service service;
	struct error error = { 0 };
	bool got;

	start_service(&service, item->sample);
	ck_assert_int_eq(message_send(service.channel, MESSAGE_SIGN, &item->sign, input, item->size,
			     NULL, 0, &error),
	    0);
	ck_assert_int_eq(
	    message_receive(service.channel, ROLE_SIGNER, ROLE_WORKER, &answer, &got, &error), 0);
	ck_assert(got);
	ck_assert_int_eq(answer.payload.signature.status == SIGNATURE_MADE, item->good);
	stop_service(&service);
}
END_TEST

START_TEST(a_worker_that_breaks_the_protocol_loses_its_channel)
{
	struct message answer;
	struct service service;
	struct meeting meeting;
	struct error error = { 0 };
	bool got;
	int other;

	start_service(&service, P_256);
	other = hand_out_channel(&service);
	ck_assert_int_eq(send(other, "garbage", 7, 0), 7);
	ck_assert_int_eq(
	    message_receive(other, ROLE_SIGNER, ROLE_WORKER, &answer, &got, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CLOSED);
	meet(&meeting, service.context, make_client(0), NULL);
	ck_assert_int_eq(meeting.result, TLS_DONE);
	part(&meeting);
	close(other);
	stop_service(&service);
}
END_TEST

START_TEST(a_worker_that_does_not_listen_stops_nobody)
{
	static const unsigned char input[32];
	struct message_sign sign = { 1, SIGN_DIGEST, 0, "SHA2-256", "", 0, 0 };
	struct service service;
	struct meeting meeting;
	struct error error = { 0 };
	int other;

	start_service(&service, P_256);
	other = hand_out_channel(&service);
	for (int i = 0; i < 100000; i++)
		if (message_send(other, MESSAGE_SIGN, &sign, input, 32, NULL, 0, &error) < 0)
			break;
	ck_assert_int_eq(error.code, ERROR_CLOSED);
	meet(&meeting, service.context, make_client(0), NULL);
	ck_assert_int_eq(meeting.result, TLS_DONE);
	part(&meeting);
	close(other);
	stop_service(&service);
}
END_TEST

/* ---- qpopper-signer --check ---- */

static int
run_check(const struct settings *settings, char *line, size_t size)
{
	char *arguments[] = { strdup("qpopper-signer"), strdup("--check"), NULL };
	struct error error = { 0 };
	int output[2], status, frozen;
	ssize_t got;
	pid_t child;

	ck_assert_msg(settings_freeze(settings, &frozen, &error) == 0, "%s", error.text);
	ck_assert_int_eq(pipe(output), 0);
	child = fork();
	if (child == 0) {
		dup2(output[1], STDOUT_FILENO);
		if (frozen != ROLE_FD_SETTINGS)
			dup2(frozen, ROLE_FD_SETTINGS);
		_exit(signer_program(2, arguments));
	}
	close(output[1]);
	close(frozen);
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	got = read(output[0], line, size - 1);
	line[got > 0 ? got : 0] = '\0';
	close(output[0]);
	free(arguments[0]);
	free(arguments[1]);
	ck_assert(WIFEXITED(status));
	return WEXITSTATUS(status);
}

START_TEST(check_mode_prints_one_line)
{
	static const struct sample expired = { "EC", "P-256", 0, -1 };
	struct settings *settings = make_settings();
	char line[512];

	write_files(P_256);
	ck_assert_int_eq(run_check(settings, line, sizeof line), ROLE_EXIT_DONE);
	ck_assert_str_eq(line, "");
	write_files(&expired);
	ck_assert_int_eq(run_check(settings, line, sizeof line), ROLE_EXIT_DONE);
	ck_assert_ptr_nonnull(strstr(line, "expired\n"));
	unlink(key_path);
	ck_assert_int_eq(run_check(settings, line, sizeof line), ROLE_EXIT_FAILED);
	ck_assert_ptr_nonnull(strstr(line, "cannot open"));
	ck_assert_ptr_eq(strchr(line, '\n'), line + strlen(line) - 1);
	settings_free(settings);
}
END_TEST

static TCase *
signer_case(void)
{
	TCase *tests = tcase_create("signer");

	tcase_set_timeout(tests, 60);
	tcase_add_checked_fixture(tests, make_directory, remove_directory);
	tcase_add_test(tests, a_dead_signer_fails_the_handshake_until_replaced);
	tcase_add_loop_test(
	    tests, garbage_of_the_signer_fails_the_handshake, 0, sizeof lies / sizeof lies[0]);
	tcase_add_test(tests, a_signature_that_is_none_fails_the_client);
	tcase_add_test(tests, a_silent_signer_costs_one_wait);
	tcase_add_loop_test(tests, the_signer_signs_for_tls_only, 0,
	    sizeof request_cases / sizeof request_cases[0]);
	tcase_add_test(tests, a_worker_that_breaks_the_protocol_loses_its_channel);
	tcase_add_test(tests, a_worker_that_does_not_listen_stops_nobody);
	tcase_add_test(tests, check_mode_prints_one_line);
	return tests;
}

int
main(void)
{
	Suite *suite = suite_create("tls_signer");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, signer_case());
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
