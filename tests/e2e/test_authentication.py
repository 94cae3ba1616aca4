#!/usr/bin/env python3
"""Who may log in, by PAM, shadow and passwd-file, and what a stranger learns from a refusal: nothing."""
import base64
import poplib
import secrets
import selectors
import socket
import ssl
import stat
import threading
import time

from harness import *  # noqa: F403 (the harness is this suite's language)

REFUSAL = b"-ERR [AUTH] Authentication failed.\r\n"
SAME_TIME = 0.150  # seconds between the answers to different kinds of failure
TAG = "qpt%d" % (os.getpid() % 100000)  # names of accounts and service files of this run


# ---- accounts and PAM services, gone with the site ----

def secret():
    """A password that occurs nowhere else, so that it can be searched for."""
    return "sesame-" + secrets.token_hex(8)


def account(site, name, password, *useradd_options):
    """A system account of this run, with a cheap hash."""
    need_root()
    name = TAG + name
    site.add_system_user(name, password)
    if useradd_options:
        run("usermod", *useradd_options, name)
    return name


def run(*command):
    """A program of the system that changes accounts; it waits while another one holds their lock."""
    wait_until(lambda: subprocess.run(command, capture_output=True).returncode == 0, 20, " ".join(command))


def pam_service(site, *lines):
    """A service file under /etc/pam.d; its name."""
    need_root()
    if not os.path.isdir("/etc/pam.d"):
        raise Skip("no /etc/pam.d here")
    path = "/etc/pam.d/" + TAG
    with open(path, "w") as service:
        service.write("".join(line + "\n" for line in lines))
    site.cleanups.append(lambda: os.path.exists(path) and os.unlink(path))
    return TAG


def unix_service(site):
    return pam_service(site, "auth required pam_unix.so", "account required pam_unix.so")


def script(site, name, text):
    path = site.path(name)
    with open(path, "w") as file:
        file.write("#!/bin/sh\n" + text)
    os.chmod(path, 0o755)
    return path


# ---- logins ----

def try_login(site, user, password):
    """True, or the answer of a failed login."""
    try:
        site.login(user, password).quit()
        return True
    except poplib.error_proto as answer:
        return answer.args[0] + b"\r\n"


def accepted(site, user, password=PASSWORD):
    answer = try_login(site, user, password)
    assert answer is True, answer


def refused(site, user, password=PASSWORD):
    answer = try_login(site, user, password)
    assert answer == REFUSAL, answer


def failures(site, attempts):
    """Send each (user, password) on a connection of its own at once; [(answer, seconds from PASS to answer)]."""
    waiting = selectors.DefaultSelector()
    results = [None] * len(attempts)
    clients = []
    for user, _ in attempts:
        client = site.raw()
        client.sendall(b"USER " + user.encode() + b"\r\n")
        assert client.recv(600).startswith(b"+OK")
        clients.append(client)
    for index, (_, password) in enumerate(attempts):
        clients[index].sendall(b"PASS " + password.encode() + b"\r\n")
        waiting.register(clients[index], selectors.EVENT_READ, (index, time.monotonic()))
    while waiting.get_map():
        ready = waiting.select(20)
        assert ready, "no answer"
        for key, _ in ready:
            index, sent = key.data
            results[index] = key.fileobj.recv(4096), time.monotonic() - sent
            waiting.unregister(key.fileobj)
    for client in clients:
        client.settimeout(5)
        assert client.recv(1) == b"", "the connection was not closed"
        client.close()
    return results


def indistinguishable(site, attempts, delay=1):
    """Each attempt is refused with the same octets at the same time after its command."""
    results = failures(site, attempts)
    assert {answer for answer, _ in results} == {REFUSAL}, results
    for (user, _), (_, seconds) in zip(attempts, results):
        assert abs(seconds - delay) < SAME_TIME, "%s was answered after %.3f s: %r" % (user, seconds, results)


def assert_secret(site, *passwords, files=()):
    """None of these passwords, plain or as AUTH PLAIN has them, is in the log or in files."""
    texts = {"log": site.log()}
    for path in files:
        with open(path, encoding="latin-1") as file:
            texts[path] = file.read()
    for password in passwords:
        for name, text in texts.items():
            assert text, name + " is empty"
            assert password not in text, "password %s in %s" % (password, name)
            for shift in range(3):  # where it may begin in a group of three octets
                encoded = base64.b64encode(b"\0" * shift + password.encode()).decode()
                assert encoded[4:-4] not in text, "password %s in base64 in %s" % (password, name)


