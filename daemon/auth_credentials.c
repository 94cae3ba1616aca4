/*
 * What qpopper-auth and qpopper-verifier share: credentials out of a worker's pipe, comparison with
 * a stored hash, and the verdict. Run by agents and by the verifier; of a worker nothing is trusted
 * but that the pipe is one.
 */
#include "config.h"

#include "daemon/auth.h"

#include <crypt.h>
#include <errno.h>
#include <grp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define GROUP_BUFFER_SIZE ((size_t)1 << 20) /* a group may have many members */

struct message_verdict
auth_verdict(uint64_t session, uint32_t worker, enum verdict value, const char *reason)
{
	struct message_verdict verdict = { .session = session, .worker = worker, .verdict = value };

	message_text(verdict.reason, sizeof verdict.reason, reason);
	return verdict;
}

void
auth_verdict_change(struct message_verdict *verdict, enum verdict value, const char *reason)
{
	verdict->verdict = value;
	message_text(verdict->reason, sizeof verdict->reason, reason);
}

int
auth_verdict_send(int channel, const struct message_verdict *verdict, struct error *error)
{
	struct pollfd room = { .fd = channel, .events = POLLOUT };

	while (message_send(channel, MESSAGE_VERDICT, verdict, NULL, 0, NULL, 0, error) != 0)
		if (error->code != ERROR_LIMIT || poll(&room, 1, AUTH_VERDICT_SECONDS * 1000) <= 0)
			return -1;
	return 0;
}

bool
auth_is_pipe(int fd)
{
	struct stat status;

	return fstat(fd, &status) == 0 && S_ISFIFO(status.st_mode);
}

/* A numeric address, perhaps with the zone of a link-local one; or none. */
static bool
auth_address_valid(const char *address, size_t size)
{
	size_t numeric = strspn(address, "0123456789abcdefABCDEF.:");

	for (size_t i = numeric; i < size && address[i] != '\0'; i++)
		if (address[numeric] != '%' || address[i] <= ' ' || address[i] >= 0x7f)
			return false;
	return true;
}

static bool
auth_credentials_valid(const struct credentials *credentials)
{
	static const char zero[sizeof credentials->reserved];
	const char *address = credentials->peer_address;

	return credentials->magic == CREDENTIALS_MAGIC && credentials->flags <= 1 &&
	       credentials->user[0] != '\0' &&
	       memchr(credentials->user, '\0', sizeof credentials->user) != NULL &&
	       memchr(credentials->password, '\0', sizeof credentials->password) != NULL &&
	       memchr(address, '\0', sizeof credentials->peer_address) != NULL &&
	       auth_address_valid(address, sizeof credentials->peer_address) &&
	       memcmp(credentials->reserved, zero, sizeof zero) == 0;
}

int
auth_credentials_read(int pipe, struct credentials *credentials_out, struct error *error)
{
	unsigned char bytes[4096];
	ssize_t size = read(pipe, bytes, sizeof bytes);
	int result = 0;

	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return error_set(error, ERROR_TIMEOUT, "no credentials in the pipe yet");
	if (size < 0)
		return error_set_errno(error, errno, "cannot read credentials");
	memcpy(credentials_out, bytes, sizeof *credentials_out);
	explicit_bzero(bytes, sizeof bytes);
	if (size != sizeof *credentials_out || !auth_credentials_valid(credentials_out))
		result = error_set(error, ERROR_FORMAT, "credentials break their form");
	if (result != 0)
		explicit_bzero(credentials_out, sizeof *credentials_out);
	return result;
}

bool
auth_hash_usable(const char *hash)
{
	return hash != NULL && hash[0] != '\0' && hash[0] != '!' && hash[0] != '*';
}

bool
auth_hash_matches(const char *password, const char *hash, struct crypt_data *data)
{
	char expected[CRYPT_OUTPUT_SIZE] = { 0 };
	char computed[CRYPT_OUTPUT_SIZE] = { 0 };
	const char *result = crypt_r(password, hash, data);
	volatile unsigned char difference = result == NULL || result[0] == '*';

	if (strlen(hash) >= sizeof expected)
		difference = 1;
	memcpy(expected, hash, strnlen(hash, sizeof expected - 1));
	if (result != NULL)
		memcpy(computed, result, strnlen(result, sizeof computed - 1));
	for (size_t i = 0; i < sizeof expected; i++)
		difference |= (unsigned char)(expected[i] ^ computed[i]);
	explicit_bzero(data, sizeof *data);
	explicit_bzero(computed, sizeof computed);
	explicit_bzero(expected, sizeof expected);
	return difference == 0;
}

/* ---- groups ---- */

enum auth_group
auth_group_id(const char *name, gid_t *gid_out)
{
	struct group group;
	struct group *found = NULL;
	char *buffer = malloc(GROUP_BUFFER_SIZE);
	int number = ENOMEM;

	if (buffer != NULL)
		number = getgrnam_r(name, &group, buffer, GROUP_BUFFER_SIZE, &found);
	if (found != NULL)
		*gid_out = group.gr_gid;
	free(buffer);
	if (found != NULL)
		return AUTH_GROUP_FOUND;
	return number == 0 || number == ENOENT || number == ESRCH ? AUTH_GROUP_UNKNOWN
								  : AUTH_GROUP_OUT_OF_ORDER;
}

static void
warn_of_group(const char *option, const char *name, struct log *log)
{
	gid_t gid;

	if (name[0] != '\0' && auth_group_id(name, &gid) != AUTH_GROUP_FOUND)
		log_write(log, LOG_LEVEL_WARNING, "%s: there is no group \"%s\": no user is in it",
		    option, name);
}

void
auth_groups_warn(const struct settings *settings, struct log *log)
{
	warn_of_group("group-server-mode", settings->group_server_mode, log);
	warn_of_group("group-no-server-mode", settings->group_no_server_mode, log);
}
