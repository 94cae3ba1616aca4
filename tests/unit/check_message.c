/* The rules of messages: each row of the table holds, and each field is bounded. */
#include "config.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/message_samples.h"

static const enum role all_roles[] = { ROLE_MASTER, ROLE_MONITOR, ROLE_WORKER_PARENT, ROLE_WORKER,
	ROLE_SIGNER, ROLE_AUTH, ROLE_VERIFIER, ROLE_AGENT };
#define ROLE_COUNT (sizeof all_roles / sizeof all_roles[0])

static bool
accepted_from(const struct message *message, enum role sender, enum role receiver)
{
	struct error error = { 0 };
	int result = message_check(message, sender, receiver, &error);

	ck_assert(result == 0 || (error.code == ERROR_FORMAT && error.text[0]));
	return result == 0;
}

static bool
accepted(const struct message *message)
{
	unsigned type = message->header.type;

	return accepted_from(message, sender_of(type), receiver_of(type));
}

/* ---- the table ---- */

START_TEST(every_type_has_a_valid_form)
{
	struct message message;

	make_valid(all_types[_i], &message);
	ck_assert(accepted(&message));
	ck_assert_str_ne(message_type_name(all_types[_i]), "unknown");
}
END_TEST

START_TEST(only_the_named_roles_send_and_receive)
{
	const struct message_row *row = message_row(all_types[_i]);
	struct message message;

	make_valid(all_types[_i], &message);
	for (size_t s = 0; s < ROLE_COUNT; s++)
		for (size_t r = 0; r < ROLE_COUNT; r++)
			if (!(row->senders & all_roles[s]) || !(row->receivers & all_roles[r]))
				ck_assert(!accepted_from(&message, all_roles[s], all_roles[r]));
}
END_TEST

START_TEST(header_is_checked)
{
	struct message message;

	make_valid(all_types[_i], &message);
	message.header.reserved = 1;
	ck_assert(!accepted(&message));
	make_valid(all_types[_i], &message);
	message.header.tail_size++;
	ck_assert(!accepted(&message));
	make_valid(all_types[_i], &message);
	set_tail(&message, message_row(all_types[_i])->tail_maximum + 1);
	ck_assert(!accepted(&message));
}
END_TEST

START_TEST(descriptor_count_is_checked)
{
	const struct message_row *row = message_row(all_types[_i]);
	struct message message;

	make_valid(all_types[_i], &message);
	message.fd_count = row->maximum_fds + 1;
	ck_assert(!accepted(&message));
	if (row->minimum_fds > 0) {
		message.fd_count = row->minimum_fds - 1;
		ck_assert(!accepted(&message));
	}
}
END_TEST

START_TEST(unknown_types_are_refused)
{
	struct error error = { 0 };
	struct message message;

	for (unsigned type = 0; type <= UINT16_MAX; type++) {
		if (message_row(type))
			continue;
		memset(&message.header, 0, sizeof message.header);
		message.header.type = (uint16_t)type;
		ck_assert_int_eq(message_check(&message, ROLE_MASTER, ROLE_WORKER, &error), -1);
		ck_assert_str_eq(message_type_name(type), "unknown");
		ck_assert_uint_eq(message_payload_size(type), 0);
	}
}
END_TEST

/* ---- fields: one wrong value in an otherwise valid message ---- */

struct wrong {
	unsigned type;
	const char *what;
	size_t offset, size;
	uint64_t value;
};

#define WRONG(type, payload, field, value)                                                         \
	{                                                                                          \
		MESSAGE_##type, #type "." #field " = " #value, offsetof(struct payload, field),    \
		    sizeof(((struct payload *)0)->field), (uint64_t)(value)                        \
	}

