/* A valid message of each type, for the tests of messages. */
#ifndef QPOPPER_TESTS_UNIT_MESSAGE_SAMPLES_H
#define QPOPPER_TESTS_UNIT_MESSAGE_SAMPLES_H

#include "daemon/message.h"

#define X(name, number, senders, receivers, payload, tail, min_fds, max_fds) +1
enum {
	TYPE_COUNT = 0 MESSAGE_TABLE(X)
};
#undef X

extern const unsigned all_types[TYPE_COUNT];

/* One role that may send, and one that may receive, the type. */
enum role sender_of(unsigned type);
enum role receiver_of(unsigned type);

/* Fill message; its descriptors are only counted. */
void make_valid(unsigned type, struct message *message);

/* Make the tail size bytes long, in header and message. */
void set_tail(struct message *message, size_t size);

/* Bytes of the message as a packet. */
size_t packet_size(const struct message *message);

#endif
