#!/usr/bin/env python3
"""What is kept and what the server holds have gone apart, in every way we could think
of. It must heal by the second attempt of a plain -u, and of a rolling client without
anybody's help; other users' work goes on; the server is never touched."""

import glob
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *

OURS = ("ours",)


def setup():
    rig = start_rig()
    rig.cyrus.user("other")
    return rig


def fresh(rig, user, count=8):
    rig.cyrus.user(user)
    with rig.cyrus.imap(user) as imap:
        imap.fill("INBOX", [message(n, 400, to=user) for n in range(count)])
        imap.create("INBOX/Sent")
        imap.fill("INBOX/Sent", [message("s%d" % n, 400, to=user) for n in range(3)])
    rig.sync("-u", user)
    rig.whole(user)


def healed(rig, user, change=True, **options):
    """New mail, then -u twice at most; whole; server untouched; and stable."""
    if change:
        with rig.cyrus.imap(user) as imap:
            imap.append("INBOX", message("after the damage %s" % time.monotonic(), to=user))
            imap.select("INBOX")
            imap.store("2", "+FLAGS", "\\Flagged")
    before = rig.cyrus.state([user])
    rig.sync("-u", user, attempts=2, **options)
    rig.whole(user)
    rig.harmless(before, [user])
    rig.sync("-u", user, **options)
    rig.whole(user)
    if RECEIVER == "ours":
        marked = [n for n, b in rig.to.listing([user]).items() if b["resync"]]
        expect_none(marked, "mailboxes still marked resync")


def with_stopped(rig, damage):
    """Damage what is kept while nobody uses it."""
    rig.to.stop()
    try:
        changed = damage()
        expect(changed, "the damage was done")
    finally:
        rig.to.start()


@case("an older copy of the backup is put back")
def older_copy(rig):
    fresh(rig, "oldcopy")
    copy = rig.to.snapshot()
    with rig.cyrus.imap("oldcopy") as imap:
        imap.fill("INBOX", [message("later%d" % n, to="oldcopy") for n in range(4)])
        imap.select("INBOX")
        imap.store("1:3", "+FLAGS", "\\Seen")
        imap.move("4", "INBOX/Sent")
        imap.create("INBOX/New")
    rig.sync("-u", "oldcopy")
    rig.to.restore(copy)
    healed(rig, "oldcopy")


@case("an older copy of the backup, and the sender's sync cache is warm")
def warm_cache(rig):
    fresh(rig, "cache")
    path = rig.cyrus.dir + "/sync_cache.db"
    options = {"sync_cache_db_path": path}
    rig.sync("-u", "cache", **options)
    copy = rig.to.snapshot()
    with rig.cyrus.imap("cache") as imap:
        imap.fill("INBOX", [message("later%d" % n, to="cache") for n in range(4)])
    rig.sync("-u", "cache", **options)
    rig.to.restore(copy)
    healed(rig, "cache", **options)


@case("records vanish from the index", only=OURS)
def lost_records(rig):
    fresh(rig, "lostrec")
    sql = "delete from {} where uid between 2 and 4"
    # What comes again arrives anew; the log knows better when it came first.
    rig.damaged.add("lostrec")
    with_stopped(rig, lambda: rig.to.edit_index("lostrec", ["uid", "modseq"], sql))
    healed(rig, "lostrec")


@case("the checksum of the mailbox is wrong in the index", only=OURS)
def wrong_crc(rig):
    fresh(rig, "wrongcrc")
    sql = "update {} set crc = crc + 1 where uniqueid is not null"
    with_stopped(rig, lambda: rig.to.edit_index("wrongcrc", ["uniqueid", "crc"], sql))
    # The sum of the mailbox that is not sent again stays wrong, and verify says so.
    rig.damaged.add("wrongcrc")
    healed(rig, "wrongcrc")


@case("records are others than the checksum says", only=OURS)
def swapped_records(rig):
    rig.cyrus.user("swapped")
    with rig.cyrus.imap("swapped") as imap:
        imap.fill("INBOX", [message(n, 400, to="swapped") for n in range(8)])
        imap.select("INBOX")
        imap.store("5", "+FLAGS", "\\Answered")
    rig.sync("-u", "swapped")
    sql = "update {} set flags = (select flags from {} where uid = 5 limit 1) where uid = 3"
    with_stopped(rig, lambda: rig.to.edit_index("swapped", ["uid", "flags"], sql))
    healed(rig, "swapped")


@case("the index is deleted", only=OURS)
def no_index(rig):
    fresh(rig, "noindex")
    with_stopped(rig, lambda: rig.to.drop_index("noindex") or True)
    rig.whole("noindex")
    healed(rig, "noindex")


@case("backups.db is deleted: logs are found where they lie, no second one begins", only=OURS)
def no_catalog(rig):
    fresh(rig, "nocat")
    fresh(rig, "nocat2")
    before = {user: rig.to.data_file(user) for user in ("nocat", "nocat2")}
    with_stopped(rig, lambda: os.unlink(rig.to.tree + "/conf/backups.db") or True)
    size = os.path.getsize(before["nocat"])
    rig.sync("-u", "nocat")
    expect_equal(os.path.getsize(before["nocat"]), size, "nothing is new, nothing is sent")
    healed(rig, "nocat")
    # The catalogue is not empty any more, and lacks the others all the same.
    rig.to.stop()
    rig.to.start()
    healed(rig, "nocat2")
    expect_equal({user: rig.to.data_file(user) for user in before}, before, "files")
    for path in before.values():
        others = glob.glob(glob.escape(path.rsplit("_", 1)[0]) + "_??????")
        expect_equal(others, [path], "logs of the user")
        expect("is entered user=" in rig.to.recent_log(10000), "it is told")


