/* See message_samples.h. */
#include "config.h"

#include "tests/unit/message_samples.h"

#include <string.h>

const unsigned all_types[TYPE_COUNT] = {
#define X(name, number, senders, receivers, payload, tail, min_fds, max_fds) number,
	MESSAGE_TABLE(X)
#undef X
};
/* ---- a valid message of each type ---- */

static enum role
lowest(unsigned roles)
{
	return (enum role)(roles & -roles);
}

enum role
sender_of(unsigned type)
{
	return lowest(message_row(type)->senders);
}

enum role
receiver_of(unsigned type)
{
	return lowest(message_row(type)->receivers);
}

void
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
	message->payload.update.records = 2;
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

void
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

size_t
packet_size(const struct message *message)
{
	return sizeof message->header + message_payload_size(message->header.type) +
	       message->tail_size;
}
