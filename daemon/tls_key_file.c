/*
 * Reading of certificate and private key: see tls_key_file.h. Runs in the signer and in the check
 * of a configuration (both), and in the worker parent (certificates only). Trusts the paths of the
 * settings; contents are checked by the library.
 */
#include "config.h"

#include "daemon/tls_key_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>

#include "daemon/tls.h"
#include "daemon/tls_policy.h"

/* ---- a file in memory of its own ---- */

struct file_bytes {
	char *bytes; /* a mapping of capacity bytes */
	size_t size, capacity;
};

static void
file_bytes_free(struct file_bytes *file)
{
	if (!file->bytes)
		return;
	explicit_bzero(file->bytes, file->capacity);
	munmap(file->bytes, file->capacity);
	file->bytes = NULL;
}

static int
file_bytes_reserve(struct file_bytes *file, size_t capacity, struct error *error)
{
	void *bytes =
	    mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (bytes == MAP_FAILED)
		return error_set_errno(error, errno, "no memory for a certificate file");
	*file = (struct file_bytes){ bytes, 0, capacity };
	madvise(bytes, capacity, MADV_DONTDUMP);
	/* Without the right to lock the bytes are in memory for a moment only, and then wiped. */
	mlock(bytes, capacity);
	return 0;
}

/* A key that others can read is no secret any more: better to say so than to go on using it. */
static int
check_key_file(const struct stat *status, const char *path, struct error *error)
{
	if (status->st_uid != 0 && status->st_uid != geteuid())
		return error_set(error, ERROR_DENIED,
		    "%s holds the private key but belongs to user %u; chown it to root", path,
		    (unsigned)status->st_uid);
	if (status->st_mode & (S_IRWXO | S_IWGRP))
		return error_set(error, ERROR_DENIED,
		    "%s holds the private key but has mode %04o; chmod it to 0600 or 0640", path,
		    (unsigned)status->st_mode & 07777);
	return 0;
}

static int
open_file(const char *path, bool for_key, int *fd_out, struct error *error)
{
	struct stat status;
	int result = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd < 0)
		return error_set_errno(error, errno, "cannot open %s", path);
	if (fstat(fd, &status) < 0)
		result = error_set_errno(error, errno, "cannot examine %s", path);
	else if (!S_ISREG(status.st_mode))
		result = error_set(error, ERROR_DENIED, "%s is not a regular file", path);
	else if (status.st_size > TLS_FILE_MAX)
		result =
		    error_set(error, ERROR_LIMIT, "%s is larger than %u bytes", path, TLS_FILE_MAX);
	else if (for_key)
		result = check_key_file(&status, path, error);
	if (result < 0)
		close(fd);
	else
		*fd_out = fd;
	return result;
}

static int
read_whole(int fd, const char *path, struct file_bytes *file, struct error *error)
{
	while (file->size < file->capacity) {
		ssize_t got = read(fd, file->bytes + file->size, file->capacity - file->size);

		if (got == 0)
			return 0;
		if (got < 0 && errno != EINTR)
			return error_set_errno(error, errno, "cannot read %s", path);
		if (got > 0)
			file->size += (size_t)got;
	}
	return error_set(error, ERROR_LIMIT, "%s is larger than %u bytes", path, TLS_FILE_MAX);
}

static int
file_read(const char *path, bool for_key, struct file_bytes *file, struct error *error)
{
	int result;
	int fd = -1;

	file->bytes = NULL;
	if (open_file(path, for_key, &fd, error) < 0)
		return -1;
	result = file_bytes_reserve(file, TLS_FILE_MAX + 1, error);
	if (result == 0)
		result = read_whole(fd, path, file, error);
	if (result < 0)
		file_bytes_free(file);
	close(fd);
	return result;
}

/* ---- certificates ---- */

static bool
line_begins(const char *line, size_t length, const char *text)
{
	return length >= strlen(text) && memcmp(line, text, strlen(text)) == 0;
}

