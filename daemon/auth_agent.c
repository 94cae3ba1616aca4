/*
 * The auth agent: a fork of the auth spawner that checks one password and exits. Runs as root,
 * since PAM modules and /etc/shadow demand it; trusts the worker's credentials for nothing but
 * their content, whose form is checked first. Its memory, which then holds a password and perhaps
 * lines of /etc/shadow, ends with it.
 */
#include "config.h"

#include "daemon/auth.h"

#include <errno.h>
#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "daemon/role.h"
#include "daemon/sandbox.h"

#define ACCOUNT_BUFFER_SIZE 16384
#define GROUPS_MAX	    4096 /* of one account */

/* PAM modules may run helpers and wait for them: everything as a fresh process has it. */
static void
restore_signals(void)
{
	static const int changed[] = { SIGCHLD, SIGPIPE, SIGHUP, SIGINT };
	const struct sigaction standard = { .sa_handler = SIG_DFL };
	sigset_t none;

	for (size_t i = 0; i < sizeof changed / sizeof changed[0]; i++)
		sigaction(changed[i], &standard, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static int
drop_inherited(const struct log *log, int pipe, pid_t spawner, struct error *error)
{
	const int keep[] = { STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, ROLE_FD_MONITOR, log->fd,
		pipe };

	if (sandbox_close_all_but(keep, sizeof keep / sizeof keep[0], error) != 0)
		return -1;
	restore_signals();
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0)
		return error_set_errno(error, errno, "cannot bind an auth agent to its spawner");
	if (getppid() != spawner)
		return error_set(error, ERROR_CLOSED, "the auth spawner is gone");
	return 0;
}

static int
receive_credentials(int pipe, struct credentials *credentials_out, struct error *error)
{
	struct pollfd data = { .fd = pipe, .events = POLLIN };
	int ready = poll(&data, 1, AUTH_CREDENTIALS_SECONDS * 1000);

	if (ready < 0)
		return error_set_errno(error, errno, "cannot wait for credentials");
	if (ready == 0)
		return error_set(error, ERROR_TIMEOUT, "no credentials came within %d seconds",
		    AUTH_CREDENTIALS_SECONDS);
	return auth_credentials_read(pipe, credentials_out, error);
}

/*
 * Whether the account is a member of that group, by its primary group or by membership. A group
 * that does not exist has no members: the spawner said so when it started.
 */
static bool
is_member(const struct passwd *account, const char *name, struct message_verdict *verdict)
{
	gid_t groups[GROUPS_MAX];
	int count = GROUPS_MAX;
	gid_t gid;

	switch (auth_group_id(name, &gid)) {
	case AUTH_GROUP_FOUND:
		break;
	case AUTH_GROUP_UNKNOWN:
		return false;
	case AUTH_GROUP_OUT_OF_ORDER:
		auth_verdict_change(verdict, VERDICT_TEMPORARY, "group database is out of order");
		return false;
	}
	if (getgrouplist(account->pw_name, account->pw_gid, groups, &count) == -1)
		count = GROUPS_MAX; /* there are more: those that fit count */
	for (int i = 0; i < count; i++)
		if (groups[i] == gid)
			return true;
	return false;
}

static void
resolve_groups(
    const struct settings *settings, const struct passwd *account, struct message_verdict *verdict)
{
	if (settings->group_server_mode[0] != '\0' &&
	    is_member(account, settings->group_server_mode, verdict))
		verdict->groups |= SPOOL_GROUP_SERVER_MODE;
	if (settings->group_no_server_mode[0] != '\0' &&
	    is_member(account, settings->group_no_server_mode, verdict))
		verdict->groups |= SPOOL_GROUP_NO_SERVER_MODE;
}

/* An account that may collect mail: the back end named it, the system's database knows it. */
static void
resolve_account(const struct settings *settings, struct message_verdict *verdict)
{
	char buffer[ACCOUNT_BUFFER_SIZE];
	struct passwd account;
	struct passwd *found = NULL;
	int number = getpwnam_r(verdict->user, &account, buffer, sizeof buffer, &found);

	if (found == NULL && number != 0 && number != ENOENT && number != ESRCH)
		auth_verdict_change(verdict, VERDICT_TEMPORARY, "account database is out of order");
	else if (found == NULL)
		auth_verdict_change(verdict, VERDICT_REFUSED, "no such account");
	else if (!spool_user_name_valid(account.pw_name) ||
		 strlen(account.pw_name) > MESSAGE_NAME_MAX)
		auth_verdict_change(verdict, VERDICT_REFUSED, "account name is not usable");
	else if ((int64_t)account.pw_uid <= settings->block_uid)
		auth_verdict_change(verdict, VERDICT_REFUSED, "uid is refused by block-uid");
	if (verdict->verdict != VERDICT_ACCEPTED)
		return;
	memset(verdict->user, 0, sizeof verdict->user);
	memcpy(verdict->user, account.pw_name, strlen(account.pw_name));
	verdict->uid = account.pw_uid;
	verdict->gid = account.pw_gid;
	if (spool_home_valid(account.pw_dir))
		memcpy(verdict->home, account.pw_dir, strlen(account.pw_dir));
	resolve_groups(settings, &account, verdict);
}

static void
check_password(const struct settings *settings, struct pam_handle *pam,
    const struct credentials *credentials, struct message_verdict *verdict)
{
	if (!spool_user_name_valid(credentials->user)) {
		auth_verdict_change(verdict, VERDICT_REFUSED, "user name is not usable");
		return;
	}
	memcpy(verdict->user, credentials->user, strlen(credentials->user));
	if (settings->authentication == AUTHENTICATION_PAM)
		auth_pam_check(pam, credentials, verdict);
	else
		auth_shadow_check(settings, credentials, verdict);
	if (verdict->verdict == VERDICT_ACCEPTED)
		resolve_account(settings, verdict);
}

/* The verdict when there are no credentials to check, and what the spawner is to do about it. */
static enum auth_agent_exit
without_credentials(const struct error *error, struct log *log, struct message_verdict *verdict)
{
	auth_verdict_change(verdict, VERDICT_TEMPORARY, error->text);
	log_write(log, LOG_LEVEL_ERROR, "worker %u: %s", (unsigned)verdict->worker, error->text);
	return error->code == ERROR_FORMAT ? AUTH_AGENT_BAD_CREDENTIALS : AUTH_AGENT_SENT;
}

static enum auth_agent_exit
serve(const struct settings *settings, struct log *log, struct pam_handle *pam,
    const struct auth_request *request, pid_t spawner, struct error *error)
{
	struct message_verdict verdict =
	    auth_verdict(request->session, request->worker, VERDICT_REFUSED, "");
	enum auth_agent_exit status = AUTH_AGENT_SENT;
	struct credentials credentials;

	if (drop_inherited(log, request->pipe, spawner, error) != 0)
		return AUTH_AGENT_FAILED;
	if (receive_credentials(request->pipe, &credentials, error) == 0)
		check_password(settings, pam, &credentials, &verdict);
	else
		status = without_credentials(error, log, &verdict);
	explicit_bzero(&credentials, sizeof credentials);
	if (auth_verdict_send(ROLE_FD_MONITOR, &verdict, error) != 0)
		return AUTH_AGENT_FAILED;
	return status;
}

void
auth_agent_run(const struct settings *settings, const struct log *log, struct pam_handle *pam,
    const struct auth_request *request, pid_t spawner)
{
	struct log own_log = *log;
	struct error error = { 0 };
	enum auth_agent_exit status;

	status = serve(settings, &own_log, pam, request, spawner, &error);
	if (status == AUTH_AGENT_FAILED)
		log_write(&own_log, LOG_LEVEL_ERROR, "auth agent: %s", error.text);
	_exit(status);
}
