/*
 * The seccomp filters of the sandboxed processes: tables of the system calls each may make, in the
 * order in which one would explain them. Whatever no table names ends the process (SIGSYS).
 *
 * Calls of 32-bit architectures stand beside their 64-bit names; libseccomp skips the ones that
 * the running architecture does not have.
 */
#include "config.h"

#include "daemon/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <unistd.h>

/* A row: a call is treated so if (argument & mask) == value; a mask of 0 means in any case. */
struct filter_rule {
	int call;
	uint32_t action;
	unsigned argument;
	uint64_t mask;
	uint64_t value;
};

struct filter_table {
	const struct filter_rule *rules;
	size_t count;
};

#define ANY_INT UINT64_C(0xffffffff) /* an int fills half a register */
#define ALLOW(name)                                                                                \
	{                                                                                          \
		SCMP_SYS(name), SCMP_ACT_ALLOW, 0, 0, 0                                            \
	}
#define ALLOW_IF(name, arg, m, v)                                                                  \
	{                                                                                          \
		SCMP_SYS(name), SCMP_ACT_ALLOW, arg, m, v                                          \
	}
#define REFUSE(name, number)                                                                       \
	{                                                                                          \
		SCMP_SYS(name), SCMP_ACT_ERRNO(number), 0, 0, 0                                    \
	}
#define REFUSE_IF(name, number, arg, m, v)                                                         \
	{                                                                                          \
		SCMP_SYS(name), SCMP_ACT_ERRNO(number), arg, m, v                                  \
	}
#define TABLE(rules)                                                                               \
	{                                                                                          \
		rules, sizeof(rules) / sizeof((rules)[0])                                          \
	}

/* What every role does: memory, descriptors it has, channels, waiting, threads it has. */
static const struct filter_rule common_rules[] = {
	/* memory, never executable */
	ALLOW_IF(mmap, 2, PROT_EXEC, 0),
	ALLOW_IF(mmap2, 2, PROT_EXEC, 0),
	ALLOW_IF(mprotect, 2, PROT_EXEC, 0),
	ALLOW(munmap),
	ALLOW(mremap),
	ALLOW(madvise),
	ALLOW(brk),

	/* descriptors; of fcntl neither locks nor leases nor signal owners */
	ALLOW(read),
	ALLOW(readv),
	ALLOW(write),
	ALLOW(writev),
	ALLOW(lseek),
	ALLOW(_llseek),
	ALLOW(close),
	ALLOW(close_range),
	ALLOW(dup),
	ALLOW(fstat),
	ALLOW(fstat64),
	ALLOW_IF(fcntl, 1, ANY_INT, F_GETFL),
	ALLOW_IF(fcntl, 1, ANY_INT, F_SETFL),
	ALLOW_IF(fcntl, 1, ANY_INT, F_GETFD),
	ALLOW_IF(fcntl, 1, ANY_INT, F_SETFD),
	ALLOW_IF(fcntl, 1, ANY_INT, F_ADD_SEALS),
	ALLOW_IF(fcntl, 1, ANY_INT, F_GET_SEALS),
	ALLOW_IF(fcntl, 1, ANY_INT, F_DUPFD_CLOEXEC),
	ALLOW_IF(fcntl64, 1, ANY_INT, F_GETFL),
	ALLOW_IF(fcntl64, 1, ANY_INT, F_SETFL),
	ALLOW_IF(fcntl64, 1, ANY_INT, F_GETFD),
	ALLOW_IF(fcntl64, 1, ANY_INT, F_SETFD),
	ALLOW_IF(fcntl64, 1, ANY_INT, F_ADD_SEALS),
	ALLOW_IF(fcntl64, 1, ANY_INT, F_GET_SEALS),
	ALLOW_IF(fcntl64, 1, ANY_INT, F_DUPFD_CLOEXEC),

	/* channels and the log: sockets that are connected, no address of one's own choice */
	ALLOW(recvmsg),
	ALLOW(sendmsg),
	ALLOW(recvfrom),
	ALLOW_IF(sendto, 4, UINT64_MAX, 0),

	/* waiting and time */
	ALLOW(epoll_create1),
	ALLOW(epoll_ctl),
	ALLOW(epoll_wait),
	ALLOW(epoll_pwait),
	ALLOW(epoll_pwait2),
	ALLOW(poll),
	ALLOW(ppoll),
	ALLOW(ppoll_time64),
	ALLOW(clock_gettime),
	ALLOW(clock_gettime64),
	ALLOW(clock_getres),
	ALLOW(clock_getres_time64),
	ALLOW(clock_nanosleep),
	ALLOW(clock_nanosleep_time64),
	ALLOW(nanosleep),
	ALLOW(gettimeofday),
	ALLOW(time),

	/* threads that are there already; no new ones, no processes */
	ALLOW(futex),
	ALLOW(futex_time64),
	ALLOW(set_robust_list),
	ALLOW(rseq),
	ALLOW(membarrier),
	ALLOW(sched_yield),
	ALLOW(sched_getaffinity),
	ALLOW(exit),
	ALLOW(exit_group),

	/* signals to itself (tgkill: allow_own_signals) */
	ALLOW(rt_sigprocmask),
	ALLOW(rt_sigaction),
	ALLOW(rt_sigreturn),
	ALLOW(sigreturn),
	ALLOW(sigaltstack),
	ALLOW(restart_syscall),

	/* asking about itself, randomness */
	ALLOW(gettid),
	ALLOW(getpid),
	ALLOW(getuid),
	ALLOW(geteuid),
	ALLOW(getgid),
	ALLOW(getegid),
	ALLOW(getuid32),
	ALLOW(geteuid32),
	ALLOW(getgid32),
	ALLOW(getegid32),
	ALLOW(getrandom),
	ALLOW(sysinfo),
	ALLOW(uname),

	/* the C library asks for these without need: an error will do */
	REFUSE(ioctl, ENOTTY),
	REFUSE(prctl, EPERM),
	REFUSE(access, EACCES),
	REFUSE(faccessat, EACCES),
	REFUSE(faccessat2, EACCES),
	REFUSE(readlink, EACCES),
	REFUSE(readlinkat, EACCES),
};

