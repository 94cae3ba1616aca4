/*
 * qpopper-auth and qpopper-verifier, driven over real channels: the test plays master, worker,
 * monitor and logger. The programs are those that QPOPPER_AUTH and QPOPPER_VERIFIER name, else the
 * ones in the working directory.
 *
 * Tests of qpopper-auth need root: they make system users and PAM service files of unique names,
 * which are removed at the end.
 */
#include "config.h"

#include <check.h>
#include <crypt.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/message.h"
#include "daemon/role.h"
#include "daemon/sandbox.h"
#include "lib/settings.h"

#define WORKER	     7
#define NOBODY	     65534
#define PASSWORD     "Xylophon-4711-quartz"
#define HASH_SETTING "$6$rounds=1000$saltsaltsalt$"

/* ---- the program under test ---- */

static struct service {
	pid_t pid;
	enum role role;
	int master, monitor, worker, log;
	struct message_ready ready;
} service;

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

static void
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

static void
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

static int
exit_status(void)
{
	int status;

	ck_assert_int_eq(waitpid(service.pid, &status, 0), service.pid);
	ck_assert_msg(WIFEXITED(status), "the program ended by signal %d", WTERMSIG(status));
	return WEXITSTATUS(status);
}

/* The service ends with the master. */
static void
stop(void)
{
	close(service.master);
	ck_assert_int_eq(exit_status(), ROLE_EXIT_DONE);
}

/* Whether a record that contains text has come, or comes within some seconds. */
static bool
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

static struct credentials
credentials_of(const char *user, const char *password)
{
	struct credentials credentials = { .magic = CREDENTIALS_MAGIC, .flags = 1 };

	snprintf(credentials.user, sizeof credentials.user, "%s", user);
	snprintf(credentials.password, sizeof credentials.password, "%s", password);
	snprintf(credentials.peer_address, sizeof credentials.peer_address, "192.0.2.7");
	return credentials;
}

/* Send a request with any descriptor; returns its session. */
static uint64_t
request_with(int fd)
{
	const struct message_session session = { next_session++ };
	struct error error;

	ck_assert_int_eq(
	    message_send(service.worker, MESSAGE_AUTH_REQUEST, &session, NULL, 0, &fd, 1, &error),
	    0);
	return session.session;
}

/* A request whose pipe holds size bytes; its write end is *kept_open, or closed. */
static uint64_t
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

static uint64_t
request_login(const char *user, const char *password)
{
	const struct credentials credentials = credentials_of(user, password);

	return request(&credentials, sizeof credentials, NULL);
}

static struct message_verdict
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

static struct message_verdict
login(const char *user, const char *password)
{
	return verdict_of(request_login(user, password));
}

static void
assert_verdict(const char *user, const char *password, enum verdict expected)
{
	struct message_verdict verdict = login(user, password);

	ck_assert_msg(verdict.verdict == expected, "%s: verdict %u (%s)", user,
		      (unsigned)verdict.verdict, verdict.reason);
}

static bool
worker_is_cut_off(void)
{
	struct pollfd data = { .fd = service.worker, .events = POLLIN };
	char octet;

	return poll(&data, 1, 2000) == 1 && recv(service.worker, &octet, 1, 0) == 0;
}

static double
seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---- surroundings: users, PAM services, passwd-file ---- */

static bool is_root;
static char good[24], expired[24], locked[24], pam_service[40], scratch[64];
static char configuration[1024];

static void
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

static const char *
in_scratch(const char *name)
{
	static char path[128];

	snprintf(path, sizeof path, "%s/%s", scratch, name);
	return path;
}

