#!/usr/bin/env python3
"""The full circle: a server is lost and made again from its backup alone. What IMAP shows of
every message, and what replication could know, is what it was; and the next sync_client from
the new server into the same backup has nothing to do. REBUILD_USERS says how many users."""

import json
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import compare, sandbox

COUNT = int(os.environ.get("REBUILD_USERS", "4"))
USERS = ["u%02d" % n for n in range(COUNT)]
LOGIN = {"restore_authname": "admin", "restore_password": PASSWORD}
# Trees below INBOX, beside it, odd names, and a placeholder in between.
FOLDERS = ["Sent", "Work", "Work/2025/May", "Sp ace &- more", "a.b", "Archive", "Archive/Old"]


def setup():
    if RECEIVER != "ours":
        raise Skip("about our own command")
    rig = start_rig(to_options=LOGIN, delete_mode="delayed")
    rig.cyrus.user(*USERS)
    chance = random.Random(COUNT)
    for user in USERS:
        fill(rig.cyrus, user, chance)
    with rig.cyrus.imap("admin") as imap:
        imap.create("shared")
        imap.create("shared/team")
        imap.setacl("shared/team", "anyone", "lrswip")
        for user in USERS[::2]:
            imap.setquota("user/" + user, storage=100000 + int(user[1:]))
    with rig.cyrus.imap(USERS[0]) as imap:
        imap.fill("shared/team", [message("team%d" % n) for n in range(5)])
        imap.setacl("INBOX", USERS[1], "lrs")
    with rig.cyrus.imap(USERS[1]) as imap:
        imap.subscribe("shared/team")
        for name in ("user/" + USERS[0], "shared/team"):
            imap.select(name)
            imap.store("2:4", "+FLAGS", "\\Seen")
    client = rig.cyrus.rolling(rig.to)
    try:
        client.drain()
    finally:
        client.stop()
    rig.sync("-A")
    rig.sync("-m", "shared", "shared.team")
    rig.whole(*USERS)
    return rig


def fill(cyrus, user, chance):
    flags = ["", "\\Seen", "\\Flagged", "\\Answered \\Seen", "\\Draft", "$Forwarded own", "\\Deleted", "$Junk"]
    with cyrus.imap(user) as imap:
        for folder in [""] + FOLDERS:
            name = "INBOX" + ("/" + folder if folder else "")
            if folder:
                imap.create(name)
            for number in range(chance.randrange(1, 15)):
                body = message("%s%d" % (folder, number), chance.choice([200, 3000, 40000]), to=user)
                date = "%02d-Feb-20%02d 0%d:00:00 +0200" % (chance.randrange(1, 28), chance.randrange(10, 26), chance.randrange(10))
                imap.append(name, body, chance.choice(flags), date)
            imap.select(name)
            if chance.random() < 0.7:
                imap.store("1:3", chance.choice("+-") + "FLAGS", "\\Seen")
                imap.expunge(str(chance.randrange(1, 4)))
            if chance.random() < 0.3:
                imap.annotate("*", "/comment", "value.shared", "a note of %s" % user)
            if chance.random() < 0.3:
                imap.setmetadata(name, "/private/comment", "mine")
        imap.setmetadata("INBOX/Sent", "/shared/comment", "what I said")
        imap.setacl("INBOX/Work", "anyone", "lr")
        imap.select("INBOX/Work")
        imap.copy("1:*", "INBOX/Archive")
        imap.subscribe("INBOX/Work")
        imap.create("INBOX/Deleted")
        imap.subscribe("INBOX/Deleted")
        imap.delete("INBOX/Deleted")
    cyrus.sieve_upload(user, {"main": "# of %s\r\nkeep;\r\n" % user, "other": "discard;\r\n"}, active=chance.choice(["main", "other", ""]))


def sizes(rig):
    return {user: os.path.getsize(path) for user, path in rig.to.data_files().items()}


def run_restore(rig, new, *args):
    where = "unix:" + new.csync_socket
    return rig.to.tool("restore", "-j", "--all-users", "--keep-uids", "--newest-first", "--to", where, *args)