/* Roles that open nothing. newfstatat and statx with AT_EMPTY_PATH are fstat by another name. */
static const struct filter_rule no_file_rules[] = {
	ALLOW_IF(newfstatat, 3, AT_EMPTY_PATH, AT_EMPTY_PATH),
	REFUSE_IF(newfstatat, EACCES, 3, AT_EMPTY_PATH, 0),
	ALLOW_IF(fstatat64, 3, AT_EMPTY_PATH, AT_EMPTY_PATH),
	REFUSE_IF(fstatat64, EACCES, 3, AT_EMPTY_PATH, 0),
	ALLOW_IF(statx, 2, AT_EMPTY_PATH, AT_EMPTY_PATH),
	REFUSE_IF(statx, EACCES, 2, AT_EMPTY_PATH, 0),
	REFUSE(stat, EACCES),
	REFUSE(lstat, EACCES),
	REFUSE(stat64, EACCES),
	REFUSE(lstat64, EACCES),
	REFUSE(open, EACCES),
	REFUSE(openat, EACCES),
};

/* Workers: the client's socket, the spool's descriptor, tables and deletions in memfds. */
static const struct filter_rule worker_rules[] = {
	ALLOW(pread64),
	ALLOW(preadv),
	ALLOW(preadv2),
	ALLOW(pwrite64),
	ALLOW(fadvise64),
	ALLOW(fadvise64_64),
	ALLOW(arm_fadvise64_64),
	ALLOW(shutdown),
	ALLOW(getsockopt),
	ALLOW(setsockopt),
	ALLOW(getsockname),
	ALLOW(getpeername),
	ALLOW(pipe2),
	ALLOW(eventfd2),
	ALLOW(memfd_create),
	ALLOW(ftruncate),
	ALLOW(ftruncate64),
};

#define OPEN_MORE_THAN_READ (O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND | (O_TMPFILE & ~O_DIRECTORY))

/* The verifier: reads its files anew when they change. */
static const struct filter_rule verifier_rules[] = {
	ALLOW_IF(openat, 2, OPEN_MORE_THAN_READ, 0),
	ALLOW_IF(open, 1, OPEN_MORE_THAN_READ, 0),
	ALLOW(newfstatat),
	ALLOW(fstatat64),
	ALLOW(statx),
	ALLOW(stat),
	ALLOW(lstat),
	ALLOW(stat64),
	ALLOW(lstat64),
	ALLOW(pread64),
	ALLOW(fadvise64),
	ALLOW(fadvise64_64),
	ALLOW(arm_fadvise64_64),
};

