#!/usr/bin/env python3
"""Where maildrops live: hashed directories, homes, odd owners and modes, hostile links; and the locks there."""
import fcntl
import os
import poplib
import re
import stat
import subprocess
import threading
import time

from harness import *  # noqa: F403

HASHED = {"user": ("f", "u/s"), "other": ("a", "o/t")}  # by hash-spool 1 and 2


def rights(path):
    status = os.lstat(path)
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def put(path, messages, user, site, mode=0o600):
    """A spool at any place, of its user."""
    with open(path, "w") as spool:
        spool.write("".join(messages))
    os.chmod(path, mode)
    if ROOT:
        os.chown(path, *site.owner_of(user))


def content(path):
    with open(path) as spool:
        return spool.read()


def set_fields(site, user, number, value):
    """Another value for a field of the user's line in passwd-file."""
    lines = content(site.path("users")).splitlines()
    with open(site.path("users"), "w") as users:
        for line in lines:
            fields = line.split(":")
            if fields[0] == user:
                fields[number] = value
            users.write(":".join(fields) + "\n")


def make_home(site, user="user", name=None, field=None, gid=None):
    """A home directory of the user's own, entered in passwd-file (field: another path to it)."""
    home = site.path(name or "home-" + user)
    os.mkdir(home)
    os.chmod(home, 0o700)
    uid = site.owner_of(user)[0]
    gid = gid or site.owner_of(user)[1]
    if ROOT:
        os.chown(home, uid, gid)
    set_fields(site, user, 3, str(gid))
    set_fields(site, user, 5, field or home)
    return home


def delete_and_look(site, path, mail, user="user"):
    """A session that reads all and deletes the second message: exactly that is gone."""
    client = site.login(user)
    assert client.stat()[0] == len(mail), client.stat()
    for number, text in enumerate(mail, 1):
        assert retrieve(client, number) == as_sent(text)
    client.dele(2)
    client.quit()
    left = mail[:1] + mail[2:]
    assert content(path) == "".join(left)
    return left


def wait_gone(directory, name):
    """The session file goes just after the answer to a QUIT that deleted nothing."""
    wait_until(lambda: name not in os.listdir(directory), 5, "the end of " + name)


def agent_of(site, uid):
    """The pid of an agent that runs as that user."""
    def look():
        for pid in site.processes("qpopper-monitor"):
            try:
                with open("/proc/%d/status" % pid) as status:
                    if re.search(r"^Uid:\t%d\t" % uid, status.read(), re.M):
                        return pid
            except OSError:
                pass
        return None
    return wait_until(look, 5, "an agent of uid %d" % uid)


class Held:
    """A spool that another program holds by fcntl: agents wait for it."""

    def __init__(self, path):
        self.spool = open(path, "r+b")
        fcntl.lockf(self.spool, fcntl.LOCK_EX)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.spool.close()


# ---- hash-spool ----

def hashed(site, level, **changes):
    site.add_user()
    site.add_user("other")
    site.start(hash_spool=level, **changes)
    for user in "user", "other":
        directory = os.path.join(site.spool, HASHED[user][level - 1])
        client = site.login(user)  # the first login makes the directories
        assert client.stat() == (0, 0)
        client.quit()
        for part in directory, os.path.dirname(directory):
            assert rights(part) == rights(site.spool), (part, rights(part), rights(site.spool))
        mail = [message(number) for number in range(1, 5)]
        put(os.path.join(directory, user), mail, user, site)
        for _ in range(2):
            mail = delete_and_look(site, os.path.join(directory, user), mail, user)
        first = site.login(user)
        refused(site, "[IN-USE]", user=user)
        first.quit()
        wait_gone(directory, ".%s.pop" % user)
        assert os.listdir(directory) == [user]
    tops = sorted({HASHED[user][level - 1][0] for user in HASHED})
    assert sorted(os.listdir(site.spool)) == tops, os.listdir(site.spool)


@test
def one_level(site):
    """hash-spool 1: directories are made like spool-dir, mail is read and deleted, nothing stays behind"""
    hashed(site, 1)


@test
def two_levels_without_atomic_open(site):
    """hash-spool 2, with locks made by link(2)"""
    hashed(site, 2, no_atomic_open="true")


