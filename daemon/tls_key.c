/*
 * The provider of key handles: see tls_key.h; provider(7), provider-keymgmt(7) and
 * provider-signature(7) describe the interface. Runs in workers and holds no secret: what it would
 * do with a private key it leaves to the signer (tls_signer.h).
 */
#include "config.h"

#include "daemon/tls_key.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <openssl/core_dispatch.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/params.h>
#include <openssl/provider.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

#include "daemon/message.h"
#include "daemon/tls_policy.h"
#include "daemon/tls_signer.h"

#define PROVIDER_NAME	    "qpopper-signer"
#define HANDLES		    "provider=" PROVIDER_NAME
#define LIBRARYS_OWN	    "provider!=" PROVIDER_NAME
#define PREFER_LIBRARYS_OWN "?provider=default"

struct tls_key_provider {
	OSSL_LIB_CTX *library;
	OSSL_PROVIDER *standard, *handles;
	EVP_MD *digests[TLS_DIGEST_COUNT]; /* as tls_digests */
	struct tls_signer signer;
};

/* ---- key management: a handle wraps the public part, a key of the library's own ---- */

struct handle {
	struct tls_key_provider *provider;
	enum tls_key_kind kind;
	EVP_PKEY *public_part; /* NULL until imported */
};

static void *
handle_new(void *provider, enum tls_key_kind kind)
{
	struct handle *handle = calloc(1, sizeof *handle);

	if (!handle)
		return NULL;
	handle->provider = provider;
	handle->kind = kind;
	return handle;
}

static void
handle_free(void *key)
{
	struct handle *handle = key;

	if (!handle)
		return;
	EVP_PKEY_free(handle->public_part);
	free(handle);
}

/* The private part is always there, with the signer; the public one once it was imported. */
static int
handle_has(const void *key, int selection)
{
	const struct handle *handle = key;

	(void)selection;
	return handle && handle->public_part;
}

static int
handle_match(const void *key1, const void *key2, int selection)
{
	const struct handle *a = key1;
	const struct handle *b = key2;

	(void)selection;
	return a->public_part && b->public_part && EVP_PKEY_eq(a->public_part, b->public_part) == 1;
}

static int
handle_import(void *key, int selection, const OSSL_PARAM parameters[])
{
	struct handle *handle = key;
	/* The interface of EVP_PKEY_fromdata lacks a const; it does not write. */
	OSSL_PARAM *source = (OSSL_PARAM *)(uintptr_t)parameters;
	EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(
	    handle->provider->library, tls_key_kind_name(handle->kind), LIBRARYS_OWN);
	EVP_PKEY *imported = NULL;
	int result = 0;

	(void)selection;
	if (context && EVP_PKEY_fromdata_init(context) == 1)
		result = EVP_PKEY_fromdata(context, &imported, EVP_PKEY_PUBLIC_KEY, source);
	EVP_PKEY_CTX_free(context);
	if (result != 1)
		return 0;
	EVP_PKEY_free(handle->public_part);
	handle->public_part = imported;
	return 1;
}

/*
 * Only the public part can be exported. The refusal of the rest is what makes the library come
 * to this provider for signatures: it first tries to hand the key to its default provider.
 */
static int
handle_export(void *key, int selection, OSSL_CALLBACK *take, void *take_argument)
{
	const struct handle *handle = key;
	OSSL_PARAM *parameters = NULL;
	int result;

	if ((selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY) || !handle->public_part)
		return 0;
	if (EVP_PKEY_todata(handle->public_part, EVP_PKEY_PUBLIC_KEY, &parameters) != 1)
		return 0;
	result = take(parameters, take_argument);
	OSSL_PARAM_free(parameters);
	return result;
}

static int
handle_get_params(void *key, OSSL_PARAM parameters[])
{
	const struct handle *handle = key;

	return handle->public_part && EVP_PKEY_get_params(handle->public_part, parameters) == 1;
}

