/*
 * Server contexts and connections over OpenSSL: see tls.h. The context is made in the worker
 * parent, connections live in workers; nothing that a client sends is trusted. RFC 8446, RFC 5246,
 * RFC 7301 (ALPN), RFC 8314 (TLS for mail access).
 */
#include "config.h"

#include "daemon/tls.h"

#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/ssl.h>

#include "daemon/tls_key.h"
#include "daemon/tls_key_file.h"
#include "daemon/tls_output.h"
#include "daemon/tls_policy.h"
#include "daemon/tls_signer.h"

struct tls_context {
	struct tls_key_provider *provider;
	SSL_CTX *library_context;
	struct tls_output_pool output_pool;
};

struct tls_connection {
	struct tls_context *context;
	SSL *library_connection;
	struct tls_output output;
	bool broken; /* after a fatal error nothing more may be sent, not even close_notify */
};

/* ---- contexts ---- */

/* A protocol name as ALPN has it: one octet of length, then the name. */
static const unsigned char alpn_pop3[] = { 4, 'p', 'o', 'p', '3' };

static int
select_alpn(SSL *connection, const unsigned char **chosen, unsigned char *chosen_length,
    const unsigned char *offered, unsigned int offered_length, void *unused)
{
	unsigned char *found;

	(void)connection;
	(void)unused;
	if (SSL_select_next_proto(&found, chosen_length, alpn_pop3, sizeof alpn_pop3, offered,
		offered_length) != OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	*chosen = found;
	return SSL_TLSEXT_ERR_OK;
}

/*
 * Sessions are resumed by tickets only: workers share the ticket keys by inheritance, a cache they
 * would not. One ticket a handshake: a mail client opens one connection after another.
 */
static int
set_sessions(SSL_CTX *library_context, struct error *error)
{
	static const unsigned char identity[] = "qpopper";

	SSL_CTX_set_session_cache_mode(library_context, SSL_SESS_CACHE_OFF);
	if (SSL_CTX_set_session_id_context(library_context, identity, sizeof identity - 1) != 1 ||
	    SSL_CTX_set_num_tickets(library_context, 1) != 1)
		return tls_library_error(error, ERROR_INTERNAL, "session tickets");
	return 0;
}

static int
use_chain(SSL_CTX *library_context, STACK_OF(X509) * chain, struct error *error)
{
	if (SSL_CTX_use_certificate(library_context, sk_X509_value(chain, 0)) != 1)
		return tls_library_error(error, ERROR_DENIED, "the certificate is refused");
	for (int i = 1; i < sk_X509_num(chain); i++)
		if (SSL_CTX_add1_chain_cert(library_context, sk_X509_value(chain, i)) != 1)
			return tls_library_error(
			    error, ERROR_DENIED, "a certificate of the chain is refused");
	return 0;
}

static int
use_certificate_and_key(struct tls_context *context, const char *path, struct error *error)
{
	STACK_OF(X509) *chain = NULL;
	EVP_PKEY *key = NULL;
	int result;

	if (tls_read_chain(path, tls_key_library(context->provider), &chain, error) < 0)
		return -1;
	result = use_chain(context->library_context, chain, error);
	if (result == 0)
		result = tls_key_handle(context->provider, sk_X509_value(chain, 0), &key, error);
	if (result == 0 && SSL_CTX_use_PrivateKey(context->library_context, key) != 1)
		result = tls_library_error(error, ERROR_DENIED, "the private key is refused");
	EVP_PKEY_free(key);
	sk_X509_pop_free(chain, X509_free);
	return result;
}

static int
configure(struct tls_context *context, const struct settings *settings, struct error *error)
{
	SSL_CTX *library_context = context->library_context;

	/* The chain is what the file holds: building one from the trust store would verify it again
	 * in each handshake. */
	SSL_CTX_set_mode(library_context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
					      SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
					      SSL_MODE_NO_AUTO_CHAIN);
	/* a record by one system call and not by two; nothing is kept between records */
	SSL_CTX_set_read_ahead(library_context, 1);
	/* what clients send are passwords: no copy may stay in the library's buffers */
	SSL_CTX_set_options(library_context, SSL_OP_CLEANSE_PLAINTEXT);
	SSL_CTX_set_alpn_select_cb(library_context, select_alpn, NULL);
	if (tls_policy_apply(library_context, settings, error) < 0 ||
	    set_sessions(library_context, error) < 0)
		return -1;
	return use_certificate_and_key(context, settings->tls_server_cert_file, error);
}

int
tls_context_new(
    const struct settings *settings, struct tls_context **context_out, struct error *error)
{
	struct tls_context *context = calloc(1, sizeof *context);

	if (!context)
		return error_set_errno(error, ENOMEM, "TLS context");
	ERR_clear_error();
	if (tls_output_pool_start(&context->output_pool, error) < 0 ||
	    tls_key_provider_new(&context->provider, error) < 0)
		goto fail;
	context->library_context =
	    SSL_CTX_new_ex(tls_key_library(context->provider), NULL, TLS_server_method());
	if (!context->library_context) {
		tls_library_error(error, ERROR_SYSTEM, "cannot make a TLS context");
		goto fail;
	}
	if (configure(context, settings, error) < 0)
		goto fail;
	*context_out = context;
	return 0;
fail:
	tls_context_free(context);
	return -1;
}

void
tls_context_free(struct tls_context *context)
{
	if (!context)
		return;
	SSL_CTX_free(context->library_context);
	tls_key_provider_free(context->provider);
	tls_output_pool_end(&context->output_pool);
	free(context);
}

void
tls_set_signer(struct tls_context *context, int channel)
{
	tls_signer_set_channel(tls_key_signer(context->provider), channel);
}

/* ---- connections ---- */

/* Input by the library's own BIO, output by ours. */
static bool
attach(struct tls_connection *connection, int fd)
{
	BIO *in = BIO_new_socket(fd, BIO_NOCLOSE);
	BIO *out = tls_output_bio(&connection->output);

	if (in == NULL || out == NULL) {
		BIO_free(in);
		BIO_free(out);
		return false;
	}
	SSL_set0_rbio(connection->library_connection, in);
	SSL_set0_wbio(connection->library_connection, out);
	return true;
}

int
tls_connection_new(struct tls_context *context, int fd, struct tls_connection **connection_out,
    struct error *error)
{
	struct tls_connection *connection = calloc(1, sizeof *connection);

	if (!connection)
		return error_set_errno(error, ENOMEM, "TLS connection");
	ERR_clear_error();
	connection->context = context;
	connection->output = (struct tls_output){ .pool = &context->output_pool, .fd = fd };
	connection->library_connection = SSL_new(context->library_context);
	if (!connection->library_connection || !attach(connection, fd)) {
		tls_connection_free(connection);
		return tls_library_error(error, ERROR_SYSTEM, "cannot make a TLS connection");
	}
	SSL_set_accept_state(connection->library_connection);
	*connection_out = connection;
	return 0;
}

void
tls_connection_free(struct tls_connection *connection)
{
	if (!connection)
		return;
	SSL_free(connection->library_connection);
	tls_output_drop(&connection->output);
	free(connection);
}

/* Peers that go away without close_notify are no news in POP3: the protocol has its own end. */
static bool
peer_vanished(int reason, int number)
{
	unsigned long queued = ERR_peek_error();

	if (reason == SSL_ERROR_ZERO_RETURN)
		return true;
	if (reason == SSL_ERROR_SYSCALL)
		return queued == 0 && (number == 0 || number == ECONNRESET || number == EPIPE);
	return reason == SSL_ERROR_SSL && ERR_GET_LIB(queued) == ERR_LIB_SSL &&
	       ERR_GET_REASON(queued) == SSL_R_UNEXPECTED_EOF_WHILE_READING;
}

static enum tls_result
fail(struct tls_connection *connection, int reason, int number, const char *what,
    struct error *error)
{
	connection->broken = true;
	if (tls_signer_take_failure(tls_key_signer(connection->context->provider), error)) {
		ERR_clear_error();
		return TLS_FAILED;
	}
	if (reason == SSL_ERROR_SYSCALL && ERR_peek_error() == 0)
		error_set_errno(error, number, "%s", what);
	else
		tls_library_error(error, ERROR_FORMAT, what);
	return TLS_FAILED;
}

/* What the return value of an operation means. number: errno right after it. */
static enum tls_result
result_of(struct tls_connection *connection, int returned, int number, const char *what,
    struct error *error)
{
	int reason = SSL_get_error(connection->library_connection, returned);

	switch (reason) {
	case SSL_ERROR_NONE:
		return TLS_DONE;
	case SSL_ERROR_WANT_READ:
		return TLS_WANT_READ;
	case SSL_ERROR_WANT_WRITE:
		return TLS_WANT_WRITE;
	default:
		break;
	}
	if (!peer_vanished(reason, number))
		return fail(connection, reason, number, what, error);
	connection->broken = reason != SSL_ERROR_ZERO_RETURN;
	ERR_clear_error();
	return TLS_CLOSED;
}

enum tls_result
tls_handshake(struct tls_connection *connection, struct error *error)
{
	int returned;

	ERR_clear_error();
	errno = 0;
	returned = SSL_do_handshake(connection->library_connection);
	return result_of(connection, returned, errno, "TLS handshake", error);
}

enum tls_result
tls_read(struct tls_connection *connection, void *buffer, size_t size, size_t *got_out,
    struct error *error)
{
	int returned;

	*got_out = 0;
	ERR_clear_error();
	errno = 0;
	returned = SSL_read_ex(connection->library_connection, buffer, size, got_out);
	return result_of(connection, returned, errno, "TLS read", error);
}

/* Encrypt and gather as much as is sent at once; what is done already stands in output.plain. */
static enum tls_result
encrypt(struct tls_connection *connection, const char *buffer, size_t size, struct error *error)
{
	struct tls_output *output = &connection->output;
	size_t most = size < TLS_OUTPUT_PLAIN ? size : TLS_OUTPUT_PLAIN;
	int returned = 1, number = 0;

	ERR_clear_error();
	output->gathering = true;
	while (returned == 1 && output->plain < most) {
		size_t written = 0;
		errno = 0;
		returned = SSL_write_ex(connection->library_connection, buffer + output->plain,
		    most - output->plain, &written);
		number = errno;
		output->plain += written;
	}
	output->gathering = false;
	return result_of(connection, returned, number, "TLS write", error);
}

enum tls_result
tls_write(struct tls_connection *connection, const void *buffer, size_t size, size_t *written_out,
    struct error *error)
{
	struct tls_output *output = &connection->output;
	enum tls_result result = TLS_WANT_WRITE;
	int sent;

	*written_out = 0;
	if (size == 0)
		return TLS_DONE;
	if (output->plain == 0) /* else what was encrypted last still counts as not written */
		result = encrypt(connection, buffer, size, error);
	if (result == TLS_CLOSED || result == TLS_FAILED)
		return result;
	sent = tls_output_send(output);
	if (sent < 0 && (errno == ECONNRESET || errno == EPIPE)) {
		connection->broken = true;
		return TLS_CLOSED;
	}
	if (sent < 0)
		return fail(connection, SSL_ERROR_SYSCALL, errno, "TLS write", error);
	*written_out = tls_output_settle(output);
	if (*written_out > 0)
		return TLS_DONE;
	return result == TLS_DONE ? TLS_WANT_WRITE : result;
}

void
tls_shutdown(struct tls_connection *connection)
{
	SSL *library_connection = connection->library_connection;

	if (connection->broken || !SSL_is_init_finished(library_connection) ||
	    (SSL_get_shutdown(library_connection) & SSL_SENT_SHUTDOWN))
		return;
	/* Whether it could be sent does not matter to anybody any more. */
	SSL_shutdown(library_connection);
	ERR_clear_error();
}

bool
tls_pending(const struct tls_connection *connection)
{
	return SSL_has_pending(connection->library_connection) == 1;
}

void
tls_describe(const struct tls_connection *connection, struct tls_description *out)
{
	SSL *library_connection = connection->library_connection;

	out->protocol = SSL_get_version(library_connection);
	out->cipher = SSL_get_cipher_name(library_connection);
	out->bits = SSL_get_cipher_bits(library_connection, NULL);
	out->resumed = SSL_session_reused(library_connection) == 1;
}
