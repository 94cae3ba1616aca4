/*
 * qpopper-verifier: checks the passwords of virtual users against the hashes of the passwd-file.
 * One process without any right but to read that file; it holds hashes and, for the time of a
 * check, a password. Trusts the file as its loader does, and of workers only what message_check and
 * the form of credentials let pass.
 *
 * Each check computes one hash, whoever is asked for. Until credentials have come down their pipe a
 * request waits in a list, so that a worker that keeps them back delays nobody but itself.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>

#include "daemon/auth.h"
#include "daemon/role.h"
#include "daemon/sandbox.h"
#include "lib/passwd_file.h"

#define PENDING_MAX 256

enum source_kind {
	SOURCE_MASTER,
	SOURCE_WORKER,
	SOURCE_PIPE
};

/* What an event points to. Workers are in one list, pipes in another. */
struct source {
	enum source_kind kind;
	int fd;
	uint32_t worker;
	uint64_t session; /* of a pipe */
	int64_t deadline; /* of a pipe; seconds */
	struct source *next;
};

/* In order of arrival, which for pipes is that of their deadlines. */
struct source_list {
	struct source *first;
	struct source **end;
	size_t count;
};

struct verifier {
	struct settings *settings;
	struct log *log;
	bool privileged;
	int epoll;
	struct source master;
	struct source_list workers, pending;
	struct passwd_file *users;
	gid_t groups[2];       /* of group-server-mode and group-no-server-mode; (gid_t)-1: none */
	const char *file_name; /* last component of the passwd-file: found from the directory */
	int64_t next_look;     /* seconds; at the file's status */
	struct crypt_data *work;
	char dummy[CRYPT_OUTPUT_SIZE]; /* hash for users who have none */
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
send_verdict(struct verifier *verifier, const struct message_verdict *verdict)
{
	struct error error = { 0 };

	if (auth_verdict_send(ROLE_FD_MONITOR, verdict, &error) == 0)
		return;
	log_write(verifier->log, LOG_LEVEL_ERROR, "%s", error.text);
	if (error.code == ERROR_CLOSED)
		exit(ROLE_EXIT_DONE);
}

static void
send_temporary(struct verifier *verifier, const struct source *request, const char *reason)
{
	struct message_verdict verdict =
	    auth_verdict(request->session, request->worker, VERDICT_TEMPORARY, reason);

	log_write(
	    verifier->log, LOG_LEVEL_ERROR, "worker %u: %s", (unsigned)request->worker, reason);
	send_verdict(verifier, &verdict);
}

/* ---- the passwd-file ---- */

/* Load the file from the working directory; a file that cannot be used leaves the old one. */
static int
load_users(struct verifier *verifier, struct error *error)
{
	const char *path = verifier->settings->passwd_file;
	struct passwd_file *users;
	uid_t default_uid = verifier->privileged ? (uid_t)-1 : getuid();
	gid_t default_gid = verifier->privileged ? (gid_t)-1 : getgid();
	int fd = open(verifier->file_name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	int result;

	if (fd < 0)
		return error_set_errno(error, errno,
		    "user %u cannot read %s (give it to the group of auth-user, mode 640)",
		    (unsigned)getuid(), path);
	result = passwd_file_load_fd(fd, path, true, default_uid, default_gid, &users, error);
	close(fd);
	if (result != 0)
		return -1;
	passwd_file_free(verifier->users);
	verifier->users = users;
	return 0;
}

static void
reload_if_changed(struct verifier *verifier)
{
	struct error error = { 0 };
	int64_t now = now_seconds();

	if (now < verifier->next_look)
		return;
	verifier->next_look = now + 1;
	if (!passwd_file_changed(verifier->users, verifier->file_name))
		return;
	if (load_users(verifier, &error) != 0)
		log_write(verifier->log, LOG_LEVEL_ERROR,
		    "%s; the users loaded before stay in force", error.text);
	else
		log_write(verifier->log, LOG_LEVEL_NOTICE, "%s was read again: %zu users",
		    verifier->settings->passwd_file, passwd_file_count(verifier->users));
}

/* ---- one check ---- */

/* What to compute for a user who cannot log in: the rest of a locked hash, or the hash that was
 * last in use, so that unknown users cost what known ones do. */
static const char *
dummy_hash(const struct verifier *verifier, const struct passwd_file_user *user)
{
	const char *rest = user == NULL || user->hash == NULL ? "" : user->hash;

	rest += strspn(rest, "!*");
	return rest[0] == '$' ? rest : verifier->dummy;
}

/* Virtual users stand in no group of the system: their gid alone counts. */
static uint32_t
groups_of(const struct verifier *verifier, gid_t gid)
{
	return (gid == verifier->groups[0] ? SPOOL_GROUP_SERVER_MODE : 0) |
	       (gid == verifier->groups[1] ? SPOOL_GROUP_NO_SERVER_MODE : 0);
}

static void
judge(const struct verifier *verifier, const struct passwd_file_user *user, bool matches,
    struct message_verdict *verdict)
{
	if (user == NULL) {
		auth_verdict_change(verdict, VERDICT_REFUSED, "no such user in passwd-file");
	} else if (!auth_hash_usable(user->hash)) {
		auth_verdict_change(verdict, VERDICT_REFUSED, "user is locked or has no password");
	} else if (!matches) {
		auth_verdict_change(verdict, VERDICT_REFUSED, "wrong password");
	} else if (verifier->privileged && (int64_t)user->uid <= verifier->settings->block_uid) {
		auth_verdict_change(verdict, VERDICT_REFUSED, "uid is refused by block-uid");
	} else {
		auth_verdict_change(verdict, VERDICT_ACCEPTED, "");
		verdict->uid = user->uid;
		verdict->gid = user->gid;
		verdict->groups = groups_of(verifier, user->gid);
		if (spool_home_valid(user->home))
			memcpy(verdict->home, user->home, strlen(user->home));
	}
}

static void
check_password(struct verifier *verifier, const struct credentials *credentials,
    struct message_verdict *verdict)
{
	const struct passwd_file_user *user = NULL;
	const char *hash;
	bool matches;

	reload_if_changed(verifier);
	verdict->virtual_user = 1;
	if (spool_user_name_valid(credentials->user)) {
		memcpy(verdict->user, credentials->user, strlen(credentials->user));
		user = passwd_file_find(verifier->users, credentials->user);
	}
	if (user != NULL && auth_hash_usable(user->hash))
		hash = user->hash;
	else
		hash = dummy_hash(verifier, user);
	matches = auth_hash_matches(credentials->password, hash, verifier->work);
	judge(verifier, user, matches, verdict);
	if (hash != verifier->dummy && strlen(hash) < sizeof verifier->dummy)
		snprintf(verifier->dummy, sizeof verifier->dummy, "%s", hash);
}

/* ---- sources ---- */

static int
watch(struct verifier *verifier, struct source *source, struct error *error)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = source };