def reasons(site, user):
    """What the log says about failed logins of that user."""
    head = "login of %s from 127.0.0.1: " % user
    return [line.split(head, 1)[1] for line in site.log().splitlines() if head in line]


# ---- PAM ----

@test
def pam_refusals(site):
    """wrong password, unknown, locked, expired and low uid: one answer, one instant; the log knows which"""
    site.settings["pam-service"] = unix_service(site)
    good, wrong = secret(), secret()
    fine = account(site, "fine", good)
    locked = account(site, "locked", good)
    run("passwd", "-l", locked)
    expired = account(site, "expired", good)
    run("chage", "-E", "2020-01-01", expired)
    low = account(site, "low", good, "-o", "-u", "10")
    unknown = TAG + "nobody"
    site.put_mail([message(1)], fine)
    site.start("-d")
    accepted(site, fine, good)
    indistinguishable(site, [(fine, wrong), (unknown, good), (locked, good), (expired, good), (low, good),
                             ("../" + fine, good), ("x" * 65, good), (fine, "p" * 256)])
    accepted(site, fine, good)
    assert reasons(site, fine)[0].startswith("pam_authenticate: "), site.log()
    assert reasons(site, unknown)[0].startswith("pam_authenticate: "), site.log()
    assert reasons(site, locked)[0].startswith("pam_authenticate: "), site.log()
    assert reasons(site, expired)[0].startswith("pam_acct_mgmt: "), site.log()
    assert "block-uid" in reasons(site, low)[0], site.log()
    for user in fine, unknown, locked, expired, low:
        assert "[AUTH] Failed attempted login to %s from host (127.0.0.1) 127.0.0.1" % user in site.log(), user
    assert_secret(site, good, wrong)


@test
def block_uid(site):
    """block-uid refuses the uids up to it, with the right password, like a wrong one"""
    site.settings["pam-service"] = unix_service(site)
    first, second = account(site, "first", PASSWORD), account(site, "second", PASSWORD)
    low, high = sorted((first, second), key=lambda name: pwd.getpwnam(name).pw_uid)
    site.start(block_uid=pwd.getpwnam(low).pw_uid)
    accepted(site, high)
    indistinguishable(site, [(low, PASSWORD), (high, "wrong")])
    assert "block-uid" in reasons(site, low)[0]


def expose_passwords(site, user, passwords):
    """Send these passwords in every way that a client may, sensible and not."""
    def send(octets):
        client = site.raw()
        client.sendall(octets)
        client.settimeout(5)
        while client.recv(4096):
            pass
        client.close()
    name = user.encode()
    for text in passwords:
        password = text.encode()
        plain = base64.b64encode(b"\0%s\0%s" % (name, password))
        send(b"USER %s\r\nPASS %s\r\nQUIT\r\n" % (name, password))
        send(b"AUTH PLAIN %s\r\nQUIT\r\n" % plain)
        send(b"AUTH PLAIN\r\n%s\r\nQUIT\r\n" % plain)
        send(b"AUTH PLAIN %s=\r\nQUIT\r\n" % plain)
        send(b"PASS %s\r\nQUIT\r\n" % password)
        send(b"USER %s\r\nPASS %s %s\r\nQUIT\r\n" % (name, password, password))
        send(b"USER %s\r\nPASS %s\r\nQUIT\r\n" % (name, password * 40))
        send(b"USER %s\r\npass\t%s\r\nQUIT\r\n" % (name, password))
        client = site.raw()
        client.sendall(b"USER %s\r\nPASS %s" % (name, password))
        time.sleep(0.05)
        client.close()


def journal_receiver(site):
    """A directory to be /run, with a socket where that of the journal is; what comes is appended to site/journal."""
    directory = site.path("run")
    os.makedirs(os.path.join(directory, "systemd", "journal"))
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(os.path.join(directory, "systemd", "journal", "socket"))
    os.chmod(os.path.join(directory, "systemd", "journal", "socket"), 0o666)

    def receive():
        with open(site.path("journal"), "ab") as journal:
            while datagram := receiver.recv(1 << 20):
                journal.write(datagram + b"\n")
                journal.flush()
    threading.Thread(target=receive, daemon=True).start()

    def end():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", os.path.join(directory, "systemd", "journal", "socket"))
    site.cleanups.append(end)
    return directory


