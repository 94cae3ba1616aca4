/*
 * The worker: the sandboxed process that speaks with clients.
 *
 * It holds many connections in one event loop: TCP and TLS, the POP3 engine, and reading mail from
 * descriptors that the monitor hands it. It opens, connects, locks and executes nothing.
 *
 * Rooms: worker_main.c (the parent that forks workers), worker_loop.c (events, timers, channels),
 * worker_table.c (connections by session and by time), worker_connection.c (one client's socket),
 * worker_session.c (engine, login, update), worker_log.c (what the log is to know of a session),
 * worker_body.c (a maildrop's table and its messages), worker_reader.c (reading ahead, and by
 * threads where a read would block). Everything but the reader threads runs in one thread.
 */
#ifndef QPOPPER_DAEMON_WORKER_H
#define QPOPPER_DAEMON_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/message.h"
#include "daemon/pop3.h"
#include "daemon/tls.h"
#include "lib/buffer.h"
#include "lib/error.h"
#include "lib/log.h"
#include "lib/mbox.h"
#include "lib/mbox_encode.h"
#include "lib/settings.h"
#include "lib/spool.h"

#define WORKER_INPUT_MAX       4096u	    /* octets of a client that wait to be understood */
#define WORKER_OUTPUT_MAX      (256u << 10) /* octets that wait to be sent to a client */
#define WORKER_OUTPUT_HIGH     (96u << 10)  /* from here on nothing is added before sending */
#define WORKER_CHUNK_MAX       (128u << 10) /* bytes of a spool read at once */
#define WORKER_VERDICT_SECONDS 120	    /* from request to LOGIN_RESULT */
#define WORKER_CHANNEL_SECONDS 10	    /* for a dead auth channel to be replaced */
#define WORKER_UPDATE_SECONDS  600	    /* from UPDATE to UPDATE_RESULT */
#define WORKER_LINGER_SECONDS  2	    /* for the client to close after us */
#define WORKER_CLOSING_SECONDS 30	    /* for the client to take the last answer */

#define WORKER_SECOND INT64_C(1000000) /* the clock counts microseconds, CLOCK_MONOTONIC */

struct worker;
struct reader_pool;

/* First member of everything that epoll watches: what its event pointer points to. */
enum worker_source {
	SOURCE_MASTER,
	SOURCE_MONITOR,
	SOURCE_AUTH,
	SOURCE_READERS,
	SOURCE_CONNECTION,
};

/* ---- channels ---- */

struct worker_post;

struct worker_channel {
	enum worker_source source;
	int fd;			   /* -1: the other end is gone */
	struct worker_post *first; /* messages the channel had no room for, oldest first */
	struct worker_post *last;
	bool watching_output; /* EPOLLOUT is armed */
};

/* ---- reader threads (worker_reader.c) ---- */

struct connection;

/* One read of a spool that might block. The thread writes got, error_number and bytes only. */
struct reader_job {
	struct reader_job *next;
	struct connection *owner; /* NULL: the connection is gone and fd is the job's to close */
	int fd;
	off_t offset;
	size_t size;
	ssize_t got; /* as pread returns it */
	int error_number;
	char bytes[];
};

/* ---- a maildrop as its session holds it (worker_body.c) ---- */

struct worker_image;
struct worker_images;

struct maildrop {
	int spool_fd;	     /* -1: there is no spool, the maildrop is empty */
	int lock_fd;	     /* the session lock; -1 once it was given back */
	bool plain_reads;    /* RWF_NOWAIT does not work, but reads do not block */
	bool threaded_reads; /* RWF_NOWAIT does not work, and reads may block */
	bool verify;	     /* messages must be verified before use */
	bool temp_drop;	     /* the mail is to be put back into the spool */
	enum spool_filesystem filesystem;
	struct spool_identity identity; /* under which the table was made */
	struct mbox_table table;	/* borrows from block, or from map */
	void *block;			/* heap copy of a table that came in the message */
	struct worker_image *image;	/* or a sealed memfd */
	uint64_t read_end; /* offset in the spool behind the last message that was sent whole */
	size_t read_ahead; /* bytes to read at once while messages are fetched in their order */
	uint32_t verified_message;		 /* the last one verified, UINT32_MAX: none */
	struct spool_identity verified_identity; /* under which it was */
};

/*
 * What of a spool is in worker->chunk: bytes that were read before identity was seen, so that they
 * are those of the spool under this identity. The next messages may be sent from there.
 */
