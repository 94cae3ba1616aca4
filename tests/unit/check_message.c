/* Messages: each row of the table holds, each field is bounded, and no descriptor is lost. */
#include "config.h"

#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/message.h"

static const unsigned all_types[] = {
#define X(name, number, senders, receivers, payload, tail, min_fds, max_fds) number,
	MESSAGE_TABLE(X)
#undef X
};
#define TYPE_COUNT (sizeof all_types / sizeof all_types[0])

static const enum role all_roles[] = { ROLE_MASTER, ROLE_MONITOR, ROLE_WORKER_PARENT, ROLE_WORKER,
				       ROLE_SIGNER, ROLE_AUTH,	  ROLE_VERIFIER,      ROLE_AGENT };
#define ROLE_COUNT (sizeof all_roles / sizeof all_roles[0])

/* ---- a valid message of each type ---- */

static enum role
lowest(unsigned roles)
{
	return (enum role)(roles & -roles);
}

static enum role
sender_of(unsigned type)
{
	return lowest(message_row(type)->senders);
}

static enum role
receiver_of(unsigned type)
{
	return lowest(message_row(type)->receivers);
}

static void
set_tail(struct message *message, size_t size)
{
	message->header.tail_size = (uint16_t)size;
	message->tail_size = size;
	message->tail = message->payload.bytes + message_payload_size(message->header.type);
}

static void
fill_login(struct message *message, bool from_agent)
{
	struct message_login_result *result = &message->payload.login_result;

	result->flags = LOGIN_HAS_SPOOL | LOGIN_RACY | (from_agent ? 0 : LOGIN_HAS_LOCK);
	result->count = 2;
	result->strings_size = 8;
	result->total_octets = 100;
	result->identity.size = 90;
	strcpy(result->user, "alice");
	message->fd_count = from_agent ? 1 : 2;
	set_tail(message, 2 * sizeof(struct mbox_message) + 8);
}

static void
fill_sign(struct message *message)
{
	message->payload.sign.kind = SIGN_DIGEST;
	message->payload.sign.padding = MESSAGE_PADDING_PSS;
	message->payload.sign.salt_length = -1;
	strcpy(message->payload.sign.digest_name, "SHA2-256");
	set_tail(message, 32);
}

static void
fill_connection(struct message_connection *connection)
{
	connection->flags = CONNECTION_LOCAL;
	connection->peer_port = 4711;
	strcpy(connection->peer_address, "fe80::1%eth0");
	strcpy(connection->local_address, "192.0.2.1");
}

static void
fill_verdict(struct message_verdict *verdict)
{
	verdict->worker = 3;
	verdict->uid = 1000;
	verdict->gid = 1000;
	strcpy(verdict->user, "j\xc3\xb6rg");
}

static void
fill_update(struct message *message)
{
	message->payload.update.deleted = 2;
	message->payload.update.expected = 5;
	message->fd_count = 1;
	set_tail(message, 2 * sizeof(struct mbox_message));
}

static void
fill_fields(struct message *message)
{
	switch (message->header.type) {
	case MESSAGE_CHANNEL:
	case MESSAGE_CHANNEL_GONE:
		message->payload.channel = (struct message_channel){ 7, ROLE_WORKER };
		break;
	case MESSAGE_WORKER_START:
	case MESSAGE_WORKER_EXITED:
		message->payload.worker.worker = 7;
		break;
	case MESSAGE_CONNECTION:
		fill_connection(&message->payload.connection);
		break;
	case MESSAGE_VERDICT:
		fill_verdict(&message->payload.verdict);
		break;
	case MESSAGE_LOGIN_RESULT:
	case MESSAGE_AGENT_OPENED:
		fill_login(message, message->header.type == MESSAGE_AGENT_OPENED);
		break;
	case MESSAGE_UPDATE:
		fill_update(message);
		break;
	case MESSAGE_SIGN:
		fill_sign(message);
		break;
	case MESSAGE_SIGNATURE:
		set_tail(message, 70);
		break;
	default:
		break;
	}
}

