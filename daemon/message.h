/*
 * Messages between the processes of the service: one table says for each type who may send it to
 * whom, how large it is and how many descriptors ride with it.
 *
 * Messages travel over SOCK_SEQPACKET pairs, one message a packet: a header and a payload of fixed
 * layout, for some types followed by a tail of variable size. Both ends are programs of the same
 * build on the same machine, so payloads are C structs without padding that is not named; every
 * field is checked by the receiver before use. A message that breaks its row of the table, or a
 * rule of message_check, ends the sender (or, where the receiver is the lesser one, the receiver):
 * there are no error replies.
 *
 * Master hands out channels; who may speak to whom, with <- for answers:
 *
 *   master  -> monitor, worker parent, signer, auth, verifier, worker   CHANNEL, DRAIN
 *   master  -> worker                   CONNECTION     <- CONNECTION_CLOSED, AUTHENTICATED
 *   master  -> worker parent            WORKER_START   <- WORKER_EXITED
 *   worker  -> auth or verifier         AUTH_REQUEST   (credentials follow in a pipe)
 *   auth or verifier -> monitor         VERDICT
 *   monitor -> worker                   LOGIN_RESULT
 *   worker  -> monitor                  UPDATE         <- UPDATE_RESULT
 *   worker  -> monitor                  SESSION_END
 *   worker  -> signer                   SIGN           <- SIGNATURE
 *   agent   -> monitor                  AGENT_OPENED, AGENT_LOCKED, AGENT_INDEX, AGENT_FINISHED
 */
#ifndef QPOPPER_DAEMON_MESSAGE_H
#define QPOPPER_DAEMON_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/error.h"
#include "lib/mbox.h"
#include "lib/spool.h"

#define MESSAGE_SIZE_MAX     8192 /* bytes of a packet, header included */
#define MESSAGE_FDS_MAX	     4
#define MESSAGE_TABLE_INLINE 64 /* messages of a maildrop that travel inside LOGIN_RESULT */

/* Roles, as bits, for the table's sender and receiver columns. */
enum role {
	ROLE_MASTER = 1,
	ROLE_MONITOR = 2,
	ROLE_WORKER_PARENT = 4,
	ROLE_WORKER = 8,
	ROLE_SIGNER = 16,
	ROLE_AUTH = 32,
	ROLE_VERIFIER = 64,
	ROLE_AGENT = 128,
};

