/*
 * A client's session in a worker: serves what the POP3 engine wants (login, message, update).
 * Trusts the monitor's results as far as message_receive and maildrop_take have checked them;
 * passwords go to the auth channel and are wiped.
 */
#include "config.h"

#include "daemon/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

/* ---- beginning ---- */

void
session_prepare(struct connection *connection)
{
	struct worker *worker = connection->worker;

	connection->host.settings = worker->settings;
	connection->host.server_name = worker->server_name;
	connection->host.tls_offered = worker->tls != NULL && !connection->implicit_tls &&
				       worker->settings->tls_support == TLS_SUPPORT_STLS;
	connection->host.note = session_note;
	connection->host.context = connection;
	connection->mechanism = "";
	connection->result = "none";
}

void
session_greet(struct connection *connection)
{
	uint8_t random[16] = { 0 };

	if (connection->host.apop_offered && getrandom(random, sizeof(random), 0) < 0)
		log_write(connection->worker->log, LOG_LEVEL_ERROR, "no random numbers: %m");
	pop3_start(&connection->engine, &connection->host, connection->implicit_tls, random,
	    &connection->out);
}

void
session_tls_started(struct connection *connection)
{
	connection->user[0] = '\0';
	pop3_tls_started(&connection->engine);
}

/* ---- its end ---- */

/* The monitor forgets the session; the next one of this user can begin. */
static void
give_lock_back(struct worker *worker, uint64_t session, int lock_fd)
{
	struct message_session message = { .session = session };

	worker_post(worker, &worker->monitor, MESSAGE_SESSION_END, &message, NULL, 0, &lock_fd,
	    lock_fd >= 0 ? 1 : 0);
}

/*
 * The session has marks that nobody waits for: those of one that ended without QUIT
 * (update-on-abort), or read marks for the index. They go to the monitor with the session lock.
 */
static void
leave_marks(struct connection *connection)
{
	const struct pop3_session *engine = &connection->engine;
	bool aborted = pop3_abort(&connection->engine);
	bool indexed = strcmp(connection->end, "quit") == 0 && engine->read_count > 0 &&
		       connection->maildrop.image != NULL;
	struct error error;

	if (connection->maildrop.lock_fd < 0 || (!aborted && !indexed))
		return;
	if (maildrop_post_update(connection, &error) != 0) {
		log_write(connection->worker->log, LOG_LEVEL_ERROR, "update for %s: %s",
		    session_user_name(connection), error.text);
	} else if (aborted) {
		connection->figures.deleted = engine->deleted_count;
		connection->figures.deleted_octets = engine->deleted_octets;
		connection->figures.left -= engine->deleted_count;
		connection->figures.left_octets -= engine->deleted_octets;
	}
}

void
session_over(struct connection *connection, const char *end)
{
	struct worker *worker = connection->worker;

	if (connection->end != NULL)
		return;
	connection->end = end;
	if (connection->wait == WAIT_VERDICT)
		worker_cancel_request(worker, connection->session);
	if (connection->engine.state == POP3_AUTHORIZATION_USER && strcmp(end, "quit") != 0)
		session_warn_of_probe(connection, connection->engine.user, POP3_USER_MAX);
	if (connection->logged_in)
		leave_marks(connection);
	session_record(connection, end);
	if (!connection->logged_in)
		return;
	session_record_compatibly(connection);
	if (connection->maildrop.lock_fd >= 0)
		give_lock_back(worker, connection->session, connection->maildrop.lock_fd);
	connection->maildrop.lock_fd = -1;
}

/* Whether the client waits for a status line, so that one of ours is understood. */
static bool
expects_line(const struct connection *connection)
{
	enum pop3_want want = connection->engine.want;

	return connection->phase == CONNECTION_SERVING &&
	       (want == POP3_WANT_INPUT || want == POP3_WANT_LOGIN || want == POP3_WANT_MESSAGE ||
		   want == POP3_WANT_UPDATE);
}

