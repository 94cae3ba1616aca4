/*
 * The monitor: the small privileged process that turns verdicts into open maildrops.
 *
 * It holds the table session -> verified user, forks user agents, and owns dot-locks, session files
 * and journals on names derived from the verified user. It sees no password and parses neither mail
 * nor protocol. Messages from workers are checked against the table: a worker can speak of its own
 * sessions only.
 *
 * Rooms: monitor.c (loop and channels), monitor_sessions.c (the table), monitor_jobs.c (opening and
 * updating, step by step), monitor_places.c (names and directories), monitor_journal.c and
 * monitor_wipe.c (the pool of journals), monitor_sweep.c (what a monitor that died has left),
 * monitor_recover.c (popper --recover), monitor_temp_drop.c (server-mode off), user_agent*.c (what
 * runs as the mailbox owner).
 */
#ifndef QPOPPER_DAEMON_MONITOR_H
#define QPOPPER_DAEMON_MONITOR_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/message.h"
#include "lib/lock.h"
#include "lib/log.h"
#include "lib/passwd_file.h"
#include "lib/settings.h"
#include "lib/spool.h"

#define MONITOR_AGENTS_MAX 64 /* agents at the same time */
/* Who hangs agents in his own directories harms nobody else: of them at most so many ... */
#define MONITOR_AGENTS_PER_USER	   4  /* ... for one user */
#define MONITOR_AGENTS_PER_UID	   32 /* ... for one uid, which may be that of many virtual users */
#define MONITOR_JOURNALS_MAX	   256
#define MONITOR_AGENT_OPEN_SECONDS 300 /* then an opening agent is killed */
#define MONITOR_AGENT_UPDATE_SECONDS                                                               \
	1800 /* then an updating one is killed and recovery goes on                                \
	      */
#define MONITOR_LOCK_RETRY_MS	  200
#define MONITOR_SESSION_GRACE_MS  500 /* until a session lock that is busy means [IN-USE] */
#define MONITOR_SESSION_RETRY_MS  20
#define MONITOR_RECOVERY_RETRY_MS 30000
#define MONITOR_SWEEP_MS	  1000

/* ---- table of sessions ---- */

enum monitor_session_state {
	SESSION_OPENING = 1,
	SESSION_OPEN,
	SESSION_UPDATING
};

struct monitor_session {
	uint64_t session; /* 0: free slot */
	uint32_t worker;
	uint32_t uid;
	uint32_t gid;
	uint32_t state; /* enum monitor_session_state */
	bool virtual_user;
	bool server_mode; /* the mail stays in the spool (spool_server_mode) */
	bool temp_drop;	  /* the session works in the session file: so, or because it held mail */
	bool old_session; /* the session file is where it was before hash-spool */
	char *home;	  /* home directory, owned; NULL where no file of the session is there */
	char user[MESSAGE_NAME_MAX + 1];
};

struct monitor_sessions;

/* A table for at most maximum sessions, in memory that forked agents do not inherit. */
struct monitor_sessions *monitor_sessions_new(uint32_t maximum);
void monitor_sessions_free(struct monitor_sessions *sessions);
/* The entry of that session if it belongs to that worker, or NULL. Valid until the next change. */
struct monitor_session *monitor_sessions_find(
    struct monitor_sessions *sessions, uint64_t session, uint32_t worker);
/* A new zeroed entry with session and worker set; NULL when it exists already or the table is full.
 */
struct monitor_session *monitor_sessions_add(
    struct monitor_sessions *sessions, uint64_t session, uint32_t worker);
void monitor_sessions_remove(struct monitor_sessions *sessions, uint64_t session);
/* Forget every session of a worker that is gone, but those in SESSION_UPDATING. */
void monitor_sessions_remove_worker(struct monitor_sessions *sessions, uint32_t worker);
/* Call visit for every session of that worker; it must not add or remove any. */
void monitor_sessions_each(struct monitor_sessions *sessions, uint32_t worker,
    void (*visit)(void *context, struct monitor_session *entry), void *context);
uint32_t monitor_sessions_count(const struct monitor_sessions *sessions);

/* ---- journals ---- */

/* Who a journal in force belongs to: written by the monitor alone, so that recovery can trust it.
 */
struct journal_owner {
	uint32_t uid;
	uint32_t gid;
	bool private_directory;
	bool private_session;
	bool temp_drop;
	struct dot_lock dot_lock;
	char user[MESSAGE_NAME_MAX + 1];
	struct spool_names names;
};

struct journal_slot {
	uint32_t number;
	bool busy;
	int journal_fd; /* O_RDWR, flocked; the agent has a copy: nobody else recovers this journal
			   as long as either lives */
	int owner_fd;	/* O_RDWR, flocked: the monitor's alone */
	int sync_fd;	/* owner file, neither readable nor writable: the agent syncs it */
	bool replaced;	/* an old journal that nobody owns was not void, and was set aside */
	bool used;	/* by uid, since it was last clean */
	uint32_t uid;
	int64_t released; /* nanoseconds, CLOCK_MONOTONIC */
};

