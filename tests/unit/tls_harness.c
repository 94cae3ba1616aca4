/* See tls_harness.h. The signer's program is compiled in, so that its loop can be run in a child.
 */
#include "config.h"

#include "tests/unit/tls_harness.h"

#define main signer_program
#include "daemon/signer_main.c"
#undef main

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <openssl/pem.h>
#include <openssl/x509.h>

#define ROUNDS 200 /* of a handshake over a socket pair; needs fewer than ten */

char directory[] = "/tmp/check_tls.XXXXXX";
char certificate_path[64], key_path[64], both_path[64], other_path[64];

/* ---- certificates made on the spot ---- */

const struct sample samples[SAMPLE_COUNT] = {
	{ "RSA", NULL, 2048, 30 },
	{ "RSA-PSS", NULL, 2048, 30 },
	{ "EC", "P-256", 0, 30 },
	{ "EC", "P-384", 0, 30 },
	{ "EC", "P-521", 0, 30 },
	{ "ED25519", NULL, 0, 30 },
};
EVP_PKEY *
generate(const struct sample *sample)
{
	if (sample->bits && strcmp(sample->type, "RSA") == 0)
		return EVP_PKEY_Q_keygen(NULL, NULL, "RSA", sample->bits);
	if (sample->bits) {
		EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(NULL, sample->type, NULL);
		EVP_PKEY *key = NULL;

		ck_assert_int_eq(EVP_PKEY_keygen_init(context), 1);
		EVP_PKEY_CTX_set_rsa_keygen_bits(context, (int)sample->bits);
		ck_assert_int_eq(EVP_PKEY_generate(context, &key), 1);
		EVP_PKEY_CTX_free(context);
		return key;
	}
	if (sample->group)
		return EVP_PKEY_Q_keygen(NULL, NULL, "EC", sample->group);
	return EVP_PKEY_Q_keygen(NULL, NULL, sample->type);
}

static X509 *
self_sign(EVP_PKEY *key, long days)
{
	X509 *certificate = X509_new();
	X509_NAME *name = X509_get_subject_name(certificate);
	bool own_digest = EVP_PKEY_is_a(key, "ED25519") || EVP_PKEY_is_a(key, "ED448");

	X509_set_version(certificate, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
	X509_gmtime_adj(X509_getm_notBefore(certificate), -86400 * 60L);
	X509_gmtime_adj(X509_getm_notAfter(certificate), 86400 * days);
	X509_NAME_add_entry_by_txt(
	    name, "CN", MBSTRING_ASC, (const unsigned char *)"mail.example", -1, -1, 0);
	X509_set_issuer_name(certificate, name);
	X509_set_pubkey(certificate, key);
	ck_assert_int_gt(X509_sign(certificate, key, own_digest ? NULL : EVP_sha256()), 0);
	return certificate;
}

FILE *
open_private(const char *path, const char *mode)
{
	FILE *file;

	umask(077);
	file = fopen(path, mode);
	ck_assert_ptr_nonnull(file);
	return file;
}

void
write_files(const struct sample *sample)
{
	EVP_PKEY *key = generate(sample);
	X509 *certificate = self_sign(key, sample->days);
	FILE *files[3] = { open_private(certificate_path, "w"), open_private(key_path, "w"),
		open_private(both_path, "w") };

	PEM_write_X509(files[0], certificate);
	PEM_write_PrivateKey(files[1], key, NULL, NULL, 0, NULL, NULL);
	PEM_write_PrivateKey(files[2], key, NULL, NULL, 0, NULL, NULL);
	PEM_write_X509(files[2], certificate);
	for (int i = 0; i < 3; i++)
		fclose(files[i]);
	X509_free(certificate);
	EVP_PKEY_free(key);
}

void
make_directory(void)
{
	ck_assert_ptr_nonnull(mkdtemp(directory));
	snprintf(certificate_path, sizeof certificate_path, "%s/certificate", directory);
	snprintf(key_path, sizeof key_path, "%s/key", directory);
	snprintf(other_path, sizeof other_path, "%s/other", directory);
	snprintf(both_path, sizeof both_path, "%s/both", directory);
}

void
remove_directory(void)
{
	unlink(certificate_path);
	unlink(key_path);
	unlink(both_path);
	unlink(other_path);
	rmdir(directory);
}

void
set_string(char **field, const char *value)
{
	free(*field);
	*field = strdup(value);
	ck_assert_ptr_nonnull(*field);
}

struct settings *
make_settings(void)
{
	struct settings *settings = settings_new();

	ck_assert_ptr_nonnull(settings);
	set_string(&settings->tls_server_cert_file, certificate_path);
	set_string(&settings->tls_private_key_file, key_path);
	return settings;
}

/* ---- the service: context, signer process, channels ---- */

static void
run_signer(const struct settings *settings, int master)
{
	struct signer signer = { 0 };
	struct log log;
	struct error error;
	int silence[2];

	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, silence) < 0)
		_exit(90);
	log_start(&log, silence[0], "signer", false);
	signer.log = &log;
	if (load_key(&signer, settings, &error) < 0 || open_events(&signer, master, &error) < 0)
		_exit(91);
	_exit(serve(&signer));
}

