#!/usr/bin/env python3
"""restore over TLS to the real Cyrus and to Dovecot: STARTTLS where it is offered, TLS from the
first byte with imaps; with the right authority, name and date only, and no password before."""

import json
import os
import socket
import subprocess
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import dovecot, sandbox

USER = "anna"
OPTIONS = {"restore_authname": "admin", "restore_password": PASSWORD}
# Ways in, and which of them have a certificate that is not to be accepted.
GOOD = ("imap", "imaps", "csync")
BAD = ("imapother", "imapold", "imapsold", "csyncold")


class Authority:
    """A certificate authority, and what it signs, in a directory of its own."""

    def __init__(self, name="Test CA"):
        self.dir = temp_dir("cyrusrig-tls-")
        self.file = self.dir + "/ca.pem"
        self.key("ca")
        extension = "basicConstraints=critical,CA:TRUE"
        self.openssl("req", "-x509", "-key", "ca.key", "-out", "ca.pem", "-days", "30", "-subj", "/CN=" + name, "-addext", extension)

    def openssl(self, *words):
        done = subprocess.run(["openssl"] + list(words), cwd=self.dir, capture_output=True)
        if done.returncode != 0:
            raise RuntimeError("openssl %s: %s" % (" ".join(words), done.stderr.decode()))
        return done.stdout.decode().strip()

    def key(self, name):
        self.openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", name + ".key")

    def sign(self, name, host, days=30):
        """Paths of a certificate and its key."""
        self.key(name)
        sandbox.write(self.dir + "/names", "subjectAltName=%s\n" % host)
        self.openssl("req", "-new", "-key", name + ".key", "-out", name + ".csr", "-subj", "/CN=server")
        words = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", str(days), "-extfile", "names"]
        self.openssl("x509", "-req", "-in", name + ".csr", "-out", name + ".pem", *words)
        for end in (".pem", ".key"):
            sandbox.owned("%s/%s%s" % (self.dir, name, end))
        return "%s/%s.pem" % (self.dir, name), "%s/%s.key" % (self.dir, name)

    def hashed(self):
        """A directory with its certificate under the name OpenSSL looks for."""
        path = self.dir + "/hashed"
        os.makedirs(path, exist_ok=True)
        name = self.openssl("x509", "-in", "ca.pem", "-noout", "-hash") + ".0"
        if not os.path.exists(path + "/" + name):
            os.symlink(self.file, path + "/" + name)
        return path


class Tap:
    """Passes on what comes to its port, and keeps what the client said."""

    def __init__(self, port):
        self.to = port
        self.heard = b""
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                ours, _peer = self.sock.accept()
            except OSError:
                return
            theirs = socket.create_connection(("127.0.0.1", self.to))
            for one, two, keep in ((ours, theirs, True), (theirs, ours, False)):
                threading.Thread(target=self.copy, args=(one, two, keep), daemon=True).start()

    def copy(self, one, two, keep):
        try:
            while True:
                piece = one.recv(65536)
                if not piece:
                    break
                if keep:
                    self.heard += piece
                two.sendall(piece)
        except OSError:
            pass
        for end in (one, two):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def plain(self):
        """The lines before TLS, which begins with a byte 22 and a version 3."""
        return self.heard.split(b"\x16\x03", 1)[0].decode("latin-1").splitlines()

    def close(self):
        self.sock.close()


def start():
    if RECEIVER != "ours":
        skip_all("only for our own server")
    authority = Authority()
    kept = {
        "": authority.sign("good", "DNS:localhost"),
        "other": authority.sign("other", "DNS:mail.example.org,DNS:*.example.net"),
        "old": authority.sign("old", "DNS:localhost", -1),
    }
    programs = {"imap": "imapd", "imaps": "imapd -s", "csync": "sync_server"}
    ports, options, services = {}, {}, []
    for name in GOOD + BAD:
        ports[name] = free_port()
        way = next(w for w in ("imaps", "imap", "csync") if name.startswith(w))
        service = "tls" + name
        services.append((service, programs[way], ports[name]))
        cert, key = kept[name[len(way) :]]
        options.update({service + "_tls_server_cert": cert, service + "_tls_server_key": key})
        # As on a server in the open: no password in clear before TLS.
        options[service + "_allowplaintext"] = "no"
    rig = start_rig(to_options=OPTIONS, services=services, **options)
    rig.authority, rig.ports = authority, ports
    rig.wrong, rig.twin = Authority("Other CA"), Authority()
    rig.cyrus.user(USER)
    with rig.cyrus.imap(USER) as imap:
        imap.fill("INBOX", [message(n) for n in range(3)] + [message("big", 3000000)])
    rig.sync("-u", USER)
    return rig


