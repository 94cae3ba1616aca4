/* See auth_harness.h. */
#include "config.h"

#include "tests/unit/auth_harness.h"

#include <check.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/role.h"
#include "daemon/sandbox.h"
#include "lib/settings.h"

#define WORKER 7
#define NOBODY 65534

struct service service;
bool is_root;
char pam_service[40], scratch[64];

static uint64_t next_session = 1;

static void
pair(int type, int *mine, int *its)
{
	int both[2];

	ck_assert_int_eq(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, both), 0);
	*mine = both[0];
	*its = fcntl(both[1], F_DUPFD_CLOEXEC, 40);
	ck_assert_int_ge(*its, 40);
	close(both[1]);
}

static int
freeze(const char *configuration)
{
	struct settings_report report = { 0 };
	struct settings *settings = settings_new();
	struct error error;
	int fd = -1, high;

	if (settings_read_text(settings, "test", configuration, strlen(configuration), &report) !=
	    0)
		settings_report_print(&report, stderr);
	ck_assert_uint_eq(report.errors, 0);
	ck_assert_msg(settings_freeze(settings, &fd, &error) == 0, "%s", error.text);
	high = fcntl(fd, F_DUPFD_CLOEXEC, 40);
	close(fd);
	settings_report_free(&report);
	settings_free(settings);
	return high;
}

static _Noreturn void
execute(const char *program, const int its[4], bool ordinary)
{
	char name[256];

#ifdef QPOPPER_SANITIZERS
	/* Leaks cannot be looked for from inside a sandbox. */
	setenv("ASAN_OPTIONS", "detect_leaks=0", 0);
#endif
	if (ordinary && geteuid() == 0 &&
	    (setgroups(0, NULL) != 0 || setgid(NOBODY) != 0 || setuid(NOBODY) != 0))
		_exit(99);
	for (int i = 0; i < 4; i++)
		dup2(its[i], ROLE_FD_MASTER + i);
	snprintf(name, sizeof name, "%s", program);
	execl(program, name, (char *)NULL);
	_exit(98);
}

/* What a channel brings within ten seconds. */
static void
receive(int channel, enum role sender, enum role receiver, struct message *message)
{
	struct pollfd data = { .fd = channel, .events = POLLIN };
	struct error error = { 0 };
	bool got = false;

	ck_assert_int_eq(poll(&data, 1, 10000), 1);
	ck_assert_msg(message_receive(channel, sender, receiver, message, &got, &error) == 0, "%s",
	    error.text);
	ck_assert(got);
}

void
add_worker(void)
{
	const struct message_channel channel = { WORKER, ROLE_WORKER };
	struct error error;
	int its;

	pair(SOCK_SEQPACKET, &service.worker, &its);
	ck_assert_int_eq(
	    message_send(service.master, MESSAGE_CHANNEL, &channel, NULL, 0, &its, 1, &error), 0);
	close(its);
}

void
start(enum role role, const char *configuration, bool ordinary)
{
	const char *program =
	    role == ROLE_AUTH ? getenv("QPOPPER_AUTH") : getenv("QPOPPER_VERIFIER");
	struct message message;
	int its[4];

	if (program == NULL)
		program = role == ROLE_AUTH ? "./qpopper-auth" : "./qpopper-verifier";
	service.role = role;
	pair(SOCK_SEQPACKET, &service.master, &its[0]);
	its[1] = freeze(configuration);
	pair(SOCK_SEQPACKET, &service.log, &its[2]);
	pair(SOCK_SEQPACKET, &service.monitor, &its[3]);
	service.pid = fork();
	ck_assert_int_ge(service.pid, 0);
	if (service.pid == 0)
		execute(program, its, ordinary);
	for (int i = 0; i < 4; i++)
		close(its[i]);
	receive(service.master, role, ROLE_MASTER, &message);
	ck_assert_int_eq(message.header.type, MESSAGE_READY);
	service.ready = message.payload.ready;
	add_worker();
}

int
exit_status(void)
{
	int status;

	ck_assert_int_eq(waitpid(service.pid, &status, 0), service.pid);
	ck_assert_msg(WIFEXITED(status), "the program ended by signal %d", WTERMSIG(status));
	return WEXITSTATUS(status);
}

void
stop(void)
{
	close(service.master);
	ck_assert_int_eq(exit_status(), ROLE_EXIT_DONE);
}

bool
logged(const char *text, int seconds)
{
	struct pollfd data = { .fd = service.log, .events = POLLIN };
	char record[4096];

	while (poll(&data, 1, seconds * 1000) == 1) {
		ssize_t size = recv(service.log, record, sizeof record, 0);

		if (size <= 0)
			return false;
		if (memmem(record, (size_t)size, text, strlen(text)) != NULL)
			return true;
	}
	return false;
}