int
hand_out_channel(const struct service *service)
{
	struct message_channel payload = { 1, ROLE_WORKER };
	struct error error;
	int pair[2];

	ck_assert_int_eq(message_channel_pair(pair, false, &error), 0);
	ck_assert_int_eq(
	    message_send(service->master, MESSAGE_CHANNEL, &payload, NULL, 0, &pair[1], 1, &error),
	    0);
	close(pair[1]);
	return pair[0];
}

void
start_signer(struct service *service)
{
	struct error error;
	int pair[2];

	ck_assert_int_eq(message_channel_pair(pair, false, &error), 0);
	service->signer = fork();
	ck_assert_int_ge(service->signer, 0);
	if (service->signer == 0) {
		close(pair[0]);
		run_signer(service->settings, pair[1]);
	}
	close(pair[1]);
	service->master = pair[0];
	service->channel = hand_out_channel(service);
}

void
stop_signer(struct service *service)
{
	int status;

	close(service->master);
	ck_assert_int_eq(waitpid(service->signer, &status, 0), service->signer);
	ck_assert(WIFEXITED(status));
	ck_assert_int_eq(WEXITSTATUS(status), ROLE_EXIT_DONE);
}

void
start_service(struct service *service, const struct sample *sample)
{
	struct error error = { 0 };

	write_files(sample);
	service->settings = make_settings();
	ck_assert_msg(
	    tls_context_new(service->settings, &service->context, &error) == 0, "%s", error.text);
	start_signer(service);
	tls_set_signer(service->context, service->channel);
}

void
stop_service(struct service *service)
{
	close(service->channel);
	stop_signer(service);
	tls_context_free(service->context);
	settings_free(service->settings);
}

/* ---- a client and the two ends of a connection ---- */

SSL_CTX *
make_client(int version)
{
	SSL_CTX *context = SSL_CTX_new(TLS_client_method());

	ck_assert_ptr_nonnull(context);
	if (version && version < TLS1_2_VERSION)
		SSL_CTX_set_security_level(context, 0);
	if (version) {
		SSL_CTX_set_min_proto_version(context, version);
		SSL_CTX_set_max_proto_version(context, version);
	}
	SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
	ck_assert_int_eq(SSL_CTX_load_verify_file(context, certificate_path), 1);
	return context;
}

static void
shake_hands(struct meeting *meeting)
{
	meeting->result = TLS_WANT_READ;
	meeting->client_result = 0;
	for (int i = 0; i < ROUNDS; i++) {
		if (meeting->client_result != 1)
			meeting->client_result = SSL_connect(meeting->client);
		if (meeting->result == TLS_WANT_READ || meeting->result == TLS_WANT_WRITE)
			meeting->result = tls_handshake(meeting->server, &meeting->error);
		if (meeting->result == TLS_FAILED || meeting->result == TLS_CLOSED)
			break;
		if (meeting->result == TLS_DONE && meeting->client_result == 1)
			break;
	}
	ERR_clear_error();
}

void
meet(struct meeting *meeting, struct tls_context *context, SSL_CTX *client_context,
    SSL_SESSION *session)
{
	memset(meeting, 0, sizeof *meeting);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, meeting->sockets), 0);
	ck_assert_int_eq(
	    tls_connection_new(context, meeting->sockets[0], &meeting->server, &meeting->error), 0);
	meeting->client_context = client_context;
	meeting->client = SSL_new(client_context);
	SSL_set_fd(meeting->client, meeting->sockets[1]);
	if (session)
		SSL_set_session(meeting->client, session);
	shake_hands(meeting);
}

void
part(struct meeting *meeting)
{
	tls_connection_free(meeting->server);
	SSL_free(meeting->client);
	SSL_CTX_free(meeting->client_context);
	close(meeting->sockets[0]);
	close(meeting->sockets[1]);
}
