/*
 * Checking passwords: the inner interface of qpopper-auth (auth_*.c), and the few steps that it
 * shares with qpopper-verifier.
 *
 * qpopper-auth forks one agent for each check and never reads a password itself; qpopper-verifier
 * is one sandboxed process that compares with the hashes of the passwd-file. Both take an
 * AUTH_REQUEST with a pipe from a worker and send a VERDICT to the monitor.
 */
#ifndef QPOPPER_DAEMON_AUTH_H
#define QPOPPER_DAEMON_AUTH_H

#include <crypt.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/message.h"
#include "lib/error.h"
#include "lib/log.h"
#include "lib/settings.h"
#include "lib/spool.h"

#define AUTH_CREDENTIALS_SECONDS 5  /* for credentials to come down their pipe */
#define AUTH_AGENT_SECONDS	 60 /* a password check may take, then it is killed */
#define AUTH_VERDICT_SECONDS	 5  /* for the monitor to make room in its channel */

struct auth_request {
	uint64_t session;
	uint32_t worker;
	int pipe; /* read end; owned */
};

/* ---- auth_agent.c ---- */

/* What an agent passes to _exit(): it tells its spawner whether there has been a verdict. */
enum auth_agent_exit {
	AUTH_AGENT_SENT = 0,
	AUTH_AGENT_FAILED = 1,
	AUTH_AGENT_BAD_CREDENTIALS = 2, /* the worker broke their form: it is to be cut off */
};

/*
 * The life of an agent, in the forked child: drops every descriptor but pipe, monitor and log,
 * checks one password, sends the verdict. spawner is the process to die with.
 */
_Noreturn void auth_agent_run(const struct settings *settings, const struct log *log,
			      const struct auth_request *request, pid_t spawner);

/* ---- back ends: fill verdict, user (canonical name) and reason; uid and gid are filled later ----
 */

/* auth_pam.c: the PAM service of the settings. Reference 9.3. */
void auth_pam_check(const struct settings *settings, const struct credentials *credentials,
		    struct message_verdict *verdict);

/* auth_shadow.c: getpwnam and getspnam, account expiry, password age. Reference 9.3. */
void auth_shadow_check(const struct settings *settings, const struct credentials *credentials,
		       struct message_verdict *verdict);

/*
 * Load the modules that libpam loads for service, for good, so that forked agents find them there;
 * *modules_out is their number. ERROR_DENIED if there is no such service: libpam would silently
 * take "other".
 */
int auth_pam_preload(const char *service, unsigned *modules_out, struct error *error);

/*
 * A number that changes when a PAM file, nsswitch.conf or a library in use is changed or replaced.
 * Looks at status only, reads no content.
 */
uint64_t auth_files_signature(void);

/* ---- shared with the verifier ---- */

/* A verdict for a request, everything else zero. */
static inline struct message_verdict
auth_verdict(uint64_t session, uint32_t worker, enum verdict value, const char *reason)
{
	struct message_verdict verdict = { .session = session, .worker = worker, .verdict = value };

	message_text(verdict.reason, sizeof verdict.reason, reason);
	return verdict;
}

static inline void
auth_verdict_change(struct message_verdict *verdict, enum verdict value, const char *reason)
{
	verdict->verdict = value;
	message_text(verdict->reason, sizeof verdict->reason, reason);
}

/* Send a verdict; waits for room in the channel. ERROR_LIMIT when there was none in time. */
static inline int
auth_verdict_send(int channel, const struct message_verdict *verdict, struct error *error)
{
	struct pollfd room = { .fd = channel, .events = POLLOUT };

	while (message_send(channel, MESSAGE_VERDICT, verdict, NULL, 0, NULL, 0, error) != 0)
		if (error->code != ERROR_LIMIT || poll(&room, 1, AUTH_VERDICT_SECONDS * 1000) <= 0)
			return -1;
	return 0;
}

static inline bool
auth_is_pipe(int fd)
{
	struct stat status;

	return fstat(fd, &status) == 0 && S_ISFIFO(status.st_mode);
}

/* A numeric address, perhaps with the zone of a link-local one; or none. */
static inline bool
auth_address_valid(const char *address, size_t size)
{
	size_t numeric = strspn(address, "0123456789abcdefABCDEF.:");

	for (size_t i = numeric; i < size && address[i] != '\0'; i++)
		if (address[numeric] != '%' || address[i] <= ' ' || address[i] >= 0x7f)
			return false;
	return true;
}

static inline bool
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

/*
 * Read credentials in one read. ERROR_TIMEOUT when a non-blocking pipe has none yet; ERROR_FORMAT
 * when they are not what a worker writes.
 */
static inline int
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

/* Whether a stored hash can match at all: an empty one never does, '!' and '*' lock an account. */
static inline bool
auth_hash_usable(const char *hash)
{
	return hash != NULL && hash[0] != '\0' && hash[0] != '!' && hash[0] != '*';
}

/*
 * Whether password has the hash. data is work space of the caller, wiped afterwards. The time does
 * not depend on where the hashes differ.
 */
static inline bool
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

#endif