@test
def temp_directory_is_hashed_too(site):
    """the session file is in the hash directory of temp-dir, made like that"""
    site.add_user()
    os.mkdir(site.path("temp"))
    os.chmod(site.path("temp"), 0o1777)
    site.start(hash_spool=2, temp_dir=site.path("temp"))
    client = site.login()
    assert os.listdir(site.path("temp", "u", "s")) == [".user.pop"]
    assert rights(site.path("temp", "u", "s")) == rights(site.path("temp"))
    assert os.listdir(site.spool_path("u/s")) == []
    client.quit()
    wait_gone(site.path("temp", "u", "s"), ".user.pop")
    assert os.listdir(site.path("temp", "u", "s")) == []


@test
def hash_directory_is_missing(site):
    """without check-hash-dir a missing directory is [SYS/TEMP], and the log says what to do"""
    site.add_user()
    site.start(hash_spool=1, check_hash_dir="false")
    refused(site, "[SYS/TEMP]")
    site.wait_log("hash directory f below %s: make it, or set check-hash-dir" % site.spool)
    assert os.listdir(site.spool) == []
    os.mkdir(site.spool_path("f"))
    site.login().quit()


@test
def hostile_hash_directories(site):
    """links, files and directories of others in place of a hash directory are refused and left alone"""
    site.add_user()
    os.mkdir(site.path("elsewhere"))
    os.chmod(site.path("elsewhere"), 0o777)
    site.start(hash_spool=1)
    for make in (lambda path: os.symlink(site.path("elsewhere"), path), os.mkfifo,
                 lambda path: os.symlink("missing", path), lambda path: open(path, "w").close()):
        make(site.spool_path("f"))
        refused(site, "[SYS/PERM]")
        os.unlink(site.spool_path("f"))
    site.wait_log("symbolic links are not followed there")
    assert os.listdir(site.path("elsewhere")) == []
    if ROOT:
        os.mkdir(site.spool_path("f"))
        os.chown(site.spool_path("f"), 60077, 8)
        os.chmod(site.spool_path("f"), 0o777)
        refused(site, "[SYS/PERM]")
        site.wait_log("belongs to uid 60077, who could exchange the mail in it")
        assert os.listdir(site.spool_path("f")) == []


@test
def agents_in_hashed_directories(site):
    """the agents that parse mail there have no group of the spool directory, and their owner's rights alone"""
    need_root()
    site.add_user()
    make_home(site, gid=60050)
    path = site.spool_path("u/s/user")
    site.start(hash_spool=2)
    site.login().quit()
    put(path, [message(1), message(2)], "user", site)
    client = site.raw()
    for command in (b"USER user\r\nPASS %s\r\n" % PASSWORD.encode(), b"DELE 1\r\nQUIT\r\n"):
        with Held(path):
            client.sendall(command)
            pid = agent_of(site, site.owner_of("user")[0])
            with open("/proc/%d/status" % pid) as status:
                fields = dict(line.split(":\t", 1) for line in status.read().splitlines() if ":\t" in line)
            assert fields["Gid"].split() == ["60050"] * 4 and fields["Groups"].split() == [], fields
            assert int(fields["CapPrm"], 16) == 0 and int(fields["CapEff"], 16) == 0, fields
        read_until(client, b"octets.\r\n" if command.startswith(b"USER") else b"signing off.\r\n")
    client.close()
    assert content(path) == message(2)


# ---- directories, owners and modes ----

@test
def directory_and_spool_modes(site):
    """spool-dir 1777, 2775, 0775 and 0755, spools 0600, 0660 and 0644: served, and owner and mode are kept"""
    need_root()
    site.add_user()
    site.start()
    for directory_mode in 0o1777, 0o2775, 0o775, 0o755:
        os.chmod(site.spool, directory_mode)
        for mode in 0o600, 0o660, 0o644:
            mail = [message(number) for number in range(1, 4)]
            put(site.spool_path(), mail, "user", site, mode)
            before = rights(site.spool_path())
            delete_and_look(site, site.spool_path(), mail)
            assert rights(site.spool_path()) == before
            assert os.listdir(site.spool) == ["user"]
        os.unlink(site.spool_path())
        client = site.login()
        assert client.stat() == (0, 0)
        client.quit()
        wait_gone(site.spool, ".user.pop")
        assert os.listdir(site.spool) == []


