/*
 * Sending and receiving of messages between the processes of the service. Linked into every
 * program; trusts nothing of what it receives but the lengths and descriptors that the kernel
 * reports, and hands out nothing that message_check (message_check.c) has not passed.
 */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "daemon/message.h"

_Static_assert(offsetof(struct message, payload) == sizeof(struct message_header),
    "a packet is received straight into the struct");
_Static_assert(sizeof(struct message_login_result) % _Alignof(struct mbox_message) == 0 &&
		   sizeof(struct message_update) % _Alignof(struct mbox_message) == 0,
    "a tail of table entries is aligned");

static const struct message_row rows[] = {
#define X(name, number, senders, receivers, payload, tail, min_fds, max_fds)                       \
	[number] = { #name, senders, receivers, sizeof(payload), tail, min_fds, max_fds },
	MESSAGE_TABLE(X)
#undef X
};

#define X(name, number, senders, receivers, payload, tail, min_fds, max_fds)                       \
	_Static_assert(                                                                            \
	    sizeof(struct message_header) + sizeof(payload) + (tail) <= MESSAGE_SIZE_MAX &&        \
		(max_fds) <= MESSAGE_FDS_MAX,                                                      \
	    #name " fits");
MESSAGE_TABLE(X)
#undef X

const struct message_row *
message_row(unsigned type)
{
	if (type >= sizeof rows / sizeof rows[0] || !rows[type].name)
		return NULL;
	return &rows[type];
}

const char *
message_type_name(unsigned type)
{
	const struct message_row *row = message_row(type);

	return row ? row->name : "unknown";
}

size_t
message_payload_size(unsigned type)
{
	const struct message_row *row = message_row(type);

	return row ? row->payload_size : 0;
}

void
message_text(char *out, size_t out_size, const char *text)
{
	size_t i;

	for (i = 0; i + 1 < out_size && text[i]; i++)
		out[i] = text[i] >= 0x20 && text[i] < 0x7f ? text[i] : '?';
	memset(out + i, 0, out_size - i);
}

/* ---- sending ---- */

static int
send_error(int number, const char *name, struct error *error)
{
	if (number == EAGAIN || number == EWOULDBLOCK || number == ENOBUFS)
		return error_set(error, ERROR_LIMIT, "message %s: the channel is full", name);
	if (number == EPIPE || number == ECONNRESET || number == ENOTCONN)
		return error_set(error, ERROR_CLOSED, "message %s: the channel is closed", name);
	return error_set_errno(error, number, "message %s: cannot send", name);
}

union control {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(MESSAGE_FDS_MAX * sizeof(int))];
};

static void
attach_fds(struct msghdr *header, union control *control, const int *fds, unsigned fd_count)
{
	struct cmsghdr *rights;

	memset(control, 0, sizeof *control);
	header->msg_control = control->bytes;
	header->msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
	rights = CMSG_FIRSTHDR(header);
	rights->cmsg_level = SOL_SOCKET;
	rights->cmsg_type = SCM_RIGHTS;
	rights->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
	memcpy(CMSG_DATA(rights), fds, fd_count * sizeof(int));
}

int
message_send(int channel, enum message_type type, const void *payload, const void *tail,
    size_t tail_size, const int *fds, unsigned fd_count, struct error *error)
{
	const struct message_row *row = message_row(type);
	struct message_header header = { .type = (uint16_t)type };
	union control control;
	struct iovec parts[3];
	struct msghdr packet = { .msg_iov = parts, .msg_iovlen = tail_size ? 3 : 2 };

	if (!row || tail_size > row->tail_maximum || fd_count < row->minimum_fds ||
	    fd_count > row->maximum_fds)
		return error_set(
		    error, ERROR_INTERNAL, "message %s: wrong sizes", message_type_name(type));
	header.tail_size = (uint16_t)tail_size;
	parts[0] = (struct iovec){ &header, sizeof header };
	/* An iovec has no const; sendmsg only reads. */
	parts[1] = (struct iovec){ (void *)(uintptr_t)payload, row->payload_size };
	parts[2] = (struct iovec){ (void *)(uintptr_t)tail, tail_size };
	if (fd_count)
		attach_fds(&packet, &control, fds, fd_count);
	while (sendmsg(channel, &packet, MSG_NOSIGNAL) < 0)
		if (errno != EINTR)
			return send_error(errno, row->name, error);
	return 0;
}

/* ---- receiving ---- */

/* Take over the descriptors of a packet; the room for them holds no more than MESSAGE_FDS_MAX. */
static void
collect_fds(struct msghdr *packet, struct message *message)
{
	for (struct cmsghdr *part = CMSG_FIRSTHDR(packet); part; part = CMSG_NXTHDR(packet, part)) {
		size_t count;

		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
			continue;
		count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count && message->fd_count < MESSAGE_FDS_MAX; i++)
			memcpy(&message->fds[message->fd_count++],
			    CMSG_DATA(part) + i * sizeof(int), sizeof(int));
	}
}

