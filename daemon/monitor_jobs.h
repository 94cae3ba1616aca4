/*
 * Jobs of the monitor: what monitor_jobs.c (their life, locks and time), monitor_login.c (opening)
 * and monitor_update.c (updating and recovery) need of each other.
 */
#ifndef QPOPPER_DAEMON_MONITOR_JOBS_H
#define QPOPPER_DAEMON_MONITOR_JOBS_H

#include "daemon/monitor.h"

/* ---- monitor_jobs.c ---- */

/* A new job in the monitor's list; NULL only when memory is exhausted. */
struct job *monitor_job_new(
    struct monitor *monitor, enum job_kind kind, uint64_t session, uint32_t worker);
/* Release whatever the job holds; it leaves the list at the end of the round. */
void monitor_job_finish(struct monitor *monitor, struct job *job);
/* Its agent, if it has one, has given its result, or none is wanted: it is ended. */
void monitor_job_forget_agent(struct monitor *monitor, struct job *job);
/*
 * It cannot go on: answer the worker by the kind of job and error, then finish. A recovery is put
 * off instead, with what it holds: its journal may be in force.
 */
void monitor_job_failed(struct monitor *monitor, struct job *job, const struct error *error);
void monitor_release_dot_lock(struct monitor *monitor, struct job *job);

/* ---- monitor_places.c ---- */

/* Fill job->names and what is private from the session's user and, for a virtual one, passwd-file.
 */
int monitor_job_names(struct monitor *monitor, struct job *job, const struct monitor_session *entry,
    struct error *error);
/*
 * Open the shared ones among the directories of the job unless they are open, and find out whether
 * they are (they become private where not). Hash directories are made for a login, see
 * check-hash-dir.
 */
int monitor_job_places(struct monitor *monitor, struct job *job, struct error *error);
void monitor_job_close_places(struct job *job);
/* Whether the first `shared` bytes of a directory of struct spool_names are spool-dir. */
bool monitor_in_spool_dir(const struct monitor *monitor, const char *directory, uint32_t shared);
/* Open a directory below spool-dir in which a monitor noted a dot-lock. */
int monitor_open_noted_directory(struct monitor *monitor, const char *directory, uint32_t shared,
    int *fd_out, struct error *error);
/* Remove the session file of a session that is over; lock_fd (-1: nothing to do) stays open. */
void monitor_remove_session_file(struct monitor *monitor, const struct job *job, int lock_fd);
/*
 * check-old-spool-loc: where the plain spool-dir holds a session file with mail, the session of
 * this login works there.
 */
int monitor_check_old_session(struct monitor *monitor, struct job *job, struct error *error);

/* ---- monitor_login.c ---- */

void monitor_login_failed(
    struct monitor *monitor, struct job *job, enum login_status status, const char *reason);
/* The user has no spool: an empty maildrop needs no agent. */
void monitor_open_empty(struct monitor *monitor, struct job *job);
/* The spool is as it was when it was last indexed: false if not. */
bool monitor_open_cached(struct monitor *monitor, struct job *job);
/* AGENT_OPENED: hand the maildrop on to the worker. */
void monitor_opened(struct monitor *monitor, struct job *job, struct message *message);
/* The entry of passwd-file (re-read when it has changed), or NULL. Borrowed until the next call. */
const struct passwd_file_user *monitor_virtual_user(struct monitor *monitor, const char *name);

/* ---- monitor_cache.c ---- */

struct monitor_cache *monitor_cache_new(void); /* NULL only when memory is exhausted */
void monitor_cache_free(struct monitor_cache *cache);
/*
 * Remember what an agent has indexed, where it may be used again: the tail, or the memfd that was
 * checked (table_fd, duplicated; -1 without).
 */
void monitor_cache_store(struct monitor *monitor, const struct job *job,
    const struct message_login_result *result, const unsigned char *tail, size_t tail_size,
    int table_fd);
/* Send the worker the table of an unchanged spool; false where an agent must look. */
bool monitor_cache_open(struct monitor *monitor, struct job *job);
/* The last large table of the job's maildrop, for its agent: borrowed, -1 for none. */
int monitor_cache_table(struct monitor *monitor, const struct job *job);

/* ---- monitor_index.c ---- */

