/*
 * Gathering TLS records: see tls_output.h. Runs in the workers; what it sees is encrypted already.
 * OpenSSL 3 gives each record of 16 KiB to its BIO by a call of its own; a system call for each is
 * a third of the cost of sending mail over TLS.
 */
#include "config.h"

#include "daemon/tls_output.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "daemon/tls_policy.h"

/* Records of 16 KiB need less than a hundred octets more each; small ones (RFC 6066) may not fit
 * all, and are then sent in parts. */
#define GATHER_MAX (TLS_OUTPUT_PLAIN + (16u << 10))

/* ---- memory ---- */

static void
give_back(struct tls_output *output)
{
	if (output->pool->spare == NULL)
		output->pool->spare = output->records;
	else
		free(output->records);
	output->records = NULL;
	output->start = output->end = 0;
}

static bool
borrow(struct tls_output *output)
{
	output->records = output->pool->spare != NULL ? output->pool->spare : malloc(GATHER_MAX);
	output->pool->spare = NULL;
	return output->records != NULL;
}

void
tls_output_drop(struct tls_output *output)
{
	if (output->records != NULL)
		give_back(output);
	output->plain = output->settled = 0;
}

/* ---- what OpenSSL writes ---- */

/* Room always comes back: who gathers sends afterwards. */
static int
gather(BIO *bio, struct tls_output *output, const char *octets, size_t size)
{
	if (output->records == NULL && !borrow(output)) {
		errno = ENOMEM;
		return -1;
	}
	if (size > GATHER_MAX - output->end) {
		BIO_set_retry_write(bio);
		return -1;
	}
	memcpy(output->records + output->end, octets, size);
	output->end += size;
	return (int)size;
}

static int
send_octets(BIO *bio, struct tls_output *output, const char *octets, size_t size)
{
	int before = tls_output_send(output);
	ssize_t sent = -1;

	if (before > 0)
		sent = send(output->fd, octets, size, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (before == 0 || (before > 0 && sent < 0 && (errno == EAGAIN || errno == EINTR)))
		BIO_set_retry_write(bio);
	return (int)sent;
}

static int
write_octets(BIO *bio, const char *octets, int size)
{
	struct tls_output *output = BIO_get_data(bio);

	BIO_clear_retry_flags(bio);
	if (size <= 0)
		return 0;
	return output->gathering ? gather(bio, output, octets, (size_t)size)
				 : send_octets(bio, output, octets, (size_t)size);
}

/* Nothing is kept back that a flush could be needed for. */
static long
control(BIO *bio, int command, long number, void *pointer)
{
	(void)bio;
	(void)number;
	(void)pointer;
	return command == BIO_CTRL_FLUSH;
}

int
tls_output_pool_start(struct tls_output_pool *pool, struct error *error)
{
	pool->spare = NULL;
	pool->method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "qpopper");
	if (pool->method == NULL || BIO_meth_set_write(pool->method, write_octets) != 1 ||
	    BIO_meth_set_ctrl(pool->method, control) != 1)
		return tls_library_error(error, ERROR_SYSTEM, "cannot make a BIO method");
	return 0;
}

void
tls_output_pool_end(struct tls_output_pool *pool)
{
	BIO_meth_free(pool->method);
	free(pool->spare);
}

BIO *
tls_output_bio(struct tls_output *output)
{
	BIO *bio = BIO_new(output->pool->method);

	if (bio == NULL)
		return NULL;
	BIO_set_data(bio, output);
	BIO_set_init(bio, 1);
	return bio;
}

/* ---- sending ---- */

bool
tls_output_waits(const struct tls_output *output)
{
	return output->start < output->end;
}

int
tls_output_send(struct tls_output *output)
{
	while (tls_output_waits(output)) {
		ssize_t sent = send(output->fd, output->records + output->start,
		    output->end - output->start, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			return errno == EAGAIN ? 0 : -1;
		output->start += (size_t)sent;
	}
	return 1;
}

size_t
tls_output_settle(struct tls_output *output)
{
	uint64_t gone = output->plain;

	if (tls_output_waits(output))
		gone = gone * output->start / output->end;
	gone -= output->settled;
	output->settled += gone;
	if (!tls_output_waits(output))
		tls_output_drop(output);
	return (size_t)gone;
}