static bool
begins_certificate(const char *line, size_t length)
{
	return line_begins(line, length, "-----BEGIN CERTIFICATE-----") ||
	       line_begins(line, length, "-----BEGIN TRUSTED CERTIFICATE-----") ||
	       line_begins(line, length, "-----BEGIN X509 CERTIFICATE-----");
}

/* Keep the certificate blocks, move them to the front and wipe everything else. */
static void
keep_certificates(struct file_bytes *file)
{
	size_t kept = 0;
	bool keeping = false;

	for (size_t start = 0, length; start < file->size; start += length) {
		const char *line = file->bytes + start;
		const char *newline = memchr(line, '\n', file->size - start);
		bool ends;

		length = newline ? (size_t)(newline - line) + 1 : file->size - start;
		ends = line_begins(line, length, "-----END ");
		if (line_begins(line, length, "-----BEGIN "))
			keeping = begins_certificate(line, length);
		if (keeping) {
			memmove(file->bytes + kept, line, length);
			kept += length;
		}
		if (ends)
			keeping = false;
	}
	explicit_bzero(file->bytes + kept, file->capacity - kept);
	file->size = kept;
}

static int
parse_certificates(BIO *pem, OSSL_LIB_CTX *library, STACK_OF(X509) * chain)
{
	for (;;) {
		X509 *certificate = X509_new_ex(library, NULL);
		unsigned long number;

		if (!certificate)
			return -1;
		if (PEM_read_bio_X509_AUX(pem, &certificate, NULL, NULL)) {
			if (sk_X509_push(chain, certificate) > 0)
				continue;
			X509_free(certificate);
			return -1;
		}
		X509_free(certificate);
		number = ERR_peek_last_error();
		if (ERR_GET_LIB(number) != ERR_LIB_PEM ||
		    ERR_GET_REASON(number) != PEM_R_NO_START_LINE)
			return -1;
		ERR_clear_error();
		return 0;
	}
}

static int
make_chain(const struct file_bytes *file, OSSL_LIB_CTX *library, STACK_OF(X509) * *chain_out)
{
	BIO *pem = BIO_new_mem_buf(file->bytes, (int)file->size);
	STACK_OF(X509) *chain = sk_X509_new_null();
	int result = -1;

	if (pem && chain)
		result = parse_certificates(pem, library, chain);
	BIO_free(pem);
	if (result < 0)
		sk_X509_pop_free(chain, X509_free);
	else
		*chain_out = chain;
	return result;
}

int
tls_read_chain(
    const char *path, OSSL_LIB_CTX *library, STACK_OF(X509) * *chain_out, struct error *error)
{
	struct file_bytes file;
	char what[512];
	int result;

	if (file_read(path, false, &file, error) < 0)
		return -1;
	keep_certificates(&file);
	ERR_clear_error();
	result = make_chain(&file, library, chain_out);
	file_bytes_free(&file);
	snprintf(what, sizeof what, "%s: a certificate cannot be read", path);
	if (result < 0)
		return tls_library_error(error, ERROR_FORMAT, what);
	if (sk_X509_num(*chain_out) > 0)
		return 0;
	sk_X509_free(*chain_out);
	return error_set(error, ERROR_FORMAT, "%s holds no PEM certificate", path);
}

/* ---- the private key ---- */

static int
refuse_passphrase(char *buffer, int size, int writing, void *asked)
{
	(void)buffer;
	(void)size;
	(void)writing;
	*(bool *)asked = true;
	return -1;
}

static int
parse_key(const struct file_bytes *file, const char *path, EVP_PKEY **key_out, struct error *error)
{
	bool encrypted = false;
	BIO *pem = BIO_new_mem_buf(file->bytes, (int)file->size);
	char what[512];

	ERR_clear_error();
	*key_out = pem ? PEM_read_bio_PrivateKey(pem, NULL, refuse_passphrase, &encrypted) : NULL;
	BIO_free(pem);
	if (*key_out)
		return 0;
	if (encrypted) {
		ERR_clear_error();
		return error_set(error, ERROR_DENIED,
		    "%s: the private key is encrypted; nobody can type a passphrase to a service",
		    path);
	}
	snprintf(what, sizeof what, "%s holds no PEM private key that can be read", path);
	return tls_library_error(error, ERROR_FORMAT, what);
}