def start_with_journal(site):
    """popper with the journal as its log: in a mount namespace whose /run is ours, in the foreground by a notify
    socket."""
    need_program("unshare", "mount")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        raise Skip("no mount namespaces here")
    directory = journal_receiver(site)
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(site.path("notify"))
    notify.settimeout(20)
    site.write_settings(debug="true")
    site.process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", 'mount --bind "$1" /run && exec "$2" -f "$3"', "sh", directory,
         os.path.join(BUILD, "popper"), site.path("popper.conf")],
        stdin=subprocess.DEVNULL, env={**os.environ, "NOTIFY_SOCKET": site.path("notify")})
    while b"READY=1" not in notify.recv(4096):
        pass


@test
def passwords_stay_secret(site):
    """the log with -d and the trace file with -t hold no password, right or wrong, in whatever form it came"""
    site.settings["pam-service"] = unix_service(site)
    good, wrong = secret(), secret()
    user = account(site, "user", good)
    site.start("-d", failure_delay=0)
    expose_passwords(site, user, (good, wrong))
    site.wait_log("login ok, end quit")
    assert_secret(site, good, wrong)
    site.stop()
    trace = os.path.join("/tmp", TAG + ".trace")
    with open(trace, "w"):
        os.chmod(trace, 0o600)
    site.cleanups.append(lambda: os.unlink(trace))
    os.chown(trace, pwd.getpwnam("_qpopper").pw_uid, -1)
    site.start("-t", trace, wait=False, failure_delay=0)

    def traced(text):
        with open(trace) as file:
            return text in file.read()
    wait_until(lambda: traced("serves (generation"), 10, "popper to serve")
    expose_passwords(site, user, (good, wrong))
    wait_until(lambda: traced("Failed attempted login to " + user), 10, "the record of a failure")
    assert traced("PASS ****")
    assert_secret(site, good, wrong, files=[trace])


@test
def journal_without_passwords(site):
    """what goes to the journal of systemd has the fields of a session and no password, with debug on"""
    site.settings["pam-service"] = unix_service(site)
    good, wrong = secret(), secret()
    user = account(site, "user", good)
    site.settings["failure-delay"] = "0"
    start_with_journal(site)
    expose_passwords(site, user, (good, wrong))

    def journal():
        with open(site.path("journal"), encoding="latin-1") as file:
            return file.read()
    wait_until(lambda: "QPOPPER_USER=%s\n" % user in journal(), 10, "a session in the journal")
    wait_until(lambda: "Failed attempted login to " + user in journal(), 10, "a failure in the journal")
    with open(site.path("log"), "w") as log:
        log.write(journal())
    assert_secret(site, good, wrong)


@test
def items_of_pam(site):
    """modules are told the client's address and the service, before they decide"""
    seen = site.path("seen")
    write = script(site, "write", 'echo "$PAM_TYPE $PAM_SERVICE $PAM_RHOST $PAM_TTY $PAM_USER" >>%s\n' % seen)
    service = pam_service(site, "auth required pam_exec.so quiet " + write, "auth required pam_unix.so",
                          "account required pam_exec.so quiet " + write, "account required pam_unix.so")
    user = account(site, "user", PASSWORD)
    site.settings["pam-service"] = service
    site.start()
    accepted(site, user)
    refused(site, user, "wrong")
    with open(seen) as file:
        lines = file.read().splitlines()
    end = " %s 127.0.0.1 pop3 %s" % (service, user)
    assert lines == ["auth" + end, "account" + end, "auth" + end], lines


@test
def missing_service_file(site):
    """without its service file PAM's "other" is not used: [SYS/TEMP], and the log names the file"""
    need_root()
    user = account(site, "user", PASSWORD)
    site.settings["pam-service"] = TAG
    site.start()
    answer = try_login(site, user, PASSWORD)
    assert b"[SYS/TEMP]" in answer, answer
    site.wait_log("/etc/pam.d/%s is missing" % TAG)
    pam_service(site, "auth required pam_unix.so", "account required pam_unix.so")
    wait_until(lambda: try_login(site, user, PASSWORD) is True, 20, "a login after the file was installed")


