/*
 * Common to the TLS tests: certificates made on the spot, the service (context and a signer in a
 * process of its own), and a meeting of our server with a client of OpenSSL.
 */
#ifndef QPOPPER_TESTS_UNIT_TLS_HARNESS_H
#define QPOPPER_TESTS_UNIT_TLS_HARNESS_H

#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

#include <check.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>

#include "daemon/message.h"
#include "daemon/role.h"
#include "daemon/tls.h"
#include "lib/settings.h"

/* ---- files: in a directory of their own, one for each test ---- */

extern char directory[], certificate_path[64], key_path[64], both_path[64], other_path[64];

struct sample {
	const char *type, *group;
	size_t bits;
	long days; /* from now to the end */
};

#define SAMPLE_COUNT 6
extern const struct sample samples[SAMPLE_COUNT];
#define RSA_2048 (&samples[0])
#define RSA_PSS	 (&samples[1])
#define P_256	 (&samples[2])
#define ED25519	 (&samples[5])

void make_directory(void);
void remove_directory(void);

/* A file that only its owner can read. */
FILE *open_private(const char *path, const char *mode);

/* A new key; a new certificate and its key in certificate_path, key_path and both in both_path. */
EVP_PKEY *generate(const struct sample *sample);
void write_files(const struct sample *sample);

/* Settings with certificate_path and key_path; the caller's. */
struct settings *make_settings(void);
void set_string(char **field, const char *value);

/* ---- the service ---- */

struct service {
	struct settings *settings;
	struct tls_context *context;
	pid_t signer;
	int master;  /* the master's end of the signer's channel */
	int channel; /* a worker's end */
};

void start_service(struct service *service, const struct sample *sample);
void stop_service(struct service *service);

/* The signer alone; stopping it checks that it ended well. */
void start_signer(struct service *service);
void stop_signer(struct service *service);

/* A further worker's channel to the signer. */
int hand_out_channel(const struct service *service);

/* The program qpopper-signer. */
int signer_program(int argc, char *argv[]);

/* ---- a client and the two ends of a connection ---- */

struct meeting {
	struct tls_connection *server;
	SSL_CTX *client_context;
	SSL *client;
	int sockets[2]; /* server, client */
	enum tls_result result;
	int client_result;
	struct error error;
};

/* A client of one version (0: any) that trusts certificate_path and nothing else. */
SSL_CTX *make_client(int version);

/* Connect both and shake hands until both are done or one failed. Takes over client_context. */
void meet(struct meeting *meeting, struct tls_context *context, SSL_CTX *client_context,
    SSL_SESSION *session);
void part(struct meeting *meeting);

#endif
