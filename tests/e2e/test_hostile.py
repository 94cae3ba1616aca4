#!/usr/bin/env python3
"""Clients and mailbox owners who mean harm: they get nothing wrong, and nobody else notices them."""
import ctypes
import errno
import fcntl
import poplib
import random
import re
import select
import ssl
import struct
import threading
import time

from harness import *  # noqa: F403 (the harness is this suite's language)

MEGABYTE = 1 << 20


# ---- what must go on whatever happens ----

def works(site, user="user", within=2.0):
    """A login answers in good time; the number of messages."""
    began = time.monotonic()
    client = site.login(user)
    count = client.stat()[0]
    client.quit()
    took = time.monotonic() - began
    assert took < within, "a login took %.2f s" % took
    return count


def workers(site):
    return site.processes("qpopper-worker")


def resident(site):
    """KiB of memory of all workers together."""
    total = 0
    for pid in workers(site):
        with open("/proc/%d/status" % pid) as status:
            total += int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1))
    return total


def send_what_goes(client, data, seconds=10):
    """Send while the server takes it, and throw away its answers; the octets that it sent."""
    received = bytearray()
    view = memoryview(data)
    client.setblocking(False)
    deadline = time.monotonic() + seconds
    while len(view) > 0 and time.monotonic() < deadline:
        readable, writable, _ = select.select([client], [client], [], 0.5)
        try:
            if readable:
                piece = client.recv(MEGABYTE)
                if not piece:
                    return received
                received += piece
            if writable:
                view = view[client.send(view[:MEGABYTE]):]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            continue
        except OSError:
            return received
    client.setblocking(True)
    client.settimeout(10)
    return received


def drain(client, seconds=10):
    """Whatever comes until the server closes."""
    client.settimeout(seconds)
    data = bytearray()
    try:
        while piece := client.recv(MEGABYTE):
            data += piece
    except ConnectionResetError:
        pass
    return bytes(data)


def raw_login(site, user="user"):
    client = site.raw()
    client.sendall(("USER %s\r\nPASS %s\r\n" % (user, PASSWORD)).encode())
    read_until(client, b"octets.\r\n")
    return client


# ---- clients ----

@test
def garbage(site):
    """random octets before and after login, in clear and in TLS: no process ends, and logins go on"""
    rng = random.Random(20261121)
    site.add_user()
    site.put_mail([message(1)])
    site.start(max_unauthenticated=100)
    before = workers(site)
    words = [b"USER", b"PASS", b"LIST", b"RETR", b"TOP", b"DELE", b"UIDL", b"AUTH", b"CAPA", b"RSET", b" ", b"1",
             b"\r\n", b"\n", b"\0", b"99999999999999999999", b"-1", b"%s%n", b"\xff"]
    for number in range(150):
        if number % 2:
            data = rng.randbytes(rng.randrange(1, 3000))
        else:
            data = b"".join(rng.choice(words) for _ in range(rng.randrange(1, 400)))
        if number % 3 == 2:
            client = raw_login(site)
        else:
            client = socket.create_connection(("127.0.0.1", site.tls_port if number % 3 else site.port), 20)
        send_what_goes(client, data, 2)
        client.close()
    wait_until(lambda: works(site) == 1, 5, "a login")
    assert workers(site) == before, "a worker ended"
    assert site.read_mail() == message(1).encode()


@test
def endless_lines(site):
    """lines of 16 MiB without an end, before and after login, cost no memory"""
    site.add_user()
    site.start()
    works(site)
    before = resident(site)
    clients = [site.raw(), raw_login(site)]
    for start in b"", b"AUTH PLAIN ", b"USER ":
        client = site.raw()
        client.sendall(start)
        clients.append(client)
    for client in clients:
        send_what_goes(client, b"x" * (16 * MEGABYTE))
    grown = resident(site) - before
    assert grown < 4096, "%d KiB more" % grown
    for client in clients:
        client.sendall(b"\r\nNOOP\r\n")
        assert read_until(client, b"\r\n").startswith(b"-ERR Line too long."), "no answer"
        client.close()
    assert works(site) == 0


