#!/usr/bin/env python3
"""The live server is never harmed: whatever state of ours it meets, its UIDs,
UIDVALIDITY, modseqs, flags and messages are what they were, with -O and without."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *


def setup():
    return start_rig()


def fresh(rig, user, count=12):
    rig.cyrus.user(user)
    with rig.cyrus.imap(user) as imap:
        imap.fill("INBOX", [message(n, 400, to=user) for n in range(count)])
        imap.create("INBOX/Sent")
        imap.fill("INBOX/Sent", [message("s%d" % n, 400, to=user) for n in range(3)])
    rig.sync("-u", user)


def visible(state):
    """What users and their programs notice; HIGHESTMODSEQ is left to `strict`."""
    found = {}
    for label, box in state["imap"].items():
        found[label] = {
            "UIDVALIDITY": box["UIDVALIDITY"],
            "UIDNEXT": box["UIDNEXT"],
            "messages": box["messages"],
        }
    return {"mailboxes": {}, "users": {}, "imap": found}


def unharmed(rig, users, ways=((), ("-O",)), strict=True):
    """Run -u in each way, whatever it answers; then assert the server is untouched."""
    before = rig.cyrus.state(users)
    for words in ways:
        for _attempt in range(2):
            done = rig.cyrus.sync(rig.to, *words, "-u", *users)
            if done.code is None:
                raise Failed("sync_client did not end", [str(done)])
        after = rig.cyrus.state(users)
        if strict:
            expect_none(compare.states(before, after), "server before and after " + " ".join(words + ("-u",)))
        expect_none(
            compare.states(visible(before), visible(after)), "what IMAP shows, after " + " ".join(words + ("-u",))
        )


BOTH = ((), ("-O",))
PLAIN = ((),)
# backupd refuses APPLY FORCE, so there -O ends at once and harms nobody.


def rare(rig, user):
    """The scenario that made the old one renumber a live mailbox."""
    fresh(rig, user)
    with rig.cyrus.imap(user) as imap:
        imap.select("INBOX")
        imap.move("3:8", "INBOX/Sent")
        imap.copy("9", "INBOX/Sent")
    rig.sync("-u", user)
    with rig.cyrus.imap(user) as imap:
        imap.select("INBOX/Sent")
        imap.expunge("1:2")
        imap.select("INBOX")
        imap.expunge("1:2,10:11")
    rig.cyrus.expire("-E", "0", "-X", "0")


@case("backups rarer than cyr_expire: the client asks FULLMAILBOX", todo={"backupd": "B7: renumbers live messages"})
def full(rig):
    rare(rig, "rare")
    # The client itself raises its HIGHESTMODSEQ in this repair, even against a replica.
    unharmed(rig, ["rare"], PLAIN, strict=False)
    rig.whole("rare")


@case("backups rarer than cyr_expire, with -O")
def full_no_copyback(rig):
    rare(rig, "rareo")
    unharmed(rig, ["rareo"], (("-O",),))


@case("moved and back, copied twice, expunged and cleaned between backups", todo={"backupd": "B3, B4, B7"})
def mixed(rig):
    fresh(rig, "mixed")
    for number in range(3):
        with rig.cyrus.imap("mixed") as imap:
            imap.select("INBOX")
            uids = sorted(imap.messages("INBOX", bodies=False))
            imap.select("INBOX")
            imap.move("%d" % uids[0], "INBOX/Sent")
            imap.copy("%d" % uids[1], "INBOX")
            uids = sorted(imap.messages("INBOX/Sent", bodies=False))
            imap.select("INBOX/Sent")
            imap.move("%d" % uids[-1], "INBOX")
            imap.expunge("%d" % uids[0])
            imap.append("INBOX", message("m%d" % number))
        rig.cyrus.expire("-E", "0", "-X", "0")
        if number != 1:
            unharmed(rig, ["mixed"], PLAIN, strict=False)
            rig.whole("mixed")


@case("what we keep is older than the server believes")
def older(rig):
    fresh(rig, "older")
    copy = rig.to.snapshot()
    with rig.cyrus.imap("older") as imap:
        imap.fill("INBOX", [message("n%d" % n) for n in range(3)])
        imap.select("INBOX")
        imap.store("1:5", "+FLAGS", "\\Seen")
        imap.expunge("2")
    rig.sync("-u", "older")
    rig.to.restore(copy)
    unharmed(rig, ["older"])


@case("older, and the server has cleaned up since", todo={"backupd": "B7"})
def older_cleaned(rig):
    fresh(rig, "oldcln")
    copy = rig.to.snapshot()
    with rig.cyrus.imap("oldcln") as imap:
        imap.fill("INBOX", [message("n%d" % n) for n in range(3)])
        imap.select("INBOX")
        imap.expunge("2,4,13")
    rig.sync("-u", "oldcln")
    rig.cyrus.expire("-E", "0", "-X", "0")
    rig.to.restore(copy)
    unharmed(rig, ["oldcln"], PLAIN, strict=False)
    rig.whole("oldcln")


def restored_server(ways):
    rig = start_rig()
    try:
        fresh(rig, "anna")
        copy = rig.cyrus.snapshot()
        with rig.cyrus.imap("anna") as imap:
            imap.fill("INBOX", [message("lost%d" % n) for n in range(5)])
            imap.select("INBOX")
            imap.store("1:4", "+FLAGS", "\\Seen")
            imap.expunge("2")
            imap.delete("INBOX/Sent")
        rig.sync("-u", "anna")
        rig.cyrus.restore(copy)
        unharmed(rig, ["anna"], ways)
        with rig.cyrus.imap("anna") as imap:
            imap.fill("INBOX", [message("instead%d" % n) for n in range(2)])
        unharmed(rig, ["anna"], ways)
    finally:
        rig.close()


@case("what we keep is newer: the server is restored from an older copy", todo={"replica": "a replica copies back"})
def newer(_rig):
    restored_server(PLAIN)


@case("the same with -O")
def newer_no_copyback(_rig):
    restored_server((("-O",),))


@case("what we keep is damaged", only=("ours",))
def damaged(rig):
    def lose(user):
        rig.to.edit_index(user, ["uid", "modseq"], "delete from {} where uid in (2, 3)")

    def lift(user):
        sql = "update {} set highestmodseq = highestmodseq + 1000"
        expect(rig.to.edit_index(user, ["uniqueid", "highestmodseq"], sql), "modseqs were changed")

    def validity(user):
        sql = "update {} set uidvalidity = uidvalidity + 1000"
        expect(rig.to.edit_index(user, ["uniqueid", "uidvalidity"], sql), "uidvalidities were changed")

    def bodies(user):
        logfile.rewrite(rig.to.data_file(user), lambda name, _value: name != "MESSAGE")
        rig.to.drop_index(user)

    def flip(user):
        rig.to.drop_index(user)
        path = rig.to.data_file(user)
        with open(path, "r+b") as file:
            size = file.seek(0, 2)
            file.seek(size // 2)
            file.write(b"\xff\x00\xff\x00")

    def empty(user):
        rig.to.drop_index(user)
        os.truncate(rig.to.data_file(user), 0)

    for number, damage in enumerate((lose, lift, validity, bodies, flip, empty)):
        user = "dmg%d" % number
        fresh(rig, user)
        with rig.cyrus.imap(user) as imap:
            imap.select("INBOX")
            imap.store("4", "+FLAGS", "\\Seen")
            imap.append("INBOX", message("new", to=user))
        rig.to.stop()
        damage(user)
        rig.to.start()
        try:
            unharmed(rig, [user])
        except Failed as why:
            raise Failed("%s: %s" % (damage.__name__, why), why.lines) from why


@case("an empty receiver takes the place of the full one")
def empty_receiver(rig):
    fresh(rig, "newhome")
    to = receiver(**({"sync_log": "no"} if RECEIVER == "replica" else {}))
    try:
        before = rig.cyrus.state(["newhome"])
        rig.sync("-u", "newhome", to=to, sync_cache_db_path=rig.cyrus.dir + "/sync_cache.db")
        rig.whole("newhome", to=to)
        rig.harmless(before, ["newhome"])
    finally:
        to.stop()


run(setup, Rig.close)