def restore(rig, url, *words, **settings):
    settings = settings or {"tls_server_ca_file": rig.authority.file}
    conf = rig.to.conf + ".tls"
    with open(rig.to.conf) as file:
        lines = file.read() + "".join("%s: %s\n" % pair for pair in settings.items())
    sandbox.write(conf, lines)
    return run_command([rig.to.path, "-C", conf, "restore", "-j", "--to", url, *words, USER])


def url(name, port, host="localhost"):
    way = next(w for w in ("imaps", "imap", "csync") if name.startswith(w))
    return "%s://%s:%d" % (way, host, port)


def brought(done):
    expect_equal(done.code, 0, "status: %s" % done)
    boxes = [box for user in json.loads(done.out)["users"] for box in user["mailboxes"]]
    return sum(box["brought"] for box in boxes)


@case("what was deleted is back over TLS, and the password went over nothing else", only=("ours",))
def works(rig):
    for name in GOOD:
        with rig.cyrus.imap(USER) as imap:
            were = sorted(m["sha1"] for m in imap.messages("INBOX").values())
            imap.select("INBOX")
            imap.expunge("1:*")
        tap = Tap(rig.ports[name])
        try:
            done = restore(rig, url(name, tap.port), "--in-place")
            expect_equal((brought(done), len(were)), (4, 4), "messages brought over " + name)
            with rig.cyrus.imap(USER) as imap:
                got = sorted(m["sha1"] for m in imap.messages("INBOX").values())
            expect_equal(got, were, "messages there over " + name)
            plain = {"imap": ["A1 CAPABILITY", "A2 STARTTLS"], "csync": ["STARTTLS"], "imaps": []}[name]
            expect_equal(tap.plain(), plain, "said before TLS over " + name)
            for word in (b"AUTHENTICATE", b"LOGIN", b"APPLY", PASSWORD.encode(), b"AGFkbWlu"):
                expect(word not in tap.heard, "%r is not to be heard over %s" % (word, name))
        finally:
            tap.close()


@case("the authority may be in a directory, or beside others in one file", only=("ours",))
def authorities(rig):
    both = sandbox.write(rig.authority.dir + "/both.pem", open(rig.wrong.file).read() + open(rig.authority.file).read())
    for setting in ({"tls_server_ca_dir": rig.authority.hashed()}, {"tls_server_ca_file": both}):
        brought(restore(rig, url("imaps", rig.ports["imaps"]), "--in-place", **setting))
    both = {"tls_server_ca_file": rig.wrong.file, "tls_server_ca_dir": rig.authority.hashed()}
    brought(restore(rig, url("csync", rig.ports["csync"]), "--in-place", **both))


def refused(rig, name, wanted, host="localhost", **settings):
    """A restore that must not come about, nor say anything of a login."""
    tap = Tap(rig.ports[name])
    try:
        done = restore(rig, url(name, tap.port, host), "--in-place", **settings)
        said = "%s, %s: %s" % (name, host, done)
        expect_equal(done.code, 78, "status of " + said)
        expect(wanted in done.err, "the reason is told: %s" % wanted, [said])
        expect("TLS with " + host in done.err, "the host is named", [said])
        for word in (b"AUTHENTICATE", b"LOGIN", b"AGFkbWlu"):
            expect(word not in tap.heard, "%r is not to be heard over %s" % (word, name))
    finally:
        tap.close()


