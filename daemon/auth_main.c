/*
 * qpopper-auth, the auth spawner: forks one agent for each password check. Runs as root and lives
 * long, so it reads no password and no hash: what it keeps of a request is the descriptor of a
 * pipe. Trusts the master; of workers only what message_check lets pass.
 *
 * PAM's modules are loaded once, before the forks (auth_pam.c). When their files change the
 * process asks to be renewed: it stops taking requests, finishes the ones it has, and exits with
 * ROLE_EXIT_RENEW. Workers hold their next requests back until the new process is there.
 */
#include "config.h"

#include "daemon/auth.h"

#include <errno.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "daemon/role.h"

#define QUEUE_MAX     256 /* requests that wait for an agent, as descriptors */
#define WATCH_SECONDS 3	  /* between looks at the files that PAM depends on */
#define RENEW_SECONDS 30  /* to wait for a moment without agents before requests are held back */

enum source_kind {
	SOURCE_MASTER,
	SOURCE_SIGNALS,
	SOURCE_WORKER
};

/* What an event points to. Workers are in a list. */
struct source {
	enum source_kind kind;
	int fd;
	uint32_t worker;
	struct source *next;
};

struct agent {
	pid_t pid; /* 0: free */
	uint32_t worker;
	uint64_t session;
	int64_t started; /* seconds */
};

struct spawner {
	struct settings *settings;
	struct log *log;
	struct pam_handle *pam; /* prepared for agents; NULL with shadow passwords */
	int epoll;
	struct source master, signals;
	struct source *workers;
	struct agent *agents; /* settings->auth_processes entries */
	size_t running;
	struct auth_request queue[QUEUE_MAX]; /* ring */
	size_t queue_first, queue_count;
	bool out_of_order; /* the PAM service cannot be used */
	char order_reason[128];
	uint64_t signature;	   /* of the files at start */
	uint64_t latest_signature; /* as last seen */
	int64_t next_watch;	   /* seconds */
	int64_t renew_since;	   /* seconds; 0: nothing has changed */
	bool closing;		   /* no new requests */
};

static int64_t
now_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

/* Without a monitor there is nobody left to serve: the generation is over. */
static void
send_verdict(struct spawner *spawner, const struct message_verdict *verdict)
{
	struct error error = { 0 };

	if (auth_verdict_send(ROLE_FD_MONITOR, verdict, &error) == 0)
		return;
	log_write(spawner->log, LOG_LEVEL_ERROR, "%s", error.text);
	if (error.code == ERROR_CLOSED)
		exit(ROLE_EXIT_DONE);
}

static void
send_temporary(struct spawner *spawner, uint64_t session, uint32_t worker, const char *reason)
{
	struct message_verdict verdict = auth_verdict(session, worker, VERDICT_TEMPORARY, reason);

	send_verdict(spawner, &verdict);
}

/* ---- channels ---- */

static int
watch(struct spawner *spawner, struct source *source, struct error *error)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = source };

	if (epoll_ctl(spawner->epoll, EPOLL_CTL_ADD, source->fd, &event) != 0)
		return error_set_errno(error, errno, "cannot watch a channel");
	return 0;
}

static void
add_worker(struct spawner *spawner, struct message *message)
{
	struct source *worker = calloc(1, sizeof *worker);
	struct error error = { 0 };

	if (worker == NULL) {
		log_write(spawner->log, LOG_LEVEL_ERROR, "no memory for a worker's channel");
		return;
	}
	worker->kind = SOURCE_WORKER;
	worker->worker = message->payload.channel.worker;
	worker->fd = message_take_fd(message, 0);
	if (watch(spawner, worker, &error) != 0) {
		log_write(spawner->log, LOG_LEVEL_ERROR, "%s", error.text);
		close(worker->fd);
		free(worker);
		return;
	}
	if (spawner->closing)
		shutdown(worker->fd, SHUT_RD);
	worker->next = spawner->workers;
	spawner->workers = worker;
}

