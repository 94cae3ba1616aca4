#!/usr/bin/env python3
"""What each process of a running service may do and hold, seen from outside through /proc.

ROLES is the one list of it; doc/architecture.md says the same in words.
"""
import base64
import ctypes
import fcntl
import poplib
import re
import secrets
import time
from collections import namedtuple

from harness import *  # noqa: F403 (the harness is this suite's language)

PTRACE_SEIZE = 0x4206
AGENT_CAPABILITIES = 0xef  # chown, dac_override, dac_read_search, fowner, kill, setgid, setuid
ALL = None  # what the service was started with

# capabilities and bounding: sets allowed; seccomp: 2 is a filter; root: where / is;
# descriptors: kinds that it may hold (see kind_of), must: those that it must hold at the moment of the test
Role = namedtuple("Role", "user capabilities bounding no_new_privs seccomp root descriptors must")
COMMON = {"null", "unix"}
ROLES = {
    "master": Role("root", ALL, ALL, False, 0, "/",
                   COMMON | {"log", "directory", "listening", "eventpoll", "signalfd", "pidfd", "timerfd"},
                   {"listening"}),
    "logger": Role("_qpopper", 0, 0, True, 0, "/", COMMON | {"log"}, {"log"}),
    "monitor": Role("root", AGENT_CAPABILITIES, 0, True, 0, "/",
                    COMMON | {"eventpoll", "signalfd", "spool directory", "state directory", "monitor's mark",
                              "journal", "owner", "owner to be synced", "memfd", "index"}, {"monitor's mark"}),
    "worker parent": Role("_qpopper", 0, 0, True, 0, "empty", COMMON | {"signalfd"}, set()),
    "worker": Role("_qpopper", 0, 0, True, 2, "empty",
                   COMMON | {"eventpoll", "eventfd", "client", "spool read-only", "session lock", "memfd"}, set()),
    "signer": Role("_qpopsign", 0, 0, True, 2, "empty", COMMON | {"eventpoll"}, set()),
    "verifier": Role("_qpopauth", 0, 0, True, 2, "empty", COMMON | {"eventpoll"}, set()),
    "auth": Role("root", ALL, ALL, False, 0, "/", COMMON | {"eventpoll", "signalfd"}, set()),
    "auth agent": Role("root", ALL, ALL, False, 0, "/", COMMON | {"pipe"}, {"unix"}),
    "opening agent": Role("mailbox owner", 0, 0, True, 0, "/",
                          COMMON | {"spool directory", "spool read-only", "session lock", "memfd", "index read-only"},
                          {"spool read-only"}),
    "updating agent": Role("mailbox owner", 0, 0, True, 0, "/",
                           COMMON | {"spool directory", "spool", "session lock", "journal", "owner to be synced", "memfd",
                                     "index read-only"},
                           {"spool", "journal", "session lock"}),
}


# ---- /proc ----

def read_proc(pid, name, mode="r"):
    with open("/proc/%d/%s" % (pid, name), mode) as file:
        return file.read()


def status_of(pid, task=None):
    text = read_proc(pid, "status" if task is None else "task/%s/status" % task)
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def sockets():
    """{inode: state} of the TCP sockets of this machine."""
    states = {}
    for name in "tcp", "tcp6":
        with open("/proc/net/" + name) as table:
            for line in table.read().splitlines()[1:]:
                fields = line.split()
                states[fields[9]] = "listening" if fields[3] == "0A" else "client"
    return states


def kind_of(site, pid, number, tcp):
    """The kind of a descriptor, in the words of ROLES; whatever is none of them, as it is."""
    target = os.readlink("/proc/%d/fd/%d" % (pid, number))
    flags = int(re.search(r"flags:\s*(\d+)", read_proc(pid, "fdinfo/%d" % number)).group(1), 8)
    read_only = flags & os.O_ACCMODE == os.O_RDONLY
    no_data = flags & os.O_ACCMODE == os.O_ACCMODE  # neither read nor written, see open(2)
    if target.startswith("socket:["):
        return tcp.get(target[8:-1], "unix")
    if target.startswith(("anon_inode:[", "pipe:[", "/memfd:")):
        return re.split(r"[:\[]", target.replace("anon_inode:", "").lstrip("/["))[0].rstrip("]")
    if target == "/dev/null":
        return "null"
    if target == site.path("log"):
        return "log"
    if target == site.spool:
        return "spool directory"
    if target.startswith(site.spool + "/."):
        return "session lock" if read_only else target
    if target.startswith(site.spool + "/") and not target.endswith(".lock"):
        return "spool read-only" if read_only else "spool"
    if target in (site.state, os.path.join(site.state, "journal"), os.path.join(site.state, "cache")):
        return "state directory"
    if target.startswith(site.state + "/journal/"):
        return target.rsplit(".", 1)[1] + (" read-only" if read_only else " to be synced" if no_data else "")
    if target.startswith(site.state + "/cache/"):
        return "index" + (" read-only" if read_only else "")
    if target.startswith(site.state + "/monitor."):
        return "monitor's mark"
    return "directory" if os.path.isdir(target) else target


