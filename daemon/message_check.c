/*
 * The rules of messages: rights and sizes by the table in message.h, fields by a rule for each
 * type. Pure; linked into every program, run by the receiver on every message before anything is
 * used.
 */
#include "config.h"

#include <string.h>
#include <sys/wait.h>

#include "daemon/message.h"
#include "lib/spool_place.h"
#include "lib/uidl.h"

struct parties {
	enum role sender, receiver;
};

/* Returns NULL, or which rule is broken. */
typedef const char *field_rule(const struct message *message, const struct parties *parties);

static bool
text_valid(const char *text, size_t size, char lowest)
{
	size_t length = strnlen(text, size);

	if (length == size)
		return false;
	for (size_t i = 0; i < length; i++)
		if (text[i] < lowest || text[i] >= 0x7f)
			return false;
	return true;
}

#define PRINTABLE(array) text_valid(array, sizeof(array), ' ')
#define GRAPHIC(array)	 text_valid(array, sizeof(array), '!')

/* A user name as it may become part of a file name; other octets than ASCII are allowed. */
static bool
user_valid(const char user[MESSAGE_NAME_MAX + 1], bool may_be_empty)
{
	size_t length = strnlen(user, MESSAGE_NAME_MAX + 1);

	if (length == MESSAGE_NAME_MAX + 1 || (length == 0 && !may_be_empty))
		return false;
	for (size_t i = 0; i < length; i++)
		if ((unsigned char)user[i] < 0x20 || user[i] == 0x7f || user[i] == '/')
			return false;
	return user[0] != '.' && user[0] != '-';
}

static bool
home_valid(const char home[SPOOL_DIRECTORY_MAX + 1])
{
	return home[0] == '\0' ||
	       (memchr(home, '\0', SPOOL_DIRECTORY_MAX + 1) != NULL && spool_home_valid(home));
}

static bool
address_valid(const char *text, size_t size)
{
	size_t numeric = strspn(text, "0123456789abcdefABCDEF.:");

	return text_valid(text, size, '!') && (text[numeric] == '\0' || text[numeric] == '%');
}

static const char *
check_session(const struct message *message, const struct parties *parties)
{
	(void)parties;
	return message->payload.session.session ? NULL : "session is 0";
}

static const char *
check_channel(const struct message *message, const struct parties *parties)
{
	const struct message_channel *channel = &message->payload.channel;
	bool numbered = channel->role == ROLE_WORKER;
	unsigned allowed = ROLE_WORKER;

	if (parties->receiver == ROLE_WORKER)
		allowed = ROLE_MONITOR | ROLE_SIGNER | ROLE_AUTH | ROLE_VERIFIER;
	else if (parties->receiver == ROLE_MONITOR)
		allowed = ROLE_WORKER | ROLE_AUTH | ROLE_VERIFIER;
	if (!(channel->role & allowed) || (channel->role & (channel->role - 1)))
		return "role out of range";
	if (numbered != (channel->worker != 0))
		return "worker number and role disagree";
	return NULL;
}

static const char *
check_drain(const struct message *message, const struct parties *parties)
{
	(void)parties;
	if (message->payload.drain.seconds > MESSAGE_SECONDS_MAX)
		return "seconds out of range";
	return message->payload.drain.reserved ? "reserved is not 0" : NULL;
}

static const char *
check_worker_start(const struct message *message, const struct parties *parties)
{
	(void)parties;
	if (message->payload.worker.worker == 0)
		return "worker is 0";
	return message->payload.worker.status ? "status is not 0" : NULL;
}

static const char *
check_worker_exited(const struct message *message, const struct parties *parties)
{
	int status = message->payload.worker.status;

	(void)parties;
	if (message->payload.worker.worker == 0)
		return "worker is 0";
	if (status < 0 || status > 0xffff || (!WIFEXITED(status) && !WIFSIGNALED(status)))
		return "status is none of an ended process";
	return NULL;
}

static const char *
check_connection(const struct message *message, const struct parties *parties)
{
	const struct message_connection *connection = &message->payload.connection;

	(void)parties;
	if (connection->session == 0)
		return "session is 0";
	if (connection->flags & ~(uint32_t)(CONNECTION_IMPLICIT_TLS | CONNECTION_LOCAL))
		return "flags out of range";
	if (!address_valid(connection->peer_address, sizeof connection->peer_address))
		return "peer_address is not numeric";
	if (!address_valid(connection->local_address, sizeof connection->local_address))
		return "local_address is not numeric";
	return NULL;
}