@test
def many_commands(site):
    """100000 NOOPs in one go are answered, all of them; others are served meanwhile"""
    site.add_user()
    site.add_user("other")
    site.start()
    client = raw_login(site)
    slowest = [0.0]

    def others():
        for _ in range(5):
            began = time.monotonic()
            works(site, "other", 5)
            slowest[0] = max(slowest[0], time.monotonic() - began)
    beside = threading.Thread(target=others)
    beside.start()
    data = send_what_goes(client, b"NOOP\r\n" * 100000 + b"QUIT\r\n", 30)
    data += drain(client)
    beside.join()
    assert data.count(b"\r\n") == 100001, data.count(b"\r\n")
    assert slowest[0] < 1, "another login took %.2f s" % slowest[0]


@test
def commands_without_reading(site):
    """a client that sends without end and never reads costs no memory"""
    site.add_user()
    site.put_mail([message(number) for number in range(1, 200)])
    site.start()
    works(site)
    before = resident(site)
    for command in b"NOOP\r\n", b"CAPA\r\n", b"UIDL\r\n", b"RETR 1\r\n", b"LIST\r\n":
        client = raw_login(site)
        client.setblocking(False)
        for _ in range(200):
            try:
                client.send(command * 1000)
            except BlockingIOError:
                time.sleep(0.002)
        grown = resident(site) - before
        assert grown < 4096, "%d KiB more for %r" % (grown, command)
        vanish(client, rudely=True)
        wait_until(lambda: session_over(site), 5, "the session to end")
    assert works(site) == 199