static void
remove_worker(struct spawner *spawner, struct source *worker)
{
	struct source **link = &spawner->workers;

	while (*link != worker)
		link = &(*link)->next;
	*link = worker->next;
	/* Closing alone is not enough: an agent just forked still has the descriptor. */
	epoll_ctl(spawner->epoll, EPOLL_CTL_DEL, worker->fd, NULL);
	close(worker->fd);
	free(worker);
}

/* A worker broke the protocol in a request: it gets no more answers. */
static void
cut_off_worker(struct spawner *spawner, uint32_t number, const char *reason)
{
	struct source *worker = spawner->workers;

	log_write(
	    spawner->log, LOG_LEVEL_ERROR, "worker %u is cut off: %s", (unsigned)number, reason);
	while (worker != NULL && worker->worker != number)
		worker = worker->next;
	if (worker != NULL)
		remove_worker(spawner, worker);
}

/* ---- agents ---- */

static struct agent *
find_agent(struct spawner *spawner, pid_t pid)
{
	for (int64_t i = 0; i < spawner->settings->auth_processes; i++)
		if (spawner->agents[i].pid == pid)
			return &spawner->agents[i];
	return NULL;
}

static void
start_agent(struct spawner *spawner, const struct auth_request *request)
{
	struct agent *agent = find_agent(spawner, 0);
	pid_t self = getpid();
	pid_t pid = fork();

	if (pid == 0)
		auth_agent_run(spawner->settings, spawner->log, spawner->pam, request, self);
	if (pid < 0)
		log_write(spawner->log, LOG_LEVEL_ERROR, "cannot fork an auth agent: %s",
		    strerrordesc_np(errno));
	close(request->pipe);
	if (pid < 0) {
		send_temporary(spawner, request->session, request->worker, "cannot fork");
		return;
	}
	agent->pid = pid;
	agent->worker = request->worker;
	agent->session = request->session;
	agent->started = now_seconds();
	spawner->running++;
}

static bool
agents_busy(const struct spawner *spawner)
{
	return spawner->running >= (size_t)spawner->settings->auth_processes;
}

static void
start_queued(struct spawner *spawner)
{
	while (spawner->queue_count > 0 && !agents_busy(spawner)) {
		const struct auth_request *request = &spawner->queue[spawner->queue_first];

		start_agent(spawner, request);
		spawner->queue_first = (spawner->queue_first + 1) % QUEUE_MAX;
		spawner->queue_count--;
	}
}

/* What an agent left unsaid is said for it. */
static void
agent_ended(struct spawner *spawner, struct agent *agent, int status)
{
	const struct agent ended = *agent;
	int code = WIFEXITED(status) ? WEXITSTATUS(status) : AUTH_AGENT_FAILED;

	agent->pid = 0;
	spawner->running--;
	if (code == AUTH_AGENT_BAD_CREDENTIALS)
		cut_off_worker(spawner, ended.worker, "credentials break their form");
	if (code == AUTH_AGENT_SENT || code == AUTH_AGENT_BAD_CREDENTIALS)
		return;
	log_write(spawner->log, LOG_LEVEL_ERROR, "auth agent %d ended without a verdict (%s %d)",
	    (int)ended.pid, WIFSIGNALED(status) ? "signal" : "status",
	    WIFSIGNALED(status) ? WTERMSIG(status) : code);
	send_temporary(spawner, ended.session, ended.worker, "the auth agent failed");
}

static void
reap_agents(struct spawner *spawner)
{
	struct signalfd_siginfo information;
	int status;
	pid_t pid;

	/* Signals merge: one of them may stand for several children. */
	if (read(spawner->signals.fd, &information, sizeof information) < 0 && errno != EAGAIN)
		log_write(spawner->log, LOG_LEVEL_ERROR, "cannot read signals: %s",
		    strerrordesc_np(errno));
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		struct agent *agent = find_agent(spawner, pid);

		if (agent != NULL)
			agent_ended(spawner, agent, status);
	}
	start_queued(spawner);
}

