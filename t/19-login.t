#!/usr/bin/env python3
"""Logins of a real sync_client over TCP and the UNIX socket, to a server that Debian's
master starts: SCRAM with our verifiers, PLAIN, refusals, COMPRESS, the IMAP probe. What
goes over the wire is looked at: the password never, mail only where it may be."""

import os
import socket
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox

SECRET = "correct-horse-battery"
WORDS = b"line of message"


class Relay:
    """A port in between that keeps what went through: `sent` by the client, `back`."""

    def __init__(self, port):
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.sent, self.back = bytearray(), bytearray()
        self.connections = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _from = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            far = socket.create_connection(("127.0.0.1", self.target))
            for one, other, kept in ((near, far, self.sent), (far, near, self.back)):
                threading.Thread(target=self.pump, args=(one, other, kept), daemon=True).start()

    @staticmethod
    def pump(one, other, kept):
        try:
            while piece := one.recv(65536):
                kept += piece
                other.sendall(piece)
        except OSError:
            pass
        try:
            other.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self):
        self.listener.close()


class Login(Rig):
    """A rig with a receiver that wants logins, and a sender that says what it uses."""

    def send(self, user="mail1", password=SECRET, args=("-u", "anna"), timeout=30, relay=None, **options):
        """sync_client with these credentials; the Result."""
        options = dict({"sync_authname": user, "sync_password": password}, **options)
        options.setdefault("sync_host", "127.0.0.1")
        options.setdefault("sync_port", str(relay.port if relay else self.to.port))
        return self.cyrus.sync(self.to, *args, timeout=timeout, **options)

    def ok(self, **options):
        relay = Relay(self.to.port)
        try:
            done = self.send(relay=relay, **options)
        finally:
            relay.close()
        if done.code != 0:
            raise Failed("sync_client", (str(done) + "\n" + self.to.recent_log(12)).splitlines())
        return done, relay

    def refused(self, **options):
        """It must not work, and must leave nothing; a client that tries for ever is ended."""
        before = self.to.data_files()
        options.setdefault("timeout", 2)
        with self.cyrus.imap("anna") as imap:
            imap.append("INBOX", message("refused%d" % self.cyrus.clients))
        done = self.send(**options)
        expect(done.code != 0, "sync_client fails", [str(done)])
        expect_equal(self.to.data_files(), before, "backups")
        if "anna" in before:
            kept = set(logfile.bodies(before["anna"]))
            held = self.cyrus.dump(["anna"])["mailboxes"]["user.anna"]["records"].values()
            expect(any(r["guid"] not in kept for r in held), "nothing was taken")
        expect_equal(children(self.to), self.server, "the process that serves")
        return done

    def said(self, words):
        """Lines of our log with all of these words, since the case began."""
        return [line for line in sandbox.syslog_text(self.to.tag).splitlines()[self.mark :] if all(w in line for w in words)]

    def begin(self):
        Rig.begin(self)
        self.mark = len(sandbox.syslog_text(self.to.tag).splitlines())
        self.server = children(self.to)


def children(to):
    with open("/proc/%d/task/%d/children" % (to.process.pid, to.process.pid)) as file:
        return sorted(file.read().split())


def setup():
    if RECEIVER != "ours":
        raise Skip("about our own logins")
    problem = sandbox.problem()
    if problem:
        raise Skip(problem)
    # maxchild=2 for each of the two addresses, as in INSTALL.
    to = receiver(master=True, tcp=True, admins="mail1 Mail2 other", failedloginpause="0", allowplaintext="no")
    rig = Login(Cyrus(), to)
    rig.cyrus.user("anna")
    with rig.cyrus.imap("anna") as imap:
        imap.fill("INBOX", [message(n, 3000) for n in range(20)])
    passwd(to, "mail1", SECRET)
    passwd(to, "stranger", SECRET)
    return rig


def passwd(to, user, password):
    done = to.tool("passwd", user, stdin=password.encode() + b"\n")
    if done.code != 0:
        raise RuntimeError(str(done))