static const OSSL_PARAM *
handle_gettable_params(void *provider)
{
	static const OSSL_PARAM gettable[] = {
		OSSL_PARAM_int(OSSL_PKEY_PARAM_BITS, NULL),
		OSSL_PARAM_int(OSSL_PKEY_PARAM_SECURITY_BITS, NULL),
		OSSL_PARAM_int(OSSL_PKEY_PARAM_MAX_SIZE, NULL),
		OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, NULL, 0),
		OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_DEFAULT_DIGEST, NULL, 0),
		OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_MANDATORY_DIGEST, NULL, 0),
		OSSL_PARAM_END,
	};

	(void)provider;
	return gettable;
}

/* What the library may ask us to take or give differs by kind; it tries and does not look here. */
static const OSSL_PARAM *
handle_transfer_types(int selection)
{
	static const OSSL_PARAM types[] = {
		OSSL_PARAM_octet_string(OSSL_PKEY_PARAM_PUB_KEY, NULL, 0),
		OSSL_PARAM_END,
	};

	(void)selection;
	return types;
}

static const char *
rsa_operation(int operation)
{
	return operation == OSSL_OP_SIGNATURE ? "RSA" : NULL;
}

static const char *
ec_operation(int operation)
{
	return operation == OSSL_OP_SIGNATURE ? "ECDSA" : NULL;
}

static const char *
ed25519_operation(int operation)
{
	return operation == OSSL_OP_SIGNATURE ? "ED25519" : NULL;
}

/* One dispatch table for each kind: they differ in what a new handle is and who signs for it. */
#define FUNCTION(id, function)                                                                     \
	{                                                                                          \
		id, (void (*)(void))(function)                                                     \
	}
#define KEY_MANAGEMENT(word, kind, operation)                                                      \
	static void *new_##word(void *provider)                                                    \
	{                                                                                          \
		return handle_new(provider, kind);                                                 \
	}                                                                                          \
	static const OSSL_DISPATCH word##_management[] = {                                         \
		FUNCTION(OSSL_FUNC_KEYMGMT_NEW, new_##word),                                       \
		FUNCTION(OSSL_FUNC_KEYMGMT_FREE, handle_free),                                     \
		FUNCTION(OSSL_FUNC_KEYMGMT_HAS, handle_has),                                       \
		FUNCTION(OSSL_FUNC_KEYMGMT_MATCH, handle_match),                                   \
		FUNCTION(OSSL_FUNC_KEYMGMT_IMPORT, handle_import),                                 \
		FUNCTION(OSSL_FUNC_KEYMGMT_IMPORT_TYPES, handle_transfer_types),                   \
		FUNCTION(OSSL_FUNC_KEYMGMT_EXPORT, handle_export),                                 \
		FUNCTION(OSSL_FUNC_KEYMGMT_EXPORT_TYPES, handle_transfer_types),                   \
		FUNCTION(OSSL_FUNC_KEYMGMT_GET_PARAMS, handle_get_params),                         \
		FUNCTION(OSSL_FUNC_KEYMGMT_GETTABLE_PARAMS, handle_gettable_params),               \
		FUNCTION(OSSL_FUNC_KEYMGMT_QUERY_OPERATION_NAME, operation),                       \
		{ 0, NULL },                                                                       \
	}

KEY_MANAGEMENT(rsa, TLS_KEY_RSA, rsa_operation);
KEY_MANAGEMENT(rsa_pss, TLS_KEY_RSA_PSS, rsa_operation);
KEY_MANAGEMENT(ec, TLS_KEY_EC, ec_operation);
KEY_MANAGEMENT(ed25519, TLS_KEY_ED25519, ed25519_operation);

/* Names as the default provider has them: the library treats them as one name. */
static const OSSL_ALGORITHM key_managements[] = {
	{ "RSA:rsaEncryption:1.2.840.113549.1.1.1", HANDLES, rsa_management, NULL },
	{ "RSA-PSS:RSASSA-PSS:1.2.840.113549.1.1.10", HANDLES, rsa_pss_management, NULL },
	{ "EC:id-ecPublicKey:1.2.840.10045.2.1", HANDLES, ec_management, NULL },
	{ "ED25519:1.3.101.112", HANDLES, ed25519_management, NULL },
	{ NULL, NULL, NULL, NULL },
};

