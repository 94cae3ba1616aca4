/*
 * qpopper-worker: the parent of the workers, and how a worker begins.
 *
 * The parent is executed by the master with the rights to give up rights; it reads the certificate,
 * enters the sandbox, and from then on only forks workers when the master asks and reports their
 * ends. It trusts the master alone and never sees a client.
 */
#include "config.h"

#include "daemon/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/role.h"
#include "daemon/sandbox.h"

#define READER_THREADS 2
#define STATUS_FAILED  (ROLE_EXIT_FAILED << 8) /* as waitpid gives it */

/* In the order of WORKER_START's descriptors. */
enum start_fd {
	START_MASTER,
	START_MONITOR,
	START_AUTH,
	START_SIGNER,
	START_COUNT
};

struct child {
	pid_t pid;
	uint32_t number;
};

struct parent {
	struct settings *settings;
	struct log log;
	struct tls_context *tls;
	char server_name[256];
	uint32_t layers; /* of the parent: all but the filter of the workers */
	int signal_fd;
	struct child *children;
	size_t child_count;
};

/* ---- how a worker begins ---- */

/* Every channel but that to the signer is served by events and must not block. */
static int
set_nonblocking(const int *fds, struct error *error)
{
	for (int i = START_MASTER; i < START_COUNT; i++) {
		int flags = fcntl(fds[i], F_GETFL);
		int wanted = i == START_SIGNER ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
		if (flags < 0 || (flags != wanted && fcntl(fds[i], F_SETFL, wanted) != 0))
			return error_set_errno(error, errno, "channel %d of a worker", i);
	}
	return 0;
}

static int
watch_all(struct worker *worker, int readers_fd, struct error *error)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = &worker->readers_source };

	worker->readers_source = SOURCE_READERS;
	worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (worker->epoll_fd < 0 ||
	    epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, readers_fd, &event) != 0 ||
	    worker_watch(worker, &worker->master, EPOLL_CTL_ADD) != 0 ||
	    worker_watch(worker, &worker->monitor, EPOLL_CTL_ADD) != 0 ||
	    worker_watch(worker, &worker->auth, EPOLL_CTL_ADD) != 0)
		return error_set_errno(error, errno, "cannot watch the channels");
	return 0;
}

static int
start_worker(
    struct worker *worker, const struct parent *parent, const int *fds, struct error *error)
{
	bool weak = parent->settings->sandbox == SANDBOX_WEAK;
	unsigned threads = parent->settings->sessions_per_worker == 1 ? 1 : READER_THREADS;
	uint32_t layers = parent->layers;
	int readers_fd;

	worker->now = worker_clock();
	worker->master =
	    (struct worker_channel){ .source = SOURCE_MASTER, .fd = fds[START_MASTER] };
	worker->monitor =
	    (struct worker_channel){ .source = SOURCE_MONITOR, .fd = fds[START_MONITOR] };
	worker->auth = (struct worker_channel){ .source = SOURCE_AUTH, .fd = fds[START_AUTH] };
	worker->signer_fd = fds[START_SIGNER];
	if (worker->tls != NULL)
		tls_set_signer(worker->tls, worker->signer_fd);
	if (set_nonblocking(fds, error) != 0 || worker_make_tables(worker, error) != 0 ||
	    reader_pool_start(threads, &worker->readers, &readers_fd, error) != 0 ||
	    watch_all(worker, readers_fd, error) != 0)
		return -1;
	return sandbox_filter(SANDBOX_FILTER_WORKER, weak, &layers, error);
}

static int
leave_parent_behind(const struct parent *parent, const int *fds, struct error *error)
{
	int keep[START_COUNT + 4] = { STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, parent->log.fd };
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	memcpy(keep + 4, fds, START_COUNT * sizeof(int));
	return sandbox_close_all_but(keep, sizeof(keep) / sizeof(keep[0]), error);
}