void
session_farewell(struct connection *connection, const char *end, const char *line)
{
	bool polite = expects_line(connection);

	if (connection->phase == CONNECTION_CLOSING || connection->phase == CONNECTION_LINGERING)
		return;
	if (polite) {
		session_notice(connection, line, (int)strlen(line));
		buffer_append_format(&connection->out, "%s\r\n", line);
	}
	session_over(connection, end);
	if (polite)
		connection_finish(connection);
	else
		connection_abort(connection);
}

/* ---- login ---- */

/* A failed login is answered so long after its command that the time tells nothing. */
static int64_t
refusal_time(const struct connection *connection)
{
	int64_t delay = connection->worker->settings->failure_delay * WORKER_SECOND;
	int64_t passed = connection->worker->now - connection->command_at;

	if (delay == 0)
		return connection->worker->now;
	return connection->command_at + (passed / delay + 1) * delay;
}

void
session_wait(struct connection *connection, enum session_wait wait, int64_t until)
{
	connection->wait = wait;
	connection->wait_until = until;
	connection_timer(connection, until);
}

/* Write the credentials into a pipe, in one piece; the read end is the caller's. */
static int
fill_pipe(struct connection *connection, int *read_end_out, struct error *error)
{
	const struct pop3_login *login = connection->engine.login;
	struct credentials credentials = { .magic = CREDENTIALS_MAGIC };
	int ends[2];
	ssize_t written;

	if (pipe2(ends, O_CLOEXEC) != 0)
		return error_set_errno(error, errno, "cannot make a pipe");
	credentials.flags = connection->engine.tls ? 1 : 0;
	memcpy(credentials.user, login->user, sizeof(login->user));
	memcpy(credentials.password, login->password, sizeof(login->password));
	memcpy(credentials.peer_address, connection->peer, sizeof(connection->peer));
	written = write(ends[1], &credentials, sizeof(credentials));
	explicit_bzero(&credentials, sizeof(credentials));
	close(ends[1]);
	if (written == (ssize_t)sizeof(credentials)) {
		*read_end_out = ends[0];
		return 0;
	}
	close(ends[0]);
	return error_set_errno(error, written < 0 ? errno : EIO, "cannot write to a pipe");
}

/* What stands between the login command and an open maildrop is over. */
static bool
login_answer(struct connection *connection, enum pop3_login_status status)
{
	/* in the order of enum pop3_login_status */
	static const char *const results[] = { "ok", "refused", "in-use", "temporary",
		"permanent" };

	connection->wait = WAIT_NOTHING;
	connection->result = results[status];
	if (status == POP3_LOGIN_REFUSED)
		log_write(connection->worker->log, LOG_LEVEL_NOTICE,
		    "[AUTH] Failed attempted login to %s from host (%s) %s", connection->user,
		    connection->peer, connection->peer);
	pop3_login_result(&connection->engine, status, &connection->maildrop.table,
	    connection->user, &connection->out);
	connection->command_failed = status != POP3_LOGIN_OK;
	return true;
}

static bool
login_begin(struct connection *connection)
{
	struct worker *worker = connection->worker;
	struct pop3_login *login = connection->engine.login;
	struct message_session request = { .session = connection->session };
	int seconds = worker->auth.fd >= 0 ? WORKER_VERDICT_SECONDS : WORKER_CHANNEL_SECONDS;
	struct error error;
	int read_end;

	connection->command_at = worker->now;
	connection->mechanism = login->mechanism;
	memcpy(connection->user, login->user, sizeof(connection->user));
	if (login->invalid) {
		explicit_bzero(login->password, sizeof(login->password));
		session_wait(connection, WAIT_ANSWER_TIME, refusal_time(connection));
		return true;
	}
	if (fill_pipe(connection, &read_end, &error) != 0) {
		log_write(worker->log, LOG_LEVEL_ERROR, "login of %s: %s", login->user, error.text);
		return login_answer(connection, POP3_LOGIN_TEMPORARY);
	}
	explicit_bzero(login->password, sizeof(login->password));
	session_wait(connection, WAIT_VERDICT, worker->now + seconds * WORKER_SECOND);
	worker_post(worker, &worker->auth, MESSAGE_AUTH_REQUEST, &request, NULL, 0, &read_end, 1);
	return true;
}

