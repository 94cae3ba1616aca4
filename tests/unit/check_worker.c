/*
 * Proves the program qpopper-worker as it is: it is executed with the descriptors of its role, and
 * this program plays the master, the monitor, the account check and the client.
 */
#include "config.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/message.h"
#include "daemon/role.h"
#include "daemon/sandbox.h"
#include "lib/buffer.h"
#include "lib/mbox.h"
#include "lib/settings.h"

#define PATIENCE   15		/* seconds that anything may take */
#define ANSWER_MAX (8u << 20)	/* octets of an answer */
#define BIG_LINES  20000	/* of the big message: some chunks of the worker */
#define CHUNK	   (128u << 10) /* what the worker reads at once */
#define FULL_SEALS (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)

static struct {
	pid_t pid;
	int parent; /* channel of the master to the worker parent */
	int master, monitor, auth, signer;
	int log;
	uint64_t next_session;
	bool exited;
	char directory[64];
	struct settings *settings;
} service;

struct client {
	int fd;
	uint64_t session;
};

static struct {
	char path[96];
	int fd;
	struct mbox_table table;
	struct stat status;
	struct buffer bytes;
} spool;

/* ---- the service around the worker ---- */

static void
set_patience(int fd)
{
	struct timeval time = { .tv_sec = PATIENCE };

	ck_assert_int_eq(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time), 0);
}

static void
make_channel(int pair[2])
{
	struct error error;

	ck_assert_int_eq(message_channel_pair(pair, false, &error), 0);
	set_patience(pair[0]);
}

static void
execute_worker(int parent, int settings, int log)
{
	const char *program = getenv("QPOPPER_WORKER");
	int wanted[] = { parent, settings, log };

	for (int i = 0; i < 3; i++)
		wanted[i] = fcntl(wanted[i], F_DUPFD, 20);
	for (int i = 0; i < 3; i++)
		dup2(wanted[i], ROLE_FD_MASTER + i);
	close_range(ROLE_FD_LOG + 1, ~0u, 0);
	if (program == NULL)
		program = "./qpopper-worker";
	execl(program, program, (char *)NULL);
	_exit(127);
}

/* The next message on a channel, which must be of this type. */
static void
expect_message(int fd, enum role sender, enum role receiver, enum message_type type,
	       struct message *message)
{
	struct error error = { .text = "nothing came" };
	bool got = false;

	ck_assert_msg(message_receive(fd, sender, receiver, message, &got, &error) == 0 && got,
		      "%s: %s", message_type_name(type), error.text);
	ck_assert_str_eq(message_type_name(message->header.type), message_type_name(type));
}

static void
send_message(int fd, enum message_type type, const void *payload, const void *tail,
	     size_t tail_size, const int *fds, unsigned fd_count)
{
	struct error error = { .text = "" };

	ck_assert_msg(message_send(fd, type, payload, tail, tail_size, fds, fd_count, &error) == 0,
		      "%s", error.text);
}

static void
start_worker(void)
{
	struct message_worker start = { .worker = 1 };
	int pairs[4][2];
	int fds[4];

	for (int i = 0; i < 4; i++) {
		make_channel(pairs[i]);
		fds[i] = pairs[i][1];
	}
	send_message(service.parent, MESSAGE_WORKER_START, &start, NULL, 0, fds, 4);
	for (int i = 0; i < 4; i++)
		close(fds[i]);
	service.master = pairs[0][0];
	service.monitor = pairs[1][0];
	service.auth = pairs[2][0];
	service.signer = pairs[3][0];
}

static void
set_defaults(void)
{
	char path[96];

	snprintf(service.directory, sizeof service.directory, "%s/qpopper-worker-XXXXXX",
		 access("/var/tmp", W_OK) == 0 ? "/var/tmp" : "/tmp");
	ck_assert_ptr_nonnull(mkdtemp(service.directory));
	ck_assert_int_eq(chmod(service.directory, 0711), 0);
	snprintf(path, sizeof path, "%s%s", service.directory, ROLE_EMPTY_DIRECTORY);
	ck_assert_int_eq(mkdir(path, 0755), 0);
	service.settings = settings_new();
	free(service.settings->state_dir);
	service.settings->state_dir = strdup(service.directory);
	free(service.settings->worker_user);
	service.settings->worker_user = strdup("nobody");
	service.settings->sandbox = SANDBOX_WEAK;
	service.settings->clear_text_password = CLEAR_TEXT_ALWAYS;
	service.settings->failure_delay = 0;
}

/* The descriptors 3 to 6 belong to the test framework here; only the program's numbers are fixed.
 */
static void
start_service(void)
{
	struct message message;
	struct error error;
	int parent[2], log[2], frozen;

	make_channel(parent);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, log), 0);
	set_patience(log[0]);
	ck_assert_int_eq(settings_freeze(service.settings, &frozen, &error), 0);
	service.pid = fork();
	if (service.pid == 0)
		execute_worker(parent[1], frozen, log[1]);
	close(parent[1]);
	close(log[1]);
	close(frozen);
	service.parent = parent[0];
	service.log = log[0];
	service.next_session = 1;
	expect_message(service.parent, ROLE_WORKER_PARENT, ROLE_MASTER, MESSAGE_READY, &message);
	start_worker();
}

