/*
 * What of TLS is allowed: protocol versions, cipher suites, signature algorithms, kinds of keys.
 * One place for the worker that offers them, the signer that signs with them, and the check of a
 * configuration.
 */
#ifndef QPOPPER_DAEMON_TLS_POLICY_H
#define QPOPPER_DAEMON_TLS_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <openssl/evp.h>
#include <openssl/ssl.h>

#include "lib/error.h"
#include "lib/settings.h"

/*
 * Bits of tls-options that are passed on to the library. Others weaken the connection, contradict
 * another setting, or mean nothing to a server; they have no effect (tls_check_files_warn says so).
 */
#define TLS_OPTIONS_HONOURED                                                                       \
	((uint64_t)(SSL_OP_DONT_INSERT_EMPTY_FRAGMENTS | SSL_OP_NO_TICKET |                        \
		    SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA))

/* A digest that may be signed. */
struct tls_digest {
	const char *name; /* as it stands in struct message_sign */
	size_t size;	  /* bytes */
	bool legacy;	  /* only where the library's security level is 0 */
};

#define TLS_DIGEST_COUNT 4
extern const struct tls_digest tls_digests[TLS_DIGEST_COUNT];

/* By its name in a message; NULL if it is none that may be signed. */
const struct tls_digest *tls_digest_find(const char *name);

/* A kind of private key that we serve. */
enum tls_key_kind {
	TLS_KEY_RSA,
	TLS_KEY_RSA_PSS,
	TLS_KEY_EC,
	TLS_KEY_ED25519,
	TLS_KEY_KIND_COUNT
};

/* OpenSSL's name of the kind: "RSA", "RSA-PSS", "EC", "ED25519". */
const char *tls_key_kind_name(enum tls_key_kind kind);

/* The kind of a key; ERROR_DENIED when it is none that we serve (EC: P-256, P-384, P-521). */
int tls_key_kind_of(const EVP_PKEY *key, enum tls_key_kind *kind_out, struct error *error);

/*
 * Set versions, cipher list, signature algorithms and options of a server context from settings.
 * ERROR_FORMAT when tls-cipher-list leaves no cipher.
 */
int tls_policy_apply(SSL_CTX *context, const struct settings *settings, struct error *error);

/*
 * Fill error with our words and the reason at the head of the library's queue, which is emptied.
 * Returns -1.
 */
int tls_library_error(struct error *error, enum error_code code, const char *what);

#endif
