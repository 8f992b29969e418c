#!/usr/bin/env python3
"""Broken and hostile input: every command gets one clear answer, nothing is stored that
should not be, and the server goes on as before, with its memory and its logs in order."""

import base64
import fcntl
import gzip
import hashlib
import os
import random
import re
import socket
import subprocess
import sys
import time
import zlib

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import csync, sandbox, tap
from cyrusrig.dlist import Atom, File, encode
from cyrusrig.receiver import Ours

if RECEIVER != "ours":
    skip_all("about our receiver only")
why = sandbox.problem()
if why:
    skip_all(why)

# Resident memory, in KiB, that the server may have at rest and may ever have had.
REST = 200 << 10
PEAK = 450 << 10


class Server(Ours):
    """On a UNIX socket and on TCP, and able to say how it is."""

    sound = {}
    log_at = os.path.getsize(sandbox._LOG_FILE) if os.path.exists(sandbox._LOG_FILE) else 0

    def start(self):
        self.tcp = ("127.0.0.1", free_port())
        self.process = sandbox.Process(
            sandbox.as_cyrus(
                [self.path, "serve", "-C", self.conf, "--socket", self.socket]
                + ["--listen", "%s:%d" % self.tcp]
            ),
            self.dir + "/log/serve",
        )
        self.wait_ready()
        wait_for(lambda: sandbox.listening(self.tcp), 10, "TCP socket")

    def logged(self):
        """Lines in syslog since the last call; others' lines may be many."""
        try:
            with open(sandbox._LOG_FILE, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(self.log_at if self.log_at <= size else 0)
                data = file.read(64 << 20)
                self.log_at = file.tell()
        except OSError:
            return []
        return [line for line in data.decode(errors="replace").splitlines() if self.tag + "/" in line]

    def status(self, field):
        with open("/proc/%d/status" % self.process.pid) as status:
            return int(re.search(field + r":\s+(\d+)", status.read()).group(1))

    def descriptors(self):
        return len(os.listdir("/proc/%d/fd" % self.process.pid))

    def spool(self):
        """All files of the partition, indexes left out: {path: bytes}."""
        found = {}
        for folder, _dirs, files in os.walk(self.lines["backuppartition-default"]):
            for name in files:
                if ".index" not in name:
                    with open(os.path.join(folder, name), "rb") as file:
                        found[os.path.join(folder, name)] = file.read()
        return found

    def stored(self):
        """What could change when something is stored."""
        return self.data_files(), {path: len(data) for path, data in self.spool().items()}

    def whole(self):
        """Whether every log is sound. A session that has lost its client may still be
        writing what it was told, so only what stays broken counts."""
        for path, data in self.spool().items():
            if self.sound.get(path) == hash(data):
                continue
            try:
                logfile.lines(path)
                logfile.bodies(path)
            except (logfile.Broken, zlib.error) as why:
                self.broken = str(why)
                return False
            self.sound[path] = hash(data)
        return True

    def check(self):
        """It answers, its logs are sound, nothing lies where it should not."""
        expect(self.process.running(), "the server has ended", self.process.output().splitlines()[-20:])
        panics = [line for line in self.process.output().splitlines() + self.logged() if "panic" in line]
        expect(not panics, "a panic", panics[:20])
        with Talk(self) as talk:
            expect_equal(talk.ask(b"NOOP"), b"OK Noop completed", "NOOP")
        end = time.monotonic() + 10
        while not self.whole():
            expect(time.monotonic() < end, "a broken log: " + self.broken)
            time.sleep(0.1)
        for path in self.spool():
            expect(
                re.fullmatch(r"[A-Za-z]/[A-Za-z0-9@+=-][A-Za-z0-9@+.=-]*_[A-Za-z0-9]{6}", os.path.relpath(path, self.lines["backuppartition-default"])),
                "a strange file: %r" % path,
            )
            expect(len(os.path.basename(path)) < 240, "a long name")
        for folder, _dirs, files in os.walk(self.dir):
            for name in files:
                where = os.path.relpath(os.path.join(folder, name), self.dir)
                if not where.startswith(("tree/backup/", "full/")):
                    expect(
                        where in ("imapd.conf", "cyr_backup", "passwd", "passwd.lock", "log/serve", "sock/backup", "sasldb")
                        or where.startswith("tree/conf/backups.db"),
                        "a file outside the partition: " + where,
                    )
        expect(self.status("VmRSS") < REST, "memory at rest: %d KiB" % self.status("VmRSS"))
        expect(self.status("VmHWM") < PEAK, "memory at its peak: %d KiB" % self.status("VmHWM"))


class Talk:
    """A raw connection."""

    def __init__(self, to, tcp=False, timeout=60):
        self.sock = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        self.sock.settimeout(timeout)
        self.sock.connect(to.tcp if tcp else to.socket)
        self.data = b""
        self.inflater = self.deflater = None
        self.banner = []
        while not self.banner or not self.banner[-1].startswith((b"* OK", b"BYE")):
            self.banner.append(self.line())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, data):
        """Whether the server took all of it."""
        if self.deflater:
            data = self.deflater.compress(data) + self.deflater.flush(zlib.Z_SYNC_FLUSH)
        try:
            self.sock.sendall(data)
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False

    def more(self):
        try:
            piece = self.sock.recv(65536)
        except ConnectionResetError:
            piece = b""
        if not piece:
            return False
        self.data += self.inflater.decompress(piece) if self.inflater else piece
        return True

    def line(self):
        """The next line; None at the end."""
        while b"\n" not in self.data:
            if not self.more():
                return None
        line, self.data = self.data.split(b"\n", 1)
        return line.rstrip(b"\r")

    def rest(self):
        while self.more():
            pass
        rest, self.data = self.data, b""
        return rest

    def ask(self, data):
        """The final line of the answer to one command."""
        self.send(data + b"\r\n")
        return self.final()

    def final(self):
        while True:
            line = self.line()
            if line is None or not line.startswith((b"* ", b"+ ")):
                return line

    def apply(self, name, value):
        return self.ask(b"APPLY " + name.encode() + b" " + encode(value))

    def get(self, name, value):
        return self.ask(b"GET " + name.encode() + b" " + encode(value))

    def read(self, verb, value):
        """The answer by a dlist reader: (name, value) of each data line. Raises Refused."""
        self.send(verb.encode() + b" " + encode(value) + b"\r\n")
        reader = object.__new__(Csync)
        reader.sock, reader.wire = self.sock, csync._Wire(self.sock)
        lines = reader.answer()
        expect_equal(bytes(reader.wire.data[reader.wire.at :]), b"", "something behind the answer")
        return lines

    def compress(self):
        expect_equal(self.ask(b"COMPRESS DEFLATE"), b"OK DEFLATE active", "COMPRESS")
        self.inflater = zlib.decompressobj(-15)
        self.deflater = zlib.compressobj(9, zlib.DEFLATED, -15)

    def login(self, user, password):
        plain = base64.b64encode(b"\0%s\0%s" % (user, password))
        return self.ask(b"AUTHENTICATE PLAIN " + plain)


def hostile(title, **options):
    """A case with the check of the server's health behind it."""

    def register(function):
        def run_and_check(to):
            function(to)
            to.check()

        case(title, **options)(run_and_check)
        return function

    return register


def guid(body):
    return hashlib.sha1(body).hexdigest()


def record(uid, body=b"", **changes):
    value = {
        "UID": uid,
        "MODSEQ": 2,
        "LAST_UPDATED": 1795439789,
        "FLAGS": [Atom(b"\\Seen")],
        "INTERNALDATE": 1795439789,
        "SIZE": len(body),
        "GUID": guid(body),
    }
    value.update(changes)
    return {k: v for k, v in value.items() if v != "absent"}


def box(user, records=(), **changes):
    value = {
        "UNIQUEID": "uniqueid-" + user,
        "MBOXNAME": "user." + user,
        "SYNC_CRC": 0,
        "SYNC_CRC_ANNOT": 0,
        "LAST_UID": 10,
        "HIGHESTMODSEQ": 20,
        "RECENTUID": 0,
        "RECENTTIME": 0,
        "LAST_APPENDDATE": 0,
        "POP3_LAST_LOGIN": 0,
        "UIDVALIDITY": 1795439789,
        "PARTITION": "default",
        "ACL": user + "\tlrs\t",
        "OPTIONS": "P",
        "RECORD": list(records),
    }
    value.update(changes)
    return {k: v for k, v in value.items() if v != "absent"}


def body(n, size=300):
    return (b"Subject: m%d\r\n\r\n" % n).ljust(size, b"x")


def files(*bodies):
    return [File("default", guid(b), b) for b in bodies]


