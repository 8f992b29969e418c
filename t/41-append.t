#!/usr/bin/env python3
"""Mail goes back to IMAP servers that know nothing of replication: Dovecot, and a Cyrus on which
nobody is an administrator. Content, flags and dates are equal, and a second run adds nothing."""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import dovecot, mixed
from cyrusrig.dovecot import Dovecot

USER = "anna"
OPTIONS = {"restore_authname": "admin", "restore_password": PASSWORD}


def start(**options):
    if RECEIVER != "ours":
        skip_all("only for our own server")
    rig = start_rig(to_options=OPTIONS, **options)
    rig.cyrus.user(USER)
    with rig.cyrus.imap(USER) as imap:
        mixed.fill(imap)
    rig.cyrus.sieve_upload(USER, {"main": "keep;"}, active="main")
    rig.sync("-u", USER)
    return rig


def other(**options):
    if dovecot.problem():
        raise Skip(dovecot.problem())
    return Dovecot([USER, "bert"], **options)


def as_they_were(rig):
    with rig.cyrus.imap(USER) as imap:
        return mixed.shown(imap)


def bring(rig, server, *words, code=0):
    """A restore that must end so; its JSON document."""
    import json

    done = rig.to.tool("restore", "-j", "--to", server.url(), *words)
    if done.code != code:
        raise Failed("restore ended with %s" % done.code, (str(done) + server.said()).splitlines())
    return json.loads(done.out)


def total(document, key):
    return sum(line[key] for user in document["users"] for line in user["mailboxes"])


def shown(server, prefix="", user=USER):
    """What it shows. Maildirs take no dot in a name: it is ^ there."""
    with server.imap(user) as imap:
        found = mixed.shown(imap, prefix)
    if "INBOX" == prefix.rstrip("."):
        found = {name.replace(".", "/"): rows for name, rows in found.items()}
    return {name.replace("^", "."): rows for name, rows in found.items()}


def equal(rig, server, prefix=""):
    expect_none(mixed.differences(as_they_were(rig), shown(server, prefix)), "Cyrus against the other")


MAIL = ("--what", "mail,subscriptions", "--in-place")


@case("a whole user: equal, and again: nothing more", only=("ours",))
def whole(rig):
    server = other()
    try:
        wanted = sum(len(rows) for rows in as_they_were(rig).values())
        dry = bring(rig, server, "-n", *MAIL, USER)
        expect_equal(total(dry, "brought"), wanted, "what would be brought")
        with server.imap(USER) as imap:
            expect_equal(imap.list(), ["INBOX"], "mailboxes after a dry run")
        first = bring(rig, server, *MAIL, USER)
        expect_equal(total(first, "brought"), wanted, "messages brought")
        equal(rig, server)
        again = bring(rig, server, *MAIL, USER)
        expect_equal((total(again, "brought"), total(again, "there")), (0, wanted), "the second time")
        equal(rig, server)
        with rig.cyrus.imap(USER) as one, server.imap(USER) as two:
            expect_equal(mixed.subscriptions(two), mixed.subscriptions(one), "subscriptions")
    finally:
        server.stop()


@case("other separators, prefixes, formats, mechanisms", only=("ours",))
def elsewhere(rig):
    for options, prefix in (
        ({"separator": ".", "names": "INBOX.", "mechanisms": "plain login"}, "INBOX."),
        ({"location": "sdbox:~/mail"}, ""),
    ):
        server = other(**options)
        try:
            bring(rig, server, *MAIL, USER)
            equal(rig, server, prefix)
            again = bring(rig, server, *MAIL, USER)
            expect_equal(total(again, "brought"), 0, "the second time, %s" % options)
        finally:
            server.stop()


@case("another user, another tree, single mailboxes and messages", only=("ours",))
def chosen(rig):
    server = other()
    try:
        bring(rig, server, "--as", "bert", "--prefix", "Old/of anna", USER, "Sent")
        found = shown(server, user="bert")
        expect_equal(set(found) - {"INBOX"}, {"Old/of anna/Sent"}, "mailboxes")
        expect_equal(found["Old/of anna/Sent"], as_they_were(rig)["Sent"], "messages")
        guid = mixed.sha1(mixed.bodies()["quoted"])
        bring(rig, server, "--as", "bert", "--in-place", USER, guid)
        expect_equal([row[0] for row in shown(server, user="bert")["INBOX"]], [guid], "one message")
    finally:
        server.stop()


@case("only flags: new mail stays as it is", only=("ours",))
def flags(rig):
    server = other()
    try:
        bring(rig, server, *MAIL, USER)
        with server.imap(USER) as imap:
            imap.append("INBOX", message("new"), "\\Seen")
            for name in ("INBOX", "Sent"):
                imap.select(name)
                imap.store("1:*", "FLAGS", "\\Seen Wrong")
        before = shown(server)
        new = [row for row in before["INBOX"] if row[0] == mixed.sha1(message("new"))]
        expect_equal(len(new), 1, "there is new mail")
        told = bring(rig, server, "--flags-only", USER)
        expect(total(told, "flagged") > 150, "messages were flagged anew")
        expect_equal(total(told, "brought"), 0, "messages brought")
        after = shown(server)
        after["INBOX"].remove(new[0])
        # Twice one message with one date cannot be told apart by its flags.
        expect_none(mixed.differences(as_they_were(rig), after), "flags")
    finally:
        server.stop()


