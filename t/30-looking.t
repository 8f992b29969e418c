#!/usr/bin/env python3
"""The commands that look, compared with the server (beyond Rig.whole, which lists in
every test): show, dump; and on a live system, where they neither wait for the writer nor
keep it waiting. Their texts and exit statuses are tested in t/rs/looking.rs."""

import hashlib
import os
import random
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox

USERS = ["anna", "bert"]
SCRIPT = 'require ["fileinto"];\r\n# Gr\u00fc\u00dfe, 100% "quoted"\r\nfileinto "INBOX.Sent";\r\n'


def setup():
    if RECEIVER != "ours":
        raise Skip("about our own commands")
    rig = start_rig()
    rig.cyrus.user(*USERS)
    for user in USERS:
        with rig.cyrus.imap(user) as imap:
            imap.fill("INBOX", [message(n, 400, to=user) for n in range(10)])
            imap.create("INBOX/Sent")
    rig.sync("-u", *USERS)
    return rig


@case("show: subscriptions, seen, scripts, quota and annotations, each with something in it")
def own(rig):
    with rig.cyrus.imap("anna") as imap:
        imap.subscribe("INBOX/Sent")
        imap.setacl("INBOX", "bert", "lrsw")
    with rig.cyrus.imap("bert") as imap:
        imap.subscribe("user/anna")
        imap.select("user/anna")
        imap.store("2:4,7", "+FLAGS", "\\Seen")
    rig.cyrus.sieve_upload("anna", {"night": SCRIPT, "day": "keep;\n"}, active="night")
    with rig.cyrus.imap("admin") as imap:
        imap.setquota("user/anna", storage=123456, message=789)
        imap.setmetadata("user/anna", "/shared/comment", "Gr\u00fc\u00dfe")
    client = rig.cyrus.rolling(rig.to)
    try:
        client.drain()
    finally:
        client.stop()
    rig.sync("-u", *USERS)
    rig.whole(*USERS)
    shown = rig.to.own_listing(USERS)
    expect_equal(shown["anna"]["quota"], {"user.anna": {"STORAGE": 123456, "MESSAGE": 789}}, "quota")
    expect("user.anna.Sent" in shown["anna"]["subscriptions"], "a subscription", [str(shown)])
    expect("user.anna" in shown["bert"]["subscriptions"], "one to another's folder", [str(shown)])
    expect("2:4,7" in [uids for _last, uids in shown["bert"]["seen"].values()], "seen", [str(shown["bert"])])
    expect_equal(sorted(active for _guid, active in shown["anna"]["sieve"].values()), [0, 1], "scripts")
    for item in rig.to.json("show", "anna", "annotations")["annotations"]:
        expect("entry" in item and "value" in item, "an annotation", [str(item)])
    boxes = rig.to.json("show", "anna", "user/anna")["mailboxes"]
    values = [a["value"] for a in boxes[0]["annotations"] if a["entry"].endswith("comment")]
    expect_equal(values, ["Gr\u00fc\u00dfe"], "annotation of the mailbox")


@case("dump sieve: the bytes that were put")
def scripts(rig):
    done = rig.to.tool("dump", "sieve", "anna", "night")
    expect(done.code == 0, "dump sieve", [str(done)])
    expect_equal(done.out.encode(errors="surrogateescape"), SCRIPT.encode(), "the script")


@case("dump message: every message of every user, as the server delivers it")
def messages(rig):
    inject(rig.cyrus, "user.anna", [b"\r\n\xff\r\n", b"Subject: bytes\r\n\r\n" + bytes(range(1, 256)) * 300, b"no header"])
    rig.sync("-u", "anna")
    for user in USERS:
        with rig.cyrus.imap(user) as imap:
            held = imap.messages("INBOX")
        records = rig.cyrus.dump([user])["mailboxes"]["user." + user]["records"]
        expect_equal(sorted(held), sorted(records), "UIDs of " + user)
        for uid, seen in held.items():
            guid = records[uid]["guid"]
            done = rig.to.tool("dump", "message", user, guid)
            body = done.out.encode(errors="surrogateescape")
            expect(done.code == 0, "dump message", [str(done)])
            expect_equal((hashlib.sha1(body).hexdigest(), len(body)), (guid, records[uid]["size"]), "GUID and size")
            expect_equal(hashlib.sha1(body).hexdigest(), seen["sha1"], "what IMAP delivers")


@case("an empty message, which a replica cannot even take")
def empty(rig):
    rig.cyrus.user("empty")
    rig.sync("-u", "empty")
    inject(rig.to, "user.empty", [b"", b"x"])
    listed = rig.to.listing(["empty"])["user.empty"]["records"]
    expect_equal([r["size"] for _uid, r in sorted(listed.items())], [0, 1], "sizes")
    done = rig.to.tool("dump", "message", "empty", hashlib.sha1(b"").hexdigest())
    expect_equal((done.code, done.out), (0, ""), "dump")