/* A good maildrop: everything that holds from here on. */
static void
login_done(struct connection *connection)
{
	struct worker *worker = connection->worker;
	struct message_session message = { .session = connection->session };

	connection->logged_in = true;
	connection->engine.update_always = connection->maildrop.temp_drop;
	connection->progress = worker->now;
	connection->figures.left = connection->maildrop.table.count;
	connection->figures.left_octets = connection->maildrop.table.total_octets;
	login_answer(connection, POP3_LOGIN_OK);
	worker_post(worker, &worker->master, MESSAGE_AUTHENTICATED, &message, NULL, 0, NULL, 0);
	session_log_login(connection);
}

/* A maildrop that is of no use: its table is not what a table must be. */
static void
login_unusable(struct connection *connection, const struct error *error)
{
	struct worker *worker = connection->worker;

	log_write(
	    worker->log, LOG_LEVEL_ERROR, "maildrop of %s: %s", connection->user, error->text);
	give_lock_back(worker, connection->session, connection->maildrop.lock_fd);
	connection->maildrop.lock_fd = -1;
	maildrop_close(&connection->maildrop);
	maildrop_start(&connection->maildrop);
	login_answer(connection, POP3_LOGIN_TEMPORARY);
}

static void
login_opened(struct connection *connection, struct message *message)
{
	const struct message_login_result *result = &message->payload.login_result;
	struct error error;

	memcpy(connection->user, result->user, sizeof(connection->user));
	connection->figures.open = (int64_t)result->open_microseconds;
	if (connection->figures.auth > connection->figures.open)
		connection->figures.auth -= connection->figures.open;
	if (maildrop_take(&connection->maildrop, connection->worker->images, message, &error) == 0)
		login_done(connection);
	else
		login_unusable(connection, &error);
}

static void
login_failed(struct connection *connection, const struct message_login_result *result)
{
	/* in the order of enum login_status */
	static const enum pop3_login_status statuses[LOGIN_STATUS_COUNT] = { POP3_LOGIN_OK,
		POP3_LOGIN_REFUSED, POP3_LOGIN_IN_USE, POP3_LOGIN_TEMPORARY, POP3_LOGIN_PERMANENT,
		POP3_LOGIN_TEMPORARY };

	if (result->reason[0] != '\0')
		log_write(connection->worker->log, LOG_LEVEL_NOTICE, "login of %s from %s: %s",
		    connection->user, connection->peer, result->reason);
	if (result->status == LOGIN_REFUSED)
		session_wait(connection, WAIT_ANSWER_TIME, refusal_time(connection));
	else
		login_answer(connection, statuses[result->status]);
}

void
session_login_result(struct worker *worker, struct message *message)
{
	const struct message_login_result *result = &message->payload.login_result;
	struct connection *connection = connection_find(worker, result->session);

	if (connection == NULL || connection->wait != WAIT_VERDICT) {
		/* Too late: a maildrop that was opened is given back unused. */
		if (result->status == LOGIN_OK)
			give_lock_back(worker, result->session,
			    message_take_fd(message, result->flags & LOGIN_HAS_SPOOL ? 1 : 0));
		return;
	}
	connection->figures.auth = worker->now - connection->command_at;
	if (result->status == LOGIN_OK)
		login_opened(connection, message);
	else
		login_failed(connection, result);
	connection_run(connection);
}

/* ---- update ---- */

/* result is NULL when none came. */
static void
session_update_done(struct connection *connection, const struct message_update_result *result)
{
	bool done = result != NULL && result->status == UPDATE_DONE;

	connection->wait = WAIT_NOTHING;
	connection->figures.update = connection->worker->now - connection->command_at;
	if (done) {
		connection->figures.deleted = result->deleted;
		connection->figures.deleted_octets = result->deleted_octets;
		connection->figures.left = result->left;
		connection->figures.left_octets = result->left_octets;
	} else if (result != NULL) {
		log_write(connection->worker->log, LOG_LEVEL_NOTICE, "update for %s failed: %s",
		    session_user_name(connection), result->reason);
	}
	pop3_update_result(&connection->engine, done, &connection->out);
	session_over(connection, done ? "quit" : "update-failed");
}

