/*
 * Private keys that live in the signer: an OpenSSL 3 provider whose keys are handles.
 *
 * A handle has the public part of a key and, in place of the private part, the right to ask the
 * signer. It passes for a private key of its kind (RSA, RSA-PSS, EC, Ed25519) wherever libssl
 * wants one; each signature is a round trip to the signer (tls_signer.h). The provider lives in a
 * library context of its own, beside OpenSSL's default provider, which does everything else.
 */
#ifndef QPOPPER_DAEMON_TLS_KEY_H
#define QPOPPER_DAEMON_TLS_KEY_H

#include <openssl/evp.h>
#include <openssl/types.h>

#include "lib/error.h"

struct tls_key_provider;
struct tls_signer;

int tls_key_provider_new(struct tls_key_provider **provider_out, struct error *error);

/* After everything that was made in its library context. NULL is allowed. */
void tls_key_provider_free(struct tls_key_provider *provider);

/* The library context to be used for everything that meets a handle; the provider's. */
OSSL_LIB_CTX *tls_key_library(const struct tls_key_provider *provider);

/* Where signatures come from: the caller sets its channel and asks why one failed. */
struct tls_signer *tls_key_signer(struct tls_key_provider *provider);

/* A handle for the private key that belongs to certificate. *key_out is the caller's. */
int tls_key_handle(
    struct tls_key_provider *provider, X509 *certificate, EVP_PKEY **key_out, struct error *error);

#endif
