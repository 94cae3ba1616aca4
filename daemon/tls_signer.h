/*
 * The worker's end of the channel to the signer: one round trip SIGN, SIGNATURE (message.h) for
 * each signature, which blocks for at most TLS_SIGNER_TIMEOUT seconds.
 */
#ifndef QPOPPER_DAEMON_TLS_SIGNER_H
#define QPOPPER_DAEMON_TLS_SIGNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/message.h"
#include "lib/error.h"

#define TLS_SIGNER_TIMEOUT 5 /* seconds */

struct tls_signer {
	int channel;	  /* borrowed; -1: none */
	uint32_t request; /* number of the last one */
	bool unanswered;  /* its answer has not come */
	bool failed;
	struct error failure;
};

/* No channel yet: every signature fails. */
void tls_signer_start(struct tls_signer *signer);

/*
 * The channel to use from now on (SOCK_SEQPACKET, borrowed), or -1 for none. It is set to blocking
 * with time-outs.
 */
void tls_signer_set_channel(struct tls_signer *signer, int channel);

/*
 * Have input signed as *sign says (its request number is filled in); at most room bytes go to
 * signature. Returns 1, or 0 on failure: what the library's provider interface wants.
 */
int tls_signer_sign(struct tls_signer *signer, struct message_sign *sign,
    const unsigned char *input, size_t input_size, unsigned char *signature, size_t *size_out,
    size_t room);

/*
 * Why the last signature failed, if one failed since the last call: ERROR_TIMEOUT, ERROR_CLOSED
 * (no signer), ERROR_FORMAT (garbage), ERROR_DENIED (refused). After the middle two the channel
 * is not used again.
 */
bool tls_signer_take_failure(struct tls_signer *signer, struct error *failure_out);

#endif