static const struct wrong wrong_values[] = {
	WRONG(CHANNEL, message_channel, role, 0),
	WRONG(CHANNEL, message_channel, role, 256),
	WRONG(CHANNEL, message_channel, role, ROLE_WORKER | ROLE_SIGNER),
	WRONG(CHANNEL, message_channel, role, ROLE_AGENT),
	WRONG(CHANNEL, message_channel, role, ROLE_AUTH),
	WRONG(CHANNEL, message_channel, worker, 0),
	WRONG(CHANNEL_GONE, message_channel, role, ROLE_MASTER),
	WRONG(CHANNEL_GONE, message_channel, worker, 0),
	WRONG(DRAIN, message_drain, seconds, MESSAGE_SECONDS_MAX + 1),
	WRONG(DRAIN, message_drain, reserved, 1),
	WRONG(WORKER_START, message_worker, worker, 0),
	WRONG(WORKER_START, message_worker, status, 1),
	WRONG(WORKER_EXITED, message_worker, worker, 0),
	WRONG(WORKER_EXITED, message_worker, status, 0x137f),
	WRONG(WORKER_EXITED, message_worker, status, -1),
	WRONG(WORKER_EXITED, message_worker, status, 0x10000),
	WRONG(CONNECTION, message_connection, session, 0),
	WRONG(CONNECTION, message_connection, flags, 4),
	WRONG(CONNECTION, message_connection, peer_address[0], 'x'),
	WRONG(CONNECTION, message_connection, peer_address[5], ' '),
	WRONG(CONNECTION, message_connection, local_address[3], '\n'),
	WRONG(CONNECTION_CLOSED, message_session, session, 0),
	WRONG(AUTHENTICATED, message_session, session, 0),
	WRONG(AUTH_REQUEST, message_session, session, 0),
	WRONG(SESSION_END, message_session, session, 0),
	WRONG(AGENT_LOCKED, message_agent_locked, session, 0),
	WRONG(READY, message_ready, layers, 64),
	WRONG(READY, message_ready, reserved, 1),
	WRONG(READY, message_ready, detail[0], '\t'),
	WRONG(VERDICT, message_verdict, session, 0),
	WRONG(VERDICT, message_verdict, worker, 0),
	WRONG(VERDICT, message_verdict, verdict, VERDICT_COUNT),
	WRONG(VERDICT, message_verdict, uid, UINT32_MAX),
	WRONG(VERDICT, message_verdict, gid, UINT32_MAX),
	WRONG(VERDICT, message_verdict, virtual_user, 2),
	WRONG(VERDICT, message_verdict, groups, 4),
	WRONG(VERDICT, message_verdict, home[0], 'h'),
	WRONG(VERDICT, message_verdict, home[1], '\n'),
	WRONG(VERDICT, message_verdict, home[1], '.'),
	WRONG(VERDICT, message_verdict, user[0], 0),
	WRONG(VERDICT, message_verdict, user[0], '.'),
	WRONG(VERDICT, message_verdict, user[0], '-'),
	WRONG(VERDICT, message_verdict, user[1], '/'),
	WRONG(VERDICT, message_verdict, user[1], 0x7f),
	WRONG(VERDICT, message_verdict, reason[0], 0x1b),
	WRONG(LOGIN_RESULT, message_login_result, session, 0),
	WRONG(LOGIN_RESULT, message_login_result, status, LOGIN_STATUS_COUNT),
	WRONG(LOGIN_RESULT, message_login_result, status, LOGIN_IN_USE),
	WRONG(LOGIN_RESULT, message_login_result, flags, 0),
	WRONG(LOGIN_RESULT, message_login_result, flags, LOGIN_HAS_SPOOL),
	WRONG(LOGIN_RESULT, message_login_result, flags, LOGIN_HAS_SPOOL | LOGIN_HAS_TABLE),
	WRONG(LOGIN_RESULT, message_login_result, flags, LOGIN_HAS_LOCK | LOGIN_HAS_TABLE),
	WRONG(LOGIN_RESULT, message_login_result, flags, LOGIN_HAS_SPOOL | LOGIN_HAS_LOCK | 32),
	WRONG(LOGIN_RESULT, message_login_result, filesystem, SPOOL_FILESYSTEM_COUNT),
	WRONG(LOGIN_RESULT, message_login_result, count, 1),
	WRONG(LOGIN_RESULT, message_login_result, count, 3),
	WRONG(LOGIN_RESULT, message_login_result, count, 0),
	WRONG(LOGIN_RESULT, message_login_result, count, UINT32_MAX),
	WRONG(LOGIN_RESULT, message_login_result, strings_size, 7),
	WRONG(LOGIN_RESULT, message_login_result, strings_size, UINT32_MAX),
	WRONG(LOGIN_RESULT, message_login_result, hidden, UINT32_MAX),
	WRONG(LOGIN_RESULT, message_login_result, total_octets, UINT64_MAX),
	WRONG(LOGIN_RESULT, message_login_result, open_microseconds, UINT64_MAX),
	WRONG(LOGIN_RESULT, message_login_result, identity.size, UINT64_MAX),
	WRONG(LOGIN_RESULT, message_login_result, identity.mtime_nanoseconds, 1000000000),
	WRONG(LOGIN_RESULT, message_login_result, identity.ctime_nanoseconds, 1000000000),
	WRONG(LOGIN_RESULT, message_login_result, user[0], 0),
	WRONG(LOGIN_RESULT, message_login_result, user[2], '/'),
	WRONG(LOGIN_RESULT, message_login_result, reason[0], 0x80),
	WRONG(AGENT_OPENED, message_login_result, session, 0),
	WRONG(AGENT_OPENED, message_login_result, status, UINT32_MAX),
	WRONG(AGENT_OPENED, message_login_result, flags, LOGIN_HAS_SPOOL | LOGIN_TEMP_DROP),
	WRONG(AGENT_OPENED, message_login_result, flags, LOGIN_HAS_LOCK),
	WRONG(AGENT_OPENED, message_login_result, flags, LOGIN_HAS_TABLE),
	WRONG(AGENT_OPENED, message_login_result, count, 5),
	WRONG(AGENT_OPENED, message_login_result, user[0], '/'),
	WRONG(UPDATE, message_update, session, 0),
	WRONG(UPDATE, message_update, records, 1),
	WRONG(UPDATE, message_update, records, 6),
	WRONG(UPDATE, message_update, strings_size, 1),
	WRONG(UPDATE, message_update, strings_size, UINT32_MAX),
	WRONG(UPDATE, message_update, expected, 1),
	WRONG(UPDATE, message_update, expected, MBOX_MAX_MESSAGES + 1),
	WRONG(UPDATE, message_update, deleted, 3),
	WRONG(UPDATE_RESULT, message_update_result, session, 0),
	WRONG(UPDATE_RESULT, message_update_result, status, UPDATE_STATUS_COUNT),
	WRONG(UPDATE_RESULT, message_update_result, deleted, MBOX_MAX_MESSAGES + 1),
	WRONG(UPDATE_RESULT, message_update_result, left, MBOX_MAX_MESSAGES + 1),
	WRONG(UPDATE_RESULT, message_update_result, deleted_octets, UINT64_MAX),
	WRONG(UPDATE_RESULT, message_update_result, left_octets, UINT64_MAX),
	WRONG(UPDATE_RESULT, message_update_result, recovery, 1),
	WRONG(UPDATE_RESULT, message_update_result, reason[0], '\r'),
	WRONG(AGENT_FINISHED, message_update_result, session, 0),
	WRONG(AGENT_FINISHED, message_update_result, recovery, 1),
	WRONG(AGENT_FINISHED, message_update_result, recovery, 2),
	WRONG(AGENT_INDEX, message_agent_index, session, 0),
	WRONG(AGENT_INDEX, message_agent_index, count, 0),
	WRONG(AGENT_INDEX, message_agent_index, count, MBOX_MAX_MESSAGES + 1),
	WRONG(AGENT_INDEX, message_agent_index, strings_size, UINT32_MAX),
	WRONG(AGENT_INDEX, message_agent_index, hidden, 0),
	WRONG(AGENT_INDEX, message_agent_index, hidden, 3),
	WRONG(AGENT_INDEX, message_agent_index, hidden, 4),
	WRONG(AGENT_INDEX, message_agent_index, visible_strings_size, UINT32_MAX),
	WRONG(AGENT_INDEX, message_agent_index, filesystem, SPOOL_FILESYSTEM_COUNT),
	WRONG(AGENT_INDEX, message_agent_index, write, 2),
	WRONG(AGENT_INDEX, message_agent_index, total_octets, UINT64_MAX),
	WRONG(AGENT_INDEX, message_agent_index, identity.size, UINT64_MAX),
	WRONG(AGENT_INDEX, message_agent_index, identity.ctime_nanoseconds, 1000000000),
	WRONG(SIGN, message_sign, kind, 0),
	WRONG(SIGN, message_sign, kind, SIGN_MESSAGE),
	WRONG(SIGN, message_sign, kind, 3),
	WRONG(SIGN, message_sign, padding, 3),
	WRONG(SIGN, message_sign, padding, 0),
	WRONG(SIGN, message_sign, digest_name[0], 0),
	WRONG(SIGN, message_sign, digest_name[3], ' '),
	WRONG(SIGN, message_sign, mgf1_name[0], 1),
	WRONG(SIGN, message_sign, salt_length, -2),
	WRONG(SIGN, message_sign, salt_length, MESSAGE_DIGEST_MAX + 1),
	WRONG(SIGN, message_sign, reserved, 1),
	WRONG(SIGNATURE, message_signature, status, SIGNATURE_REFUSED),
	WRONG(SIGNATURE, message_signature, status, SIGNATURE_STATUS_COUNT),
};