	if (epoll_ctl(verifier->epoll, EPOLL_CTL_ADD, source->fd, &event) != 0)
		return error_set_errno(error, errno, "cannot watch a channel");
	return 0;
}

/* Put a copy of source into list and watch it. Takes over its descriptor, also on failure. */
static int
add_source(struct verifier *verifier, struct source_list *list, const struct source *source,
    struct error *error)
{
	struct source *kept = malloc(sizeof *kept);

	if (kept == NULL) {
		close(source->fd);
		return error_set(error, ERROR_LIMIT, "no memory for a channel");
	}
	*kept = *source;
	if (watch(verifier, kept, error) != 0) {
		close(kept->fd);
		free(kept);
		return -1;
	}
	*list->end = kept;
	list->end = &kept->next;
	list->count++;
	return 0;
}

static void
remove_source(struct verifier *verifier, struct source_list *list, struct source *source)
{
	struct source **link = &list->first;

	while (*link != source)
		link = &(*link)->next;
	*link = source->next;
	if (source->next == NULL)
		list->end = link;
	list->count--;
	/* Closing alone is not enough: the sender may have kept a copy of the descriptor. */
	epoll_ctl(verifier->epoll, EPOLL_CTL_DEL, source->fd, NULL);
	close(source->fd);
	free(source);
}

/* A worker broke the protocol: it gets no more answers. */
static void
cut_off_worker(struct verifier *verifier, uint32_t number, const char *reason)
{
	struct source *worker = verifier->workers.first;

	log_write(
	    verifier->log, LOG_LEVEL_ERROR, "worker %u is cut off: %s", (unsigned)number, reason);
	while (worker != NULL && worker->worker != number)
		worker = worker->next;
	if (worker != NULL)
		remove_source(verifier, &verifier->workers, worker);
}