/* ---- signatures ---- */

struct signing {
	struct tls_key_provider *provider;
	const struct handle *handle; /* the library keeps it alive */
	size_t digest;		     /* index into tls_digests */
	struct message_sign sign;
};

static void *
signing_new(void *provider, const char *properties)
{
	struct signing *signing = calloc(1, sizeof *signing);

	(void)properties;
	if (signing)
		signing->provider = provider;
	return signing;
}

static void
signing_free(void *context)
{
	free(context);
}

static bool
choose_digest(struct signing *signing, const char *name)
{
	for (size_t i = 0; i < TLS_DIGEST_COUNT; i++) {
		if (!EVP_MD_is_a(signing->provider->digests[i], name))
			continue;
		signing->digest = i;
		message_text(signing->sign.digest_name, sizeof signing->sign.digest_name,
		    tls_digests[i].name);
		return true;
	}
	return false;
}

static void
set_padding(struct message_sign *sign, int padding)
{
	sign->padding = (uint16_t)padding;
	sign->salt_length = padding == RSA_PKCS1_PSS_PADDING ? RSA_PSS_SALTLEN_DIGEST : 0;
}

static int
set_pad_mode(struct message_sign *sign, const OSSL_PARAM *parameter)
{
	int padding = 0;

	if (parameter->data_type == OSSL_PARAM_UTF8_STRING) {
		if (strcasecmp(parameter->data, OSSL_PKEY_RSA_PAD_MODE_PKCSV15) == 0)
			padding = RSA_PKCS1_PADDING;
		else if (strcasecmp(parameter->data, OSSL_PKEY_RSA_PAD_MODE_PSS) == 0)
			padding = RSA_PKCS1_PSS_PADDING;
	} else if (OSSL_PARAM_get_int(parameter, &padding) != 1) {
		return 0;
	}
	if (padding != RSA_PKCS1_PADDING && padding != RSA_PKCS1_PSS_PADDING)
		return 0;
	set_padding(sign, padding);
	return 1;
}

/* TLS has one salt length: that of the digest (RFC 8446, section 4.2.3). */
static bool
salt_length_served(const OSSL_PARAM *parameter)
{
	int length;

	if (parameter->data_type == OSSL_PARAM_UTF8_STRING)
		return strcasecmp(parameter->data, OSSL_PKEY_RSA_PSS_SALT_LEN_DIGEST) == 0;
	return OSSL_PARAM_get_int(parameter, &length) == 1 && length == RSA_PSS_SALTLEN_DIGEST;
}

static int
signing_set_params(void *context, const OSSL_PARAM parameters[])
{
	struct signing *signing = context;
	const OSSL_PARAM *mode = NULL;
	const OSSL_PARAM *salt = NULL;

	if (parameters) {
		mode = OSSL_PARAM_locate_const(parameters, OSSL_SIGNATURE_PARAM_PAD_MODE);
		salt = OSSL_PARAM_locate_const(parameters, OSSL_SIGNATURE_PARAM_PSS_SALTLEN);
	}
	if (mode && !set_pad_mode(&signing->sign, mode))
		return 0;
	return !salt || salt_length_served(salt);
}

static const OSSL_PARAM *
signing_settable_params(void *context, void *provider)
{
	static const OSSL_PARAM settable[] = {
		OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_PAD_MODE, NULL, 0),
		OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_PSS_SALTLEN, NULL, 0),
		OSSL_PARAM_END,
	};

	(void)context;
	(void)provider;
	return settable;
}