def descriptors(site, pid):
    tcp = sockets()
    return {number: kind_of(site, pid, number, tcp) for number in map(int, os.listdir("/proc/%d/fd" % pid))}


def by_role(site):
    """{role: [pid]} of the running service; agents are not there until they are caught."""
    names = {"popper-logger": "logger", "qpopper-monitor": "monitor", "qpopper-signer": "signer",
             "qpopper-verifier": "verifier", "qpopper-auth": "auth", "qpopper-worker": "worker"}
    found = {"master": [site.process.pid]}
    for pid, command in children_of(site.process.pid).items():
        role = next((role for name, role in names.items() if name[:15] == command), command)
        if role == "worker" and int(status_of(pid)["PPid"]) == site.process.pid:
            role = "worker parent"
        found.setdefault(role, []).append(pid)
    return found


def child_of(site, name, condition=lambda pid: True):
    """Wait for a child of that process of the service; its pid."""
    def look():
        parents = [pid for pid in site.processes(name) if int(status_of(pid)["PPid"]) == site.process.pid]
        for parent in parents:
            for pid in children_of(parent):
                try:
                    if condition(pid):
                        return pid
                except OSError:
                    pass
        return None
    return wait_until(look, 5, "a child of " + name)


# ---- the comparison with ROLES ----

def check_ids(pid, role, owner):
    if role.user == "mailbox owner":
        uid, gid = owner
    else:
        entry = pwd.getpwnam(role.user)
        uid, gid = entry.pw_uid, entry.pw_gid
    status = status_of(pid)
    assert status["Uid"].split() == [str(uid)] * 4, status["Uid"]
    assert status["Gid"].split() == [str(gid)] * 4, status["Gid"]
    if uid != 0:
        assert status["Groups"].split() == [], status["Groups"]


def check_rights(pid, role):
    """Of every thread: a filter or a right that one thread lacks is worth nothing."""
    for task in os.listdir("/proc/%d/task" % pid):
        status = status_of(pid, task)
        for name in "CapEff", "CapPrm":
            if role.capabilities is not ALL:
                assert int(status[name], 16) == role.capabilities, (name, status[name])
        if role.bounding is not ALL:
            assert int(status["CapBnd"], 16) == role.bounding, status["CapBnd"]
        assert int(status["CapAmb"], 16) == 0 and int(status["CapInh"], 16) == 0
        assert int(status["NoNewPrivs"]) == role.no_new_privs, "NoNewPrivs " + status["NoNewPrivs"]
        assert int(status["Seccomp"]) == role.seccomp, "Seccomp " + status["Seccomp"]


def check_memory_is_closed(pid):
    """No core file, and no look into it for others of the same user: /proc then belongs to root."""
    limits = next(line for line in read_proc(pid, "limits").splitlines() if line.startswith("Max core file size"))
    assert limits.split()[4:6] == ["0", "0"], limits
    assert os.stat("/proc/%d/environ" % pid).st_uid == 0, "dumpable"


def check_role(site, name, pid, owner=None):
    role = ROLES[name]
    try:
        check_ids(pid, role, owner)
        check_rights(pid, role)
        check_memory_is_closed(pid)
        root = os.readlink("/proc/%d/root" % pid)
        assert root == (os.path.join(site.state, "empty") if role.root == "empty" else role.root), root
        held = descriptors(site, pid)
        kinds = set(held.values())
        assert kinds <= role.descriptors, "holds %r" % {n: k for n, k in held.items() if k not in role.descriptors}
        assert kinds >= role.must, "does not hold %r: %r" % (role.must - kinds, held)
        environment = set(item.split(b"=")[0] for item in read_proc(pid, "environ", "rb").split(b"\0") if item)
        assert name in ("master", "logger") or environment <= {b"PATH", b"LANG", b"LD_BIND_NOW"}, environment
    except AssertionError as difference:
        raise AssertionError("%s (pid %d): %s" % (name, pid, difference)) from difference