/* AGENT_INDEX: keep the images until the agent's result. False if they are not what they say. */
bool monitor_index_received(struct job *job, struct message *message);
/* Whether the memfd of a table is sealed and of its size, so that it may be passed on. */
bool monitor_index_table_valid(int fd, uint32_t count, uint32_t strings_size);
/* The update is done: what the agent has sent is the maildrop's table now. */
void monitor_index_updated(struct monitor *monitor, struct job *job);
/* Write the image that the job received into the maildrop's index file, later. */
void monitor_index_keep(struct monitor *monitor, struct job *job);
/* The maildrop's index file, opened for its agent; -1 for none. */
int monitor_index_open(struct monitor *monitor, const struct job *job);
/* JOB_INDEX: make the new file. False while there is nothing to do but wait. */
bool monitor_index_begin(struct monitor *monitor, struct job *job);
/* JOB_INDEX has ended: the new file takes the place of the old one, or goes. */
void monitor_index_end(struct monitor *monitor, struct job *job, bool complete);

/* Answer the worker that waits for this login. */
void monitor_login_answer(
    struct monitor *monitor, const struct job *job, enum login_status status, const char *reason);

/* ---- monitor_temp_drop.c: sessions with server-mode off ---- */

/* Whether the session works in a temp drop: once the session lock is ours. */
void monitor_temp_drop_decide(struct monitor *monitor, struct job *job);
/*
 * An opening that failed may be tried again: as one into a temp drop, where the agent has found
 * left-over mail, or because the kernel locks were busy. False if not.
 */
bool monitor_temp_drop_again(struct monitor *monitor, struct job *job, enum login_status status);
/*
 * An opening failed, or its agent died: where its journal is in force, the worker is answered, and
 * the job becomes a recovery, which begins when the agent is gone. False if the journal is void.
 */
bool monitor_temp_drop_pending(struct monitor *monitor, struct job *job, const char *reason);
/* The session ends without an update: its mail is put back. False where there is no temp drop. */
bool monitor_temp_drop_end(
    struct monitor *monitor, struct monitor_session *entry, int *session_lock_fd);
/* The same for all sessions of a worker that is gone. */
void monitor_temp_drop_worker_gone(struct monitor *monitor, uint32_t worker);
/* Before mail is put back: a spool must be there, and users may not make one everywhere. */
int monitor_temp_drop_make_spool(
    struct monitor *monitor, const struct job *job, struct error *error);

/* ---- monitor_replace.c: fast-update ---- */

/*
 * Before an update's agent starts: an empty file beside the spool, with its owner and all its
 * attributes, in job->replacement_fd. Where it is not wanted or cannot be made, that stays -1.
 */
void monitor_replacement_make(struct monitor *monitor, struct job *job);
/* The agent has filled and synced it: rename it over the spool. */
int monitor_replacement_use(struct job *job, struct error *error);
/* Remove it if it is still there. */
void monitor_replacement_drop(struct monitor *monitor, struct job *job);

/* ---- monitor_update.c ---- */

/* A job to update the maildrop of a session; takes the lock over (-1: it takes it). NULL: no
 * memory.
 */
struct job *monitor_update_job(
    struct monitor *monitor, struct monitor_session *entry, int session_lock_fd);
/* The descriptor that a worker handed back must be the session lock of its own user. */
int monitor_check_session_lock(const struct job *job, struct error *error);
/* Tell the worker once that its update did not happen. */
void monitor_update_failed(
    struct monitor *monitor, struct job *job, enum update_status status, const char *reason);
/* The update is over, and so is its session. */
void monitor_update_end(struct monitor *monitor, struct job *job);
/*
 * Whether the job may write to the spool, as all with a temp drop do. One that only carries read
 * marks into the index does not, and needs neither dot-lock nor journal.
 */
bool monitor_update_writes(const struct monitor *monitor, const struct job *job);
/* Before an update's agent starts: a journal, and the record of whose it is. */
int monitor_assign_journal(struct monitor *monitor, struct job *job, struct error *error);
/* AGENT_FINISHED. */
void monitor_update_finished(
    struct monitor *monitor, struct job *job, const struct message_update_result *result);
/* The dot-lock of a crashed update is ours again if it is still there. */
void monitor_adopt_dot_lock(struct job *job);
/* A recovery failed: it is tried again later, the locks stay. */
void monitor_defer_recovery(struct monitor *monitor, struct job *job, const char *reason);
/* The agent ended while its journal may be in force: the locks stay, recovery starts at once. */
void monitor_begin_recovery(struct monitor *monitor, struct job *job);

#endif