/* ---- requests ---- */

/* Credentials are there, or broken: answer. False when they are still to come. */
static bool
answer_request(struct verifier *verifier, const struct source *request)
{
	struct message_verdict verdict =
	    auth_verdict(request->session, request->worker, VERDICT_REFUSED, "");
	struct credentials credentials;
	struct error error = { 0 };

	if (auth_credentials_read(request->fd, &credentials, &error) == 0) {
		check_password(verifier, &credentials, &verdict);
		explicit_bzero(&credentials, sizeof credentials);
		send_verdict(verifier, &verdict);
		return true;
	}
	if (error.code == ERROR_TIMEOUT)
		return false;
	send_temporary(verifier, request, error.text);
	if (error.code == ERROR_FORMAT)
		cut_off_worker(verifier, request->worker, error.text);
	return true;
}

static void
add_pending(struct verifier *verifier, const struct source *request)
{
	struct error error = { 0 };

	if (add_source(verifier, &verifier->pending, request, &error) != 0)
		send_temporary(verifier, request, error.text);
}

static void
take_request(struct verifier *verifier, uint32_t worker, struct message *message)
{
	const struct source request = { .kind = SOURCE_PIPE,
		.fd = message_take_fd(message, 0),
		.worker = worker,
		.session = message->payload.session.session,
		.deadline = now_seconds() + AUTH_CREDENTIALS_SECONDS };

	if (!auth_is_pipe(request.fd) || fcntl(request.fd, F_SETFL, O_NONBLOCK) != 0) {
		send_temporary(verifier, &request, "the descriptor of a request is not a pipe");
		cut_off_worker(verifier, worker, "the descriptor of a request is not a pipe");
	} else if (verifier->pending.count >= PENDING_MAX) {
		send_temporary(verifier, &request, "too many requests wait for credentials");
	} else if (!answer_request(verifier, &request)) {
		add_pending(verifier, &request);
		return;
	}
	close(request.fd);
}

static void
serve_worker(struct verifier *verifier, struct source *worker)
{
	struct message message;
	struct error error = { 0 };
	bool got = false;

	if (message_receive(worker->fd, ROLE_WORKER, ROLE_VERIFIER, &message, &got, &error) != 0) {
		if (error.code == ERROR_CLOSED)
			remove_source(verifier, &verifier->workers, worker);
		else
			cut_off_worker(verifier, worker->worker, error.text);
		return;
	}
	if (!got)
		return;
	take_request(verifier, worker->worker, &message);
	message_close(&message);
}

static void
serve_pipe(struct verifier *verifier, struct source *request)
{
	if (answer_request(verifier, request))
		remove_source(verifier, &verifier->pending, request);
}

static void
give_up_overdue(struct verifier *verifier)
{
	struct source_list *pending = &verifier->pending;

	while (pending->first != NULL && now_seconds() >= pending->first->deadline) {
		send_temporary(verifier, pending->first, "no credentials came in time");
		remove_source(verifier, pending, pending->first);
	}
}

static void
serve_master(struct verifier *verifier)
{
	struct source worker = { .kind = SOURCE_WORKER };
	struct message message;
	struct error error = { 0 };
	bool got = false;

	if (message_receive(ROLE_FD_MASTER, ROLE_MASTER, ROLE_VERIFIER, &message, &got, &error) !=
	    0) {
		if (error.code == ERROR_CLOSED)
			exit(ROLE_EXIT_DONE);
		log_write(verifier->log, LOG_LEVEL_ERROR, "master: %s", error.text);
		exit(ROLE_EXIT_CHANNEL);
	}
	if (!got)
		return;
	worker.fd = message_take_fd(&message, 0);
	worker.worker = message.payload.channel.worker;
	if (add_source(verifier, &verifier->workers, &worker, &error) != 0)
		log_write(verifier->log, LOG_LEVEL_ERROR, "%s", error.text);
	message_close(&message);
}

/* ---- start and loop ---- */