def fill(to, user, count=3):
    """A user with an INBOX of a few messages."""
    with Talk(to) as talk:
        bodies = [body(n) for n in range(1, count + 1)]
        expect_equal(talk.get("USER", user), b"OK success", "GET USER")
        expect_equal(talk.apply("MESSAGE", files(*bodies)), b"OK success", "MESSAGE")
        value = box(user, [record(n + 1, b) for n, b in enumerate(bodies)])
        expect_equal(talk.apply("MAILBOX", value), b"OK success", "MAILBOX")
        expect_equal(talk.ask(b"EXIT"), b"OK Finished", "EXIT")


def live(to, user):
    """{uid: guid} of the user's INBOX as the log alone tells it."""
    state = logfile.state(to.data_file(user))
    return {uid: r["guid"] for uid, r in state["user." + user]["records"].items()}


def setup():
    to = Server(backup_lock_wait="2s", failedloginpause="0", backup_max_connections="300", backup_passwd_file="{configdirectory}/../../passwd")
    to.lines["backup_passwd_file"] = to.dir + "/passwd"
    to.stop()
    to.write_conf()
    to.start()
    for user in ("admin", "guest"):
        done = to.tool("passwd", user, stdin=b"secret\n")
        expect(done.code == 0, "passwd", [str(done)])
    fill(to, "anna")
    return to


def teardown(to):
    to.stop()


# -- one command ---------------------------------------------------------------


@hostile("unknown commands are BAD and the connection goes on")
def unknown(to):
    with Talk(to) as talk:
        for line in (b"HELO x", b"GETX a", b"GET", b"APPLY", b"\0NOOP", b"\xff\xfe", b"apply", b"*", b"%(A b)", b"RESTORE x"):
            answer = talk.ask(line)
            expect(answer and answer.startswith((b"BAD ", b"NO ")), "%r: %r" % (line, answer))
        expect_equal(talk.ask(b""), b"BAD Null command", "empty line")
        for line in (b"GET NONSENSE x", b"GET %(A b) x", b"APPLY NONSENSE %(A b)", b"GET UNIQUEIDS_X (a)", b"GET FETCH %(A b)"):
            answer = talk.ask(line)
            if answer.startswith(b"BAD"):
                expect_equal(talk.rest(), b"", "after BAD")
                talk = Talk(to)
            else:
                expect(answer.startswith(b"NO "), "%r: %r" % (line, answer))
        expect_equal(talk.ask(b"noop"), b"OK Noop completed", "NOOP")


@hostile("an IMAP client's first words get their tag back")
def imap_words(to):
    with Talk(to) as talk:
        expect(talk.ask(b"C01 CAPABILITY").startswith(b"C01 BAD "), "CAPABILITY")
        expect(talk.ask(b"Q01 LOGOUT").startswith(b"Q01 BAD "), "LOGOUT")
        expect_equal(talk.rest(), b"", "closed")


@hostile("lines over the limit are BAD, then closed")
def long_lines(to):
    before = to.stored()
    for head in (b"", b"NOOP ", b"FOO ", b"GET USER ", b"GET ", b"APPLY RESERVE ", b"APPLY MESSAGE ", b"APPLY MAILBOX ", b'GET USER "', b"APPLY SUB %(", b"APPLY MAILBOX %(RECORD (%(UID ", b"APPLY MESSAGE (%{"):
        with Talk(to) as talk:
            talk.send(head + b"x" * (3 << 20))
            answer = talk.rest()
            expect(answer.startswith(b"BAD ") and answer.count(b"\r\n") == 1, "%r: %r" % (head, answer[:200]))
    expect_equal(to.stored(), before, "what is stored")


@hostile("malformed dlist: BAD once, closed, nothing stored")
def malformed(to):
    before = to.stored()
    nested = b"(" * 40 + b"a" + b")" * 40
    some = guid(b"abc").encode()
    bad = [
        b")", b"%", b"%x", b'"abc', b"{5", b"{x}", b"{}", b"{-1}", b"{5}x", b"{99999999999999999999}", b"{99999999999}",
        b"a b", b"(a) b", b"%(K)", b"%(K v) x", b'%("a b" c)', b'%("" c)', b'%("K(" c)', b'%("K\\"V\\"" c)', b"%({2+}\r\nK\0 v)",
        b"%{default 00 3}\r\nabc", b"(%{default " + some + b" -3}\r\nabc)", b"(%{default " + some + b" 3}abc)",
        b"(%{default " + some + b" 3}\r\nabcd)", b"(%(A %{default " + some + b" 3}\r\nabc))", nested, b"%(K " + nested + b")",
        b"(a))", b"(a %{default 00 3})", b"%((a) b)", b"%(%(a) b)", b"%{" + b"p" * 2000 + b" " + some + b" 3}\r\nabc", b'"a\rb"',
    ]
    verbs = ["GET " + w for w in "USER META MAILBOXES FULLMAILBOX QUOTA ANNOTATION UNIQUEIDS FETCH_SIEVE".split()]
    verbs += ["APPLY " + w for w in "RESERVE MESSAGE MAILBOX SUB SEEN SIEVE QUOTA ANNOTATION UNMAILBOX UNUSER RENAME EXPUNGE NOSUCH".split()]
    for verb in verbs:
        for value in bad:
            with Talk(to) as talk:
                talk.send(verb.encode() + b" " + value + b"\r\nNOOP\r\n")
                # Where a list is open the server waits for its end.
                talk.sock.shutdown(socket.SHUT_WR)
                answer = talk.rest()
                expect(answer.startswith(b"BAD ") and answer.count(b"\r\n") == 1, "%s %r: %r" % (verb, value[:60], answer))
    # In the middle of a mailbox.
    whole = encode(box("malla", [record(1, b"")]))
    for at in range(0, len(whole), 3):
        with Talk(to) as talk:
            talk.send(b"APPLY MAILBOX " + whole[:at] + b"%x)\r\n" + whole[at:] + b"\r\n")
            talk.sock.shutdown(socket.SHUT_WR)
            answer = talk.rest()
            expect(b"OK" not in answer, "%r: %r" % (whole[:at][-40:], answer))
    expect_equal(to.stored(), before, "what is stored")


@hostile("values of the wrong kind: NO, and the connection goes on")
def wrong_kind(to):
    before = to.stored()
    with Talk(to) as talk:
        for verb, values in (
            ("GET USER", (None, [], {}, ["a"], "", {"USERID": "a"})),
            ("GET META", (None, [])),
            ("GET MAILBOXES", (None, "a", {}, [None], [[]], [""])),
            ("GET FULLMAILBOX", (None, [], {}, "")),
            ("GET QUOTA", (None, [], "")),
            ("GET FETCH_SIEVE", (None, [], "a", {"USERID": "a"}, {"USERID": None, "FILENAME": "x"})),
            ("APPLY RESERVE", (None, "a", [], {}, {"MBOXNAME": "a", "GUID": []}, {"MBOXNAME": [None], "GUID": []}, {"MBOXNAME": [], "GUID": ["zz"]}, {"MBOXNAME": ["user.a"], "GUID": None})),
            ("APPLY MESSAGE", (None, "a")),
            ("APPLY SUB", (None, "a", [], {}, {"USERID": "a"}, {"USERID": None, "MBOXNAME": "user.a"}, {"USERID": "a", "MBOXNAME": ["x"]})),
            ("APPLY SEEN", ({"USERID": "a", "UNIQUEID": "x"}, {"USERID": "a", "UNIQUEID": None, "LASTREAD": 1, "LASTUID": 1, "LASTCHANGE": 1, "SEENUIDS": "1"})),
            ("APPLY SIEVE", ({"USERID": "a", "FILENAME": "f", "LAST_UPDATE": 1}, {"USERID": "a", "FILENAME": "f", "LAST_UPDATE": "x", "CONTENT": "c"}, {"USERID": "a", "FILENAME": "f", "LAST_UPDATE": 10**20, "CONTENT": "c"}, {"USERID": "a", "FILENAME": b"\xff", "LAST_UPDATE": 1, "CONTENT": "c"})),
            ("APPLY QUOTA", ({}, {"ROOT": None}, {"ROOT": ["user.a"]})),
            ("APPLY ANNOTATION", ({}, {"MBOXNAME": "user.a"})),
            ("APPLY RENAME", ({}, {"OLDMBOXNAME": "user.a"}, {"OLDMBOXNAME": "user.nobody", "NEWMBOXNAME": "user.nobody2"})),
            ("APPLY UNMAILBOX", (None, [], {})),
            ("APPLY UNUSER", (None, [], {}, "")),
            ("APPLY EXPUNGE", ({}, {"MBOXNAME": "user.anna", "UNIQUEID": "x", "UID": "1"}, {"MBOXNAME": "user.anna", "UNIQUEID": "x", "UID": [1]})),
        ):
            for value in values:
                answer = talk.ask(verb.encode() + b" " + encode(value))
                expect(answer and answer.startswith(b"NO "), "%s %r: %r" % (verb, value, answer))
        expect(talk.ask(b"APPLY MAILBOX %()").startswith(b"NO "), "empty MAILBOX")
    expect_equal(to.stored(), before, "what is stored")


