/*
 * The sandbox, layer by layer: each test forks a child that gives up rights and then tries to do
 * what it must no longer be able to do. As root both kinds of run are proven, the ordinary one in
 * a child that has become user 65534.
 */
#include "config.h"

#include "daemon/sandbox.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOBODY 65534

static const struct sandbox_identity stranger = { 4711, 4712 };

/* ---- proofs in children ---- */

/* In a child: leave with the line (never 0 modulo 256 in practice) of the first false condition. */
#define EXPECT(condition)                                                                          \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition,                 \
				strerror(errno));                                                  \
			_exit(1);                                                                  \
		}                                                                                  \
	} while (0)

static int
in_child(void (*body)(void))
{
	pid_t pid = fork();
	int status;

	ck_assert_int_ge(pid, 0);
	if (pid == 0) {
		body();
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	return status;
}

static void
assert_proven(void (*body)(void))
{
	int status = in_child(body);

	ck_assert_msg(status == 0, "the child ended with wait status 0x%x", (unsigned)status);
}

static bool
skip_unless(bool condition, const char *why)
{
	if (!condition)
		printf("skipped: %s\n", why);
	fflush(stdout);
	return !condition;
}

static bool
skip_unless_root(void)
{
	return skip_unless(sandbox_privileged(), "needs CAP_SETUID and CAP_SETGID (run as root)");
}

static bool
skip_unless_landlock(long version)
{
	return skip_unless(syscall(SYS_landlock_create_ruleset, NULL, 0, 1u) >= version,
			   "this kernel has no Landlock, or an older one");
}

/* Make the child an ordinary user where the tests run as root. */
static void
become_ordinary(void)
{
	if (geteuid() == 0)
		EXPECT(setgroups(0, NULL) == 0 && setresgid(NOBODY, NOBODY, NOBODY) == 0 &&
		       setresuid(NOBODY, NOBODY, NOBODY) == 0);
}

/* ---- scratch files: an empty directory and a file ---- */

static char scratch[64], empty[80], users[80], replacement[80];

static void
write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	ck_assert_int_eq(fchmod(fd, 0644), 0);
	close(fd);
}

