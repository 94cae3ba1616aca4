/*
 * The master: settings, listening sockets, generations, limits. It holds root as long as the
 * service lives, so it reads no client's byte: it accepts a connection, counts it and hands the
 * descriptor to a worker.
 *
 * Rooms: main.c (command line, run modes), master.c (the loop, reload and end), generation.c
 * (processes of one set of settings), generation_workers.c (workers and the connections on them),
 * spawn.c (executing a role), recover.c (popper --recover), listeners.c, limits.c, logger.c.
 */
#ifndef QPOPPER_DAEMON_MASTER_H
#define QPOPPER_DAEMON_MASTER_H

#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-event.h>

#include "daemon/generation.h"
#include "daemon/limits.h"
#include "daemon/listeners.h"
#include "daemon/logger.h"
#include "lib/log.h"
#include "lib/settings.h"

enum master_mode {
	MASTER_STANDALONE, /* we bound the listening sockets */
	MASTER_SYSTEMD,	   /* systemd did */
	MASTER_SINGLE,	   /* inetd or Accept=yes: one connection, then the end */
};

struct master {
	enum master_mode mode;
	int argc;
	char *const *argv;   /* read again at a reload */
	const char *address; /* first word of the command line, or NULL; in argv */
	int directory_fd;    /* where it was typed: what its relative paths are relative to */
	bool foreground;

	struct settings *settings; /* of the current generation; owned by it */
	struct log log;
	struct logger logger;
	sd_event_source *logger_source;
	sd_event *event;
	struct listeners listeners;
	sd_event_source *listener_sources[LISTENERS_MAX];
	int single_fd; /* MASTER_SINGLE: the connection until it is handed over */

	struct limits *limits;
	struct generation *generations; /* newest first */
	struct generation *current; /* serves new connections; NULL while the first one starts */
	uint64_t next_session;
	uint32_t next_worker;
	uint32_t generation_number;

	bool reloading;
	bool reload_again; /* SIGHUP came while one was under way */
	bool stopping;
	bool served;	   /* a generation was ready once: from then on we never give up */
	uint32_t restarts; /* starts since a monitor last lived for a while */
	sd_event_source *restart_source;
	uint64_t refused;    /* connections refused by a limit since the last record */
	uint64_t refused_at; /* microseconds, CLOCK_MONOTONIC, of that record */
	int status;	     /* exit status */
};

/*
 * Serve until SIGTERM (or, in MASTER_SINGLE, until the one session is over). Everything in master
 * up to single_fd is set by the caller, settings are checked. Returns the exit status.
 */
int master_run(struct master *master);

/* A generation is ready to serve, has failed to start, lost its monitor, or has ended. */
void master_generation_ready(struct master *master, struct generation *generation);
void master_generation_failed(
    struct master *master, struct generation *generation, const char *reason);
void master_generation_ended(struct master *master, struct generation *generation);

/* Wait for a child of which nothing more is wanted to know, without blocking; 0 is nobody. */
void master_await(struct master *master, pid_t pid);

/* A session is over (for MASTER_SINGLE). */
void master_session_closed(struct master *master);

/*
 * recover.c: popper --recover. Finish what interrupted updates have left, serve nobody, log to
 * standard error. Returns the exit status: 0 when nothing is left.
 */
int recover_run(struct master *master);

/* Answer a connection that cannot be served, and close it. */
void master_refuse(int fd, bool implicit_tls, const char *answer);

#endif
