/* Who is connected: see limits.h. Runs in the master. */
#include "config.h"

#include "daemon/limits.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define BUCKETS 8192u /* a power of two */

/* An address (IPv4 whole, IPv6 by /64) that has connections now. */
struct address_entry {
	uint8_t key[9]; /* family, then 8 bytes */
	uint32_t connections;
	struct address_entry *next;
};

struct limits {
	uint32_t connections;
	uint32_t unauthenticated;
	struct connection *sessions[BUCKETS];
	struct address_entry *addresses[BUCKETS];
};

struct limits *
limits_new(void)
{
	return calloc(1, sizeof(struct limits));
}

void
limits_free(struct limits *limits)
{
	if (limits == NULL)
		return;
	for (unsigned i = 0; i < BUCKETS; i++) {
		while (limits->sessions[i] != NULL)
			limits_remove(limits, limits->sessions[i]);
	}
	free(limits);
}

static void
key_of(const struct sockaddr_storage *peer, uint8_t key[9])
{
	memset(key, 0, 9);
	if (peer->ss_family == AF_INET6) {
		const struct sockaddr_in6 *v6 = (const void *)peer;
		if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr)) {
			key[0] = 4;
			memcpy(key + 1, v6->sin6_addr.s6_addr + 12, 4);
		} else {
			key[0] = 6;
			memcpy(key + 1, v6->sin6_addr.s6_addr, 8);
		}
	} else if (peer->ss_family == AF_INET) {
		const struct sockaddr_in *v4 = (const void *)peer;
		key[0] = 4;
		memcpy(key + 1, &v4->sin_addr, 4);
	}
}

static unsigned
address_bucket(const uint8_t key[9])
{
	return (unsigned)(XXH3_64bits(key, 9) & (BUCKETS - 1));
}

static struct address_entry *
find_address(const struct limits *limits, const uint8_t key[9])
{
	struct address_entry *entry = limits->addresses[address_bucket(key)];

	while (entry != NULL && memcmp(entry->key, key, 9) != 0)
		entry = entry->next;
	return entry;
}

static struct address_entry *
add_address(struct limits *limits, const uint8_t key[9])
{
	struct address_entry *entry = find_address(limits, key);
	unsigned bucket = address_bucket(key);

	if (entry != NULL)
		return entry;
	entry = calloc(1, sizeof *entry);
	if (entry == NULL)
		return NULL;
	memcpy(entry->key, key, sizeof entry->key);
	entry->next = limits->addresses[bucket];
	limits->addresses[bucket] = entry;
	return entry;
}

static void
drop_address(struct limits *limits, struct address_entry *entry)
{
	struct address_entry **link = &limits->addresses[address_bucket(entry->key)];

	while (*link != entry)
		link = &(*link)->next;
	*link = entry->next;
	free(entry);
}

enum limits_answer
limits_check(const struct limits *limits, const struct settings *settings,
    const struct sockaddr_storage *peer)
{
	const struct address_entry *entry;
	uint8_t key[9];

	if (limits->connections >= settings->max_connections)
		return LIMITS_TOO_MANY;
	if (limits->unauthenticated >= settings->max_unauthenticated)
		return LIMITS_TOO_MANY_UNAUTHENTICATED;
	key_of(peer, key);
	entry = find_address(limits, key);
	if (entry != NULL && entry->connections >= settings->max_connections_per_address)
		return LIMITS_TOO_MANY_FROM_ADDRESS;
	return LIMITS_ADMIT;
}

const char *
limits_reached(enum limits_answer answer)
{
	switch (answer) {
	case LIMITS_TOO_MANY_FROM_ADDRESS:
		return "max-connections-per-address";
	case LIMITS_TOO_MANY_UNAUTHENTICATED:
		return "max-unauthenticated";
	default:
		return "max-connections";
	}
}

struct connection *
limits_add(struct limits *limits, const struct sockaddr_storage *peer, uint64_t session,
    struct worker *worker, struct connection **list)
{
	struct connection *connection = calloc(1, sizeof *connection);
	uint8_t key[9];

	if (connection == NULL)
		return NULL;
	key_of(peer, key);
	connection->address = add_address(limits, key);
	if (connection->address == NULL) {
		free(connection);
		return NULL;
	}
	connection->address->connections++;
	connection->session = session;
	connection->worker = worker;
	connection->next_in_bucket = limits->sessions[session & (BUCKETS - 1)];
	limits->sessions[session & (BUCKETS - 1)] = connection;
	connection->next_of_worker = *list;
	connection->link_of_worker = list;
	if (*list != NULL)
		(*list)->link_of_worker = &connection->next_of_worker;
	*list = connection;
	limits->connections++;
	limits->unauthenticated++;
	return connection;
}

struct connection *
limits_find(const struct limits *limits, uint64_t session, const struct worker *worker)
{
	struct connection *connection = limits->sessions[session & (BUCKETS - 1)];

	while (connection != NULL && connection->session != session)
		connection = connection->next_in_bucket;
	return connection != NULL && connection->worker == worker ? connection : NULL;
}

void
limits_authenticated(struct limits *limits, struct connection *connection)
{
	if (connection->authenticated)
		return;
	connection->authenticated = true;
	limits->unauthenticated--;
}

void
limits_remove(struct limits *limits, struct connection *connection)
{
	struct connection **link = &limits->sessions[connection->session & (BUCKETS - 1)];

	while (*link != connection)
		link = &(*link)->next_in_bucket;
	*link = connection->next_in_bucket;
	*connection->link_of_worker = connection->next_of_worker;
	if (connection->next_of_worker != NULL)
		connection->next_of_worker->link_of_worker = connection->link_of_worker;
	if (--connection->address->connections == 0)
		drop_address(limits, connection->address);
	if (!connection->authenticated)
		limits->unauthenticated--;
	limits->connections--;
	free(connection);
}

uint32_t
limits_connections(const struct limits *limits)
{
	return limits->connections;
}

uint32_t
limits_unauthenticated(const struct limits *limits)
{
	return limits->unauthenticated;
}