@hostile("asking about nobody answers OK and creates nothing")
def nobody(to):
    before = to.stored()
    with Talk(to) as talk:
        for verb, value in (("USER", "nobody"), ("META", "nobody"), ("MAILBOXES", ["user.nobody", "shared.nobody"]), ("QUOTA", "user.nobody"), ("ANNOTATION", "user.nobody"), ("FETCH_SIEVE", {"USERID": "nobody", "FILENAME": "x"})):
            talk.send(b"GET " + verb.encode() + b" " + encode(value) + b"\r\n")
            expect_equal(talk.line(), b"OK success", verb)
        expect_equal(talk.get("FULLMAILBOX", "user.nobody"), b"NO IMAP_MAILBOX_NONEXISTENT No Such Mailbox", "FULLMAILBOX")
        for verb, value in (("UNUSER", "nobody"), ("UNMAILBOX", "user.nobody"), ("UNSUB", {"USERID": "nobody", "MBOXNAME": "user.x"}), ("UNSIEVE", {"USERID": "nobody", "FILENAME": "x"}), ("UNQUOTA", "user.nobody"), ("EXPUNGE", {"MBOXNAME": "user.nobody", "UNIQUEID": "x", "UID": [1]}), ("RESERVE", {"PARTITION": "default", "MBOXNAME": ["user.nobody"], "GUID": [guid(b"x")]})):
            expect_equal(talk.apply(verb, value), b"OK success", verb)
    expect_equal(to.stored(), before, "what is stored")


NAMES = [
    b"../../etc/passwd", b"user.../../../x", b"/etc/passwd", b"user./etc/passwd", b"user.a/../../../b", b"a\0b", b"user.a\0b", b"\0",
    b"x" * 5000, b"user." + b"x" * 5000, b"user." + b"x" * 250, b"user." + b"/" * 250, b"user." + "\u00e9".encode() * 127, b"shared." + b"/" * 900, b"/" * 1000,
    b"user.a\x01b", b"user.\x7f", b"user.a\r\nOK success\r\nb", b"\r\n", b"%SHARED", b"%SHARED//", b"%x", b"user.%x", b"user.%SHARED/x", b".", b"..", b"...", b".hidden", b"user..hidden",
    b"user.", b"user", b"user.^hidden", b"user.^^^/^^^/x", b"!", b"!user.a", b"dom!", b"dom!user", b"../x!user.a", b"a!b!c", b"@", b"a@", b"@a", b"a@b@c", b"user.a@b",
    b"\xff\xfe", b"user.\xc3", b"~root", b"-rf", b"user.-A", b"*", b"?", b"user.$(id)", b"user.`id`", b"NIL", b"user.NIL", b"DELETED.user.x.zz", b"DELETED.user.x.FFFFFFFFFFFFFFFF", b"DELETED.user", b"DELETED",
    b"user.x_AbCdEf", b"user.x=2F", b"user.backups^db", b" ", b"user. ", b'"', b"\\", b"user.a\\b", b"{5}", b"(", b")",
]


@hostile("hostile names in every command: an answer, and no file but in the partition")
def names(to):
    with Talk(to) as talk:
        for name in NAMES:
            plain = name[5:] if name.startswith(b"user.") else name
            ident = "id" + guid(name)
            commands = [
                ("GET USER", plain), ("GET META", plain), ("GET MAILBOXES", [name, "user.anna"]), ("GET FULLMAILBOX", name), ("GET QUOTA", name), ("GET ANNOTATION", name),
                ("GET FETCH_SIEVE", {"USERID": plain, "FILENAME": name}),
                ("APPLY RESERVE", {"PARTITION": name, "MBOXNAME": [name], "GUID": [guid(b"none")]}),
                ("APPLY MAILBOX", box("x", MBOXNAME=name, UNIQUEID=ident)),
                ("APPLY SUB", {"USERID": plain, "MBOXNAME": name}), ("APPLY SUB", {"USERID": "names", "MBOXNAME": name}),
                ("APPLY SEEN", {"USERID": plain, "UNIQUEID": name, "LASTREAD": 1, "LASTUID": 1, "LASTCHANGE": 1, "SEENUIDS": "1"}),
                ("APPLY SIEVE", {"USERID": plain, "FILENAME": name, "LAST_UPDATE": 1, "CONTENT": "keep;"}), ("APPLY SIEVE", {"USERID": "names", "FILENAME": name, "LAST_UPDATE": 1, "CONTENT": "keep;"}),
                ("APPLY ACTIVATE_SIEVE", {"USERID": "names", "FILENAME": name}),
                ("APPLY QUOTA", {"ROOT": name, "STORAGE": 5}), ("APPLY ANNOTATION", {"MBOXNAME": name, "ENTRY": name, "USERID": name, "VALUE": name}),
                ("APPLY RENAME", {"OLDMBOXNAME": name, "NEWMBOXNAME": "user.names.y", "PARTITION": name}),
                ("APPLY RENAME", {"OLDMBOXNAME": "user.names.y", "NEWMBOXNAME": name, "PARTITION": "default"}),
                ("APPLY MAILBOX", {"UNIQUEID": ident + "i", "MBOXNAME": name, "MBOXTYPE": "i", "HIGHESTMODSEQ": 1}),
                ("APPLY EXPUNGE", {"MBOXNAME": name, "UNIQUEID": ident, "UID": [1]}),
                ("GET USER", plain), ("GET USER", "names"),
                ("APPLY UNSUB", {"USERID": plain, "MBOXNAME": name}), ("APPLY UNMAILBOX", name), ("APPLY UNUSER", plain),
            ]
            for verb, value in commands:
                # Through the dlist reader: a name in an answer must not pass for a line.
                try:
                    talk.read(verb, value)
                except Refused as why:
                    expect(str(why).startswith("NO ") and "\r" not in str(why), "%s %r: %s" % (verb, name[:60], why))
                    expect(not re.search("IOERROR|I/O error|database|Internal|damaged", str(why)), "%s %r: %s" % (verb, name[:60], why))
    for key in to.data_files():
        expect("\0" not in key and len(key) < 1100, "key %r" % key)


@hostile("hostile UNIQUEID, PARTITION, MBOXTYPE and keys")
def heads(to):
    with Talk(to) as talk:
        for ident in (b"", b"x" * 5000, b"a b", b"a\0b", b"\xff", None, [], b"a\r\nb"):
            expect(talk.apply("MAILBOX", box("heads", UNIQUEID=ident)).startswith(b"NO IMAP_PROTOCOL"), "UNIQUEID %r" % (ident,))
        for key in ("LAST_UID", "HIGHESTMODSEQ", "UIDVALIDITY", "PARTITION", "ACL", "OPTIONS", "RECORD", "UNIQUEID", "MBOXNAME"):
            expect(talk.apply("MAILBOX", box("heads", **{key: "absent"})).startswith(b"NO IMAP_PROTOCOL"), "without " + key)
        for key, value in (("LAST_UID", -1), ("LAST_UID", "x"), ("HIGHESTMODSEQ", 2**64), ("UIDVALIDITY", None), ("PARTITION", []), ("ACL", {})):
            expect(talk.apply("MAILBOX", box("heads", **{key: value})).startswith(b"NO IMAP_PROTOCOL"), "%s %r" % (key, value))
        for n, ident in enumerate((b"../../x", b"/etc/passwd", b"%s%n", b"'; DROP TABLE mailbox; --".replace(b" ", b"_"))):
            expect_equal(talk.apply("MAILBOX", box("heads", UNIQUEID=ident, MBOXNAME="user.heads.%d" % n)), b"OK success", "UNIQUEID %r" % ident)
        for n, partition in enumerate((b"../x", b"", b"\0", b"/etc", b"x" * 3000)):
            for _ in range(2):
                expect_equal(talk.apply("MAILBOX", box("heads", UNIQUEID="p%d" % n, MBOXNAME="user.heads.p%d" % n, PARTITION=partition)), b"OK success", "PARTITION %r" % partition)
        for kind in (b"e", b"c", b"\xff", b"x" * 2000, None, b"r"):
            answer = talk.apply("MAILBOX", box("heads", UNIQUEID="kind", MBOXNAME="user.heads.kind", MBOXTYPE=kind))
            expect(answer.startswith((b"OK", b"NO ")), "MBOXTYPE %r: %r" % (kind, answer))
        for key in ("LAST_UID", "HIGHESTMODSEQ", "UIDVALIDITY", "SYNC_CRC", "SYNC_CRC_ANNOT", "SINCE_MODSEQ", "RECENTTIME", "XCONVMODSEQ"):
            for value in (0, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1):
                answer = talk.apply("MAILBOX", box("heads", UNIQUEID="n", MBOXNAME="user.heads.n", **{key: value}))
                expect(answer.startswith((b"OK", b"NO IMAP_SYNC_CHANGED")), "%s %d: %r" % (key, value, answer))
        # Of equal keys the first counts; what follows RECORD counts too.
        value = encode(box("heads", UNIQUEID="twice", MBOXNAME="user.heads.twice"))
        value = value[:-1] + b" MBOXNAME user.victim UNIQUEID other ACL none LATER 1)"
        for _ in range(2):
            expect_equal(talk.ask(b"APPLY MAILBOX " + value), b"OK success", "keys twice")
        expect(talk.ask(b"APPLY MAILBOX " + value[:-1] + b" RECORD ())").startswith(b"BAD"), "RECORD twice")
    expect("victim" not in to.data_files(), "the second MBOXNAME counted")
    with Talk(to) as talk:
        size = len(to.spool()[to.data_file("heads")])
        value = encode(box("heads", UNIQUEID="late", MBOXNAME="user.heads.late", ACL="absent"))[:-1] + b" ACL anna)"
        for _ in range(3):
            expect_equal(talk.ask(b"APPLY MAILBOX " + value), b"OK success", "ACL behind RECORD")
        expect_equal(talk.ask(b"EXIT"), b"OK Finished", "EXIT")
    boxes = [name for _t, verb, v in logfile.lines(to.data_file("heads")) if verb == "MAILBOX" for name in [v["MBOXNAME"]]]
    expect_equal(boxes.count(b"user.heads.late"), 1, "lines of the mailbox whose ACL is behind RECORD")