static void __attribute__((format(printf, 1, 2))) run(const char *format, ...)
{
	char command[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(command, sizeof command, format, arguments);
	va_end(arguments);
	if (system(command) != 0)
		fprintf(stderr, "failed: %s\n", command);
}

static void
set_up_users(void)
{
	struct crypt_data data = { 0 };
	const char *hash = crypt_r(PASSWORD, HASH_SETTING, &data);

	snprintf(good, sizeof good, "qpopt%da", (int)getpid());
	snprintf(expired, sizeof expired, "qpopt%db", (int)getpid());
	snprintf(locked, sizeof locked, "qpopt%dc", (int)getpid());
	snprintf(pam_service, sizeof pam_service, "qpopper-test-%d", (int)getpid());
	run("useradd -M -N -p '%s' %s", hash, good);
	run("useradd -M -N -e 1970-01-02 -p '%s' %s", hash, expired);
	run("useradd -M -N -p '%s' %s && passwd -q -l %s", hash, locked, locked);
}

static void
set_up(void)
{
	is_root = sandbox_privileged() && geteuid() == 0;
	snprintf(scratch, sizeof scratch, "/tmp/check_auth.XXXXXX");
	if (mkdtemp(scratch) == NULL || chmod(scratch, 0755) != 0 ||
	    mkdir(in_scratch("empty"), 0755) != 0 || chmod(in_scratch("empty"), 0755) != 0)
		perror(scratch);
	if (is_root)
		set_up_users();
}

static void
tear_down(void)
{
	if (is_root)
		run("userdel %s; userdel %s; userdel %s; rm -f /etc/pam.d/%s*", good, expired,
		    locked, pam_service);
	run("rm -rf %s", scratch);
}

static void
write_pam_file(const char *auth_lines)
{
	char path[80], text[512];

	snprintf(path, sizeof path, "/etc/pam.d/%s", pam_service);
	snprintf(text, sizeof text, "%s\naccount required pam_unix.so\n", auth_lines);
	write_file(path, text);
}

static uid_t
uid_of(const char *name)
{
	const struct passwd *entry = getpwnam(name);

	ck_assert_ptr_nonnull(entry);
	return entry->pw_uid;
}

static void
start_auth(const char *back_end, const char *more)
{
	snprintf(configuration, sizeof configuration,
		 "set authentication = %s\nset pam-service = %s\n%s", back_end, pam_service, more);
	start(ROLE_AUTH, configuration, false);
}

static bool
skip_unless_root(void)
{
	if (!is_root)
		printf("skipped: needs root to make users and a PAM service\n");
	fflush(stdout);
	return !is_root;
}

/* ---- qpopper-auth ---- */

static const char *const back_ends[] = { "pam", "shadow" };

START_TEST(passwords_are_accepted_and_refused)
{
	struct message_verdict verdict;
	double began;

	if (skip_unless_root())
		return;
	write_pam_file("auth required pam_unix.so");
	start_auth(back_ends[_i], "");
	verdict = login(good, PASSWORD);
	ck_assert_msg(verdict.verdict == VERDICT_ACCEPTED, "%s", verdict.reason);
	ck_assert_str_eq(verdict.user, good);
	ck_assert_uint_eq(verdict.uid, uid_of(good));
	ck_assert_uint_eq(verdict.virtual_user, 0);
	began = seconds();
	assert_verdict(good, "wrong", VERDICT_REFUSED);
	ck_assert_msg(seconds() - began < 1.0, "a wrong password is answered without a delay");
	assert_verdict(good, "", VERDICT_REFUSED);
	assert_verdict("qpopper-no-such-user", PASSWORD, VERDICT_REFUSED);
	assert_verdict("../" PASSWORD, PASSWORD, VERDICT_REFUSED);
	assert_verdict("-", PASSWORD, VERDICT_REFUSED);
	assert_verdict(locked, PASSWORD, VERDICT_REFUSED);
	assert_verdict(expired, PASSWORD, VERDICT_REFUSED);
	stop();
}
END_TEST

START_TEST(uid_up_to_block_uid_is_refused)
{
	char option[64];

	if (skip_unless_root())
		return;
	write_pam_file("auth required pam_unix.so");
	snprintf(option, sizeof option, "set block-uid = %u\n", (unsigned)uid_of(good));
	start_auth(back_ends[_i], option);
	assert_verdict(good, PASSWORD, VERDICT_REFUSED);
	stop();
	snprintf(option, sizeof option, "set block-uid = %u\n", (unsigned)uid_of(good) - 1);
	start_auth(back_ends[_i], option);
	assert_verdict(good, PASSWORD, VERDICT_ACCEPTED);
	stop();
}
END_TEST

START_TEST(missing_service_is_temporary_and_the_program_renews_when_it_appears)
{
	char path[80];

	if (skip_unless_root())
		return;
	snprintf(path, sizeof path, "/etc/pam.d/%s", pam_service);
	unlink(path);
	start_auth("pam", "");
	ck_assert(logged(path, 2));
	assert_verdict(good, PASSWORD, VERDICT_TEMPORARY);
	write_pam_file("auth required pam_unix.so");
	ck_assert(logged("renewing", 15));
	ck_assert(worker_is_cut_off());
	ck_assert_int_eq(exit_status(), ROLE_EXIT_RENEW);
}
END_TEST

START_TEST(missing_module_is_temporary)
{
	if (skip_unless_root())
		return;
	write_pam_file("auth required pam_no_such_module.so");
	start_auth("pam", "");
	assert_verdict(good, PASSWORD, VERDICT_TEMPORARY);
	stop();
}
END_TEST

START_TEST(modules_know_the_client_and_may_run_helpers)
{
	char script[128], result[160], lines[256], said[64] = "";
	FILE *file;

	if (skip_unless_root())
		return;
	snprintf(result, sizeof result, "%s", in_scratch("said"));
	snprintf(lines, sizeof lines, "#!/bin/sh\necho \"$PAM_TYPE $PAM_RHOST $PAM_TTY\" > %s\n",
		 result);
	snprintf(script, sizeof script, "%s", in_scratch("script"));
	write_file(script, lines);
	ck_assert_int_eq(chmod(script, 0755), 0);
	snprintf(lines, sizeof lines, "auth required pam_exec.so %s\nauth required pam_unix.so",
		 script);
	write_pam_file(lines);
	start_auth("pam", "");
	assert_verdict(good, PASSWORD, VERDICT_ACCEPTED);
	file = fopen(result, "re");
	ck_assert_ptr_nonnull(file);
	ck_assert_ptr_nonnull(fgets(said, sizeof said, file));
	fclose(file);
	ck_assert_str_eq(said, "auth 192.0.2.7 pop3\n");
	stop();
}
END_TEST

/* The first child of the program. */
static pid_t
find_agent(void)
{
	char path[80], text[64] = "";
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)service.pid,
		 (int)service.pid);
	for (int tries = 0; tries < 100 && text[0] == '\0'; tries++) {
		usleep(20000);
		file = fopen(path, "re");
		if (file == NULL || fgets(text, sizeof text, file) == NULL)
			text[0] = '\0';
		if (file != NULL)
			fclose(file);
	}
	return (pid_t)strtol(text, NULL, 10);
}

