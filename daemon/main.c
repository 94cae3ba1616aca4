/*
 * popper: the command line, the run mode, and what must be in order before anything starts.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <syslog.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "daemon/master.h"
#include "daemon/role.h"
#include "daemon/sandbox.h"

enum {
	EXIT_OK = 0,
	EXIT_REFUSED = 1
};

#define NOT_CONFIGURED "-ERR [SYS/PERM] The service is not configured correctly.\r\n"

/* inetd and xinetd: standard input is the client's connection. */
static bool
is_connected_socket(int fd)
{
	struct sockaddr_storage peer;
	socklen_t size = sizeof peer;

	return getpeername(fd, (struct sockaddr *)&peer, &size) == 0;
}

/* Under inetd there is no logger yet, and standard error is the client's connection. */
static void
complain_to_syslog(const struct master *master, const char *text)
{
	openlog("popper", LOG_PID, (int)master->settings->log_facility);
	syslog(LOG_ERR, "%s", text);
	closelog();
}

/*
 * Tell why the service cannot start: to the log, to standard error, and under inetd (where standard
 * error is the client's connection) as the one line that POP3 knows.
 */
static int
refuse(struct master *master, const char *reason)
{
	if (master->mode == MASTER_SINGLE) {
		master_refuse(master->single_fd, false, NOT_CONFIGURED);
		complain_to_syslog(master, reason);
	} else {
		fprintf(stderr, "popper: %s\n", reason);
	}
	return EXIT_REFUSED;
}

/* All complaints, where their reader will see them. */
static void
show_report(struct master *master, const struct settings_report *report)
{
	if (master->mode != MASTER_SINGLE) {
		settings_report_print(report, stderr);
		return;
	}
	for (size_t i = 0; i < report->count; i++)
		complain_to_syslog(master, report->complaints[i].text);
}

/* ---- what must be there ---- */

static int
make_directory(const char *path, mode_t mode, struct error *error)
{
	if (mkdir(path, mode) == -1 && errno != EEXIST)
		return error_set_errno(error, errno,
		    "cannot create %s (state-dir names a directory for journals "
		    "that only the service "
		    "may write to)",
		    path);
	return 0;
}

/* state-dir and the empty directory that the sandboxed processes are confined to. */
static int
prepare_state_directory(const struct settings *settings, struct error *error)
{
	char path[SETTINGS_STRING_MAX + sizeof ROLE_EMPTY_DIRECTORY];
	struct stat status;

	if (make_directory(settings->state_dir, 0755, error) == -1)
		return -1;
	if (stat(settings->state_dir, &status) == -1)
		return error_set_errno(error, errno, "%s", settings->state_dir);
	if (status.st_uid != geteuid() || (status.st_mode & (S_IWGRP | S_IWOTH)) != 0)
		return error_set(error, ERROR_DENIED,
		    "%s must belong to the user that starts popper and be writable by nobody else: "
		    "chown %u %s; chmod go-w %s",
		    settings->state_dir, (unsigned)geteuid(), settings->state_dir,
		    settings->state_dir);
	snprintf(path, sizeof path, "%s" ROLE_EMPTY_DIRECTORY, settings->state_dir);
	return make_directory(path, 0755, error);
}

/* System users of ours are needed only where identities are changed. */
static int
check_users(const struct settings *settings, struct error *error)
{
	struct sandbox_identity identity;

	if (!sandbox_privileged())
		return 0;
	if (sandbox_find_user(settings->worker_user, &identity, error) == -1 ||
	    (settings->tls_server_cert_file[0] != '\0' &&
		sandbox_find_user(settings->signer_user, &identity, error) == -1))
		return -1;
	if (settings->authentication == AUTHENTICATION_PASSWD_FILE)
		return sandbox_find_user(settings->auth_user, &identity, error);
	return 0;
}

static int
check_spool_directory(const struct settings *settings, struct error *error)
{
	struct stat status;

	if (stat(settings->spool_dir, &status) == -1)
		return error_set_errno(error, errno, "spool-dir %s", settings->spool_dir);
	if (!S_ISDIR(status.st_mode))
		return error_set(
		    error, ERROR_DENIED, "spool-dir %s is not a directory", settings->spool_dir);
	return 0;
}

/* An ordinary user can check nobody's password but those of a file of his own. */
static int
check_rights(const struct settings *settings, struct error *error)
{
	if (sandbox_privileged() || settings->authentication == AUTHENTICATION_PASSWD_FILE)
		return 0;
	return error_set(error, ERROR_DENIED,
	    "without root (CAP_SETUID and CAP_SETGID) only virtual users can be served: set "
	    "passwd-file, or start popper as root");
}

/* A recovery checks no password and needs no certificate. */
static int
check_environment(const struct settings *settings, enum settings_action action, struct error *error)
{
	if (action == SETTINGS_RECOVER)
		return check_spool_directory(settings, error);
	if (check_rights(settings, error) == -1 || check_users(settings, error) == -1 ||
	    check_spool_directory(settings, error) == -1)
		return -1;
	if (settings->tls_server_cert_file[0] != '\0')
		return spawn_check_certificate(settings, error);
	return 0;
}