@test
def big_message_unread(site):
    """who asks for 64 MiB and never reads is cut off after timeout; the worker's memory stays small"""
    site.add_user()
    body = "0123456789abcdef" * 4 + "\n"
    site.put_mail([message(1, body * (MEGABYTE * 64 // len(body)))])
    site.start(timeout=10)
    works(site)
    before = resident(site)
    client = raw_login(site)
    began = time.monotonic()
    client.sendall(b"RETR 1\r\n")
    time.sleep(1)
    grown = resident(site) - before
    assert grown < 4096, "%d KiB more" % grown
    site.wait_log("end timeout", 20)
    assert 9 < time.monotonic() - began < 15
    data = drain(client)
    assert not data.endswith(b"\r\n.\r\n") and len(data) < 32 * MEGABYTE, len(data)
    assert works(site) == 1


@test
def one_octet_at_a_time(site):
    """login-timeout counts from the connection, whatever trickles in"""
    site.add_user()
    site.start(login_timeout=2)
    clients = [site.raw() for _ in range(3)]
    texts = [b"N" * 50, b"NOOP\r\n" * 50, b"USER user\r\n" * 50]
    began = time.monotonic()
    ended = {}
    for position in range(50):
        for number, client in enumerate(clients):
            if number in ended:
                continue
            try:
                client.sendall(texts[number][position:position + 1])
                client.settimeout(0.001)
                while client.recv(600):
                    pass
                ended[number] = time.monotonic() - began
            except TimeoutError:
                pass
            except OSError:
                ended[number] = time.monotonic() - began
        if len(ended) == len(clients):
            break
        time.sleep(0.1)
    assert len(ended) == len(clients), "cut off: %r" % ended
    assert all(1.5 < seconds < 3.5 for seconds in ended.values()), ended
    works(site)


def vanish(client, rudely):
    if rudely:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@test
def vanishing_clients(site):
    """clients that go away in every state, politely or with a reset, leave no session and no lock"""
    site.add_user()
    big = message(2, "y" * 70 + "\n" + "z" * 70 + "\n" * (4 * MEGABYTE))
    site.put_mail([message(1), big, message(3)])
    site.start()
    login = b"USER user\r\nPASS %s\r\n" % PASSWORD.encode()
    for rudely in False, True:
        for text in (b"", b"USER", b"USER user\r\n", login, login + b"RETR 2\r\n", login + b"DELE 1\r\n",
                     login + b"LIST\r\nUIDL\r\nDELE 3", b"STLS\r\n", b"AUTH PLAIN\r\n", login + b"DELE 3\r\nRSET\r\n"):
            for pause in 0, 0.05:
                client = site.raw()
                client.sendall(text)
                time.sleep(pause)
                vanish(client, rudely)
        for pause in 0, 0.05:
            client = socket.create_connection(("127.0.0.1", site.tls_port), 20)
            time.sleep(pause)
            vanish(client, rudely)

    def free():
        try:
            return works(site) == 3
        except poplib.error_proto as answer:
            assert "[IN-USE]" in str(answer), answer
            return False
    wait_until(free, 10, "the maildrop to be free")
    assert site.read_mail() == (message(1) + big + message(3)).encode()


@test
def vanishing_at_quit(site):
    """who vanishes right behind QUIT has deleted exactly what he marked, or nothing"""
    site.add_user()
    rng = random.Random(7)
    numbers = list(range(1, 61))
    site.put_mail([message(number) for number in numbers])
    site.start()
    for _ in range(30):
        def attempt():
            try:
                return raw_login(site)
            except AssertionError:  # [IN-USE]: the update of the session before goes on
                return None
        client = wait_until(attempt, 10, "a login")
        client.sendall(b"DELE 1\r\nQUIT\r\n")
        time.sleep(rng.random() * 0.003)
        vanish(client, rng.random() < 0.5)
    wait_until(lambda: not os.path.exists(site.spool_path() + ".lock"), 10, "the lock to go")
    client = wait_until(lambda: login_or_none(site), 10, "a login")
    left = client.stat()[0]
    client.quit()
    assert 30 <= left < 60, left
    assert site.read_mail() == "".join(message(number) for number in numbers[60 - left:]).encode()


def login_or_none(site, user="user"):
    try:
        return site.login(user)
    except poplib.error_proto:
        return None


@test
def tls_garbage(site):
    """STLS without a handshake, garbage for one, and half of one: cut off, and the next client is served"""
    rng = random.Random(5)
    site.add_user()
    site.start(login_timeout=2)
    before = workers(site)
    silent = []
    for number in range(10):
        client = site.raw()
        client.sendall(b"STLS\r\n")
        assert client.recv(600).startswith(b"+OK")
        silent.append(client)
        silent.append(socket.create_connection(("127.0.0.1", site.tls_port), 20))
    hello = capture_hello()
    for number in range(60):
        client = site.raw() if number % 2 else socket.create_connection(("127.0.0.1", site.tls_port), 20)
        if number % 2:
            client.sendall(b"STLS\r\n")
            client.recv(600)
        broken = bytearray(hello)
        for _ in range(rng.randrange(0, 4)):
            broken[rng.randrange(5 if number % 4 else 0, len(broken))] = rng.randrange(256)
        data = [rng.randbytes(rng.randrange(1, 2000)), bytes(broken), bytes(hello[:rng.randrange(1, len(hello))]),
                b"USER user\r\nPASS x\r\n"][number % 4]
        send_what_goes(client, data, 1)
        client.close()
    began = time.monotonic()
    site.login(tls="tls").quit()
    assert time.monotonic() - began < 1
    for client in silent:
        drain(client, 5)
    assert workers(site) == before, "a worker ended"


def capture_hello():
    """The first message of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl._create_unverified_context().wrap_bio(incoming, outgoing)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


@test
def idle_crowd(site):
    """200 connections that do nothing, and a login still answers within a second"""
    site.add_user()
    site.put_mail([message(1)])
    site.start()
    crowd = [socket.create_connection(("127.0.0.1", site.tls_port if number % 2 else site.port), 20)
             for number in range(200)]
    time.sleep(0.2)
    for tls in None, "stls", "tls":
        began = time.monotonic()
        client = site.login(tls=tls)
        assert client.stat()[0] == 1
        client.quit()
        assert time.monotonic() - began < 1
    for client in crowd:
        client.close()


@test
def bounded_log(site):
    """no client can fill the log: a connection of errors gets some hundred records at most, and a login goes on"""
    site.add_user()
    site.put_mail([message(1)])
    site.start()
    flood = {b"x" * 500 + b"\r\n": 0, b"RETR 99\r\n": 1, b"USER\r\n": 0, b"PASS\r\n": 0, b"PASS x\r\n": 0,
             b"USER " + b"%n" * 200 + b"\r\n": 0, b"TOP 1 -1\r\n": 1, b"\r\n": 1, b"DELE 1\r\n": 1, b"AUTH x\r\n": 0,
             b"AUTH PLAIN\r\n*\r\n": 0}
    for command, logged_in in flood.items():
        before = len(site.log())
        client = raw_login(site) if logged_in else site.raw()
        send_what_goes(client, command * 5000, 5)
        try:
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server was first
        drain(client)
        client.close()
        time.sleep(0.2)
        grown = len(site.log()) - before
        assert grown < 40000, "%d octets in the log for 5000 times %r" % (grown, command[:20])
    assert works(site) == 1


# ---- owners of mailboxes ----

def agents_of(site, uid):
    """The agents of the service that run as that user."""
    found = []
    for pid in site.processes("qpopper-monitor"):
        try:
            if uid_of(pid) == uid:
                found.append(pid)
        except OSError:
            pass
    return found


def uid_of(pid):
    with open("/proc/%d/status" % pid) as status:
        return int(re.search(r"^Uid:\t(\d+)", status.read(), re.M).group(1))


class Held:
    """The spool locked by its owner, so that agents wait and can be caught."""

    def __init__(self, path):
        self.spool = open(path, "r+b")
        fcntl.lockf(self.spool, fcntl.LOCK_EX)

    def release(self):
        self.spool.close()


def catch(site, uid):
    return wait_until(lambda: agents_of(site, uid), 5, "an agent of uid %d" % uid)[0]


def two_users(site, count=5):
    need_root()
    site.add_user()
    site.add_user("other")
    site.put_mail([message(number, "x" * 2000) for number in range(1, count + 1)])
    site.put_mail([message(1)], "other")
    return site.owner_of("user")


@test
def owner_kills_agents(site):
    """an owner who kills his opening and updating agents harms only himself, and only for the moment"""
    owner = two_users(site, 100)
    site.start()
    numbers = list(range(1, 101))
    for round_number in range(6):
        held = Held(site.spool_path())
        client = site.raw()
        client.sendall(("USER user\r\nPASS %s\r\n" % PASSWORD).encode())
        agent = catch(site, owner[0])
        run_as(*owner, lambda: os.kill(agent, signal.SIGKILL))
        answer = read_until(client, b"\r\n").split(b"\r\n")
        while len(answer) < 3:
            answer += read_until(client, b"\r\n").split(b"\r\n")
        assert any(line.startswith(b"-ERR [SYS/TEMP]") for line in answer), answer
        held.release()
        assert works(site, "other") == 1
        client = wait_until(lambda: login_or_none(site), 5, "a login")
        assert client.stat()[0] == len(numbers)
        client.dele(1)
        client.dele(3)
        held = Held(site.spool_path())
        client._putcmd("QUIT")
        agent = catch(site, owner[0])
        held.release()
        time.sleep(0.0005 * round_number)
        try:
            run_as(*owner, lambda: os.kill(agent, signal.SIGKILL))
        except AssertionError:
            pass  # it was faster
        try:
            done = client._getresp().startswith(b"+OK")
        except poplib.error_proto as answer:
            assert "[SYS/TEMP]" in str(answer), answer
            done = False
        assert works(site, "other") == 1
        client = wait_until(lambda: login_or_none(site), 10, "a login after the recovery")
        left = client.stat()[0]
        client.quit()
        assert left in (len(numbers), len(numbers) - 2)
        assert left == len(numbers) - 2 or not done
        if left != len(numbers):
            del numbers[2], numbers[0]
        assert site.read_mail() == "".join(message(number, "x" * 2000) for number in numbers).encode()


@test
def owner_stops_agents(site):
    """an owner who stops his agents waits for himself; when they go on, or are killed, all is well"""
    owner = two_users(site)
    mail = [message(number, "x" * 2000) for number in range(1, 6)]
    site.start()
    client = site.login()
    client.dele(2)
    held = Held(site.spool_path())
    client._putcmd("QUIT")
    agent = catch(site, owner[0])
    run_as(*owner, lambda: os.kill(agent, signal.SIGSTOP))
    held.release()
    for _ in range(5):
        assert works(site, "other", 1) == 1
    try:
        site.login()
        raise AssertionError("a second session in the middle of an update")
    except poplib.error_proto as answer:
        assert "[IN-USE]" in str(answer), answer
    run_as(*owner, lambda: os.kill(agent, signal.SIGCONT))
    assert client._getresp().startswith(b"+OK")
    del mail[1]
    assert site.read_mail() == "".join(mail).encode()
    stopped = []
    held = Held(site.spool_path())
    for _ in range(6):  # more than the agents that one user may have at a time
        client = site.raw()
        client.sendall(("USER user\r\nPASS %s\r\n" % PASSWORD).encode())
        stopped.append(client)
        time.sleep(0.02)
        for pid in agents_of(site, owner[0]):
            run_as(*owner, lambda: os.kill(pid, signal.SIGSTOP))
    assert agents_of(site, owner[0]), "no agent was caught"
    assert works(site, "other", 1) == 1
    held.release()
    for pid in agents_of(site, owner[0]):
        run_as(*owner, lambda: os.kill(pid, signal.SIGKILL))
    for client in stopped:
        client.close()
    client = wait_until(lambda: login_or_none(site), 10, "a login")
    assert client.stat()[0] == 4
    client.quit()


@test
def stopped_agent_at_the_end(site):
    """an update agent stopped by its owner does not hold up the end, and the next service goes on from there"""
    owner = two_users(site)
    mail = [message(number, "x" * 2000) for number in range(1, 6)]
    site.start(drain_timeout=1)
    client = site.login()
    client.dele(2)
    held = Held(site.spool_path())
    client._putcmd("QUIT")
    agent = catch(site, owner[0])
    site.cleanups.append(lambda: os.path.exists("/proc/%d" % agent) and os.kill(agent, signal.SIGKILL))
    run_as(*owner, lambda: os.kill(agent, signal.SIGSTOP))
    held.release()
    site.process.send_signal(signal.SIGTERM)
    site.process.wait(15)
    site.process = None
    assert site.read_mail() == "".join(mail).encode()
    site.start()
    assert works(site, "other") == 1
    try:
        site.login().quit()
        raise AssertionError("a session in the middle of an update")
    except poplib.error_proto as answer:
        assert "[IN-USE]" in str(answer), answer
    os.kill(agent, signal.SIGCONT)
    client = wait_until(lambda: login_or_none(site), 10, "a login")
    assert client.stat()[0] == 4
    client.quit()
    del mail[1]
    assert site.read_mail() == "".join(mail).encode()
    assert not os.path.exists(site.spool_path() + ".lock")


# ---- spools that change under a session ----

def tamper(site, kind, new):
    """What an owner can do to his own spool, without any lock."""
    path = site.spool_path()
    status = os.stat(path)

    def act():
        if kind == "truncate":
            os.truncate(path, len(new))
        elif kind == "rewrite":
            with open(path, "r+b") as spool:
                spool.write(new)
                spool.truncate()
        elif kind == "rewrite, old time":
            with open(path, "r+b") as spool:
                spool.write(new)
                spool.truncate()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        elif kind == "rename":
            with open(path + ".new", "wb") as spool:
                spool.write(new)
            os.rename(path + ".new", path)
        elif kind == "remove":
            os.unlink(path)
    # in the shared spool directory group mail may make and remove files, as delivery agents do
    run_as(*site.owner_of("user"), act)
    assert kind == "remove" or os.path.getsize(path) == len(new)


def retrieved(client, number):
    """The octets of a message, "refused" for [SYS/TEMP], or "cut" for an end without the final dot."""
    client.sendall(b"RETR %d\r\n" % number)
    return finish_message(client, b"")


def finish_message(client, data):
    data = bytearray(data)
    while not data.endswith(b"\r\n.\r\n"):
        if data.startswith(b"-ERR") and data.endswith(b"\r\n"):
            assert data.startswith(b"-ERR [SYS/TEMP]"), data
            return "refused"
        try:
            piece = client.recv(MEGABYTE)
        except ConnectionResetError:
            piece = b""
        if not piece:
            return "cut"
        data += piece
    content = bytes(data).split(b"\r\n", 1)[1][:-3]
    return content[content.startswith(b"."):].replace(b"\r\n.", b"\r\n")


def other_bytes(old):
    """Messages of the same length with other contents."""
    return old.replace(b"x", b"y").replace(b"Subject: message", b"Subject: massage")


TAMPERING = ("truncate", "rewrite", "rewrite, old time", "rename", "remove")


@test
def tampering_during_retr(site):
    """a spool changed by its owner in the middle of RETR: the right octets, or no final dot"""
    need_root()
    site.add_user()
    site.add_user("other")
    os.chmod(site.spool, 0o3775)
    first = message(1, ("x" * 70 + "\n") * 150000)
    old = (first + message(2, "x" * 500) + message(3)).encode()
    site.start()
    outcomes = []
    for kind in TAMPERING:
        site.put_mail(old)
        client = raw_login(site)
        client.sendall(b"RETR 1\r\n")  # more than the buffers of both sockets can take
        data = client.recv(4096)
        new = old[:2 * MEGABYTE] if kind == "truncate" else other_bytes(old)
        tamper(site, kind, new)
        assert works(site, "other") == 0
        got = finish_message(client, data)
        assert got in ("cut", as_sent(first)), "%s: %d wrong octets" % (kind, len(got))
        outcomes.append((kind, got if isinstance(got, str) else "right"))
        client.close()
        wait_until(lambda: session_over(site), 5, "the session to end")
    for kind in "truncate", "rewrite", "rewrite, old time":
        assert (kind, "cut") in outcomes, outcomes


def session_over(site):
    try:
        site.login().close()
    except poplib.error_proto as answer:
        assert "[IN-USE]" not in str(answer) or time.sleep(0.1) is None
        return "[IN-USE]" not in str(answer)
    time.sleep(0.1)
    return True


@test
def tampering_before_retr(site):
    """changed between LIST and RETR: each message is as it was listed, or refused"""
    need_root()
    site.add_user()
    parts = [message(number, "x" * 500 + "\n") for number in range(1, 6)]
    old = "".join(parts).encode()
    for clock in 0, 0.05:
        site.start(wait=True)
        for kind in TAMPERING:
            for new in (other_bytes(old), ("".join(parts[1:])).encode(), (message(9) + "".join(parts)).encode(),
                        (parts[0] + message(9) + "".join(parts[3:])).encode(), b""):
                if kind == "truncate":
                    new = old[:max(1, len(new) // 2)]
                site.put_mail(old)
                time.sleep(clock)
                client = raw_login(site)
                client.sendall(b"LIST\r\n")
                sizes = [int(line.split()[1]) for line in read_until(client, b"\r\n.\r\n").split(b"\r\n")[1:-2]]
                assert sizes == [len(as_sent(part)) for part in parts]
                tamper(site, kind, new)
                for number, part in enumerate(parts, 1):
                    got = retrieved(client, number)
                    assert got in ("cut", "refused", as_sent(part)), "%s: message %d is wrong: %r" % (kind, number, got)
                    if got == "cut":
                        break
                client.close()
                wait_until(lambda: session_over(site), 5, "the session to end")
        site.stop()


@test
def tampering_before_quit(site):
    """changed between DELE and QUIT: what was marked goes, nothing else does, and what came in stays"""
    need_root()
    site.add_user()
    parts = [message(number, "x" * 300 + "\n") for number in range(1, 7)]
    old = "".join(parts)
    site.start(mail_lock_timeout=2)
    for kind in "rewrite", "rewrite, old time", "rename":
        for new in ([parts[0], message(9), parts[1], parts[4], message(10)], parts[::-1], [message(9)],
                    parts + [message(9)], [other_bytes(part.encode()).decode() for part in parts], parts[:2], []):
            site.put_mail(old.encode())
            client = wait_until(lambda: login_or_none(site), 5, "a login")
            client.dele(2)
            client.dele(5)
            tamper(site, kind, "".join(new).encode())
            try:
                done = client.quit().startswith(b"+OK")
            except poplib.error_proto as answer:
                assert "[SYS/TEMP]" in str(answer), answer
                done = False
            wanted = [part for part in new if part not in (parts[1], parts[4])]
            left = site.read_mail().decode()
            assert left == "".join(wanted if done else new), (kind, done, len(left), len(old))
            assert not os.path.exists(site.spool_path() + ".lock")
    site.put_mail(old.encode())
    client = wait_until(lambda: login_or_none(site), 5, "a login")
    client.dele(2)
    run_as(*site.owner_of("user"), lambda: os.truncate(site.spool_path(), len(parts[0]) + len(parts[1]) // 2))
    try:
        client.quit()
    except poplib.error_proto as answer:
        assert "[SYS/TEMP]" in str(answer), answer
    assert site.read_mail().decode() == old[:len(parts[0]) + len(parts[1]) // 2]


@test
def delivery_during_retr(site):
    """mail that is appended while a message is sent does not disturb it, and is there in the next session"""
    site.add_user()
    first = message(1, (".x" * 35 + "\n") * 150000)
    site.put_mail([first])
    site.start()
    client = raw_login(site)
    client.sendall(b"RETR 1\r\n")
    data = client.recv(4096)
    for number in range(2, 42):
        with open(site.spool_path(), "ab") as spool:
            fcntl.lockf(spool, fcntl.LOCK_EX)
            spool.write(message(number).encode())
        data += client.recv(2000)
    assert finish_message(client, data) == as_sent(first), "the message is wrong, refused or cut"
    client.sendall(b"QUIT\r\n")
    read_until(client, b"signing off.\r\n")
    client.close()
    assert works(site) == 41


# ---- FUSE: a file system whose files a user answers for ----

class Fuse:
    """A tiny FUSE server: one directory with one file. hang: never answer when that file is looked up."""

    ATTRIBUTES = struct.Struct("<6Q10I")
    LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INIT, OPENDIR, RELEASEDIR = (
        1, 2, 3, 14, 15, 17, 18, 25, 26, 27, 29)
    SILENT = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET have no answer

    def __init__(self, site, mount, name, content, owner, hang=False):
        self.name, self.content, self.owner, self.hang = name.encode(), content, owner, hang
        self.asked = threading.Event()
        try:
            self.device = os.open("/dev/fuse", os.O_RDWR)
        except OSError as problem:
            raise Skip("no /dev/fuse here: " + str(problem)) from problem
        options = "fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other" % (self.device, *owner)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"qpopper-test", mount.encode(), b"fuse", 2 | 4, options.encode()) != 0:
            number = ctypes.get_errno()
            os.close(self.device)
            raise Skip("no FUSE mount here: " + os.strerror(number))
        site.cleanups.append(lambda: libc.umount2(mount.encode(), 1 | 2))
        site.cleanups.append(self.end)
        self.ended = False
        threading.Thread(target=self.serve, daemon=True).start()

    def end(self):
        """Close the device: whoever waits for an answer gets an error."""
        if not self.ended:
            self.ended = True
            os.close(self.device)

    def attributes(self, node):
        directory = node == 1
        return self.ATTRIBUTES.pack(node, 0 if directory else len(self.content), 1, 0, 0, 0, 0, 0, 0,
                                    0o40775 if directory else 0o100660, 2 if directory else 1, *self.owner, 0, 4096, 0)

    def serve(self):
        while not self.ended:
            try:
                readable, _, _ = select.select([self.device], [], [], 0.2)
                if readable:
                    self.answer(os.read(self.device, 1 << 20))
            except (OSError, ValueError) as problem:
                if getattr(problem, "errno", None) not in (errno.EINTR, errno.ENOENT):
                    return

    def answer(self, request):
        _, operation, unique, node = struct.unpack_from("<IIQQ", request)
        if operation in self.SILENT:
            return
        body = request[40:]
        result, error = b"", 0
        if operation == self.INIT:
            result = struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 65536, 1, 0, 0, 0)
        elif operation == self.LOOKUP and body.rstrip(b"\0") == self.name:
            self.asked.set()
            if self.hang:
                return
            result = struct.pack("<QQQQII", 2, 0, 0, 0, 0, 0) + self.attributes(2)
        elif operation == self.LOOKUP:
            error = -errno.ENOENT
        elif operation == self.GETATTR:
            result = struct.pack("<QII", 0, 0, 0) + self.attributes(node)
        elif operation in (self.OPEN, self.OPENDIR):
            result = struct.pack("<QII", 1, 0, 0)
        elif operation == self.READ:
            offset, size = struct.unpack_from("<QI", body, 8)
            result = self.content[offset:offset + size]
        elif operation == self.STATFS:
            result = struct.pack("<5Q4I24x", 1000, 1000, 1000, 10, 10, 4096, 255, 4096, 0)
        elif operation not in (self.RELEASE, self.FLUSH, self.RELEASEDIR):
            error = -errno.ENOSYS
        os.write(self.device, struct.pack("<IiQ", 16 + len(result), error, unique) + result)


@test
def fuse_is_refused(site):
    """a spool on a FUSE file system is refused with a reason, and served with allow-fuse"""
    need_root()
    site.add_user()
    site.spool = site.path("fuse")
    os.mkdir(site.spool)
    os.mkdir(site.path("temp"))
    Fuse(site, site.spool, "user", (message(1) + message(2)).encode(), site.owner_of("user"))
    site.settings["temp-dir"] = site.path("temp")
    site.start()
    try:
        site.login()
        raise AssertionError("a spool on FUSE was opened")
    except poplib.error_proto as answer:
        assert "[SYS/PERM]" in str(answer), answer
    site.wait_log("allow-fuse")
    site.stop()
    site.start(allow_fuse="true")
    client = site.login()
    assert client.stat()[0] == 2
    assert retrieve(client, 2) == as_sent(message(2))
    client.close()


@test
def fuse_that_hangs(site):
    """a private maildrop whose file system never answers holds up its owner only"""
    need_root()
    mount = site.path("fuse")
    os.mkdir(mount)
    site.add_user()
    site.add_user("own")
    site.put_mail([message(1)])
    owner = site.owner_of("own")
    with open(site.path("users")) as users:
        lines = users.read().replace("own:", "own:", 1).splitlines()
    with open(site.path("users"), "w") as users:
        for line in lines:
            users.write(line + ("maildrop=%s/inbox" % mount if line.startswith("own:") else "") + "\n")
    file_system = Fuse(site, mount, ".own.pop", b"", owner, hang=True)
    site.start()
    hanging = []
    for _ in range(8):
        client = site.raw()
        client.sendall(("USER own\r\nPASS %s\r\n" % PASSWORD).encode())
        hanging.append(client)
    assert file_system.asked.wait(5), "nobody asked for the file"
    for _ in range(10):
        assert works(site, within=1) == 1
    assert len(agents_of(site, owner[0])) <= 4, "one owner has more than his share of agents"
    for client in hanging:
        client.close()
    assert works(site, within=1) == 1
    file_system.end()
    wait_until(lambda: not agents_of(site, owner[0]), 10, "the agents to end")
    assert works(site, within=1) == 1


# ---- the service's own files ----

def use_and_stop(site):
    """A session that deletes, so that there is a journal; then the end."""
    client = site.login()
    client.dele(1)
    client.quit()
    assert site.stop() == 0


@test
def damaged_state(site):
    """journals and marks that are empty, too short or garbage at start: the service starts, and the mail is intact"""
    rng = random.Random(3)
    site.add_user()
    mail = [message(number) for number in range(1, 30)]
    site.put_mail(mail)
    site.start()
    use_and_stop(site)
    del mail[0]
    directory = os.path.join(site.state, "journal")
    assert os.listdir(directory), "no journal"
    for damage in "empty", "garbage", "short", "missing", "ones":
        for suffix in ".journal", ".owner", "":
            for name in sorted(os.listdir(directory)):
                path = os.path.join(directory, name)
                if not name.endswith(suffix):
                    continue
                size = os.path.getsize(path)
                if damage == "missing":
                    os.unlink(path)
                    continue
                with open(path, "r+b") as file:
                    if damage == "garbage":
                        file.write(rng.randbytes(min(size, 65536)))
                    elif damage == "ones":
                        file.write(b"\xff" * min(size, 65536))
                    else:
                        file.truncate(0 if damage == "empty" else size // 3)
            with open(os.path.join(site.state, "monitor.999999"), "wb") as mark:
                mark.write(rng.randbytes(100))
            site.start()
            assert site.read_mail() == "".join(mail).encode(), (damage, suffix)
            use_and_stop(site)
            del mail[0]
            assert site.read_mail() == "".join(mail).encode(), (damage, suffix)
    assert "it is set aside in " + directory in site.log()
    assert [name for name in os.listdir(directory) if name.startswith("foreign-")]


@test
def misplaced_state(site):
    """a file where a directory of the service must be, a link, a wrong owner: refused with the name of it"""
    site.add_user()
    site.put_mail([message(1)])
    site.start()
    site.stop()
    journal, empty = os.path.join(site.state, "journal"), os.path.join(site.state, "empty")

    def refuses(what, word):
        site.start(wait=False)
        try:
            status = site.process.wait(20)
        except subprocess.TimeoutExpired:
            raise AssertionError("%s: popper neither serves nor ends\n%s" % (what, site.log())) from None
        site.process = None
        assert status == 1, (what, status)
        wait_until(lambda: word in site.log()[site.log_start:], 3, "%r in the log for %s" % (word, what))
    os.rename(journal, journal + ".old")
    open(journal, "w").close()
    refuses("a file as journal", "journal")
    os.unlink(journal)
    os.symlink("/tmp", journal)
    refuses("a link as journal", "journal")
    os.unlink(journal)
    os.rename(journal + ".old", journal)
    if ROOT:
        shutil.rmtree(empty)
        open(empty, "w").close()
        refuses("a file as empty", "empty")
        os.unlink(empty)
        os.symlink("/tmp", empty)
        refuses("a link as empty", "empty")
        os.unlink(empty)
        os.mkdir(empty)
        os.chmod(empty, 0o777)
        refuses("empty writable by all", "empty")
        os.rmdir(empty)
    assert site.read_mail() == message(1).encode()
    site.start()
    assert works(site) == 1


if __name__ == "__main__":
    main()
