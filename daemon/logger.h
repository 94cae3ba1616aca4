/*
 * The logger: the one process that writes log records, to the journal, syslog, a trace file or
 * standard error. The others send datagrams and never wait for a log.
 */
#ifndef QPOPPER_DAEMON_LOGGER_H
#define QPOPPER_DAEMON_LOGGER_H

#include <stdbool.h>
#include <sys/types.h>

#include "lib/error.h"
#include "lib/settings.h"

struct master;

struct logger {
	pid_t pid;	/* 0: it has ended */
	int send_fd;	/* what every process writes to; close-on-exec */
	int receive_fd; /* kept by the master, so that a new logger loses no record */
};

/*
 * Fork a logger for these settings. standard_error: write lines there (foreground run). The process
 * becomes settings->worker_user when privileged, and ends when the last sender has gone. With a
 * receive_fd from a former logger (else -1) it takes that one's place.
 */
int logger_start(const struct settings *settings, bool standard_error, int send_fd, int receive_fd,
    struct logger *logger_out, struct error *error);

/* Replace the master's logger when it ends. Negative errno on failure. */
int logger_watch(struct master *master);

/* A new logger with the new settings; the old one ends with the last process that writes to it. */
int logger_renew(struct master *master, const struct settings *settings, struct error *error);

#endif