struct reader_window {
	uint64_t session;
	uint64_t offset; /* in the spool */
	size_t size;	 /* 0: nothing of use is there */
	struct spool_identity identity;
};

/* The message that is being verified or sent. */
struct transfer {
	bool active;
	bool known;   /* the message is good under identity */
	bool settled; /* TOP has what it wanted, or the content is at its end */
	struct mbox_encoder encoder;
	uint64_t position;		/* offset in the spool of the next byte to be sent */
	uint64_t left;			/* bytes of content from there on */
	struct spool_identity identity; /* under which the message is known to be good */
	struct mbox_verifier *verifier; /* while the message is verified, else NULL */
	uint64_t verify_position;
	uint64_t verify_left;
	struct spool_identity verify_identity;
	unsigned restarts; /* of the verification */
	unsigned pauses;   /* for a racy identity to become a firm one */
};

/* ---- a connection ---- */

enum connection_phase {
	CONNECTION_HANDSHAKE, /* TLS is being set up */
	CONNECTION_SERVING,   /* the engine speaks */
	CONNECTION_CLOSING,   /* the last octets are being sent */
	CONNECTION_LINGERING, /* we have shut down and wait for the client to do so */
	CONNECTION_DEAD,      /* freed at the end of the round of events */
};

/* What an engine that wants no input waits for. */
enum session_wait {
	WAIT_NOTHING,
	WAIT_VERDICT,	  /* LOGIN_RESULT */
	WAIT_ANSWER_TIME, /* the instant at which a refusal is answered */
	WAIT_READER,	  /* a reader thread */
	WAIT_FIRM_SPOOL,  /* the tick of a change of the spool to be over */
	WAIT_UPDATE,	  /* UPDATE_RESULT */
};

/* For the session record; microseconds and counts. */
struct session_figures {
	int64_t started;
	int64_t auth;
	int64_t open;
	int64_t update;
	uint32_t deleted;
	uint64_t deleted_octets;
	uint32_t left;
	uint64_t left_octets;
};

struct connection {
	enum worker_source source;
	enum connection_phase phase;
	enum session_wait wait;
	struct worker *worker;
	struct connection *hash_next;
	struct connection *run_next; /* in the list of those to run again */
	struct connection *dead_next;
	bool run_queued;
	uint64_t session;
	int fd;
	struct tls_connection *tls; /* NULL: plain text */
	uint32_t armed;		    /* events epoll reports */
	uint32_t read_event;	    /* event that lets reading go on: TLS may have to write first */
	uint32_t write_event;

	size_t timer_index;
	int64_t timer_at; /* when the timer will look; may be earlier than due */
	int64_t progress; /* last complete command, or last octets taken by the client */
	int64_t wait_until;

	struct buffer in;
	struct buffer out;
	struct pop3_host host;
	struct pop3_session engine;
	struct maildrop maildrop;
	struct transfer transfer;
	struct reader_job *job; /* in flight, else NULL */

	int64_t command_at;	     /* when the login command came, or the QUIT of an update */
	enum pop3_login_status held; /* answer that waits for its time */
	const char *mechanism;	     /* of the last login command, static; "" before it */
	const char *result;	     /* of the last login command, static */
	const char *end;	     /* why the session ended, static; NULL: it has not */
	bool logged_in;
	bool command_failed;   /* the last command was answered -ERR */
	uint32_t errors_noted; /* records of such answers */
	bool input_ended;      /* the client has sent its last octet */
	bool client_gone;      /* and takes nothing any more: epoll does not watch it */
	struct session_figures figures;

	bool implicit_tls;
	uint16_t peer_port;
	char peer[48];		      /* numeric address */
	char user[POP3_USER_MAX + 1]; /* of the last login command, canonical once it succeeded */
};

/* ---- the process ---- */

struct worker {
	const struct settings *settings;
	struct log *log;
	struct tls_context *tls; /* NULL: not configured */
	const char *server_name;
	uint32_t number;
	int epoll_fd;
	int signer_fd;
	struct worker_channel master;
	struct worker_channel monitor;
	struct worker_channel auth; /* or verifier */
	struct reader_pool *readers;
	enum worker_source readers_source;

	int64_t now;
	int64_t drain_at; /* when draining: sessions that are left are cut */
	bool draining;
	bool ending; /* a channel we cannot do without has ended */
	int exit_status;