def verifiers(to):
    return to.tree + "/conf/backup_passwd"


def only_hash(rig, name):
    """Keep only this mechanism in the verifier file; the text that it had."""
    with open(verifiers(rig.to)) as file:
        text = file.read()
    lines = [line for line in text.splitlines(True) if name in line.upper()]
    expect(lines, "the file has lines for " + name, text.splitlines())
    spit(rig, "".join(lines))
    return text


def spit(rig, text):
    with open(verifiers(rig.to), "w") as file:
        file.write(text)


def secret_stays(relay):
    expect(SECRET.encode() not in relay.sent, "the password is not on the wire")
    import base64

    for shift in range(3):
        # Whatever stands before it: the middle of its base64 in each of three places.
        part = base64.b64encode(b"\0" * shift + SECRET.encode())[4:-4]
        expect(part not in relay.sent, "nor in base64")


@case("passwd keeps no password, and nobody else can read its file")
def file(rig):
    with open(verifiers(rig.to)) as file:
        text = file.read()
    expect(SECRET not in text and "mail1" in text, "verifiers, not passwords")
    expect_equal(os.stat(verifiers(rig.to)).st_mode & 0o777, 0o600, "mode")


@case("SCRAM-SHA-512, which a client with both prefers")
def sha512(rig):
    _done, relay = rig.ok()
    secret_stays(relay)
    expect(b"AUTHENTICATE SCRAM-SHA-512" in relay.sent, "the mechanism", [repr(bytes(relay.sent[:200]))])
    expect(b"SCRAM-SHA-256" in relay.back and b"PLAIN" not in relay.back[:300], "what is offered")
    expect(rig.said(["login:", "mail1", "SCRAM-SHA-512"]), "a login line is in the log")
    rig.whole("anna")


@case("SCRAM-SHA-256")
def sha256(rig):
    with rig.cyrus.imap("anna") as imap:
        imap.append("INBOX", message("with 256"))
    text = only_hash(rig, "SHA-256")
    try:
        _done, relay = rig.ok()
    finally:
        spit(rig, text)
    secret_stays(relay)
    expect(b"AUTHENTICATE SCRAM-SHA-256" in relay.sent, "the mechanism", [repr(bytes(relay.sent[:200]))])
    expect(rig.said(["login:", "mail1", "SCRAM-SHA-256"]), "a login line is in the log")
    rig.whole("anna")


@case("a wrong password, and a user who is not there: refused alike, and logged")
def wrong(rig):
    rig.refused(password="wrong-horse")
    expect(rig.said(["badlogin:", "SCRAM"]), "it is logged", rig.to.recent_log(8).splitlines())
    rig.refused(user="nobody-at-all")
    told = "\n".join(rig.said([""]))
    expect(SECRET not in told and "wrong-horse" not in told, "no password in the log")
    rig.ok()


@case("a password that is changed or deleted holds at once")
def changed(rig):
    passwd(rig.to, "other", "first-password")
    rig.ok(user="other", password="first-password")
    passwd(rig.to, "other", "second-password")
    rig.refused(user="other", password="first-password")
    rig.ok(user="other", password="second-password")
    expect_equal(rig.to.tool("passwd", "-d", "other").code, 0, "passwd -d")
    rig.refused(user="other", password="second-password")


@case("who is not in admins may log in and do nothing")
def stranger(rig):
    rig.refused(user="stranger")
    expect(rig.said(["login:", "stranger"]), "the login itself is fine", rig.to.recent_log(8).splitlines())


@case("host:port/noauth is refused")
def noauth(rig):
    rig.refused(sync_host="127.0.0.1:%d/noauth" % rig.to.port)
    wire = Csync(("127.0.0.1", rig.to.port))
    for words, value in (("GET USER", "anna"), ("APPLY SUB", {"USERID": "anna", "MBOXNAME": "user.anna.x"})):
        try:
            answer = wire.command(words, value)
        except Refused as why:
            expect("uthenticate" in str(why), "the reason", [str(why)])
        else:
            raise Failed("%s is answered" % words, [repr(answer)])
    wire.close()