@test
def hanging_module(site):
    """a module that hangs holds up nobody but the one it hangs for"""
    wait = script(site, "wait", '[ "$PAM_USER" != %shang ] || sleep 30\n' % TAG)
    site.settings["pam-service"] = pam_service(site, "auth required pam_exec.so quiet " + wait,
                                               "auth required pam_unix.so", "account required pam_unix.so")
    hang, user = account(site, "hang", PASSWORD), account(site, "user", PASSWORD)
    site.start()
    hanging = []
    for _ in range(5):
        client = site.raw()
        client.sendall(("USER %s\r\nPASS %s\r\n" % (hang, PASSWORD)).encode())
        hanging.append(client)
    time.sleep(0.3)
    for _ in range(5):
        began = time.monotonic()
        accepted(site, user)
        assert time.monotonic() - began < 1
    for client in hanging:
        client.close()
    began = time.monotonic()
    assert site.stop() == 0
    assert time.monotonic() - began < 10, "modules that hang kept the service from ending"


@test
def modules_that_misbehave(site):
    """a module that fails, crashes or is not there is no login: [SYS/TEMP] or [AUTH], and the service lives"""
    crash = script(site, "crash", "kill -9 $PPID\n")
    user = account(site, "user", PASSWORD)
    site.settings["pam-service"] = pam_service(site, "auth required pam_exec.so quiet " + crash,
                                               "account required pam_unix.so")
    site.start()
    answer = try_login(site, user, PASSWORD)
    assert answer.startswith(b"-ERR ["), answer
    site.stop()
    pam_service(site, "auth required pam_no_such_module.so", "account required pam_permit.so")
    site.start()
    answer = try_login(site, user, PASSWORD)
    assert answer.startswith(b"-ERR ["), answer
    assert site.stop() == 0


# ---- shadow ----

@test
def shadow(site):
    """right, wrong, locked, expired, aged, empty and unknown against /etc/shadow"""
    need_root()
    good = secret()
    names = {kind: account(site, kind, good) for kind in ("fine", "locked", "expired", "aged", "empty")}
    run("passwd", "-l", names["locked"])
    run("chage", "-E", "2020-01-01", names["expired"])
    run("chage", "-M", "10", "-d", "2020-01-01", names["aged"])
    run("usermod", "-p", "", names["empty"])
    site.start(authentication="shadow")
    accepted(site, names["fine"], good)
    indistinguishable(site, [(names["fine"], "wrong"), (TAG + "nobody", good), (names["locked"], good),
                             (names["expired"], good), (names["aged"], good), (names["empty"], good),
                             (names["empty"], " "), ("root", "wrong")])
    assert reasons(site, names["fine"]) == ["wrong password"]
    assert reasons(site, TAG + "nobody") == ["no such account"]
    assert reasons(site, names["locked"]) == ["account is locked or has no password"]
    assert reasons(site, names["expired"]) == ["account has expired"]
    assert reasons(site, names["aged"]) == ["password has expired"]
    assert_secret(site, good)
    site.stop()
    site.start(authentication="shadow", check_password_expired="false")
    accepted(site, names["aged"], good)


# ---- passwd-file ----

def write_users(site, text):
    """The passwd-file with this content, replaced as editors do."""
    path = site.path("users.new")
    with open(path, "w") as users:
        users.write(text)
    os.chmod(path, 0o640 if ROOT else 0o600)
    if ROOT:
        os.chown(path, 0, pwd.getpwnam("_qpopauth").pw_gid)
    os.rename(path, site.path("users"))


def user_line(name, password=PASSWORD, uid=None, fields=""):
    uid, gid = (60000 if uid is None else uid, 8) if ROOT else (os.getuid(), os.getgid())
    hashed = crypt_hash(password) if password is not None else ""
    return "%s:%s:%d:%d::::%s\n" % (name, hashed, uid, gid, fields)