	struct connection **buckets; /* by session number */
	size_t bucket_mask;
	struct connection **timers; /* heap by timer_at; every connection is in it */
	size_t timer_capacity;
	size_t connection_count;
	struct connection *run_first;
	struct connection *run_last;
	struct connection *dead;

	char *chunk; /* WORKER_CHUNK_MAX bytes for reads that did not block */
	struct worker_images *images;
	struct reader_window window;
	char *spare_output; /* WORKER_OUTPUT_MAX bytes for who sends next; NULL: lent */
};

/* ---- worker_loop.c ---- */

/* Microseconds of CLOCK_MONOTONIC; what happens in one round happens at worker->now. */
int64_t worker_clock(void);

/* Serve until drained or cut off; returns the exit status (enum role_exit). */
int worker_run(struct worker *worker);

/* epoll_ctl for a channel: EPOLL_CTL_ADD or EPOLL_CTL_MOD. */
int worker_watch(struct worker *worker, struct worker_channel *channel, int operation);

/*
 * Send a message, or keep it until the channel has room (or, for auth, is replaced). The
 * descriptors are taken over in every case. Only lack of memory loses a message; it is logged.
 */
void worker_post(struct worker *worker, struct worker_channel *channel, enum message_type type,
    const void *payload, const void *tail, size_t tail_size, const int *fds, unsigned fd_count);

/* Take back an AUTH_REQUEST that still waits for the auth channel. */
void worker_cancel_request(struct worker *worker, uint64_t session);

/* Run the connection again after the other events of this round. */
void worker_run_later(struct connection *connection);

/* To be freed at the end of the round; the phase becomes CONNECTION_DEAD. */
void worker_bury(struct connection *connection);

/* ---- worker_table.c ---- */

/*
 * Allocate an empty table for sessions-per-worker connections, and the worker's chunk. On an error
 * (ENOMEM) the caller frees what there is.
 */
int worker_make_tables(struct worker *worker, struct error *error);

/* Free them; connections are the caller's. */
void worker_free_tables(struct worker *worker);

/* Take a new connection into the table. -1 when memory is exhausted. */
int connection_add(struct worker *worker, struct connection *connection);

/* The living connection of a session, or NULL. */
struct connection *connection_find(const struct worker *worker, uint64_t session);

/* Make sure that connection_due is asked at that time or before. */
void connection_timer(struct connection *connection, int64_t at);

/* timer_at was moved to a later time. */
void connection_timer_moved(struct connection *connection);

/* Take a dead connection out of all tables. */
void connection_free(struct connection *connection);

/* ---- worker_connection.c ---- */

/* A client that the master accepted; fd is taken over. */
void connection_open(struct worker *worker, const struct message_connection *message, int fd);

void connection_event(struct connection *connection, uint32_t events);

/* When the connection must be looked at next if nothing happens before, and what is done then. */
int64_t connection_due(const struct connection *connection);
void connection_timeout(struct connection *connection);

/* Go on with the engine and the socket as far as possible, then arm events and timer. */
void connection_run(struct connection *connection);

/*
 * Send what waits. True when nothing is left; otherwise the socket is full, or the connection is
 * dead (see phase).
 */
bool connection_flush(struct connection *connection);

/* Start TLS; the handshake goes on by itself. */
void connection_start_tls(struct connection *connection);

/* Send what waits, shut down, and linger so that a late octet of the client does no harm. */
void connection_finish(struct connection *connection);

/* Close at once. */
void connection_abort(struct connection *connection);

/* ---- worker_session.c ---- */

/* What the engine is told of its surroundings; before anything else. */
void session_prepare(struct connection *connection);

/* The greeting; TLS (where implicit) is up. */
void session_greet(struct connection *connection);
void session_tls_started(struct connection *connection);

/* Serve what the engine wants; true if it may be asked again at once. */
bool session_step(struct connection *connection);

/* Whether bytes of the client would be understood now. */
bool session_wants_input(const struct connection *connection);

void session_login_result(struct worker *worker, struct message *message);
void session_update_result(struct worker *worker, const struct message_update_result *result);
/* Wait for something, but no longer than until; then session_wait_over follows. */
void session_wait(struct connection *connection, enum session_wait wait, int64_t until);

/* The time of a wait is over. */
void session_wait_over(struct connection *connection);

/*
 * End a session from our side: one last -ERR line where the protocol allows, the
 * record, then the connection is finished or cut. end as in the session record.
 */