static void
make_scratch(void)
{
	snprintf(scratch, sizeof scratch, "/tmp/check_sandbox.XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(scratch));
	ck_assert_int_eq(chmod(scratch, 0755), 0);
	snprintf(empty, sizeof empty, "%s/empty", scratch);
	snprintf(users, sizeof users, "%s/users", scratch);
	snprintf(replacement, sizeof replacement, "%s/replacement", scratch);
	ck_assert_int_eq(mkdir(empty, 0755), 0);
	ck_assert_int_eq(chmod(empty, 0755), 0);
	write_file(users, "1");
}

static void
remove_scratch(void)
{
	unlink(users);
	unlink(replacement);
	rmdir(empty);
	rmdir(scratch);
}

/* ---- first steps ---- */

static void
harden(void)
{
	struct error error = { 0 };
	struct rlimit limit;

	EXPECT(sandbox_harden(&error) == 0);
	EXPECT(prctl(PR_GET_DUMPABLE) == 0);
	EXPECT(getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_cur == 0 && limit.rlim_max == 0);
	EXPECT(umask(0) == 077);
}

START_TEST(hardened_process_leaves_no_core_and_no_open_modes)
{
	assert_proven(harden);
}
END_TEST

static void
close_descriptors(void)
{
	struct error error = { 0 };
	const int keep[] = { 12, -1, 2, 9, 12 };

	for (int fd = 7; fd <= 15; fd++)
		EXPECT(dup2(2, fd) == fd);
	EXPECT(sandbox_close_all_but(keep, sizeof keep / sizeof keep[0], &error) == 0);
	for (int fd = 0; fd < 64; fd++)
		EXPECT((fcntl(fd, F_GETFD) >= 0) == (fd == 2 || fd == 9 || fd == 12));
	EXPECT(sandbox_close_all_but(NULL, 0, &error) == 0);
	EXPECT(fcntl(2, F_GETFD) < 0 && fcntl(12, F_GETFD) < 0);
}

START_TEST(only_kept_descriptors_stay_open)
{
	assert_proven(close_descriptors);
}
END_TEST

START_TEST(system_user_is_found_unless_missing_or_root)
{
	struct sandbox_identity identity = { 0, 0 };
	struct error error = { 0 };

	ck_assert_int_eq(sandbox_find_user("nobody", &identity, &error), 0);
	ck_assert_uint_ne(identity.uid, 0);
	ck_assert_int_eq(sandbox_find_user("root", &identity, &error), -1);
	ck_assert_int_eq(error.code, ERROR_DENIED);
	ck_assert_int_eq(sandbox_find_user("_no_such_user_here", &identity, &error), -1);
	ck_assert_int_eq(error.code, ERROR_DENIED);
	ck_assert_ptr_nonnull(strstr(error.text, "useradd --system"));
	ck_assert_ptr_nonnull(strstr(error.text, "nologin _no_such_user_here"));
}
END_TEST

START_TEST(layers_are_named_in_order)
{
	char text[80];

	ck_assert_str_eq(sandbox_layers_text(SANDBOX_SECCOMP | SANDBOX_IDS, text, sizeof text),
			 "ids seccomp");
	ck_assert_str_eq(sandbox_layers_text(63, text, sizeof text),
			 "ids chroot capabilities no-new-privs landlock seccomp");
	ck_assert_str_eq(sandbox_layers_text(0, text, sizeof text), "none");
	ck_assert_str_eq(sandbox_layers_text(63, text, 6), "ids c");
}
END_TEST

/* ---- identity and capabilities ---- */

/* Whether /proc/self/status has the line "name:\tvalue", blanks at its end aside. */
static bool
process_status_is(const char *name, const char *value)
{
	FILE *file = fopen("/proc/self/status", "re");
	char line[256] = "", wanted[256];

	snprintf(wanted, sizeof wanted, "%s:\t%s", name, value);
	while (file != NULL && fgets(line, sizeof line, file) != NULL)
		if (strncmp(line, wanted, strlen(wanted)) == 0)
			break;
	if (file != NULL)
		fclose(file);
	return strncmp(line, wanted, strlen(wanted)) == 0 &&
	       strspn(line + strlen(wanted), " \n") == strlen(line + strlen(wanted));
}

static void
become_stranger(void)
{
	static const char *const sets[] = { "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb" };
	const gid_t groups[] = { 1, 2, 3 };
	struct error error = { 0 };

	EXPECT(setgroups(3, groups) == 0);
	EXPECT(!process_status_is("CapBnd", "0000000000000000") &&
	       !process_status_is("Groups", ""));
	EXPECT(sandbox_become(stranger.uid, stranger.gid, &error) == 0);
	for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++)
		EXPECT(process_status_is(sets[i], "0000000000000000"));
	EXPECT(process_status_is("Uid", "4711\t4711\t4711\t4711"));
	EXPECT(process_status_is("Gid", "4712\t4712\t4712\t4712"));
	EXPECT(process_status_is("Groups", ""));
	EXPECT(process_status_is("NoNewPrivs", "1"));
	EXPECT(setuid(0) < 0 && setgid(0) < 0 && seteuid(0) < 0);
	EXPECT(open("/etc/shadow", O_RDONLY) < 0);
}

START_TEST(becoming_a_user_leaves_no_id_group_or_capability_behind)
{
	if (!skip_unless_root())
		assert_proven(become_stranger);
}
END_TEST

static void
become_root(void)
{
	struct error error = { 0 };

	EXPECT(sandbox_become(0, 0, &error) != 0 && error.code == ERROR_DENIED);
	EXPECT(sandbox_become((uid_t)-1, 1, &error) != 0 && error.code == ERROR_DENIED);
	EXPECT(sandbox_become(1, (gid_t)-1, &error) != 0 && error.code == ERROR_DENIED);
}

START_TEST(becoming_root_is_refused)
{
	assert_proven(become_root);
}
END_TEST

static void
become_as_ordinary_user(void)
{
	struct error error = { 0 };

	become_ordinary();
	EXPECT(!sandbox_privileged());
	EXPECT(sandbox_become(stranger.uid, stranger.gid, &error) != 0);
	EXPECT(getuid() != stranger.uid);
}

START_TEST(ordinary_user_cannot_become_another)
{
	assert_proven(become_as_ordinary_user);
}
END_TEST

/* ---- entering the sandbox ---- */

