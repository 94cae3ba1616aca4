/*
 * The TLS policy: see tls_policy.h. Runs in the worker parent, the signer and the check of a
 * configuration; trusts the settings' types, not that their strings mean something to the library.
 * RFC 8996 (no TLS below 1.2), RFC 9325 (recommendations: no RSA key transport, no renegotiation).
 */
#include "config.h"

#include "daemon/tls_policy.h"

#include <stdio.h>
#include <string.h>

#include <openssl/core_names.h>
#include <openssl/err.h>

const struct tls_digest tls_digests[TLS_DIGEST_COUNT] = {
	{ "SHA2-256", 32, false },
	{ "SHA2-384", 48, false },
	{ "SHA2-512", 64, false },
	{ "SHA1", 20, true },
};

static const char *const kind_names[TLS_KEY_KIND_COUNT] = {
	[TLS_KEY_RSA] = "RSA",
	[TLS_KEY_RSA_PSS] = "RSA-PSS",
	[TLS_KEY_EC] = "EC",
	[TLS_KEY_ED25519] = "ED25519",
};

static const char *const curves[] = { "prime256v1", "secp384r1", "secp521r1" };

/*
 * The library's own default offers more digests than the signer signs. What is left out besides:
 * RSA key transport has no forward secrecy and would need the key for decryption.
 */
#define SIGNATURE_ALGORITHMS                                                                       \
	"ECDSA+SHA256:ECDSA+SHA384:ECDSA+SHA512:ed25519:"                                          \
	"rsa_pss_pss_sha256:rsa_pss_pss_sha384:rsa_pss_pss_sha512:"                                \
	"rsa_pss_rsae_sha256:rsa_pss_rsae_sha384:rsa_pss_rsae_sha512:"                             \
	"RSA+SHA256:RSA+SHA384:RSA+SHA512"
#define LEGACY_SIGNATURE_ALGORITHMS ":ECDSA+SHA1:RSA+SHA1"
#define DEFAULT_CIPHERS		    "DEFAULT"
#define EXCLUDED_CIPHERS	    ":!kRSA:!aNULL:!eNULL:!PSK:!SRP"

const struct tls_digest *
tls_digest_find(const char *name)
{
	for (size_t i = 0; i < TLS_DIGEST_COUNT; i++)
		if (strcmp(tls_digests[i].name, name) == 0)
			return &tls_digests[i];
	return NULL;
}

const char *
tls_key_kind_name(enum tls_key_kind kind)
{
	return kind_names[kind];
}

static bool
curve_served(const EVP_PKEY *key)
{
	char group[64] = "";

	if (EVP_PKEY_get_group_name(key, group, sizeof group, NULL) != 1)
		return false;
	for (size_t i = 0; i < sizeof curves / sizeof curves[0]; i++)
		if (strcmp(group, curves[i]) == 0)
			return true;
	return false;
}

int
tls_key_kind_of(const EVP_PKEY *key, enum tls_key_kind *kind_out, struct error *error)
{
	for (unsigned kind = 0; kind < TLS_KEY_KIND_COUNT; kind++) {
		if (!EVP_PKEY_is_a(key, kind_names[kind]))
			continue;
		if (kind == TLS_KEY_EC && !curve_served(key))
			break;
		*kind_out = (enum tls_key_kind)kind;
		return 0;
	}
	return error_set(error, ERROR_DENIED,
	    "this kind of key is not served; use RSA, EC with P-256, P-384 or P-521, or Ed25519");
}

int
tls_library_error(struct error *error, enum error_code code, const char *what)
{
	unsigned long number = ERR_peek_error();
	const char *reason = number ? ERR_reason_error_string(number) : NULL;

	ERR_clear_error();
	if (!reason)
		return error_set(error, code, "%s", what);
	return error_set(error, code, "%s: %s", what, reason);
}

static int
apply_versions(SSL_CTX *context, const struct settings *settings, struct error *error)
{
	int lowest = settings->tls_version == TLS_VERSION_1_3 ? TLS1_3_VERSION : TLS1_2_VERSION;
	int highest = settings->tls_version == TLS_VERSION_1_2 ? TLS1_2_VERSION : TLS1_3_VERSION;

	if (SSL_CTX_set_min_proto_version(context, lowest) != 1 ||
	    SSL_CTX_set_max_proto_version(context, highest) != 1)
		return tls_library_error(error, ERROR_DENIED, "tls-version");
	return 0;
}

static int
apply_ciphers(SSL_CTX *context, const struct settings *settings, struct error *error)
{
	char list[SETTINGS_STRING_MAX + sizeof EXCLUDED_CIPHERS];
	const char *wanted = settings->tls_cipher_list;

	snprintf(list, sizeof list, "%s" EXCLUDED_CIPHERS, *wanted ? wanted : DEFAULT_CIPHERS);
	if (SSL_CTX_set_cipher_list(context, list) != 1)
		return tls_library_error(error, ERROR_FORMAT,
		    "tls-cipher-list leaves no cipher (RSA key transport is never used)");
	return 0;
}

static int
apply_signature_algorithms(SSL_CTX *context, struct error *error)
{
	bool legacy = SSL_CTX_get_security_level(context) == 0;
	char list[sizeof SIGNATURE_ALGORITHMS + sizeof LEGACY_SIGNATURE_ALGORITHMS];

	snprintf(list, sizeof list, "%s%s", SIGNATURE_ALGORITHMS,
	    legacy ? LEGACY_SIGNATURE_ALGORITHMS : "");
	if (SSL_CTX_set1_sigalgs_list(context, list) != 1)
		return tls_library_error(error, ERROR_INTERNAL, "signature algorithms");
	return 0;
}

int
tls_policy_apply(SSL_CTX *context, const struct settings *settings, struct error *error)
{
	SSL_CTX_set_options(context, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
	SSL_CTX_set_options(context, (uint64_t)settings->tls_options & TLS_OPTIONS_HONOURED);
	if (apply_versions(context, settings, error) < 0 ||
	    apply_ciphers(context, settings, error) < 0)
		return -1;
	return apply_signature_algorithms(context, error);
}