@hostile("RECORDs with bad fields are refused and change nothing")
def records(to):
    fill(to, "recs")
    before = to.stored()
    good = record(4, body(1))
    bad = [
        [record(0)], [record(2**32)], [record(2**64)], [record(-1)], [record("x")], [record(4), record(4)], [record(5), record(4)],
        [None], ["x"], [[]], [{}], "x", {"UID": 1},
    ]
    for key in ("UID", "MODSEQ", "LAST_UPDATED", "FLAGS", "INTERNALDATE", "SIZE", "GUID"):
        bad += [[dict(good, **{key: v})] for v in (None, [[]], {}, b"", b"\xff", -1, 2**70) if not (key == "FLAGS" and v == [[]])]
        bad.append([record(4, body(1), **{key: "absent"})])
    bad += [[dict(good, ANNOTATIONS="x")], [dict(good, GUID="zz" * 20)], [dict(good, GUID="ab" * 19)]]
    with Talk(to) as talk:
        for value in bad:
            answer = talk.apply("MAILBOX", box("recs", value, HIGHESTMODSEQ=30))
            if answer.startswith(b"BAD"):
                expect_equal(talk.rest(), b"", "after BAD")
                talk = Talk(to)
            else:
                expect(answer.startswith(b"NO IMAP_PROTOCOL"), "%r: %r" % (value, answer))
    expect_equal(to.stored(), before, "what is stored")
    # Odd but legal: kept and told as it came.
    with Talk(to) as talk:
        odd = [record(n, body(n), FLAGS=[Atom(b"\\Seen"), "x" * 1500, "a b", "\u00ff", "NIL", Atom(b"\\Expunged{5}")], INTERNALDATE=2**64 - 5, MODSEQ=2**63 + n, SIZE=300, EXTRA=[{"A": ["b"]}]) for n in (1, 2, 3)]
        for _ in range(2):
            expect_equal(talk.apply("MAILBOX", box("recs", odd, HIGHESTMODSEQ=2**63 + 5)), b"OK success", "odd records")
        expect_equal(talk.ask(b"EXIT"), b"OK Finished", "EXIT")
    expect_equal(live(to, "recs"), {n: guid(body(n)) for n in (1, 2, 3)}, "INBOX")


@hostile("UIDs said twice in EXPUNGE count once")
def expunge(to):
    fill(to, "expa")
    with Talk(to) as talk:
        value = {"MBOXNAME": "user.expa", "UNIQUEID": "uniqueid-expa", "UID": [2, 2, 1, 2, 2**32, 0, "x"]}
        for _ in range(2):
            expect_equal(talk.apply("EXPUNGE", value), b"OK success", "EXPUNGE")
        expect_equal(talk.ask(b"EXIT"), b"OK Finished", "EXIT")
    last = [v for _t, name, v in logfile.lines(to.data_file("expa")) if name == "MAILBOX"]
    expect_equal(len(last), 2, "MAILBOX lines")
    expect_equal([r["UID"] for r in last[-1]["RECORD"]], [b"1", b"2"], "UIDs of the last")
    with Talk(to) as talk:
        # The server's sums of what is left must agree with ours: no resync is asked for.
        value = box("expa", [record(3, body(3), MODSEQ=21)], HIGHESTMODSEQ=21, SINCE_MODSEQ=20)
        expect_equal(talk.apply("MAILBOX", value), b"OK success", "MAILBOX behind it")


@hostile("lists of 100,000 elements")
def long_lists(to):
    fill(to, "long")
    began = time.monotonic()
    guids = [guid(b"%d" % n) for n in range(100000)]
    with Talk(to) as talk:
        talk.send(b"APPLY RESERVE " + encode({"PARTITION": "default", "MBOXNAME": ["user.long"], "GUID": guids}) + b"\r\n")
        missing = talk.line()
        expect(missing.startswith(b"* MISSING (") and missing.count(b" ") == 100001, "MISSING: %d" % missing.count(b" "))
        expect_equal(talk.final(), b"OK success", "RESERVE")
        for value in (["user.long"] * 100000, ["user.u%d" % n for n in range(100000)]):
            expect_equal(talk.get("MAILBOXES", value), b"OK success", "GET MAILBOXES")
        expect(talk.apply("SUB", {"USERID": "long", "MBOXNAME": guids}).startswith(b"NO "), "SUB")
        expect_equal(talk.apply("EXPUNGE", {"MBOXNAME": "user.long", "UNIQUEID": "uniqueid-long", "UID": list(range(1000, 101000))}), b"OK success", "EXPUNGE")
        talk.get("USER", "long")
        flags = record(4, body(1), FLAGS=guids)
        expect_equal(talk.apply("MAILBOX", box("long", [record(n, body(n)) for n in (1, 2, 3)] + [flags], HIGHESTMODSEQ=21)), b"OK success", "FLAGS")
        boxes = [b"K%d v" % n for n in range(100000)]
        expect_equal(talk.ask(b"APPLY QUOTA %(ROOT user.long " + b" ".join(boxes) + b")"), b"OK success", "QUOTA")
        many = [record(n, b"") for n in range(1, 100001)]
        answer = talk.apply("MAILBOX", box("long", many, MBOXNAME="user.long.many", UNIQUEID="many", LAST_UID=100000, HIGHESTMODSEQ=100001))
        expect_equal(answer, b"NO IMAP_SYNC_CHANGED Changed since last sync", "MAILBOX without its bodies")
    diag("%.1f s" % (time.monotonic() - began))
    expect(time.monotonic() - began < 60, "it took too long")


@hostile("nesting to the limit is stored and read back, beyond it is BAD")
def nesting(to):
    for depth in range(14, 24):
        nested = b"%(A " * depth + b"v" + b")" * depth
        with Talk(to) as talk:
            for command in (b"APPLY QUOTA %(ROOT user.deep B " + nested + b")", b"APPLY SUB %(USERID deep MBOXNAME user.x B " + nested + b")"):
                answer = talk.ask(command)
                if answer is None or answer.startswith(b"BAD"):
                    talk = Talk(to)
                else:
                    expect(answer.startswith((b"OK", b"NO IMAP_PROTOCOL")), "depth %d: %r" % (depth, answer))
            talk.ask(b"EXIT")
    to.stop()
    to.drop_index("deep")
    to.start()
    with Talk(to) as talk:
        expect_equal(talk.get("USER", "deep"), b"OK success", "GET USER after a new index")


# -- bodies --------------------------------------------------------------------


@hostile("a message that does not match its GUID is refused with those beside it")
def wrong_guid(to):
    for user in ("guida", "guidb"):
        fill(to, user)
        before = to.stored()
        with Talk(to) as talk:
            if user == "guida":
                talk.get("USER", user)
            wrong = [File("default", guid(body(10)), body(10)), File("default", guid(body(11)), body(12)), File("default", guid(body(13)), body(13))]
            expect(talk.apply("MESSAGE", wrong).startswith(b"NO IMAP_PROTOCOL"), "wrong GUID")
            answer = talk.apply("MAILBOX", box(user, [record(n, body(n)) for n in (1, 2, 3)] + [record(4, body(11))], HIGHESTMODSEQ=21))
            expect_equal(answer, b"NO IMAP_SYNC_CHANGED Changed since last sync", "MAILBOX that refers to it")
            # It is to be sent as a whole now, and is taken when its body comes.
            expect_equal(talk.apply("MESSAGE", files(body(11))), b"OK success", "MESSAGE")
            expect_equal(talk.apply("MAILBOX", box(user, [record(n, body(n)) for n in (1, 2, 3)] + [record(4, body(11))], HIGHESTMODSEQ=21)), b"OK success", "whole")
        expect_equal(live(to, user)[4], guid(body(11)), "message 4")
        expect(guid(body(10)) not in logfile.bodies(to.data_file(user)), "an unreferred body stayed")
        expect(to.stored() != before, "something is stored")


