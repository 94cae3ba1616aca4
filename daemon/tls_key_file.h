/*
 * Certificate and private key as they stand in files (PEM, RFC 7468).
 *
 * Both may be in one file. Therefore a file is read into memory of its own, which is locked, left
 * out of core dumps and wiped; of a certificate file only the certificates ever reach the library.
 */
#ifndef QPOPPER_DAEMON_TLS_KEY_FILE_H
#define QPOPPER_DAEMON_TLS_KEY_FILE_H

#include <openssl/evp.h>
#include <openssl/x509.h>

#include "lib/error.h"
#include "lib/settings.h"

#define TLS_FILE_MAX	 (1u << 20) /* bytes of a certificate or key file */
#define TLS_WARNING_SIZE 256	    /* bytes, with the NUL */

/*
 * Read the certificates of a file, the server's own first, made for library context library (NULL:
 * the default one). *chain_out is the caller's (sk_X509_pop_free with X509_free). Private keys in
 * the file are wiped unread.
 */
int tls_read_chain(
    const char *path, OSSL_LIB_CTX *library, STACK_OF(X509) * *chain_out, struct error *error);

/*
 * Read the private key of the settings (tls-private-key-file, else the certificate file). The file
 * must belong to root or the calling user and be closed to others: ERROR_DENIED otherwise, and for
 * a key that is encrypted or of a kind that is not served. *key_out is the caller's.
 */
int tls_read_private_key(const struct settings *settings, EVP_PKEY **key_out, struct error *error);

/*
 * tls_check_files (tls.h) that also says what the administrator should know although it works:
 * warning is one line, "" when there is nothing to say (a certificate out of its dates, bits of
 * tls-options without effect).
 */
int tls_check_files_warn(
    const struct settings *settings, char warning[TLS_WARNING_SIZE], struct error *error);

#endif