@test
def spool_of_somebody_else(site):
    """a spool that is not its user's is refused, even if he may read and write it, and the log says whose it is"""
    need_root()
    site.add_user()
    site.start()
    for owner in 0, 60077:
        put(site.spool_path(), [message(1)], "user", site, 0o666)
        os.chown(site.spool_path(), owner, 8)
        refused(site, "[SYS/PERM]")
        site.wait_log("spool user belongs to uid %d and not to its user, uid 60000" % owner)
        assert content(site.spool_path()) == message(1)
    os.chown(site.spool_path(), *site.owner_of("user"))
    site.login().quit()


@test
def symbolic_link_in_spool_dir(site):
    """a spool that root or its user moved elsewhere by a link is served; one that another made is not"""
    site.add_user()
    os.mkdir(site.path("data"))
    mail = [message(number) for number in range(1, 4)]
    put(site.path("data", "mail"), mail, "user", site)
    os.symlink(site.path("data", "mail"), site.spool_path())
    site.start()
    mail = delete_and_look(site, site.path("data", "mail"), mail)
    assert os.path.islink(site.spool_path()) and os.listdir(site.spool) == ["user"]
    if ROOT:
        os.lchown(site.spool_path(), *site.owner_of("user"))
        delete_and_look(site, site.path("data", "mail"), mail)
        os.lchown(site.spool_path(), 60077, 60077)
        refused(site, "[SYS/PERM]")
        site.wait_log("symbolic link that belongs to uid 60077")
    os.unlink(site.path("data", "mail"))
    if not ROOT:
        client = site.login()
        assert client.stat() == (0, 0)
        client.quit()


# ---- home directories ----

@test
def mail_at_home(site):
    """home-dir-mail: read and deleted with the user's rights, one session at a time, nothing stays behind"""
    site.add_user()
    home = make_home(site)
    mail = [message(number) for number in range(1, 5)]
    put(os.path.join(home, "Mailbox"), mail, "user", site)
    before = rights(os.path.join(home, "Mailbox"))
    site.start(home_dir_mail="Mailbox")
    mail = delete_and_look(site, os.path.join(home, "Mailbox"), mail)
    first = site.login()
    assert os.listdir(site.spool) == [".user.pop"]
    refused(site, "[IN-USE]")
    first.quit()
    wait_gone(site.spool, ".user.pop")
    assert os.listdir(home) == ["Mailbox"] and os.listdir(site.spool) == []
    assert rights(os.path.join(home, "Mailbox")) == before
    os.unlink(os.path.join(home, "Mailbox"))
    client = site.login()
    assert client.stat() == (0, 0)
    client.quit()


@test
def everything_at_home(site):
    """home-dir-mail and home-dir-misc: nothing is needed, and nothing done, in spool-dir"""
    site.add_user()
    home = make_home(site)
    mail = [message(number) for number in range(1, 5)]
    put(os.path.join(home, "Mailbox"), mail, "user", site)
    os.chmod(site.spool, 0o500)
    site.start(home_dir_mail="Mailbox", home_dir_misc="true", hash_spool=2)
    delete_and_look(site, os.path.join(home, "Mailbox"), mail)
    first = site.login()
    refused(site, "[IN-USE]")
    first.quit()
    assert os.listdir(site.spool) == []
    for name in os.listdir(home):
        assert name in ("Mailbox", ".user.pop"), name
        assert rights(os.path.join(home, name))[:2] == rights(home)[:2]


@test
def temp_drop_at_home(site):
    """a session file at home is a temp drop, too, by setting or because it holds mail"""
    site.add_user()
    home = make_home(site)
    mailbox = os.path.join(home, "Mailbox")
    for mode in "false", "true":
        put(mailbox, [message(2)], "user", site)
        put(os.path.join(home, ".user.pop"), [message(1)], "user", site)
        site.start(home_dir_mail="Mailbox", home_dir_misc="true", server_mode=mode)
        client = site.login()
        assert client.stat()[0] == 2
        assert content(mailbox) == ""
        with open(mailbox, "a") as spool:
            spool.write(message(3))
        client.dele(1)
        client.quit()
        wait_until(lambda: content(mailbox) == message(2) + message(3), 10, "the mail at home")
        site.stop()


