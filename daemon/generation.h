/*
 * A generation: one frozen set of settings and the processes that serve it: a monitor, the account
 * checkers, the signer, the worker parent and its workers. A reload starts a new one and drains the
 * old. A monitor that dies ends its generation; every other process is replaced in place.
 */
#ifndef QPOPPER_DAEMON_GENERATION_H
#define QPOPPER_DAEMON_GENERATION_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "daemon/message.h"
#include "lib/error.h"
#include "lib/settings.h"

#define GENERATION_CHECKERS_MAX 8
#define GENERATIONS_MAX		8 /* old ones that drain at the same time; then the oldest is cut */

struct master;
struct generation;
struct connection;

enum generation_state {
	GENERATION_STARTING,
	GENERATION_RUNNING,
	GENERATION_DRAINING
};

/* One executed role. */
struct process {
	struct generation *generation;
	enum role role;
	uint32_t index; /* among the checkers */
	pid_t pid;	/* 0: not running */
	int fd;		/* channel */
	bool ready;
	uint64_t started; /* microseconds, CLOCK_MONOTONIC */
	sd_event_source *io;
	sd_event_source *child;
	sd_event_source *restart;
};

struct worker {
	struct generation *generation;
	struct worker *next;
	uint32_t number;
	int fd;
	bool retiring; /* gets no more connections; ends with its last session */
	uint32_t sessions;
	uint64_t served;
	struct connection *connections;
	sd_event_source *io;
};

struct generation {
	struct master *master;
	struct generation *next;
	uint32_t number;
	enum generation_state state;
	struct settings *settings; /* owned */
	struct process monitor;
	struct process worker_parent;
	struct process signer;				  /* only with a certificate */
	struct process checkers[GENERATION_CHECKERS_MAX]; /* one auth spawner, or verifiers */
	uint32_t checker_count;
	bool uses_signer;
	struct worker *workers;
	uint32_t worker_count;
	uint32_t layers; /* sandbox of the workers */
	sd_event_source *deadline;
};

/* What a new connection is. */
struct accepted {
	int fd; /* taken over */
	bool implicit_tls;
	struct sockaddr_storage peer;
	struct sockaddr_storage local;
};

/*
 * Start a generation with settings (taken over in any case). It is in the master's list at once;
 * master_generation_ready or _failed follows. -1 when a process could not be started.
 */
int generation_start(struct master *master, struct settings *settings,
    struct generation **generation_out, struct error *error);

/* Hand a connection to a worker; it is refused politely if there is none. */
void generation_connect(struct generation *generation, struct accepted *accepted);

/* No new connections; all others, logged in or not, may go on for that many seconds. */
void generation_retire(struct generation *generation, uint32_t seconds);

/* No new connections, no new logins; open sessions may go on for that many seconds. */
void generation_drain(struct generation *generation, uint32_t seconds);

/* Where too many generations drain, the oldest has had its time. */
void generations_limit(struct master *master);

/* Close every channel: what still runs ends by itself. The generation is freed. */
void generation_end(struct generation *generation);

/* ---- generation_workers.c ---- */

/* Keep enough workers ready. */
void generation_provide_workers(struct generation *generation);
/* Give every worker a new channel to a process that was replaced. */
void generation_reconnect_workers(struct generation *generation, struct process *process);
void generation_end_workers(struct generation *generation);
void generation_retire_workers(struct generation *generation);
void generation_drain_workers(struct generation *generation, uint32_t seconds);

/* ---- spawn.c ---- */

/*
 * Execute helper-dir/qpopper-NAME with that argument (or NULL), a channel to us, the frozen
 * settings and the log; monitor_fd (or -1) becomes ROLE_FD_MONITOR. *channel_out is non-blocking
 * and the caller's.
 */
int spawn_role(struct master *master, const struct settings *settings, const char *name,
    const char *argument, int monitor_fd, pid_t *pid_out, int *channel_out, struct error *error);

/*
 * Run `qpopper-signer --check` on the settings and wait for it: certificate and key are in order,
 * or error says what is not.
 */
int spawn_check_certificate(const struct settings *settings, struct error *error);

#endif