@case("a wrong authority, name or date is refused before any login", only=("ours",))
def wrong(rig):
    for name in GOOD:
        settings = [{"tls_server_ca_file": rig.wrong.file}, {"tls_server_ca_dir": rig.wrong.hashed()}]
        # One of the same name, and the system's.
        settings.append({"tls_server_ca_file": rig.twin.file})
        if os.path.exists("/etc/ssl/certs/ca-certificates.crt"):
            settings.append({"debug": "no"})
        for setting in settings:
            refused(rig, name, "an authority that is not trusted: see tls_server_ca_file", **setting)
        refused(rig, name, "is for another name: ", host="127.0.0.1")
    refused(rig, "imapother", "is for another name: ")
    for name in ("imapold", "imapsold", "csyncold"):
        refused(rig, name, "its certificate has expired")
    none = rig.authority.dir + "/none.pem"
    refused(rig, "imap", "cannot read certificates: " + none, tls_server_ca_file=none)
    refused(rig, "imap", "no certificate in it: ", tls_server_ca_file=rig.authority.dir + "/names")


class Liar:
    """Says the next of its lines whenever it hears one; what it heard."""

    def __init__(self, *says):
        self.heard = b""
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, args=(says,), daemon=True)
        self.thread.start()

    def serve(self, says):
        peer, _name = self.sock.accept()
        peer.settimeout(20)
        try:
            for text in says:
                peer.sendall(text)
                self.heard += peer.recv(65536)
            while True:
                piece = peer.recv(65536)
                if not piece:
                    break
                self.heard += piece
        except OSError:
            pass
        peer.close()
        self.sock.close()


@case("nothing goes on in plain text when STARTTLS fails", only=("ours",))
def never(rig):
    offered = b"* CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN\r\nA1 OK\r\n"
    banner = b"* SASL PLAIN\r\n* STARTTLS\r\n* OK localhost Cyrus\r\n"
    for way, code, wanted, says in (
        ("imap", 65, "is refused: NO not today", (b"* OK hi\r\n", offered, b"A2 NO not today\r\n")),
        ("imap", 65, "went on in plain text", (b"* OK hi\r\n", offered, b"A2 OK go\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n")),
        ("imap", 65, "no TLS comes about", (b"* OK hi\r\n", offered, b"A2 OK go\r\n", b"A3 OK what?\r\n")),
        ("csync", 65, "is refused: NO not today", (banner, b"NO not today\r\n")),
        ("csync", 65, "went on in plain text", (banner, b"OK go\r\n* SASL PLAIN\r\n* OK\r\n")),
        ("csync", 65, "no TLS comes about", (banner, b"OK go\r\n", banner)),
        ("imaps", 65, "no TLS comes about", (b"* OK hi\r\n",)),
    ):
        liar = Liar(*says)
        done = restore(rig, "%s://127.0.0.1:%d" % (way, liar.port), "--in-place")
        liar.thread.join(30)
        expect_equal(done.code, code, "status: %s" % done)
        expect(wanted in done.err, "told: " + wanted, [done.err])
        for word in (b"AUTHENTICATE", b"LOGIN", b"AGFkbWlu", PASSWORD.encode()):
            expect(word not in liar.heard, "%r is not to be heard over %s" % (word, way), [repr(liar.heard)])


@case("Dovecot over STARTTLS, by one who acts for the user", only=("ours",))
def other(rig):
    if dovecot.problem():
        raise Skip(dovecot.problem())
    cert, key = rig.authority.sign("dovecot", "IP:127.0.0.1")
    more = "ssl = yes\nssl_cert = <%s\nssl_key = <%s\ndisable_plaintext_auth = yes\n" % (cert, key)
    server = dovecot.Dovecot([USER], more=more)
    tap = Tap(server.port)
    try:
        words = ("--what", "mail", "--in-place")
        done = restore(rig, "imap://127.0.0.1:%d" % tap.port, *words)
        expect_equal(brought(done), 4, "messages brought; " + server.said())
        with server.imap(USER) as imap:
            expect_equal(len(imap.messages("INBOX")), 4, "messages there")
        expect_equal(tap.plain(), ["A1 CAPABILITY", "A2 STARTTLS"], "said before TLS")
        for word in (b"AUTHENTICATE", b"LOGIN", b"APPEND"):
            expect(word not in tap.heard, "%r is not to be heard" % word)
        done = restore(rig, "imap://localhost:%d" % tap.port, *words)
        expect_equal(done.code, 78, "status with another name: %s" % done)
        expect("is for another name: " in done.err and "TLS with localhost" in done.err, "and why", [done.err])
    finally:
        tap.close()
        server.stop()


run(start, Rig.close)