static int
signing_start(void *context, const char *digest_name, void *key, const OSSL_PARAM parameters[])
{
	struct signing *signing = context;

	if (key)
		signing->handle = key;
	if (!signing->handle || !signing->handle->public_part)
		return 0;
	memset(&signing->sign, 0, sizeof signing->sign);
	if (signing->handle->kind == TLS_KEY_ED25519) {
		signing->sign.kind = SIGN_MESSAGE;
		return (!digest_name || !*digest_name) && signing_set_params(context, parameters);
	}
	signing->sign.kind = SIGN_DIGEST;
	if (!choose_digest(signing, digest_name ? digest_name : tls_digests[0].name))
		return 0;
	if (signing->handle->kind == TLS_KEY_RSA)
		set_padding(&signing->sign, RSA_PKCS1_PADDING);
	else if (signing->handle->kind == TLS_KEY_RSA_PSS)
		set_padding(&signing->sign, RSA_PKCS1_PSS_PADDING);
	return signing_set_params(context, parameters);
}

static int
signing_sign(void *context, unsigned char *signature, size_t *size_out, size_t room,
    const unsigned char *input, size_t input_size)
{
	struct signing *signing = context;
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned int digest_size = 0;

	if (!signature) {
		*size_out = (size_t)EVP_PKEY_get_size(signing->handle->public_part);
		return 1;
	}
	if (signing->sign.kind == SIGN_MESSAGE)
		return input_size <= MESSAGE_SIGN_INPUT_MAX &&
		       tls_signer_sign(&signing->provider->signer, &signing->sign, input,
			   input_size, signature, size_out, room);
	if (EVP_Digest(input, input_size, digest, &digest_size,
		signing->provider->digests[signing->digest], NULL) != 1)
		return 0;
	return tls_signer_sign(&signing->provider->signer, &signing->sign, digest, digest_size,
	    signature, size_out, room);
}

static const OSSL_DISPATCH signature_functions[] = {
	FUNCTION(OSSL_FUNC_SIGNATURE_NEWCTX, signing_new),
	FUNCTION(OSSL_FUNC_SIGNATURE_FREECTX, signing_free),
	FUNCTION(OSSL_FUNC_SIGNATURE_DIGEST_SIGN_INIT, signing_start),
	FUNCTION(OSSL_FUNC_SIGNATURE_DIGEST_SIGN, signing_sign),
	FUNCTION(OSSL_FUNC_SIGNATURE_SET_CTX_PARAMS, signing_set_params),
	FUNCTION(OSSL_FUNC_SIGNATURE_SETTABLE_CTX_PARAMS, signing_settable_params),
	{ 0, NULL },
};

static const OSSL_ALGORITHM signatures[] = {
	{ "RSA:rsaEncryption:1.2.840.113549.1.1.1", HANDLES, signature_functions, NULL },
	{ "ECDSA", HANDLES, signature_functions, NULL },
	{ "ED25519:1.3.101.112", HANDLES, signature_functions, NULL },
	{ NULL, NULL, NULL, NULL },
};

/* ---- the provider ---- */

static const OSSL_ALGORITHM *
query_operation(void *provider, int operation, int *no_cache)
{
	(void)provider;
	*no_cache = 0;
	if (operation == OSSL_OP_KEYMGMT)
		return key_managements;
	return operation == OSSL_OP_SIGNATURE ? signatures : NULL;
}

static const OSSL_DISPATCH provider_functions[] = {
	FUNCTION(OSSL_FUNC_PROVIDER_QUERY_OPERATION, query_operation),
	FUNCTION(OSSL_FUNC_PROVIDER_TEARDOWN, free),
	{ 0, NULL },
};

/* The library owns what is made here and gives it back to teardown. */
static int
start_provider(const OSSL_CORE_HANDLE *core, const OSSL_DISPATCH *offered,
    const OSSL_DISPATCH **functions_out, void **provider_out)
{
	struct tls_key_provider *provider = calloc(1, sizeof *provider);

	(void)core;
	(void)offered;
	if (!provider)
		return 0;
	tls_signer_start(&provider->signer);
	*functions_out = provider_functions;
	*provider_out = provider;
	return 1;
}