static int
worker_main(const struct parent *parent, uint32_t number, const int *fds)
{
	struct worker worker = { .number = number,
		.settings = parent->settings,
		.tls = parent->tls,
		.server_name = parent->server_name };
	int status = ROLE_EXIT_FAILED;
	struct error error;
	struct log log;
	char name[sizeof(log.process)];

	snprintf(name, sizeof(name), "worker %u", number);
	log_start(&log, parent->log.fd, name, parent->settings->debug);
	worker.log = &log;
	if (leave_parent_behind(parent, fds, &error) == 0 &&
	    start_worker(&worker, parent, fds, &error) == 0)
		status = worker_run(&worker);
	else
		log_write(&log, LOG_LEVEL_ERROR, "cannot start: %s", error.text);
	worker_free_tables(&worker);
	return status;
}

/* ---- the parent ---- */

static void
report_end(struct parent *parent, uint32_t number, int status)
{
	struct message_worker message = { .worker = number, .status = status };
	struct error error;

	if (message_send(
		ROLE_FD_MASTER, MESSAGE_WORKER_EXITED, &message, NULL, 0, NULL, 0, &error) != 0 &&
	    error.code != ERROR_CLOSED)
		log_write(&parent->log, LOG_LEVEL_ERROR, "cannot report the end of worker %u: %s",
		    number, error.text);
}

static struct child *
find_child(const struct parent *parent, pid_t pid)
{
	for (size_t i = 0; i < parent->child_count; i++)
		if (parent->children[i].pid == pid)
			return &parent->children[i];
	return NULL;
}

static void
reap_children(struct parent *parent)
{
	struct signalfd_siginfo signals;
	struct child *child;
	pid_t pid;
	int status;

	if (read(parent->signal_fd, &signals, sizeof(signals)) < 0)
		return;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		child = find_child(parent, pid);
		if (child == NULL)
			continue;
		report_end(parent, child->number, status);
		*child = parent->children[--parent->child_count];
	}
}

static int
fork_worker(struct parent *parent, uint32_t number, const int *fds, struct error *error)
{
	struct child *grown =
	    reallocarray(parent->children, parent->child_count + 1, sizeof(*grown));
	pid_t pid;

	if (grown == NULL)
		return error_set_errno(error, ENOMEM, "cannot note worker %u", number);
	parent->children = grown;
	pid = fork();
	if (pid < 0)
		return error_set_errno(error, errno, "cannot fork worker %u", number);
	if (pid == 0)
		exit(worker_main(parent, number, fds));
	grown[parent->child_count++] = (struct child){ .pid = pid, .number = number };
	return 0;
}

static void
worker_wanted(struct parent *parent, const struct message *message)
{
	uint32_t number = message->payload.worker.worker;
	struct error error;

	if (fork_worker(parent, number, message->fds, &error) == 0)
		return;
	log_write(&parent->log, LOG_LEVEL_ERROR, "%s", error.text);
	report_end(parent, number, STATUS_FAILED);
}

/* False at the end of the channel: the service ends, and the workers see their own ends of file. */
static bool
serve_master(struct parent *parent, int *status_out)
{
	struct message message;
	struct error error;
	bool got;

	if (message_receive(
		ROLE_FD_MASTER, ROLE_MASTER, ROLE_WORKER_PARENT, &message, &got, &error) == 0) {
		if (got)
			worker_wanted(parent, &message);
		message_close(&message);
		return true;
	}
	*status_out = ROLE_EXIT_DONE;
	if (error.code != ERROR_CLOSED) {
		log_write(&parent->log, LOG_LEVEL_ERROR, "channel to the master: %s", error.text);
		*status_out = ROLE_EXIT_CHANNEL;
	}
	return false;
}

static int
serve(struct parent *parent)
{
	struct pollfd sources[] = {
		{ .fd = ROLE_FD_MASTER, .events = POLLIN },
		{ .fd = parent->signal_fd, .events = POLLIN },
	};
	int status = ROLE_EXIT_DONE;

	for (;;) {
		if (poll(sources, 2, -1) < 0 && errno != EINTR)
			return ROLE_EXIT_FAILED;
		if (sources[1].revents != 0)
			reap_children(parent);
		if (sources[0].revents != 0 && !serve_master(parent, &status))
			return status;
	}
}

/*
 * The filter is for workers alone, who do not fork; here a child tries it, so that a kernel
 * without it is known before the first client comes.
 */