static void
enter_privileged(void)
{
	const uint32_t expected =
	    SANDBOX_IDS | SANDBOX_CAPABILITIES | SANDBOX_NO_NEW_PRIVS | SANDBOX_CHROOT;
	struct error error = { 0 };
	uint32_t layers = 0;
	char directory[16];

	EXPECT(sandbox_enter(&stranger, empty, NULL, false, &layers, &error) == 0);
	EXPECT((layers & ~(uint32_t)SANDBOX_LANDLOCK) == expected);
	EXPECT(getcwd(directory, sizeof directory) != NULL && strcmp(directory, "/") == 0);
	EXPECT(access("/etc", F_OK) < 0);
	EXPECT(open("/etc/passwd", O_RDONLY) < 0);
	EXPECT(open("/new", O_WRONLY | O_CREAT, 0600) < 0);
	EXPECT(getuid() == stranger.uid && setuid(0) < 0);
}

START_TEST(privileged_process_sees_an_empty_root_only)
{
	if (!skip_unless_root())
		assert_proven(enter_privileged);
}
END_TEST

static void
enter_bad_root(void)
{
	struct error error = { 0 };
	uint32_t layers = 0;

	EXPECT(sandbox_enter(&stranger, empty, NULL, true, &layers, &error) != 0);
	EXPECT(layers == 0 && getuid() == 0 && strstr(error.text, empty) != NULL);
}

START_TEST(root_directory_that_others_can_write_or_that_is_missing_is_refused)
{
	if (skip_unless_root())
		return;
	ck_assert_int_eq(chmod(empty, 0775), 0);
	assert_proven(enter_bad_root);
	ck_assert_int_eq(chmod(empty, 0757), 0);
	assert_proven(enter_bad_root);
	ck_assert_int_eq(chmod(empty, 0755) | chown(empty, NOBODY, NOBODY), 0);
	assert_proven(enter_bad_root);
	ck_assert_int_eq(rmdir(empty), 0);
	assert_proven(enter_bad_root);
}
END_TEST

static void
use_files_under_landlock(void)
{
	char *const arguments[] = { NULL };
	struct error error = { 0 };
	uint32_t layers = 0;

	become_ordinary();
	EXPECT(sandbox_enter(NULL, "/nonexistent", NULL, false, &layers, &error) == 0);
	EXPECT((layers & SANDBOX_LANDLOCK) != 0 && (layers & SANDBOX_NO_NEW_PRIVS) != 0);
	EXPECT((layers & (SANDBOX_IDS | SANDBOX_CHROOT | SANDBOX_SECCOMP)) == 0);
	EXPECT(open("/etc/passwd", O_RDONLY) < 0 && errno == EACCES);
	EXPECT(open("/tmp", O_RDONLY | O_DIRECTORY) < 0 && errno == EACCES);
	EXPECT(mkdir("/tmp/check_sandbox_made", 0700) < 0 && errno == EACCES);
	EXPECT(execve("/bin/true", arguments, arguments) < 0 && errno == EACCES);
}

START_TEST(landlock_refuses_files_directories_and_execution)
{
	if (!skip_unless_landlock(1))
		assert_proven(use_files_under_landlock);
}
END_TEST

/* A process of the same user, outside the sandbox; it ends when the caller does. */
static pid_t
start_bystander(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	return pid;
}

static void
reach_outside_under_landlock(void)
{
	const struct sockaddr_in address = { .sin_family = AF_INET,
					     .sin_port = htons(9),
					     .sin_addr = { htonl(INADDR_LOOPBACK) } };
	const struct sockaddr *generic = (const struct sockaddr *)&address;
	struct error error = { 0 };
	uint32_t layers = 0;
	pid_t bystander;
	int fd;

	become_ordinary();
	bystander = start_bystander();
	EXPECT(bystander > 0 && kill(bystander, 0) == 0);
	EXPECT(sandbox_enter(NULL, "", NULL, false, &layers, &error) == 0);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	EXPECT(fd >= 0);
	EXPECT(connect(fd, generic, sizeof address) < 0 && errno == EACCES);
	EXPECT(kill(bystander, 0) < 0 && errno == EPERM);
}

START_TEST(landlock_refuses_tcp_and_signals_to_others)
{
	if (!skip_unless_landlock(6))
		assert_proven(reach_outside_under_landlock);
}
END_TEST

static bool
begins_with(const char *name, char expected)
{
	char octet = 0;
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	bool same = fd >= 0 && read(fd, &octet, 1) == 1 && octet == expected;

	if (fd >= 0)
		close(fd);
	return same;
}

static int turns[2]; /* a socket pair: child and parent take turns */