START_TEST(agent_that_dies_is_answered_for_and_waiting_requests_go_on)
{
	uint64_t first, second;
	pid_t agent;

	if (skip_unless_root())
		return;
	write_pam_file("auth required pam_exec.so /bin/sleep 2\nauth required pam_unix.so");
	start_auth("pam", "set auth-processes = 1\n");
	first = request_login(good, PASSWORD);
	second = request_login(good, PASSWORD);
	agent = find_agent();
	ck_assert_int_gt(agent, 1);
	ck_assert_int_eq(kill(agent, SIGKILL), 0);
	ck_assert_uint_eq(verdict_of(first).verdict, VERDICT_TEMPORARY);
	ck_assert(logged("without a verdict", 2));
	ck_assert_uint_eq(verdict_of(second).verdict, VERDICT_ACCEPTED);
	stop();
}
END_TEST

/* Its shadow memory is too large to be searched. */
static bool
skip_in_sanitizer(void)
{
#ifdef QPOPPER_SANITIZERS
	printf("skipped: memory search in a build with sanitizers\n");
	return true;
#else
	return false;
#endif
}

/* Whether the writable memory of the program contains text. */
static bool
memory_contains(const char *text)
{
	char path[64], line[512];
	unsigned long from, to;
	bool found = false;
	FILE *maps;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/maps", (int)service.pid);
	maps = fopen(path, "re");
	snprintf(path, sizeof path, "/proc/%d/mem", (int)service.pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ck_assert(maps != NULL && fd >= 0);
	while (!found && fgets(line, sizeof line, maps) != NULL) {
		char *bytes;
		ssize_t size;

		if (sscanf(line, "%lx-%lx rw", &from, &to) != 2 || strstr(line, " rw") == NULL)
			continue;
		bytes = malloc(to - from);
		size = pread(fd, bytes, to - from, (off_t)from);
		found = size > 0 && memmem(bytes, (size_t)size, text, strlen(text)) != NULL;
		free(bytes);
	}
	fclose(maps);
	close(fd);
	return found;
}

START_TEST(spawner_never_holds_a_password_or_a_hash)
{
	if (skip_unless_root() || skip_in_sanitizer())
		return;
	write_pam_file("auth required pam_unix.so");
	start_auth(back_ends[_i], "");
	assert_verdict(good, PASSWORD, VERDICT_ACCEPTED);
	assert_verdict(locked, PASSWORD, VERDICT_REFUSED);
	ck_assert(memory_contains(pam_service));
	ck_assert(!memory_contains(PASSWORD));
	ck_assert(!memory_contains(HASH_SETTING));
	stop();
}
END_TEST

START_TEST(program_renews_when_pam_files_change_and_loses_no_request)
{
	if (skip_unless_root())
		return;
	write_pam_file("auth required pam_exec.so /bin/sleep 1\nauth required pam_unix.so");
	start_auth("pam", "");
	write_pam_file("auth required pam_unix.so");
	ck_assert(!logged("renewing", 2));
	while (!logged("renewing", 0))
		assert_verdict(good, PASSWORD, VERDICT_ACCEPTED);
	ck_assert(worker_is_cut_off());
	ck_assert_int_eq(exit_status(), ROLE_EXIT_RENEW);
}
END_TEST

/* ---- requests that break their form, for both programs ---- */

static const char users_text[] = "first:{CRYPT}%s:2001:2002::/:\nlocked:!%s:2003:2002::/:\n"
				 "empty::2004:2002::/:\nlow:%s:10:2002::/:\n";

static void
write_users(const char *password)
{
	struct crypt_data data = { 0 };
	const char *hash = crypt_r(password, HASH_SETTING, &data);
	char text[1024];

	snprintf(text, sizeof text, users_text, hash, hash, hash);
	write_file(in_scratch("users"), text);
}

static void
start_verifier(bool ordinary)
{
	write_users(PASSWORD);
	snprintf(
	    configuration, sizeof configuration,
	    "set authentication = passwd-file\nset passwd-file = %s/users\nset state-dir = %s\n"
	    "set auth-user = nobody\n",
	    scratch, scratch);
	start(ROLE_VERIFIER, configuration, ordinary);
}

/* The program of a loop test: 0 the verifier, 1 qpopper-auth. False: skipped. */
static bool
start_either(int which)
{
	if (which == 1 && skip_unless_root())
		return false;
	if (which == 1)
		start_auth("shadow", "set auth-processes = 1\n");
	else
		start_verifier(true);
	return true;
}

static void
assert_breach(uint64_t session)
{
	ck_assert_uint_eq(verdict_of(session).verdict, VERDICT_TEMPORARY);
	ck_assert(worker_is_cut_off());
	ck_assert(logged("cut off", 2));
	close(service.worker);
	add_worker();
}

START_TEST(credentials_of_a_wrong_form_cut_the_worker_off)
{
	struct credentials right = credentials_of("first", PASSWORD);
	struct credentials wrong = right;
	unsigned char large[4000] = { 0 };

	if (!start_either(_i))
		return;
	assert_breach(request(&right, sizeof right - 1, NULL));
	memcpy(large, &right, sizeof right);
	assert_breach(request(large, sizeof right + 1, NULL));
	assert_breach(request(large, sizeof large, NULL));
	assert_breach(request(NULL, 0, NULL));
	wrong.magic++;
	assert_breach(request(&wrong, sizeof wrong, NULL));
	wrong = right;
	memset(wrong.password, 'x', sizeof wrong.password);
	assert_breach(request(&wrong, sizeof wrong, NULL));
	wrong = right;
	snprintf(wrong.peer_address, sizeof wrong.peer_address, "host.example");
	assert_breach(request(&wrong, sizeof wrong, NULL));
	stop();
}
END_TEST

START_TEST(descriptor_that_is_no_pipe_cuts_the_worker_off)
{
	if (!start_either(_i))
		return;
	assert_breach(request_with(service.log));
	assert_breach(request_with(STDERR_FILENO));
	stop();
}
END_TEST

START_TEST(credentials_that_do_not_come_are_given_up_after_five_seconds)
{
	double began = seconds();
	uint64_t late, other;
	int kept_open;

	if (!start_either(_i))
		return;
	late = request(NULL, 0, &kept_open);
	other = request_login("qpopper-no-such-user", PASSWORD);
	if (service.role == ROLE_VERIFIER) { /* waits for nobody; auth has one agent here */
		ck_assert_uint_eq(verdict_of(other).verdict, VERDICT_REFUSED);
		ck_assert(seconds() - began < 3);
	}
	ck_assert_uint_eq(verdict_of(late).verdict, VERDICT_TEMPORARY);
	ck_assert(seconds() - began > 3.9);
	if (service.role == ROLE_AUTH)
		ck_assert_uint_eq(verdict_of(other).verdict, VERDICT_REFUSED);
	close(kept_open);
	assert_verdict("qpopper-no-such-user", PASSWORD, VERDICT_REFUSED);
	stop();
}
END_TEST

/* ---- qpopper-verifier ---- */

START_TEST(virtual_users_are_accepted_and_refused)
{
	bool privileged = is_root && _i == 0;
	struct message_verdict verdict;

	start_verifier(!privileged);
	ck_assert_int_eq((service.ready.layers & SANDBOX_IDS) != 0, privileged);
	ck_assert_uint_ne(service.ready.layers & (SANDBOX_CHROOT | SANDBOX_LANDLOCK), 0);
	verdict = login("first", PASSWORD);
	ck_assert_msg(verdict.verdict == VERDICT_ACCEPTED, "%s", verdict.reason);
	ck_assert_str_eq(verdict.user, "first");
	ck_assert_uint_eq(verdict.uid, 2001);
	ck_assert_uint_eq(verdict.gid, 2002);
	ck_assert_uint_eq(verdict.virtual_user, 1);
	assert_verdict("first", "wrong", VERDICT_REFUSED);
	assert_verdict("nobody", PASSWORD, VERDICT_REFUSED);
	assert_verdict("locked", PASSWORD, VERDICT_REFUSED);
	assert_verdict("empty", "", VERDICT_REFUSED);
	assert_verdict("../first", PASSWORD, VERDICT_REFUSED);
	assert_verdict("low", PASSWORD, privileged ? VERDICT_REFUSED : VERDICT_ACCEPTED);
	stop();
}
END_TEST

START_TEST(changed_file_is_read_again_and_a_broken_one_is_not)
{
	start_verifier(_i == 1);
	assert_verdict("first", PASSWORD, VERDICT_ACCEPTED);
	write_users("another");
	usleep(1100000);
	assert_verdict("first", "another", VERDICT_ACCEPTED);
	assert_verdict("first", PASSWORD, VERDICT_REFUSED);
	write_file(in_scratch("users"), "no colon here\n");
	usleep(1100000);
	assert_verdict("first", "another", VERDICT_ACCEPTED);
	ck_assert(logged("stay in force", 2));
	write_users(PASSWORD);
	usleep(1100000);
	assert_verdict("first", PASSWORD, VERDICT_ACCEPTED);
	stop();
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("auth");
	TCase *tests = tcase_create("programs");
	SRunner *runner;
	int failed;

	tcase_set_timeout(tests, 60);
	tcase_add_unchecked_fixture(tests, set_up, tear_down);
	tcase_add_loop_test(tests, passwords_are_accepted_and_refused, 0, 2);
	tcase_add_loop_test(tests, uid_up_to_block_uid_is_refused, 0, 2);
	tcase_add_test(tests, missing_service_is_temporary_and_the_program_renews_when_it_appears);
	tcase_add_test(tests, missing_module_is_temporary);
	tcase_add_test(tests, modules_know_the_client_and_may_run_helpers);
	tcase_add_test(tests, agent_that_dies_is_answered_for_and_waiting_requests_go_on);
	tcase_add_loop_test(tests, spawner_never_holds_a_password_or_a_hash, 0, 2);
	tcase_add_test(tests, program_renews_when_pam_files_change_and_loses_no_request);
	tcase_add_loop_test(tests, credentials_of_a_wrong_form_cut_the_worker_off, 0, 2);
	tcase_add_loop_test(tests, descriptor_that_is_no_pipe_cuts_the_worker_off, 0, 2);
	tcase_add_loop_test(tests, credentials_that_do_not_come_are_given_up_after_five_seconds, 0,
			    2);
	tcase_add_loop_test(tests, virtual_users_are_accepted_and_refused, 0, 2);
	tcase_add_loop_test(tests, changed_file_is_read_again_and_a_broken_one_is_not, 0, 2);
	suite_add_tcase(suite, tests);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
