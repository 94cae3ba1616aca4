/*
 * The logger: see logger.h. Runs as the worker user; what it receives may come from a process that
 * was taken over, so records are decoded by log_record_decode and written as data, never as
 * formats.
 */
#include "config.h"

#include "daemon/logger.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <syslog.h>
#include <systemd/sd-journal.h>
#include <time.h>
#include <unistd.h>

#include "daemon/master.h"
#include "daemon/sandbox.h"
#include "lib/log.h"

#define JOURNAL_SOCKET "/run/systemd/journal/socket"
#define LINE_MAX_BYTES (2 * LOG_RECORD_MAX)
#define JOURNAL_PREFIX "QPOPPER_"
#define RESTART_PAUSE_USEC                                                                         \
	100000u /* one that ends at once must not be replaced at once, for ever */

enum sink {
	SINK_STANDARD_ERROR,
	SINK_TRACE,
	SINK_JOURNAL,
	SINK_SYSLOG
};

struct sinks {
	enum sink sink;
	int trace_fd;
	int facility;
};

/* "Nov 21 13:31:08.123 2026", as trace files have it (reference 17.2). */
static void
format_time(char *out, size_t size)
{
	struct timespec now;
	struct tm local;
	char day[32];
	char year[8];

	clock_gettime(CLOCK_REALTIME, &now);
	localtime_r(&now.tv_sec, &local);
	strftime(day, sizeof day, "%b %d %H:%M:%S", &local);
	strftime(year, sizeof year, "%Y", &local);
	snprintf(out, size, "%s.%03ld %s", day, now.tv_nsec / 1000000, year);
}

/* The record as one line of text. Fields are left out where the text says it all. */
static size_t
format_line(const struct log_record *record, const char *prefix, char *line, size_t size)
{
	int used = snprintf(line, size, "%s%s: %s\n", prefix, record->process, record->text);

	if (used < 0)
		return 0;
	if ((size_t)used >= size) {
		line[size - 2] = '\n';
		return size - 1;
	}
	return (size_t)used;
}

static void
write_line(int fd, const struct log_record *record)
{
	char line[LINE_MAX_BYTES];
	char when[64];
	char prefix[96];
	size_t size;

	format_time(when, sizeof when);
	snprintf(prefix, sizeof prefix, "%s [%ld] ", when, (long)getpid());
	size = format_line(record, prefix, line, sizeof line);
	/* nobody is left who could be told that the log cannot be written */
	while (write(fd, line, size) == -1 && errno == EINTR)
		continue;
}

static void
write_journal(const struct log_record *record, int facility)
{
	struct iovec fields[LOG_FIELDS_MAX + 4];
	char storage[LINE_MAX_BYTES];
	size_t used = 0;
	int count = 0;
	char priority[32];
	char syslog_facility[32];
	char message[LOG_RECORD_MAX + 64];

	snprintf(priority, sizeof priority, "PRIORITY=%d", (int)record->level);
	snprintf(syslog_facility, sizeof syslog_facility, "SYSLOG_FACILITY=%d", facility >> 3);
	snprintf(message, sizeof message, "MESSAGE=%s", record->text);
	fields[count++] = (struct iovec){ priority, strlen(priority) };
	fields[count++] = (struct iovec){ syslog_facility, strlen(syslog_facility) };
	fields[count++] = (struct iovec){ message, strlen(message) };
	for (size_t i = 0; i < record->field_count; i++) {
		int size = snprintf(storage + used, sizeof storage - used, JOURNAL_PREFIX "%s=%s",
		    record->fields[i].name, record->fields[i].value);
		if (size < 0 || (size_t)size >= sizeof storage - used)
			break;
		fields[count++] = (struct iovec){ storage + used, (size_t)size };
		used += (size_t)size + 1;
	}
	if (sd_journal_sendv(fields, count) < 0)
		syslog((int)record->level, "%s", record->text);
}

static void
write_record(const struct sinks *sinks, const struct log_record *record)
{
	switch (sinks->sink) {
	case SINK_STANDARD_ERROR:
		write_line(STDERR_FILENO, record);
		break;
	case SINK_TRACE:
		write_line(sinks->trace_fd, record);
		break;
	case SINK_JOURNAL:
		write_journal(record, sinks->facility);
		break;
	case SINK_SYSLOG:
		syslog((int)record->level, "%s", record->text);
		break;
	}
}

static void
serve(int fd, const struct sinks *sinks)
{
	char datagram[LOG_RECORD_MAX + 1];
	struct log_record record;

	for (;;) {
		ssize_t size = recv(fd, datagram, LOG_RECORD_MAX, 0);
		if (size == -1 && errno == EINTR)
			continue;
		if (size <= 0)
			return; /* the last sender has gone */
		if (log_record_decode(datagram, (size_t)size, &record))
			write_record(sinks, &record);
	}
}