static int
check_packet(struct message *message, size_t size, int packet_flags, enum role sender,
    enum role receiver, struct error *error)
{
	size_t fixed;

	if (packet_flags & MSG_TRUNC)
		return error_set(error, ERROR_FORMAT, "message too long");
	if (packet_flags & MSG_CTRUNC)
		return error_set(error, ERROR_FORMAT, "message with too many descriptors");
	if (size < sizeof message->header)
		return error_set(error, ERROR_FORMAT, "message without a header");
	fixed = sizeof message->header + message_payload_size(message->header.type);
	if (size < fixed)
		return error_set(error, ERROR_FORMAT, "message %s: too short",
		    message_type_name(message->header.type));
	message->tail_size = size - fixed;
	message->tail = message->payload.bytes + (fixed - sizeof message->header);
	return message_check(message, sender, receiver, error);
}

static int
receive_error(int number, struct error *error)
{
	if (number == EAGAIN || number == EWOULDBLOCK)
		return 0;
	if (number == ECONNRESET)
		return error_set(error, ERROR_CLOSED, "the channel is closed");
	return error_set_errno(error, number, "cannot receive a message");
}

int
message_receive(int channel, enum role sender, enum role receiver, struct message *message_out,
    bool *got_out, struct error *error)
{
	union control control;
	struct iovec whole = { message_out, MESSAGE_SIZE_MAX };
	struct msghdr packet = { .msg_iov = &whole, .msg_iovlen = 1 };
	ssize_t size;
	int result;

	*got_out = false;
	message_out->fd_count = 0;
	do {
		packet.msg_control = control.bytes;
		packet.msg_controllen = sizeof control.bytes;
		size = recvmsg(channel, &packet, MSG_CMSG_CLOEXEC);
	} while (size < 0 && errno == EINTR);
	if (size < 0)
		return receive_error(errno, error);
	collect_fds(&packet, message_out);
	if (size == 0)
		result = error_set(error, ERROR_CLOSED, "the channel is closed");
	else
		result = check_packet(
		    message_out, (size_t)size, packet.msg_flags, sender, receiver, error);
	if (result < 0)
		message_close(message_out);
	*got_out = result == 0;
	return result;
}

int
message_take_fd(struct message *message, unsigned i)
{
	int fd;

	if (i >= message->fd_count)
		return -1;
	fd = message->fds[i];
	message->fds[i] = -1;
	return fd;
}

void
message_close(struct message *message)
{
	for (unsigned i = 0; i < message->fd_count; i++)
		if (message->fds[i] >= 0)
			close(message->fds[i]);
	message->fd_count = 0;
}

int
message_channel_pair(int pair_out[2], bool nonblocking, struct error *error)
{
	int type = SOCK_SEQPACKET | SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0);

	if (socketpair(AF_UNIX, type, 0, pair_out) < 0)
		return error_set_errno(error, errno, "cannot make a channel");
	return 0;
}
