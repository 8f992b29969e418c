"""One IMAP server and one receiver, and the assertions every test makes of them."""

import hashlib
import time

from . import compare, dlist, logfile, sandbox
from .receiver import receiver
from .server import Cyrus
from .tap import Failed, Skip, expect_none


class Rig:
    """`cyrus` (the server), `to` (the receiver); `rig.whole('anna')` after a sync."""

    def __init__(self, cyrus, to):
        self.cyrus = cyrus
        self.to = to
        self.heard = {}
        # Users whose log was damaged on purpose: verify must not be content.
        self.damaged = set()

    def close(self):
        self.cyrus.stop()
        self.to.stop()

    def why(self):
        """For a failing case: what both sides said since it began."""
        lines = []
        for tag, before in self.heard.items():
            text = sandbox.recent(tag, 100000).splitlines()
            lines += text[before:][-12:]
        return lines

    def begin(self):
        """Called before each case: what is in the log now is not its doing."""
        tags = (self.cyrus.tag, getattr(self.to, "cyrus", self.to).tag)
        self.heard = {tag: len(sandbox.recent(tag, 100000).splitlines()) for tag in tags}

    def whole(self, *users, shared=(), to=None, state=None, bodies=True, ignore=()):
        """Assert that the receiver lists what the server holds, all of it, in its
        tools' listing and over the wire, and that its log has every body."""
        to = to or self.to
        held = state or self.cyrus.dump(users, shared)
        ignore = tuple(ignore) + tuple(to.ignore)
        # An empty comparison would always be equal.
        for user in users:
            if not any(owner(name) == user for name in held["mailboxes"]):
                raise Failed("the server has no mailbox of %s to compare" % user)
        expect_none(
            compare.mailboxes(held["mailboxes"], to.listing(users, shared), ignore),
            "server against %s's listing" % to.kind,
        )
        claimed = to.dump(users, shared)
        expect_none(
            compare.mailboxes(held["mailboxes"], claimed["mailboxes"], ignore),
            "server against what %s answers to GET" % to.kind,
        )
        expect_none(
            compare.users(held["users"], claimed["users"], ignore), "users' own data against %s" % to.kind
        )
        if to.kind == "ours":
            shown = to.own_listing(users)
            expect_none(compare.users(held["users"], shown, ignore), "users' own data against show")
        if bodies and to.kind == "ours":
            # The log is the truth: read without our program it says the same.
            files = to.data_files()
            told = {}
            for user in users:
                if user in files:
                    told.update(logfile.state(files[user]))
            own = {n: b for n, b in held["mailboxes"].items() if owner(n) in users}
            expect_none(compare.mailboxes(own, told, ignore), "server against the plain log")
        if bodies and to.kind != "replica":
            expect_none(self.missing_bodies(held, users, to), "bodies in the log of %s" % to.kind)
        if bodies and to.kind == "ours":
            # Everything reads, and a second index made from the log equals the first.
            kept = [user for user in users if user in to.data_files()]
            damaged = set(user for user in kept if user in self.damaged)
            expect_none(to.checked([user for user in kept if user not in damaged]) if set(kept) - damaged else [], "verify")

    @staticmethod
    def missing_bodies(held, users, to):
        """Live messages of users' own mailboxes whose body is not in the user's log."""
        out = []
        files = to.data_files()
        for user in users:
            path = files.get(user)
            if path is None:
                out.append("%s: no backup in backups.db" % user)
                continue
            kept = logfile.bodies(path)
            for name, box in sorted(held["mailboxes"].items()):
                if owner(name) != user:
                    continue
                for uid, record in sorted(box["records"].items()):
                    if record["expunged"]:
                        continue
                    if record["guid"] not in kept:
                        out.append("%s: uid %d: body %s is not in %s" % (name, uid, record["guid"], path))
                    elif kept[record["guid"]] != record["size"]:
                        out.append("%s: uid %d: body has %d bytes" % (name, uid, kept[record["guid"]]))
        return out

    def sync(self, *args, to=None, **options):
        """sync_client that must end with 0 at once."""
        return self.cyrus.sync_ok(to or self.to, *args, **options)

    def harmless(self, before, users, shared=()):
        """Assert that the IMAP server is what it was."""
        after = self.cyrus.state(users, shared)
        expect_none(compare.states(before, after), "the IMAP server before and after")


def inject(cyrus, mboxname, bodies):
    """Put messages into a mailbox as a replication master would: bodies that APPEND
    refuses (empty, NUL, no header) but that old spools and other ways in do hold."""
    wire = cyrus.csync()
    try:
        for body in bodies:
            guid = hashlib.sha1(body).hexdigest()
            wire.command("APPLY MESSAGE", [dlist.File("default", guid, body)])
            box = wire.command("GET MAILBOXES", [mboxname])[0][1]
            now = int(time.time())
            for key in ("SYNC_CRC", "SYNC_CRC_ANNOT", "XCONVMODSEQ"):
                box.pop(key, None)
            box["LAST_UID"] = int(box["LAST_UID"]) + 1
            box["HIGHESTMODSEQ"] = int(box["HIGHESTMODSEQ"]) + 1
            record = {"UID": box["LAST_UID"], "MODSEQ": box["HIGHESTMODSEQ"], "LAST_UPDATED": now}
            record.update({"FLAGS": [], "INTERNALDATE": now, "SIZE": len(body), "GUID": guid})
            box["RECORD"] = [record]
            wire.command("APPLY MAILBOX", box)
    finally:
        wire.close()


def owner(mboxname):
    """The userid a mailbox belongs to, or None for a shared one."""
    domain, _bang, local = mboxname.rpartition("!")
    parts = local.split(".")
    if parts[0] == "DELETED" and len(parts) > 2:
        parts = parts[1:-1]
    if parts[0] != "user" or len(parts) < 2:
        return None
    return parts[1].replace("^", ".") + ("@" + domain if domain else "")


def start_rig(to_options=None, **options):
    """A server and the receiver of this run; raises Skip where that cannot be."""
    problem = sandbox.problem()
    if problem:
        raise Skip(problem)
    to_options = dict(to_options or {})
    from .tap import RECEIVER

    if RECEIVER == "replica":
        for key in ("virtdomains", "conversations", "delete_mode", "expunge_mode", "mailbox_legacy_dirs"):
            if key in options:
                to_options.setdefault(key, options[key])
        to_options.setdefault("sync_log", "no")
    to = receiver(**to_options)
    return Rig(Cyrus(**options), to)