@case("sync_try_imap: yes falls back at once")
def try_imap(rig):
    done, relay = rig.ok(sync_try_imap="yes")
    expect(b"C01 CAPABILITY" in relay.sent, "the client has knocked with IMAP", [repr(bytes(relay.sent[:200]))])
    expect(done.seconds < 3, "in less than 3 s", ["%.1f s" % done.seconds])
    expect_equal(relay.connections, 2, "connections")
    rig.whole("anna")


@case("COMPRESS, which the client takes when it is offered: the mail is not to be seen")
def compress(rig):
    with rig.cyrus.imap("anna") as imap:
        imap.fill("INBOX", [message("compress%d" % n, 20000) for n in range(5)])
    _done, relay = rig.ok()
    at = relay.sent.find(b"COMPRESS DEFLATE\r\n")
    expect(at >= 0, "the client asks for it", [repr(bytes(relay.sent[:300]))])
    expect(b"APPLY" not in relay.sent[at:] and WORDS not in relay.sent, "nothing can be read behind it")
    expect(len(relay.sent) < 20000, "it is less", ["%d bytes for 100000" % len(relay.sent)])
    rig.whole("anna")


@case("a rolling client over TCP, and mail after it has been idle")
def rolling(rig):
    options = {"sync_host": "127.0.0.1", "sync_port": str(rig.to.port), "sync_authname": "mail1", "sync_password": SECRET}
    client = rig.cyrus.rolling(rig.to, **options)
    try:
        for number in range(3):
            with rig.cyrus.imap("anna") as imap:
                imap.append("INBOX", message("rolling%d" % number))
            client.drain()
        expect(client.running(), "it is still there", [client.process.output()])
    finally:
        client.stop()
    rig.whole("anna")


@case("PLAIN only on loopback with allowplaintext, checked against the same file")
def plain(rig):
    to = receiver(master=True, tcp=True, admins="mail1", failedloginpause="0", allowplaintext="yes")
    try:
        passwd(to, "mail1", SECRET)
        text = b"".join(Csync(("127.0.0.1", to.port)).banner)
        expect(b"PLAIN" in text and b"SCRAM-SHA-256" in text, "both are offered", [repr(text)])
        # Without SCRAM's plug-in a client has nothing else.
        relay = Relay(to.port)
        side = Login(rig.cyrus, to)
        side.begin()
        options = {"127_mechs": "PLAIN"}
        done = side.send(relay=relay, **options)
        relay.close()
        expect_equal(done.code, 0, "exit status: " + str(done))
        expect(b"AUTHENTICATE PLAIN" in relay.sent, "the mechanism", [repr(bytes(relay.sent[:120]))])
        side.whole("anna")
        side.refused(password="wrong-horse", **options)
    finally:
        to.stop()


@case("the UNIX socket serves cyrus without a password, and nobody else")
def unix(rig):
    rig.sync("-u", "anna")
    rig.whole("anna")
    knock = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(5)\n"
        "try:\n s.connect(sys.argv[1])\nexcept PermissionError:\n print('no way in'); sys.exit()\n"
        "print(s.recv(500).decode()); s.sendall(b'GET USER anna\\r\\n'); print(s.recv(500))\n"
    )
    as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]
    words = as_nobody + ["python3", "-c", knock]
    done = run_command(words + [rig.to.socket], cyrus=False)
    expect("BYE" in done.out and "MAILBOX" not in done.out, "master's socket: shown the door", str(done).splitlines())
    own = receiver()
    try:
        done = run_command(words + [own.socket], cyrus=False)
        expect("no way in" in done.out, "our own socket: no way in", str(done).splitlines())
    finally:
        own.stop()


run(setup, Rig.close)