/* name, number, senders, receivers, payload struct, maximum tail bytes, min fds, max fds */
#define MESSAGE_TABLE(X)                                                                           \
	X(CHANNEL, 1, ROLE_MASTER,                                                                 \
	    ROLE_MONITOR | ROLE_SIGNER | ROLE_AUTH | ROLE_VERIFIER | ROLE_WORKER,                  \
	    struct message_channel, 0, 1, 1)                                                       \
	X(CHANNEL_GONE, 2, ROLE_MASTER, ROLE_MONITOR, struct message_channel, 0, 0, 0)             \
	X(DRAIN, 3, ROLE_MASTER, ROLE_MONITOR | ROLE_WORKER, struct message_drain, 0, 0, 0)        \
	X(WORKER_START, 4, ROLE_MASTER, ROLE_WORKER_PARENT, struct message_worker, 0, 4, 4)        \
	X(WORKER_EXITED, 5, ROLE_WORKER_PARENT, ROLE_MASTER, struct message_worker, 0, 0, 0)       \
	X(CONNECTION, 6, ROLE_MASTER, ROLE_WORKER, struct message_connection, 0, 1, 1)             \
	X(CONNECTION_CLOSED, 7, ROLE_WORKER, ROLE_MASTER, struct message_session, 0, 0, 0)         \
	X(AUTHENTICATED, 8, ROLE_WORKER, ROLE_MASTER, struct message_session, 0, 0, 0)             \
	X(READY, 9, ROLE_MONITOR | ROLE_WORKER_PARENT | ROLE_SIGNER | ROLE_AUTH | ROLE_VERIFIER,   \
	    ROLE_MASTER, struct message_ready, 0, 0, 0)                                            \
	X(AUTH_REQUEST, 10, ROLE_WORKER, ROLE_AUTH | ROLE_VERIFIER, struct message_session, 0, 1,  \
	    1)                                                                                     \
	X(VERDICT, 11, ROLE_AUTH | ROLE_VERIFIER, ROLE_MONITOR, struct message_verdict, 0, 0, 0)   \
	X(LOGIN_RESULT, 12, ROLE_MONITOR, ROLE_WORKER, struct message_login_result,                \
	    MESSAGE_TABLE_INLINE * sizeof(struct mbox_message), 0, 3)                              \
	X(UPDATE, 13, ROLE_WORKER, ROLE_MONITOR, struct message_update,                            \
	    MESSAGE_TABLE_INLINE * sizeof(struct mbox_message), 1, 2)                              \
	X(UPDATE_RESULT, 14, ROLE_MONITOR, ROLE_WORKER, struct message_update_result, 0, 0, 0)     \
	X(SESSION_END, 15, ROLE_WORKER, ROLE_MONITOR, struct message_session, 0, 0, 1)             \
	X(SIGN, 16, ROLE_WORKER, ROLE_SIGNER, struct message_sign, MESSAGE_SIGN_INPUT_MAX, 0, 0)   \
	X(SIGNATURE, 17, ROLE_SIGNER, ROLE_WORKER, struct message_signature,                       \
	    MESSAGE_SIGNATURE_MAX, 0, 0)                                                           \
	X(AGENT_OPENED, 18, ROLE_AGENT, ROLE_MONITOR, struct message_login_result,                 \
	    MESSAGE_TABLE_INLINE * sizeof(struct mbox_message), 0, 3)                              \
	X(AGENT_LOCKED, 19, ROLE_AGENT, ROLE_MONITOR, struct message_agent_locked, 0, 1, 1)        \
	X(AGENT_FINISHED, 20, ROLE_AGENT, ROLE_MONITOR, struct message_update_result, 0, 0, 0)     \
	X(AGENT_INDEX, 21, ROLE_AGENT, ROLE_MONITOR, struct message_agent_index, 0, 1, 2)

#define MESSAGE_SIGN_INPUT_MAX 1024 /* a digest, or for Ed25519 the TLS CertificateVerify input */
#define MESSAGE_SIGNATURE_MAX  2048 /* RSA up to 16384 bits */
#define MESSAGE_NAME_MAX       64   /* octets of a user name */
#define MESSAGE_DIGEST_MAX     64   /* bytes of a digest, and of a PSS salt */
#define MESSAGE_SECONDS_MAX    (366 * 86400) /* of a drain */
#define MESSAGE_LAYERS_ALL     63	     /* every enum sandbox_layer (sandbox.h) */
#define MESSAGE_PADDING_PKCS1  1	     /* OpenSSL's RSA_PKCS1_PADDING */
#define MESSAGE_PADDING_PSS    6	     /* OpenSSL's RSA_PKCS1_PSS_PADDING */

enum message_type {
#define X(name, number, senders, receivers, payload, tail, min_fds, max_fds)                       \
	MESSAGE_##name = number,
	MESSAGE_TABLE(X)
#undef X
};

struct message_row {
	const char *name;
	unsigned senders, receivers;	   /* enum role, or-ed */
	size_t payload_size, tail_maximum; /* bytes */
	unsigned minimum_fds, maximum_fds;
};

/* The row of a type, NULL if there is no such type. */
const struct message_row *message_row(unsigned type);

struct message_header {
	uint16_t type;
	uint16_t tail_size; /* bytes behind the payload */
	uint32_t reserved;  /* 0 */
};

/* CHANNEL, CHANNEL_GONE: the descriptor leads to worker `worker`, or to a role that was replaced.
 */