@hostile("odd messages: empty, NIL, twice, of another size than its RECORD says")
def odd_messages(to):
    with Talk(to) as talk:
        talk.get("USER", "odd")
        expect_equal(talk.apply("MESSAGE", []), b"OK success", "none")
        expect_equal(talk.apply("MESSAGE", [None]), b"OK success", "NIL")
        expect_equal(talk.apply("MESSAGE", files(b"") + [None] + files(b"", body(2), body(2))), b"OK success", "empty, NIL, twice")
        value = box("odd", [record(1, b""), record(2, body(2), SIZE=7), record(3, b"")])
        expect_equal(talk.apply("MAILBOX", value), b"OK success", "MAILBOX")
        expect_equal(talk.ask(b"EXIT"), b"OK Finished", "EXIT")
    expect_equal(logfile.bodies(to.data_file("odd")), {guid(b""): 0, guid(body(2)): 300}, "bodies")


@hostile("a body longer than can be: the rest is read, then closed with the client")
def huge_body(to):
    fill(to, "huge")
    before = to.stored()
    for size in (2**63, 2**64 - 1, 2**64):
        for get in (b"GET USER huge\r\n", b""):
            with Talk(to) as talk:
                talk.send(get + b"APPLY MESSAGE (%%{default %s %d}\r\n" % (guid(b"x").encode(), size) + b"y" * 300000)
                talk.sock.shutdown(socket.SHUT_WR)
                answer = talk.rest()
                expect(b"OK" not in answer.replace(b"OK success\r\n", b"", 1 if get else 0), "%d: %r" % (size, answer))
    with Talk(to) as talk:
        expect_equal(talk.get("USER", "huge"), b"OK success", "GET USER")
    expect_equal(to.stored(), before, "what is stored")


@hostile("a client that disappears: the log is cut back, the next session finds all well")
def disappear(to):
    fill(to, "gone")
    before = to.stored()
    message = b"APPLY MESSAGE " + encode(files(body(20), body(21, 200000)))
    mailbox = b"APPLY MAILBOX " + encode(box("gone", [record(n, body(n)) for n in (1, 2, 3)] + [record(4, body(20))], HIGHESTMODSEQ=21))
    for raw in (message, message + b"\r\n" + mailbox):
        for at in sorted({5, 30, 70, 100, 500, 1000, 100000, len(message) - 1, len(message) + 200, len(raw) - 300, len(raw) - 1}):
            for how in ("close", "reset", "half"):
                with Talk(to) as talk:
                    talk.get("USER", "gone")
                    talk.send(raw[:at])
                    if how == "reset":
                        talk.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    elif how == "half":
                        talk.sock.shutdown(socket.SHUT_WR)
                        expect(b"BAD" not in talk.rest(), "an answer to nobody")
    with Talk(to) as talk:
        # Waits for the sessions before.
        expect_equal(talk.apply("UNSUB", {"USERID": "gone", "MBOXNAME": "x"}), b"OK success", "next session")
        expect_equal(to.stored(), before, "what is stored")
        expect_equal(talk.get("USER", "gone"), b"OK success", "GET USER")
        expect_equal(talk.ask(message), b"OK success", "MESSAGE")
        talk.apply("UNSUB", {"USERID": "gone", "MBOXNAME": "y"})
        expect_equal(talk.ask(mailbox), b"OK success", "MAILBOX")
        expect_equal(talk.ask(b"EXIT"), b"OK Finished", "EXIT")
    expect_equal(live(to, "gone")[4], guid(body(20)), "message 4")


@hostile("everything said twice writes once")
def idempotent(to):
    commands = [
        ("MESSAGE", files(body(1), body(2))),
        ("MAILBOX", box("twice", [record(1, body(1)), record(2, body(2))], ANNOTATIONS=[{"ENTRY": "/comment", "USERID": "", "VALUE": b"a\xffb"}])),
        ("MAILBOX", {"UNIQUEID": "inter", "MBOXNAME": "user.twice.i", "MBOXTYPE": "i", "HIGHESTMODSEQ": 5, "CREATEDMODSEQ": 5, "FOLDERMODSEQ": 5}),
        ("MAILBOX", {"UNIQUEID": "inter2", "MBOXNAME": "user.twice.j", "MBOXTYPE": "i", "RECORD": []}),
        ("SUB", {"USERID": "twice", "MBOXNAME": "user.twice.a b"}),
        ("SEEN", {"USERID": "twice", "UNIQUEID": "uniqueid-anna", "LASTREAD": 1, "LASTUID": 2, "LASTCHANGE": 3, "SEENUIDS": "1:2"}),
        ("SIEVE", {"USERID": "twice", "FILENAME": "a.script", "LAST_UPDATE": "007", "CONTENT": b"keep;\r\n\0\xff"}),
        ("ACTIVATE_SIEVE", {"USERID": "twice", "FILENAME": "a.bc"}),
        ("QUOTA", {"ROOT": "user.twice", "STORAGE": 5}),
        ("ANNOTATION", {"MBOXNAME": "", "ENTRY": "/motd", "USERID": "", "VALUE": b"a\0\r\nb"}),
        ("ANNOTATION", {"MBOXNAME": "user.twice", "ENTRY": "/x", "USERID": "twice", "VALUE": None}),
        ("RENAME", {"OLDMBOXNAME": "user.twice.r1", "NEWMBOXNAME": "user.twice.r2"}),
        ("UNSUB", {"USERID": "twice", "MBOXNAME": "user.twice.none"}),
        ("UNQUOTA", "user.twice.none"),
        ("UNMAILBOX", "user.twice.none"),
        ("UNSIEVE", {"USERID": "twice", "FILENAME": "none"}),
    ]
    sizes = []
    for _ in range(3):
        with Talk(to) as talk:
            talk.read("GET USER", "twice")
            for name, value in commands:
                for _ in range(2):
                    answer = talk.apply(name, value)
                    expect(answer == b"OK success" or name == "RENAME", "%s: %r" % (name, answer))
            expect_equal(talk.ask(b"EXIT"), b"OK Finished", "EXIT")
        sizes.append(to.stored())
    told = ["%s %r" % (name, value) for _t, name, value in logfile.lines(to.data_file("twice"))]
    expect(sizes[1] == sizes[0], "a second time something was stored", told)
    expect_equal(sizes[2], sizes[0], "what is stored after the third time")
    for _ in range(2):
        with Talk(to) as talk:
            expect_equal(talk.apply("UNUSER", "twice"), b"OK success", "UNUSER")
            expect_equal(talk.apply("UNUSER", "twice"), b"OK success", "UNUSER")
        sizes.append(to.stored())
    expect_equal(sizes[-1], sizes[-2], "what is stored after a second UNUSER")


# -- over TCP --------------------------------------------------------------------


@hostile("a rename from a name that was left behind does not set the new name back")
def left_behind(to):
    fill(to, "olda")
    bodies = [body(n) for n in range(1, 6)]
    records = [record(n + 1, b, MODSEQ=20 + n) for n, b in enumerate(bodies)]
    with Talk(to) as talk:
        # Sent under the new name, with more; nobody said that it is the same user.
        expect_equal(talk.get("USER", "newa"), b"OK success", "GET USER")
        expect_equal(talk.apply("MESSAGE", files(*bodies)), b"OK success", "MESSAGE")
        stated = box("newa", records, UNIQUEID="uniqueid-olda", HIGHESTMODSEQ=30)
        expect_equal(talk.apply("MAILBOX", stated), b"OK success", "MAILBOX")
        names = {"OLDMBOXNAME": "user.olda", "NEWMBOXNAME": "user.newa", "PARTITION": "default", "UIDVALIDITY": 1795439790}
        expect_equal(talk.apply("RENAME", names), b"OK success", "RENAME")
        answers = talk.read("GET MAILBOXES", ["user.olda", "user.newa"])
        expect_equal([v["MBOXNAME"] for _name, v in answers], [b"user.newa"], "mailboxes")
        head = answers[0][1]
        expect_equal((int(head["HIGHESTMODSEQ"]), int(head["UIDVALIDITY"])), (30, 1795439790), "what is stated")
        expect_equal(talk.ask(b"EXIT"), b"OK Finished", "EXIT")
    expect_equal(live(to, "newa"), {n: guid(b) for n, b in enumerate(bodies, 1)}, "what is live")


