#!/usr/bin/env python3
"""How popper is started, told to reload, limited and ended, in every mode that it has."""
import hashlib
import os
import poplib
import re
import signal
import socket
import ssl
import subprocess
import time

from harness import *  # noqa: F403

POPPER = os.path.join(BUILD, "popper")


# ---- helpers ----

def popper(site, *arguments, timeout=20, **options):
    """Run popper to its end; standard output and error as text."""
    return subprocess.run([POPPER, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=timeout, cwd=site.directory, **options)


def a_user(site, count=2):
    """One user with some messages."""
    site.add_user()
    site.put_mail([message(number) for number in range(1, count + 1)])


def greeting(port, host="127.0.0.1", timeout=20):
    """Connect; the socket and the first line."""
    client = socket.create_connection((host, port), timeout)
    return client, client.recv(600)


def served(port, host="127.0.0.1", **arguments):
    """A whole session by poplib; the number of messages."""
    client = poplib.POP3(host, port, timeout=20)
    client.user("user")
    client.pass_(PASSWORD)
    count = client.stat()[0]
    client.quit()
    return count


def tls_context(site, certificate="cert.pem"):
    return ssl.create_default_context(cafile=site.path(certificate))


def served_tls(site, port, certificate="cert.pem"):
    client = poplib.POP3_SSL("localhost", port, context=tls_context(site, certificate), timeout=20)
    client.user("user")
    client.pass_(PASSWORD)
    count = client.stat()[0]
    client.quit()
    return count


def is_running(pid):
    """Whether that process lives; a zombie, whose parent may never wait for it, does not."""
    try:
        with open("/proc/%d/stat" % pid) as status:
            return status.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def masters(site):
    """The running masters that were started with this site's settings."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/comm" % entry) as file:
                name = file.read().strip()
            with open("/proc/%s/cmdline" % entry, "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if name == "popper" and os.fsencode(site.path("popper.conf")) in words and is_running(int(entry)):
            found.append(int(entry))
    return found


def run_in_background(site, *command, environment=None, **options):
    """A program that is ended with the site."""
    log = open(site.path("log"), "ab")
    process = subprocess.Popen(command, stdin=options.pop("stdin", subprocess.DEVNULL), stdout=log, stderr=log,
                               env={**os.environ, **(environment or {})}, **options)

    def end():
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    site.cleanups.append(end)
    return process


def wait_port(port):
    """Wait until something listens there, without connecting to it."""
    wanted = ":%04X" % port

    def listens():
        with open("/proc/net/tcp") as table:
            return any(line.split()[1].endswith(wanted) and line.split()[3] == "0A" for line in table
                       if line.split()[0] != "sl")
    wait_until(listens, 10, "a listener on port %d" % port)


def reload(site, **changes):
    """SIGHUP with changed settings."""
    site.write_settings(**changes)
    site.process.send_signal(signal.SIGHUP)


def reload_done(site, number, **changes):
    reload(site, **changes)
    site.wait_log("serves (generation %d)" % number)


# ---- standalone ----

@test
def foreground(site):
    """--foreground serves until SIGTERM, logs to standard error, ends with 0 and leaves no process"""
    a_user(site)
    process = site.start()
    family = list(children_of(process.pid))
    assert served(site.port) == 2
    assert site.stop() == 0
    wait_until(lambda: not any(map(is_running, family)), 5, "the end of all processes")
    assert "session of user" in site.log()


@test
def daemonising(site):
    """without --foreground popper returns at once, with its ports bound, and serves in the background"""
    a_user(site)
    site.write_settings(listen=None, listen_tls=None, tracefile=site.path("trace"))
    open(site.path("trace"), "w").close()
    if ROOT:
        shutil.chown(site.path("trace"), "_qpopper")

    def end():
        for pid in masters(site):
            os.kill(pid, signal.SIGKILL)
    site.cleanups.append(end)
    began = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    # it holds on to none of our pipes: communicate() inside would wait for their end
    started = popper(site, "127.0.0.1:%d" % site.port, "-f", site.path("popper.conf"), env=environment)
    assert started.returncode == 0, started.stderr
    assert time.monotonic() - began < 5
    assert served(site.port) == 2
    pids = masters(site)
    assert len(pids) == 1, pids
    assert os.getsid(pids[0]) != os.getsid(0)
    os.kill(pids[0], signal.SIGTERM)
    wait_until(lambda: not masters(site), 10, "the end of the daemon")
    with open(site.path("trace")) as trace:
        assert "session of user" in trace.read()


@test
def several_listeners(site):
    """listen, a second listen and the address on the command line, all at once"""
    a_user(site)
    second, third = free_port(), free_port()
    site.write_settings()
    log = open(site.path("log"), "ab")
    site.process = subprocess.Popen([POPPER, "127.0.0.1:%d" % third, "-f", site.path("popper.conf"), "--foreground",
                                     "--listen=127.0.0.1:%d" % second],
                                    stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    site.wait_log("serves (generation 1)", 20)
    for port in site.port, second, third:
        assert served(port) == 2
    assert served_tls(site, site.tls_port) == 2


@test
def ipv6(site):
    """an IPv6 address in brackets; the log shows the client's"""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        raise Skip("no IPv6 here")
    a_user(site)
    site.start(listen="[::1]:%d" % site.port)
    assert served(site.port, "::1") == 2
    site.wait_log("session of user from ::1 port ")


@test
def address_in_use(site):
    """a port that another program has: a message with the address, exit status 1"""
    a_user(site)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = "127.0.0.1:%d" % other.getsockname()[1]
        site.write_settings(listen=address)
        for options in ["--foreground"], []:
            run = popper(site, "-f", site.path("popper.conf"), *options)
            assert run.returncode == 1, run.returncode
            assert address + " in use" in run.stderr and "another server" in run.stderr, run.stderr
    assert not masters(site)


# ---- systemd ----

@test
def systemd_sockets(site):
    """socket activation: the socket named pop3 is plain, pop3s speaks TLS; listen is not used"""
    need_program("systemd-socket-activate")
    a_user(site)
    plain, tls = free_port(), free_port()
    site.write_settings()  # its listen addresses must stay unused
    site.process = run_in_background(site, "systemd-socket-activate", "-l", "127.0.0.1:%d" % plain, "-l",
                                     "127.0.0.1:%d" % tls, "--fdname=pop3:pop3s", POPPER, "-f",
                                     site.path("popper.conf"), "--foreground")
    wait_port(plain)
    wait_port(tls)
    assert served(plain) == 2
    assert served_tls(site, tls) == 2
    client = poplib.POP3("localhost", plain, timeout=20)
    client.stls(tls_context(site))
    client.quit()
    try:
        socket.create_connection(("127.0.0.1", site.port), 5)
    except ConnectionRefusedError:
        pass
    else:
        raise AssertionError("the address of listen is served too")
    reload_done(site, 2)
    assert served(plain) == 2 and served_tls(site, tls) == 2
    assert site.stop() == 0


@test
def systemd_accept(site):
    """Accept=yes, by the passed descriptor and by standard input: one process tree a connection"""
    need_program("systemd-socket-activate")
    a_user(site)
    site.write_settings()
    for form in [], ["--inetd"]:
        port = free_port()
        activator = run_in_background(site, "systemd-socket-activate", "--accept", *form, "-l",
                                      "127.0.0.1:%d" % port, POPPER, "-f", site.path("popper.conf"))
        wait_port(port)
        for _ in range(2):
            assert served(port) == 2, form
        wait_until(lambda: not masters(site), 10, "the end of both masters")
        activator.terminate()


# ---- inetd ----

class Inetd:
    """What inetd does for a service of type nowait: accept, and popper on the descriptors 0, 1 and 2."""

    def __init__(self, site, *arguments):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.command = [POPPER, "-f", site.path("popper.conf"), *arguments]
        site.cleanups.append(self.listener.close)

    def client(self):
        """A connected client, and the popper that serves it."""
        client = socket.create_connection(("127.0.0.1", self.port), 20)
        connection = self.listener.accept()[0]
        with connection:
            process = subprocess.Popen(self.command, stdin=connection, stdout=connection, stderr=connection)
        return client, process


@test
def inetd(site):
    """a connection on standard input is served, popper ends with it, and deletions are done"""
    a_user(site)
    site.write_settings(tracefile=None)
    server = Inetd(site)
    client, process = server.client()
    answers = client.makefile("rb")
    assert answers.readline().startswith(b"+OK Qpopper")
    client.sendall(b"USER user\r\nPASS %s\r\nDELE 1\r\nQUIT\r\n" % PASSWORD.encode())
    assert [answers.readline()[:3] for _ in range(4)] == [b"+OK"] * 4
    assert answers.read() == b""
    assert process.wait(10) == 0
    assert site.read_mail() == message(2).encode()
    assert not masters(site)


@test
def inetd_client_vanishes(site):
    """the connection breaks off before and after login: popper ends, nothing is deleted"""
    a_user(site)
    site.write_settings()
    before = site.read_mail()
    server = Inetd(site)
    for commands in b"", b"USER user\r\nPASS %s\r\nDELE 1\r\n" % PASSWORD.encode():
        client, process = server.client()
        answers = client.makefile("rb")
        answers.readline()
        client.sendall(commands)
        for _ in range(commands.count(b"\n")):
            assert answers.readline().startswith(b"+OK")
        answers.close()
        client.close()
        process.wait(10)
    assert site.read_mail() == before
    assert served_by_inetd(server) == b"+OK 2"


def served_by_inetd(server):
    client, process = server.client()
    answers = client.makefile("rb")
    client.sendall(b"USER user\r\nPASS %s\r\nSTAT\r\nQUIT\r\n" % PASSWORD.encode())
    lines = answers.read().split(b"\r\n")
    assert process.wait(10) == 0
    return lines[3].rsplit(b" ", 1)[0]


@test
def inetd_alternate_port(site):
    """tls-support = alternate-port: the connection from inetd speaks TLS from the first octet"""
    a_user(site)
    site.write_settings(tls_support="alternate-port", listen_tls=None)
    client, process = Inetd(site).client()
    with tls_context(site).wrap_socket(client, server_hostname="localhost") as tls:
        assert tls.recv(600).startswith(b"+OK")
        tls.sendall(b"QUIT\r\n")
        assert tls.recv(600).startswith(b"+OK")
    assert process.wait(10) == 0


@test
def inetd_misconfigured(site):
    """under inetd a broken configuration gives the client one line of POP3 and nothing else"""
    a_user(site)
    site.write_settings(timeout="soon")
    client, process = Inetd(site).client()
    data = client.makefile("rb").read()
    assert data.startswith(b"-ERR [SYS/PERM] ") and data.count(b"\n") == 1, data
    assert process.wait(10) == 1
    site.write_settings(helper_dir=site.path("nothing"), tls_server_cert_file=None, tls_private_key_file=None,
                        listen_tls=None)
    client, process = Inetd(site).client()
    data = client.makefile("rb").read()
    assert data.startswith(b"-ERR [SYS/") and data.count(b"\n") == 1, data
    assert process.wait(10) == 1


@test
def xinetd(site):
    """xinetd with a service like the one that is installed"""
    need_root()
    need_program("xinetd")
    a_user(site)
    site.write_settings()
    with open(site.path("xinetd.conf"), "w") as conf:
        conf.write("defaults\n{\n}\nservice pop3\n{\n\ttype = UNLISTED\n\tsocket_type = stream\n\tprotocol = tcp\n"
                   "\twait = no\n\tuser = root\n\tbind = 127.0.0.1\n\tport = %d\n\tserver = %s\n"
                   "\tserver_args = -f %s\n\tinstances = 20\n\tper_source = 20\n}\n"
                   % (site.port, POPPER, site.path("popper.conf")))
    run_in_background(site, "xinetd", "-f", site.path("xinetd.conf"), "-dontfork", "-pidfile",
                      site.path("xinetd.pid"), "-filelog", site.path("xinetd.log"))
    wait_port(site.port)
    for _ in range(2):
        assert served(site.port) == 2
    client = poplib.POP3("localhost", site.port, timeout=20)
    client.stls(tls_context(site))
    client.user("user")
    client.pass_(PASSWORD)
    client.dele(1)
    client.quit()
    assert site.read_mail() == message(2).encode()


# ---- what the service manager is told ----

class Notifications:
    """The socket that systemd would have given."""

    def __init__(self, site):
        self.path = site.path("notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.lines = []
        site.cleanups.append(self.socket.close)

    def expect(self, start, seconds=10):
        """Read until a line begins so; the lines before it count as read."""
        deadline = time.monotonic() + seconds
        while True:
            while self.lines:
                line = self.lines.pop(0)
                if line.startswith(start):
                    return line
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self.lines += self.socket.recv(4096).decode().split("\n")
            except socket.timeout:
                raise AssertionError("no %s from popper" % start)


@test
def notifications(site):
    """READY=1, STATUS=, WATCHDOG=1, RELOADING=1 and READY=1 again, STOPPING=1"""
    a_user(site)
    told = Notifications(site)
    site.start(environment={"NOTIFY_SOCKET": told.path, "WATCHDOG_USEC": "1000000"})
    assert told.expect("READY=") == "READY=1"
    for _ in range(3):
        assert told.expect("WATCHDOG=", 3) == "WATCHDOG=1"
    site.process.send_signal(signal.SIGHUP)
    assert told.expect("RELOADING=") == "RELOADING=1"
    assert abs(int(told.expect("MONOTONIC_USEC=").split("=")[1]) / 1e6 - time.monotonic()) < 10
    assert told.expect("READY=") == "READY=1"
    reload(site, timeout="soon")  # refused: yet the service manager must not wait for ever
    assert told.expect("RELOADING=") == "RELOADING=1"
    assert told.expect("READY=") == "READY=1"
    site.process.send_signal(signal.SIGTERM)
    assert told.expect("STOPPING=") == "STOPPING=1"
    assert site.process.wait(10) == 0


@test
def status_line(site):
    """STATUS= tells connections, those not logged in, and the layers of the sandbox"""
    a_user(site)
    told = Notifications(site)
    site.start(environment={"NOTIFY_SOCKET": told.path})
    with site.raw():
        def counted():
            return "1 connections, 1 not logged in; sandbox: " in told.expect("STATUS=", 15)
        wait_until(counted, 15, "a STATUS= that counts the connection")


@test
def foreground_by_notify_socket(site):
    """with NOTIFY_SOCKET set popper does not daemonise even without --foreground"""
    a_user(site)
    told = Notifications(site)
    site.write_settings()
    process = run_in_background(site, POPPER, "-f", site.path("popper.conf"), environment={
        "NOTIFY_SOCKET": told.path})
    told.expect("READY=1")
    assert process.poll() is None
    assert served(site.port) == 2
    process.terminate()
    assert process.wait(10) == 0


# ---- reload ----

@test
def reload_new_settings(site):
    """SIGHUP: new connections see the new settings, an open session goes on with the old ones"""
    a_user(site)
    site.start(server_name="old.example")
    client = site.login()
    waiting, line = greeting(site.port)
    assert b"old.example" in line
    port = free_port()
    reload_done(site, 2, server_name="new.example", listen="127.0.0.1:%d" % port)
    fresh, line = greeting(port)
    assert b"new.example" in line, line
    fresh.close()
    try:
        greeting(site.port)[0].close()
    except ConnectionRefusedError:
        pass
    else:
        raise AssertionError("the old address is still served")
    assert retrieve(client, 1) == as_sent(message(1))
    client.dele(1)
    assert b"old.example" in client.quit()
    assert site.read_mail() == message(2).encode()
    # who had not logged in before SIGHUP still can
    waiting.sendall(b"USER user\r\nPASS %s\r\nQUIT\r\n" % PASSWORD.encode())
    answers = waiting.makefile("rb").read()
    assert answers.count(b"+OK") == 3 and b"old.example" in answers, answers
    waiting.close()
    # with its last session the old generation ends: only one monitor is left
    wait_until(lambda: len(site.processes("qpopper-monitor")) == 1, 10, "the end of the old generation")
    assert served(port) == 1


@test
def reload_drain_timeout(site):
    """an open session is cut reload-drain-timeout seconds after SIGHUP, and deletes nothing"""
    a_user(site)
    before = site.read_mail()
    site.start(reload_drain_timeout=1)
    client = site.login()
    client.dele(1)
    reload_done(site, 2)
    client.sock.settimeout(8)
    data = client.sock.recv(600)
    assert data == b"" or data.startswith(b"-ERR"), data
    wait_until(lambda: len(site.processes("qpopper-monitor")) == 1, 10, "the end of the old generation")
    assert site.read_mail() == before
    assert served(site.port) == 2


def certificate_served(site):
    """Fingerprint of the certificate on the TLS port."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", site.tls_port), 20) as client, context.wrap_socket(client) as tls:
        tls.recv(600)
        return hashlib.sha256(tls.getpeercert(True)).hexdigest()


@test
def reload_new_certificate(site):
    """a new certificate is served after SIGHUP, and a TLS session from before goes on"""
    a_user(site)
    site.start()
    client = site.login(tls="tls")
    first = certificate_served(site)
    site.make_certificate("second.example")
    assert certificate_served(site) == first, "files are read before SIGHUP"
    reload_done(site, 2)
    second = certificate_served(site)
    assert second != first
    assert retrieve(client, 2) == as_sent(message(2))
    client.quit()
    assert served_tls(site, site.tls_port) == 2
    assert certificate_served(site) == second


@test
def reload_refused(site):
    """errors in the settings, a lost certificate, a key that does not fit: the old settings stay, the log says so"""
    a_user(site)
    site.start(server_name="old.example")
    fingerprint = certificate_served(site)

    def still_the_old_one(reason, count):
        wait_until(lambda: site.log().count("reload refused, the old settings stay in force") == count, 10,
                   "refusal %d" % count)
        assert re.search(reason, site.log()), "no %r in the log" % reason
        client, line = greeting(site.port)
        client.close()
        assert b"old.example" in line
        assert certificate_served(site) == fingerprint
        assert served(site.port) == 2

    reload(site, server_name="new.example", timeotu="30")
    still_the_old_one(r'popper\.conf:\d+:\d+: unknown option "timeotu"; did you mean "timeout"\?', 1)
    os.rename(site.path("cert.pem"), site.path("cert.away"))
    reload(site, server_name="new.example")
    still_the_old_one(r"cannot open .*cert\.pem: No such file", 2)
    os.rename(site.path("cert.away"), site.path("cert.pem"))
    os.rename(site.path("key.pem"), site.path("key.first"))
    os.rename(site.path("cert.pem"), site.path("cert.first"))
    site.make_certificate("second.example")
    os.rename(site.path("cert.first"), site.path("cert.pem"))
    reload(site, server_name="new.example")
    still_the_old_one("does not (fit|match|belong)", 3)
    os.rename(site.path("key.first"), site.path("key.pem"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = "127.0.0.1:%d" % other.getsockname()[1]
        reload(site, server_name="new.example", listen=address)
        still_the_old_one(re.escape(address) + " in use", 4)
    reload_done(site, 2, server_name="new.example")
    client, line = greeting(site.port)
    client.close()
    assert b"new.example" in line


@test
def reload_without_helpers(site):
    """when the new processes cannot be started the old settings stay in force, addresses included"""
    a_user(site)
    site.settings.update(listen_tls=None, tls_server_cert_file=None, tls_private_key_file=None)
    site.start()
    port = free_port()
    reload(site, listen="127.0.0.1:%d" % port, helper_dir=site.path("nothing"))
    site.wait_log("reload refused, the old settings stay in force")
    assert served(site.port) == 2, "the old address must be served still"
    reload_done(site, 3)
    assert served(site.port) == 2


@test
def reload_twice_at_once(site):
    """settings that change while a reload is under way are not forgotten"""
    a_user(site)
    site.start(server_name="one.example")
    reload(site, server_name="two.example")
    time.sleep(0.005)
    reload(site, server_name="three.example")

    def newest():
        client, line = greeting(site.port)
        client.close()
        return b"three.example" in line
    wait_until(newest, 10, "the settings of the second SIGHUP")


@test
def reload_loses_no_connection(site):
    """six reloads while clients come and go: each one is served"""
    a_user(site)
    site.start(max_connections_per_address=1000)
    sessions = 0
    for generation in range(2, 8):
        reload(site)
        while "serves (generation %d)" % generation not in site.log():
            assert served(site.port) == 2
            sessions += 1
    assert sessions > 6
    assert site.log().count("signal") == 0 and "ended:" not in site.log()


# ---- certificates at the start ----

def refused_at_start(site, pattern, **settings):
    """Exit status 1, and the reason on standard error, by --check-config and at a real start."""
    site.write_settings(**settings)
    for options in ["--check-config"], ["--foreground"]:
        run = popper(site, "-f", site.path("popper.conf"), *options)
        assert run.returncode == 1, (options, run.returncode, run.stderr)
        assert re.search(pattern, run.stderr), run.stderr
        assert run.stderr.startswith(("popper: ", "settings: ")), run.stderr


@test
def bad_certificates(site):
    """a certificate that is missing, garbage, for another key, or a key others may read: refused at the start"""
    a_user(site)
    refused_at_start(site, r"cannot open .*gone\.pem: No such file", tls_server_cert_file=site.path("gone.pem"))
    refused_at_start(site, r"cannot open .*gone\.pem: No such file", tls_private_key_file=site.path("gone.pem"))
    with open(site.path("garbage.pem"), "w") as file:
        file.write("no certificate\n")
    os.chmod(site.path("garbage.pem"), 0o600)
    refused_at_start(site, r"garbage\.pem holds no PEM certificate", tls_server_cert_file=site.path("garbage.pem"))
    refused_at_start(site, r"garbage\.pem", tls_private_key_file=site.path("garbage.pem"))
    os.rename(site.path("key.pem"), site.path("first-key.pem"))
    os.rename(site.path("cert.pem"), site.path("first-cert.pem"))
    site.make_certificate("second.example")
    refused_at_start(site, "does not (fit|match|belong)", tls_private_key_file=site.path("first-key.pem"))
    os.chmod(site.path("key.pem"), 0o644)
    refused_at_start(site, r"key\.pem.*(chmod|readable|mode)")
    os.chmod(site.path("key.pem"), 0o600)
    if not ROOT:
        os.chmod(site.path("key.pem"), 0)
        refused_at_start(site, r"key\.pem: Permission denied")
    refused_at_start(site, "tls-server-cert-file", tls_server_cert_file=None, tls_private_key_file=None)


@test
def encrypted_key(site):
    """a key with a pass phrase is refused with a message that says what to do"""
    a_user(site)
    subprocess.run(["openssl", "pkey", "-in", site.path("key.pem"), "-aes128", "-passout", "pass:secret", "-out",
                    site.path("encrypted.pem")], check=True, capture_output=True)
    os.chmod(site.path("encrypted.pem"), 0o600)
    refused_at_start(site, r"encrypted\.pem.*(encrypted|pass phrase)", tls_private_key_file=site.path("encrypted.pem"))


# ---- the end ----

@test
def sigterm_drains(site):
    """SIGTERM: a session that is logged in may finish, one that is not is closed, nobody new comes in; status 0"""
    a_user(site)
    site.start()
    client = site.login()
    idle = site.raw()
    client.dele(1)
    site.process.send_signal(signal.SIGTERM)
    idle.settimeout(5)
    data = idle.recv(600)
    assert data == b"" or data.startswith(b"-ERR"), data
    try:
        greeting(site.port)
    except (ConnectionRefusedError, ConnectionResetError):
        pass
    else:
        raise AssertionError("a new connection was accepted")
    assert site.process.poll() is None
    assert retrieve(client, 2) == as_sent(message(2))
    client.quit()
    assert site.process.wait(5) == 0
    assert site.read_mail() == message(2).encode()


@test
def drain_timeout(site):
    """a session that does not finish is cut after drain-timeout, and deletes nothing; status 0"""
    a_user(site)
    before = site.read_mail()
    site.start(drain_timeout=1)
    client = site.login()
    client.dele(1)
    site.process.send_signal(signal.SIGTERM)
    assert site.process.wait(6) == 0
    assert site.read_mail() == before
    client.close()


@test
def second_sigterm(site):
    """a second SIGTERM ends at once what the first one lets finish"""
    a_user(site)
    before = site.read_mail()
    site.start()
    client = site.login()
    client.dele(1)
    site.process.send_signal(signal.SIGTERM)
    site.wait_log("sessions may finish")
    assert site.process.poll() is None
    site.process.send_signal(signal.SIGTERM)
    assert site.process.wait(3) == 0
    assert site.read_mail() == before
    client.close()


# ---- the command line ----

@test
def version_and_help(site):
    """-v, --version, -V and --help, on standard output, status 0"""
    for flag in "-v", "--version", "-V":
        run = popper(site, flag)
        assert run.returncode == 0 and run.stdout.startswith("Qpopper (version 5."), run
        assert run.stderr == ""
        assert ("spool-dir" in run.stdout) == (flag == "-V"), run.stdout
    run = popper(site, "--help")
    assert run.returncode == 0 and run.stdout.startswith("Usage: popper ") and "--tls-server-cert-file" in run.stdout


@test
def usage_errors(site):
    """each mistake on the command line is named, with what would be right; status 1"""
    for arguments, pattern in [
            (["--timeotu=30"], r"unknown option --timeotu; did you mean --timeout\?"),
            (["-Z"], r"-Z"),
            (["-T"], r"-T"),
            (["-T", "soon"], r"soon"),
            (["--timeout=5"], r"10"),
            (["-f", site.path("missing.conf")], r"missing\.conf.*No such file"),
            (["127.0.0.1:99999"], r"99999"),
            (["-s", "110"], r"110"),
            (["--mail-lock-timeout"], r"mail-lock-timeout")]:
        run = popper(site, *arguments, "--foreground")
        assert run.returncode == 1, (arguments, run)
        assert re.search(pattern, run.stderr), (arguments, run.stderr)
        assert "command line" in run.stderr or "missing.conf" in run.stderr, (arguments, run.stderr)
        assert run.stdout == ""


@test
def check_config(site):
    """--check-config: status 0 and a word when all is well; every error with file, line and column otherwise"""
    a_user(site)
    site.write_settings()
    run = popper(site, "--check-config", "-f", site.path("popper.conf"))
    assert run.returncode == 0 and "in order" in run.stdout, run
    assert not masters(site)
    with open(site.path("popper.conf"), "a") as conf:
        conf.write("set timeotu = 30\nset timeout = -1\n\nfoo\nset failure-delay = 2 # fine\nset APOP-FILE = /x\n")
    with open(site.path("popper.conf")) as conf:
        first = len(conf.readlines()) - 5
    run = popper(site, "--check-config", "-f", site.path("popper.conf"))
    assert run.returncode == 1 and run.stdout == "", run
    lines = run.stderr.splitlines()
    for offset, pattern in (0, r'"timeotu"; did you mean "timeout"\?'), (1, "timeout|-1"), (3, "foo"), (5, "APOP"):
        place = "%s:%d:" % (site.path("popper.conf"), first + offset)
        assert any(line.startswith(place) and re.search(pattern, line) for line in lines), (place, pattern, lines)
    assert not any(":%d:" % (first + 4) in line for line in lines), lines


@test
def impossible_places(site):
    """a spool directory that is missing, or a helper that is: said before anything is served"""
    a_user(site)
    refused_at_start(site, r"spool-dir .*/nowhere: No such file", spool_dir=site.path("nowhere"))
    site.write_settings(helper_dir=site.path("nothing"), listen_tls=None, tls_server_cert_file=None,
                        tls_private_key_file=None)
    run = popper(site, "-f", site.path("popper.conf"), "--foreground")
    assert run.returncode == 1 and re.search(r"cannot execute .*/nothing/qpopper-", run.stderr), run


# ---- limits ----

def refused_connection(port, source="127.0.0.1"):
    """Whether a connection is answered by -ERR [SYS/TEMP] and closed."""
    with socket.create_connection(("127.0.0.1", port), 20, (source, 0)) as client:
        line = client.recv(600)
        if line.startswith(b"+OK"):
            return False
        assert line.startswith(b"-ERR [SYS/TEMP] ") and line.endswith(b"\r\n"), line
        assert client.recv(600) == b""
        return True


def admitted_again(site):
    """A connection, as soon as there is a place for it."""
    def attempt():
        client, line = greeting(site.port)
        if line.startswith(b"+OK"):
            return client
        client.close()
        return None
    return wait_until(attempt, 5, "a free place")


@test
def max_connections(site):
    """max-connections: one more is answered -ERR and closed, until a place is free"""
    a_user(site)
    site.start(max_connections=3)
    clients = [site.raw() for _ in range(2)]
    logged_in = site.login()
    assert refused_connection(site.port)
    site.wait_log("connections refused: max-connections is reached")
    assert logged_in.stat()[0] == 2
    clients.pop().close()
    admitted_again(site).close()
    logged_in.quit()


@test
def max_connections_per_address(site):
    """max-connections-per-address: another address is served while one has its fill"""
    a_user(site)
    site.start(max_connections_per_address=2)
    clients = [site.raw(), site.login()]
    assert refused_connection(site.port)
    assert not refused_connection(site.port, "127.0.0.2")
    site.wait_log("max-connections-per-address is reached")
    clients[0].close()
    admitted_again(site).close()
    clients[1].quit()


@test
def max_unauthenticated(site):
    """max-unauthenticated: a login makes room for the next client"""
    a_user(site)
    site.start(max_unauthenticated=2)
    first = site.connect()
    second = site.raw()
    assert refused_connection(site.port)
    site.wait_log("max-unauthenticated is reached")
    first.user("user")
    first.pass_(PASSWORD)
    third = admitted_again(site)
    assert refused_connection(site.port)
    first.quit()
    assert refused_connection(site.port)
    second.close()
    third.close()


@test
def refusal_on_the_tls_port(site):
    """past a limit the TLS port is closed without a word, as nothing can be said before the handshake"""
    a_user(site)
    site.start(max_connections=1)
    with site.raw():
        with socket.create_connection(("127.0.0.1", site.tls_port), 20) as client:
            assert client.recv(600) == b""


def workers_of_sessions(site, count):
    """Which worker served each of the sessions so far, by their log records."""
    pattern = r"worker (\d+): session of user from"
    wait_until(lambda: len(re.findall(pattern, site.log())) == count, 10, "%d session records" % count)
    return re.findall(pattern, site.log())


@test
def one_session_per_worker(site):
    """sessions-per-worker = 1: no two connections share a process, neither at once nor later"""
    for number in range(3):
        site.add_user("user%d" % number)
    a_user(site)
    site.start(sessions_per_worker=1)
    before = len(site.processes("qpopper-worker"))
    clients = [site.login("user%d" % number) for number in range(3)]
    at_once = site.processes("qpopper-worker")
    assert len(at_once) >= 4, at_once  # three of sessions and what forks them
    for client in clients:
        client.quit()
    for _ in range(4):
        assert served(site.port) == 2
    workers = workers_of_sessions(site, 4) + re.findall(r"worker (\d+): session of user\d from", site.log())
    assert len(workers) == 7 and len(set(workers)) == 7, workers
    wait_until(lambda: len(site.processes("qpopper-worker")) <= before, 5, "the end of used workers")


@test
def worker_retire(site):
    """worker-retire = 2: no worker serves a third connection, and retired ones end"""
    a_user(site)
    site.start(worker_retire=2)
    before = len(site.processes("qpopper-worker"))
    for _ in range(11):
        assert served(site.port) == 2
    workers = workers_of_sessions(site, 11)
    assert max(workers.count(worker) for worker in workers) == 2, workers
    assert len(set(workers)) >= 6
    wait_until(lambda: len(site.processes("qpopper-worker")) <= before, 5, "the end of retired workers")
    assert "ended with status" not in site.log()


if __name__ == "__main__":
    main()