/* ---- run modes ---- */

/* Many descriptors travel through us, and each worker holds three a session. */
static void
raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == -1)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

static int
find_mode(
    struct master *master, const struct settings_command_line *command_line, struct error *error)
{
	master->mode = MASTER_STANDALONE;
	if (listeners_inherit(&master->listeners, &master->single_fd, error) == -1)
		return -1;
	if (master->listeners.count > 0) {
		master->mode = MASTER_SYSTEMD;
	} else if (master->single_fd != -1) {
		master->mode = MASTER_SINGLE;
	} else if (command_line->inetd || is_connected_socket(STDIN_FILENO)) {
		master->mode = MASTER_SINGLE;
		/* it leaves the numbers that children expect for themselves */
		master->single_fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
		if (master->single_fd == -1)
			return error_set_errno(error, errno, "standard input");
	}
	return 0;
}

/* As a daemon always did: the caller gets its shell back once the ports are bound. */
static int
detach(struct error *error)
{
	pid_t child = fork();

	if (child == -1)
		return error_set_errno(error, errno, "cannot fork");
	if (child > 0)
		_exit(EXIT_OK);
	if (setsid() == -1)
		return error_set_errno(error, errno, "setsid");
	return 0;
}

/* Standard descriptors lead nowhere: under inetd they are the client's connection. */
static void
silence_standard_descriptors(bool keep_error)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null == -1)
		return;
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	if (!keep_error)
		dup2(null, STDERR_FILENO);
	if (null > STDERR_FILENO)
		close(null);
}

static bool
stays_in_foreground(const struct master *master, const struct settings_command_line *command_line)
{
	return command_line->foreground || master->mode != MASTER_STANDALONE ||
	       getenv("NOTIFY_SOCKET") != NULL;
}

/* From here on nothing can be said to a terminal but what the foreground run shows as its log. */
static int
run(struct master *master, const struct settings_command_line *command_line)
{
	struct error error;
	int status;

	if (master->mode == MASTER_STANDALONE) {
		struct listeners none = { .count = 0 };
		if (listeners_bind(
			&master->listeners, &none, master->settings, master->address, &error) == -1)
			return refuse(master, error.text);
	}
	if (!stays_in_foreground(master, command_line) && detach(&error) == -1)
		return refuse(master, error.text);
	silence_standard_descriptors(master->foreground);
	if (chdir("/") == -1 || logger_start(master->settings, master->foreground, -1, -1,
				    &master->logger, &error) == -1)
		return refuse(master, error.text);
	log_start(&master->log, master->logger.send_fd, "master", master->settings->debug);
	status = master_run(master);
	if (status != EXIT_OK && master->single_fd != -1)
		master_refuse(master->single_fd, false, NOT_CONFIGURED);
	return status;
}

static int
start(struct master *master, struct settings_command_line *command_line,
    struct settings_report *report)
{
	struct error error;

	if (report->count > 0)
		show_report(master, report);
	if (report->errors > 0)
		return refuse(master, "the configuration has errors: not started");
	if (sandbox_harden(&error) == -1 ||
	    check_environment(master->settings, command_line->action, &error) == -1)
		return refuse(master, error.text);
	if (command_line->action == SETTINGS_CHECK_CONFIG) {
		printf("popper: the configuration is in order\n");
		return EXIT_OK;
	}
	if (prepare_state_directory(master->settings, &error) == -1)
		return refuse(master, error.text);
	raise_descriptor_limit();
	if (command_line->action == SETTINGS_RECOVER)
		return recover_run(master);
	return run(master, command_line);
}

int
main(int argc, char *argv[])
{
	struct master master = { .argc = argc, .argv = argv, .single_fd = -1 };
	struct settings_command_line command_line = { 0 };
	struct settings_report report = { 0 };
	struct error error;
	int status;

	umask(077);
	master.directory_fd = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	log_start(&master.log, -1, "master", false);
	master.settings = settings_new();
	if (master.settings == NULL)
		return EXIT_REFUSED;
	settings_read_command_line(master.settings, argc, argv, &command_line, &report);
	if (command_line.action == SETTINGS_SHOW_HELP) {
		settings_print_help(stdout);
		return EXIT_OK;
	}
	if (command_line.action == SETTINGS_SHOW_VERSION) {
		printf("Qpopper (version %s)\n", PACKAGE_VERSION);
		if (command_line.build_options)
			settings_print_build(stdout);
		return EXIT_OK;
	}
	settings_finish(master.settings, &report);
	/* it looks at no socket, whatever it is started by */
	if (command_line.action != SETTINGS_RECOVER &&
	    find_mode(&master, &command_line, &error) == -1) {
		fprintf(stderr, "popper: %s\n", error.text);
		return EXIT_REFUSED;
	}
	master.address = command_line.address;
	master.foreground = command_line.foreground && master.mode != MASTER_SINGLE;
	status = start(&master, &command_line, &report);
	settings_report_free(&report);
	return status;
}
