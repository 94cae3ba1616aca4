/*
 * Fuzzer of the message rules: any packet, for any pair of roles, is either refused with
 * ERROR_FORMAT or is one whose strings end and whose counts are bounded.
 *
 * Input: one byte each for sender, receiver and number of descriptors, then the packet.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
require(bool condition)
{
	if (!condition)
		abort();
}

static void
check_accepted(const struct message *message)
{
	require(message->fd_count <= MESSAGE_FDS_MAX);
	switch (message->header.type) {
	case MESSAGE_LOGIN_RESULT:
	case MESSAGE_AGENT_OPENED:
		require(message->payload.login_result.count <= MBOX_MAX_MESSAGES);
		require(strlen(message->payload.login_result.user) <= MESSAGE_NAME_MAX);
		break;
	case MESSAGE_VERDICT:
		require(strlen(message->payload.verdict.user) <= MESSAGE_NAME_MAX);
		require(!strchr(message->payload.verdict.user, '/'));
		break;
	case MESSAGE_SIGN:
		require(message->tail_size > 0 && message->tail_size <= MESSAGE_SIGN_INPUT_MAX);
		break;
	default:
		break;
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct message *message;
	struct error error = { 0 };
	size_t fixed;

	if (size < 3 + sizeof message->header || size - 3 > MESSAGE_SIZE_MAX)
		return 0;
	message = calloc(1, sizeof *message);
	if (!message)
		return 0;
	memcpy(message, data + 3, size - 3);
	fixed = sizeof message->header + message_payload_size(message->header.type);
	if (size - 3 >= fixed) {
		message->tail_size = size - 3 - fixed;
		message->tail = message->payload.bytes + (fixed - sizeof message->header);
		message->fd_count = data[2] % (MESSAGE_FDS_MAX + 1);
		if (message_check(message, (enum role)(1u << (data[0] % 8)),
			(enum role)(1u << (data[1] % 8)), &error) == 0)
			check_accepted(message);
		else
			require(error.code == ERROR_FORMAT);
	}
	free(message);
	return 0;
}
