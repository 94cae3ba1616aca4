/*
 * Who is connected: limits on connections in all, per address, and not yet authenticated. Kept by
 * the master across generations, so that a reload forgets nothing.
 */
#ifndef QPOPPER_DAEMON_LIMITS_H
#define QPOPPER_DAEMON_LIMITS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "lib/settings.h"

struct worker;
struct address_entry;

/* One open connection, from accept to close. */
struct connection {
	uint64_t session;
	struct worker *worker; /* which serves it */
	bool authenticated;
	struct address_entry *address;
	struct connection *next_of_worker;
	struct connection **link_of_worker; /* what points at this one */
	struct connection *next_in_bucket;
};

enum limits_answer {
	LIMITS_ADMIT,
	LIMITS_TOO_MANY,
	LIMITS_TOO_MANY_FROM_ADDRESS,
	LIMITS_TOO_MANY_UNAUTHENTICATED,
};

struct limits;

struct limits *limits_new(void); /* NULL only when memory is exhausted */
void limits_free(struct limits *limits);

/* Whether one more connection from that address may be served under these settings. */
enum limits_answer limits_check(const struct limits *limits, const struct settings *settings,
    const struct sockaddr_storage *peer);

/* The setting that an answer other than LIMITS_ADMIT speaks of. */
const char *limits_reached(enum limits_answer answer);

/*
 * Count a new connection (IPv6 by /64) and hook it into the worker's list, whose head is *list.
 * NULL only when memory is exhausted. Ended by limits_remove.
 */
struct connection *limits_add(struct limits *limits, const struct sockaddr_storage *peer,
    uint64_t session, struct worker *worker, struct connection **list);

/* The connection of that session if that worker serves it, or NULL. */
struct connection *limits_find(
    const struct limits *limits, uint64_t session, const struct worker *worker);

void limits_authenticated(struct limits *limits, struct connection *connection);
void limits_remove(struct limits *limits, struct connection *connection);

uint32_t limits_connections(const struct limits *limits);
uint32_t limits_unauthenticated(const struct limits *limits);

#endif
