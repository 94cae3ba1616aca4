/*
 * Asking the signer for signatures: see tls_signer.h. Runs in workers, blocks for the round trip;
 * trusts the signer to sign but not to answer: what comes back is a message like any other.
 */
#include "config.h"

#include "daemon/tls_signer.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

void
tls_signer_start(struct tls_signer *signer)
{
	memset(signer, 0, sizeof *signer);
	signer->channel = -1;
}

void
tls_signer_set_channel(struct tls_signer *signer, int channel)
{
	struct timeval limit = { .tv_sec = TLS_SIGNER_TIMEOUT };
	int flags;

	signer->channel = channel;
	signer->unanswered = false;
	if (channel < 0)
		return;
	flags = fcntl(channel, F_GETFL);
	if (flags < 0 || fcntl(channel, F_SETFL, flags & ~O_NONBLOCK) < 0 ||
	    setsockopt(channel, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0 ||
	    setsockopt(channel, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) < 0)
		signer->channel = -1;
}

static int
receive_answer(struct tls_signer *signer, struct message *answer, struct error *error)
{
	bool got;

	if (message_receive(signer->channel, ROLE_SIGNER, ROLE_WORKER, answer, &got, error) < 0)
		return -1;
	if (!got)
		return error_set(error, ERROR_TIMEOUT, "the signer did not answer within %d s",
		    TLS_SIGNER_TIMEOUT);
	/* No type from signer to worker carries a descriptor. */
	if (answer->payload.signature.request != signer->request)
		return error_set(error, ERROR_FORMAT, "the signer answered another request");
	signer->unanswered = false;
	return 0;
}

/*
 * After a time-out its late answer is still to come. Until it has come nothing is asked, so that a
 * signer that hangs costs one wait and not one for each connection.
 */
static int
collect_late_answer(struct tls_signer *signer, struct error *error)
{
	struct pollfd wait = { .fd = signer->channel, .events = POLLIN };
	struct message late;

	if (!signer->unanswered)
		return 0;
	if (poll(&wait, 1, 0) != 1)
		return error_set(error, ERROR_TIMEOUT, "the signer has not answered yet");
	return receive_answer(signer, &late, error);
}

static int
ask_signer(struct tls_signer *signer, struct message_sign *sign, const unsigned char *input,
    size_t input_size, struct message *answer, struct error *error)
{
	if (signer->channel < 0)
		return error_set(error, ERROR_CLOSED, "there is no signer");
	if (collect_late_answer(signer, error) < 0)
		return -1;
	sign->request = ++signer->request;
	if (message_send(signer->channel, MESSAGE_SIGN, sign, input, input_size, NULL, 0, error) <
	    0)
		return -1;
	signer->unanswered = true;
	if (receive_answer(signer, answer, error) < 0)
		return -1;
	if (answer->payload.signature.status != SIGNATURE_MADE)
		return error_set(error, ERROR_DENIED, "the signer refused to sign");
	return 0;
}

int
tls_signer_sign(struct tls_signer *signer, struct message_sign *sign, const unsigned char *input,
    size_t input_size, unsigned char *signature, size_t *size_out, size_t room)
{
	struct message answer;
	struct error *error = &signer->failure;
	int result = ask_signer(signer, sign, input, input_size, &answer, error);

	if (result == 0 && answer.tail_size > room)
		result = error_set(error, ERROR_FORMAT, "the signature is too long");
	if (result < 0) {
		signer->failed = true;
		if (error->code == ERROR_CLOSED || error->code == ERROR_FORMAT)
			signer->channel = -1;
		return 0;
	}
	memcpy(signature, answer.tail, answer.tail_size);
	*size_out = answer.tail_size;
	return 1;
}

bool
tls_signer_take_failure(struct tls_signer *signer, struct error *failure_out)
{
	bool failed = signer->failed;

	if (failed)
		*failure_out = signer->failure;
	signer->failed = false;
	return failed;
}