static bool
has_session(unsigned type)
{
	return message_payload_size(type) >= sizeof(struct message_session) &&
	       type != MESSAGE_CHANNEL && type != MESSAGE_CHANNEL_GONE && type != MESSAGE_DRAIN &&
	       type != MESSAGE_WORKER_START && type != MESSAGE_WORKER_EXITED &&
	       type != MESSAGE_READY && type != MESSAGE_SIGN && type != MESSAGE_SIGNATURE;
}

static void
make_valid(unsigned type, struct message *message)
{
	memset(message, 0, sizeof *message);
	message->header.type = (uint16_t)type;
	message->fd_count = message_row(type)->minimum_fds;
	set_tail(message, 0);
	if (has_session(type))
		message->payload.session.session = 99;
	fill_fields(message);
}

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
	WRONG(VERDICT, message_verdict, reserved, 1),
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
	WRONG(LOGIN_RESULT, message_login_result, flags, LOGIN_HAS_SPOOL | LOGIN_HAS_LOCK | 16),
	WRONG(LOGIN_RESULT, message_login_result, filesystem, SPOOL_FILESYSTEM_COUNT),
	WRONG(LOGIN_RESULT, message_login_result, count, 1),
	WRONG(LOGIN_RESULT, message_login_result, count, 3),
	WRONG(LOGIN_RESULT, message_login_result, count, 0),
	WRONG(LOGIN_RESULT, message_login_result, count, UINT32_MAX),
	WRONG(LOGIN_RESULT, message_login_result, strings_size, 7),
	WRONG(LOGIN_RESULT, message_login_result, strings_size, UINT32_MAX),
	WRONG(LOGIN_RESULT, message_login_result, reserved, 1),
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
	WRONG(AGENT_OPENED, message_login_result, flags, LOGIN_HAS_LOCK),
	WRONG(AGENT_OPENED, message_login_result, flags, LOGIN_HAS_TABLE),
	WRONG(AGENT_OPENED, message_login_result, count, 5),
	WRONG(AGENT_OPENED, message_login_result, user[0], '/'),
	WRONG(UPDATE, message_update, session, 0),
	WRONG(UPDATE, message_update, deleted, 0),
	WRONG(UPDATE, message_update, deleted, 1),
	WRONG(UPDATE, message_update, deleted, 6),
	WRONG(UPDATE, message_update, strings_size, 1),
	WRONG(UPDATE, message_update, strings_size, UINT32_MAX),
	WRONG(UPDATE, message_update, expected, 1),
	WRONG(UPDATE, message_update, expected, MBOX_MAX_MESSAGES + 1),
	WRONG(UPDATE, message_update, reserved, 1),
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
	       size == 1   ? (void *)&one
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

/* ---- over a socket ---- */

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

static size_t
packet_size(const struct message *message)
{
	return sizeof message->header + message_payload_size(message->header.type) +
	       message->tail_size;
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
	ck_assert_int_eq(message_send(pair[0], (enum message_type)type, sent.payload.bytes,
				      sent.tail_size ? sent.tail : NULL, sent.tail_size, fds,
				      sent.fd_count, &error),
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
	ck_assert_int_eq(message_send(pair[0], MESSAGE_DRAIN, &drain, NULL, 0, NULL, 0, &error),
			 -1);
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
	ck_assert_int_eq(message_send(pair[0], MESSAGE_DRAIN, &drain, NULL, 0, pair, 1, &error),
			 -1);
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
	tcase_add_loop_test(rules, strings_end_inside_their_array, 0,
			    sizeof strings / sizeof strings[0]);
	tcase_add_test(rules, channel_roles_depend_on_the_receiver);
	tcase_add_test(rules, table_in_a_memfd_has_no_tail);
	tcase_add_test(rules, empty_and_refused_logins_are_valid);
	tcase_add_test(rules, sign_forms);
	tcase_add_test(rules, signature_and_status_agree);
	tcase_add_test(rules, text_is_made_printable_and_cut);
	return rules;
}

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
	Suite *suite = suite_create("message");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, rules_case());
	suite_add_tcase(suite, channel_case());
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