@test
def session_file_at_home(site):
    """home-dir-misc alone: the session file is at home, spool and dot-lock in spool-dir"""
    site.add_user()
    home = make_home(site)
    mail = [message(number) for number in range(1, 5)]
    site.put_mail(mail)
    site.start(home_dir_misc="true")
    delete_and_look(site, site.spool_path(), mail)
    first = site.login()
    assert os.listdir(site.spool) == ["user"] and os.listdir(home) == [".user.pop"]
    refused(site, "[IN-USE]")
    first.quit()
    os.unlink(site.spool_path())
    site.login().quit()


@test
def homes_behind_links(site):
    """a home behind a link of root's or the user's own works, behind another's it does not; none is [SYS/PERM]"""
    site.add_user()
    os.mkdir(site.path("usr"))
    home = make_home(site, name="usr/home", field=site.path("home"))
    put(os.path.join(home, "Mailbox"), [message(1)], "user", site)
    os.symlink("usr/home", site.path("home"))
    site.start(home_dir_mail="Mailbox")
    client = site.login()
    assert client.stat()[0] == 1
    client.quit()
    if ROOT:
        os.lchown(site.path("home"), 60077, 60077)
        refused(site, "[SYS/PERM]")
        site.wait_log("only links of root and of the user are followed")
    site.write_passwd_file()  # without a home
    time.sleep(1.1)
    refused(site, "[SYS/PERM]")
    site.wait_log("the account of user has no home directory that can be used")


def other_secret(site):
    """Another user's mail, which nobody may see."""
    site.add_user("other")
    put(site.path("secret"), [message(99, "the secret\n")], "other", site)
    return site.path("secret")


@test
def hostile_spools_at_home(site):
    """links to others' mail, hard links, FIFOs and directories: refused at once, and not touched"""
    need_root()
    site.add_user()
    secret = other_secret(site)
    home = make_home(site)
    spool = os.path.join(home, "Mailbox")
    os.chmod(secret, 0o666)
    put(os.path.join(home, "own"), [message(1), message(2), message(3)], "user", site)
    site.start(home_dir_mail="Mailbox", mail_lock_timeout=1)

    def linked(target):
        def make():
            os.symlink(target, spool)
            os.lchown(spool, *site.owner_of("user"))
        return make

    def hard_linked():
        os.link(os.path.join(home, "own"), spool)

    def own_fifo():
        os.mkfifo(spool)
        os.chown(spool, *site.owner_of("user"))
    for make in (linked(secret), linked("/etc/passwd"), linked("/dev/zero"), linked("/proc/self/fd/3"), linked(home),
                 linked("Mailbox"), linked("fifo"), hard_linked, own_fifo, lambda: os.link(secret, spool),
                 lambda: os.mkfifo(os.path.join(home, "fifo")) or linked("fifo")()):
        make()
        started = time.monotonic()
        try:
            client = site.login()
        except poplib.error_proto as answer:
            assert "[SYS/PERM]" in str(answer) or "[SYS/TEMP]" in str(answer), answer
        else:  # a link to what is not there is an empty maildrop
            assert client.stat() == (0, 0)
            client.quit()
        assert time.monotonic() - started < 3
        os.unlink(spool)
    assert content(secret) == message(99, "the secret\n")
    linked("own")()
    delete_and_look(site, os.path.join(home, "own"), [message(1), message(2), message(3)])