@case("what the server refuses is told, and the rest is there", only=("ours",))
def refused(rig):
    quota = "mail_plugins = quota\nprotocol imap {\n mail_plugins = quota\n}\n"
    quota += "plugin {\n quota = count:User\n quota_rule = *:storage=2M\n quota_vsizes = yes\n}\n"
    server = other(more=quota)
    try:
        told = bring(rig, server, *MAIL, USER, code=1)
        failed = [f for user in told["users"] for line in user["mailboxes"] for f in line["failed"]]
        expect_equal(len(failed), 1, "one message is too much: %r" % failed)
        expect("OVERQUOTA" in failed[0]["why"] and failed[0]["uid"] == 9, "it is named", [str(failed)])
        big = mixed.sha1(mixed.bodies()["big"])
        were = as_they_were(rig)
        were["INBOX"] = [row for row in were["INBOX"] if row[0] != big]
        expect_none(mixed.differences(were, shown(server)), "all but that")
    finally:
        server.stop()
    text = rig.to.tool("restore", "--to", "imap://127.0.0.1:%d" % free_port(), *MAIL, USER)
    expect_equal(text.code, 74, "status when nobody is there")
    server = other()
    try:
        done = rig.to.tool("restore", "--to", server.url(), "--in-place", "--as", "nobody", USER)
        expect(done.code in (74, 77), "status when the user does not exist there: %s" % done.code, [done.err])
        expect("to act for nobody" in done.err, "the user is named", [done.err])
        done = rig.to.tool("restore", "--to", server.url(), "--in-place", USER)
        expect_equal(done.code, 1, "sieve scripts cannot go there")
        expect("sieve scripts: cannot be brought by IMAP" in done.out, "and that is told", [done.out[-300:]])
        done = rig.to.tool("restore", "--to", server.url(), "--keep-uids", USER)
        expect_equal(done.code, 64, "UIDs cannot be kept")
    finally:
        server.stop()


@case("the connection breaks on the way; run again it completes", only=("ours",))
def broken(rig):
    import threading
    import time

    server = other()
    try:
        stop = threading.Event()

        def kill():
            # As soon as something is there, by the process that serves it.
            path = server.dir + "/mail/" + USER + "/cur"
            while not stop.is_set():
                if os.path.isdir(path) and len(os.listdir(path)) + len(os.listdir(path[:-3] + "new")) > 0:
                    server.kill_sessions()
                    return
                time.sleep(0.002)

        thread = threading.Thread(target=kill)
        thread.start()
        done = rig.to.tool("restore", "--to", server.url(), *MAIL, USER)
        stop.set()
        thread.join()
        if done.code == 0:
            raise Skip("it was quicker than the hand that should break it")
        expect_equal(done.code, 74, "status")
        expect("connection" in done.err, "what happened is told", [done.err])
        expect("of 12 messages brought" in done.out or "not begun" in done.out, "and what is there", [done.out])
        bring(rig, server, *MAIL, USER)
        equal(rig, server)
    finally:
        server.stop()


@case("a Cyrus by APPEND, logged in as the user himself", only=("ours",))
def plain_cyrus(rig):
    second = Cyrus(name="second", admins="cyrus")
    try:
        second.password(USER)
        second.password("cyrus")
        from cyrusrig.imap import Imap

        with Imap(second.imap_port, "cyrus", PASSWORD) as imap:
            imap.create("user/" + USER)
        conf = rig.to.conf + ".user"
        with open(rig.to.conf) as file:
            lines = [l for l in file if not l.startswith("restore_")]
        sandbox.write(conf, "".join(lines) + "restore_authname: %s\nrestore_password: %s\n" % (USER, PASSWORD))
        words = [rig.to.path, "-C", conf, "restore", "--to", "imap://127.0.0.1:%d" % second.imap_port]
        for turn in range(2):
            done = run_command(words + list(MAIL) + [USER])
            expect_equal(done.code, 0, "status of turn %d: %s" % (turn, done))
            with Imap(second.imap_port, USER, PASSWORD) as imap:
                expect_none(mixed.differences(as_they_were(rig), mixed.shown(imap)), "turn %d" % turn)
        expect(" 0 messages brought" in done.out, "the second time brings nothing", [done.out])
    finally:
        second.stop()


@case("a server that takes no large messages: told by size, and the connection stays", only=("ours",))
def limited(rig):
    small = Cyrus(name="small", maxmessagesize="1000000")
    try:
        small.user(USER)
        small.password(USER)
        conf = rig.to.conf + ".user"
        with open(rig.to.conf) as file:
            lines = [l for l in file if not l.startswith("restore_")]
        sandbox.write(conf, "".join(lines) + "restore_authname: %s\nrestore_password: %s\n" % (USER, PASSWORD))
        words = [rig.to.path, "-C", conf, "restore", "-j", "--to", "imap://127.0.0.1:%d" % small.imap_port]
        for _turn in range(2):
            done = run_command(words + list(MAIL) + [USER])
            boxes = json.loads(done.out)["users"][0]["mailboxes"]
            failed = [f for line in boxes for f in line["failed"]]
            expect_equal(done.code, 1, "status: %s" % done)
            expect_equal([(f["uid"], f["why"].endswith("the server takes 1000000 at most")) for f in failed], [(9, True)], "what failed")
        expect_equal(sum(line["brought"] for line in boxes), 0, "the second time brings nothing")
        with small.imap(USER) as imap:
            big = mixed.sha1(mixed.bodies()["big"])
            were = as_they_were(rig)
            were["INBOX"] = [row for row in were["INBOX"] if row[0] != big]
            expect_none(mixed.differences(were, mixed.shown(imap)), "all but that")
    finally:
        small.stop()


run(start, Rig.close)
