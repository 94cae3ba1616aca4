/*
 * qpopper-signer: the one process that holds the TLS private key. It answers the workers' SIGN
 * messages and does nothing else; they are not trusted: one that breaks the protocol loses its
 * channel. It reads the key with the rights it was started with and gives them up before it
 * receives anything. Also run as "qpopper-signer --check", which checks the files of frozen
 * settings on descriptor 4 and prints one line. RFC 8446, section 4.4.3.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/ssl.h>

#include "daemon/message.h"
#include "daemon/role.h"
#include "daemon/sandbox.h"
#include "daemon/tls_key_file.h"
#include "daemon/tls_policy.h"

#define SECURE_HEAP_SIZE (256u << 10) /* bytes: an RSA key of 16384 bits and its arithmetic */
#define SECURE_HEAP_UNIT 64	      /* bytes */
#define GO_ON		 (-1)	      /* no exit status */
#define EVENTS_MAX	 16	      /* taken from the kernel at once */

_Static_assert(
    MESSAGE_PADDING_PKCS1 == RSA_PKCS1_PADDING && MESSAGE_PADDING_PSS == RSA_PKCS1_PSS_PADDING,
    "paddings of messages are the library's");

struct signer {
	EVP_PKEY *key; /* owned */
	enum tls_key_kind kind;
	bool legacy_digests; /* the library's security level is 0 */
	/* prepared for each digest, without and with PSS, at first use */
	EVP_PKEY_CTX *forms[TLS_DIGEST_COUNT][2];
	struct log *log;
	int master; /* channel to the master */
	int events; /* epoll */
};

/* ---- one signature ---- */

/* Whether this key, used for TLS, would ever be asked for that; and the digest, if there is one. */
static bool
request_fits_key(const struct signer *signer, const struct message *request,
    const struct tls_digest **digest_out)
{
	const struct message_sign *sign = &request->payload.sign;
	const struct tls_digest *digest;
	bool pss = sign->padding == MESSAGE_PADDING_PSS;

	*digest_out = NULL;
	if (signer->kind == TLS_KEY_ED25519)
		return sign->kind == SIGN_MESSAGE;
	digest = tls_digest_find(sign->digest_name);
	if (sign->kind != SIGN_DIGEST || !digest || (digest->legacy && !signer->legacy_digests))
		return false;
	if (request->tail_size != digest->size)
		return false;
	if (pss && sign->mgf1_name[0] && strcmp(sign->mgf1_name, sign->digest_name) != 0)
		return false;
	if (pss && sign->salt_length != -1 && (size_t)sign->salt_length != digest->size)
		return false;
	*digest_out = digest;
	if (signer->kind == TLS_KEY_EC)
		return sign->padding == 0;
	return pss || (sign->padding == MESSAGE_PADDING_PKCS1 && signer->kind == TLS_KEY_RSA);
}

static bool
sign_message(EVP_PKEY *key, const struct message *request, unsigned char *out, size_t *size)
{
	EVP_MD_CTX *context = EVP_MD_CTX_new();
	bool made = context && EVP_DigestSignInit(context, NULL, NULL, NULL, key) == 1 &&
		    EVP_DigestSign(context, out, size, request->tail, request->tail_size) == 1;

	EVP_MD_CTX_free(context);
	return made;
}

static EVP_PKEY_CTX *
prepare_form(EVP_PKEY *key, const struct tls_digest *digest, int padding)
{
	EVP_PKEY_CTX *form = EVP_PKEY_CTX_new(key, NULL);
	EVP_MD *method = EVP_MD_fetch(NULL, digest->name, NULL);
	bool made = form && method && EVP_PKEY_sign_init(form) == 1;

	if (made && padding)
		made = EVP_PKEY_CTX_set_rsa_padding(form, padding) == 1;
	if (made && padding == MESSAGE_PADDING_PSS)
		made = EVP_PKEY_CTX_set_rsa_pss_saltlen(form, RSA_PSS_SALTLEN_DIGEST) == 1;
	if (made)
		made = EVP_PKEY_CTX_set_signature_md(form, method) == 1;
	EVP_MD_free(method);
	if (made)
		return form;
	EVP_PKEY_CTX_free(form);
	return NULL;
}

static bool
sign_digest(struct signer *signer, const struct message *request, const struct tls_digest *digest,
    unsigned char *out, size_t *size)
{
	int padding = request->payload.sign.padding;
	EVP_PKEY_CTX **form = &signer->forms[digest - tls_digests][padding == MESSAGE_PADDING_PSS];

	if (!*form)
		*form = prepare_form(signer->key, digest, padding);
	return *form && EVP_PKEY_sign(*form, out, size, request->tail, request->tail_size) == 1;
}

static void
forget_key(struct signer *signer)
{
	for (size_t i = 0; i < TLS_DIGEST_COUNT; i++)
		for (size_t j = 0; j < 2; j++)
			EVP_PKEY_CTX_free(signer->forms[i][j]);
	EVP_PKEY_free(signer->key);
}