static void
read_replaced_file(void)
{
	struct error error = { 0 };
	uint32_t layers = 0;
	char octet = 0;

	EXPECT(sandbox_enter(&stranger, empty, users, false, &layers, &error) == 0);
	EXPECT(begins_with("users", '1'));
	EXPECT(open("users", O_WRONLY) < 0 && errno == EACCES);
	EXPECT(open("new", O_WRONLY | O_CREAT, 0600) < 0 && errno == EACCES);
	EXPECT(unlink("users") < 0);
	EXPECT(open("/etc/passwd", O_RDONLY) < 0);
	if ((layers & SANDBOX_LANDLOCK) != 0)
		EXPECT(open("../../etc/passwd", O_RDONLY) < 0 && errno == EACCES);
	EXPECT(write(turns[0], "r", 1) == 1 && read(turns[0], &octet, 1) == 1);
	EXPECT(begins_with("users", '2'));
	_exit(0);
}

START_TEST(readable_file_stays_readable_when_it_is_replaced_and_nothing_else_is)
{
	char octet;
	int status;
	pid_t pid;

	if (!sandbox_privileged() && skip_unless_landlock(1))
		return;
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, turns), 0);
	pid = fork();
	ck_assert_int_ge(pid, 0);
	if (pid == 0) {
		close(turns[1]);
		read_replaced_file();
	}
	close(turns[0]);
	ck_assert_int_eq(read(turns[1], &octet, 1), 1);
	write_file(replacement, "2");
	ck_assert_int_eq(rename(replacement, users), 0);
	ck_assert_int_eq(write(turns[1], "g", 1), 1);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	close(turns[1]);
}
END_TEST

/* ---- filters ---- */

#ifdef QPOPPER_SANITIZERS

START_TEST(filters_are_left_out_of_a_build_with_sanitizers)
{
	struct error error = { 0 };
	uint32_t layers = 0;

	ck_assert_int_eq(sandbox_filter(SANDBOX_FILTER_WORKER, false, &layers, &error), 0);
	ck_assert_uint_eq(layers, 0);
	skip_unless(false, "filters: built with sanitizers");
}
END_TEST

static void
add_filter_tests(TCase *tests)
{
	tcase_add_test(tests, filters_are_left_out_of_a_build_with_sanitizers);
}

#else

enum outcome {
	DIES,
	FAILS,
	WORKS
};

/* A call and what becomes of it in the filters of worker, signer and verifier, in their order. */
struct filter_case {
	long call;
	long arguments[5];
	enum outcome outcomes[3];
	int number; /* errno of FAILS */
};

static const struct filter_case filter_cases[] = {
	{ SYS_sendto, { -1, 0, 0, 0, 1 }, { DIES, DIES, DIES }, 0 }, /* to an address */
	{ SYS_sendto, { -1 }, { FAILS, FAILS, FAILS }, EBADF },
	{ SYS_fcntl, { -1, F_SETLK }, { DIES, DIES, DIES }, 0 },
	{ SYS_fcntl, { -1, F_OFD_SETLK }, { DIES, DIES, DIES }, 0 },
	{ SYS_fcntl, { -1, F_SETLEASE }, { DIES, DIES, DIES }, 0 },
	{ SYS_fcntl, { -1, F_SETOWN }, { DIES, DIES, DIES }, 0 },
	{ SYS_fcntl, { -1, F_GETFL }, { FAILS, FAILS, FAILS }, EBADF },
	{ SYS_mmap, { 0, 0, PROT_READ | PROT_EXEC }, { DIES, DIES, DIES }, 0 },
	{ SYS_mmap, { 0, 0, PROT_READ | PROT_WRITE }, { FAILS, FAILS, FAILS }, EINVAL },
	{ SYS_mprotect, { 0, 4096, PROT_EXEC }, { DIES, DIES, DIES }, 0 },
	{ SYS_openat, { -1, 0, O_WRONLY }, { FAILS, FAILS, DIES }, EACCES },
	{ SYS_openat, { -1, 0, O_CREAT }, { FAILS, FAILS, DIES }, EACCES },
	{ SYS_openat, { -1, 0, O_RDONLY }, { FAILS, FAILS, WORKS }, EACCES },
	{ SYS_newfstatat, { -1, 0, 0, 0 }, { FAILS, FAILS, WORKS }, EACCES },
	{ SYS_newfstatat, { -1, 0, 0, AT_EMPTY_PATH }, { WORKS, WORKS, WORKS }, 0 },
	{ SYS_ioctl, { 2 }, { FAILS, FAILS, FAILS }, ENOTTY },
	{ SYS_prctl, { PR_SET_DUMPABLE, 1 }, { FAILS, FAILS, FAILS }, EPERM },
	{ SYS_pread64, { -1 }, { FAILS, DIES, FAILS }, EBADF },
	{ SYS_preadv2, { -1 }, { FAILS, DIES, DIES }, EBADF },
	{ SYS_setsockopt, { -1 }, { FAILS, DIES, DIES }, EBADF },
	{ SYS_memfd_create, { 0 }, { FAILS, DIES, DIES }, EFAULT },
	{ SYS_pipe2, { 0 }, { FAILS, DIES, DIES }, EFAULT },
	{ SYS_tgkill, { 1, 1, 0 }, { DIES, DIES, DIES }, 0 },
};

