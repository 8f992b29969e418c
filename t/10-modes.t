#!/usr/bin/env python3
"""Every way sync_client sends: -u, -m, -A, -s, -r, -O, channels, chains. After each the
receiver lists exactly what the server holds, and the server is what it was."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *

USERS = ["anna", "bert", "cora", "dora"]


def setup():
    rig = start_rig(channels=["", "one", "two"])
    cyrus = rig.cyrus
    cyrus.user(*USERS)
    with cyrus.imap("admin") as imap:
        imap.create("shared")
        imap.create("shared/team")
        imap.setacl("shared/team", "anyone", "lrswipte")
        imap.setacl("shared", "anyone", "lrswipte")
        imap.fill("shared/team", [message("team%d" % n, 700) for n in range(5)])
    for user in USERS:
        with cyrus.imap(user) as imap:
            imap.fill("INBOX", [message(n, 400, to=user) for n in range(8)])
            imap.create("INBOX/Sent")
            imap.fill("INBOX/Sent", [message("s%d" % n, 900, to=user) for n in range(3)], "\\Seen $Work")
            imap.select("INBOX")
            imap.store("2,4", "+FLAGS", "\\Flagged \\Answered")
            imap.store("3", "+FLAGS", "Label1")
            imap.subscribe("INBOX/Sent")
    return rig


def sent(rig, users, *args, shared=(), to=None, **options):
    """One run of sync_client: exit 0, everything listed, server unchanged."""
    before = rig.cyrus.state(users, shared)
    rig.sync(*args, to=to, **options)
    rig.whole(*users, shared=shared, to=to)
    rig.harmless(before, users, shared)


@case("-u one user, first and second time")
def one_user(rig):
    sent(rig, ["anna"], "-u", "anna")
    sent(rig, ["anna"], "-u", "anna")


@case("-u several users in one connection")
def several(rig):
    sent(rig, ["anna", "bert", "cora"], "-u", "anna", "bert", "cora")


@case("-m mailboxes: a user's and a shared one", todo={"backupd": "refuses a request that names several users"})
def mailboxes(rig):
    with rig.cyrus.imap("anna") as imap:
        imap.append("INBOX", message("for -m"))
    before = rig.cyrus.state(["anna"], ["shared.team"])
    rig.sync("-m", "user/anna", "shared/team")
    rig.whole("anna", state=rig.cyrus.dump(["anna"]))
    held = rig.cyrus.dump([], ["shared.team"])
    listed = {k: v for k, v in rig.to.listing([], ["shared.team"]).items() if k == "shared.team"}
    expect_none(compare.mailboxes(held["mailboxes"], listed, rig.to.ignore), "shared.team")
    rig.harmless(before, ["anna"], ["shared.team"])


@case("-A everything, shared mailboxes too", todo={"backupd": "B1: bodies land in every open backup"})
def everything(rig):
    to = receiver() if RECEIVER != "replica" else receiver(sync_log="no")
    try:
        sent(rig, USERS, "-A", shared=rig.cyrus.shared_names(), to=to, timeout=120)
        if RECEIVER != "replica":
            for user in USERS:
                foreign = set(logfile.bodies(to.data_file(user)))
                held = rig.cyrus.dump([user])
                for box in held["mailboxes"].values():
                    foreign -= {r["guid"] for r in box["records"].values()}
                expect_none(sorted(foreign), "mail of others in the log of " + user)
    finally:
        to.stop()


@case("-s subscriptions, seen and sieve only")
def meta(rig):
    rig.sync("-u", "dora")
    rig.cyrus.sieve_upload("dora", {"night": 'require ["fileinto"];\nfileinto "INBOX.Sent";\n'}, active="night")
    with rig.cyrus.imap("dora") as imap:
        imap.subscribe("shared/team")
        imap.unsubscribe("INBOX/Sent")
    before = rig.cyrus.state(["dora"])
    rig.sync("-s", "dora")
    claimed = rig.to.dump(["dora"])
    expect_none(compare.users(before["users"], claimed["users"], rig.to.ignore), "dora's own data")
    rig.harmless(before, ["dora"])


@case("-O without copy-back", todo={"backupd": "refuses APPLY FORCE"})
def no_copyback(rig):
    with rig.cyrus.imap("bert") as imap:
        imap.append("INBOX", message("for -O"))
        imap.select("INBOX")
        imap.expunge("1")
    sent(rig, ["bert"], "-O", "-u", "bert")


def traffic(rig, user, number):
    """A bit of everything a mail client does."""
    with rig.cyrus.imap(user) as imap:
        imap.append("INBOX", message("roll%d" % number, to=user))
        imap.append("INBOX/Sent", message("rolled%d" % number, to=user), "\\Seen")
        messages = sorted(imap.messages("INBOX", bodies=False))
        imap.select("INBOX")
        imap.store(str(messages[-1]), "+FLAGS", "\\Flagged")
        imap.store(str(messages[0]), "+FLAGS", "\\Seen")
        imap.copy(str(messages[-1]), "INBOX/Sent")
        if number % 3 == 2:
            imap.expunge(str(messages[1]))
        if number % 4 == 3:
            imap.create("INBOX/New%d" % number)
            imap.move(str(messages[2]), "INBOX/New%d" % number)


@case("-r rolling with traffic of several users")
def rolling(rig):
    for user in USERS:
        rig.sync("-u", user)
    client = rig.cyrus.rolling(rig.to)
    try:
        for number in range(6):
            for user in USERS[:3]:
                traffic(rig, user, number)
        client.drain(60)
        expect(client.running(), "the rolling client is still there", [client.process.output()])
    finally:
        client.stop()
    rig.whole(*USERS)


@case("-r copies between users and into shared mailboxes")
def rolling_shared(rig):
    rig.sync("-m", "shared/team")
    client = rig.cyrus.rolling(rig.to)
    try:
        with rig.cyrus.imap("anna") as imap:
            imap.select("INBOX")
            imap.copy("5:6", "shared/team")
            imap.append("shared/team", message("straight into the shared one"))
        client.drain(60)
        expect(client.running(), "the rolling client is still there", [client.process.output()])
    finally:
        client.stop()
    rig.whole("anna")
    held = rig.cyrus.dump([], ["shared.team"])
    listed = {k: v for k, v in rig.to.listing([], ["shared.team"]).items() if k == "shared.team"}
    expect_none(compare.mailboxes(held["mailboxes"], listed, rig.to.ignore), "shared.team")


@case("a sync log with QUOTA, ANNOTATION, SEEN, SUB, META, UNMAILBOX, UNUSER")
def rolling_words(rig):
    rig.cyrus.user("emil")
    with rig.cyrus.imap("emil") as imap:
        imap.create("INBOX/Gone")
        imap.append("INBOX/Gone", message("gone"))
    rig.sync("-u", "emil")
    client = rig.cyrus.rolling(rig.to)
    try:
        with rig.cyrus.imap("admin") as imap:
            imap.setquota("user/anna", storage=100000, message=5000)
            imap.setmetadata("", "/shared/comment", "server comment")
            imap.setmetadata("user/anna", "/shared/comment", "mailbox comment")
        with rig.cyrus.imap("bert") as imap:
            imap.subscribe("shared/team")
            imap.select("shared/team")
            imap.store("1:2", "+FLAGS", "\\Seen")
        rig.cyrus.sieve_upload("bert", {"a": "keep;\n"}, active="a")
        with rig.cyrus.imap("emil") as imap:
            imap.delete("INBOX/Gone")
        client.drain(60)
        rig.whole("anna", "bert", "emil")
        with rig.cyrus.imap("admin") as imap:
            imap.setacl("user/emil", "admin", "lrswipkxtecda")
            imap.delete("user/emil")
        client.drain(60)
        expect(client.running(), "the rolling client is still there", [client.process.output()])
    finally:
        client.stop()
    live = [n for n in rig.to.listing(["emil"] if RECEIVER != "ours" else [])] if RECEIVER != "ours" else [
        n for n, b in rig.to.listing(["emil"]).items()
    ]
    expect_none([n for n in live if n.startswith("user.emil")], "live mailboxes of the deleted user")


@case("two channels to two receivers at once")
def channels(rig):
    extra = {"sync_log": "no"} if RECEIVER == "replica" else {}
    first, second = receiver(**extra), receiver(**extra)
    clients = []
    try:
        for user in USERS:
            rig.sync("-u", user, to=first)
            rig.sync("-u", user, to=second)
        for to, channel in ((first, "one"), (second, "two")):
            clients.append(rig.cyrus.rolling(to, channel))
        for number in range(4):
            for user in USERS[:2]:
                traffic(rig, user, number + 100)
        for client in clients:
            client.drain(60)
            expect(client.running(), "rolling client " + client.channel, [client.process.output()])
        rig.whole(*USERS, to=first)
        rig.whole(*USERS, to=second)
    finally:
        for client in clients:
            client.stop()
        first.stop()
        second.stop()


@case("a replica that feeds the receiver (sync_log_chain)", todo={"backupd": "cannot be asked while it is written to"})
def chained(rig):
    replica = Cyrus("replica", sync_log_chain="yes")
    to = receiver(**({"sync_log": "no"} if RECEIVER == "replica" else {}))
    chain = Rig(replica, to)

    class AsReceiver:
        """The middle server, seen from the first."""

        kind = "replica"
        ignore = ()
        sync_host = staticmethod(lambda: replica.csync_socket)
        sync_options = staticmethod(dict)
        recent_log = replica.recent_log
        listing = staticmethod(lambda users, shared=(): replica.dump(users, shared)["mailboxes"])
        dump = replica.dump

    down = replica.rolling(to)
    try:
        for user in USERS[:2]:
            rig.cyrus.sync_ok(AsReceiver, "-u", user)
        down.drain(60)
        chain.whole(*USERS[:2])
        for number in range(3):
            traffic(rig, "anna", number + 200)
            rig.cyrus.sync_ok(AsReceiver, "-u", "anna")
        down.drain(60)
        expect(down.running(), "the replica's rolling client is still there")
        chain.whole(*USERS[:2])
        rig.whole(*USERS[:2], to=AsReceiver)
    finally:
        down.stop()
        to.stop()
        replica.stop()


run(setup, Rig.close)