void session_farewell(struct connection *connection, const char *end, const char *line);

/* The session is over: write its record and give the session lock back. Only the first call counts.
 */
void session_over(struct connection *connection, const char *end);

/* ---- worker_log.c ---- */

/* The name the session is known by, as far as one was given; borrowed from the connection. */
const char *session_user_name(const struct connection *connection);

/* A line about the client at notice level: "USER at HOST (IP): text". */
void session_notice(const struct connection *connection, const char *text, int size);

/* A warning: the client has named an account and no more. size is the most octets of user shown. */
void session_warn_of_probe(const struct connection *connection, const char *user, int size);

/* What the engine wants to be known (note of struct pop3_host); context is the connection. */
void session_note(void *context, enum pop3_note note, const char *text, size_t size);

/* The login line in the form that log-login asks for, if it asks for one. */
void session_log_login(const struct connection *connection);

/* The record of a session that is over; end as in session_over. */
void session_record(const struct connection *connection, const char *end);

/* The lines of old (reference 17.3 and 17.4), where they are asked for; connection->end is set. */
void session_record_compatibly(const struct connection *connection);

/* ---- worker_images.c ---- */

struct worker_images *worker_images_new(void); /* NULL only when memory is exhausted */
void worker_images_free(struct worker_images *images);
/*
 * The table in the sealed memfd behind fd, of which count, strings_size, spool_size and
 * total_octets are given: checked whole, and filled in. ERROR_FORMAT if it is none. The image is
 * held until it is released.
 */
int worker_image_take(struct worker_images *images, int fd, struct mbox_table *table,
    struct worker_image **image_out, struct error *error);
void worker_image_release(struct worker_image *image); /* NULL is allowed */

/* ---- worker_body.c ---- */

/* The state before there is a maildrop. */
void maildrop_start(struct maildrop *maildrop);

/*
 * Take a maildrop out of a good LOGIN_RESULT, descriptors included. The table is checked whole: an
 * error means that it cannot be used; the lock descriptor is there nevertheless.
 */
int maildrop_take(struct maildrop *maildrop, struct worker_images *images, struct message *message,
    struct error *error);
void maildrop_close(struct maildrop *maildrop);

/*
 * Send the deletions of the session to the monitor, with the session lock: both are out of our
 * hands then. On an error neither is.
 */
int maildrop_post_update(struct connection *connection, struct error *error);

/*
 * Go on with the message that the engine wants to be ready or sent. True if the engine has got what
 * it wanted.
 */
bool body_step(struct connection *connection);

/* A reader thread has finished; the job is freed. */
void body_read_finished(struct connection *connection, struct reader_job *job);

/* Free what a transfer holds. */
void body_drop(struct connection *connection);

/* ---- worker_reader.c ---- */

/* Start threads; *event_fd_out becomes readable when jobs are finished (owned by the pool). */
int reader_pool_start(
    unsigned threads, struct reader_pool **pool_out, int *event_fd_out, struct error *error);

enum reader_result {
	READER_DONE,  /* the bytes are in worker->chunk */
	READER_LATER, /* a thread reads: connection->job is set, body_read_finished follows */
	READER_FAILED,
};

/*
 * Read size bytes (at most WORKER_CHUNK_MAX) of a connection's spool without ever blocking the
 * loop; *got_out may be less, 0 at the end of the spool. What is in memory is read up to ahead
 * bytes (at least size, at most WORKER_CHUNK_MAX). A failure is logged.
 */
enum reader_result reader_read(
    struct connection *connection, uint64_t offset, size_t size, size_t ahead, size_t *got_out);

/*
 * How many bytes are worth reading at once for the message that is being sent: more and more while
 * each message is fetched after the one before it in the spool and nobody else has used
 * worker->chunk in between; 0: no more than the message.
 */
size_t reader_ahead(struct connection *connection, const struct mbox_message *message);

/* The bytes that were read last are the spool's under this identity, seen after the read. */
void reader_keep_window(struct connection *connection, uint64_t offset, size_t size,
    const struct spool_identity *identity);

/*
 * The bytes at offset if they were read under this identity and nothing was read since: pointer
 * into worker->chunk, *size_out how many. NULL: they must be read.
 */
const char *reader_find_window(const struct connection *connection, uint64_t offset,
    const struct spool_identity *identity, size_t *size_out);

/* The finished jobs, oldest first; the caller frees them. */
struct reader_job *reader_finished(struct reader_pool *pool);

#endif