@hostile("what the old name promised is there under the new one")
def promised(to):
    fill(to, "oldb")
    with Talk(to) as talk:
        expect_equal(talk.get("USER", "oldb"), b"OK success", "GET USER")
        gone = record(3, body(3), MODSEQ=25, FLAGS=[Atom(b"\\Expunged")])
        expect_equal(talk.apply("MAILBOX", box("oldb", [gone], HIGHESTMODSEQ=25)), b"OK success", "expunged")
        answers = talk.read("APPLY RESERVE", {"PARTITION": "default", "MBOXNAME": ["user.oldb"], "GUID": [guid(body(3))]})
        expect_equal(answers, [], "what is missing")
        names = {"OLDMBOXNAME": "user.oldb", "NEWMBOXNAME": "user.newb", "PARTITION": "default", "UIDVALIDITY": 1795439789}
        expect_equal(talk.apply("RENAME", names), b"OK success", "RENAME")
        # A further mailbox of the renamed user has a copy of it.
        value = box("newb.copy", [record(1, body(3))], UNIQUEID="uniqueid-copyb", MBOXNAME="user.newb.copy")
        expect_equal(talk.apply("MAILBOX", value), b"OK success", "MAILBOX")
        expect_equal(talk.ask(b"EXIT"), b"OK Finished", "EXIT")


@hostile("what was promised holds though a mailbox in between is asked for as a whole")
def promised_between(to):
    fill(to, "lender", 4)
    fill(to, "askerp")
    with Talk(to) as talk:
        names = ["user.lender", "user.askerp", "user.askerp.copy"]
        expect_equal(talk.get("MAILBOXES", names), b"OK success", "GET MAILBOXES")
        answers = talk.read("APPLY RESERVE", {"PARTITION": "default", "MBOXNAME": names[:2], "GUID": [guid(body(4))]})
        expect_equal(answers, [], "what is missing")
        expect_equal(talk.get("FULLMAILBOX", "user.askerp"), b"OK success", "GET FULLMAILBOX")
        expect_equal(talk.get("MAILBOXES", ["user.askerp"]), b"OK success", "GET MAILBOXES of one")
        copy = box("askerp.copy", [record(1, body(4))], UNIQUEID="uniqueid-askcopy", MBOXNAME="user.askerp.copy")
        expect_equal(talk.apply("MAILBOX", copy), b"OK success", "MAILBOX")
        expect_equal(talk.ask(b"EXIT"), b"OK Finished", "EXIT")


@hostile("changes behind a GET that came before a mark are not taken for the whole mailbox")
def marked_between(to):
    # As a sender of Cyrus 3.0 says them: without SINCE_MODSEQ.
    fill(to, "between")
    whole = live(to, "between")
    with Talk(to) as first, Talk(to) as second:
        expect(b"user.between" in b"".join(v["MBOXNAME"] for n, v in first.read("GET USER", "between") if n == "MAILBOX"), "it is told")
        doubt = box("between", [record(1, body(1), MODSEQ=25)], SYNC_CRC=1234, HIGHESTMODSEQ=25)
        expect_equal(second.get("USER", "between"), b"OK success", "GET USER")
        expect(second.apply("MAILBOX", doubt).startswith(b"NO IMAP_SYNC_CHANGED"), "a sum that does not fit")
        expect_equal(second.ask(b"EXIT"), b"OK Finished", "EXIT")
        changes = box("between", [record(1, body(1), MODSEQ=26)], HIGHESTMODSEQ=26)
        answer = first.apply("MAILBOX", changes)
        expect(answer.startswith(b"NO IMAP_SYNC_CHANGED"), "%r" % answer)
        expect_equal(live(to, "between"), whole, "what is live")
        expect_equal([n for n, _v in first.read("GET USER", "between") if n == "MAILBOX"], [], "mailboxes told")
        every = box("between", [record(n, body(n), MODSEQ=26) for n in (1, 2, 3)], HIGHESTMODSEQ=26)
        expect_equal(first.apply("MAILBOX", every), b"OK success", "all of it")
        expect_equal(first.ask(b"EXIT"), b"OK Finished", "EXIT")
    expect_equal(live(to, "between"), whole, "what is live in the end")


@hostile("before login nothing works, and literals are not read")
def strangers(to):
    before = to.stored()
    with Talk(to, tcp=True) as talk:
        expect(any(line.startswith(b"* SASL ") for line in talk.banner), "banner %r" % talk.banner)
        for line in (b"GET USER anna", b"GET MAILBOXES (user.anna)", b"APPLY UNUSER anna", b"APPLY SUB %(USERID anna MBOXNAME x)", b"APPLY MAILBOX %(", b"GET USER " + b"x" * 60000):
            expect_equal(talk.ask(line), b"NO Please authenticate first", "%r" % line[:40])
        expect_equal(talk.ask(b"NOOP"), b"OK Noop completed", "NOOP")
    for raw in (b"APPLY MESSAGE (%{default " + guid(b"abc").encode() + b" 3}\r\nabc)\r\n", b"GET USER {4+}\r\nanna\r\n", b"APPLY SUB {99999999999}\r\n"):
        with Talk(to, tcp=True) as talk:
            talk.send(raw + b"NOOP\r\n")
            expect_equal(talk.rest(), b"NO Please authenticate first\r\n", "%r" % raw[:40])
    for head in (b"", b"NOOP ", b"GET USER ", b"APPLY MESSAGE ", b"AUTHENTICATE PLAIN "):
        with Talk(to, tcp=True) as talk:
            talk.send(head + b"x" * (1 << 20))
            answer = talk.rest()
            expect(answer.startswith((b"BAD ", b"NO ")) and answer.count(b"\r\n") == 1, "long %r: %r" % (head, answer[:100]))
    with Talk(to, tcp=True) as talk:
        talk.send(b"x\r\n" * 5000)
        answer = talk.rest()
        expect(answer.count(b"\r\n") < 100 and b"BYE" in answer, "5,000 bad commands: %d answers" % answer.count(b"\r\n"))
    expect_equal(to.stored(), before, "what is stored")


@hostile("logins: wrong ones are refused and counted, only admins may work")
def logins(to):
    for lines in (
        [b"AUTHENTICATE"], [b"AUTHENTICATE PLAIN a b"], [b"AUTHENTICATE \xff"], [b"AUTHENTICATE " + b"X" * 30], [b"AUTHENTICATE NOSUCH"], [b"AUTHENTICATE EXTERNAL ="],
        [b"AUTHENTICATE PLAIN ==="], [b"AUTHENTICATE PLAIN AAAA"], [b"AUTHENTICATE PLAIN ="], [b"AUTHENTICATE PLAIN", b"*"], [b"AUTHENTICATE PLAIN", b""], [b"AUTHENTICATE PLAIN", b"\xff\0"],
        [b"AUTHENTICATE SCRAM-SHA-256", b"*"], [b"AUTHENTICATE SCRAM-SHA-256 " + base64.b64encode(b"n,,n=admin")],
        [b"AUTHENTICATE SCRAM-SHA-256 " + base64.b64encode(b"n,,n=admin,r=x"), base64.b64encode(b"c=biws,r=x,p=AAAA")],
        [b"AUTHENTICATE SCRAM-SHA-512 " + base64.b64encode(b"n,,n=nobody,r=x"), b"nonsense"],
        [b"AUTHENTICATE SCRAM-SHA-256 " + base64.b64encode(b"p=tls-unique,,n=admin,r=x")],
        [b"AUTHENTICATE SCRAM-SHA-256 " + base64.b64encode(b"n,,n=" + b"a" * 40000 + b",r=x"), b"AAAA"],
    ):
        with Talk(to, tcp=True) as talk:
            for line in lines[:-1]:
                talk.send(line + b"\r\n")
                if not talk.line().startswith(b"+"):
                    expect(len(line) > 1000, "a challenge to %r" % line)
                    break
            talk.send(lines[-1] + b"\r\n")
            answer = talk.line()
            if answer.startswith(b"+"):
                talk.send(b"*\r\n")
                answer = talk.line()
            expect(answer.startswith((b"NO ", b"BAD ")), "%r: %r" % (lines[-1][:60], answer))
            expect_equal(talk.ask(b"GET USER anna"), b"NO Please authenticate first", "after %r" % lines[-1][:60])
    with Talk(to, tcp=True) as talk:
        for _ in range(4):
            expect_equal(talk.login(b"admin", b"wrong"), b"NO authentication failed", "wrong password")
        talk.login(b"nobody", b"wrong")
        answer = talk.line()
        expect(answer is None or answer.startswith(b"BYE"), "the fifth: %r" % answer)
        expect_equal(talk.rest(), b"", "closed")
    with Talk(to, tcp=True) as talk:
        expect(talk.login(b"guest", b"secret").startswith(b"OK "), "guest")
        for line in (b"GET USER anna", b"APPLY UNUSER anna", b"APPLY MAILBOX %(x"):
            expect_equal(talk.ask(line), b"NO Permission denied", "%r as guest" % line)
        expect(talk.login(b"admin", b"secret").startswith(b"BAD "), "a second login")
    with Talk(to, tcp=True) as talk:
        expect(talk.login(b"admin", b"secret").startswith(b"OK "), "admin")
        expect_equal(talk.get("USER", "anna"), b"OK success", "GET as admin")
    with Talk(to) as talk:
        expect(talk.login(b"admin", b"secret").startswith(b"BAD "), "AUTHENTICATE on the UNIX socket")


