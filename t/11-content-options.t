#!/usr/bin/env python3
"""Content under other server settings: immediate expunge and delete, virtual domains
with dotted users and shared mailboxes in two domains, conversations, altnamespace,
calendar and contact folders."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *


def setup():
    return start_rig()


def side(options, **to_options):
    """A server of other settings and a receiver of its own."""
    return start_rig(to_options, **options)


def settle(rig, *users, shared=()):
    before = rig.cyrus.state(users, shared)
    rig.sync("-u", *users)
    if shared:
        rig.sync("-A", timeout=120)
    rig.whole(*users, shared=shared)
    rig.harmless(before, users, shared)


def fill(rig, user):
    rig.cyrus.user(user)
    with rig.cyrus.imap(user) as imap:
        imap.fill("INBOX", [message(n, 400, to=user) for n in range(6)])
        imap.create("INBOX/Sub")
        imap.create("INBOX/Sub/Deep")
        imap.fill("INBOX/Sub/Deep", [message("d%d" % n, to=user) for n in range(3)])


@case("expunge_mode and delete_mode immediate", todo={"backupd": "B9: refuses EXPUNGE"})
def immediate(_rig):
    rig = side({"expunge_mode": "immediate", "delete_mode": "immediate"})
    try:
        fill(rig, "anna")
        settle(rig, "anna")
        with rig.cyrus.imap("anna") as imap:
            imap.select("INBOX")
            imap.expunge("2:3")
            imap.delete("INBOX/Sub/Deep")
        # Gone without trace: the server asks FULLMAILBOX and sends EXPUNGE.
        rig.sync("-u", "anna", attempts=2)
        rig.whole("anna")
        settle(rig, "anna")
        with rig.cyrus.imap("anna") as imap:
            imap.create("INBOX/Sub/Deep")
            imap.append("INBOX/Sub/Deep", message("again"))
        settle(rig, "anna")
    finally:
        rig.close()


@case("virtual domains: dotted users, one name in two domains, shared mailboxes in both")
def domains(_rig):
    rig = side({"virtdomains": "userid", "defaultdomain": "example.org"}, defaultdomain="example.org")
    try:
        users = ["john.doe@example.com", "john.doe@example.net", "john.doe", "a.b.c@example.com"]
        shared = ["example.com!info", "example.net!info", "info"]
        for user in users:
            fill(rig, user)
        with rig.cyrus.imap("admin") as imap:
            for at in ("@example.com", "@example.net", ""):
                imap.create("info" + at)
                imap.setacl("info" + at, "admin", "lrswipkxtecda")
                imap.append("info" + at, message("info" + at, to="x" + at))
        expect_equal(sorted(set(rig.cyrus.mailbox_names()) & set(shared)), sorted(shared), "shared mailboxes")
        settle(rig, *users)
        for name in shared:
            rig.sync("-m", rig_admin_name(name))
            held = rig.cyrus.dump([], [name])["mailboxes"]
            listed = {k: v for k, v in rig.to.listing([], [name]).items() if k == name}
            expect_none(compare.mailboxes(held, listed, rig.to.ignore), name)
        with rig.cyrus.imap(users[0]) as imap:
            imap.create("INBOX/v1.2")
            imap.append("INBOX/v1.2", message("dots"))
            imap.delete("INBOX/Sub/Deep")
        settle(rig, *users)
        # Nobody's mail in the other domain's backup.
        if RECEIVER == "ours":
            expect_equal(len({rig.to.data_file(u) for u in users}), 4, "a data file for each")
    finally:
        rig.close()


def rig_admin_name(name):
    domain, _bang, local = name.rpartition("!")
    return local.replace(".", "/") + ("@" + domain if domain else "")


@case("conversations: yes", todo={"backupd": "B3: one row per GUID"})
def conversations(_rig):
    rig = side({"conversations": "yes"})
    try:
        rig.cyrus.user("anna")
        with rig.cyrus.imap("anna") as imap:
            imap.append("INBOX", message("root"))
            reply = message("reply").replace(b"\r\n\r\n", b"\r\nIn-Reply-To: <mroot@example.com>\r\n\r\n", 1)
            imap.append("INBOX", reply)
            imap.create("INBOX/Sent")
            imap.select("INBOX")
            imap.copy("2", "INBOX/Sent")
        settle(rig, "anna")
        with rig.cyrus.imap("anna") as imap:
            imap.select("INBOX")
            imap.store("1", "+FLAGS", "\\Seen")
            imap.move("2", "INBOX/Sent")
            imap.append("INBOX", message("more"))
        settle(rig, "anna")
        settle(rig, "anna")
    finally:
        rig.close()


@case("altnamespace and names that collide with it")
def altnamespace(_rig):
    rig = side({"altnamespace": "yes"})
    try:
        rig.cyrus.user("anna")
        with rig.cyrus.imap("anna") as imap:
            imap.create("Sent")
            imap.create("Shared Folders2")
            imap.append("Sent", message("sent"))
            imap.append("INBOX", message("in"))
        settle(rig, "anna")
    finally:
        rig.close()


@case("calendar and contact folders")
def collections(rig):
    rig.cyrus.user("dav")
    with rig.cyrus.imap("admin") as imap:
        for name, kind in (
            ("#calendars", "CALENDAR"),
            ("#calendars/Default", "CALENDAR"),
            ("#addressbooks", "ADDRESSBOOK"),
            ("#addressbooks/Default", "ADDRESSBOOK"),
        ):
            imap.command('CREATE "user/dav/%s" (TYPE %s)' % (name, kind))
            imap.setacl("user/dav/" + name, "admin", "lrswipkxtecda")
        event = (
            b"From: <dav@example.org>\r\nSubject: meeting\r\nMessage-ID: <e1@example.org>\r\n"
            b"Content-Type: text/calendar; charset=utf-8\r\nContent-Disposition: attachment; filename=e1.ics\r\n\r\n"
            b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//x//y//EN\r\nBEGIN:VEVENT\r\nUID:e1\r\n"
            b"DTSTAMP:20261123T100000Z\r\nDTSTART:20261124T100000Z\r\nSUMMARY:meeting\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
        )
        imap.append("user/dav/#calendars/Default", event)
    kinds = {n: b["mboxtype"] for n, b in rig.cyrus.dump(["dav"])["mailboxes"].items()}
    expect_equal(kinds.get("user.dav.#calendars.Default"), "c", "type of the calendar on the server")
    settle(rig, "dav")
    settle(rig, "dav")


def renamed(rig, old, new):
    """A user renamed by the administrator, with new mail since."""
    fill(rig, old)
    settle(rig, old)
    with rig.cyrus.imap("admin") as imap:
        imap.rename("user/" + old, "user/" + new)
    with rig.cyrus.imap(new) as imap:
        imap.append("INBOX", message("after the wedding"))


def married(rig, new):
    rig.whole(new)
    with rig.cyrus.imap(new) as imap:
        imap.append("INBOX/Sub", message("later"))
    settle(rig, new)


@case("a user is renamed under a rolling client")
def rename_rolling(rig):
    client = rig.cyrus.rolling(rig.to)
    try:
        renamed(rig, "maiden", "married")
        client.drain()
        expect(client.running(), "the rolling client is still there", [client.process.output()])
    finally:
        client.stop()
    married(rig, "married")


@case("a user is renamed, -u of the new name", todo={"replica": "says IMAP_MAILBOX_MOVED"})
def rename_user(rig):
    renamed(rig, "miss", "missis")
    rig.sync("-u", "missis", attempts=2)
    married(rig, "missis")


@case("a user is deleted and another of the same name comes")
def same_name(rig):
    fill(rig, "temp")
    settle(rig, "temp")
    client = rig.cyrus.rolling(rig.to)
    try:
        with rig.cyrus.imap("admin") as imap:
            imap.setacl("user/temp", "admin", "lrswipkxtecda")
            imap.delete("user/temp")
        client.drain()
        fill(rig, "temp")
        client.drain()
        expect(client.running(), "the rolling client is still there")
    finally:
        client.stop()
    rig.sync("-u", "temp", attempts=2)
    rig.whole("temp")


run(setup, Rig.close)
