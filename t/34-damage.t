#!/usr/bin/env python3
"""Whatever is damaged in a log, and whatever index lies beside it: heal and the next runs of
the real sync_client bring the backup to what the server has, nobody else is needed, the
server is not changed, and what is lost for good has a name.

    STEP=7 t/34-damage.t       the long form: a bit of every 7th byte
"""

import os
import random
import re
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox
from cyrusrig.receiver import Backupd

STEP = int(os.environ.get("STEP", 0))


class Kept:
    """A user's backup at rest, to be put back as it was."""

    def __init__(self, rig, user):
        self.rig, self.user = rig, user
        self.path = rig.to.data_file(user)
        rig.to.stop()
        self.log = self.read(self.path)
        self.index = self.read(self.path + ".index")
        rig.to.start()

    @staticmethod
    def read(path):
        with open(path, "rb") as file:
            return file.read()

    def put(self, log, index):
        """With nobody at it. `index`: bytes, or None."""
        self.rig.to.stop()
        folder = os.path.dirname(self.path)
        for name in os.listdir(folder):
            if name.startswith(os.path.basename(self.path)):
                os.unlink(os.path.join(folder, name))
        for path, data in ((self.path, log), (self.path + ".index", index)):
            if data is not None:
                with open(path, "wb") as file:
                    file.write(data)
                sandbox.owned(path)
                os.chmod(path, 0o600)
        self.rig.to.start()


def unreadable(rig, user):
    bad = []
    for item in rig.to.json("messages", user)["messages"]:
        done = rig.to.tool("dump", "message", user, item["guid"])
        if done.code != 0:
            bad.append(item["uid"])
    return bad


def comes_back(rig, user, what, heal=True, changes=False):
    """heal and syncs bring all of it."""
    said = []
    if heal:
        done = rig.to.tool("heal", user)
        said.append(str(done)[-1500:])
        expect(done.code in (0, 65), what + ": status of heal", said)
    before = rig.cyrus.state([user])
    if changes:
        with rig.cyrus.imap(user) as imap:
            imap.append("INBOX", message("while it is damaged", to=user))
        before = rig.cyrus.state([user])
    codes = []
    for _ in range(4):
        done = rig.cyrus.sync(rig.to, "-u", user)
        codes.append(done.code)
        if done.code == 0 and len(codes) > 1:
            break
    try:
        expect_equal(codes[-1], 0, what + ": status of the syncs %s" % codes)
        rig.harmless(before, [user])
        rig.whole(user, bodies=False)
        expect_equal(unreadable(rig, user), [], what + ": messages that do not read")
    except Exception as why:
        raise Failed("%s: %s" % (what, why), said + getattr(why, "lines", [])) from why


def setup():
    if RECEIVER != "ours":
        raise Skip("about our own logs")
    rig = start_rig()
    rig.cyrus.user("carl")
    for turn in range(3):
        with rig.cyrus.imap("carl") as imap:
            if turn == 0:
                imap.create("INBOX/Sent")
                imap.setmetadata("INBOX", "/private/comment", "words")
            imap.fill("INBOX", [message("carl%d.%d" % (turn, n), 300 + 200 * n, to="carl") for n in range(4)])
            imap.append("INBOX/Sent", message("sent%d" % turn, 400, to="carl"))
            imap.select("INBOX")
            imap.store("%d" % (turn + 1), "+FLAGS", "\\Seen $Label")
        rig.sync("-u", "carl")
    rig.kept = Kept(rig, "carl")
    members = rig.to.json("chunks", "carl")["chunks"]
    expect(len(members) >= 3, "members", [str(members)])
    rig.members = [(c["offset"], c["length"]) for c in members]
    return rig