/* Both would do for an unqualified "EC": the optional clause says that the library's own wins. */
static struct tls_key_provider *
load_providers(OSSL_LIB_CTX *library)
{
	OSSL_PROVIDER *standard = OSSL_PROVIDER_load(library, "default");
	OSSL_PROVIDER *handles = NULL;
	struct tls_key_provider *provider;

	if (standard && OSSL_PROVIDER_add_builtin(library, PROVIDER_NAME, start_provider) == 1 &&
	    EVP_set_default_properties(library, PREFER_LIBRARYS_OWN) == 1)
		handles = OSSL_PROVIDER_load(library, PROVIDER_NAME);
	if (!handles) {
		if (standard)
			OSSL_PROVIDER_unload(standard);
		return NULL;
	}
	provider = OSSL_PROVIDER_get0_provider_ctx(handles);
	provider->library = library;
	provider->standard = standard;
	provider->handles = handles;
	return provider;
}

int
tls_key_provider_new(struct tls_key_provider **provider_out, struct error *error)
{
	OSSL_LIB_CTX *library = OSSL_LIB_CTX_new();
	struct tls_key_provider *provider = library ? load_providers(library) : NULL;

	if (!provider) {
		OSSL_LIB_CTX_free(library);
		return tls_library_error(error, ERROR_SYSTEM, "cannot start the key provider");
	}
	for (size_t i = 0; i < TLS_DIGEST_COUNT; i++) {
		provider->digests[i] = EVP_MD_fetch(library, tls_digests[i].name, NULL);
		if (!provider->digests[i]) {
			tls_key_provider_free(provider);
			return tls_library_error(error, ERROR_SYSTEM, tls_digests[i].name);
		}
	}
	*provider_out = provider;
	return 0;
}

void
tls_key_provider_free(struct tls_key_provider *provider)
{
	OSSL_LIB_CTX *library;
	OSSL_PROVIDER *standard;

	if (!provider)
		return;
	library = provider->library;
	standard = provider->standard;
	for (size_t i = 0; i < TLS_DIGEST_COUNT; i++)
		EVP_MD_free(provider->digests[i]);
	OSSL_PROVIDER_unload(provider->handles);
	OSSL_PROVIDER_unload(standard);
	OSSL_LIB_CTX_free(library);
}

OSSL_LIB_CTX *
tls_key_library(const struct tls_key_provider *provider)
{
	return provider->library;
}

struct tls_signer *
tls_key_signer(struct tls_key_provider *provider)
{
	return &provider->signer;
}

static EVP_PKEY *
make_handle(struct tls_key_provider *provider, enum tls_key_kind kind, OSSL_PARAM *public_part)
{
	EVP_PKEY_CTX *context =
	    EVP_PKEY_CTX_new_from_name(provider->library, tls_key_kind_name(kind), HANDLES);
	EVP_PKEY *key = NULL;

	if (context && EVP_PKEY_fromdata_init(context) == 1 &&
	    EVP_PKEY_fromdata(context, &key, EVP_PKEY_KEYPAIR, public_part) != 1)
		key = NULL;
	EVP_PKEY_CTX_free(context);
	return key;
}

int
tls_key_handle(
    struct tls_key_provider *provider, X509 *certificate, EVP_PKEY **key_out, struct error *error)
{
	EVP_PKEY *public_key = X509_get0_pubkey(certificate);
	OSSL_PARAM *parameters = NULL;
	enum tls_key_kind kind;

	if (!public_key)
		return tls_library_error(error, ERROR_FORMAT, "the key of the certificate");
	if (tls_key_kind_of(public_key, &kind, error) < 0)
		return -1;
	*key_out = NULL;
	if (EVP_PKEY_todata(public_key, EVP_PKEY_PUBLIC_KEY, &parameters) == 1)
		*key_out = make_handle(provider, kind, parameters);
	OSSL_PARAM_free(parameters);
	if (!*key_out)
		return tls_library_error(error, ERROR_SYSTEM, "cannot make a key handle");
	return 0;
}