static const char *
check_ready(const struct message *message, const struct parties *parties)
{
	const struct message_ready *ready = &message->payload.ready;

	(void)parties;
	if (ready->layers > MESSAGE_LAYERS_ALL)
		return "layers out of range";
	if (ready->reserved)
		return "reserved is not 0";
	return PRINTABLE(ready->detail) ? NULL : "detail is not printable";
}

static const char *
check_verdict(const struct message *message, const struct parties *parties)
{
	const struct message_verdict *verdict = &message->payload.verdict;
	bool accepted = verdict->verdict == VERDICT_ACCEPTED;

	(void)parties;
	if (verdict->session == 0)
		return "session is 0";
	if (verdict->worker == 0)
		return "worker is 0";
	if (verdict->verdict >= VERDICT_COUNT)
		return "verdict out of range";
	if (verdict->virtual_user > 1)
		return "virtual_user out of range";
	if (verdict->groups & ~(uint32_t)(SPOOL_GROUP_SERVER_MODE | SPOOL_GROUP_NO_SERVER_MODE))
		return "groups out of range";
	if (!home_valid(verdict->home))
		return "home is no directory";
	/* All ones means "leave unchanged" to the system calls that set identities. */
	if (accepted && (verdict->uid == UINT32_MAX || verdict->gid == UINT32_MAX))
		return "uid or gid out of range";
	if (!user_valid(verdict->user, !accepted))
		return "user is not a user name";
	return PRINTABLE(verdict->reason) ? NULL : "reason is not printable";
}

/* Bytes that the unique-ids of so many messages take at most. */
static uint64_t
strings_limit(uint32_t count)
{
	return count ? (uint64_t)count * (UIDL_MAX_LENGTH + 1) + 1 : 0;
}

/* A table of count messages and its strings travels whole: in the memfd, else in the tail. */
static const char *
check_table(const struct message *message, uint32_t count, uint32_t strings_size, bool in_memfd)
{
	uint64_t size = (uint64_t)count * sizeof(struct mbox_message) + strings_size;

	if (count > MBOX_MAX_MESSAGES)
		return "count out of range";
	if (strings_size > strings_limit(count))
		return "strings_size out of range";
	if (message->tail_size != (in_memfd ? 0 : size))
		return "the tail does not have the size of the table";
	return NULL;
}

static const char *
check_login_flags(const struct message *message, const struct parties *parties)
{
	const struct message_login_result *result = &message->payload.login_result;
	uint32_t with_fd = LOGIN_HAS_SPOOL | LOGIN_HAS_LOCK | LOGIN_HAS_TABLE;
	uint32_t lock = result->flags & LOGIN_HAS_LOCK;
	uint32_t others = LOGIN_RACY | (parties->sender == ROLE_AGENT ? 0 : LOGIN_TEMP_DROP);

	if (result->flags & ~(with_fd | others))
		return "flags out of range";
	if ((unsigned)__builtin_popcount(result->flags & with_fd) != message->fd_count)
		return "flags and descriptors disagree";
	if (result->status != LOGIN_OK)
		return result->flags ? "flags of a failed login" : NULL;
	/* an agent has one to send where the maildrop is not in the shared directory */
	if (!lock && parties->sender != ROLE_AGENT)
		return "session lock missing";
	if (!(result->flags & LOGIN_HAS_SPOOL) && (result->flags & (LOGIN_HAS_TABLE | LOGIN_RACY)))
		return "flags of a spool without a spool";
	return NULL;
}

static const char *
check_login_counts(const struct message *message)
{
	const struct message_login_result *result = &message->payload.login_result;
	bool in_memfd = result->flags & LOGIN_HAS_TABLE;

	if (result->count && !(result->flags & LOGIN_HAS_SPOOL))
		return "messages without a spool";
	if (result->total_octets > (result->count ? (uint64_t)INT64_MAX : 0))
		return "total_octets out of range";
	if (result->open_microseconds > INT64_MAX)
		return "open_microseconds out of range";
	return check_table(message, result->count, result->strings_size, in_memfd);
}