static int
confine(struct verifier *verifier, uint32_t *layers_out, struct error *error)
{
	const struct settings *settings = verifier->settings;
	struct sandbox_identity identity = { 0, 0 };
	char empty[SETTINGS_STRING_MAX + sizeof ROLE_EMPTY_DIRECTORY];

	snprintf(empty, sizeof empty, "%s%s", settings->state_dir, ROLE_EMPTY_DIRECTORY);
	if (verifier->privileged && sandbox_find_user(settings->auth_user, &identity, error) != 0)
		return -1;
	return sandbox_enter(verifier->privileged ? &identity : NULL, empty, settings->passwd_file,
	    settings->sandbox == SANDBOX_WEAK, layers_out, error);
}

static int
allocate(struct verifier *verifier, struct error *error)
{
	verifier->work = calloc(1, sizeof *verifier->work);
	if (verifier->work == NULL ||
	    crypt_gensalt_rn(NULL, 0, NULL, 0, verifier->dummy, sizeof verifier->dummy) == NULL)
		return error_set(error, ERROR_LIMIT, "cannot prepare for crypt");
	verifier->pending.end = &verifier->pending.first;
	verifier->workers.end = &verifier->workers.first;
	verifier->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (verifier->epoll < 0)
		return error_set_errno(error, errno, "cannot make an epoll descriptor");
	verifier->master = (struct source){ .kind = SOURCE_MASTER, .fd = ROLE_FD_MASTER };
	return watch(verifier, &verifier->master, error);
}

/* Before the sandbox: it leaves no way to the group database. */
static void
look_up_groups(struct verifier *verifier)
{
	const char *names[] = { verifier->settings->group_server_mode,
		verifier->settings->group_no_server_mode };

	for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
		if (names[i][0] == '\0' ||
		    auth_group_id(names[i], &verifier->groups[i]) != AUTH_GROUP_FOUND)
			verifier->groups[i] = (gid_t)-1;
	auth_groups_warn(verifier->settings, verifier->log);
}

static int
set_up(struct verifier *verifier, struct error *error)
{
	const struct settings *settings = verifier->settings;
	const char *slash = strrchr(settings->passwd_file, '/');
	uint32_t layers = 0;
	char detail[128];

	if (settings->authentication != AUTHENTICATION_PASSWD_FILE || slash == NULL)
		return error_set(error, ERROR_INTERNAL, "no passwd-file to verify with");
	verifier->file_name = slash + 1;
	verifier->privileged = sandbox_privileged();
	look_up_groups(verifier);
	if (confine(verifier, &layers, error) != 0 || load_users(verifier, error) != 0 ||
	    allocate(verifier, error) != 0 ||
	    sandbox_filter(
		SANDBOX_FILTER_VERIFIER, settings->sandbox == SANDBOX_WEAK, &layers, error) != 0)
		return -1;
	snprintf(detail, sizeof detail, "%zu users", passwd_file_count(verifier->users));
	return role_ready(layers, detail, error);
}

static void
serve_event(struct verifier *verifier, struct source *source)
{
	switch (source->kind) {
	case SOURCE_MASTER:
		serve_master(verifier);
		break;
	case SOURCE_WORKER:
		serve_worker(verifier, source);
		break;
	case SOURCE_PIPE:
		serve_pipe(verifier, source);
		break;
	}
}

/* One event at a time: serving it may end the source of the next one. */
static _Noreturn void
run(struct verifier *verifier)
{
	for (;;) {
		struct epoll_event event;
		int wait = verifier->pending.first == NULL ? -1 : 1000;

		if (epoll_wait(verifier->epoll, &event, 1, wait) > 0)
			serve_event(verifier, event.data.ptr);
		give_up_overdue(verifier);
	}
}

int
main(void)
{
	struct role_start start;
	struct error error = { 0 };
	struct verifier *verifier = calloc(1, sizeof *verifier);

	if (role_start("verifier", ROLE_FD_MONITOR, &start, &error) != 0)
		goto failed;
	if (verifier == NULL) {
		error_set(&error, ERROR_LIMIT, "no memory");
		goto failed;
	}
	verifier->settings = start.settings;
	verifier->log = &start.log;
	if (set_up(verifier, &error) == 0)
		run(verifier);
failed:
	log_write(&start.log, LOG_LEVEL_ERROR, "%s", error.text);
	return ROLE_EXIT_FAILED;
}