/* Little-endian and big-endian machines keep a smaller value at different ends. */
static void
store(unsigned char *field, size_t size, uint64_t value)
{
	uint8_t one = (uint8_t)value;
	uint16_t two = (uint16_t)value;
	uint32_t four = (uint32_t)value;

	memcpy(field,
	    size == 1	? (void *)&one
	    : size == 2 ? (void *)&two
	    : size == 4 ? (void *)&four
			: (void *)&value,
	    size);
}

START_TEST(every_field_out_of_range_is_refused)
{
	const struct wrong *wrong = &wrong_values[_i];
	struct message message;

	make_valid(wrong->type, &message);
	store(message.payload.bytes + wrong->offset, wrong->size, wrong->value);
	ck_assert_msg(!accepted(&message), "%s was accepted", wrong->what);
}
END_TEST

#define UNTERMINATED(type, payload, field) WRONG(type, payload, field, 'a')

static const struct wrong strings[] = {
	UNTERMINATED(CONNECTION, message_connection, peer_address),
	UNTERMINATED(CONNECTION, message_connection, local_address),
	UNTERMINATED(READY, message_ready, detail),
	UNTERMINATED(VERDICT, message_verdict, user),
	UNTERMINATED(VERDICT, message_verdict, reason),
	UNTERMINATED(LOGIN_RESULT, message_login_result, user),
	UNTERMINATED(LOGIN_RESULT, message_login_result, reason),
	UNTERMINATED(AGENT_OPENED, message_login_result, user),
	UNTERMINATED(AGENT_OPENED, message_login_result, reason),
	UNTERMINATED(UPDATE_RESULT, message_update_result, reason),
	UNTERMINATED(AGENT_FINISHED, message_update_result, reason),
	UNTERMINATED(SIGN, message_sign, digest_name),
	UNTERMINATED(SIGN, message_sign, mgf1_name),
};