void
session_update_result(struct worker *worker, const struct message_update_result *result)
{
	struct connection *connection = connection_find(worker, result->session);

	if (connection == NULL || connection->wait != WAIT_UPDATE) {
		if (result->status != UPDATE_DONE)
			log_write(worker->log, LOG_LEVEL_WARNING,
			    "what a session that is over had marked was not applied: %s",
			    result->reason);
		return;
	}
	session_update_done(connection, result);
	connection_run(connection);
}

static bool
update_begin(struct connection *connection)
{
	struct worker *worker = connection->worker;
	struct error error;

	connection->command_at = worker->now;
	if (maildrop_post_update(connection, &error) != 0) {
		log_write(worker->log, LOG_LEVEL_ERROR, "update for %s: %s",
		    session_user_name(connection), error.text);
		session_update_done(connection, NULL);
		return true;
	}
	session_wait(connection, WAIT_UPDATE, worker->now + WORKER_UPDATE_SECONDS * WORKER_SECOND);
	return true;
}

void
session_wait_over(struct connection *connection)
{
	switch (connection->wait) {
	case WAIT_VERDICT:
		worker_cancel_request(connection->worker, connection->session);
		log_write(connection->worker->log, LOG_LEVEL_ERROR,
		    "login of %s: no answer from the account check", connection->user);
		login_answer(connection, POP3_LOGIN_TEMPORARY);
		break;
	case WAIT_ANSWER_TIME:
		login_answer(connection, POP3_LOGIN_REFUSED);
		break;
	case WAIT_FIRM_SPOOL:
		connection->wait = WAIT_NOTHING;
		break;
	case WAIT_UPDATE:
		log_write(connection->worker->log, LOG_LEVEL_ERROR,
		    "update for %s: no answer from the monitor", session_user_name(connection));
		session_update_done(connection, NULL);
		break;
	default:
		break;
	}
}

/* ---- what the engine wants ---- */

bool
session_wants_input(const struct connection *connection)
{
	return connection->phase == CONNECTION_SERVING && connection->wait == WAIT_NOTHING &&
	       connection->engine.want == POP3_WANT_INPUT &&
	       buffer_size(&connection->out) < WORKER_OUTPUT_HIGH;
}

/* Give the engine what was read. Passwords do not outlive their command. */
static bool
feed(struct connection *connection)
{
	const char *bytes = buffer_bytes(&connection->in);
	size_t used;

	if (buffer_size(&connection->in) == 0 || !session_wants_input(connection))
		return false;
	pop3_feed(
	    &connection->engine, bytes, buffer_size(&connection->in), &used, &connection->out);
	if (memchr(bytes, '\n', used) != NULL)
		connection->progress = connection->worker->now;
	if (!connection->logged_in)
		explicit_bzero(connection->in.bytes + connection->in.start, used);
	buffer_consume(&connection->in, used);
	return true;
}

static bool
close_session(struct connection *connection)
{
	bool login_failed_last = !connection->logged_in && connection->mechanism[0] != '\0';
	const char *end = "quit";

	if (connection->command_failed || connection->out.overflow)
		end = login_failed_last ? connection->result : "error";
	session_over(connection, end);
	connection_finish(connection);
	return false;
}

bool
session_step(struct connection *connection)
{
	if (connection->wait != WAIT_NOTHING)
		return false;
	switch (connection->engine.want) {
	case POP3_WANT_INPUT:
		return feed(connection);
	case POP3_WANT_FLUSH:
		if (!connection_flush(connection))
			return false;
		pop3_continue(&connection->engine, &connection->out);
		return true;
	case POP3_WANT_TLS:
		if (connection_flush(connection))
			connection_start_tls(connection);
		return false;
	case POP3_WANT_LOGIN:
		return login_begin(connection);
	case POP3_WANT_MESSAGE:
	case POP3_WANT_BODY:
		return body_step(connection);
	case POP3_WANT_UPDATE:
		return update_begin(connection);
	case POP3_WANT_CLOSE:
		return close_session(connection);
	}
	return false;
}
