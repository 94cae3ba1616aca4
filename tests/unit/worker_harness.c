/* See worker_harness.h. */
#include "config.h"

#include "tests/unit/worker_harness.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/role.h"
#include "daemon/sandbox.h"
#include "lib/index.h"

#define PATIENCE 15 /* seconds that anything may take */

struct service service;
struct spool spool;

/* ---- the service around the worker ---- */

static void
set_patience(int fd)
{
	struct timeval time = { .tv_sec = PATIENCE };

	ck_assert_int_eq(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time), 0);
}

void
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

void
expect_message(
    int fd, enum role sender, enum role receiver, enum message_type type, struct message *message)
{
	struct error error = { .text = "nothing came" };
	bool got = false;

	ck_assert_msg(message_receive(fd, sender, receiver, message, &got, &error) == 0 && got,
	    "%s: %s", message_type_name(type), error.text);
	ck_assert_str_eq(message_type_name(message->header.type), message_type_name(type));
}

void
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

void
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
void
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

void
expect_exit(int status)
{
	struct message message;

	expect_message(
	    service.parent, ROLE_WORKER_PARENT, ROLE_MASTER, MESSAGE_WORKER_EXITED, &message);
	ck_assert_int_eq(message.payload.worker.worker, 1);
	ck_assert_int_eq(message.payload.worker.status, status << 8);
	service.exited = true;
}

void
set_up(void)
{
	set_defaults();
	start_service();
}

void
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

void
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

void
say(const struct client *client, const char *text)
{
	ck_assert_int_eq(send(client->fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

size_t
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

void
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

void
expect_end(const struct client *client)
{
	char octet;

	ck_assert_uint_eq(hear(client, &octet, 1), 0);
	close(client->fd);
}

void
expect_log(const char *wanted)
{
	char record[LOG_RECORD_MAX + 1];
	ssize_t size;

	while ((size = recv(service.log, record, LOG_RECORD_MAX, 0)) > 0)
		if (memmem(record, (size_t)size, wanted, strlen(wanted)) != NULL)
			return;
	ck_abort_msg("no log record has \"%s\"", wanted);
}

void
expect_closed(const struct client *client)
{
	struct message message;

	expect_message(
	    service.master, ROLE_WORKER, ROLE_MASTER, MESSAGE_CONNECTION_CLOSED, &message);
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
	ck_assert_msg(mbox_scan(&store_io_system, spool.fd, (uint64_t)spool.status.st_size, NULL,
			  &spool.table, &error) == 0,
	    "%s", error.text);
}

void
make_spool(const char *directory, unsigned messages, unsigned lines)
{
	snprintf(spool.path, sizeof spool.path, "%s/spool", directory);
	spool.fd = open(spool.path, O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
	ck_assert_int_ge(spool.fd, 0);
	buffer_reset(&spool.bytes);
	buffer_start(&spool.bytes, ANSWER_MAX);
	for (unsigned i = 0; i < messages; i++) {
		buffer_append_format(&spool.bytes,
		    "From a@example.org Mon Nov  3 10:00:00 2025\nSubject: %u\n%s\n", i,
		    i % 50 == 7 ? "X-Other: y\n" : "");
		for (unsigned line = 0; line < lines; line++)
			buffer_append_format(&spool.bytes, "%sline %u of message %u\n",
			    line % 3 == 0 ? "." : "", line, i);
		buffer_append(&spool.bytes, "\n", 1);
	}
	write_spool();
	scan_spool();
}

size_t
expected_body(unsigned i, char *out)
{
	const struct mbox_message *message = &spool.table.messages[i];
	const char *in = buffer_bytes(&spool.bytes) + message->offset + message->prefix_length;
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

void
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

void
send_drop(struct drop *drop)
{
	bool in_memfd = drop->result.flags & LOGIN_HAS_TABLE;
	int fds[3] = { spool.fd, open("/dev/null", O_RDONLY), -1 };

	if (in_memfd) {
		fds[2] = memfd_create("table", MFD_ALLOW_SEALING);
		ck_assert_int_eq(lseek(fds[2], INDEX_HEADER_SIZE, SEEK_SET), INDEX_HEADER_SIZE);
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

void
expect_request(const struct client *client, const char *user, const char *password)
{
	struct credentials credentials;
	struct message message;

	expect_message(service.auth, ROLE_WORKER, ROLE_AUTH, MESSAGE_AUTH_REQUEST, &message);
	ck_assert_uint_eq(message.payload.session.session, client->session);
	ck_assert_int_eq(
	    read(message.fds[0], &credentials, sizeof credentials), sizeof credentials);
	ck_assert_int_eq(read(message.fds[0], &message, 1), 0);
	ck_assert_uint_eq(credentials.magic, CREDENTIALS_MAGIC);
	ck_assert_str_eq(credentials.user, user);
	ck_assert_str_eq(credentials.password, password);
	ck_assert_str_eq(credentials.peer_address, "127.0.0.1");
	message_close(&message);
}

void
send_failure(const struct client *client, enum login_status status)
{
	struct message_login_result result = {
		.session = client->session, .status = status, .user = "alice", .reason = "because"
	};

	send_message(service.monitor, MESSAGE_LOGIN_RESULT, &result, NULL, 0, NULL, 0);
}

void
ask_login(struct client *client)
{
	connect_client(client);
	expect_line(client, "+OK Qpopper (version " PACKAGE_VERSION ") at ");
	say(client, "USER alice\r\n");
	expect_line(client, "+OK");
	say(client, "PASS  two words \r\n");
	expect_request(client, "alice", " two words ");
}

void
expect_authenticated(const struct client *client)
{
	struct message message;

	expect_message(service.master, ROLE_WORKER, ROLE_MASTER, MESSAGE_AUTHENTICATED, &message);
	ck_assert_uint_eq(message.payload.session.session, client->session);
}

void
log_in(struct client *client)
{
	struct drop drop;

	ask_login(client);
	make_drop(&drop, client);
	send_drop(&drop);
	expect_line(client, "+OK alice has ");
	expect_authenticated(client);
}

void
expect_session_end(const struct client *client)
{
	struct message message;

	expect_message(service.monitor, ROLE_WORKER, ROLE_MONITOR, MESSAGE_SESSION_END, &message);
	ck_assert_uint_eq(message.payload.session.session, client->session);
	ck_assert_uint_eq(message.fd_count, 1);
	message_close(&message);
}

void
expect_over(const struct client *client, const char *end)
{
	char wanted[64];

	expect_session_end(client);
	expect_end(client);
	expect_closed(client);
	snprintf(wanted, sizeof wanted, "login ok, end %s", end);
	expect_log(wanted);
}

void
quit(const struct client *client)
{
	say(client, "QUIT\r\n");
	expect_line(client, "+OK Pop server at ");
	expect_over(client, "quit");
}

void
expect_body(const struct client *client, unsigned i)
{
	char *expected = malloc(ANSWER_MAX), *got = malloc(ANSWER_MAX);
	size_t size = expected_body(i, expected);

	ck_assert_uint_eq(hear(client, got, size), size);
	ck_assert_mem_eq(got, expected, size);
	free(expected);
	free(got);
}

/* ---- how the programs list their tests ---- */

void
add_case(Suite *suite, const char *name, void (*before)(void), const TTest *test, int count)
{
	TCase *tcase = tcase_create(name);

	tcase_add_checked_fixture(tcase, before, tear_down);
	tcase_set_timeout(tcase, 60);
	tcase_add_loop_test(tcase, test, 0, count);
	suite_add_tcase(suite, tcase);
}
