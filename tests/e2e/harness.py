"""End-to-end tests: the real daemon, started and stopped, and TAP on standard output.

A test program defines functions, marks them with @test and ends in main(). Each test gets a Site: a
scratch directory with spool, settings, certificate and users, and methods to start popper there. As
root the site has system users and the full set of rights; as an ordinary user virtual users of its
own. A test that cannot run raises Skip with the reason.

The programs under test are those of the build (POPPER_BUILD, default the current directory).
"""
import os
import poplib
import pwd
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
import traceback

BUILD = os.path.abspath(os.environ.get("POPPER_BUILD", "."))
ROOT = os.geteuid() == 0
PASSWORD = "correct horse"
SERVICE_USERS = ("_qpopper", "_qpopsign", "_qpopauth")
TESTS = []


class Skip(Exception):
    """The test cannot run here; the text says why."""


def test(function):
    TESTS.append(function)
    return function


def need_root():
    if not ROOT:
        raise Skip("needs root")


def need_program(*names):
    for name in names:
        if shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None:
            raise Skip(name + " is not installed")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, seconds=10, what="condition"):
    """Poll until condition() is true; its value is returned."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError("timed out waiting for " + what)
        time.sleep(0.02)


def crypt_hash(password):
    """A cheap crypt(5) hash: tests check many passwords."""
    return subprocess.run(["openssl", "passwd", "-1", "-salt", "testsalt", password],
                          check=True, capture_output=True, text=True).stdout.strip()


def message(number, body="", sender="sender@example.org", extra=""):
    """One message as it stands in a spool, with its separator line and the empty line behind it."""
    if not body:
        body = "Body of message %d.\n" % number
    if not body.endswith("\n"):
        body += "\n"
    return ("From %s Sat Nov 21 12:%02d:%02d 2026\nReceived: from a by b; Sat, 21 Nov 2026 12:00:00 +0000\n"
            "From: %s\nTo: user\nSubject: message %d\nMessage-ID: <%d@example.org>\n%s\n%s\n"
            % (sender, number // 60 % 60, number % 60, sender, number, number, extra, body))


def as_sent(spool_message):
    """What a client must receive of such a message: CRLF line ends, without the separator."""
    content = spool_message.split("\n", 1)[1]
    assert content.endswith("\n\n")
    return content[:-1].replace("\n", "\r\n").encode("latin-1")


def run_as(uid, gid, function):
    """Run function in a child process with the rights of that user; what it raises is raised here as text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = b""
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            function()
        except BaseException:  # noqa: B902 (a child must not run on as its parent)
            text = traceback.format_exc().encode()
        os.write(writer, text[-60000:])
        os._exit(1 if text else 0)
    os.close(writer)
    with open(reader, "rb") as report:
        text = report.read().decode()
    os.waitpid(child, 0)
    if text:
        raise AssertionError("as uid %d: %s" % (uid, text))


def children_of(pid):
    """Every descendant process of pid, as {pid: command name}."""
    parents = {}
    names = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open("/proc/%s/stat" % entry) as status:
                    fields = status.read()
            except OSError:
                continue
            if not fields:  # it ended in the middle of the reading
                continue
            names[int(entry)] = fields[fields.index("(") + 1:fields.rindex(")")]
            parents[int(entry)] = int(fields[fields.rindex(")") + 2:].split()[1])
    found = {}
    grown = True
    family = {pid}
    while grown:
        grown = False
        for child, parent in parents.items():
            if parent in family and child not in family:
                family.add(child)
                found[child] = names[child]
                grown = True
    return found


def status_of(pid):
    """The fields of /proc/PID/stat behind the command name; empty when it is gone."""
    try:
        with open("/proc/%d/stat" % pid) as status:
            return status.read().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []


def state_of(pid):
    return (status_of(pid) or "X")[0]


def parent_of(pid):
    return int((status_of(pid) or "X0")[1])


def is_alive(pid):
    """Whether that process still does anything; one that only waits to be reaped does not."""
    return state_of(pid) not in "ZX"


