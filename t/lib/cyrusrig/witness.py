"""Stands between senders and a receiver and remembers what was acknowledged.

    witness = Witness(receiver)          # a receiver to send to, on a socket of its own
    cyrus.sync(witness, '-u', 'anna')
    witness.lacks(users, users)         # what was answered OK and is not there

An answer counts from when the receiver has given it, though the sender may never hear
it. Passes bytes on as they are; what passed is read only when somebody asks.
"""

import os
import socket
import threading
import time

from . import dlist, sandbox
from .csync import common_mailbox
from .rig import owner


class Witness:
    """A socket in front of `to`. Broken connections are passed on, too."""

    def __init__(self, to, name="witness"):
        self.to = to
        self.kind = to.kind
        self.path = "%s/sock/%s" % (to.dir, name)
        self.acknowledged = Acknowledged()
        self.talks = []
        self.guard = threading.Lock()
        self.pieces = 0
        self.moments = []
        self.silent = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        sandbox.owned(self.path)
        self.listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def sync_host(self):
        return self.path

    def sync_options(self):
        return {}

    def recent_log(self, lines=25):
        return self.to.recent_log(lines)

    def close(self):
        self.listener.close()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self.to.socket)
            except OSError:
                client.close()
                server.close()
                continue
            talk = _Talk(client, server, self)
            with self.guard:
                self.talks.append(talk)
            talk.start()

    def moment(self, pieces):
        """An event that is set when so many further pieces have come from either side."""
        event = threading.Event()
        with self.guard:
            self.moments.append((self.pieces + pieces, event))
        return event

    def passed(self):
        """One more piece; the guard is held."""
        self.pieces += 1
        for at, event in self.moments:
            if at <= self.pieces:
                event.set()
        self.moments = [(at, event) for at, event in self.moments if not event.is_set()]

    def unanswered(self):
        """Commands so far whose connection ended before they had an answer."""
        self.settle()
        return self.silent

    def settle(self):
        """Take in all that was said by now, in the order of the answers. Connections may
        go on."""
        with self.guard:
            talks = list(self.talks)
            self.talks = [t for t in talks if not t.done]
        turns = [turn for talk in talks for turn in talk.turns()]
        for _when, verb, value, answer in sorted(turns, key=lambda turn: turn[0]):
            if answer is None:
                self.silent.append(verb)
            if verb.startswith("APPLY "):
                self.acknowledged.enter(verb[6:], value, answer)
        return self.acknowledged

    def lacks(self, users, present):
        """What was acknowledged by now and is not there; see `Acknowledged.lacks`."""
        return self.settle().lacks(self.to, users, present, self.settle)


PENDING = "pending"


class _Talk:
    """One connection: what was asked, what was answered, both in order."""

    def __init__(self, client, server, witness):
        self.client, self.server, self.witness = client, server, witness
        self.asked, self.said = bytearray(), bytearray()
        self.guard = witness.guard
        self.asked_at = self.said_at = 0
        # (length of what was said, when).
        self.clock = []
        self.greeted = False
        self.done = False
        self.ended = 0

    def start(self):
        threading.Thread(target=self._pump, args=(self.client, self.server, self.asked), daemon=True).start()
        threading.Thread(target=self._pump, args=(self.server, self.client, self.said), daemon=True).start()

    def _pump(self, source, to, kept):
        try:
            while True:
                data = source.recv(1 << 18)
                if not data:
                    break
                # Before it is passed on: whoever hears of it must find it here.
                with self.guard:
                    kept += data
                    if kept is self.said:
                        self.clock.append((len(kept), time.monotonic()))
                    self.witness.passed()
                to.sendall(data)
        except OSError:
            pass
        for end, how in ((to, socket.SHUT_WR), (source, socket.SHUT_RD)):
            try:
                end.shutdown(how)
            except OSError:
                pass
        with self.guard:
            self.ended += 1
            if self.ended == 2:
                self.done = True
                self.client.close()
                self.server.close()

    def turns(self):
        """(when, verb, value, answer) of what is complete and was not told before; the
        answer is None for a command whose answer never came, which is told once, at the end,
        and PENDING for one that may still have one, which is told again."""
        with self.guard:
            asked, said, done = bytes(self.asked), bytes(self.said), self.done
            clock = list(self.clock)
        source, answers = dlist.Buffer(asked), dlist.Buffer(said)
        source.at, answers.at = self.asked_at, self.said_at
        try:
            if not self.greeted:
                while not _line(answers).startswith(b"* OK"):
                    pass
                self.greeted = True
                self.said_at = answers.at
            while True:
                verb, value = _command(source)
                try:
                    answer = _answer(answers)
                except EOFError:
                    yield time.monotonic(), verb, value, None if done else PENDING
                    return
                self.asked_at, self.said_at = source.at, answers.at
                yield next(when for end, when in clock if end >= answers.at), verb, value, answer
        except EOFError:
            return


def _line(source):
    line = source.until(b"\n")
    source.take(1)
    return line.rstrip(b"\r")


def _command(source):
    word = source.until(b" \r\n").decode(errors="replace").upper()
    if word not in ("GET", "APPLY", "RESTORE"):
        _line(source)
        return word, None
    source.take(1)
    word += " " + source.until(b" \r\n").decode(errors="replace").upper()
    source.take(1)
    value = dlist.read_value(source)
    _line(source)
    return word, value