@test
def spool_exchanged_in_a_loop(site):
    """a user who exchanges his spool for links to another's mail never gets to see, or delete, a byte of that"""
    need_root()
    site.add_user()
    secret = other_secret(site)
    home = make_home(site)
    os.chmod(secret, 0o666)
    own = [message(1), message(2)]
    for name in "Mailbox", "own":
        put(os.path.join(home, name), own, "user", site)
    site.start(home_dir_mail="Mailbox", mail_lock_timeout=1)
    stop = threading.Event()

    def exchange():
        os.chdir(home)
        number = 0
        while not stop.is_set():
            number += 1
            target = (secret, "own", "/etc/shadow", "own")[number % 4]
            try:
                os.symlink(target, "next")
                os.lchown("next", *site.owner_of("user"))
                os.rename("next", "Mailbox")
            except OSError:
                pass
            time.sleep(0.0002)
    swapper = threading.Thread(target=exchange)
    swapper.start()
    served = 0
    try:
        for _ in range(60):
            try:
                client = site.login()
            except poplib.error_proto:
                continue
            try:
                for number in range(1, client.stat()[0] + 1):
                    assert retrieve(client, number) in [as_sent(text) for text in own]
                    served += 1
                client.dele(1)
                client.quit()
            except poplib.error_proto:
                client.close()
            put(os.path.join(home, "own"), own, "user", site)
    finally:
        stop.set()
        swapper.join()
    assert served > 0
    assert content(secret) == message(99, "the secret\n")


@test
def maildrops_below_spool_dir(site):
    """maildrop= below spool-dir: in the administrator's directory the service has its locks there, in the user's he has"""
    need_root()
    site.add_user()
    for name, owner in (("virtual", 0), ("own", site.owner_of("user")[0])):
        os.mkdir(site.spool_path(name))
        os.chmod(site.spool_path(name), 0o755)
        os.chown(site.spool_path(name), owner, owner)
        path = site.spool_path(name + "/inbox")
        mail = [message(number) for number in range(1, 5)]
        put(path, mail, "user", site)
        set_fields(site, "user", 7, "maildrop=" + path)
        site.start()
        mail = delete_and_look(site, path, mail)
        with Held(path):
            client = site.raw()
            client.sendall(b"USER user\r\nPASS %s\r\n" % PASSWORD.encode())
            agent_of(site, site.owner_of("user")[0])
            assert rights(site.spool_path(name + "/.user.pop"))[0] == site.owner_of("user")[0]
        client.close()
        site.stop()
    assert sorted(os.listdir(site.spool)) == ["own", "virtual"]


@test
def home_of_a_system_user(site):
    """the home directory of the account database is where home-dir-mail is, and the group of server mode is looked up"""
    user = site.add_system_user("qpoptesthome")
    home = site.path("home")
    os.mkdir(home)
    os.chown(home, *site.owner_of(user))
    subprocess.run(["usermod", "-d", home, user], check=True, capture_output=True)
    mail = [message(number) for number in range(1, 5)]
    put(os.path.join(home, "Mailbox"), mail, user, site)
    site.start(authentication="shadow", home_dir_mail="Mailbox", home_dir_misc="true",
               group_server_mode="mail", group_no_server_mode="qpopper-no-such-group")
    delete_and_look(site, os.path.join(home, "Mailbox"), mail, user)
    assert site.log().count('there is no group "qpopper-no-such-group"') == 1


# ---- what was before ----

@test
def old_session_file(site):
    """check-old-spool-loc: mail that a session left in plain spool-dir is put back; other files are ignored"""
    site.add_user()
    old = site.spool_path(".user.pop")
    put(old, [message(1)], "user", site)
    site.start(hash_spool=1)
    client = site.login()
    assert client.stat()[0] == 1
    site.wait_log("%s holds mail of a session from before hash-spool or home-dir-mail" % old)
    client.quit()
    wait_until(lambda: not os.path.exists(old), 10, "the end of the old session file")
    client = site.login()
    assert client.stat()[0] == 1
    client.dele(1)
    client.quit()
    if ROOT:
        put(old, [message(1)], "user", site)
        os.chown(old, 60077, 60077)
        site.login().quit()
        assert content(old) == message(1)
    os.unlink(old)
    site.stop()
    put(old, [message(1)], "user", site)
    site.start(hash_spool=1, check_old_spool_loc="false")
    site.login().quit()


# ---- crashes ----