struct message_channel {
	uint32_t worker; /* number of the worker, or 0 when a worker gets a channel */
	uint32_t role;	 /* enum role of the other end */
};

struct message_drain {
	uint32_t seconds; /* until sessions that are still there are cut */
	uint32_t reserved;
};

struct message_worker {
	uint32_t worker;
	int32_t status; /* WORKER_EXITED: as waitpid gives it */
};

/* What an agent calls its session when it finishes the update of one that is long over. */
#define MESSAGE_NO_SESSION UINT64_MAX

enum message_connection_flags {
	CONNECTION_IMPLICIT_TLS = 1,
	CONNECTION_LOCAL = 2, /* from a loop-back address */
};

struct message_connection {
	uint64_t session; /* chosen by the master, never reused while the service runs; not 0 */
	uint32_t flags;
	uint16_t peer_port;
	uint16_t local_port;
	char peer_address[48];	/* numeric, NUL-terminated; "": unknown (no internet socket) */
	char local_address[48]; /* likewise */
};

struct message_session {
	uint64_t session;
};

struct message_ready {
	uint32_t layers; /* worker parent: which sandbox layers hold (sandbox.h) */
	uint32_t reserved;
	char detail[128]; /* for the status line; printable, NUL-terminated */
};

/* ---- authentication ---- */

#define CREDENTIALS_MAGIC	 0x51504352u /* "QPCR" */
#define CREDENTIALS_PASSWORD_MAX 512	     /* octets without the NUL */

/*
 * What a worker writes, in one write, into the pipe whose read end it sends with AUTH_REQUEST. It
 * never stands in a process that forks for others.
 */
struct credentials {
	uint32_t magic;
	uint32_t flags; /* 1: inside TLS */
	char user[MESSAGE_NAME_MAX + 1];
	char password[CREDENTIALS_PASSWORD_MAX + 1];
	char peer_address[48];
	char reserved[6]; /* zero */
};
_Static_assert(sizeof(struct credentials) <= 4096, "one atomic pipe write");

enum verdict {
	VERDICT_ACCEPTED = 0,
	VERDICT_REFUSED,   /* unknown, wrong, locked, expired, forbidden: one answer for all */
	VERDICT_TEMPORARY, /* the account source is out of order: [SYS/TEMP] */
	VERDICT_COUNT
};

/* Its groups are enum spool_groups (lib/spool_place.h). */
struct message_verdict {
	uint64_t session;
	uint32_t worker;
	uint32_t verdict; /* enum verdict */
	uint32_t uid;	  /* of the accepted user; the monitor checks block-uid again */
	uint32_t gid;
	uint32_t
	    virtual_user; /* 1: the monitor takes uid, gid and maildrop from its own passwd-file */
	uint32_t groups;  /* in which of the groups of the settings the user is */
	char user[MESSAGE_NAME_MAX + 1]; /* canonical name */
	char reason[127];		 /* for the log, never for the client; printable */
	/*
	 * Home directory of the account, as spool_home_valid wants it; "" for one that is not. Of a
	 * virtual user the monitor takes it from its own passwd-file.
	 */
	char home[SPOOL_DIRECTORY_MAX + 1];
};

/* ---- maildrop ---- */

enum login_status {
	LOGIN_OK = 0,
	LOGIN_REFUSED,	 /* [AUTH] */
	LOGIN_IN_USE,	 /* another session, or the lock stayed busy */
	LOGIN_TEMPORARY, /* [SYS/TEMP] */
	LOGIN_PERMANENT, /* [SYS/PERM]: the spool needs the administrator */
	LOGIN_LEFT_OVER, /* AGENT_OPENED: the session file holds mail, and this is no temp drop yet
			  */
	LOGIN_STATUS_COUNT
};