def flipped(data, bit):
    data = bytearray(data)
    data[bit // 8] ^= 1 << (bit % 8)
    return bytes(data)


@case("a bit flips, with the index, without one")
def flips(rig):
    size = len(rig.kept.log)
    dice = random.Random(7)
    if STEP:
        places = list(range(0, size, STEP))
    else:
        # The first line, which names the log; and all over it.
        places = [3, 60, 100, 170] + [dice.randrange(size) for _ in range(6)]
    for at in places:
        bit = at * 8 + dice.randrange(8)
        for index in (rig.kept.index, None):
            rig.kept.put(flipped(rig.kept.log, bit), index)
            comes_back(rig, "carl", "bit %d of %d, %s index" % (bit, size * 8, "with" if index else "without"))


def stated(rig, what, by, turn):
    """A log in which the first group of the last (`turn` 0: of the first) match of `what` is replaced,
    and the member still inflates: what a flipped bit can do to a compressed literal."""
    import gzip
    import zlib

    for offset, length in (rig.members[::-1] if turn else rig.members):
        member = rig.kept.log[offset : offset + length]
        plain = gzip.decompress(member)
        found = list(re.finditer(what, plain))
        if not found:
            continue
        match = found[-1] if turn else found[0]
        wrong = plain[: match.start(1)] + by + plain[match.end(1) :]
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = packer.compress(wrong) + packer.flush(zlib.Z_SYNC_FLUSH) + packer.flush()
        # The sum of what was written, as it stands in the trailer.
        return rig.kept.log[:offset] + member[:10] + body + member[-8:] + rig.kept.log[offset + length :]
    raise Failed("nothing like %r" % what)


@case("a character of a line is another: the wrong sum is heeded, and the sender asked")
def characters(rig):
    for what, by in (
        (rb"MBOXNAME (u)ser\.carl ", b"_"),
        (rb"MBOXNAME user\.car(l) ", b"k"),
        (rb"MBOXNAME user\.carl(\.)Sent ", b"1"),
        (rb"MBOXNAME user\.carl\.Sen(t) ", b"u"),
        (rb"UNIQUEID (\w)", b"_"),
        (rb"HIGHESTMODSEQ (\d)", b"E"),
        (rb"HIGHESTMODSEQ (\d)", b"9"),
        (rb"UIDVALIDITY \d+(\d) ", b"n"),
        (rb"LAST_UID (\d)", b"9"),
        (rb"\(UID (\d)", b"7"),
        (rb"GUID ([0-9a-f])", b"A"),
    ):
        for turn in (1, 0):
            log = stated(rig, what, by, turn)
            for index in (None, rig.kept.index) if STEP else (None,):
                rig.kept.put(log, index)
                title = "%r, %s, %s index" % (what, "last" if turn else "first", "with" if index else "without")
                if index is None:
                    done = rig.to.tool("reindex", "carl")
                    expect_equal(done.code, 65, "reindex, %s: %s" % (title, done))
                comes_back(rig, "carl", title, heal=index is not None)


@case("an index from before, as after a power failure, and damage in what it has not seen")
def behind(rig):
    offset, length = rig.members[-2]
    older = None
    # The index of the log as it was two members ago.
    rig.kept.put(rig.kept.log[:offset], None)
    expect_equal(rig.to.tool("verify", "carl").code in (0, 65), True, "verify")
    rig.to.tool("messages", "carl")
    rig.to.stop()
    older = Kept.read(rig.kept.path + ".index")
    rig.to.start()
    log = bytearray(rig.kept.log)
    middle = offset + length - length // 4
    log[middle : middle + 40] = bytes(40)
    for heal in (True, False):
        rig.kept.put(bytes(log), older)
        comes_back(rig, "carl", "damage in the second last member, heal %s" % heal, heal=heal)
    log = bytearray(rig.kept.log)
    offset, length = rig.members[-1]
    log[offset + length // 2 : offset + length // 2 + 40] = bytes(40)
    for heal in (True, False):
        rig.kept.put(bytes(log), older)
        comes_back(rig, "carl", "damage in the last member, heal %s" % heal, heal=heal)
        copies = [n for n in os.listdir(os.path.dirname(rig.kept.path)) if ".damaged." in n]
        expect(copies, "a copy of what was cut")
    rig.kept.put(rig.kept.log + os.urandom(500), rig.kept.index)
    comes_back(rig, "carl", "noise behind the end")


@case("a log that lost its end: what is lost is named, asked for, and taken from a copy")
def shorter(rig):
    lost = rig.members[-1][1]
    copy = temp_dir("cyrusrig-copy-")
    path = os.path.join(copy, os.path.basename(rig.kept.path))
    with open(path, "wb") as file:
        file.write(rig.kept.log)
    os.chmod(copy, 0o755)
    os.chmod(path, 0o644)
    for cut in (lost, 30, lost // 2, len(rig.kept.log) - 40, len(rig.kept.log)):
        for how in ("reindex", "sync", "copy"):
            what = "%d bytes lost, %s" % (cut, how)
            rig.kept.put(rig.kept.log[: len(rig.kept.log) - cut], rig.kept.index)
            if how == "reindex":
                done = rig.to.tool("reindex", "carl")
                expect_equal(done.code, 65, what + ": %s" % done)
                expect("is lost, uid " in done.out, what + ": the messages are named", [done.out])
                expect("to be sent again: user/carl" in done.out, what + ": it is asked for", [done.out])
            if how == "copy":
                done = rig.to.tool("heal", "--from", copy, "carl")
                expect_equal(done.code, 0, what + ": %s" % done)
                expect_equal(unreadable(rig, "carl"), [], what + ": all is back from the copy")
            comes_back(rig, "carl", what, heal=how == "copy")
    shutil.rmtree(copy)


@case("a damaged log of the old server: the gap is filled, with new mail and without")
def old(rig):
    if not os.path.exists(sandbox.BIN + "/backupd"):
        raise Skip("there is no backupd")
    rig.cyrus.user("otto", "olga")
    theirs = Backupd()
    try:
        for user in ("otto", "olga"):
            for turn in range(3):
                with rig.cyrus.imap(user) as imap:
                    imap.fill("INBOX", [message("%s%d.%d" % (user, turn, n), 500, to=user) for n in range(4)])
                rig.sync("-u", user, to=theirs)
        for user, changes, heal in (("otto", True, False), ("olga", False, True)):
            log = bytearray(Kept.read(theirs.data_file(user)))
            starts = [m.start() for m in re.finditer(rb"\x1f\x8b\x08", bytes(log))]
            at = starts[2] - 120
            log[at : at + 30] = bytes(30)
            # In the place of one of ours, which is empty.
            rig.cyrus.sync(rig.to, "-u", user)
            Kept(rig, user).put(bytes(log), None)
            comes_back(rig, user, "old log of " + user, heal=heal, changes=changes)
    finally:
        theirs.stop()


run(setup, Rig.close)