@test
def passwd_file_refusals(site):
    """wrong, unknown, locked, empty and low uid are one answer at one instant"""
    site.add_user("fine")
    good = crypt_hash(PASSWORD)
    text = user_line("fine") + user_line("empty", None)
    for number, locked in enumerate(("!" + good, "*" + good, "!", "*", "{CRYPT}!" + good, "x")):
        text += user_line("locked%d" % number).replace(good, locked)
    attempts = [("fine", "wrong"), ("fine", " "), ("unknown", PASSWORD), ("empty", " "), ("empty", PASSWORD),
                ("FINE", PASSWORD)]
    attempts += [("locked%d" % number, password) for number in range(6) for password in (PASSWORD, "x", "!")]
    if ROOT:
        text += user_line("low", uid=10) + user_line("root", uid=0)
        attempts += [("low", PASSWORD), ("root", PASSWORD)]
    write_users(site, text)
    site.start()
    accepted(site, "fine")
    indistinguishable(site, attempts)
    assert reasons(site, "fine") and set(reasons(site, "fine")) == {"wrong password"}
    assert reasons(site, "unknown") == ["no such user in passwd-file"]
    assert set(reasons(site, "empty")) == {"user is locked or has no password"}
    if ROOT:
        assert "block-uid" in reasons(site, "low")[0]
        assert "block-uid" in reasons(site, "root")[0]
    assert_secret(site, PASSWORD)


@test
def passwd_file_reload(site):
    """a changed file counts within seconds; a broken one leaves the users that were loaded"""
    site.add_user("first")
    site.start()
    accepted(site, "first")
    write_users(site, user_line("first", "changed password") + user_line("second"))
    wait_until(lambda: try_login(site, "second", PASSWORD) is True, 10, "the new user")
    accepted(site, "first", "changed password")
    refused(site, "first")
    for broken in ("first:nonsense:x\n", user_line("second") * 2, "\0\1\2\n", "second::x:y::::\n"):
        before = len(site.log())
        write_users(site, broken)
        time.sleep(1.1)
        accepted(site, "second")
        wait_until(lambda: site.path("users") + ":" in site.log()[before:], 5, "a complaint about %r" % broken)
    os.unlink(site.path("users"))
    time.sleep(1.1)
    accepted(site, "second")
    write_users(site, user_line("second", "third password"))
    wait_until(lambda: try_login(site, "second", "third password") is True, 10, "the repaired file")
    refused(site, "first", "changed password")


@test
def writable_passwd_file(site):
    """a passwd-file that others can write is not believed"""
    site.add_user("first")
    site.start()
    accepted(site, "first")
    write_users(site, user_line("second"))
    os.chmod(site.path("users"), 0o666)
    time.sleep(1.1)
    refused(site, "second")
    accepted(site, "first")


@test
def private_maildrop(site):
    """a maildrop in a directory of its owner: login, deletion and locks work, and nothing stays behind"""
    need_root()
    home = site.path("home")
    os.mkdir(home)
    os.chmod(home, 0o700)
    os.chown(home, 61001, 61001)
    spool = os.path.join(home, "inbox")
    mail = [message(number) for number in range(1, 6)]
    with open(spool, "w") as file:
        file.write("".join(mail))
    os.chmod(spool, 0o600)
    os.chown(spool, 61001, 61001)
    line = user_line("own", uid=61001, fields="maildrop=" + spool).replace(":8:", ":61001:")
    site.add_user("user")
    write_users(site, line + user_line("user"))
    site.start(mail_lock_timeout=1)
    first = site.login("own")
    assert first.stat()[0] == 5
    answer = try_login(site, "own", PASSWORD)
    assert b"[IN-USE]" in answer, answer
    first.dele(2)
    first.dele(4)
    first.quit()
    with open(spool) as file:
        assert file.read() == mail[0] + mail[2] + mail[4]
    status = os.stat(spool)
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (61001, 61001, 0o600)
    # a delivery in progress makes deletion wait, and then fail without harm
    client = site.login("own")
    client.dele(1)
    with open(spool + ".lock", "w") as lock:
        lock.write("%d@%s" % (os.getpid(), os.uname().nodename))
    os.chown(spool + ".lock", 61001, 61001)
    try:
        client.quit()
    except poplib.error_proto as answer:
        assert "[SYS/TEMP]" in str(answer) or "[IN-USE]" in str(answer), answer
    else:
        raise AssertionError("a deletion went through the lock of another")
    os.unlink(spool + ".lock")
    client = site.login("own")
    assert client.stat()[0] == 3
    client.quit()
    left = sorted(os.listdir(home))
    assert left in (["inbox"], [".own.pop", "inbox"]), left
    for name in left:
        status = os.stat(os.path.join(home, name))
        assert status.st_uid == 61001
        assert name == "inbox" or status.st_size == 0
    assert os.listdir(site.spool) == [], os.listdir(site.spool)