/* False: the key does not sign that. */
static bool
make_signature(struct signer *signer, const struct message *request,
    unsigned char out[MESSAGE_SIGNATURE_MAX], size_t *size_out)
{
	const struct tls_digest *digest;
	bool made = false;

	*size_out = MESSAGE_SIGNATURE_MAX;
	if (request_fits_key(signer, request, &digest))
		made = digest ? sign_digest(signer, request, digest, out, size_out)
			      : sign_message(signer->key, request, out, size_out);
	ERR_clear_error();
	return made;
}

/* ---- channels ---- */

/*
 * Answer what waits on a worker's channel; -1 ends that channel. Sending does not block: a worker
 * that asks and does not listen is one that breaks the protocol.
 */
static int
serve_worker(struct signer *signer, int channel, struct error *error)
{
	unsigned char signature[MESSAGE_SIGNATURE_MAX];
	struct message_signature answer = { 0 };
	struct message request;
	size_t size = 0;
	bool got;

	if (message_receive(channel, ROLE_WORKER, ROLE_SIGNER, &request, &got, error) < 0)
		return -1;
	if (!got)
		return 0;
	answer.request = request.payload.sign.request;
	if (!make_signature(signer, &request, signature, &size)) {
		answer.status = SIGNATURE_REFUSED;
		size = 0;
		log_write(signer->log, LOG_LEVEL_WARNING, "a signature was refused");
	}
	return message_send(channel, MESSAGE_SIGNATURE, &answer, signature, size, NULL, 0, error);
}

static int
watch(const struct signer *signer, int channel, struct error *error)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = channel };
	int flags = fcntl(channel, F_GETFL);

	if (flags < 0 || fcntl(channel, F_SETFL, flags | O_NONBLOCK) < 0)
		return error_set_errno(error, errno, "cannot make a channel non-blocking");
	if (epoll_ctl(signer->events, EPOLL_CTL_ADD, channel, &event) < 0)
		return error_set_errno(error, errno, "cannot wait for a channel");
	return 0;
}

/* The master's only message here is CHANNEL, with a new worker's channel. */
static int
serve_master(const struct signer *signer, struct error *error)
{
	struct message message;
	bool got;
	int channel;

	if (message_receive(signer->master, ROLE_MASTER, ROLE_SIGNER, &message, &got, error) < 0)
		return -1;
	if (!got)
		return 0;
	channel = message_take_fd(&message, 0);
	if (watch(signer, channel, error) < 0) {
		close(channel);
		return -1;
	}
	return 0;
}

/* Closing takes the channel out of the epoll set too: nobody else has its file open. */
static void
end_channel(const struct signer *signer, int channel, const struct error *error)
{
	if (error->code != ERROR_CLOSED)
		log_write(
		    signer->log, LOG_LEVEL_WARNING, "a worker loses its channel: %s", error->text);
	close(channel);
}

/* GO_ON, or the exit status. */
static int
serve_ready(struct signer *signer, const struct epoll_event *ready, int count)
{
	struct error error;

	for (int i = 0; i < count; i++) {
		int channel = ready[i].data.fd;

		if (channel != signer->master) {
			if (serve_worker(signer, channel, &error) < 0)
				end_channel(signer, channel, &error);
			continue;
		}
		if (serve_master(signer, &error) == 0)
			continue;
		if (error.code == ERROR_CLOSED)
			return ROLE_EXIT_DONE;
		log_write(signer->log, LOG_LEVEL_ERROR, "channel to the master: %s", error.text);
		return ROLE_EXIT_CHANNEL;
	}
	return GO_ON;
}

/* Serve until the master's channel ends; returns the exit status. */
static int
serve(struct signer *signer)
{
	struct epoll_event ready[EVENTS_MAX];
	int status = GO_ON;

	while (status == GO_ON) {
		int count = epoll_wait(signer->events, ready, EVENTS_MAX, -1);

		if (count < 0 && errno != EINTR) {
			log_write(signer->log, LOG_LEVEL_ERROR, "cannot wait for channels: %m");
			return ROLE_EXIT_FAILED;
		}
		status = serve_ready(signer, ready, count);
	}
	return status;
}

/* ---- start ---- */

/*
 * The library keeps private numbers in its secure heap (locked, guarded, left out of dumps), but
 * copies of RSA factors in ordinary memory too. So the whole process is kept from the swap where
 * it may be; dumps of it are off altogether (sandbox_harden).
 */
static int
protect_memory(struct log *log, struct error *error)
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };

	if (CRYPTO_secure_malloc_init(SECURE_HEAP_SIZE, SECURE_HEAP_UNIT) == 0)
		return error_set(error, ERROR_SYSTEM, "no secure memory for the private key");
	if (setrlimit(RLIMIT_MEMLOCK, &unlimited) < 0 || mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
		log_write(log, LOG_LEVEL_DEBUG, "only the secure heap is locked in memory: %m");
	return 0;
}