def check_service(site, checker):
    """Every process that runs, and that every role of a service is there."""
    roles = by_role(site)
    expected = {"master", "logger", "monitor", "worker parent", "worker", "signer", checker}
    assert set(roles) == expected, roles
    for name, pids in roles.items():
        for pid in pids:
            check_role(site, name, pid)
    return roles


# ---- memory ----

def memory_of(pid):
    """The readable memory of a process, region by region."""
    with open("/proc/%d/mem" % pid, "rb", 0) as memory:
        for line in read_proc(pid, "maps").splitlines():
            span, rights = line.split()[:2]
            if rights[0] != "r" or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            start, end = (int(number, 16) for number in span.split("-"))
            try:
                memory.seek(start)
                yield memory.read(end - start)
            except OSError:
                continue


def holds(pid, needles):
    """Which of these bytes are in the memory of that process."""
    found = set()
    try:
        for region in memory_of(pid):
            found |= {needle for needle in needles if needle in region}
    except (FileNotFoundError, ProcessLookupError):  # ended meanwhile, and its memory with it
        pass
    return found


def holders(site, needles, without=()):
    """{role: bytes found} of all processes but those roles."""
    found = {}
    for role, pids in by_role(site).items():
        for pid in pids if role not in without else []:
            here = holds(pid, needles)
            if here:
                found.setdefault(role, set()).update(here)
    return found


def private_key_forms(path):
    """The secret number of an EC key in both byte orders, and lines of its PEM file."""
    text = subprocess.run(["openssl", "pkey", "-in", path, "-noout", "-text"], check=True, capture_output=True,
                          text=True).stdout
    digits = re.search(r"priv:\n((?:\s+[0-9a-f:]+\n)+)", text).group(1)
    number = bytes.fromhex(re.sub(r"[\s:]", "", digits))[-32:]
    pem = subprocess.run(["openssl", "pkey", "-in", path], check=True, capture_output=True, text=True).stdout
    return {number, number[::-1], pem.splitlines()[1].encode()}


# ---- tests ----

@test
def roles_with_passwd_file(site):
    """every process of a service with virtual users has the rights and descriptors of its role, and no more"""
    need_root()
    site.add_user()
    site.put_mail([message(number) for number in range(1, 400)])
    site.start()
    check_service(site, "verifier")
    clients = [site.login(tls="tls"), site.connect("stls"), site.connect()]
    roles = check_service(site, "verifier")
    held = [set(descriptors(site, pid).values()) for pid in roles["worker"]]
    assert any({"client", "spool read-only", "session lock"} <= kinds for kinds in held), held
    clients[0].retr(1)
    clients[0].dele(1)
    for client in clients:
        client.quit()
    check_service(site, "verifier")


@test
def roles_with_pam(site):
    """the same with system accounts and PAM"""
    need_root()
    pam = "qpt%d" % os.getpid()
    with open("/etc/pam.d/" + pam, "w") as service:
        service.write("auth required pam_exec.so quiet %s\nauth required pam_permit.so\n"
                      "account required pam_permit.so\n" % site.path("wait"))
    site.cleanups.append(lambda: os.unlink("/etc/pam.d/" + pam))
    with open(site.path("wait"), "w") as script:
        script.write("#!/bin/sh\nexec sleep 2\n")
    os.chmod(site.path("wait"), 0o755)
    user = site.add_system_user("qptpriv%d" % (os.getpid() % 10000))
    site.start(pam_service=pam)
    check_service(site, "auth")
    client = site.raw()
    client.sendall(b"USER %s\r\nPASS x\r\n" % user.encode())
    agent = child_of(site, "qpopper-auth", lambda pid: status_of(pid)["Name"] == "qpopper-auth")
    check_role(site, "auth agent", agent)
    read_until(client, b"octets.\r\n")
    client.close()


