/*
 * Where the records of a TLS connection go: many of them leave by one system call.
 *
 * While plain text is encrypted its records are gathered in memory; then they are sent. What the
 * socket does not take waits with the connection, and memory is lent to who has something to wait.
 * All other records (handshake, alerts) are sent as they come.
 */
#ifndef QPOPPER_DAEMON_TLS_OUTPUT_H
#define QPOPPER_DAEMON_TLS_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>

#include <openssl/bio.h>

#include "lib/error.h"

#define TLS_OUTPUT_PLAIN (128u << 10) /* octets of plain text that are encrypted at once */

/* What the connections of a process share. */
struct tls_output_pool {
	BIO_METHOD *method;
	char *spare; /* memory that no connection has; NULL: none */
};

struct tls_output {
	struct tls_output_pool *pool;
	int fd; /* borrowed */
	bool gathering;
	char *records;	/* gathered ones; NULL: none */
	size_t start;	/* first octet not yet sent */
	size_t end;	/* behind the last one */
	size_t plain;	/* octets of plain text that are in there */
	size_t settled; /* of these, as far as tls_output_settle has told */
};

int tls_output_pool_start(struct tls_output_pool *pool, struct error *error);
void tls_output_pool_end(struct tls_output_pool *pool);

/* A BIO that writes to output, which outlives it; NULL: no memory. */
BIO *tls_output_bio(struct tls_output *output);

/* Whether records wait to be sent. */
bool tls_output_waits(const struct tls_output *output);

/* Send what waits: 1: all of it; 0: the socket is full; -1: the connection is broken, see errno. */
int tls_output_send(struct tls_output *output);

/*
 * How many octets of plain text have gone since the last call. Records cannot be told apart any
 * more: it is the share of what was sent, and all of it only when nothing waits.
 */
size_t tls_output_settle(struct tls_output *output);

/* Forget what waits. */
void tls_output_drop(struct tls_output *output);

#endif