static int
default_security_level(const struct settings *settings, int *level_out, struct error *error)
{
	SSL_CTX *context = SSL_CTX_new(TLS_server_method());
	int result;

	if (!context)
		return tls_library_error(error, ERROR_SYSTEM, "cannot start TLS");
	result = tls_policy_apply(context, settings, error);
	*level_out = SSL_CTX_get_security_level(context);
	SSL_CTX_free(context);
	return result;
}

/*
 * One signature before the sandbox closes: the library opens what it needs (randomness, tables) at
 * first use, and a key that is damaged shows now and not at the first client.
 */
static int
try_key(struct signer *signer, struct error *error)
{
	static const unsigned char input[32];
	unsigned char signature[MESSAGE_SIGNATURE_MAX];
	struct message request = { .tail = input, .tail_size = sizeof input };
	struct message_sign *sign = &request.payload.sign;
	size_t size;

	sign->kind = signer->kind == TLS_KEY_ED25519 ? SIGN_MESSAGE : SIGN_DIGEST;
	if (sign->kind == SIGN_DIGEST)
		message_text(sign->digest_name, sizeof sign->digest_name, tls_digests[0].name);
	if (signer->kind == TLS_KEY_RSA || signer->kind == TLS_KEY_RSA_PSS) {
		sign->padding = MESSAGE_PADDING_PSS;
		sign->salt_length = -1;
	}
	if (!make_signature(signer, &request, signature, &size))
		return error_set(error, ERROR_DENIED, "the private key does not sign");
	return 0;
}

/* popper had the files checked before; by now they may be others. */
static int
load_key(struct signer *signer, const struct settings *settings, struct error *error)
{
	char warning[TLS_WARNING_SIZE];
	int level = 0;

	if (tls_check_files_warn(settings, warning, error) < 0 ||
	    tls_read_private_key(settings, &signer->key, error) < 0 ||
	    tls_key_kind_of(signer->key, &signer->kind, error) < 0 ||
	    default_security_level(settings, &level, error) < 0)
		return -1;
	if (warning[0])
		log_write(signer->log, LOG_LEVEL_WARNING, "%s", warning);
	signer->legacy_digests = level == 0;
	return try_key(signer, error);
}

static int
give_up_rights(const struct settings *settings, uint32_t *layers_out, struct error *error)
{
	struct sandbox_identity identity = { geteuid(), getegid() };
	bool weak = settings->sandbox == SANDBOX_WEAK;
	char empty[SETTINGS_STRING_MAX + sizeof ROLE_EMPTY_DIRECTORY];

	snprintf(empty, sizeof empty, "%s" ROLE_EMPTY_DIRECTORY, settings->state_dir);
	if (sandbox_privileged() && sandbox_find_user(settings->signer_user, &identity, error) < 0)
		return -1;
	if (sandbox_enter(&identity, empty, NULL, weak, layers_out, error) < 0)
		return -1;
	return sandbox_filter(SANDBOX_FILTER_SIGNER, weak, layers_out, error);
}

static int
open_events(struct signer *signer, int master, struct error *error)
{
	signer->master = master;
	signer->events = epoll_create1(EPOLL_CLOEXEC);
	if (signer->events < 0)
		return error_set_errno(error, errno, "cannot wait for channels");
	return watch(signer, master, error);
}

static int
start(struct signer *signer, struct role_start *role, struct error *error)
{
	uint32_t layers;

	signer->log = &role->log;
	if (role_start("signer", ROLE_FD_LOG, role, error) < 0 ||
	    protect_memory(&role->log, error) < 0 || load_key(signer, role->settings, error) < 0 ||
	    open_events(signer, ROLE_FD_MASTER, error) < 0 ||
	    give_up_rights(role->settings, &layers, error) < 0)
		return -1;
	return role_ready(layers, tls_key_kind_name(signer->kind), error);
}

/* ---- --check ---- */

/* Prints one line: the error, or what deserves a warning (status 0), or nothing. */
static int
check(void)
{
	char warning[TLS_WARNING_SIZE] = "";
	struct settings *settings = NULL;
	struct error error;
	int result = -1;

	if (clearenv() != 0)
		error_set(&error, ERROR_SYSTEM, "cannot clear the environment");
	else if (sandbox_harden(&error) == 0 &&
		 settings_thaw(ROLE_FD_SETTINGS, &settings, &error) == 0)
		result = tls_check_files_warn(settings, warning, &error);
	settings_free(settings);
	if (result < 0)
		printf("%s\n", error.text);
	else if (warning[0])
		printf("%s\n", warning);
	if (fflush(stdout) != 0)
		return ROLE_EXIT_FAILED;
	return result < 0 ? ROLE_EXIT_FAILED : ROLE_EXIT_DONE;
}

int
main(int argc, char *argv[])
{
	struct signer signer = { .master = -1, .events = -1 };
	struct role_start role;
	struct error error;
	int status;

	if (argc == 2 && strcmp(argv[1], "--check") == 0)
		return check();
	if (start(&signer, &role, &error) < 0) {
		log_write(&role.log, LOG_LEVEL_ERROR, "%s", error.text);
		return ROLE_EXIT_FAILED;
	}
	status = serve(&signer);
	forget_key(&signer);
	settings_free(role.settings);
	return status;
}