/*
 * AGENT_OPENED (agent to monitor) and LOGIN_RESULT (monitor to worker). Descriptors in order, each
 * only if its flag is set: spool (O_RDONLY), session lock (AGENT_OPENED: only where the agent took
 * it itself, in a directory that is not the shared one), table memfd. The tail holds the table's
 * messages and strings when there is no memfd; the memfd holds an image (lib/index.h), so that they
 * stand behind its header. Hidden messages are in neither.
 */
enum login_result_flags {
	LOGIN_HAS_SPOOL = 1,
	LOGIN_HAS_LOCK = 2,
	LOGIN_HAS_TABLE = 4,
	LOGIN_RACY = 8, /* identity was racily clean at indexing: verify before use */
	LOGIN_TEMP_DROP =
	    16, /* LOGIN_RESULT: the session works in a temp drop, and always updates */
};

struct message_login_result {
	uint64_t session;
	uint32_t status; /* enum login_status */
	uint32_t flags;
	uint32_t filesystem; /* enum spool_filesystem */
	uint32_t count;	     /* messages */
	uint32_t strings_size;
	uint32_t hidden; /* messages that no client sees; not in count */
	uint64_t total_octets;
	uint64_t open_microseconds; /* time the agent took */
	struct spool_identity identity;
	char user[MESSAGE_NAME_MAX + 1]; /* canonical name */
	char reason[191];		 /* for the log */
};

/*
 * AGENT_INDEX: what is to be remembered of a maildrop, sent before AGENT_OPENED or AGENT_FINISHED
 * while the spool is locked. Descriptors: a sealed memfd with the image of the whole table
 * (lib/index.h); where messages are hidden, a second one without them, for workers.
 */
struct message_agent_index {
	uint64_t session;
	uint32_t count; /* messages, hidden ones included */
	uint32_t strings_size;
	uint32_t hidden;
	uint32_t visible_strings_size; /* of the second image; 0 without one */
	uint32_t filesystem;	       /* enum spool_filesystem */
	uint32_t write;		       /* 1: into the index file; 0: what is there still serves */
	uint64_t total_octets;
	struct spool_identity identity; /* firm */
};

/*
 * UPDATE: descriptors in order: session lock; memfd, only when the records do not fit into the
 * tail. Tail or sealed memfd hold one struct mbox_message for each message that changes, then
 * strings. Flags of a record say what becomes of its message: MBOX_TOMBSTONE, it is deleted;
 * MBOX_READ, it was read. The agent finds the messages again by their unique-ids in the spool as it
 * then is, never by position alone.
 */
struct message_update {
	uint64_t session;
	uint32_t records;      /* 0: mail is only to be put back from a temp drop */
	uint32_t strings_size; /* bytes */
	uint32_t expected;     /* messages in the maildrop as the session saw it */
	uint32_t deleted;      /* how many of the records are deletions; 0: read marks only */
};

enum update_status {
	UPDATE_DONE = 0,
	UPDATE_LOCKED,	  /* a lock stayed busy: nothing was changed */
	UPDATE_TEMPORARY, /* nothing was changed, or recovery is pending: [SYS/TEMP] */
	UPDATE_STATUS_COUNT
};

/* What the agent leaves behind. */
enum update_recovery {
	RECOVERY_NONE = 0, /* the journal is void */
	RECOVERY_PENDING,  /* the journal is in force: recover before the locks are given up */
	RECOVERY_FOREIGN,  /* the journal matches no spool: set it aside */
	RECOVERY_RENAME,   /* none: the new spool stands in a file of its own (fast-update) */
	RECOVERY_COUNT
};

struct message_update_result {
	uint64_t session;
	uint32_t status; /* enum update_status */
	uint32_t deleted;
	uint64_t deleted_octets;
	uint32_t left;
	uint32_t recovery; /* enum update_recovery; 0 in UPDATE_RESULT */
	uint64_t left_octets;
	char reason[192]; /* for the log */
};

/* The descriptor is the locked spool: the monitor keeps a duplicate until the journal is void. */
struct message_agent_locked {
	uint64_t session;
	uint64_t dot_lock_device; /* 0 where the monitor took the dot-lock itself */
	uint64_t dot_lock_inode;
};

