/*
 * The filters of the sandbox: which system calls the processes of each role may make, which are
 * refused, and which end the process.
 */
#include "config.h"

#include "daemon/sandbox.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/sandbox_harness.h"

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

static int turns[2]; /* a socket pair or a pipe: two take turns */

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

static const long deadly_calls[] = { SYS_execve, SYS_execveat, SYS_clone, SYS_clone3, SYS_socket,
	SYS_connect, SYS_bind, SYS_accept4, SYS_kill, SYS_flock, SYS_ptrace, SYS_process_vm_readv,
	SYS_setuid, SYS_setresuid, SYS_capset, SYS_chroot, SYS_mount, SYS_unshare, SYS_bpf,
	SYS_io_uring_setup, SYS_unlinkat, SYS_renameat2, SYS_linkat, SYS_openat2, SYS_keyctl,
	SYS_userfaultfd, SYS_perf_event_open, SYS_seccomp };

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

		ck_assert_msg(
		    died == (this_case.outcomes[this_filter] == DIES) && (died || status == 0),
		    "filter %d, system call %ld: status 0x%x", (int)this_filter, this_case.call,
		    (unsigned)status);
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
	tcase_add_loop_test(
	    tests, calls_that_no_role_needs_end_the_process, 0, COUNT(deadly_calls));
	tcase_add_test(tests, worker_can_do_its_work_inside_the_filter);
	tcase_add_test(tests, abort_ends_a_filtered_process_as_it_should);
	tcase_add_test(tests, threads_started_before_are_filtered_too_and_end_the_process);
}

#endif

int
main(void)
{
	Suite *suite = suite_create("sandbox_filter");
	TCase *filters = tcase_create("filters");
	SRunner *runner;
	int failed;

	add_filter_tests(filters);
	suite_add_tcase(suite, filters);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