#define TABLES_MAX 3

static const struct filter_table filter_tables[][TABLES_MAX] = {
	[SANDBOX_FILTER_WORKER] = { TABLE(common_rules), TABLE(no_file_rules),
	    TABLE(worker_rules) },
	[SANDBOX_FILTER_SIGNER] = { TABLE(common_rules), TABLE(no_file_rules) },
	[SANDBOX_FILTER_VERIFIER] = { TABLE(common_rules), TABLE(verifier_rules) },
};

#ifdef QPOPPER_SANITIZERS

int
sandbox_filter(enum sandbox_filter filter, bool weak, uint32_t *layers, struct error *error)
{
	(void)filter_tables;
	(void)filter;
	(void)weak;
	(void)layers;
	(void)error;
	return 0;
}

#else

static int
add_rule(scmp_filter_ctx context, const struct filter_rule *rule)
{
	struct scmp_arg_cmp condition = {
		.arg = rule->argument,
		.op = SCMP_CMP_MASKED_EQ,
		.datum_a = rule->mask,
		.datum_b = rule->value,
	};

	return seccomp_rule_add_array(
	    context, rule->action, rule->call, rule->mask == 0 ? 0 : 1, &condition);
}

static int
add_tables(
    scmp_filter_ctx context, const struct filter_table tables[TABLES_MAX], struct error *error)
{
	for (size_t t = 0; t < TABLES_MAX; t++) {
		for (size_t i = 0; i < tables[t].count; i++) {
			int result = add_rule(context, &tables[t].rules[i]);

			if (result != 0)
				return error_set_errno(error, -result,
				    "cannot add system call %d to the filter",
				    tables[t].rules[i].call);
		}
	}
	return 0;
}

/* abort() must be able to end the process by its own name. */
static int
allow_own_signals(scmp_filter_ctx context, struct error *error)
{
	const struct filter_rule rule = ALLOW_IF(tgkill, 0, ANY_INT, (uint64_t)getpid());
	int result = add_rule(context, &rule);

	if (result != 0)
		return error_set_errno(error, -result, "cannot add tgkill to the filter");
	return 0;
}

static int
set_attributes(scmp_filter_ctx context, struct error *error)
{
	const struct {
		enum scmp_filter_attr name;
		uint32_t value;
	} attributes[] = {
		{ SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS }, { SCMP_FLTATR_CTL_TSYNC, 1 },
		{ SCMP_FLTATR_CTL_OPTIMIZE, 2 }, /* binary search instead of a long chain */
	};

	for (size_t i = 0; i < sizeof attributes / sizeof attributes[0]; i++) {
		int result = seccomp_attr_set(context, attributes[i].name, attributes[i].value);

		if (result != 0)
			return error_set_errno(error, -result, "cannot set up the seccomp filter");
	}
	return 0;
}

static int
build_and_load(
    scmp_filter_ctx context, enum sandbox_filter filter, bool *held_out, struct error *error)
{
	if (set_attributes(context, error) != 0 ||
	    add_tables(context, filter_tables[filter], error) != 0 ||
	    allow_own_signals(context, error) != 0)
		return -1;
	*held_out = seccomp_load(context) == 0;
	return 0;
}

/* Without the kernel's seccomp the process goes on only where the administrator allowed it. */
int
sandbox_filter(enum sandbox_filter filter, bool weak, uint32_t *layers, struct error *error)
{
	scmp_filter_ctx context = seccomp_init(SCMP_ACT_KILL_PROCESS);
	bool held = false;
	int result = 0;

	if (context != NULL) {
		result = build_and_load(context, filter, &held, error);
		seccomp_release(context);
	}
	if (result != 0)
		return -1;
	if (!held && !weak)
		return error_set(error, ERROR_DENIED,
		    "the kernel refuses the seccomp filter: enable seccomp or set sandbox = weak");
	if (held)
		*layers |= SANDBOX_SECCOMP;
	return 0;
}

#endif
