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
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "daemon/message.h"
#include "lib/error.h"
#include "lib/log.h"
#include "lib/settings.h"
#include "lib/spool_place.h"

#define AUTH_CREDENTIALS_SECONDS 5  /* for credentials to come down their pipe */
#define AUTH_AGENT_SECONDS	 60 /* a password check may take, then it is killed */
#define AUTH_VERDICT_SECONDS	 5  /* for the monitor to make room in its channel */

struct pam_handle; /* libpam's; only auth_pam.c looks inside */

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
 * checks one password, sends the verdict. pam is what auth_pam_preload prepared (NULL without PAM);
 * spawner is the process to die with.
 */
_Noreturn void auth_agent_run(const struct settings *settings, const struct log *log,
    struct pam_handle *pam, const struct auth_request *request, pid_t spawner);

/* ---- back ends: fill verdict, user (canonical name) and reason; uid and gid are filled later ----
 */

/* auth_pam.c: by the copy of a prepared handle, which is used up. Reference 9.3. */
void auth_pam_check(struct pam_handle *handle, const struct credentials *credentials,
    struct message_verdict *verdict);

/* auth_shadow.c: getpwnam and getspnam, account expiry, password age. Reference 9.3. */
void auth_shadow_check(const struct settings *settings, const struct credentials *credentials,
    struct message_verdict *verdict);

/*
 * Read service's files and load its modules, for good, so that forked agents find them there:
 * *handle_out is a handle to be copied by a fork, owned by the caller for the life of the process;
 * *modules_out is the number of modules. ERROR_DENIED if there is no such service: libpam would
 * silently take "other".
 */
int auth_pam_preload(const char *service, struct pam_handle **handle_out, unsigned *modules_out,
    struct error *error);

/*
 * A number that changes when a PAM file, nsswitch.conf or a library in use is changed or replaced.
 * Looks at status only, reads no content.
 */
uint64_t auth_files_signature(void);

/* ---- auth_credentials.c: shared with the verifier ---- */

/* A verdict for a request, everything else zero. */
struct message_verdict auth_verdict(
    uint64_t session, uint32_t worker, enum verdict value, const char *reason);

/* Another value and reason for the same request. */
void auth_verdict_change(struct message_verdict *verdict, enum verdict value, const char *reason);

/* Send a verdict; waits for room in the channel. ERROR_LIMIT when there was none in time. */
int auth_verdict_send(int channel, const struct message_verdict *verdict, struct error *error);

/* Whether a descriptor that a worker sent is a pipe. */
bool auth_is_pipe(int fd);

/*
 * Read credentials in one read. ERROR_TIMEOUT when a non-blocking pipe has none yet; ERROR_FORMAT
 * when they are not what a worker writes.
 */
int auth_credentials_read(int pipe, struct credentials *credentials_out, struct error *error);

enum auth_group {
	AUTH_GROUP_FOUND,
	AUTH_GROUP_UNKNOWN,
	AUTH_GROUP_OUT_OF_ORDER /* the group database could not be asked */
};

/* The number of a group (group-server-mode and its like), by the name service switch. */
enum auth_group auth_group_id(const char *name, gid_t *gid_out);

/* Log each group of the settings that is unknown: once, when a process starts that checks accounts.
 */
void auth_groups_warn(const struct settings *settings, struct log *log);

/* Whether a stored hash can match at all: an empty one never does, '!' and '*' lock an account. */
bool auth_hash_usable(const char *hash);

/*
 * Whether password has the hash. data is work space of the caller, wiped afterwards. The time does
 * not depend on where the hashes differ.
 */
bool auth_hash_matches(const char *password, const char *hash, struct crypt_data *data);

#endif