@test
def opening_agent(site):
    """the agent that opens a maildrop is its owner, without groups, rights or anything of the monitor's"""
    need_root()
    site.add_user()
    site.put_mail([message(1)])
    site.start()
    with open(site.spool_path(), "r+b") as spool:
        fcntl.lockf(spool, fcntl.LOCK_EX)
        client = site.raw()
        client.sendall(b"USER user\r\nPASS %s\r\n" % PASSWORD.encode())
        owner = site.owner_of("user")
        agent = child_of(site, "qpopper-monitor", lambda pid: status_of(pid)["Uid"].split()[0] == str(owner[0]) and
                         site.spool_path() in [os.readlink("/proc/%d/fd/%s" % (pid, fd))
                                               for fd in os.listdir("/proc/%d/fd" % pid)])
        check_role(site, "opening agent", agent, owner)
        check_out_of_reach(agent, owner)
    read_until(client, b"octets.\r\n")
    client.close()


@test
def updating_agent(site):
    """the agent that deletes is the owner too, and holds the session lock, his spool and one journal"""
    need_root()
    site.add_user()
    site.put_mail([message(1), message(2)])
    site.start()
    client = site.login()
    client.dele(1)
    with open(site.spool_path(), "r+b") as spool:
        fcntl.lockf(spool, fcntl.LOCK_EX)
        client._putcmd("QUIT")
        owner = site.owner_of("user")
        agent = child_of(site, "qpopper-monitor", lambda pid: status_of(pid)["Uid"].split()[0] == str(owner[0]) and
                         site.spool_path() in [os.readlink("/proc/%d/fd/%s" % (pid, fd))
                                               for fd in os.listdir("/proc/%d/fd" % pid)])
        check_role(site, "updating agent", agent, owner)
        check_out_of_reach(agent, owner)
    client._getresp()
    client.close()
    assert site.read_mail() == message(2).encode()


def check_out_of_reach(pid, owner):
    """Its owner can end it, but neither look into it nor take its descriptors."""
    def pry():
        for name in "mem", "maps", "environ", "fd/3":
            try:
                os.open("/proc/%d/%s" % (pid, name), os.O_RDONLY)
            except OSError:
                continue
            raise AssertionError("opened " + name)
        assert ctypes.CDLL(None).ptrace(PTRACE_SEIZE, pid, None, None) == -1, "traced it"
        os.kill(pid, 0)
    run_as(*owner, pry)


@test
def private_key_in_the_signer_only(site):
    """after TLS logins and a reload the private key is in the signer's memory and nowhere else"""
    need_root()
    site.add_user()
    forms = private_key_forms(site.path("key.pem"))
    site.start()
    site.login(tls="tls").quit()
    site.login(tls="stls").quit()
    assert "signer" in holders(site, forms), "the search does not find what is there"
    assert holders(site, forms, without=("signer",)) == {}
    before = len(site.log())
    site.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "serves (generation 2)" in site.log()[before:], 10, "the second generation")
    site.login(tls="tls").quit()
    assert holders(site, forms, without=("signer",)) == {}


@test
def private_key_beside_the_certificate(site):
    """the same when one file has certificate and key"""
    need_root()
    site.add_user()
    forms = private_key_forms(site.path("key.pem"))
    with open(site.path("both.pem"), "w") as both:
        os.chmod(site.path("both.pem"), 0o600)
        for name in "key.pem", "cert.pem":
            with open(site.path(name)) as part:
                both.write(part.read())
    site.start(tls_server_cert_file=site.path("both.pem"), tls_private_key_file=None)
    site.login(tls="tls").quit()
    assert "signer" in holders(site, forms), "the search does not find what is there"
    assert holders(site, forms, without=("signer",)) == {}


def exercise_logins(site, user, good, wrong):
    """Logins in clear and in TLS, right and wrong, in one piece and bytewise, complete and not; sessions that go on."""
    def send(client, *pieces):
        for piece in pieces:
            client.sendall(piece)
            time.sleep(0.05 if len(piece) > 1 else 0.005)
    stay = [site.login(user, good), site.raw()]
    send(stay[1], b"QUIT\r\n", b"PASS %s\r\n" % wrong.encode())  # too late: it is thrown away unread
    for kind in "tls", "stls", None:
        client = site.connect(kind)
        try:
            client.user(user)
            client.pass_(wrong)
            raise AssertionError("a wrong password was accepted")
        except poplib.error_proto:
            client.close()
    stay[0].quit()
    stay[0] = site.login(user, good, tls="tls")
    plain = base64.b64encode(b"\0%s\0%s" % (user.encode(), wrong.encode()))
    login = b"USER %s\r\nPASS %s\r\n" % (user.encode(), wrong.encode())
    for pieces in ([login], [bytes([octet]) for octet in login], [login[:-2]], [b"AUTH PLAIN " + plain + b"\r\n"],
                   [b"AUTH PLAIN\r\n", plain + b"\r\n"], [b"AUTH PLAIN " + plain], [login[:-2] * 30 + b"\r\n"],
                   [b"QUIT\r\n" + login], [b"x\r\n" * 2 + login]):
        for client in site.raw(), site.connect("tls").sock:
            try:
                send(client, *pieces)
            except OSError:  # an answer and its end came first
                pass
            client.close()
    time.sleep(0.3)
    return stay