def kill_during_update(site, path, **changes):
    """A maildrop of 48 MB loses its first message; the whole service dies while the spool is moved."""
    mail = [message(number, "x" * (1 << 20)) for number in range(1, 49)]
    put(path, mail, "user", site)
    changes["filler"] = "false"  # a whole block is cut out faster than anybody can be killed
    site.start(**changes)
    client = site.login()
    client.dele(1)
    before = os.stat(path).st_mtime_ns
    client._putcmd("QUIT")
    wait_until(lambda: os.stat(path).st_mtime_ns != before, 20, "the first write")
    site.kill_service()
    assert os.path.exists(path + ".lock")
    site.start(**changes)
    wait_until(lambda: "completed by recovery" in site.log(), 20, "the recovery")
    wait_until(lambda: not os.path.exists(path + ".lock"), 5, "the end of the lock")
    client = wait_until(lambda: login_or_none(site), 10, "a login")
    assert client.stat()[0] == 47
    client.quit()
    assert content(path) == "".join(mail[1:])


def login_or_none(site):
    try:
        return site.login()
    except poplib.error_proto:
        return None


@test
def crash_in_a_hashed_directory(site):
    """everything killed during an update below a hash directory: the next start completes it, under the old lock"""
    site.add_user()
    os.makedirs(site.spool_path("u/s"))
    kill_during_update(site, site.spool_path("u/s/user"), hash_spool=2)


@test
def crash_at_home(site):
    """the same in a home directory: the recovery knows the lock of the agent that died, and waits for nothing"""
    site.add_user()
    home = make_home(site)
    kill_during_update(site, os.path.join(home, "Mailbox"), home_dir_mail="Mailbox")


def update_in_progress(site, path):
    """A session that deletes, whose update has the dot-lock and waits for the spool; and the monitor's file."""
    put(path, [message(1), message(2)], "user", site)
    client = site.login()
    client.dele(1)
    with Held(path):
        client._putcmd("QUIT")
        wait_until(lambda: os.path.exists(path + ".lock"), 5, "the lock of the update")
        owner = content(path + ".lock")
        with open(site.path("state", "monitor." + owner.split("@")[0]), "rb") as file:
            noted = file.read()
        yield client, owner, noted


@test
def monitor_killed_with_a_lock(site):
    """a monitor killed while its update waits for a hashed spool: its successor frees the maildrop, unchanged"""
    site.add_user()
    os.makedirs(site.spool_path("u/s"))
    path = site.spool_path("u/s/user")
    site.start(hash_spool=2)
    for client, _, _ in update_in_progress(site, path):
        kill_all(site.processes("qpopper-monitor"))
        client.close()
    wait_until(lambda: not os.path.exists(path + ".lock"), 20, "the end of the lock")
    client = wait_until(lambda: login_or_none(site), 10, "a login")
    assert client.stat()[0] == 2
    client.quit()


@test
def lock_of_a_dead_monitor(site):
    """what a dead monitor's file says of its locks is enough to remove them, and no others, in hash directories"""
    site.add_user()
    os.makedirs(site.spool_path("u/s"))
    path = site.spool_path("u/s/user")
    site.start(hash_spool=2)
    for client, owner, noted in update_in_progress(site, path):
        pass
    client._getresp()
    site.stop()
    assert not os.path.exists(path + ".lock")
    with open(site.path("state", "monitor." + owner.split("@")[0]), "wb") as file:
        file.write(noted)
    for name in path, site.spool_path("u/s/other"):
        with open(name + ".lock", "w") as lock:
            lock.write(owner)
    site.start(hash_spool=2)
    site.wait_log("removed the lock %s.lock of a monitor that died" % path)
    assert os.listdir(site.spool_path("u/s")) in (["user", "other.lock"], ["other.lock", "user"])
    assert not os.path.exists(site.path("state", "monitor." + owner.split("@")[0]))
    client = site.login()
    client.dele(1)
    client.quit()


# ---- locks ----