@hostile("PLAIN is not offered and not taken without allowplaintext")
def no_plain(to):
    other = Server(allowplaintext="no", failedloginpause="0", start=False)
    other.write_conf(backup_passwd_file=to.dir + "/passwd")
    other.start()
    try:
        with Talk(other, tcp=True) as talk:
            expect(not any(b"PLAIN" in line for line in talk.banner), "banner %r" % talk.banner)
            expect_equal(talk.login(b"admin", b"secret"), b"NO authentication failed", "PLAIN")
    finally:
        other.stop()


@hostile("a login that drags on is ended in time")
def slow(to):
    other = Server(sync_timeout="3s", start=False)
    other.write_conf(backup_passwd_file=to.dir + "/passwd")
    other.start()
    try:
        starts = [b"", b"NO", b"AUTHENTICATE PLAIN\r\n", b"NOOP\r\n", b"GET "]
        talks = [Talk(other, tcp=True) for _ in starts]
        talks.append(Talk(other, tcp=True))
        talks[-1].compress()
        starts.append(b"")
        began = time.monotonic()
        for talk, start in zip(talks, starts):
            talk.send(start)
        ended = set()
        while len(ended) < len(talks) and time.monotonic() - began < 12:
            time.sleep(0.4)
            for n, talk in enumerate(talks):
                if n not in ended and not talk.send(b"x" if n != 3 else b"NOOP\r\n"):
                    ended.add(n)
        took = time.monotonic() - began
        expect(len(ended) == len(talks) and took < 8, "after %.1f s these still talk: %s" % (took, [starts[n] for n in range(len(talks)) if n not in ended]))
        with Talk(other, tcp=True) as talk:
            expect(talk.login(b"admin", b"secret").startswith(b"OK "), "login")
            for _ in range(9):
                time.sleep(0.5)
                expect_equal(talk.ask(b"NOOP"), b"OK Noop completed", "one who has logged in has more time")
    finally:
        other.stop()


@hostile("COMPRESS: twice, unknown, garbage, truncated")
def compress(to):
    for tcp in (True, False):
        with Talk(to, tcp) as talk:
            expect(talk.ask(b"COMPRESS GZIP").startswith(b"NO "), "GZIP")
            expect(talk.ask(b"COMPRESS").startswith((b"NO ", b"BAD ")), "nothing")
            talk.compress()
            expect(talk.ask(b"COMPRESS DEFLATE").startswith(b"NO "), "twice")
            expect_equal(talk.ask(b"NOOP"), b"OK Noop completed", "NOOP")
            talk.deflater = None
            talk.send(b"\x07\x07\x07garbage" * 100)
            talk.rest()
        for tail in (b"\x03\x00", b"\x01\x00\x00\xff\xff", b"", b"\xff" * 10, os.urandom(2000)):
            with Talk(to, tcp) as talk:
                talk.compress()
                talk.send(b"NOOP\r\nNO")
                talk.deflater = None
                talk.send(tail)
                talk.sock.shutdown(socket.SHUT_WR)
                expect(b"OK Noop" in talk.rest(), "NOOP before the end")