struct journal_pool {
	int directory_fd;				 /* state-dir/journal */
	struct journal_slot slots[MONITOR_JOURNALS_MAX]; /* those that we hold the lock of */
	uint32_t count;
	bool foreign; /* another process works on a journal, or left one: look again */
};

/* Open (and create) state_dir/journal. */
int journal_pool_open(struct journal_pool *pool, const char *state_dir, struct error *error);
/*
 * Claim the slots whose owner record is in use and that nobody holds (a crash left them); found is
 * called for each, with the slot marked busy. One that cannot be opened does not hold up the
 * others: then the result is -1, with the last error. Free slots are left to whoever needs them
 * first.
 */
int journal_pool_claim(struct journal_pool *pool,
    void (*found)(void *context, struct journal_slot *slot, const struct journal_owner *owner),
    void *context, struct error *error);
/* How many owner records are in use: ours, those of other monitors, those that a crash left. */
uint32_t journal_pool_pending(const struct journal_pool *pool);
/*
 * A free slot for an agent of that uid, created when there is none; marked busy. Its journal is
 * void, and holds nothing of any other uid's (a monitor knows the last uid of a slot only of its
 * own time, so that this holds across a power loss as well).
 */
int journal_slot_take(
    struct journal_pool *pool, uint32_t uid, struct journal_slot **slot_out, struct error *error);
/* Write the owner record; it becomes durable by the agent's fdatasync of sync_fd. */
int journal_slot_assign(
    struct journal_slot *slot, const struct journal_owner *owner, struct error *error);
/*
 * Add the dot-lock that the update's agent took itself, in a private directory. It has a record of
 * its own: that of the owner must not be torn by a power loss once the journal is in force.
 */
int journal_slot_note_lock(
    struct journal_slot *slot, const struct dot_lock *lock, struct error *error);
/* The journal is void: mark the slot free again. */
int journal_slot_release(struct journal_slot *slot, struct error *error);
/* Keep a journal that matches no spool for the administrator: rename it and forget the slot. */
int journal_slot_set_aside(
    struct journal_pool *pool, struct journal_slot *slot, const char *user, struct error *error);

/*
 * monitor_wipe.c: whether no other open file, of any process, is on that journal; false also where
 * the file system cannot tell (it has no leases). Descriptors that share fd's open file do not
 * count.
 */
bool journal_is_ours_alone(int fd);
/*
 * Zero what a former user has left in a void journal; it stays a void one at every instant, and
 * its space stays reserved. *wiped_out is false when it holds what no update of ours writes: such
 * a file is to be replaced.
 */
int journal_wipe(int fd, bool *wiped_out, struct error *error);

/* ---- jobs ---- */

enum job_kind {
	JOB_OPEN,
	JOB_UPDATE,
	JOB_RECOVER,
	JOB_INDEX
};

enum job_phase {
	JOB_QUEUED,   /* waits for room among the agents */
	JOB_LOCKING,  /* tries for session lock and dot-lock until the deadline */
	JOB_RUNNING,  /* an agent is at work */
	JOB_DEFERRED, /* a recovery failed: tried again later, locks kept */
	JOB_FINISHED,
};

struct monitor_cache;
struct monitor_channel;

struct job {
	struct job *next;
	enum job_kind kind;
	enum job_phase phase;
	uint64_t session; /* 0: recovery of what a crash left */
	uint32_t worker;
	uint32_t uid;
	uint32_t gid;
	char user[MESSAGE_NAME_MAX + 1];
	bool private_directory; /* not a shared one: the agent takes the dot-lock */
	bool private_session;	/* the session file is in such a one: the agent takes its lock */
	bool temp_drop;		/* mail is moved into the session file, or back out of it */
	struct spool_names names;
	int directory_fd;      /* of the spool; -1: private, or not opened yet */
	int temp_directory_fd; /* of the session file, likewise */

	int session_lock_fd;
	bool dot_locked;
	struct dot_lock dot_lock;
	uint32_t lock_note; /* number of its entry in our monitor.PID file, from 1; 0: none */
	int spool_fd;	    /* duplicate of the agent's locked spool: keeps the kernel locks */
	struct journal_slot *slot;
	int replacement_fd; /* the new spool of a fast-update, or -1 */
	uint32_t attempts;

	pid_t agent;
	struct monitor_channel *channel; /* to the agent */
	bool agent_locked;		 /* AGENT_LOCKED was seen */
	bool agent_finished;		 /* its result was seen */
	bool recover;			 /* the journal may be in force */
	bool answered;			 /* the worker has its answer */

	struct message_update update; /* JOB_UPDATE */
	void *deletions;	      /* inline records; owned */
	size_t deletions_size;
	int deletions_fd; /* or a memfd */