/* ---- requests ---- */

struct credentials
credentials_of(const char *user, const char *password)
{
	struct credentials credentials = { .magic = CREDENTIALS_MAGIC, .flags = 1 };

	snprintf(credentials.user, sizeof credentials.user, "%s", user);
	snprintf(credentials.password, sizeof credentials.password, "%s", password);
	snprintf(credentials.peer_address, sizeof credentials.peer_address, "192.0.2.7");
	return credentials;
}

uint64_t
request_with(int fd)
{
	const struct message_session session = { next_session++ };
	struct error error;

	ck_assert_int_eq(
	    message_send(service.worker, MESSAGE_AUTH_REQUEST, &session, NULL, 0, &fd, 1, &error),
	    0);
	return session.session;
}

uint64_t
request(const void *bytes, size_t size, int *kept_open)
{
	int ends[2];
	uint64_t session;

	ck_assert_int_eq(pipe2(ends, O_CLOEXEC), 0);
	if (size > 0)
		ck_assert_int_eq(write(ends[1], bytes, size), (ssize_t)size);
	session = request_with(ends[0]);
	close(ends[0]);
	if (kept_open != NULL)
		*kept_open = ends[1];
	else
		close(ends[1]);
	return session;
}

uint64_t
request_login(const char *user, const char *password)
{
	const struct credentials credentials = credentials_of(user, password);

	return request(&credentials, sizeof credentials, NULL);
}

struct message_verdict
verdict_of(uint64_t session)
{
	struct message message;

	receive(service.monitor, service.role, ROLE_MONITOR, &message);
	ck_assert_int_eq(message.header.type, MESSAGE_VERDICT);
	ck_assert_uint_eq(message.payload.verdict.session, session);
	ck_assert_uint_eq(message.payload.verdict.worker, WORKER);
	ck_assert_ptr_null(strstr(message.payload.verdict.reason, PASSWORD));
	return message.payload.verdict;
}

struct message_verdict
log_in(const char *user, const char *password)
{
	return verdict_of(request_login(user, password));
}

void
assert_verdict(const char *user, const char *password, enum verdict expected)
{
	struct message_verdict verdict = log_in(user, password);

	ck_assert_msg(verdict.verdict == expected, "%s: verdict %u (%s)", user,
	    (unsigned)verdict.verdict, verdict.reason);
}

bool
worker_is_cut_off(void)
{
	struct pollfd data = { .fd = service.worker, .events = POLLIN };
	char octet;

	return poll(&data, 1, 2000) == 1 && recv(service.worker, &octet, 1, 0) == 0;
}

double
seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---- surroundings: a directory, commands, the PAM service ---- */

void
write_file(const char *path, const char *text)
{
	char temporary[128];
	FILE *file;

	snprintf(temporary, sizeof temporary, "%s.new", path);
	file = fopen(temporary, "we");
	ck_assert_ptr_nonnull(file);
	fputs(text, file);
	ck_assert_int_eq(fchmod(fileno(file), 0644), 0);
	fclose(file);
	ck_assert_int_eq(rename(temporary, path), 0);
}

const char *
in_scratch(const char *name)
{
	static char path[128];

	snprintf(path, sizeof path, "%s/%s", scratch, name);
	return path;
}

void
run(const char *format, ...)
{
	char command[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(command, sizeof command, format, arguments);
	va_end(arguments);
	if (system(command) != 0)
		fprintf(stderr, "failed: %s\n", command);
}

void
set_up(void)
{
	is_root = sandbox_privileged() && geteuid() == 0;
	snprintf(pam_service, sizeof pam_service, "qpopper-test-%d", (int)getpid());
	snprintf(scratch, sizeof scratch, "/tmp/check_auth.XXXXXX");
	if (mkdtemp(scratch) == NULL || chmod(scratch, 0755) != 0 ||
	    mkdir(in_scratch("empty"), 0755) != 0 || chmod(in_scratch("empty"), 0755) != 0)
		perror(scratch);
}

void
tear_down(void)
{
	if (is_root)
		run("rm -f /etc/pam.d/%s*", pam_service);
	run("rm -rf %s", scratch);
}

void
start_auth(const char *back_end, const char *more)
{
	char configuration[1024];

	snprintf(configuration, sizeof configuration,
	    "set authentication = %s\nset pam-service = %s\n%s", back_end, pam_service, more);
	start(ROLE_AUTH, configuration, false);
}

bool
skip_unless_root(void)
{
	if (!is_root)
		printf("skipped: needs root to make users and a PAM service\n");
	fflush(stdout);
	return !is_root;
}