def rebuilt(rig, way):
    """A new server made from the backup; the old state and the new one."""
    before = rig.cyrus.state(USERS, ["shared", "shared.team"])
    new = Cyrus(name="again-" + way, delete_mode="delayed")
    for user in rig.cyrus.passwords:
        new.password(user)
    where = {"imap": "imap://127.0.0.1:%d" % new.imap_port, "unix": "unix:" + new.csync_socket}[way]
    done = rig.to.tool("restore", "-j", "--all-users", "--keep-uids", "--newest-first", "--to", where)
    expect(done.code == 0, "restore", [str(done)[-3000:]])
    told = json.loads(done.out)["users"]
    boxes = [box for user in told for box in user["mailboxes"]]
    expect_none([str(b) for b in boxes if b["differs"] or b["failed"] or b["notes"]], "what restore says is not equal")
    expect_none([str(b) for b in boxes if not b["compared"]], "what was not compared")
    total = json.loads(done.out)["total"]
    expect_equal((total["equal"], total["unequal"], total["not_compared"]), (len(boxes), 0, 0), "all of them together")
    expect(sum(b["brought"] for b in boxes) > COUNT * 10, "messages were brought")
    expect_none(compare.states(before, new.state(USERS, ["shared", "shared.team"])), "the server before and after")
    again = json.loads(rig.to.tool("restore", "-j", "--all-users", "--keep-uids", "--to", where).out)["users"]
    expect_equal(sum(b["brought"] for u in again for b in u["mailboxes"]), 0, "a second run brings nothing")
    return new


@case("lost and rebuilt over the replication port; sync_client then has nothing to send")
def circle(rig):
    new = rebuilt(rig, "unix")
    try:
        before = sizes(rig)
        new.sync_ok(rig.to, "-A")
        new.sync_ok(rig.to, "-m", "shared", "shared.team")
        expect_equal(sizes(rig), before, "sizes of the logs")
        rig.whole(*USERS, state=new.dump(USERS))
        # It lives: new mail goes on under the next UID and into the same backup.
        user = USERS[0]
        with new.imap(user) as imap:
            imap.append("INBOX", message("after", to=user))
        new.sync_ok(rig.to, "-u", user)
        rig.whole(user, state=new.dump([user]))
        grown = os.path.getsize(rig.to.data_files()[user]) - before[user]
        expect(0 < grown < 20000, "one message was sent", ["%d bytes" % grown])
        # The old state must not go over a newer one.
        expect_equal(run_restore(rig, new).code, 0, "restored once more")
        with new.imap(user) as imap:
            imap.append("INBOX", message("newer", to=user))
        listed = new.dump([user])["mailboxes"]
        done = run_restore(rig, new)
        expect_equal(done.code, 1, "a mailbox has gone on")
        expect("changed on the server since" in done.out, "it is told", [done.out[-2000:]])
        expect_equal(new.dump([user])["mailboxes"], listed, "and left alone")
    finally:
        new.stop()


@case("the same through imapd")
def through_imap(rig):
    # What the last case has added is in the backup; the first server takes it over.
    rig.cyrus.stop()
    first = rig.cyrus
    try:
        rig.cyrus = Cyrus(name="third", delete_mode="delayed")
        for user in first.passwords:
            rig.cyrus.password(user)
        done = run_restore(rig, rig.cyrus)
        expect_equal(done.code, 0, "the server to compare with")
        rebuilt(rig, "imap").stop()
    finally:
        rig.cyrus.stop()
        rig.cyrus = first


@case("a mailbox that is another one is left alone, and told")
def stranger(rig):
    new = Cyrus(name="strange")
    try:
        user = USERS[0]
        new.user(user)
        with new.imap(user) as imap:
            imap.append("INBOX", message("mine", to=user))
        before = new.dump([user])["mailboxes"]["user." + user]
        done = rig.to.tool("restore", "-j", "--keep-uids", "--to", "unix:" + new.csync_socket, user)
        expect_equal(done.code, 1, "not all is well")
        box = [b for b in json.loads(done.out)["users"][0]["mailboxes"] if b["mboxname"] == "user." + user][0]
        expect("another mailbox" in box["failed"][0]["why"], "it is told", [str(box)])
        expect_equal(new.dump([user])["mailboxes"]["user." + user], before, "it is left alone")
        with new.imap(user) as imap:
            expect("INBOX/Sent" in imap.list(), "the others are there")
    finally:
        new.stop()


run(setup, Rig.close)