/* The worker must end by itself with this exit status once its channels end. */
static void
expect_exit(int status)
{
	struct message message;

	expect_message(service.parent, ROLE_WORKER_PARENT, ROLE_MASTER, MESSAGE_WORKER_EXITED,
		       &message);
	ck_assert_int_eq(message.payload.worker.worker, 1);
	ck_assert_int_eq(message.payload.worker.status, status << 8);
	service.exited = true;
}

static void
set_up(void)
{
	set_defaults();
	start_service();
}

static void
tear_down(void)
{
	char command[128];
	int status;

	close(service.master);
	if (!service.exited)
		expect_exit(ROLE_EXIT_DONE);
	close(service.parent);
	ck_assert_int_eq(waitpid(service.pid, &status, 0), service.pid);
	ck_assert_int_eq(status, 0);
	mbox_table_free(&spool.table);
	buffer_reset(&spool.bytes);
	settings_free(service.settings);
	snprintf(command, sizeof command, "rm -rf %s", service.directory);
	ck_assert_int_eq(system(command), 0);
}

/* ---- clients ---- */

static void
send_connection(struct client *client, int fd)
{
	struct message_connection connection = { .session = service.next_session++,
						 .flags = CONNECTION_LOCAL,
						 .peer_port = 4711,
						 .local_port = 110,
						 .peer_address = "127.0.0.1",
						 .local_address = "127.0.0.1" };

	client->session = connection.session;
	send_message(service.master, MESSAGE_CONNECTION, &connection, NULL, 0, &fd, 1);
	close(fd);
}