def _answer(source):
    while True:
        word = source.until(b" \r\n")
        if word != b"*":
            return (word + _line(source)).decode(errors="replace")
        source.take(1)
        source.until(b" ")
        source.take(1)
        dlist.read_value(source)
        _line(source)


def _text(value):
    return (value or b"").decode(errors="surrogateescape")


class Acknowledged:
    """What a receiver has said OK to, and what may have been entered besides."""

    def __init__(self):
        # {uniqueid: {uid: record}} of the last statement of each record.
        self.records = {}
        # {uniqueid: HIGHESTMODSEQ}
        self.heads = {}
        # {uniqueid: owners of the names it was stated under}
        self.owners = {}
        # {(kind, user, what): value}; None: removed.
        self.things = {}
        # The same keys: values whose answer is not known.
        self.maybe = {}
        # The same keys: all values that were named since `lacks` began.
        self.named = {}
        self.commands = 0

    def enter(self, name, value, answer):
        """One APPLY and its answer."""
        good = answer is not None and answer.startswith("OK")
        if good:
            self.commands += 1
        key = thing = None
        if name == "MAILBOX" and good and "RECORD" in value:
            box = common_mailbox(value)
            known = self.records.setdefault(box["uniqueid"], {})
            known.update(box["records"])
            self.owners.setdefault(box["uniqueid"], set()).add(owner(box["mboxname"]))
            self.heads[box["uniqueid"]] = max(box["highestmodseq"], self.heads.get(box["uniqueid"], 0))
        elif name in ("SUB", "UNSUB"):
            key = ("sub", _text(value["USERID"]), _text(value["MBOXNAME"]))
            thing = True if name == "SUB" else None
        elif name == "SEEN":
            key = ("seen", _text(value["USERID"]), _text(value["UNIQUEID"]))
            thing = (int(value["LASTUID"]), _text(value["SEENUIDS"]))
        elif name in ("SIEVE", "UNSIEVE"):
            key = ("sieve", _text(value["USERID"]), _text(value["FILENAME"]))
            thing = bytes(value["CONTENT"] or b"") if name == "SIEVE" else None
        if key:
            self.named.setdefault(key, []).append(thing)
            if good:
                self.things[key] = thing
                self.maybe.pop(key, None)
            elif answer is None:
                self.maybe.setdefault(key, []).append(thing)

    def lacks(self, to, users, present, settle):
        """Differences between what was acknowledged for these users and what their backups
        hold, by its own listing. `users`: all that a mailbox was ever of; `present`: those
        that are still there, so that subscriptions and the like are compared. `settle()`
        takes in what was said while this was looking: senders may still be at it."""
        self.named = {}
        before = dict(self.things)
        out = []
        held, boxes, things = {}, {}, {}
        files = to.data_files()
        for user in users:
            if user not in files:
                continue
            for item in to.json("mailboxes", user, "--deleted")["mailboxes"]:
                boxes[item["uniqueid"]] = max(int(item["highestmodseq"] or 0), boxes.get(item["uniqueid"], 0))
            for item in to.json("messages", user, "--deleted")["messages"]:
                held.setdefault((item["uniqueid"], int(item["uid"])), []).append(item)
            shown = to.json("show", user, "subscriptions", "seen", "sieve")
            for item in shown["subscriptions"]:
                things["sub", user, item["mboxname"]] = True
            for item in shown["seen"]:
                things["seen", user, item["uniqueid"]] = (item["lastuid"], item["seenuids"] or "")
            for item in shown["scripts"]:
                things["sieve", user, item["filename"]] = item["guid"]
        ours = {uniqueid for uniqueid, owners in self.owners.items() if owners & set(users)}
        for uniqueid, modseq in sorted(self.heads.items()):
            if uniqueid in ours and boxes.get(uniqueid, -1) < modseq:
                out.append("mailbox %s: HIGHESTMODSEQ is %s, acknowledged %d" % (uniqueid, boxes.get(uniqueid), modseq))
        for uniqueid, records in sorted(self.records.items()):
            if uniqueid not in ours:
                continue
            for uid, record in sorted(records.items()):
                found = [i for i in held.get((uniqueid, uid), ()) if i["guid"] == record["guid"]]
                where = "mailbox %s: uid %d" % (uniqueid, uid)
                if record["expunged"]:
                    # One that this backup only ever heard of as expunged need not be listed.
                    continue
                if not found:
                    out.append("%s: acknowledged and not listed" % where)
                    continue
                newest = max(int(i["modseq"]) for i in found)
                if newest < record["modseq"]:
                    out.append("%s: modseq is %d, acknowledged %d" % (where, newest, record["modseq"]))
        settle()
        for key, wanted in sorted(before.items(), key=lambda pair: pair[0]):
            kind, user, what = key
            if user not in present or user not in files:
                continue
            allowed = [wanted] + self.maybe.get(key, []) + self.named.get(key, [])
            got = things.get(key)
            if kind == "sieve":
                allowed = [None if c is None else _sha1(c) for c in allowed]
            if got not in allowed:
                out.append("%s of %s: %s is %r, acknowledged %r" % (kind, user, what, got, allowed))
        return out


def _sha1(data):
    import hashlib

    return hashlib.sha1(data).hexdigest()
