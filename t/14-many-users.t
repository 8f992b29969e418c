#!/usr/bin/env python3
"""Many users in one session: each log holds its user's mail only, the whole is as large
as the mail, and a user whose backup is locked holds up nobody else."""

import fcntl
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *

USERS = ["user%02d" % n for n in range(50)]
BACKUPS = ("ours", "backupd")


def setup():
    rig = start_rig({"backup_lock_wait": "2"} if RECEIVER == "ours" else {}, channels=["", "one"])
    rig.cyrus.user(*USERS)
    for number, user in enumerate(USERS):
        with rig.cyrus.imap(user) as imap:
            imap.fill("INBOX", [message("%s-%d" % (user, n), 8000, to=user) for n in range(8 + number % 5)])
            # A newsletter that everybody has.
            imap.append("INBOX", message("newsletter", 8000, to="all"))
    return rig


def mail_bytes(held):
    return sum(r["size"] for b in held["mailboxes"].values() for r in b["records"].values())


@case("-A over %d users: each log has its user's mail only, and all of it" % len(USERS),
      todo={"backupd": "B1: bodies land in every open backup"})
def everything(rig):
    began = time.monotonic()
    rig.sync("-A", timeout=180)
    diag("-A took %.1f s" % (time.monotonic() - began))
    held = rig.cyrus.dump(USERS)
    rig.whole(*USERS, state=held)
    if RECEIVER not in BACKUPS:
        return
    foreign = []
    files = rig.to.data_files()
    for user in USERS:
        own = {
            r["guid"]
            for n, b in held["mailboxes"].items()
            if n == "user." + user or n.startswith("user.%s." % user)
            for r in b["records"].values()
        }
        for guid in logfile.bodies(files[user]):
            if guid not in own:
                foreign.append("%s: has body %s of somebody else" % (user, guid))
    expect_none(foreign, "mail of others")


@case("the logs together are as large as the mail", only=BACKUPS, todo={"backupd": "B1: grows with the square"})
def proportional(rig):
    held = rig.cyrus.dump(USERS)
    mail = mail_bytes(held)
    records = sum(len(b["records"]) for b in held["mailboxes"].values())
    plain = sum(len(text) for path in rig.to.data_files().values() for text in logfile.plain(path))
    # A record is some 450 bytes of its own, a first state some KB a user.
    limit = mail * 1.05 + records * 600 + len(USERS) * 8000
    diag("mail %d bytes, logs %d bytes of plain text (%.2f)" % (mail, plain, plain / mail))
    expect(plain <= limit, "plain text is proportional to the mail", ["%d bytes, at most %d" % (plain, limit)])


@case("a second -A changes nothing: no byte is written", only=BACKUPS, todo={"backupd": "B20: an empty chunk each time"})
def nothing(rig):
    before = {u: os.path.getsize(p) for u, p in rig.to.data_files().items()}
    rig.sync("-A", timeout=180)
    after = {u: os.path.getsize(p) for u, p in rig.to.data_files().items()}
    expect_none(
        ["%s: %d bytes became %d" % (u, before[u], after[u]) for u in before if before[u] != after[u]],
        "data files that grew",
    )


@case("a user whose backup is locked is deferred, the others go on", only=BACKUPS)
def locked(rig):
    held_up, others = USERS[3], [USERS[2], USERS[4], USERS[40]]
    for user in [held_up] + others:
        rig.sync("-u", user)
    client = rig.cyrus.rolling(rig.to, "one")
    with open(rig.to.data_file(held_up), "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        for user in [held_up] + others:
            with rig.cyrus.imap(user) as imap:
                imap.append("INBOX", message("while locked", to=user))
        end = time.monotonic() + 40
        while True:
            try:
                rig.whole(*others)
                break
            except Failed:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
        expect(client.running(), "the rolling client is still there", [client.process.output()])
        # Closing the file lets go.
    client.drain(60)
    expect(client.running(), "the rolling client is still there", [client.process.output()])
    client.stop()
    rig.whole(held_up, *others)


@case("-u of a locked user fails alone", only=BACKUPS)
def locked_once(rig):
    user, other = USERS[5], USERS[6]
    for name in (user, other):
        with rig.cyrus.imap(name) as imap:
            imap.append("INBOX", message("locked again", to=name))
    with open(rig.to.data_file(user), "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        done = rig.cyrus.sync(rig.to, "-u", user, timeout=90)
        expect(done.code not in (0, None), "the locked user is reported", [str(done)])
        rig.sync("-u", other)
        rig.whole(other)
    rig.sync("-u", user)
    rig.whole(user)


run(setup, Rig.close)