/* A trace file that cannot be opened is worth a record, not the service. */
static void
open_sinks(const struct settings *settings, bool standard_error, struct sinks *sinks)
{
	*sinks = (struct sinks){ .trace_fd = -1, .facility = (int)settings->log_facility };
	openlog("popper", LOG_PID, (int)settings->log_facility);
	if (settings->tracefile[0] != '\0') {
		sinks->trace_fd = open(settings->tracefile,
		    O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY, 0600);
		if (sinks->trace_fd != -1) {
			sinks->sink = SINK_TRACE;
			return;
		}
		syslog(LOG_ERR, "cannot open tracefile %s: %s (it is opened as the user %s)",
		    settings->tracefile, strerror(errno), settings->worker_user);
		if (standard_error)
			fprintf(stderr, "popper: cannot open tracefile %s: %s\n",
			    settings->tracefile, strerror(errno));
	}
	if (standard_error)
		sinks->sink = SINK_STANDARD_ERROR;
	else
		sinks->sink = access(JOURNAL_SOCKET, W_OK) == 0 ? SINK_JOURNAL : SINK_SYSLOG;
}

static void
give_up_rights(const struct settings *settings)
{
	struct sandbox_identity identity;
	struct error error;

	if (sandbox_privileged() &&
	    (sandbox_find_user(settings->worker_user, &identity, &error) == -1 ||
		sandbox_become(identity.uid, identity.gid, &error) == -1)) {
		syslog(LOG_ERR, "logger: %s", error.text);
		_exit(1);
	}
	if (sandbox_harden(&error) == -1 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == -1)
		_exit(1);
}

static void __attribute__((noreturn))
run(const struct settings *settings, bool standard_error, int receive_fd)
{
	const int keep[] = { STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, receive_fd };
	struct sinks sinks;
	struct error error;
	sigset_t none;

	prctl(PR_SET_NAME, "popper-logger", 0, 0, 0);
	signal(SIGINT, SIG_IGN); /* what ends the others is to be logged */
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (sandbox_close_all_but(keep, sizeof keep / sizeof keep[0], &error) == -1)
		_exit(1);
	give_up_rights(settings);
	open_sinks(settings, standard_error, &sinks);
	serve(receive_fd, &sinks);
	_exit(0);
}

int
logger_start(const struct settings *settings, bool standard_error, int send_fd, int receive_fd,
    struct logger *logger_out, struct error *error)
{
	int pair[2] = { send_fd, receive_fd };
	pid_t child;

	if (receive_fd == -1 && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == -1)
		return error_set_errno(error, errno, "socket pair for the log");
	child = fork();
	if (child == -1) {
		error_set_errno(error, errno, "cannot fork the logger");
		if (receive_fd == -1) {
			close(pair[0]);
			close(pair[1]);
		}
		return -1;
	}
	if (child == 0)
		run(settings, standard_error, pair[1]);
	*logger_out = (struct logger){ .pid = child, .send_fd = pair[0], .receive_fd = pair[1] };
	return 0;
}

/* ---- the master's side ---- */

static int on_logger_due(sd_event_source *source, uint64_t usec, void *userdata);

static void
schedule_logger(struct master *master)
{
	sd_event_source_disable_unref(master->logger_source);
	master->logger_source = NULL;
	sd_event_add_time_relative(master->event, &master->logger_source, CLOCK_MONOTONIC,
	    RESTART_PAUSE_USEC, 0, on_logger_due, master);
}

static int
on_logger_exit(sd_event_source *source, const siginfo_t *information, void *userdata)
{
	struct master *master = userdata;

	(void)source;
	(void)information;
	master->logger.pid = 0;
	schedule_logger(master);
	return 0;
}

int
logger_watch(struct master *master)
{
	sd_event_source_disable_unref(master->logger_source);
	master->logger_source = NULL;
	return sd_event_add_child(master->event, &master->logger_source, master->logger.pid,
	    WEXITED, on_logger_exit, master);
}

/* What was sent meanwhile waits in the socket. */
static int
on_logger_due(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct master *master = userdata;
	struct logger fresh;
	struct error error;

	(void)source;
	(void)usec;
	if (master->settings == NULL ||
	    logger_start(master->settings, master->foreground, master->logger.send_fd,
		master->logger.receive_fd, &fresh, &error) == -1) {
		schedule_logger(master);
		return 0;
	}
	master->logger = fresh;
	log_write(&master->log, LOG_LEVEL_ERROR, "the logger has died and was replaced");
	logger_watch(master);
	return 0;
}

int
logger_renew(struct master *master, const struct settings *settings, struct error *error)
{
	struct logger fresh;

	if (logger_start(settings, master->foreground, -1, -1, &fresh, error) == -1)
		return -1;
	sd_event_source_disable_unref(master->logger_source);
	master->logger_source = NULL;
	master_await(master, master->logger.pid);
	close(master->logger.send_fd);
	close(master->logger.receive_fd);
	master->logger = fresh;
	log_start(&master->log, fresh.send_fd, "master", settings->debug);
	logger_watch(master);
	return 0;
}