START_TEST(strings_end_inside_their_array)
{
	const struct wrong *string = &strings[_i];
	struct message message;

	make_valid(string->type, &message);
	memset(message.payload.bytes + string->offset, 'a', string->size);
	ck_assert_msg(!accepted(&message), "%s was accepted", string->what);
	message.payload.bytes[string->offset + string->size - 1] = '\0';
	ck_assert_msg(accepted(&message), "%s, terminated, was refused", string->what);
}
END_TEST

START_TEST(home_is_a_path_inside_its_array)
{
	struct message message;
	char *home = message.payload.verdict.home;

	make_valid(MESSAGE_VERDICT, &message);
	memset(home, 'h', sizeof message.payload.verdict.home);
	home[0] = '/';
	ck_assert(!accepted(&message));
	home[sizeof message.payload.verdict.home - 1] = '\0';
	ck_assert(accepted(&message));
	home[0] = '\0'; /* the account has none */
	ck_assert(accepted(&message));
}
END_TEST

START_TEST(channel_roles_depend_on_the_receiver)
{
	struct message message;

	make_valid(MESSAGE_CHANNEL, &message);
	message.payload.channel = (struct message_channel){ 0, ROLE_SIGNER };
	ck_assert(accepted_from(&message, ROLE_MASTER, ROLE_WORKER));
	ck_assert(!accepted_from(&message, ROLE_MASTER, ROLE_MONITOR));
	message.payload.channel.worker = 1;
	ck_assert(!accepted_from(&message, ROLE_MASTER, ROLE_WORKER));
	message.payload.channel = (struct message_channel){ 0, ROLE_AUTH };
	ck_assert(accepted_from(&message, ROLE_MASTER, ROLE_MONITOR));
	ck_assert(!accepted_from(&message, ROLE_MASTER, ROLE_SIGNER));
	message.payload.channel = (struct message_channel){ 4, ROLE_WORKER };
	ck_assert(accepted_from(&message, ROLE_MASTER, ROLE_SIGNER));
	ck_assert(!accepted_from(&message, ROLE_MASTER, ROLE_WORKER));
}
END_TEST