static const long deadly_calls[] = { SYS_execve,    SYS_execveat,	SYS_clone,
				     SYS_clone3,    SYS_socket,		SYS_connect,
				     SYS_bind,	    SYS_accept4,	SYS_kill,
				     SYS_flock,	    SYS_ptrace,		SYS_process_vm_readv,
				     SYS_setuid,    SYS_setresuid,	SYS_capset,
				     SYS_chroot,    SYS_mount,		SYS_unshare,
				     SYS_bpf,	    SYS_io_uring_setup, SYS_unlinkat,
				     SYS_renameat2, SYS_linkat,		SYS_openat2,
				     SYS_keyctl,    SYS_userfaultfd,	SYS_perf_event_open,
				     SYS_seccomp };

static struct filter_case this_case;
static enum sandbox_filter this_filter;

static void
enter_filter(enum sandbox_filter filter)
{
	struct error error = { 0 };
	uint32_t layers = 0;

	EXPECT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && sandbox_harden(&error) == 0);
	EXPECT(sandbox_filter(filter, false, &layers, &error) == 0);
	EXPECT(layers == SANDBOX_SECCOMP);
}

static void
make_call(void)
{
	const long *a = this_case.arguments;
	long result;

	enter_filter(this_filter);
	result = syscall(this_case.call, a[0], a[1], a[2], a[3], a[4], 0);
	if (this_case.outcomes[this_filter] == FAILS)
		EXPECT(result == -1 && errno == this_case.number);
	if (this_case.outcomes[this_filter] == WORKS)
		EXPECT(result >= 0 || errno == EFAULT || errno == EBADF);
}

static void
check_case(void)
{
	for (this_filter = SANDBOX_FILTER_WORKER; this_filter <= SANDBOX_FILTER_VERIFIER;
	     this_filter++) {
		int status = in_child(make_call);
		bool died = WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS;

		ck_assert_msg(died == (this_case.outcomes[this_filter] == DIES) &&
				  (died || status == 0),
			      "filter %d, system call %ld: status 0x%x", (int)this_filter,
			      this_case.call, (unsigned)status);
	}
}

START_TEST(each_call_is_allowed_refused_or_deadly_as_its_role_demands)
{
	this_case = filter_cases[_i];
	check_case();
}
END_TEST

START_TEST(calls_that_no_role_needs_end_the_process)
{
	this_case = (struct filter_case){ deadly_calls[_i], { 0 }, { DIES, DIES, DIES }, 0 };
	check_case();
}
END_TEST

static void
use_memfd(void)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	char text[8] = "";
	struct iovec part = { text, sizeof text };
	struct stat status;
	int fd = memfd_create("table", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	void *map;

	EXPECT(fd >= 0 && ftruncate(fd, 4096) == 0);
	EXPECT(write(fd, "table", 5) == 5);
	EXPECT(fcntl(fd, F_ADD_SEALS, seals) == 0 && fcntl(fd, F_GET_SEALS) == seals);
	EXPECT(fstat(fd, &status) == 0 && status.st_size == 4096);
	EXPECT(preadv2(fd, &part, 1, 0, 0) == sizeof text && strcmp(text, "table") == 0);
	map = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
	EXPECT(map != MAP_FAILED && memcmp(map, "table", 5) == 0);
	EXPECT(munmap(map, 4096) == 0 && close(fd) == 0);
}