@hostile("deflate bombs do not grow the server")
def bombs(to):
    fill(to, "bomb")
    before = to.stored()
    size = 200 << 20
    zeros = b"\0" * (1 << 20)
    heads = [
        (b"APPLY MAILBOX %(UNIQUEID x MBOXNAME ", zeros), (b'APPLY MAILBOX %(UNIQUEID x MBOXNAME "', zeros), (b"APPLY MAILBOX %%(UNIQUEID x MBOXNAME {%d+}\r\n" % size, zeros),
        (b"APPLY MAILBOX %(UNIQUEID x MBOXNAME {60000000+}\r\n", zeros), (b"GET USER ", zeros), (b"GET MAILBOXES (", b"0 " * (1 << 19)), (b"GET MAILBOXES (", b"()" * (1 << 19)),
        (b"APPLY SUB %(", b"A 0 " * (1 << 18)), (b"APPLY MAILBOX %(", b"A 0 " * (1 << 18)), (b"APPLY MAILBOX %(", b"A {1048563+}\r\n" + zeros[:1048563] + b" "),
        (b"APPLY MAILBOX %(RECORD (", b"%() " * (1 << 18)), (b"APPLY MAILBOX %(RECORD (%(FLAGS (", b"a " * (1 << 19)), (b"APPLY MESSAGE (", b"NIL " * (1 << 18)), (b"APPLY MESSAGE ", b" " * (1 << 20)),
        (b"", zeros), (b"APPLY RESERVE %(GUID (", guid(b"").encode() + b" "),
    ]
    for head, pattern in heads:
        began = time.monotonic()
        pattern = (pattern * ((1 << 20) // len(pattern) + 1))[: len(pattern) if len(pattern) > 1000 else (1 << 20) // len(pattern) * len(pattern)]
        with Talk(to) as talk:
            talk.compress()
            packer = zlib.compressobj(1, zlib.DEFLATED, -15)
            packed = packer.compress(head)
            took = True
            talk.deflater = None
            # Lists without a limit as a whole are only slow.
            total = size if pattern == zeros or b"{" in pattern else size // 5
            for _ in range(total // len(pattern)):
                packed += packer.compress(pattern)
                if len(packed) > 50000:
                    took = took and talk.send(packed)
                    packed = b""
            talk.send(packed + packer.flush(zlib.Z_SYNC_FLUSH))
            try:
                talk.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            try:
                answer = talk.rest()
            except (zlib.error, TimeoutError) as why:
                raise Failed("%r: %s" % (head, why)) from why
            expect(b"OK success" not in answer, "%r: %r" % (head, answer[:100]))
        if time.monotonic() - began > 5:
            diag("%r: %.1f s" % (head, time.monotonic() - began))
    expect_equal(to.stored(), before, "what is stored")
    diag("peak: %d MiB" % (to.status("VmHWM") >> 10))
    # A large message is no bomb.
    sha = hashlib.sha1()
    for _ in range(size >> 20):
        sha.update(zeros)
    with Talk(to) as talk:
        talk.compress()
        talk.get("USER", "bomb")
        talk.send(b"APPLY MESSAGE (%%{default %s %d}\r\n" % (sha.hexdigest().encode(), size))
        for _ in range(size >> 20):
            talk.send(zeros)
        expect_equal(talk.ask(b")"), b"OK success", "a message of 200 MiB")
    diag("peak: %d MiB" % (to.status("VmHWM") >> 10))


# -- many, and the machine --------------------------------------------------------


@hostile("200 connections at once, half of them idle")
def crowd(to):
    to.check()
    idle = to.descriptors()
    talks = [Talk(to, tcp=n % 2 == 0) for n in range(200)]
    for n, talk in enumerate(talks):
        if n % 2:
            talk.send(b"GET USER anna\r\nAPPLY SUB %%(USERID crowd%d MBOXNAME x)\r\n" % n)
    for n, talk in enumerate(talks):
        if n % 2:
            expect_equal(talk.final(), b"OK success", "GET")
            expect_equal(talk.final(), b"OK success", "SUB")
            talk.send(b"EXIT\r\n")
    with Talk(to) as talk:
        expect_equal(talk.get("USER", "anna"), b"OK success", "one more")
    diag("%d descriptors, %d MiB" % (to.descriptors(), to.status("VmRSS") >> 10))
    for talk in talks:
        talk.sock.close()
    wait_for(lambda: to.descriptors() <= idle + 1, 10, "descriptors: %d, before %d" % (to.descriptors(), idle))


@hostile("a backup locked by another program: LOCKED after the wait, then all goes on")
def locked(to):
    fill(to, "locka")
    path = to.data_file("locka")
    with open(path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        began = time.monotonic()
        with Talk(to) as talk:
            expect_equal(talk.get("USER", "locka"), b"OK success", "readers need no lock")
            answer = talk.apply("SUB", {"USERID": "locka", "MBOXNAME": "user.locka"})
            expect_equal(answer, b"NO IMAP_MAILBOX_LOCKED Mailbox locked", "SUB")
            expect(1.9 < time.monotonic() - began < 10, "waited %.1f s" % (time.monotonic() - began))
            expect_equal(talk.apply("MESSAGE", files(body(9))), b"NO IMAP_MAILBOX_LOCKED Mailbox locked", "MESSAGE")
            expect_equal(talk.apply("SUB", {"USERID": "other", "MBOXNAME": "x"}), b"OK success", "another user")
            fcntl.lockf(file, fcntl.LOCK_UN)
            expect_equal(talk.apply("SUB", {"USERID": "locka", "MBOXNAME": "user.locka"}), b"OK success", "SUB later")


@hostile("a backup held by a session that waits for its client: the next one gets it soon")
def let_go(to):
    fill(to, "heldb")
    with Talk(to) as first, Talk(to) as second:
        expect_equal(first.apply("SUB", {"USERID": "heldb", "MBOXNAME": "one"}), b"OK success", "SUB")
        # A body that waits for its MAILBOX goes with it.
        expect_equal(first.get("USER", "heldb"), b"OK success", "GET USER")
        expect_equal(first.apply("MESSAGE", files(body(7))), b"OK success", "MESSAGE")
        began = time.monotonic()
        expect_equal(second.apply("SUB", {"USERID": "heldb", "MBOXNAME": "two"}), b"OK success", "SUB")
        expect(time.monotonic() - began < 1.9, "waited %.2f s, the limit is 2 s" % (time.monotonic() - began))
        expect_equal(second.ask(b"EXIT"), b"OK Finished", "EXIT")
        lines = [record(n, body(n)) for n in (1, 2, 3)] + [record(7, body(7), MODSEQ=30)]
        answer = first.apply("MAILBOX", box("heldb", lines, HIGHESTMODSEQ=30))
        expect_equal(answer, b"OK success", "MAILBOX")
    expect_equal(sorted(live(to, "heldb")), [1, 2, 3, 7], "what is live")


@case("a full disk: NO, and all is whole when there is space again")
def full(to):
    other = Server(start=False)
    where = other.dir + "/full"
    sandbox.make_dir(where)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M,mode=777", "none", where], capture_output=True)
    if done.returncode != 0:
        raise Skip("cannot mount a tmpfs")
    try:
        sandbox.make_dir(where + "/backup")
        other.write_conf(**{"backuppartition-default": where + "/backup"})
        filler = open(where + "/filler", "wb", buffering=0)
        other.start()
        fill(other, "full")
        noise = [os.urandom(200000) for _ in range(15)]
        lines = [record(n + 1, body(n + 1)) for n in range(3)]
        with Talk(other) as talk:
            talk.get("USER", "full")
            answer = talk.apply("MESSAGE", files(*noise))
            expect(answer.startswith(b"NO Backup server has no space left"), "MESSAGE: %r" % answer)
            expect(talk.apply("MAILBOX", box("full", lines + [record(n + 4, b) for n, b in enumerate(noise)], HIGHESTMODSEQ=30)).startswith(b"NO "), "MAILBOX")
        with Talk(other) as talk:
            # One by one, until it is full.
            talk.get("USER", "full")
            took = 0
            for n, one in enumerate(noise):
                if talk.apply("MESSAGE", files(one)) != b"OK success":
                    break
                answer = talk.apply("MAILBOX", box("full", lines + [record(i + 4, b) for i, b in enumerate(noise[: n + 1])], LAST_UID=n + 4, HIGHESTMODSEQ=30 + n))
                if answer != b"OK success":
                    expect(answer.startswith(b"NO "), "%r" % answer)
                    break
                took += 1
            diag("%d of 15 fit" % took)
            expect(0 < took < 15, "%d of 15 fit" % took)
        other.check()
        try:
            while True:
                filler.write(b"x" * 1000)
        except OSError:
            pass
        with Talk(other) as talk:
            for user in ("full", "new"):
                answer = talk.apply("SIEVE", {"USERID": user, "FILENAME": "x", "LAST_UPDATE": 1, "CONTENT": os.urandom(50000)})
                expect(answer.startswith(b"NO "), "SIEVE of %s: %r" % (user, answer))
        filler.truncate(0)
        filler.close()
        subprocess.run(["mount", "-o", "remount,size=40M", where], check=True)
        with Talk(other) as talk:
            expect_equal(talk.get("USER", "full"), b"OK success", "GET USER")
            expect_equal(talk.apply("SUB", {"USERID": "new", "MBOXNAME": "x"}), b"OK success", "the new user")
            for _ in range(2):
                talk.send(b"APPLY RESERVE " + encode({"PARTITION": "default", "MBOXNAME": ["user.full"], "GUID": [guid(b) for b in noise]}) + b"\r\n")
                answer = talk.line()
                missing = answer[len(b"* MISSING (") : -1].decode().split() if answer.startswith(b"*") else []
                if answer.startswith(b"*"):
                    talk.final()
                expect_equal(talk.apply("MESSAGE", files(*[b for b in noise if guid(b) in missing])), b"OK success", "MESSAGE")
                answer = talk.apply("MAILBOX", box("full", lines + [record(i + 4, b) for i, b in enumerate(noise)], LAST_UID=30, HIGHESTMODSEQ=60))
                if answer == b"OK success":
                    break
            expect_equal(answer, b"OK success", "MAILBOX")
            expect_equal(talk.ask(b"EXIT"), b"OK Finished", "EXIT")
        expect_equal(live(other, "full"), dict([(n, guid(body(n))) for n in (1, 2, 3)] + [(n + 4, guid(b)) for n, b in enumerate(noise)]), "INBOX")
        other.check()
    finally:
        other.stop()
        subprocess.run(["umount", where], check=False)


def conversations():
    """What the clients of the recorded conversations sent."""
    where = os.path.join(sandbox.TOP, "t/data/transcripts")
    found = []
    for folder in ("3.12", "3.13"):
        for name in sorted(os.listdir(os.path.join(where, folder))):
            with open(os.path.join(where, folder, name), "rb") as file:
                parts = re.split(rb"(?m)^([<>])\d+[<>]", file.read())
            said = [text for way, text in zip(parts[1::2], parts[2::2]) if way == b"<"]
            raw = b"".join(text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") for text in said if not text.startswith((b"COMPRESS", b"AUTH", b"STARTTLS")))
            if raw:
                found.append(raw)
    return found


@hostile("recorded conversations with random damage, for five seconds")
def fuzz(to):
    seed = int(os.environ.get("SEED", time.time_ns() % 10**9))
    diag("SEED=%d" % seed)
    chance = random.Random(seed)
    recorded = conversations()
    expect(len(recorded) > 50, "%d conversations" % len(recorded))
    pieces = [b"(", b")", b"%(", b'"', b"{5+}\r\n", b"{99999999999}\r\n", b"%{default " + b"0" * 40 + b" 5}\r\n", b"\r\n", b"\0", b"\xff", b"NIL", b" ", b"18446744073709551615", b"-1", b"../", b"%SHARED", b"\\", b"RECORD (", b"MBOXTYPE i ", b"SINCE_MODSEQ 5 "]
    end = time.monotonic() + 5
    rounds = kept = 0
    while time.monotonic() < end:
        raw = bytearray(chance.choice(recorded))
        for _ in range(chance.choice((0, 1, 1, 2, 5, 30))):
            at = chance.randrange(len(raw))
            what = chance.randrange(6)
            if what == 0:
                raw[at] ^= 1 << chance.randrange(8)
            elif what == 1:
                del raw[at : at + chance.randrange(1, 60)]
            elif what == 2:
                raw[at:at] = chance.choice(pieces)
            elif what == 3:
                raw[at:at] = raw[max(0, at - chance.randrange(200)) : at]
            elif what == 4:
                digits = [m.span() for m in re.finditer(rb"\d+", raw[at : at + 500])]
                if digits:
                    first, last = chance.choice(digits)
                    raw[at + first : at + last] = b"%d" % chance.choice((0, 1, 2**31, 2**32, 2**63, 2**64 - 1, 2**64))
            else:
                other = chance.choice(recorded)
                start = chance.randrange(len(other))
                raw[at : at + 50] = other[start : start + chance.randrange(300)]
            if not raw:
                raw = bytearray(b"NOOP\r\n")
        with Talk(to) as talk:
            if chance.randrange(3) == 0:
                talk.compress()
            talk.send(bytes(raw))
            try:
                talk.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            kept += talk.rest().count(b"OK ")
        rounds += 1
    diag("%d conversations, %d commands taken" % (rounds, kept))


@hostile("after all of it: a restart and new indexes lose nothing")
def again(to):
    before = {}
    with Talk(to) as talk:
        for user in sorted(to.data_files()):
            if not user.startswith("%"):
                before[user] = talk.read("GET USER", user)
    to.stop()
    for user in before:
        to.drop_index(user)
    for text in (b"# cyrus backup: chunk start\r\n", b""):
        # Members without lines at the end are no damage.
        with open(to.data_file("anna"), "ab") as file:
            file.write(gzip.compress(text))
    to.start()
    with Talk(to) as talk:
        for user in before:
            expect_equal(talk.read("GET USER", user), before[user], "GET USER %s" % user)
    diag("%d users" % len(before))


tap.run(setup, teardown)