/* ---- signing ---- */

enum sign_kind {
	SIGN_DIGEST = 1,  /* tail is a digest; RSA PKCS#1, RSA-PSS or ECDSA over it */
	SIGN_MESSAGE = 2, /* tail is the message itself (Ed25519, Ed448) */
};

struct message_sign {
	uint32_t request; /* echoed */
	uint16_t kind;
	uint16_t padding;     /* OpenSSL RSA_*_PADDING, 0 for other keys */
	char digest_name[24]; /* OpenSSL name, "" for SIGN_MESSAGE; NUL-terminated */
	char mgf1_name[24];
	int32_t salt_length; /* RSA-PSS, bytes; -1: as long as the digest; 0 without PSS */
	uint32_t reserved;
};

enum signature_status {
	SIGNATURE_MADE = 0,
	SIGNATURE_REFUSED, /* the key does not sign such a thing; no tail */
	SIGNATURE_STATUS_COUNT
};

struct message_signature {
	uint32_t request;
	uint32_t status; /* enum signature_status */
};

/* ---- sending and receiving ---- */

/*
 * Any payload: aligned storage for one received message. tail points behind the payload.
 * fds are owned by the receiver of the message: message_take_fd moves one out, message_close
 * closes the rest.
 */
struct message {
	struct message_header header;
	union {
		struct message_channel channel;
		struct message_drain drain;
		struct message_worker worker;
		struct message_connection connection;
		struct message_session session;
		struct message_ready ready;
		struct message_verdict verdict;
		struct message_login_result login_result;
		struct message_update update;
		struct message_update_result update_result;
		struct message_agent_locked agent_locked;
		struct message_agent_index agent_index;
		struct message_sign sign;
		struct message_signature signature;
		unsigned char bytes[MESSAGE_SIZE_MAX - sizeof(struct message_header)];
	} payload;
	const unsigned char *tail;
	size_t tail_size;
	int fds[MESSAGE_FDS_MAX];
	unsigned fd_count;
};

/*
 * Send one message. payload has the size the table gives for type; tail may be NULL. fds are
 * borrowed (the kernel duplicates them). Returns 0; ERROR_LIMIT when the socket is non-blocking
 * and full; ERROR_CLOSED when the peer is gone.
 */
int message_send(int channel, enum message_type type, const void *payload, const void *tail,
    size_t tail_size, const int *fds, unsigned fd_count, struct error *error);

/*
 * Receive one message that sender (one role) may send to receiver (one role). Blocks or not as the
 * socket does; *got_out is false when there is none yet. Returns -1 with ERROR_CLOSED at the end
 * of the channel, ERROR_FORMAT for anything that breaks the table or message_check (descriptors
 * are closed; the text says which rule): the caller then ends the sender.
 */
int message_receive(int channel, enum role sender, enum role receiver, struct message *message_out,
    bool *got_out, struct error *error);

/*
 * Check header, sizes and every field of a message by its type. Pure; used by message_receive.
 * What a tail or memfd of table entries says is the receiver's to check: its size is right.
 */
int message_check(
    const struct message *message, enum role sender, enum role receiver, struct error *error);

/* Move descriptor i out of the message. */
int message_take_fd(struct message *message, unsigned i);

/* Close what was not taken. Safe to call twice. */
void message_close(struct message *message);

/*
 * Put text into a field that must be printable (reason, detail): cut to fit, other octets become
 * '?', the rest of the field is zeroed.
 */
void message_text(char *out, size_t out_size, const char *text);

/* "LOGIN_RESULT", or "unknown". */
const char *message_type_name(unsigned type);

/* Bytes of the payload of a type, 0 if there is no such type. */
size_t message_payload_size(unsigned type);

/* A connected SOCK_SEQPACKET pair, close-on-exec, non-blocking where asked for. */
int message_channel_pair(int pair_out[2], bool nonblocking, struct error *error);

#endif