static int
try_filter(struct parent *parent, uint32_t *layers_out, struct error *error)
{
	bool weak = parent->settings->sandbox == SANDBOX_WEAK;
	uint32_t layers = parent->layers;
	pid_t pid = fork();
	int status;

	if (pid < 0)
		return error_set_errno(error, errno, "cannot fork");
	if (pid == 0) {
		if (sandbox_filter(SANDBOX_FILTER_WORKER, weak, &layers, error) == 0)
			_exit(layers & SANDBOX_SECCOMP ? 0 : 1);
		log_write(&parent->log, LOG_LEVEL_ERROR, "%s", error->text);
		_exit(2);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) > 1)
		return error_set(error, ERROR_DENIED, "workers cannot enter their sandbox");
	*layers_out = layers | (WEXITSTATUS(status) == 0 ? SANDBOX_SECCOMP : 0);
	return 0;
}

static int
enter_sandbox(struct parent *parent, struct error *error)
{
	const struct settings *settings = parent->settings;
	struct sandbox_identity identity = { .uid = getuid(), .gid = getgid() };
	char empty[SPOOL_DIRECTORY_MAX + 1];
	int length =
	    snprintf(empty, sizeof(empty), "%s%s", settings->state_dir, ROLE_EMPTY_DIRECTORY);

	if (length < 0 || (size_t)length >= sizeof(empty))
		return error_set(error, ERROR_LIMIT, "state-dir is too long");
	if (sandbox_privileged() && sandbox_find_user(settings->worker_user, &identity, error) != 0)
		return -1;
	return sandbox_enter(
	    &identity, empty, NULL, settings->sandbox == SANDBOX_WEAK, &parent->layers, error);
}

/* A session has up to four descriptors; the usual soft limit is meant for other programs. */
static int
raise_descriptor_limit(struct error *error)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		return error_set_errno(error, errno, "cannot read the limit of descriptors");
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
		return error_set_errno(error, errno, "cannot raise the limit of descriptors");
	return 0;
}

/* All that needs files, and then none can be opened any more. */
static int
prepare(struct parent *parent, struct error *error)
{
	const struct settings *settings = parent->settings;

	if (settings->server_name[0] != '\0')
		snprintf(
		    parent->server_name, sizeof(parent->server_name), "%s", settings->server_name);
	else if (gethostname(parent->server_name, sizeof(parent->server_name) - 1) != 0)
		return error_set_errno(error, errno, "cannot find the name of this host");
	if (settings->tls_server_cert_file[0] != '\0' &&
	    tls_context_new(settings, &parent->tls, error) != 0)
		return -1;
	if (raise_descriptor_limit(error) != 0)
		return -1;
	return enter_sandbox(parent, error);
}

/* Sends to the master may wait for room, and the ends of children are read like a channel. */
static int
watch(struct parent *parent, struct error *error)
{
	int flags = fcntl(ROLE_FD_MASTER, F_GETFL);
	sigset_t children;

	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	if (flags < 0 || fcntl(ROLE_FD_MASTER, F_SETFL, flags & ~O_NONBLOCK) != 0 ||
	    sigprocmask(SIG_BLOCK, &children, NULL) != 0)
		return error_set_errno(error, errno, "cannot prepare the channel to the master");
	parent->signal_fd = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
	if (parent->signal_fd < 0)
		return error_set_errno(error, errno, "cannot watch for children");
	return 0;
}

static void
free_parent(struct parent *parent)
{
	tls_context_free(parent->tls);
	settings_free(parent->settings);
	free(parent->children);
}

int
main(void)
{
	struct parent parent = { .signal_fd = -1 };
	int status = ROLE_EXIT_FAILED;
	struct role_start start;
	struct error error;
	uint32_t layers = 0;
	char text[128];

	if (role_start("worker-parent", ROLE_FD_LOG, &start, &error) != 0) {
		log_write(&start.log, LOG_LEVEL_ERROR, "cannot start: %s", error.text);
		return ROLE_EXIT_FAILED;
	}
	parent.settings = start.settings;
	parent.log = start.log;
	if (prepare(&parent, &error) == 0 && try_filter(&parent, &layers, &error) == 0 &&
	    watch(&parent, &error) == 0 &&
	    role_ready(layers, sandbox_layers_text(layers, text, sizeof(text)), &error) == 0)
		status = serve(&parent);
	else
		log_write(&parent.log, LOG_LEVEL_ERROR, "cannot start: %s", error.text);
	free_parent(&parent);
	return status;
}