static const char *
check_identity(const struct spool_identity *identity)
{
	if (identity->size > INT64_MAX)
		return "size of the spool out of range";
	if (identity->mtime_nanoseconds > 999999999 || identity->ctime_nanoseconds > 999999999)
		return "nanoseconds out of range";
	return NULL;
}

static const char *
check_login_result(const struct message *message, const struct parties *parties)
{
	const struct message_login_result *result = &message->payload.login_result;
	bool may_be_empty = result->status != LOGIN_OK || parties->sender == ROLE_AGENT;
	const char *broken;

	if (result->session == 0)
		return "session is 0";
	if (result->status >= LOGIN_STATUS_COUNT ||
	    (result->status == LOGIN_LEFT_OVER && parties->sender != ROLE_AGENT))
		return "status out of range";
	if (result->filesystem >= SPOOL_FILESYSTEM_COUNT)
		return "filesystem out of range";
	if (result->hidden > MBOX_MAX_MESSAGES)
		return "hidden out of range";
	if (!user_valid(result->user, may_be_empty))
		return "user is not a user name";
	if (!PRINTABLE(result->reason))
		return "reason is not printable";
	broken = check_login_flags(message, parties);
	if (!broken)
		broken = check_login_counts(message);
	return broken ? broken : check_identity(&result->identity);
}

static const char *
check_agent_index(const struct message *message, const struct parties *parties)
{
	const struct message_agent_index *index = &message->payload.agent_index;
	uint32_t visible = index->count - index->hidden;

	(void)parties;
	if (index->session == 0)
		return "session is 0";
	if (index->filesystem >= SPOOL_FILESYSTEM_COUNT)
		return "filesystem out of range";
	if (index->write > 1)
		return "write out of range";
	if (index->hidden > index->count)
		return "hidden out of range";
	if ((index->hidden ? 2 : 1) != message->fd_count)
		return "hidden messages and descriptors disagree";
	if (index->visible_strings_size > strings_limit(index->hidden ? visible : 0))
		return "visible_strings_size out of range";
	if (index->total_octets > (visible ? (uint64_t)INT64_MAX : 0))
		return "total_octets out of range";
	if (check_identity(&index->identity))
		return check_identity(&index->identity);
	return check_table(message, index->count, index->strings_size, true);
}

static const char *
check_update(const struct message *message, const struct parties *parties)
{
	const struct message_update *update = &message->payload.update;

	(void)parties;
	if (update->session == 0)
		return "session is 0";
	if (update->expected > MBOX_MAX_MESSAGES)
		return "expected out of range";
	if (update->records > update->expected)
		return "records out of range";
	if (update->deleted > update->records)
		return "deleted out of range";
	return check_table(message, update->records, update->strings_size, message->fd_count == 2);
}

static const char *
check_update_result(const struct message *message, const struct parties *parties)
{
	const struct message_update_result *result = &message->payload.update_result;

	if (result->session == 0)
		return "session is 0";
	if (result->status >= UPDATE_STATUS_COUNT)
		return "status out of range";
	if (result->deleted > MBOX_MAX_MESSAGES || result->left > MBOX_MAX_MESSAGES)
		return "deleted or left out of range";
	if (result->deleted_octets > INT64_MAX || result->left_octets > INT64_MAX)
		return "octets out of range";
	if (result->recovery >=
	    (parties->sender == ROLE_AGENT ? RECOVERY_COUNT : RECOVERY_NONE + 1))
		return "recovery out of range";
	if (result->recovery &&
	    (result->recovery == RECOVERY_RENAME) != (result->status == UPDATE_DONE))
		return "recovery and status disagree";
	return PRINTABLE(result->reason) ? NULL : "reason is not printable";
}

static const char *
check_sign_digest(const struct message *message)
{
	const struct message_sign *sign = &message->payload.sign;
	bool pss = sign->padding == MESSAGE_PADDING_PSS;

	if (!pss && sign->padding != 0 && sign->padding != MESSAGE_PADDING_PKCS1)
		return "padding out of range";
	if (sign->digest_name[0] == '\0')
		return "digest_name is empty";
	if (message->tail_size > MESSAGE_DIGEST_MAX)
		return "the digest is too long";
	if (!pss && (sign->mgf1_name[0] || sign->salt_length))
		return "PSS fields without PSS";
	if (sign->salt_length < -1 || sign->salt_length > MESSAGE_DIGEST_MAX)
		return "salt_length out of range";
	return NULL;
}