/* The verdict follows when the killed agent is reaped. */
static void
kill_overdue_agents(struct spawner *spawner, int64_t now)
{
	for (int64_t i = 0; i < spawner->settings->auth_processes; i++) {
		const struct agent *agent = &spawner->agents[i];

		if (agent->pid != 0 && now - agent->started >= AUTH_AGENT_SECONDS)
			kill(agent->pid, SIGKILL);
	}
}

/* ---- requests ---- */

static void
take_request(struct spawner *spawner, struct source *worker, struct message *message)
{
	struct auth_request request = { message->payload.session.session, worker->worker,
		message_take_fd(message, 0) };
	const char *refusal = NULL;

	if (!auth_is_pipe(request.pipe))
		refusal = "the descriptor of a request is not a pipe";
	else if (spawner->out_of_order)
		refusal = spawner->order_reason;
	else if (spawner->queue_count == QUEUE_MAX)
		refusal = "too many password checks wait";
	if (refusal == NULL && agents_busy(spawner)) {
		spawner->queue[(spawner->queue_first + spawner->queue_count) % QUEUE_MAX] = request;
		spawner->queue_count++;
	} else if (refusal == NULL) {
		start_agent(spawner, &request);
	} else {
		send_temporary(spawner, request.session, request.worker, refusal);
		if (!auth_is_pipe(request.pipe))
			cut_off_worker(spawner, request.worker, refusal);
		close(request.pipe);
	}
}

static void
serve_worker(struct spawner *spawner, struct source *worker)
{
	struct message message;
	struct error error = { 0 };
	bool got = false;

	if (message_receive(worker->fd, ROLE_WORKER, ROLE_AUTH, &message, &got, &error) != 0) {
		if (error.code == ERROR_CLOSED)
			remove_worker(spawner, worker);
		else
			cut_off_worker(spawner, worker->worker, error.text);
		return;
	}
	if (!got)
		return;
	take_request(spawner, worker, &message);
	message_close(&message);
}

static void
serve_master(struct spawner *spawner)
{
	struct message message;
	struct error error = { 0 };
	bool got = false;

	if (message_receive(ROLE_FD_MASTER, ROLE_MASTER, ROLE_AUTH, &message, &got, &error) != 0) {
		if (error.code == ERROR_CLOSED)
			exit(ROLE_EXIT_DONE);
		log_write(spawner->log, LOG_LEVEL_ERROR, "master: %s", error.text);
		exit(ROLE_EXIT_CHANNEL);
	}
	if (!got)
		return;
	add_worker(spawner, &message);
	message_close(&message);
}

/* ---- renewal ---- */

/* A change counts once it has come to rest: package managers replace many files in a row. */
static void
watch_files(struct spawner *spawner, int64_t now)
{
	uint64_t signature;

	if (now < spawner->next_watch || spawner->renew_since != 0)
		return;
	spawner->next_watch = now + WATCH_SECONDS;
	signature = auth_files_signature();
	if (signature != spawner->signature && signature == spawner->latest_signature) {
		log_write(spawner->log, LOG_LEVEL_NOTICE,
		    "PAM files, nsswitch.conf or libraries have changed: renewing");
		spawner->renew_since = now;
	}
	spawner->latest_signature = signature;
}

static bool
idle(const struct spawner *spawner)
{
	return spawner->running == 0 && spawner->queue_count == 0;
}

/* After SHUT_RD workers can send no more, what they sent can still be read, and the end of a
 * channel shows that everything was: no request is lost. */
static void
renew(struct spawner *spawner, int64_t now)
{
	if (spawner->renew_since == 0)
		return;
	if (!spawner->closing && (idle(spawner) || now - spawner->renew_since >= RENEW_SECONDS)) {
		spawner->closing = true;
		for (struct source *worker = spawner->workers; worker; worker = worker->next)
			shutdown(worker->fd, SHUT_RD);
	}
	if (spawner->closing && spawner->workers == NULL && idle(spawner))
		exit(ROLE_EXIT_RENEW);
}

/* ---- start and loop ---- */