@case("backups.db is damaged: refused, told as an error, mended by rescan", only=OURS)
def bad_catalog(rig):
    fresh(rig, "badcat")
    path = rig.to.tree + "/conf/backups.db"

    def damage():
        with open(path, "r+b") as file:
            file.seek(0)
            file.write(b"rubbish!" * 8)
        return True

    with_stopped(rig, damage)
    with rig.cyrus.imap("badcat") as imap:
        imap.append("INBOX", message("while it is damaged", to="badcat"))
    done = rig.cyrus.sync(rig.to, "-u", "badcat")
    expect(done.code != 0, "the sender hears of it", [str(done)])
    said = [line for line in rig.to.recent_log(1000).splitlines() if "database is damaged" in line]
    expect(said and all("IOERROR: command failed" in line for line in said), "an error, as of a disk", said)
    expect_equal(rig.to.tool("rescan", "--fix").code, 0, "rescan --fix")
    healed(rig, "badcat")


@case("bodies vanish from the log", only=OURS)
def lost_bodies(rig):
    fresh(rig, "lostbody")

    def damage():
        path = rig.to.data_file("lostbody")
        dropped = logfile.rewrite(path, lambda name, _value: name != "MESSAGE")
        rig.to.drop_index("lostbody")
        return dropped

    with_stopped(rig, damage)
    healed(rig, "lostbody")


@case("MAILBOX lines vanish from the log", only=OURS)
def lost_lines(rig):
    fresh(rig, "lostline")
    with rig.cyrus.imap("lostline") as imap:
        imap.append("INBOX", message("one more", to="lostline"))
    rig.sync("-u", "lostline")

    def damage():
        path = rig.to.data_file("lostline")
        seen = []

        def keep(name, value):
            if name == "MAILBOX" and value.get("MBOXNAME") == b"user.lostline":
                seen.append(1)
                return len(seen) != 1
            return True

        dropped = logfile.rewrite(path, keep)
        rig.to.drop_index("lostline")
        return dropped

    with_stopped(rig, damage)
    healed(rig, "lostline")


@case("a bit flips in the middle of the log", only=OURS)
def flipped(rig):
    fresh(rig, "flipped", 40)

    def damage():
        path = rig.to.data_file("flipped")
        rig.to.drop_index("flipped")
        with open(path, "r+b") as file:
            size = file.seek(0, 2)
            file.seek(size // 2)
            byte = file.read(1)[0]
            file.seek(size // 2)
            file.write(bytes([byte ^ 0x10]))
        return True

    with_stopped(rig, damage)
    with rig.cyrus.imap("flipped") as imap:
        imap.append("INBOX", message("after the flip"))
    before = rig.cyrus.state(["flipped"])
    rig.sync("-u", "flipped", attempts=2)
    rig.whole("flipped", bodies=False)
    rig.harmless(before, ["flipped"])


@case("the log is cut short", only=OURS)
def cut(rig):
    fresh(rig, "cut", 20)
    with rig.cyrus.imap("cut") as imap:
        imap.fill("INBOX", [message("second%d" % n) for n in range(10)])
    rig.sync("-u", "cut")

    def damage():
        path = rig.to.data_file("cut")
        size = os.path.getsize(path)
        os.truncate(path, size - size // 3)
        return True

    with_stopped(rig, damage)
    healed(rig, "cut")


@case(
    "the server is restored from an older copy and goes on from there",
    todo={"replica": "copies back into the server", "backupd": "keeps the newer state"},
)
def server_restored(_rig):
    rig = start_rig()
    try:
        fresh(rig, "anna")
        copy = rig.cyrus.snapshot()
        with rig.cyrus.imap("anna") as imap:
            imap.fill("INBOX", [message("lost%d" % n, to="anna") for n in range(5)])
            imap.select("INBOX")
            imap.store("1:4", "+FLAGS", "\\Seen")
            imap.expunge("2")
        rig.sync("-u", "anna")
        rig.whole("anna")
        rig.cyrus.restore(copy)
        # The same UIDs come back with other messages.
        with rig.cyrus.imap("anna") as imap:
            imap.fill("INBOX", [message("instead%d" % n, to="anna") for n in range(3)])
        healed(rig, "anna", change=False)
        if RECEIVER == "ours":
            kept = logfile.bodies(rig.to.data_file("anna"))
            import hashlib

            lost = [hashlib.sha1(message("lost%d" % n, to="anna")).hexdigest() for n in range(5)]
            expect_none([g for g in lost if g not in kept], "mail of before the restore that is gone from the log")
    finally:
        rig.close()


@case("a rolling client meets a diverged user: it heals, and others' work goes on")
def rolling(rig):
    fresh(rig, "rolldiv")
    copy = rig.to.snapshot()
    with rig.cyrus.imap("rolldiv") as imap:
        imap.fill("INBOX", [message("later%d" % n, to="rolldiv") for n in range(4)])
        imap.select("INBOX")
        imap.expunge("1")
    rig.sync("-u", "rolldiv")
    rig.to.restore(copy)
    rig.sync("-u", "other")
    client = rig.cyrus.rolling(rig.to, sync_cache_db_path=rig.cyrus.dir + "/sync_cache_rolling.db")
    try:
        for number in range(3):
            for user in ("rolldiv", "other"):
                with rig.cyrus.imap(user) as imap:
                    imap.append("INBOX", message("%s%d" % (user, number), to=user))
            time.sleep(0.7)
        client.drain(40)
        expect(client.running(), "the rolling client is still there", [client.process.output()])
    finally:
        client.stop()
    rig.whole("rolldiv", "other")


run(setup, Rig.close)