@test
def private_directory_is_enough(site):
    """what the owner cannot reach with his own rights the service does not open for him"""
    need_root()
    home = site.path("home")
    os.mkdir(home)
    os.chmod(home, 0o700)
    spool = os.path.join(home, "inbox")
    with open(spool, "w") as file:
        file.write(message(1))
    site.add_user("user")
    lines = user_line("own", uid=61001, fields="maildrop=" + spool)
    lines += user_line("shadow", uid=61002, fields="maildrop=/etc/shadow")
    lines += user_line("gone", uid=61003, fields="maildrop=" + site.path("no", "such", "inbox"))
    write_users(site, lines + user_line("user"))
    site.start()
    for user in "own", "shadow", "gone":
        answer = try_login(site, user, PASSWORD)
        assert answer is not True and answer.startswith(b"-ERR [SYS/"), (user, answer)
    accepted(site, "user")


# ---- the commands of a login ----

@test
def auth_plain(site):
    """AUTH PLAIN with and without initial response, cancelled, malformed, for somebody else"""
    site.add_user()
    site.put_mail([message(1)])
    site.start(login_tries=20, failure_delay=0)

    def encoded(text):
        return base64.b64encode(text.encode())
    good = encoded("\0user\0" + PASSWORD)
    for lines in ([b"AUTH PLAIN " + good], [b"auth plain " + good], [b"AUTH PLAIN", good],
                  [b"AUTH PLAIN " + encoded("user\0user\0" + PASSWORD)]):
        client = site.raw()
        for line in lines[:-1]:
            client.sendall(line + b"\r\n")
            assert client.recv(600) == b"+ \r\n"
        client.sendall(lines[-1] + b"\r\n")
        assert client.recv(600).startswith(b"+OK user has 1 "), lines
        client.sendall(b"QUIT\r\n")
        read_until(client, b"signing off.\r\n")
        client.close()
    client = site.raw()
    bad = [b"AUTH PLAIN =", b"AUTH PLAIN " + good[:-2], b"AUTH PLAIN " + good + b"AAAA", b"AUTH PLAIN !!!!",
           b"AUTH PLAIN " + encoded("other\0user\0" + PASSWORD), b"AUTH PLAIN " + encoded("user\0" + PASSWORD),
           b"AUTH PLAIN " + encoded("\0user\0" + PASSWORD + "\0"), b"AUTH PLAIN " + encoded("\0user\0wrong")]
    for line in bad:
        client.sendall(line + b"\r\n")
        assert client.recv(600) == REFUSAL, line
    client.sendall(b"AUTH PLAIN\r\n")
    assert client.recv(600) == b"+ \r\n"
    client.sendall(b"*\r\n")
    assert client.recv(600).startswith(b"-ERR")
    client.sendall(b"AUTH\r\n")
    assert b"PLAIN\r\n" in read_until(client, b".\r\n")
    client.sendall(b"AUTH CRAM-MD5\r\n")
    assert client.recv(600).startswith(b"-ERR")
    client.sendall(b"AUTH PLAIN " + good + b"\r\n")
    assert client.recv(600).startswith(b"+OK user has 1 ")
    client.close()
    assert_secret(site, PASSWORD)


@test
def login_tries(site):
    """the connection ends with the first failure by default, with the third when login-tries says so"""
    site.add_user()
    for tries in 1, 3:
        site.start(login_tries=tries if tries > 1 else None, failure_delay=0)
        client = site.raw()
        for _ in range(tries):
            client.sendall(b"USER user\r\nPASS wrong\r\n")
            data = read_until(client, REFUSAL)
            assert data.count(b"\r\n") == 2, data
        assert client.recv(600) == b""
        client.close()
        site.stop()
    site.start(login_tries=3, failure_delay=0)
    client = site.raw()
    client.sendall(b"USER user\r\nPASS wrong\r\nUSER user\r\nPASS %s\r\n" % PASSWORD.encode())
    read_until(client, b"octets.\r\n")


@test
def later_tries_wait_too(site):
    """each failure on a connection has its own delay, also when the commands came in one piece"""
    site.add_user()
    site.start(login_tries=3)
    client = site.raw()
    began = time.monotonic()
    client.sendall(b"USER user\r\nPASS wrong\r\n" * 2)
    data = b""
    for count in 1, 2:
        while data.count(REFUSAL) < count:
            data += client.recv(600)
        passed = time.monotonic() - began
        assert abs(passed - count) < count * SAME_TIME, passed