static void
use_sockets(void)
{
	struct epoll_event event = { .events = EPOLLIN };
	char octet = 0;
	struct iovec part = { &octet, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
	int on = 1;
	int epoll = epoll_create1(EPOLL_CLOEXEC);

	EXPECT(epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, turns[1], &event) == 0);
	EXPECT(setsockopt(turns[0], SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) == 0);
	EXPECT(sendmsg(turns[0], &message, MSG_NOSIGNAL) == 1);
	EXPECT(epoll_wait(epoll, &event, 1, 1000) == 1);
	EXPECT(recvmsg(turns[1], &message, 0) == 1);
	EXPECT(send(turns[0], "x", 1, MSG_NOSIGNAL) == 1 && recv(turns[1], &octet, 1, 0) == 1);
	EXPECT(shutdown(turns[0], SHUT_RDWR) == 0 && close(epoll) == 0);
}

static void
work_in_filter(void)
{
	char *memory;

	EXPECT(socketpair(AF_UNIX, SOCK_STREAM, 0, turns) == 0);
	enter_filter(SANDBOX_FILTER_WORKER);
	memory = malloc(8u << 20);
	EXPECT(memory != NULL);
	memset(memory, 1, 8u << 20);
	free(memory);
	use_memfd();
	use_sockets();
}

START_TEST(worker_can_do_its_work_inside_the_filter)
{
	assert_proven(work_in_filter);
}
END_TEST

static void
abort_in_filter(void)
{
	enter_filter(SANDBOX_FILTER_SIGNER);
	abort();
}

START_TEST(abort_ends_a_filtered_process_as_it_should)
{
	int status = in_child(abort_in_filter);

	ck_assert(WIFSIGNALED(status));
	ck_assert_int_eq(WTERMSIG(status), SIGABRT);
}
END_TEST

static void *
make_socket_when_told(void *unused)
{
	char octet;

	if (read(turns[0], &octet, 1) == 1)
		syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0);
	return unused;
}

static void
start_thread_before_filter(void)
{
	pthread_t thread;

	EXPECT(pipe(turns) == 0);
	EXPECT(pthread_create(&thread, NULL, make_socket_when_told, NULL) == 0);
	enter_filter(SANDBOX_FILTER_WORKER);
	EXPECT(write(turns[1], "g", 1) == 1);
	pthread_join(thread, NULL);
}

START_TEST(threads_started_before_are_filtered_too_and_end_the_process)
{
	int status = in_child(start_thread_before_filter);

	ck_assert(WIFSIGNALED(status));
	ck_assert_int_eq(WTERMSIG(status), SIGSYS);
}
END_TEST

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

static void
add_filter_tests(TCase *tests)
{
	tcase_add_loop_test(tests, each_call_is_allowed_refused_or_deadly_as_its_role_demands, 0,
			    COUNT(filter_cases));
	tcase_add_loop_test(tests, calls_that_no_role_needs_end_the_process, 0,
			    COUNT(deadly_calls));
	tcase_add_test(tests, worker_can_do_its_work_inside_the_filter);
	tcase_add_test(tests, abort_ends_a_filtered_process_as_it_should);
	tcase_add_test(tests, threads_started_before_are_filtered_too_and_end_the_process);
}

#endif

static void
add_rights_tests(TCase *tests)
{
	tcase_add_checked_fixture(tests, make_scratch, remove_scratch);
	tcase_add_test(tests, hardened_process_leaves_no_core_and_no_open_modes);
	tcase_add_test(tests, only_kept_descriptors_stay_open);
	tcase_add_test(tests, system_user_is_found_unless_missing_or_root);
	tcase_add_test(tests, layers_are_named_in_order);
	tcase_add_test(tests, becoming_a_user_leaves_no_id_group_or_capability_behind);
	tcase_add_test(tests, becoming_root_is_refused);
	tcase_add_test(tests, ordinary_user_cannot_become_another);
	tcase_add_test(tests, privileged_process_sees_an_empty_root_only);
	tcase_add_test(tests, root_directory_that_others_can_write_or_that_is_missing_is_refused);
	tcase_add_test(tests, landlock_refuses_files_directories_and_execution);
	tcase_add_test(tests, landlock_refuses_tcp_and_signals_to_others);
	tcase_add_test(tests, readable_file_stays_readable_when_it_is_replaced_and_nothing_else_is);
}

int
main(void)
{
	Suite *suite = suite_create("sandbox");
	TCase *rights = tcase_create("rights");
	TCase *filters = tcase_create("filters");
	SRunner *runner;
	int failed;

	add_rights_tests(rights);
	add_filter_tests(filters);
	suite_add_tcase(suite, rights);
	suite_add_tcase(suite, filters);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
