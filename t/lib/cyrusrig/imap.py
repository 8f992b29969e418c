"""A small IMAP client: quick to fill a mailbox with, and strict in reading.

The standard library's client costs one delayed ACK per APPEND; this one sets
TCP_NODELAY, sends `{n+}` literals and keeps many commands in flight.
"""

import hashlib
import re
import socket

TOKEN = re.compile(rb'[ ]+|\(|\)|"((?:[^"\\]|\\.)*)"|[^ ()"\[]*\[[^\]]*\][^ ()]*|[^ ()"]+')


class No(Exception):
    """A tagged NO or BAD."""


def quote(text):
    """A string argument, quoted, or as a literal where quoting cannot do."""
    data = text.encode() if isinstance(text, str) else text
    if any(b >= 0x80 or b in b"\0\r\n" for b in data) or len(data) > 1000:
        return b"{%d+}\r\n%s" % (len(data), data)
    return b'"' + data.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


class Imap:
    """One connection, logged in; `as_user` uses the admin's right to be another."""

    def __init__(self, port, user, password, as_user=None, host="127.0.0.1"):
        import base64

        self.sock = socket.create_connection((host, port), 120)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.sock.makefile("rb", 1 << 18)
        self.count = 0
        self.greeting = self.file.readline()
        parts = "\0".join([as_user or "", user, password]).encode()
        self.command(b"AUTHENTICATE PLAIN " + base64.b64encode(parts))

    def __enter__(self):
        return self

    def __exit__(self, *_what):
        self.close()

    def close(self):
        try:
            self.sock.sendall(b"ZZ LOGOUT\r\n")
            self.file.read()
        except OSError:
            pass
        self.file.close()
        self.sock.close()

    # -- reading ------------------------------------------------------------

    def _response(self):
        """One response as a list of pieces: bytes, and literals as (bytes,)."""
        pieces = []
        while True:
            line = self.file.readline()
            if not line:
                raise EOFError("IMAP connection closed")
            text = line.rstrip(b"\r\n")
            if text.endswith(b"}"):
                start = text.rfind(b"{")
                if text[start + 1 : -1].isdigit():
                    pieces.append(text[:start])
                    pieces.append((self.file.read(int(text[start + 1 : -1])),))
                    continue
            pieces.append(text)
            return pieces

    def _collect(self, tag):
        untagged = []
        while True:
            pieces = self._response()
            if pieces[0].startswith(tag + b" "):
                text = pieces[0][len(tag) + 1 :]
                if not text.startswith(b"OK"):
                    raise No(text.decode(errors="replace"))
                return untagged
            untagged.append(pieces)

    def send(self, command):
        """Send without waiting; returns the tag for `wait`."""
        self.count += 1
        tag = b"T%d" % self.count
        self.sock.sendall(tag + b" " + command + b"\r\n")
        return tag

    def wait(self, tag):
        return self._collect(tag)

    def command(self, command):
        """Run one command (str or bytes); untagged responses as pieces."""
        if isinstance(command, str):
            command = command.encode()
        return self._collect(self.send(command))

    @staticmethod
    def parse(pieces):
        """Pieces into nested lists of bytes (NIL is None)."""
        stack = [[]]
        for piece in pieces:
            if isinstance(piece, tuple):
                stack[-1].append(piece[0])
                continue
            for match in TOKEN.finditer(piece):
                token = match.group(0)
                if token == b"(":
                    stack.append([])
                elif token == b")":
                    done = stack.pop()
                    stack[-1].append(done)
                elif token[0] == 0x22:
                    stack[-1].append(re.sub(rb"\\(.)", rb"\1", match.group(1)))
                elif token[0] != 0x20:
                    stack[-1].append(None if token == b"NIL" else token)
        return stack[0]

    # -- commands -----------------------------------------------------------

    def create(self, name):
        self.command(b"CREATE " + quote(name))

    def delete(self, name):
        self.command(b"DELETE " + quote(name))

    def rename(self, old, new):
        self.command(b"RENAME " + quote(old) + b" " + quote(new))

    def select(self, name):
        return self.command(b"SELECT " + quote(name))

    def examine(self, name):
        return self.command(b"EXAMINE " + quote(name))

    def subscribe(self, name):
        self.command(b"SUBSCRIBE " + quote(name))

    def unsubscribe(self, name):
        self.command(b"UNSUBSCRIBE " + quote(name))

    def setacl(self, name, who, rights):
        self.command(b"SETACL " + quote(name) + b" " + quote(who) + b" " + quote(rights))

    def setquota(self, root, **limits):
        words = " ".join("%s %d" % (k.upper(), v) for k, v in limits.items())
        self.command(b"SETQUOTA " + quote(root) + b" (" + words.encode() + b")")

    def setmetadata(self, name, entry, value):
        data = b"NIL" if value is None else quote(value)
        self.command(b"SETMETADATA " + quote(name) + b" (" + entry.encode() + b" " + data + b")")

    def annotate(self, uids, entry, attribute, value):
        """Message annotation in the selected mailbox."""
        data = b"NIL" if value is None else quote(value)
        words = "UID STORE %s ANNOTATION (%s (%s " % (uids, entry, attribute)
        self.command(words.encode() + data + b"))")

    def store(self, uids, how, flags):
        self.command("UID STORE %s %s.SILENT (%s)" % (uids, how, flags))

    def copy(self, uids, to):
        self.command(b"UID COPY " + uids.encode() + b" " + quote(to))

    def move(self, uids, to):
        self.command(b"UID MOVE " + uids.encode() + b" " + quote(to))

    def expunge(self, uids=None):
        if uids is None:
            self.command("EXPUNGE")
        else:
            self.store(uids, "+FLAGS", "\\Deleted")
            self.command("UID EXPUNGE " + uids)

    def append(self, name, body, flags="", date=None):
        self.command(self._append(name, body, flags, date))

    @staticmethod
    def _append(name, body, flags, date):
        head = b"APPEND " + quote(name) + b" (" + flags.encode() + b") "
        if date:
            head += b'"' + date.encode() + b'" '
        return head + b"{%d+}\r\n" % len(body) + body

    def fill(self, name, bodies, flags="", in_flight=20):
        """APPEND each body, `in_flight` commands ahead of the answers."""
        waiting = []
        for body in bodies:
            waiting.append(self.send(self._append(name, body, flags, None)))
            if len(waiting) >= in_flight:
                self.wait(waiting.pop(0))
        for tag in waiting:
            self.wait(tag)

    def fill_multi(self, name, bodies, batch=500):
        """MULTIAPPEND in batches: for a hundred thousand small messages."""
        batch_bodies = []

        def flush():
            if batch_bodies:
                parts = [b" () {%d+}\r\n%s" % (len(b), b) for b in batch_bodies]
                self.command(b"APPEND " + quote(name) + b"".join(parts))
                batch_bodies.clear()

        for body in bodies:
            batch_bodies.append(body)
            if len(batch_bodies) >= batch:
                flush()
        flush()

    def list(self, pattern="*"):
        """Names of existing mailboxes."""
        names = []
        for pieces in self.command(b'LIST "" ' + quote(pattern)):
            parts = self.parse(pieces)
            if len(parts) >= 5 and parts[1] == b"LIST":
                flags = {f.lower() for f in parts[2]}
                if b"\\nonexistent" not in flags and b"\\noselect" not in flags:
                    names.append(parts[4].decode())
        return names

    def status(self, name):
        """{'UIDVALIDITY': n, ...}"""
        what = b" (MESSAGES UIDNEXT UIDVALIDITY HIGHESTMODSEQ)"
        for pieces in self.command(b"STATUS " + quote(name) + what):
            parts = self.parse(pieces)
            if parts[1] == b"STATUS":
                values = parts[3]
                return {values[i].decode(): int(values[i + 1]) for i in range(0, len(values), 2)}
        raise No("no STATUS response for " + name)

    def messages(self, name, bodies=True):
        """{uid: {...}} as IMAP shows it; sha1 of what is really delivered."""
        self.examine(name)
        what = "UID FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE MODSEQ%s)"
        found = {}
        for pieces in self.command(what % (" BODY.PEEK[]" if bodies else "")):
            parts = self.parse(pieces)
            if len(parts) < 4 or parts[2] != b"FETCH":
                continue
            pairs = parts[3]
            item = {pairs[i].decode(): pairs[i + 1] for i in range(0, len(pairs), 2)}
            message = {
                "flags": {f.decode() for f in item["FLAGS"]} - {"\\Recent"},
                "internaldate": item["INTERNALDATE"].decode(),
                "size": int(item["RFC822.SIZE"]),
                "modseq": int(item["MODSEQ"][0]),
            }
            if bodies:
                message["sha1"] = hashlib.sha1(item["BODY[]"] or b"").hexdigest()
            found[int(item["UID"])] = message
        self.command("UNSELECT")
        return found