def own_address():
    """An address of this machine that is not a loopback one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            raise Skip("this machine has only loopback addresses") from None
        address = probe.getsockname()[0]
    if address.startswith("127."):
        raise Skip("this machine has only loopback addresses")
    return address


def plain_login(address, port, tls=None):
    """USER and PASS from that address; the answers' first words, and CAPA."""
    client = socket.create_connection((address, port), 20)
    if tls == "tls":
        client = ssl._create_unverified_context().wrap_socket(client)
    assert client.recv(600).startswith(b"+OK")
    if tls == "stls":
        client.sendall(b"STLS\r\n")
        assert client.recv(600).startswith(b"+OK")
        client = ssl._create_unverified_context().wrap_socket(client)
    client.sendall(b"CAPA\r\n")
    capabilities = read_until(client, b"\r\n.\r\n").split(b"\r\n")
    client.sendall(b"USER user\r\n")
    answer = client.recv(600)
    if answer.startswith(b"+OK"):
        client.sendall(b"PASS %s\r\n" % PASSWORD.encode())
        answer = client.recv(600)
    client.sendall(b"QUIT\r\n")
    while client.recv(600):
        pass
    client.close()
    offered = b"USER" in capabilities
    assert offered == (b"SASL PLAIN" in capabilities), capabilities
    assert offered == answer.startswith(b"+OK user has"), (capabilities, answer)
    return answer


@test
def clear_text_password_tls(site):
    """tls, the default with a certificate: USER and AUTH are refused outside TLS, and CAPA does not offer them"""
    site.add_user()
    for value in "tls", None:
        site.start(clear_text_password=value)
        answer = plain_login("127.0.0.1", site.port)
        assert answer.startswith(b"-ERR [AUTH] You must use TLS"), answer
        client = site.raw()
        client.sendall(b"AUTH PLAIN " + base64.b64encode(("\0user\0" + PASSWORD).encode()) + b"\r\n")
        assert client.recv(600).startswith(b"-ERR [AUTH] You must use TLS")
        client.close()
        for kind, port in ("stls", site.port), ("tls", site.tls_port):
            assert plain_login("127.0.0.1", port, kind).startswith(b"+OK")
        site.stop()


@test
def clear_text_password_local(site):
    """local: from loopback addresses only; always: from everywhere"""
    address = own_address()
    site.add_user()
    site.settings["listen"] = "0.0.0.0:%d" % site.port
    site.settings["listen-tls"] = "0.0.0.0:%d" % site.tls_port
    site.start(clear_text_password="local")
    assert plain_login("127.0.0.1", site.port).startswith(b"+OK")
    answer = plain_login(address, site.port)
    assert answer == b"-ERR [AUTH] Passwords are accepted from local clients only.\r\n", answer
    site.stop()
    site.start(clear_text_password="always")
    for client in "127.0.0.1", address:
        assert plain_login(client, site.port).startswith(b"+OK")
        assert plain_login(client, site.tls_port, "tls").startswith(b"+OK")


@test
def downcase_and_trim(site):
    """downcase-user and trim-domain, alone and together"""
    site.add_user()
    site.put_mail([message(1)])
    for downcase, trim, good, bad in (
            ("false", "false", ["user"], ["USER", "user@example.org"]),
            ("true", "false", ["user", "USER"], ["user@example.org"]),
            ("false", "true", ["user", "user@", "user@example.org@more"], ["USER@example.org", "@user"]),
            ("true", "true", ["UsEr@Example.org", "user"], ["@", "other@user"])):
        site.start(downcase_user=downcase, trim_domain=trim, failure_delay=0)
        for name in good:
            client = site.login(name)
            assert client.stat()[0] == 1
            client.quit()
        for name in bad:
            refused(site, name)
        site.stop()


@test
def probe(site):
    """QUIT after USER without a password is recorded as a probe"""
    site.add_user()
    site.start()
    for name in b"user", b"stranger":
        client = site.raw()
        client.sendall(b"USER " + name + b"\r\nQUIT\r\n")
        read_until(client, b"signing off.\r\n")
        client.close()
    site.wait_log("Possible probe of account user from host 127.0.0.1 (127.0.0.1)")
    site.wait_log("Possible probe of account stranger from host 127.0.0.1 (127.0.0.1)")
    site.login().quit()
    client = site.connect()
    client.quit()
    time.sleep(0.2)
    assert site.log().count("Possible probe of account ") == 2


if __name__ == "__main__":
    main()
