"""A small replication client: asks a server what it holds, and can feed it.

`dump()` is the rig's yardstick: asked of the IMAP server's own sync_server it tells
everything replication knows of (uniqueid, ACL, every record with flags, modseq,
GUID and annotations, seen, subscriptions, sieve, quota), expunged records and
deleted mailboxes included; asked of a receiver it tells what that one claims.
"""

import socket

from . import dlist

# Annotations that are not stored as such but made from the index on the way out.
VIRTUAL = {
    "/vendor/cmu/cyrus-imapd/" + name
    for name in ("thrid", "savedate", "createdmodseq", "basethrid", "internaldate.nsec")
}


class Refused(Exception):
    """The server answered NO or BAD; the text is its answer."""


class _Wire(dlist.Buffer):
    def __init__(self, sock):
        dlist.Buffer.__init__(self, bytearray())
        self.sock = sock

    def more(self):
        piece = self.sock.recv(1 << 18)
        if not piece:
            raise EOFError("connection closed by the server")
        self.data += piece

    def line(self):
        text = self.until(b"\n")
        self.take(1)
        return text.rstrip(b"\r")

    def forget(self):
        """Drop what was read; called between commands."""
        del self.data[: self.at]
        self.at = 0


class Csync:
    """One connection. `address` is a socket path or (host, port)."""

    def __init__(self, address, timeout=60):
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
        else:
            self.sock = socket.socket()
        self.sock.settimeout(timeout)
        self.sock.connect(address)
        if not isinstance(address, str):
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.wire = _Wire(self.sock)
        self.banner = []
        while True:
            line = self.wire.line()
            self.banner.append(line)
            if line.upper().startswith(b"* OK"):
                break

    def send(self, data):
        self.wire.forget()
        self.sock.sendall(data)

    def answer(self):
        """Data lines as (name, value), then the final line. Raises Refused."""
        lines = []
        while True:
            word = self.wire.until(b" \r\n")
            if word != b"*":
                text = word + self.wire.line()
                if word != b"OK":
                    raise Refused(text.decode(errors="replace"))
                return lines
            self.wire.take(1)
            name = self.wire.until(b" ").decode()
            self.wire.take(1)
            lines.append((name, dlist.read_value(self.wire)))
            self.wire.line()

    def command(self, words, value=None):
        """`command('GET USER', 'anna')`; returns the data lines."""
        line = words.encode() if isinstance(words, str) else words
        if value is not None:
            line += b" " + dlist.encode(value)
        self.send(line + b"\r\n")
        return self.answer()

    def close(self):
        try:
            self.send(b"EXIT\r\n")
        except OSError:
            pass
        self.sock.close()

    # -- what a server holds ------------------------------------------------

    def mailbox(self, name):
        """FULLMAILBOX as a mailbox of the common form, or None."""
        try:
            lines = self.command("GET FULLMAILBOX", name)
        except Refused as why:
            if "NONEXISTENT" in str(why):
                return None
            raise
        for kind, value in lines:
            if kind == "MAILBOX":
                return common_mailbox(value)
        return None

    def dump(self, users=(), mailboxes=(), full=True):
        """{'mailboxes': {name: ...}, 'users': {userid: ...}} of those asked for.

        Without `full` no FULLMAILBOX is asked, and mailboxes have no records."""
        found = {"mailboxes": {}, "users": {}}
        heads = []
        for user in users:
            about = {"subscriptions": set(), "seen": {}, "sieve": {}, "quota": {}}
            for kind, value in self.command("GET USER", user):
                if kind == "MAILBOX":
                    heads.append(value)
                elif kind == "LSUB":
                    about["subscriptions"] = {v.decode() for v in value}
                elif kind == "SEEN":
                    about["seen"][value["UNIQUEID"].decode()] = (
                        int(value["LASTUID"]),
                        value["SEENUIDS"].decode(),
                    )
                elif kind == "SIEVE":
                    name = value["FILENAME"].decode()
                    about["sieve"][name] = (
                        value.get("GUID", b"").decode(),
                        int(value.get("ISACTIVE", 0)),
                    )
                elif kind == "QUOTA":
                    root = value.pop("ROOT").decode()
                    value.pop("LIMIT", None)
                    value.pop("MODSEQ", None)
                    about["quota"][root] = {k: int(v) for k, v in value.items()}
            found["users"][user] = about
        for kind, value in self.command("GET MAILBOXES", list(mailboxes)) if mailboxes else ():
            heads.append(value)
        for head in heads:
            name = head["MBOXNAME"].decode()
            box = self.mailbox(name) if full else dict(common_mailbox(head), records=None)
            if box is not None:
                found["mailboxes"][name] = box
        return found


def annotations(values):
    """A set of (entry, userid, value) without the ones made on the fly."""
    found = set()
    for item in values or ():
        entry = item["ENTRY"].decode()
        if entry not in VIRTUAL:
            found.add((entry, (item["USERID"] or b"").decode(), bytes(item["VALUE"] or b"")))
    return found


def common_mailbox(value):
    """The common form of a MAILBOX line: plain names, Python types."""

    def text(key):
        return (value.get(key) or b"").decode(errors="surrogateescape")

    kind = text("MBOXTYPE")
    box = {
        "mboxname": text("MBOXNAME"),
        "uniqueid": text("UNIQUEID"),
        "mboxtype": "" if kind == "e" else kind,
        "uidvalidity": int(value.get("UIDVALIDITY") or 0),
        "lastuid": int(value.get("LAST_UID") or 0),
        "highestmodseq": int(value.get("HIGHESTMODSEQ") or 0),
        "acl": text("ACL"),
        "options": text("OPTIONS"),
        "partition": text("PARTITION"),
        "annotations": annotations(value.get("ANNOTATIONS")),
        "records": {},
    }
    for record in value.get("RECORD") or ():
        uid = int(record["UID"])
        flags = {f.decode() for f in record["FLAGS"]}
        expunged = any(f.lower() == "\\expunged" for f in flags)
        box["records"][uid] = {
            "modseq": int(record["MODSEQ"]),
            "last_updated": int(record["LAST_UPDATED"]),
            "internaldate": int(record["INTERNALDATE"]),
            "size": int(record["SIZE"]),
            "guid": record["GUID"].decode(),
            "flags": {f for f in flags if f.lower() != "\\expunged"},
            "expunged": expunged,
            "annotations": annotations(record.get("ANNOTATIONS")),
        }
    return box