def secrets_of(user, good, wrong):
    needles = {good.encode(), wrong.encode()}
    for shift in range(3):
        for password in good, wrong:
            needles.add(base64.b64encode(b"\0" * shift + password.encode())[4:-4])
    return needles


@test
def passwords_leave_no_trace(site):
    """after logins of all kinds no process holds a password; hashes are in the verifiers only"""
    need_root()
    good, wrong = "sesame-" + secrets.token_hex(12), "sesame-" + secrets.token_hex(12)
    site.add_user(password=good)
    site.put_mail([message(1)])
    site.start(failure_delay=0)
    stay = exercise_logins(site, "user", good, wrong)
    found = holders(site, secrets_of("user", good, wrong))
    assert found == {}, found
    hashed = site.virtual["user"][0].encode()
    assert set(holders(site, {hashed})) == {"verifier"}
    for client in stay:
        client.close()


@test
def system_passwords_leave_no_trace(site):
    """the same with shadow passwords: no process that stays ever saw a password or a line of /etc/shadow"""
    need_root()
    good, wrong = "sesame-" + secrets.token_hex(12), "sesame-" + secrets.token_hex(12)
    user = site.add_system_user("qptpriv%d" % (os.getpid() % 10000), good)
    hashed = crypt_hash(good).encode()
    pam = "qpt%d" % os.getpid()
    with open("/etc/pam.d/" + pam, "w") as service:
        service.write("auth required pam_unix.so\naccount required pam_unix.so\n")
    site.cleanups.append(lambda: os.unlink("/etc/pam.d/" + pam))
    for changes in {"authentication": "shadow"}, {"pam_service": pam}:
        site.start(failure_delay=0, **changes)
        stay = exercise_logins(site, user, good, wrong)
        found = holders(site, secrets_of(user, good, wrong) | {hashed, user.encode() + b":$"})
        assert found == {}, found
        for client in stay:
            client.close()
        site.stop()


@test
def agents_forget_the_monitor(site):
    """an agent of one user has nothing of another user's session in its memory"""
    need_root()
    other = "qptother" + secrets.token_hex(8)
    site.add_user(other)
    site.add_user("user")
    site.put_mail([message(1)], other)
    site.put_mail([message(1)])
    site.start()
    session = site.login(other)
    monitor = site.processes("qpopper-monitor")[0]
    assert holds(monitor, {other.encode()}), "the search does not find what is there"
    with open(site.spool_path(), "r+b") as spool:
        fcntl.lockf(spool, fcntl.LOCK_EX)
        client = site.raw()
        client.sendall(b"USER user\r\nPASS %s\r\n" % PASSWORD.encode())
        agent = child_of(site, "qpopper-monitor",
                         lambda pid: status_of(pid)["Uid"].split()[0] == str(site.owner_of("user")[0]))
        assert not holds(agent, {other.encode()}), "an agent knows who else is logged in"
    read_until(client, b"octets.\r\n")
    client.close()
    session.quit()


@test
def empty_root_is_empty(site):
    """the directory that sandboxed processes have as their root belongs to root and stays empty"""
    need_root()
    site.add_user()
    site.start()
    site.login(tls="tls").quit()
    empty = os.path.join(site.state, "empty")
    status = os.stat(empty)
    assert (status.st_uid, status.st_gid) == (0, 0) and status.st_mode & 0o022 == 0, oct(status.st_mode)
    assert os.listdir(empty) == []
    for name in "ids", "chroot", "capabilities", "no-new-privs", "seccomp":
        assert name in site.log().split("sandbox of the workers: ", 1)[1].splitlines()[0], site.log()


if __name__ == "__main__":
    main()