class Site:
    """A scratch installation: directories, settings, users and at most one running popper."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="qpopper-test.")
        os.chmod(self.directory, 0o755)
        self.spool = self.path("mail")
        self.state = self.path("state")
        self.port = free_port()
        self.tls_port = free_port()
        self.settings = {}
        self.process = None
        self.system_users = []
        self.virtual = {}
        self.cleanups = []
        os.mkdir(self.spool)
        os.mkdir(self.state, 0o755)
        if ROOT:
            self.add_service_users()
            os.chown(self.spool, 0, 8)
            os.chmod(self.spool, 0o2775)
        self.make_certificate()

    def path(self, *names):
        return os.path.join(self.directory, *names)

    # ---- users and mail ----

    @staticmethod
    def add_service_users():
        for name in SERVICE_USERS:
            try:
                pwd.getpwnam(name)
            except KeyError:
                subprocess.run(["useradd", "-r", "-M", "-d", "/nonexistent", "-s", "/usr/sbin/nologin", name],
                               check=True, capture_output=True)

    def add_user(self, name="user", password=PASSWORD, uid=None):
        """A virtual user in passwd-file, with the uid of the tester or, as root, one of its own."""
        if uid is None:
            uid = 60000 + len(self.virtual) if ROOT else os.getuid()
        self.virtual[name] = (crypt_hash(password), uid, 8 if ROOT else os.getgid())
        self.write_passwd_file()
        return name

    def write_passwd_file(self):
        with open(self.path("users.new"), "w") as users:
            for name, (hashed, uid, gid) in self.virtual.items():
                users.write("%s:%s:%d:%d::::\n" % (name, hashed, uid, gid))
        os.chmod(self.path("users.new"), 0o640 if ROOT else 0o600)
        if ROOT:
            os.chown(self.path("users.new"), 0, pwd.getpwnam("_qpopauth").pw_gid)
        os.rename(self.path("users.new"), self.path("users"))

    def add_system_user(self, name, password=PASSWORD):
        """A real account, removed with the site; its password hash is cheap."""
        need_root()
        subprocess.run(["userdel", name], capture_output=True)
        subprocess.run(["useradd", "-M", "-d", "/nonexistent", "-s", "/bin/sh", "-p", crypt_hash(password), name],
                       check=True, capture_output=True)
        self.system_users.append(name)
        return name

    def owner_of(self, user):
        if user in self.virtual:
            return self.virtual[user][1:]
        entry = pwd.getpwnam(user)
        return entry.pw_uid, 8

    def spool_path(self, user="user"):
        return os.path.join(self.spool, user)

    def put_mail(self, messages, user="user"):
        """Replace the user's spool by these messages (a list of str, or bytes as they are)."""
        data = messages if isinstance(messages, bytes) else "".join(messages).encode("latin-1")
        path = self.spool_path(user)
        with open(path, "wb") as spool:
            spool.write(data)
        os.chmod(path, 0o660 if ROOT else 0o600)
        if ROOT:
            os.chown(path, *self.owner_of(user))

    def read_mail(self, user="user"):
        with open(self.spool_path(user), "rb") as spool:
            return spool.read()

    # ---- settings ----

    def make_certificate(self, name="localhost", days=30):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                        "-nodes", "-days", str(days), "-subj", "/CN=" + name,
                        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                        "-keyout", self.path("key.pem"), "-out", self.path("cert.pem")],
                       check=True, capture_output=True)
        os.chmod(self.path("key.pem"), 0o600)

    def default_settings(self):
        settings = {
            "listen": "127.0.0.1:%d" % self.port,
            "listen-tls": "127.0.0.1:%d" % self.tls_port,
            "clear-text-password": "always",
            "spool-dir": self.spool,
            "state-dir": self.state,
            "helper-dir": BUILD,
            "tls-server-cert-file": self.path("cert.pem"),
            "tls-private-key-file": self.path("key.pem"),
            "failure-delay": "1",
            "statistics": "true",
        }
        if self.virtual:
            settings["passwd-file"] = self.path("users")
        return settings

    def write_settings(self, **changes):
        """Settings by keyword, '_' for '-'; None leaves one out."""
        settings = self.default_settings()
        for name, value in {**self.settings, **changes}.items():
            settings[name.replace("_", "-")] = value
        with open(self.path("popper.conf"), "w") as conf:
            for name, value in settings.items():
                if value is not None:
                    conf.write("set %s = %s\n" % (name, value))

    # ---- the daemon ----

    def start(self, *arguments, wait=True, environment=None, **changes):
        self.write_settings(**changes)
        self.log_start = len(self.log())
        self.log_file = open(self.path("log"), "ab")
        self.process = subprocess.Popen([os.path.join(BUILD, "popper"), "--foreground", "-f",
                                         self.path("popper.conf"), *arguments],
                                        stdin=subprocess.DEVNULL, stdout=self.log_file, stderr=self.log_file,
                                        env={**os.environ, **(environment or {})})
        if wait:
            self.wait_ready()
        return self.process

    def wait_ready(self):
        def ready():
            if self.process.poll() is not None:
                raise AssertionError("popper ended with %d:\n%s" % (self.process.returncode, self.log()))
            return "serves (generation" in self.log()[self.log_start:]
        wait_until(ready, 20, "popper to serve")

    def stop(self):
        """SIGTERM; the exit status."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError("popper did not end after SIGTERM:\n" + self.log())
        status = self.process.returncode
        self.process = None
        return status

    def kill_service(self):
        """SIGKILL for every process of the service at once, as in a power cut; waits for all of them."""
        victims = [self.process.pid, *self.processes()]
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        wait_until(lambda: not any(is_alive(pid) for pid in victims), 60, "the killed processes to be gone")
        self.process = None

    def recover(self, **changes):
        """Run popper --recover: its exit status and what it wrote to standard error."""
        self.write_settings(**changes)
        run = subprocess.run([os.path.join(BUILD, "popper"), "--recover", "-f", self.path("popper.conf")],
                             stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        with open(self.path("log"), "a") as log:
            log.write("--- popper --recover: %d\n%s" % (run.returncode, run.stderr))
        return run.returncode, run.stderr

    def log(self):
        try:
            with open(self.path("log"), encoding="latin-1") as log:
                return log.read()
        except FileNotFoundError:
            return ""

    def wait_log(self, text, seconds=10):
        wait_until(lambda: text in self.log(), seconds, "%r in the log" % text)

    def processes(self, name=None):
        """The service's processes: pids, or those of that name ("qpopper-worker")."""
        found = children_of(self.process.pid)
        return sorted(pid for pid, command in found.items() if name is None or command == name[:15])

    # ---- clients ----

    def connect(self, tls=None, timeout=20):
        """poplib, plain, 'stls' or 'tls'."""
        context = ssl.create_default_context(cafile=self.path("cert.pem"))
        if tls == "tls":
            return poplib.POP3_SSL("localhost", self.tls_port, context=context, timeout=timeout)
        client = poplib.POP3("127.0.0.1", self.port, timeout=timeout)
        if tls == "stls":
            client.host = "localhost"
            client.stls(context)
        return client

    def login(self, user="user", password=PASSWORD, tls=None, timeout=20):
        client = self.connect(tls, timeout)
        client.user(user)
        client.pass_(password)
        return client

    def raw(self, timeout=20):
        """A plain socket after the greeting."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout)
        greeting = client.recv(600)
        assert greeting.startswith(b"+OK"), greeting
        return client

    # ---- end ----

    def close(self):
        try:
            if self.process is not None and self.process.poll() is None:
                self.stop()
        finally:
            for cleanup in reversed(self.cleanups):
                cleanup()
            for name in self.system_users:
                subprocess.run(["userdel", name], capture_output=True)
            shutil.rmtree(self.directory, ignore_errors=True)


def read_until(client, end, limit=1 << 26):
    """Receive until the bytes end with `end`."""
    data = b""
    while not data.endswith(end):
        piece = client.recv(65536)
        if not piece:
            raise AssertionError("closed after %r" % data[-200:])
        data += piece
        assert len(data) < limit
    return data


def retrieve(client, number):
    """RETR by poplib, as the exact octets without dot-stuffing."""
    response, lines, octets = client.retr(number)
    return b"".join(line + b"\r\n" for line in lines)


def refused(site, code, **arguments):
    """A login must fail with that response code."""
    try:
        client = site.login(**arguments)
    except poplib.error_proto as answer:
        assert code in str(answer), answer
        return
    client.close()
    raise AssertionError("the login was accepted")


def kill_all(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


# ---- maildrops ----

def subject_of(client, index):
    """The number in the subject of a message."""
    line = next(line for line in client.top(index, 0)[1] if line.startswith(b"Subject:"))
    return int(line.split()[-1])


def wait_login(site, user="user", seconds=60):
    """A session, as soon as there can be one."""
    def attempt():
        try:
            return site.login(user, timeout=30)
        except (OSError, EOFError, poplib.error_proto):
            return None
    return wait_until(attempt, seconds, "a login")


def journals_in_force(site):
    """How many journals say that a spool is being changed."""
    count = 0
    directory = os.path.join(site.state, "journal")
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        if not name[0].isdigit() or not name.endswith(".journal"):
            continue
        try:
            with open(os.path.join(directory, name), "rb") as journal:
                head = journal.read(8192).ljust(8192, b"\0")
        except FileNotFoundError:  # replaced by a new one this instant
            continue
        records = [struct.unpack_from("<QQQQ", head, slot) for slot in (0, 4096)]
        _, _, _, state = max(record if record[0] == 0x314c4e4a50584551 else (0, 0, 0, 0) for record in records)
        count += state != 0
    return count


def stop_in_the_middle(site, client):
    """QUIT, and the update agent is stopped while its journal is in force: its pid, or None if it was faster."""
    monitor, = [pid for pid in site.processes("qpopper-monitor") if parent_of(pid) == site.process.pid]
    client._putcmd("QUIT")
    agent = 0
    while agent == 0:
        agent = min(children_of(monitor), default=0)
        if agent == 0 and select.select([client.sock], [], [], 0)[0]:
            return None
    while is_alive(agent):
        os.kill(agent, signal.SIGSTOP)
        wait_until(lambda: state_of(agent) in "TZX", 60, "the agent to stop")
        if journals_in_force(site):
            return agent
        try:
            os.kill(agent, signal.SIGCONT)
        except ProcessLookupError:
            break
        time.sleep(0.0005)
    return None


def stop_update(site):
    """A maildrop of 48 MB loses its first message; the agent is stopped in the middle: mail, client, agent."""
    mail = [message(number, "x" * (1 << 20)) for number in range(1, 49)]
    site.add_user()
    site.put_mail(mail)
    # without fillers the spool must be moved, and holds nothing but the mail afterwards
    site.start(filler="false")
    for _ in range(10):
        client = site.login()
        client.dele(1)
        agent = stop_in_the_middle(site, client)
        if agent is not None:
            return mail, client, agent
        client.close()
        wait_login(site).close()
        site.put_mail(mail)
    raise AssertionError("ten updates were all faster than a signal")


def kill_everything_during_update(site):
    """A maildrop of 48 MB loses its first message; the whole service dies in the middle of the update."""
    mail, _, _ = stop_update(site)
    site.kill_service()
    return mail


# ---- disks ----

def make_image(path, kind, megabytes):
    """A sparse file with a file system of that kind (ext4, xfs, btrfs) in it."""
    need_root()
    need_program("mkfs." + kind)
    with open(path, "wb") as file:
        file.truncate(megabytes << 20)
    quiet = ["-q", "-m", "0"] if kind == "ext4" else ["-q"]
    made = subprocess.run(["mkfs." + kind, *quiet, path], capture_output=True, text=True)
    if made.returncode != 0:
        raise Skip("mkfs.%s: %s" % (kind, made.stderr.strip().replace("\n", " ")))


def mount(image, directory, options="loop"):
    made = subprocess.run(["mount", "-o", options, image, directory], capture_output=True, text=True)
    if made.returncode != 0:
        reason = made.stderr.strip().split("\n")[0]
        raise Skip("%s cannot be mounted here with -o %s: %s" % (os.path.basename(image), options, reason))


def unmount(directory):
    """Once nobody has a file open there; an agent that was killed may need a moment."""
    wait_until(lambda: subprocess.run(["umount", directory], capture_output=True).returncode == 0, 30,
               "%s to be unmounted" % directory)


def mount_image(site, name, kind, megabytes, options="loop"):
    """A file system of that kind and size at site/name, from the file site/name.image."""
    directory = site.path(name)
    make_image(directory + ".image", kind, megabytes)
    os.mkdir(directory)
    mount(directory + ".image", directory, options)
    site.cleanups.append(lambda: subprocess.run(["umount", "-l", directory], capture_output=True))
    return directory


def fill(directory):
    """Leave not one free block."""
    with open(os.path.join(directory, "filler"), "wb") as filler:
        for size in 1 << 20, 4096, 512:
            try:
                while True:
                    os.write(filler.fileno(), b"x" * size)
            except OSError:
                pass


def run_one(function):
    site = Site()
    try:
        function(site)
        return None
    except Skip:
        raise
    except Exception:
        return traceback.format_exc() + "\n--- log of popper ---\n" + site.log()[-6000:]
    finally:
        site.close()


def main():
    """Run the tests of this program (or those named in the arguments) and print TAP."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    wanted = [function for function in TESTS if len(sys.argv) == 1 or function.__name__ in sys.argv[1:]]
    failed = 0
    print("1..%d" % len(wanted), flush=True)
    for number, function in enumerate(wanted, 1):
        name = "%s: %s" % (function.__name__, (function.__doc__ or "").strip().split("\n")[0])
        try:
            failure = run_one(function)
        except Skip as reason:
            print("ok %d - %s # SKIP %s" % (number, name, reason), flush=True)
            continue
        if failure is None:
            print("ok %d - %s" % (number, name), flush=True)
            continue
        failed += 1
        for line in failure.splitlines():
            print("# " + line)
        print("not ok %d - %s" % (number, name), flush=True)
    sys.exit(1 if failed else 0)