START_TEST(table_in_a_memfd_has_no_tail)
{
	struct message message;
	struct message_login_result *result = &message.payload.login_result;

	make_valid(MESSAGE_LOGIN_RESULT, &message);
	result->flags |= LOGIN_HAS_TABLE;
	result->count = MBOX_MAX_MESSAGES;
	message.fd_count = 3;
	ck_assert(!accepted(&message));
	set_tail(&message, 0);
	ck_assert(accepted(&message));
	result->count++;
	ck_assert(!accepted(&message));
	make_valid(MESSAGE_UPDATE, &message);
	message.fd_count = 2;
	ck_assert(!accepted(&message));
	set_tail(&message, 0);
	ck_assert(accepted(&message));
}
END_TEST

START_TEST(empty_and_refused_logins_are_valid)
{
	struct message message;
	struct message_login_result *result = &message.payload.login_result;

	make_valid(MESSAGE_LOGIN_RESULT, &message);
	memset(result, 0, sizeof *result);
	result->session = 1;
	result->status = LOGIN_REFUSED;
	message.fd_count = 0;
	set_tail(&message, 0);
	ck_assert(accepted(&message));
	result->status = LOGIN_OK;
	strcpy(result->user, "alice");
	ck_assert(!accepted(&message));
	result->flags = LOGIN_HAS_LOCK;
	message.fd_count = 1;
	ck_assert(accepted(&message));
	result->strings_size = 1;
	set_tail(&message, 1);
	ck_assert(!accepted(&message));
}
END_TEST

START_TEST(sign_forms)
{
	struct message message;
	struct message_sign *sign = &message.payload.sign;

	make_valid(MESSAGE_SIGN, &message);
	set_tail(&message, MESSAGE_DIGEST_MAX + 1);
	ck_assert(!accepted(&message));
	make_valid(MESSAGE_SIGN, &message);
	sign->padding = 0;
	sign->salt_length = 0;
	ck_assert(accepted(&message));
	set_tail(&message, 0);
	ck_assert(!accepted(&message));
	memset(sign, 0, sizeof *sign);
	sign->kind = SIGN_MESSAGE;
	set_tail(&message, MESSAGE_SIGN_INPUT_MAX);
	ck_assert(accepted(&message));
	sign->padding = MESSAGE_PADDING_PKCS1;
	ck_assert(!accepted(&message));
}
END_TEST

START_TEST(signature_and_status_agree)
{
	struct message message;

	make_valid(MESSAGE_SIGNATURE, &message);
	set_tail(&message, 0);
	ck_assert(!accepted(&message));
	message.payload.signature.status = SIGNATURE_REFUSED;
	ck_assert(accepted(&message));
}
END_TEST

START_TEST(text_is_made_printable_and_cut)
{
	char field[8];

	memset(field, 'x', sizeof field);
	message_text(field, sizeof field, "a\n\xff");
	ck_assert_mem_eq(field, "a??\0\0\0\0\0", 8);
	message_text(field, sizeof field, "0123456789");
	ck_assert_str_eq(field, "0123456");
}
END_TEST

static TCase *
rules_case(void)
{
	TCase *rules = tcase_create("rules");

	tcase_add_loop_test(rules, every_type_has_a_valid_form, 0, TYPE_COUNT);
	tcase_add_loop_test(rules, only_the_named_roles_send_and_receive, 0, TYPE_COUNT);
	tcase_add_loop_test(rules, header_is_checked, 0, TYPE_COUNT);
	tcase_add_loop_test(rules, descriptor_count_is_checked, 0, TYPE_COUNT);
	tcase_add_test(rules, unknown_types_are_refused);
	tcase_add_loop_test(rules, every_field_out_of_range_is_refused, 0,
	    sizeof wrong_values / sizeof wrong_values[0]);
	tcase_add_loop_test(
	    rules, strings_end_inside_their_array, 0, sizeof strings / sizeof strings[0]);
	tcase_add_test(rules, home_is_a_path_inside_its_array);
	tcase_add_test(rules, channel_roles_depend_on_the_receiver);
	tcase_add_test(rules, table_in_a_memfd_has_no_tail);
	tcase_add_test(rules, empty_and_refused_logins_are_valid);
	tcase_add_test(rules, sign_forms);
	tcase_add_test(rules, signature_and_status_agree);
	tcase_add_test(rules, text_is_made_printable_and_cut);
	return rules;
}

int
main(void)
{
	Suite *suite = suite_create("message");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, rules_case());
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
