/*
 * TLS for workers: OpenSSL server contexts whose private key lives in the signer.
 *
 * The context is made once in the worker parent and inherited by its workers, so that they share
 * its memory and its session-ticket keys. The certificate chain is read from the file; the key in
 * that context is a handle of our own OpenSSL provider (tls_key.h), which sends every signature
 * request down the worker's channel to the signer.
 */
#ifndef QPOPPER_DAEMON_TLS_H
#define QPOPPER_DAEMON_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "lib/error.h"
#include "lib/settings.h"

struct tls_context;
struct tls_connection;

enum tls_result {
	TLS_DONE,      /* finished, or some octets moved */
	TLS_WANT_READ, /* wait until the socket is readable */
	TLS_WANT_WRITE,
	TLS_CLOSED, /* the peer closed (with or without close_notify) */
	TLS_FAILED, /* error filled */
};

/*
 * Check certificate and key of the settings: readable, PEM, closed to others, key belongs to the
 * certificate, key strong enough for the library's security level; tls-cipher-list leaves a cipher.
 * The private key is read and wiped. Implemented in tls_key_file.c (with tls_check_files_warn).
 * The master never loads OpenSSL: at start, on reload and for --check-config it executes
 * "qpopper-signer --check" with the frozen settings on descriptor 4 (ROLE_FD_SETTINGS): exit
 * status 0 is good, and a line on standard output then is a warning; any other status is a
 * refusal and the line says why.
 */
int tls_check_files(const struct settings *settings, struct error *error);

/*
 * A server context from settings (versions, cipher list, chain). The private key is not read.
 * SSL_MODE_RELEASE_BUFFERS, no renegotiation, no compression, ALPN "pop3" (a client that offers
 * only others is refused, RFC 7301), session tickets.
 */
int tls_context_new(
    const struct settings *settings, struct tls_context **context_out, struct error *error);
void tls_context_free(struct tls_context *context);

/*
 * Set the channel to the signer (SOCK_SEQPACKET, borrowed) that this process uses; must be called
 * in each worker after the fork, and again when the signer was replaced; -1: there is none. It is
 * made blocking with time-outs: a handshake waits for its signature for at most 5 s.
 */
void tls_set_signer(struct tls_context *context, int channel);

/* A server side over the non-blocking socket fd (borrowed). */
int tls_connection_new(struct tls_context *context, int fd, struct tls_connection **connection_out,
    struct error *error);
void tls_connection_free(struct tls_connection *connection); /* no I/O; NULL is allowed */

enum tls_result tls_handshake(struct tls_connection *connection, struct error *error);
enum tls_result tls_read(struct tls_connection *connection, void *buffer, size_t size,
    size_t *got_out, struct error *error);
/*
 * Encrypt and send, up to 128 KiB at once. What was encrypted and not sent counts as not written,
 * at least one octet of it: repeat, after TLS_WANT_* too, with a buffer (the same or another) that
 * begins with the octets that were not written.
 */
enum tls_result tls_write(struct tls_connection *connection, const void *buffer, size_t size,
    size_t *written_out, struct error *error);
/* Send close_notify once, without waiting for the peer's. */
void tls_shutdown(struct tls_connection *connection);

/* Whether decrypted octets wait inside the library, where epoll does not see them. */
bool tls_pending(const struct tls_connection *connection);

/* For the log: "TLSv1.3", "TLS_AES_256_GCM_SHA384", secret bits, resumed or not. Borrowed. */
struct tls_description {
	const char *protocol;
	const char *cipher;
	int bits;
	bool resumed;
};
void tls_describe(const struct tls_connection *connection, struct tls_description *out);

#endif