@case("show GUID and chunks agree on where a message is")
def places(rig):
    plain = logfile.plain(rig.to.data_file("bert"))
    chunks = rig.to.json("chunks", "bert")["chunks"]
    expect_equal(len(chunks), len(plain), "chunks")
    wanted = rig.to.json("messages", "bert")["messages"]
    for item in wanted[:3]:
        shown = rig.to.json("show", "bert", item["guid"])["messages"][0]
        where = shown["body"]
        number = [c["id"] for c in chunks].index(where["chunk"])
        body = plain[number][where["offset"] :][: where["size"]]
        expect_equal(hashlib.sha1(body).hexdigest(), item["guid"], "the bytes at that place")


class Looker(threading.Thread):
    """Runs the commands at random until told; what was wrong, and how long they took."""

    def __init__(self, rig, seed):
        threading.Thread.__init__(self, daemon=True)
        self.rig = rig
        self.random = random.Random(seed)
        self.ending = threading.Event()
        self.wrong = []
        self.took = []
        self.most = dict.fromkeys(USERS, 0)
        self.start()

    def run(self):
        try:
            while not self.ending.is_set():
                self.look(self.random.choice(USERS))
        except Exception as why:
            self.wrong.append(repr(why))

    def look(self, user):
        words = self.random.choice(
            [["stat", user], ["chunks", user], ["mailboxes", user], ["messages", user], ["list"]]
            + [["show", user, "subscriptions", "sieve", "seen", "quota", "annotations", "marks"], ["dump", "log", user]]
        )
        began = time.monotonic()
        done = self.rig.to.tool(*words, *([] if words[0] == "dump" else ["-j"]), timeout=10)
        self.took.append(time.monotonic() - began)
        if done.code != 0:
            self.wrong.append(str(done)[-800:])
        elif words[0] == "messages":
            import json

            found = json.loads(done.out)["messages"]
            # Nothing that was there is gone: this user's mail is never expunged here.
            if len(found) < self.most[user]:
                self.wrong.append("%d messages of %s after %d" % (len(found), user, self.most[user]))
            self.most[user] = len(found)
            if found:
                guid = self.random.choice(found[-3:])["guid"]
                dumped = self.rig.to.tool("dump", "message", user, guid, timeout=10)
                body = dumped.out.encode(errors="surrogateescape")
                if hashlib.sha1(body).hexdigest() != guid:
                    self.wrong.append("dump message of one just listed: " + str(dumped)[-400:])


@case("while a rolling client writes, looking neither waits nor delays")
def live(rig):
    client = rig.cyrus.rolling(rig.to)
    lookers = [Looker(rig, number) for number in range(2)]
    try:
        end = time.monotonic() + 6
        count = 0
        while time.monotonic() < end:
            for user in USERS:
                with rig.cyrus.imap(user) as imap:
                    imap.fill("INBOX", [message("live%d-%d" % (count, n), 3000, to=user) for n in range(5)])
                    imap.select("INBOX")
                    imap.store("*", "+FLAGS", "\\Seen")
            count += 1
        client.drain(20)
        expect(client.running(), "the rolling client is still there", [client.process.output()])
    finally:
        for looker in lookers:
            looker.ending.set()
        for looker in lookers:
            looker.join(15)
        client.stop()
    took = sorted(t for looker in lookers for t in looker.took)
    diag("%d rounds of mail, %d looks, the slowest %.2f s" % (count, len(took), took[-1]))
    expect(len(took) > 20 and count > 3, "there was something to see")
    expect_none([text for looker in lookers for text in looker.wrong], "what went wrong")
    # A lock is waited for up to backup_lock_wait, 60 s.
    expect(took[-1] < 5, "no look waits", ["%.1f s" % took[-1]])
    told = [line for line in sandbox.syslog_text(rig.to.tag).splitlines() if "LOCKED" in line or "IOERROR" in line]
    told += [line for line in sandbox.syslog_text(rig.cyrus.tag).splitlines() if "LOCKED" in line]
    expect_none(told, "locked out, or errors, in the log")
    rig.whole(*USERS)


@case("what was acknowledged is listed at once, while the session still holds the backup")
def at_once(rig):
    wire = rig.to.csync()
    try:
        for number in range(5):
            name = "user.anna.instant%d" % number
            wire.command("APPLY SUB", {"USERID": "anna", "MBOXNAME": name})
            began = time.monotonic()
            expect(name in rig.to.own_listing(["anna"])["anna"]["subscriptions"], "it is listed")
            expect(time.monotonic() - began < 5, "at once")
            wire.command("APPLY UNSUB", {"USERID": "anna", "MBOXNAME": name})
    finally:
        wire.close()


run(setup, Rig.close)