int
tls_read_private_key(const struct settings *settings, EVP_PKEY **key_out, struct error *error)
{
	const char *path = settings->tls_private_key_file;
	enum tls_key_kind kind;
	struct file_bytes file;
	int result;

	if (!*path)
		path = settings->tls_server_cert_file;
	if (file_read(path, true, &file, error) < 0)
		return -1;
	result = parse_key(&file, path, key_out, error);
	file_bytes_free(&file);
	if (result == 0 && tls_key_kind_of(*key_out, &kind, error) < 0) {
		EVP_PKEY_free(*key_out);
		result = -1;
	}
	return result;
}

/* ---- checking both ---- */

static void
find_warning(const struct settings *settings, const X509 *certificate, char *warning)
{
	const char *path = settings->tls_server_cert_file;
	uint64_t unused = (uint64_t)settings->tls_options & ~TLS_OPTIONS_HONOURED;

	warning[0] = '\0';
	if (X509_cmp_current_time(X509_get0_notAfter(certificate)) <= 0)
		snprintf(warning, TLS_WARNING_SIZE, "%s: the certificate has expired", path);
	else if (X509_cmp_current_time(X509_get0_notBefore(certificate)) > 0)
		snprintf(warning, TLS_WARNING_SIZE, "%s: the certificate is not valid yet", path);
	else if (unused)
		snprintf(warning, TLS_WARNING_SIZE, "tls-options: 0x%llx has no effect",
		    (unsigned long long)unused);
}

static int
check_chain(SSL_CTX *context, STACK_OF(X509) * chain, const char *path, struct error *error)
{
	char what[512];

	snprintf(what, sizeof what, "%s: the certificate is refused", path);
	if (SSL_CTX_use_certificate(context, sk_X509_value(chain, 0)) != 1)
		return tls_library_error(error, ERROR_DENIED, what);
	for (int i = 1; i < sk_X509_num(chain); i++)
		if (SSL_CTX_add1_chain_cert(context, sk_X509_value(chain, i)) != 1)
			return tls_library_error(error, ERROR_DENIED, what);
	return 0;
}

static int
check_pair(
    const struct settings *settings, STACK_OF(X509) * chain, EVP_PKEY *key, struct error *error)
{
	const char *path = settings->tls_server_cert_file;
	SSL_CTX *context = SSL_CTX_new(TLS_server_method());
	int result;

	ERR_clear_error();
	if (!context)
		return tls_library_error(error, ERROR_SYSTEM, "cannot start TLS");
	result = tls_policy_apply(context, settings, error);
	if (result == 0)
		result = check_chain(context, chain, path, error);
	if (result == 0 && X509_check_private_key(sk_X509_value(chain, 0), key) != 1) {
		ERR_clear_error();
		result = error_set(error, ERROR_DENIED,
		    "the private key does not belong to the first certificate of %s", path);
	}
	if (result == 0 && SSL_CTX_use_PrivateKey(context, key) != 1)
		result = tls_library_error(error, ERROR_DENIED, "the private key is refused");
	SSL_CTX_free(context);
	return result;
}

int
tls_check_files_warn(
    const struct settings *settings, char warning[TLS_WARNING_SIZE], struct error *error)
{
	STACK_OF(X509) *chain = NULL;
	EVP_PKEY *key = NULL;
	int result;

	if (tls_read_chain(settings->tls_server_cert_file, NULL, &chain, error) < 0)
		return -1;
	result = tls_read_private_key(settings, &key, error);
	if (result == 0) {
		result = check_pair(settings, chain, key, error);
		EVP_PKEY_free(key);
	}
	if (result == 0)
		find_warning(settings, sk_X509_value(chain, 0), warning);
	sk_X509_pop_free(chain, X509_free);
	return result;
}

int
tls_check_files(const struct settings *settings, struct error *error)
{
	char warning[TLS_WARNING_SIZE];

	return tls_check_files_warn(settings, warning, error);
}