/* A TCP connection whose kernel buffers are small, so that a slow client is felt soon. */
static void
connect_client(struct client *client)
{
	struct sockaddr_in address = { .sin_family = AF_INET,
				       .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof address;
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	int small = 4096;
	int fd;

	ck_assert_int_eq(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
	setsockopt(listener, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
	ck_assert_int_eq(listen(listener, 1), 0);
	getsockname(listener, (struct sockaddr *)&address, &length);
	client->fd = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(client->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
	set_patience(client->fd);
	ck_assert_int_eq(connect(client->fd, (struct sockaddr *)&address, sizeof address), 0);
	fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	close(listener);
	send_connection(client, fd);
}

static void
say(const struct client *client, const char *text)
{
	ck_assert_int_eq(send(client->fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

/* At most size octets, less only at the end of the connection. */
static size_t
hear(const struct client *client, char *out, size_t size)
{
	size_t done = 0;
	ssize_t got = 1;

	while (done < size && got > 0) {
		got = recv(client->fd, out + done, size - done, 0);
		ck_assert_msg(got >= 0 || errno == ECONNRESET, "nothing came: %s", strerror(errno));
		done += got > 0 ? (size_t)got : 0;
	}
	return done;
}

static void
expect_line(const struct client *client, const char *beginning)
{
	char line[600] = "";
	size_t length = 0;

	while (length < sizeof line - 1 && hear(client, line + length, 1) == 1)
		if (line[length++] == '\n')
			break;
	ck_assert_msg(strncmp(line, beginning, strlen(beginning)) == 0 && length > 0 &&
			  line[length - 1] == '\n',
		      "expected \"%s\", got \"%s\"", beginning, line);
}

static void
expect_end(const struct client *client)
{
	char octet;

	ck_assert_uint_eq(hear(client, &octet, 1), 0);
	close(client->fd);
}

/* Skip log records up to one whose text or fields contain this. */
static void
expect_log(const char *wanted)
{
	char record[LOG_RECORD_MAX + 1];
	ssize_t size;

	while ((size = recv(service.log, record, LOG_RECORD_MAX, 0)) > 0)
		if (memmem(record, (size_t)size, wanted, strlen(wanted)) != NULL)
			return;
	ck_abort_msg("no log record has \"%s\"", wanted);
}

static void
expect_closed(const struct client *client)
{
	struct message message;

	expect_message(service.master, ROLE_WORKER, ROLE_MASTER, MESSAGE_CONNECTION_CLOSED,
		       &message);
	ck_assert_uint_eq(message.payload.session.session, client->session);
}

/* ---- maildrops ---- */

static void
write_spool(void)
{
	ssize_t size = (ssize_t)buffer_size(&spool.bytes);
	int fd = open(spool.path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	ck_assert_int_eq(write(fd, buffer_bytes(&spool.bytes), (size_t)size), size);
	close(fd);
	nanosleep(&(struct timespec){ .tv_nsec = 30000000 }, NULL); /* the identity gets firm */
	ck_assert_int_eq(fstat(spool.fd, &spool.status), 0);
}

static void
scan_spool(void)
{
	struct error error = { .text = "" };

	mbox_table_free(&spool.table);
	ck_assert_msg(mbox_scan(&store_io_system, spool.fd, (uint64_t)spool.status.st_size,
				&spool.table, &error) == 0,
		      "%s", error.text);
}

/* Messages of lines lines; every third line begins with a dot. */
static void
make_spool(const char *directory, unsigned messages, unsigned lines)
{
	snprintf(spool.path, sizeof spool.path, "%s/spool", directory);
	spool.fd = open(spool.path, O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
	ck_assert_int_ge(spool.fd, 0);
	buffer_reset(&spool.bytes);
	buffer_start(&spool.bytes, ANSWER_MAX);
	for (unsigned i = 0; i < messages; i++) {
		buffer_append_format(
		    &spool.bytes, "From a@example.org Mon Nov  3 10:00:00 2025\nSubject: %u\n%s\n",
		    i, i % 50 == 7 ? "X-Other: y\n" : "");
		for (unsigned line = 0; line < lines; line++)
			buffer_append_format(&spool.bytes, "%sline %u of message %u\n",
					     line % 3 == 0 ? "." : "", line, i);
		buffer_append(&spool.bytes, "\n", 1);
	}
	write_spool();
	scan_spool();
}

/* What RETR must send for message i, made here in the plainest way. */
static size_t
expected_body(unsigned i, char *out)
{
	const struct mbox_message *message = &spool.table.messages[i];
	const char *in = buffer_bytes(&spool.bytes) + message->offset + message->separator_length;
	size_t size =
	    (size_t)snprintf(out, 64, "+OK %llu octets\r\n", (unsigned long long)message->octets);

	for (uint64_t k = 0; k < message->content_length; k++) {
		if (in[k] == '.' && (k == 0 || in[k - 1] == '\n'))
			out[size++] = '.';
		if (in[k] == '\n')
			out[size++] = '\r';
		out[size++] = in[k];
	}
	memcpy(out + size, ".\r\n", 3);
	return size + 3;
}

/* ---- logging in ---- */

/* A maildrop as the monitor hands it over; tests change it before it is sent. */
struct drop {
	struct message_login_result result;
	struct mbox_message *messages;
	char *strings;
	size_t size; /* of both, one behind the other */
	int seals;   /* of the memfd, if it does not travel inline */
};

static void
make_drop(struct drop *drop, const struct client *client)
{
	size_t messages_size = spool.table.count * sizeof(struct mbox_message);
	struct message_login_result *result = &drop->result;

	drop->size = messages_size + spool.table.strings_size;
	drop->messages = calloc(1, drop->size + 64);
	drop->strings = (char *)drop->messages + messages_size;
	drop->seals = FULL_SEALS;
	memcpy(drop->messages, spool.table.messages, messages_size);
	*result = (struct message_login_result){ .session = client->session,
						 .flags = LOGIN_HAS_SPOOL | LOGIN_HAS_LOCK,
						 .count = spool.table.count,
						 .total_octets = spool.table.total_octets,
						 .open_microseconds = 1,
						 .user = "alice" };
	spool_identity_of(&spool.status, &result->identity);
	if (drop->size > MESSAGE_TABLE_INLINE * sizeof(struct mbox_message))
		result->flags |= LOGIN_HAS_TABLE;
}

static void
send_drop(struct drop *drop)
{
	bool in_memfd = drop->result.flags & LOGIN_HAS_TABLE;
	int fds[3] = { spool.fd, open("/dev/null", O_RDONLY), -1 };

	if (in_memfd) {
		fds[2] = memfd_create("table", MFD_ALLOW_SEALING);
		ck_assert_int_eq(write(fds[2], drop->messages, drop->size), (ssize_t)drop->size);
		ck_assert_int_eq(fcntl(fds[2], F_ADD_SEALS, drop->seals), 0);
	}
	send_message(service.monitor, MESSAGE_LOGIN_RESULT, &drop->result, drop->messages,
		     in_memfd ? 0 : drop->size, fds, in_memfd ? 3 : 2);
	close(fds[1]);
	if (in_memfd)
		close(fds[2]);
	free(drop->messages);
}

static void
expect_request(const struct client *client, const char *user, const char *password)
{
	struct credentials credentials;
	struct message message;

	expect_message(service.auth, ROLE_WORKER, ROLE_AUTH, MESSAGE_AUTH_REQUEST, &message);
	ck_assert_uint_eq(message.payload.session.session, client->session);
	ck_assert_int_eq(read(message.fds[0], &credentials, sizeof credentials),
			 sizeof credentials);
	ck_assert_int_eq(read(message.fds[0], &message, 1), 0);
	ck_assert_uint_eq(credentials.magic, CREDENTIALS_MAGIC);
	ck_assert_str_eq(credentials.user, user);
	ck_assert_str_eq(credentials.password, password);
	ck_assert_str_eq(credentials.peer_address, "127.0.0.1");
	message_close(&message);
}

static void
send_failure(const struct client *client, enum login_status status)
{
	struct message_login_result result = {
		.session = client->session, .status = status, .user = "alice", .reason = "because"
	};

	send_message(service.monitor, MESSAGE_LOGIN_RESULT, &result, NULL, 0, NULL, 0);
}

/* Greeting, USER and PASS, up to where the monitor has to answer. */
static void
ask_login(struct client *client)
{
	connect_client(client);
	expect_line(client, "+OK Qpopper (version " PACKAGE_VERSION ") at ");
	say(client, "USER alice\r\n");
	expect_line(client, "+OK");
	say(client, "PASS  two words \r\n");
	expect_request(client, "alice", " two words ");
}

static void
expect_authenticated(const struct client *client)
{
	struct message message;

	expect_message(service.master, ROLE_WORKER, ROLE_MASTER, MESSAGE_AUTHENTICATED, &message);
	ck_assert_uint_eq(message.payload.session.session, client->session);
}

static void
log_in(struct client *client)
{
	struct drop drop;

	ask_login(client);
	make_drop(&drop, client);
	send_drop(&drop);
	expect_line(client, "+OK alice has ");
	expect_authenticated(client);
}

static void
expect_session_end(const struct client *client)
{
	struct message message;

	expect_message(service.monitor, ROLE_WORKER, ROLE_MONITOR, MESSAGE_SESSION_END, &message);
	ck_assert_uint_eq(message.payload.session.session, client->session);
	ck_assert_uint_eq(message.fd_count, 1);
	message_close(&message);
}

/* The session is over for everybody, and the log says why. */
static void
expect_over(const struct client *client, const char *end)
{
	char wanted[64];

	expect_session_end(client);
	expect_end(client);
	expect_closed(client);
	snprintf(wanted, sizeof wanted, "login ok, end %s", end);
	expect_log(wanted);
}

static void
quit(const struct client *client)
{
	say(client, "QUIT\r\n");
	expect_line(client, "+OK Pop server at ");
	expect_over(client, "quit");
}

/* ---- tests ---- */

static void
expect_body(const struct client *client, unsigned i)
{
	char *expected = malloc(ANSWER_MAX), *got = malloc(ANSWER_MAX);
	size_t size = expected_body(i, expected);

	ck_assert_uint_eq(hear(client, got, size), size);
	ck_assert_mem_eq(got, expected, size);
	free(expected);
	free(got);
}

START_TEST(messages_are_sent_octet_for_octet)
{
	struct client client;
	char text[64];

	make_spool(service.directory, 9, 40);
	log_in(&client);
	for (unsigned i = 0; i < 9; i++) {
		snprintf(text, sizeof text, "RETR %u\r\n", i + 1);
		say(&client, text);
		expect_body(&client, i);
	}
	say(&client, "TOP 2 1\r\nRETR 10\r\n");
	expect_line(&client, "+OK Top of message 2");
	expect_line(&client, "Subject: 1\r\n");
	expect_line(&client, "\r\n");
	expect_line(&client, "..line 0 of message 1\r\n");
	expect_line(&client, ".\r\n");
	expect_line(&client, "-ERR Message 10 does not exist");
	expect_log("alice at 127.0.0.1 (127.0.0.1): -ERR Message 10");
	quit(&client);
}
END_TEST

/* All commands of a session, sent whole or octet by octet; returns all answers. */
static size_t
run_script(bool whole, char *answers)
{
	static const char script[] = "USER alice\nPASS secret\r\nSTAT\r\nLIST\r\nUIDL\r\nRETR 1\r\n"
				     "TOP 3 2\r\nRETR 2\r\nFOO\r\nNOOP\r\nQUIT\r\n";
	struct client client;
	struct drop drop;
	size_t size;

	connect_client(&client);
	for (const char *octet = script; !whole && *octet != '\0'; octet++)
		say(&client, (char[2]){ *octet, '\0' });
	if (whole)
		say(&client, script);
	expect_request(&client, "alice", "secret");
	make_drop(&drop, &client);
	send_drop(&drop);
	size = hear(&client, answers, ANSWER_MAX);
	expect_authenticated(&client);
	expect_session_end(&client);
	close(client.fd);
	expect_closed(&client);
	return size;
}

START_TEST(commands_may_come_in_one_piece_or_octet_by_octet)
{
	char *whole = malloc(ANSWER_MAX), *pieces = malloc(ANSWER_MAX);
	size_t size;

	make_spool(service.directory, 3, 3000);
	size = run_script(true, whole);
	ck_assert_uint_gt(size, 2 * 3000 * 20);
	ck_assert_uint_eq(run_script(false, pieces), size);
	ck_assert_mem_eq(whole, pieces, size);
	free(whole);
	free(pieces);
}
END_TEST

START_TEST(failed_logins_are_answered_by_their_kind)
{
	static const struct {
		enum login_status status;
		const char *answer;
	} cases[] = {
		{ LOGIN_REFUSED, "-ERR [AUTH]" },
		{ LOGIN_IN_USE, "-ERR [IN-USE]" },
		{ LOGIN_TEMPORARY, "-ERR [SYS/TEMP]" },
		{ LOGIN_PERMANENT, "-ERR [SYS/PERM]" },
	};
	struct client client;

	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		ask_login(&client);
		send_failure(&client, cases[i].status);
		expect_line(&client, cases[i].answer);
		expect_end(&client);
		expect_closed(&client);
		if (cases[i].status == LOGIN_REFUSED)
			expect_log("[AUTH] Failed attempted login to alice from host (127.0.0.1)");
	}
}
END_TEST

static int64_t
milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void
delay_failures(void)
{
	set_defaults();
	service.settings->failure_delay = 1;
	service.settings->login_tries = 3;
	start_service();
}

START_TEST(refusals_come_at_whole_multiples_of_the_delay)
{
	struct pollfd auth = { .fd = service.auth, .events = POLLIN };
	struct client client;
	int64_t start = milliseconds();

	ask_login(&client);
	send_failure(&client, LOGIN_REFUSED);
	expect_line(&client, "-ERR [AUTH]");
	ck_assert_int_ge(milliseconds() - start, 1000);
	ck_assert_int_lt(milliseconds() - start, 2900);

	start = milliseconds(); /* a verdict that comes later than the delay */
	say(&client, "USER alice\r\nPASS wrong\r\n");
	expect_line(&client, "+OK");
	expect_request(&client, "alice", "wrong");
	nanosleep(&(struct timespec){ .tv_sec = 1, .tv_nsec = 100000000 }, NULL);
	send_failure(&client, LOGIN_REFUSED);
	expect_line(&client, "-ERR [AUTH]");
	ck_assert_int_ge(milliseconds() - start, 2000);

	start = milliseconds(); /* a name that nobody can have is not asked for */
	say(&client, "USER ../alice\r\nPASS wrong\r\n");
	expect_line(&client, "+OK");
	expect_line(&client, "-ERR [AUTH]");
	ck_assert_int_ge(milliseconds() - start, 1000);
	ck_assert_int_eq(poll(&auth, 1, 0), 0);
	expect_end(&client);
}
END_TEST

static void
send_update_result(const struct client *client, enum update_status status)
{
	struct message_update_result result = { .session = client->session,
						.status = status,
						.deleted = 2,
						.deleted_octets = 300,
						.left = 1,
						.left_octets = 100 };

	send_message(service.monitor, MESSAGE_UPDATE_RESULT, &result, NULL, 0, NULL, 0);
}

/* Log in with a trusted unique-id on message 3, delete 1 and 3, and quit. */
static void
delete_two(struct client *client)
{
	struct message message;
	struct mbox_message records[2];
	struct drop drop;

	ask_login(client);
	make_drop(&drop, client);
	drop.messages[0].uid = MBOX_UID_IN_STRINGS;
	drop.messages[2].uid = MBOX_UID_IN_STRINGS + 3;
	memcpy(drop.strings, "ab\0third", 9);
	drop.result.strings_size = 9;
	drop.size += 9;
	send_drop(&drop);
	expect_line(client, "+OK alice has 3");
	expect_authenticated(client);
	say(client, "UIDL 3\r\nDELE 2\r\nDELE 3\r\nQUIT\r\n");
	expect_line(client, "+OK 3 third\r\n");
	expect_line(client, "+OK");
	expect_line(client, "+OK");
	expect_message(service.monitor, ROLE_WORKER, ROLE_MONITOR, MESSAGE_UPDATE, &message);
	ck_assert_uint_eq(message.fd_count, 1);
	ck_assert_uint_eq(message.payload.update.deleted, 2);
	ck_assert_uint_eq(message.payload.update.expected, 3);
	ck_assert_uint_eq(message.tail_size, sizeof records + 6);
	memcpy(records, message.tail, sizeof records);
	ck_assert_mem_eq(&records[0], &spool.table.messages[1], sizeof records[0]);
	ck_assert_uint_eq(records[1].offset, spool.table.messages[2].offset);
	ck_assert_uint_eq(records[1].uid, MBOX_UID_IN_STRINGS);
	ck_assert_str_eq((const char *)message.tail + sizeof records, "third");
	message_close(&message);
}

START_TEST(quit_is_answered_when_the_update_is_done)
{
	struct client client;

	make_spool(service.directory, 3, 5);
	delete_two(&client);
	send_update_result(&client, UPDATE_DONE);
	expect_line(&client, "+OK Pop server at ");
	expect_end(&client);
	expect_closed(&client);
	expect_log("2 deleted, 1 left");
	expect_log("Stats: alice 2 300 1 100 127.0.0.1 127.0.0.1");
	delete_two(&client);
	send_update_result(&client, UPDATE_LOCKED);
	expect_line(&client, "-ERR [SYS/TEMP]");
	expect_end(&client);
	expect_closed(&client);
	expect_log("end update-failed");
}
END_TEST

static void
log_everything(void)
{
	set_defaults();
	service.settings->statistics = true;
	start_service();
}

START_TEST(a_thousand_messages_travel_in_memfds)
{
	struct client client;
	struct message message;
	struct stat status;
	char text[32];

	make_spool(service.directory, 1000, 2);
	log_in(&client);
	say(&client, "LIST\r\n");
	expect_line(&client, "+OK 1000 ");
	for (unsigned i = 0; i <= 1000; i++)
		expect_line(&client, "");
	say(&client, "RETR 1000\r\n");
	expect_body(&client, 999);
	for (unsigned i = 1; i <= 500; i++) {
		snprintf(text, sizeof text, "DELE %u\r\n", 2 * i);
		say(&client, text);
		expect_line(&client, "+OK");
	}
	say(&client, "QUIT\r\n");
	expect_message(service.monitor, ROLE_WORKER, ROLE_MONITOR, MESSAGE_UPDATE, &message);
	ck_assert_uint_eq(message.fd_count, 2);
	ck_assert_uint_eq(message.payload.update.deleted, 500);
	ck_assert_int_eq(fstat(message.fds[1], &status), 0);
	ck_assert_uint_eq((size_t)status.st_size, 500 * sizeof(struct mbox_message));
	ck_assert_int_eq(fcntl(message.fds[1], F_GET_SEALS) & FULL_SEALS, FULL_SEALS);
	message_close(&message);
	send_update_result(&client, UPDATE_DONE);
	expect_line(&client, "+OK");
}
END_TEST

/* ---- tables that are not what they should be ---- */

static void
unordered(struct drop *drop)
{
	drop->messages[1].offset = 0;
}

static void
beyond_the_spool(struct drop *drop)
{
	drop->messages[2].content_length += 1u << 20;
}

static void
overflowing(struct drop *drop)
{
	drop->messages[1].content_length = UINT64_MAX - 10;
}

static void
wrong_sum(struct drop *drop)
{
	drop->result.total_octets++;
}

static void
without_uid(struct drop *drop)
{
	drop->messages[0].uid = 0;
}

static void
uid_outside(struct drop *drop)
{
	drop->messages[0].uid = MBOX_UID_IN_STRINGS + 1;
}

static void
uid_unterminated(struct drop *drop)
{
	drop->messages[0].uid = MBOX_UID_IN_STRINGS;
	memcpy(drop->strings, "abc", 3);
	drop->result.strings_size = 3;
	drop->size += 3;
}

static void
unsealed(struct drop *drop)
{
	drop->result.flags |= LOGIN_HAS_TABLE;
	drop->seals = F_SEAL_WRITE | F_SEAL_GROW;
}

static void
memfd_too_short(struct drop *drop)
{
	drop->result.flags |= LOGIN_HAS_TABLE;
	drop->size -= 8;
}

static void (*const hostile[])(struct drop *) = {
	unordered,   beyond_the_spool, overflowing, wrong_sum,	    without_uid,
	uid_outside, uid_unterminated, unsealed,    memfd_too_short
};

START_TEST(a_broken_table_ends_the_session)
{
	struct client client;
	struct drop drop;

	make_spool(service.directory, 3, 5);
	ask_login(&client);
	make_drop(&drop, &client);
	hostile[_i](&drop);
	send_drop(&drop);
	expect_session_end(&client);
	expect_line(&client, "-ERR [SYS/TEMP]");
	expect_end(&client);
	expect_closed(&client);
	expect_log("maildrop of alice: the table ");
}
END_TEST

/* ---- spools that change ---- */

static void
append(void)
{
	static const char more[] = "From b@example.org Mon Nov  3 11:00:00 2025\n\nnew\n\n";
	int fd = open(spool.path, O_WRONLY | O_APPEND);

	ck_assert_int_eq(write(fd, more, strlen(more)), (ssize_t)strlen(more));
	close(fd);
}

/* One octet near the end of the first message. */
static void
rewrite(void)
{
	const struct mbox_message *first = &spool.table.messages[0];
	off_t offset = (off_t)(first->offset + first->content_length);
	int fd = open(spool.path, O_WRONLY);

	ck_assert_int_eq(pwrite(fd, "#", 1, offset), 1);
	close(fd);
}

static void
cut_short(void)
{
	ck_assert_int_eq(truncate(spool.path, CHUNK + 5), 0);
}

/* Change the spool when the client has read so many octets of RETR 1; returns what it got. */
static size_t
retrieve(struct client *client, size_t before, void (*change)(void), char *got, size_t expected)
{
	size_t size;

	say(client, "RETR 1\r\n");
	size = hear(client, got, before);
	change();
	return size + hear(client, got + size, expected - size);
}

START_TEST(a_delivery_during_a_transfer_does_no_harm)
{
	char *expected = malloc(ANSWER_MAX), *got = malloc(ANSWER_MAX);
	struct client client;
	size_t size;

	make_spool(service.directory, 2, BIG_LINES);
	size = expected_body(0, expected);
	ck_assert_uint_gt(size, 3 * CHUNK);
	for (size_t before = 0; before < size; before += CHUNK / 2) {
		make_spool(service.directory, 2, BIG_LINES);
		log_in(&client);
		ck_assert_uint_eq(retrieve(&client, before, append, got, size), size);
		ck_assert_mem_eq(got, expected, size);
		quit(&client);
	}
	free(expected);
	free(got);
}
END_TEST

static void (*const harmful[])(void) = { rewrite, cut_short };

START_TEST(a_rewrite_during_a_transfer_never_sends_wrong_octets)
{
	char *expected = malloc(ANSWER_MAX), *got = malloc(ANSWER_MAX);
	unsigned cut = 0;
	struct client client;
	size_t size, heard;

	make_spool(service.directory, 2, BIG_LINES);
	size = expected_body(0, expected);
	for (size_t before = 1; before < size; before += CHUNK / 2) {
		make_spool(service.directory, 2, BIG_LINES);
		log_in(&client);
		heard = retrieve(&client, before, harmful[_i], got, size);
		ck_assert_mem_eq(got, expected, heard);
		cut += heard < size;
		if (heard < size)
			expect_over(&client, "cut");
		else
			quit(&client);
	}
	ck_assert_uint_gt(cut, 2);
	free(expected);
	free(got);
}
END_TEST

START_TEST(a_changed_message_is_refused_before_it_begins)
{
	struct client client;

	make_spool(service.directory, 2, 50);
	log_in(&client);
	rewrite();
	say(&client, "RETR 1\r\nTOP 1 0\r\nRETR 2\r\n");
	expect_line(&client, "-ERR [SYS/TEMP]");
	expect_line(&client, "-ERR [SYS/TEMP]");
	expect_body(&client, 1);
	quit(&client);
}
END_TEST

START_TEST(a_racy_index_is_verified_before_use)
{
	struct client client;
	struct drop drop;

	make_spool(service.directory, 2, 50);
	ask_login(&client);
	make_drop(&drop, &client);
	drop.result.flags |= LOGIN_RACY;
	drop.messages[1].digest[0] ^= 1;
	send_drop(&drop);
	expect_line(&client, "+OK");
	expect_authenticated(&client);
	say(&client, "RETR 1\r\nRETR 1\r\nRETR 2\r\n");
	expect_body(&client, 0);
	expect_body(&client, 0);
	expect_line(&client, "-ERR [SYS/TEMP]");
	quit(&client);
}
END_TEST

START_TEST(a_spool_in_memory_is_served_too)
{
	struct client client;

	if (access("/dev/shm", W_OK) != 0)
		return;
	make_spool("/dev/shm", 2, BIG_LINES);
	unlink(spool.path);
	log_in(&client); /* as one that may block: by the reader threads */
	say(&client, "RETR 1\r\nRETR 2\r\n");
	expect_body(&client, 0);
	expect_body(&client, 1);
	quit(&client);
}
END_TEST

/* ---- time, and ends of all kinds ---- */

static void
hurry(void)
{
	set_defaults();
	service.settings->login_timeout = 1;
	service.settings->timeout = 10;
	start_service();
}

START_TEST(clients_that_do_nothing_are_closed)
{
	struct client silent, idle, deaf;
	struct message message;

	make_spool(service.directory, 1, 10 * BIG_LINES);
	connect_client(&silent);
	expect_line(&silent, "+OK");
	expect_line(&silent, "-ERR POP timeout");
	expect_end(&silent);
	expect_closed(&silent);
	log_in(&idle);
	log_in(&deaf);
	say(&deaf, "RETR 1\r\n");
	expect_line(&idle, "-ERR POP timeout");
	expect_over(&idle, "timeout");
	expect_session_end(&deaf);
	expect_message(service.master, ROLE_WORKER, ROLE_MASTER, MESSAGE_CONNECTION_CLOSED,
		       &message);
	expect_log("end timeout");
}
END_TEST

START_TEST(garbage_is_survived)
{
	struct client client;
	char garbage[3000];

	connect_client(&client);
	expect_line(&client, "+OK");
	for (size_t i = 0; i < sizeof garbage; i++)
		garbage[i] = (char)(i * 7919 % 251 + 1);
	for (int i = 0; i < 20; i++)
		send(client.fd, garbage, sizeof garbage, MSG_NOSIGNAL);
	while (hear(&client, garbage, sizeof garbage) > 0)
		;
	expect_closed(&client);
	ask_login(&client);
	send_failure(&client, LOGIN_REFUSED);
	expect_line(&client, "-ERR [AUTH]");
}
END_TEST

START_TEST(a_client_that_leaves_during_its_login_gives_the_maildrop_back)
{
	struct client client;
	struct drop drop;

	make_spool(service.directory, 1, 5);
	ask_login(&client);
	setsockopt(client.fd, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 },
		   sizeof(struct linger));
	close(client.fd);
	expect_closed(&client);
	make_drop(&drop, &client);
	send_drop(&drop);
	expect_session_end(&client);
}
END_TEST

START_TEST(a_drain_ends_idle_logins_at_once_and_sessions_in_time)
{
	struct message_drain drain = { .seconds = 1 };
	struct client stranger, user;

	make_spool(service.directory, 1, 5);
	connect_client(&stranger);
	expect_line(&stranger, "+OK");
	log_in(&user);
	send_message(service.master, MESSAGE_DRAIN, &drain, NULL, 0, NULL, 0);
	expect_line(&stranger, "-ERR [SYS/TEMP]");
	expect_end(&stranger);
	expect_closed(&stranger);
	say(&user, "STAT\r\n");
	expect_line(&user, "+OK 1 ");
	expect_line(&user, "-ERR [SYS/TEMP]");
	expect_over(&user, "drained");
	expect_exit(ROLE_EXIT_DONE);
}
END_TEST

START_TEST(another_account_check_takes_over)
{
	struct message_channel message = { .role = ROLE_AUTH };
	struct client first, second;
	struct drop drop;
	int pair[2];

	make_spool(service.directory, 1, 5);
	ask_login(&first);
	close(service.auth);
	connect_client(&second);
	say(&second, "USER bob\r\nPASS secret\r\n");
	nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
	make_channel(pair);
	service.auth = pair[0];
	send_message(service.master, MESSAGE_CHANNEL, &message, NULL, 0, &pair[1], 1);
	close(pair[1]);
	expect_request(&second, "bob", "secret");
	make_drop(&drop, &second);
	send_drop(&drop);
	expect_line(&second, "+OK Qpopper");
	expect_line(&second, "+OK");
	expect_line(&second, "+OK alice has");
	expect_authenticated(&second);
	expect_line(&first, "-ERR [SYS/TEMP]"); /* its check died with the old channel */
	expect_end(&first);
	make_drop(&drop, &first);
	send_drop(&drop);
	expect_session_end(&first);
}
END_TEST

START_TEST(without_a_monitor_there_is_no_service)
{
	struct client stranger, user;

	make_spool(service.directory, 1, 5);
	connect_client(&stranger);
	expect_line(&stranger, "+OK");
	log_in(&user);
	close(service.monitor);
	expect_line(&stranger, "-ERR [SYS/TEMP]");
	expect_end(&stranger);
	expect_line(&user, "-ERR [SYS/TEMP]");
	expect_end(&user);
	expect_exit(ROLE_EXIT_DONE);
}
END_TEST

START_TEST(a_broken_message_ends_the_worker)
{
	ck_assert_int_eq(send(service.master, "nonsense", 8, 0), 8);
	expect_exit(ROLE_EXIT_CHANNEL);
}
END_TEST

static void
add_case(Suite *suite, const char *name, void (*before)(void), const TTest *test, int count)
{
	TCase *tcase = tcase_create(name);

	tcase_add_checked_fixture(tcase, before, tear_down);
	tcase_set_timeout(tcase, 60);
	tcase_add_loop_test(tcase, test, 0, count);
	suite_add_tcase(suite, tcase);
}

int
main(void)
{
	Suite *suite = suite_create("worker");
	SRunner *runner;
	int failed;

	add_case(suite, "octets", set_up, messages_are_sent_octet_for_octet, 1);
	add_case(suite, "pipelining", set_up, commands_may_come_in_one_piece_or_octet_by_octet, 1);
	add_case(suite, "failures", set_up, failed_logins_are_answered_by_their_kind, 1);
	add_case(suite, "delay", delay_failures, refusals_come_at_whole_multiples_of_the_delay, 1);
	add_case(suite, "update", log_everything, quit_is_answered_when_the_update_is_done, 1);
	add_case(suite, "memfd", set_up, a_thousand_messages_travel_in_memfds, 1);
	add_case(suite, "tables", set_up, a_broken_table_ends_the_session,
		 sizeof hostile / sizeof hostile[0]);
	add_case(suite, "delivery", set_up, a_delivery_during_a_transfer_does_no_harm, 1);
	add_case(suite, "rewrite", set_up, a_rewrite_during_a_transfer_never_sends_wrong_octets, 2);
	add_case(suite, "changed", set_up, a_changed_message_is_refused_before_it_begins, 1);
	add_case(suite, "racy", set_up, a_racy_index_is_verified_before_use, 1);
	add_case(suite, "memory", set_up, a_spool_in_memory_is_served_too, 1);
	add_case(suite, "time", hurry, clients_that_do_nothing_are_closed, 1);
	add_case(suite, "garbage", set_up, garbage_is_survived, 1);
	add_case(suite, "leaving", set_up,
		 a_client_that_leaves_during_its_login_gives_the_maildrop_back, 1);
	add_case(suite, "drain", set_up, a_drain_ends_idle_logins_at_once_and_sessions_in_time, 1);
	add_case(suite, "channel", set_up, another_account_check_takes_over, 1);
	add_case(suite, "monitor", set_up, without_a_monitor_there_is_no_service, 1);
	add_case(suite, "message", set_up, a_broken_message_ends_the_worker, 1);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