@test
def maillock_errors(site):
    """errors 2, 4 and 5 of the FAQ, in spool-dir and at home, with their numbers in the log"""
    site.add_user()
    home = make_home(site)
    for changes, path in (({}, site.spool_path()), ({"home_dir_mail": "Mailbox"}, os.path.join(home, "Mailbox"))):
        put(path, [message(1)], "user", site)
        site.start(mail_lock_timeout=1, **changes)

        def expect(number):
            start = len(site.log())
            client.dele(1)
            try:
                client.quit()
            except poplib.error_proto as answer:
                assert "[SYS/TEMP]" in str(answer) or "[IN-USE]" in str(answer), answer
            else:
                raise AssertionError("deleted without the lock")
            wait_until(lambda: "maillock error %d" % number in site.log()[start:], 5, "error %d" % number)
            assert content(path) == message(1)
        client = site.login()
        with open(path + ".lock", "w") as lock:  # 4: somebody else holds it
            lock.write("%d@%s" % (os.getpid(), os.uname().nodename))
        expect(4)
        os.unlink(path + ".lock")
        os.symlink("/etc/passwd", path + ".lock")  # 5: it is no lock
        client.close()
        os.rename(path + ".lock", path + ".away")
        client = site.login()
        os.rename(path + ".away", path + ".lock")
        expect(5)
        os.unlink(path + ".lock")
        if changes or not ROOT:  # 2: it cannot be made
            client = site.login()
            os.chmod(os.path.dirname(path), 0o555)
            try:
                expect(2)
            finally:
                os.chmod(os.path.dirname(path), 0o755)
        site.stop()


@test
def lock_replaced_by_another(site):
    """error 6: a lock that another program took from us is told in the log, and stays that program's"""
    site.add_user()
    home = make_home(site)
    for changes, path in (({}, site.spool_path()), ({"home_dir_mail": "Mailbox"}, os.path.join(home, "Mailbox"))):
        put(path, [message(1), message(2)], "user", site)
        site.start(mail_lock_timeout=2, **changes)
        start = len(site.log())
        client = site.login()
        client.dele(1)
        with Held(path):
            client._putcmd("QUIT")
            wait_until(lambda: os.path.exists(path + ".lock"), 5, "the lock of the update")
            with open(path + ".new", "w") as lock:
                lock.write("1@elsewhere")
            os.rename(path + ".new", path + ".lock")
            wait_until(lambda: "[SYS/TEMP]" in site.log()[start:] or "[IN-USE]" in site.log()[start:], 15, "the end")
        client.close()
        assert "maillock error 6" in site.log()[start:], site.log()[start:]
        assert content(path + ".lock") == "1@elsewhere"
        assert content(path) == message(1) + message(2)
        os.unlink(path + ".lock")
        site.stop()


@test
def maildrop_name_too_long(site):
    """error 1: a name that leaves no room for the lock's is refused at the login, not at the first deletion"""
    site.add_user()
    home = make_home(site)
    for length in 250, 251:
        name = "m" * length
        put(os.path.join(home, name), [message(1), message(2)], "user", site)
        site.start(home_dir_mail=name)
        if length == 250:
            delete_and_look(site, os.path.join(home, name), [message(1), message(2)])
        else:
            refused(site, "[SYS/")
            site.wait_log("maillock error 1: a maildrop name of more than 250 bytes")
        site.stop()


@test
def many_users_of_one_uid(site):
    """the maildrops of virtual users who share a uid do not wait for each other"""
    uid = 60000 if ROOT else os.getuid()
    names = ["u%d" % number for number in range(8)]
    for name in names:
        site.add_user(name, uid=uid)
    spools = {}
    for name in names:
        home = make_home(site, name)
        spools[name] = os.path.join(home, "Mailbox")
    lines = content(site.path("users"))
    for name in names:
        put(spools[name], [message(1)], name, site)
    assert lines.count("home-") == len(names)
    site.start(home_dir_mail="Mailbox", mail_lock_timeout=6)
    held = [Held(spools[name]) for name in names[:-1]]
    waiting = []
    for name in names[:-1]:
        client = site.raw()
        client.sendall(b"USER %s\r\nPASS %s\r\n" % (name.encode(), PASSWORD.encode()))
        waiting.append(client)
    time.sleep(0.5)
    started = time.monotonic()
    site.login(names[-1]).quit()
    assert time.monotonic() - started < 2
    for lock in held:
        lock.spool.close()
    for client in waiting:
        assert b"1 visible message" in read_until(client, b"octets.\r\n")
        client.close()


if __name__ == "__main__":
    main()