	int index_fd;	      /* image that the agent sent, or (JOB_INDEX) to be kept */
	int index_visible_fd; /* the same without hidden messages, where there are some */
	struct message_agent_index index; /* what it says */
	int index_file_fd;		  /* JOB_INDEX: the new file; while an agent is forked, the
					     file to read */

	int64_t started_ms; /* CLOCK_MONOTONIC */
	int64_t deadline_ms;
	int64_t next_ms;
	int64_t refresh_ms;
};

/* ---- the process ---- */

enum monitor_channel_kind {
	CHANNEL_MASTER,
	CHANNEL_SIGNALS,
	CHANNEL_WORKER,
	CHANNEL_AUTH,
	CHANNEL_AGENT
};

struct monitor_channel {
	struct monitor_channel *next;
	enum monitor_channel_kind kind;
	int fd;
	uint32_t worker;		 /* CHANNEL_WORKER */
	enum role role;			 /* CHANNEL_AUTH: auth or verifier */
	struct job *job;		 /* CHANNEL_AGENT; NULL once the job is gone */
	bool closed;			 /* to be freed after the current round of events */
	struct monitor_post *first_post; /* CHANNEL_WORKER: what waits until it reads */
	struct monitor_post *last_post;
	int64_t post_count;
};

struct monitor {
	const struct settings *settings;
	struct log *log;
	bool privileged;
	bool draining;
	bool recover_only; /* popper --recover: end when nothing more can be finished */
	int64_t started_ms;
	int epoll_fd;
	int signal_fd;
	int spool_directory_fd; /* spool-dir itself; -1: not needed yet, or not there */
	int temp_directory_fd;	/* the same descriptor where temp-dir is empty */
	int state_directory_fd;
	int self_fd;	       /* our monitor.PID file, flocked while we live */
	uint32_t reused_notes; /* entries of a dead monitor of our process number, at its start */
	struct monitor_channel *channels;
	struct monitor_sessions *sessions;
	struct job *jobs;
	uint32_t agents;
	struct journal_pool journals;
	struct monitor_cache *cache; /* monitor_jobs.h */
	int cache_directory_fd;	     /* of the index files; -1: not open */
	struct passwd_file
	    *passwd_file; /* without hashes; NULL unless authentication = passwd-file */
	int64_t passwd_checked_ms;
	int64_t next_sweep_ms;
	bool others_alive; /* another monitor lives: sweep again */
};

int64_t monitor_now_ms(void);

/* Run until the master is gone (or has drained us) and every job is done. Returns the exit status.
 */
int monitor_run(struct monitor *monitor);

/*
 * Send to a worker, now or as soon as it reads. One that leaves more unread than it has sessions
 * loses its channel.
 */
void monitor_send(struct monitor *monitor, uint32_t worker, enum message_type type,
    const void *payload, const void *tail, size_t tail_size, const int *fds, unsigned fd_count);

/* A channel that the loop watches; NULL when out of memory (fd is closed then). */
struct monitor_channel *monitor_channel_add(
    struct monitor *monitor, enum monitor_channel_kind kind, int fd);
void monitor_channel_close(struct monitor *monitor, struct monitor_channel *channel);

/* monitor_jobs.c: what messages and time bring about. */
void monitor_verdict(
    struct monitor *monitor, const struct message_verdict *verdict, enum role from);
/* False if the worker broke the protocol: its channel is to be closed. */
bool monitor_session_end(struct monitor *monitor, uint32_t worker, struct message *message);
bool monitor_update(struct monitor *monitor, uint32_t worker, struct message *message);
void monitor_agent_message(struct monitor *monitor, struct job *job, struct message *message);
/* The agent's channel has closed: it has finished or died. */
void monitor_agent_gone(struct monitor *monitor, struct job *job);
void monitor_recover(
    struct monitor *monitor, struct journal_slot *slot, const struct journal_owner *owner);
/* Advance every job; returns the milliseconds until the next thing is due, -1 for none. */
int monitor_jobs_run(struct monitor *monitor);

/* monitor_agents.c: forking the agent that a job needs next. */
int monitor_agent_start(struct monitor *monitor, struct job *job, struct error *error);

/* monitor_sweep.c: announce ourselves, and clean up after monitors that died. */
int monitor_announce(struct monitor *monitor, struct error *error);
/*
 * Before a dot-lock is taken in a shared directory: write into our monitor.PID file where it will
 * be, so that whoever finds us dead need not search a tree of directories; after its end: forget
 * it.
 */
void monitor_note_lock(struct monitor *monitor, struct job *job);
void monitor_forget_lock(struct monitor *monitor, struct job *job);
void monitor_sweep(struct monitor *monitor);

/* monitor_recover.c, for popper --recover. Whether all journals are void, or what is left cannot
 * be finished now: it failed, or is locked for longer than mail-lock-timeout. */
bool monitor_recovery_over(const struct monitor *monitor);
/* Log what is left; the exit status. */
int monitor_recovery_report(struct monitor *monitor);

#endif