static void
preload(struct spawner *spawner, char *detail_out, size_t size)
{
	const char *service = spawner->settings->pam_service;
	struct error error = { 0 };
	unsigned modules;

	if (spawner->settings->authentication == AUTHENTICATION_SHADOW) {
		(void)getpwnam("qpopper-no-such-user");
		snprintf(detail_out, size, "shadow passwords");
	} else if (auth_pam_preload(service, &spawner->pam, &modules, &error) == 0) {
		snprintf(detail_out, size, "PAM service %.60s, %u modules", service, modules);
	} else {
		log_write(spawner->log, LOG_LEVEL_ERROR, "%s", error.text);
		spawner->out_of_order = true;
		snprintf(detail_out, size, "PAM service %.60s cannot be used", service);
		snprintf(spawner->order_reason, sizeof spawner->order_reason, "%s", detail_out);
	}
	auth_groups_warn(spawner->settings, spawner->log);
	spawner->signature = auth_files_signature();
	spawner->latest_signature = spawner->signature;
}

static int
watch_signals(struct spawner *spawner, struct error *error)
{
	sigset_t children;

	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	if (sigprocmask(SIG_BLOCK, &children, NULL) != 0)
		return error_set_errno(error, errno, "cannot block SIGCHLD");
	spawner->signals.kind = SOURCE_SIGNALS;
	spawner->signals.fd = signalfd(-1, &children, SFD_NONBLOCK | SFD_CLOEXEC);
	if (spawner->signals.fd < 0)
		return error_set_errno(error, errno, "cannot make a signalfd");
	return watch(spawner, &spawner->signals, error);
}

static int
set_up(struct spawner *spawner, struct error *error)
{
	char detail[128];

	if (spawner->settings->authentication == AUTHENTICATION_PASSWD_FILE)
		return error_set(error, ERROR_INTERNAL, "passwd-file is qpopper-verifier's work");
	spawner->agents =
	    calloc((size_t)spawner->settings->auth_processes, sizeof *spawner->agents);
	if (spawner->agents == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for the table of agents");
	spawner->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (spawner->epoll < 0)
		return error_set_errno(error, errno, "cannot make an epoll descriptor");
	preload(spawner, detail, sizeof detail);
	spawner->master = (struct source){ .kind = SOURCE_MASTER, .fd = ROLE_FD_MASTER };
	if (watch_signals(spawner, error) != 0 || watch(spawner, &spawner->master, error) != 0)
		return -1;
	return role_ready(0, detail, error);
}

static void
serve_event(struct spawner *spawner, struct source *source)
{
	switch (source->kind) {
	case SOURCE_MASTER:
		serve_master(spawner);
		break;
	case SOURCE_SIGNALS:
		reap_agents(spawner);
		break;
	case SOURCE_WORKER:
		serve_worker(spawner, source);
		break;
	}
}

/* Agents are watched by the second, files less often. */
static int
wait_milliseconds(const struct spawner *spawner)
{
	return spawner->running > 0 || spawner->renew_since != 0 ? 1000 : WATCH_SECONDS * 1000;
}

/* One event at a time: serving it may end the source of the next one. */
static _Noreturn void
run(struct spawner *spawner)
{
	for (;;) {
		struct epoll_event event;
		int count = epoll_wait(spawner->epoll, &event, 1, wait_milliseconds(spawner));
		int64_t now = now_seconds();

		if (count > 0)
			serve_event(spawner, event.data.ptr);
		kill_overdue_agents(spawner, now);
		watch_files(spawner, now);
		renew(spawner, now);
	}
}

int
main(void)
{
	struct role_start start;
	struct error error = { 0 };
	struct spawner *spawner = calloc(1, sizeof *spawner);

	if (role_start("auth", ROLE_FD_MONITOR, &start, &error) != 0)
		goto failed;
	if (spawner == NULL) {
		error_set(&error, ERROR_LIMIT, "no memory");
		goto failed;
	}
	spawner->settings = start.settings;
	spawner->log = &start.log;
	if (set_up(spawner, &error) == 0)
		run(spawner);
failed:
	log_write(&start.log, LOG_LEVEL_ERROR, "%s", error.text);
	return ROLE_EXIT_FAILED;
}