static const char *
check_sign(const struct message *message, const struct parties *parties)
{
	const struct message_sign *sign = &message->payload.sign;

	(void)parties;
	if (!GRAPHIC(sign->digest_name) || !GRAPHIC(sign->mgf1_name))
		return "a digest's name is not printable";
	if (sign->reserved)
		return "reserved is not 0";
	if (message->tail_size == 0)
		return "nothing to sign";
	if (sign->kind == SIGN_DIGEST)
		return check_sign_digest(message);
	if (sign->kind != SIGN_MESSAGE)
		return "kind out of range";
	if (sign->padding || sign->digest_name[0] || sign->mgf1_name[0] || sign->salt_length)
		return "fields of a digest with a message";
	return NULL;
}

static const char *
check_signature(const struct message *message, const struct parties *parties)
{
	uint32_t status = message->payload.signature.status;

	(void)parties;
	if (status >= SIGNATURE_STATUS_COUNT)
		return "status out of range";
	if ((status == SIGNATURE_MADE) != (message->tail_size != 0))
		return "status and signature disagree";
	return NULL;
}

static field_rule *const field_rules[] = {
	[MESSAGE_CHANNEL] = check_channel,
	[MESSAGE_CHANNEL_GONE] = check_channel,
	[MESSAGE_DRAIN] = check_drain,
	[MESSAGE_WORKER_START] = check_worker_start,
	[MESSAGE_WORKER_EXITED] = check_worker_exited,
	[MESSAGE_CONNECTION] = check_connection,
	[MESSAGE_CONNECTION_CLOSED] = check_session,
	[MESSAGE_AUTHENTICATED] = check_session,
	[MESSAGE_READY] = check_ready,
	[MESSAGE_AUTH_REQUEST] = check_session,
	[MESSAGE_VERDICT] = check_verdict,
	[MESSAGE_LOGIN_RESULT] = check_login_result,
	[MESSAGE_UPDATE] = check_update,
	[MESSAGE_UPDATE_RESULT] = check_update_result,
	[MESSAGE_SESSION_END] = check_session,
	[MESSAGE_SIGN] = check_sign,
	[MESSAGE_SIGNATURE] = check_signature,
	[MESSAGE_AGENT_OPENED] = check_login_result,
	[MESSAGE_AGENT_LOCKED] = check_session,
	[MESSAGE_AGENT_FINISHED] = check_update_result,
	[MESSAGE_AGENT_INDEX] = check_agent_index,
};

#define X(name, number, senders, receivers, payload, tail, min_fds, max_fds) +1
_Static_assert(sizeof field_rules / sizeof field_rules[0] == 1 MESSAGE_TABLE(X),
    "every row has a rule; numbers are used without gaps");
#undef X

static const char *
check_row(
    const struct message *message, const struct message_row *row, const struct parties *parties)
{
	if (!(row->senders & parties->sender))
		return "not the sender's to send";
	if (!(row->receivers & parties->receiver))
		return "not for this receiver";
	if (message->header.reserved)
		return "reserved of the header is not 0";
	if (message->tail_size != message->header.tail_size)
		return "size is not what the header says";
	if (message->tail_size > row->tail_maximum)
		return "the tail is too long";
	if (message->fd_count < row->minimum_fds || message->fd_count > row->maximum_fds)
		return "wrong number of descriptors";
	return NULL;
}

int
message_check(
    const struct message *message, enum role sender, enum role receiver, struct error *error)
{
	const struct parties parties = { sender, receiver };
	const struct message_row *row = message_row(message->header.type);
	const char *broken;

	if (!row)
		return error_set(
		    error, ERROR_FORMAT, "message of unknown type %u", message->header.type);
	broken = check_row(message, row, &parties);
	if (!broken)
		broken = field_rules[message->header.type](message, &parties);
	if (broken)
		return error_set(error, ERROR_FORMAT, "message %s: %s", row->name, broken);
	return 0;
}
