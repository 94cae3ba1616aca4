#!/usr/bin/env python3
"""The protocol as a client sees it, over real sockets and real TLS."""
import poplib
import socket
import ssl
import time
import warnings

from harness import *  # noqa: F403 (the harness is this suite's language)


def three(site):
    site.add_user()
    mail = [message(1), message(2, "a\n.\n..dots\nFrom the middle\n"), message(3)]
    site.put_mail(mail)
    return mail


@test
def every_command(site):
    """USER to QUIT with each command in between"""
    mail = three(site)
    site.start()
    client = site.login()
    sizes = [len(as_sent(m)) for m in mail]
    assert client.stat() == (3, sum(sizes))
    assert [int(line.split()[1]) for line in client.list()[1]] == sizes
    assert retrieve(client, 2) == as_sent(mail[1])
    assert client.top(1, 0)[1][-1] == b""
    ids = [line.split()[1] for line in client.uidl()[1]]
    assert len(set(ids)) == 3
    client.dele(2)
    client.rset()
    client.noop()
    client.quit()
    assert site.read_mail() == "".join(mail).encode()


@test
def deletion_needs_quit(site):
    """DELE without QUIT deletes nothing; with QUIT exactly the message"""
    mail = three(site)
    site.start()
    client = site.login()
    client.dele(1)
    client.close()
    site.wait_log("end eof")
    client = site.login()
    assert client.stat()[0] == 3
    ids = client.uidl()[1]
    client.dele(2)
    client.quit()
    assert site.read_mail() == (mail[0] + mail[2]).encode()
    client = site.login()
    assert [line.split()[1] for line in client.uidl()[1]] == [ids[0].split()[1], ids[2].split()[1]]
    client.quit()


@test
def tls_both_ways(site):
    """STLS and implicit TLS serve the same maildrop; 1.1 is refused"""
    mail = three(site)
    site.start()
    for kind in "stls", "tls":
        client = site.login(tls=kind)
        assert retrieve(client, 1) == as_sent(mail[0])
        client.quit()
    context = ssl.create_default_context(cafile=site.path("cert.pem"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    try:
        poplib.POP3_SSL("localhost", site.tls_port, context=context, timeout=10)
    except (ssl.SSLError, ConnectionResetError):
        return
    raise AssertionError("TLS 1.1 was accepted")


@test
def stls_discards_pipelined_input(site):
    """commands behind STLS in the same segment are not executed (RFC 2595, CVE-2011-0411)"""
    three(site)
    site.start()
    client = site.raw()
    client.sendall(b"STLS\r\nUSER user\r\nPASS " + PASSWORD.encode() + b"\r\nDELE 1\r\nQUIT\r\n")
    data = client.recv(4096)
    assert data.startswith(b"+OK") and data.count(b"\r\n") == 1, data
    context = ssl.create_default_context(cafile=site.path("cert.pem"))
    with context.wrap_socket(client, server_hostname="localhost") as tls:
        tls.sendall(b"PASS " + PASSWORD.encode() + b"\r\n")
        assert tls.recv(4096).startswith(b"-ERR"), "the name given before STLS was kept"
        tls.sendall(b"NOOP\r\nQUIT\r\n")
        assert read_until(tls, b"signing off.\r\n").count(b"\r\n") == 2


@test
def pipelined_and_bytewise(site):
    """one segment and one octet at a time give the same octets"""
    three(site)
    site.start()
    commands = ("USER user\r\nPASS %s\r\nSTAT\r\nLIST\r\nUIDL\r\nRETR 2\r\nTOP 1 0\r\nDELE 3\r\nRSET\r\nQUIT\r\n"
                % PASSWORD).encode()
    answers = []
    for step in len(commands), 1:
        client = site.raw()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(commands), step):
            client.sendall(commands[start:start + step])
        data = b""
        while piece := client.recv(65536):
            data += piece
        answers.append(data)
        time.sleep(0.1)
    assert answers[0] == answers[1]
    assert b"signing off" in answers[0]


@test
def no_stall(site):
    """a round trip costs no delayed acknowledgement: 60 RETRs in far less than 60 x 40 ms"""
    site.add_user()
    site.put_mail([message(i) for i in range(1, 61)])
    site.start()
    client = site.login()
    fastest = None
    for attempt in range(3):
        began = time.monotonic()
        for number in range(1, 61):
            client.retr(number)
        took = time.monotonic() - began
        fastest = took if fastest is None else min(fastest, took)
    client.quit()
    assert fastest < 60 * 0.040 / 2, "60 round trips took %.3f s" % fastest


if __name__ == "__main__":
    main()
