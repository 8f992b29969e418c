#!/usr/bin/env python3
"""Finding what was lost: search, history, diff, messages --deleted --since, on a real
server's mail. What --at says is in 32-past.t."""

import base64
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *

USERS = ["anna", "bert", "carl@x.example"]


def mail(sender, subject, number, to="Anna <anna@example.org>", more=""):
    head = "From: %s\r\nTo: %s\r\nSubject: %s\r\nMessage-ID: <find-%s@example.com>\r\n%s"
    text = head % (sender, to, subject, number, more) + "Date: Mon, 23 Nov 2026 10:00:00 +0000\r\n\r\ntext %s\r\n" % number
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


def word(text, charset="utf-8"):
    return "=?%s?B?%s?=" % (charset, base64.b64encode(text.encode(charset)).decode())


LATIN = "Caf\udce9 am Markt"  # a byte that is no UTF-8
MAILS = {
    "plain": mail("Boss <boss@corp.example>", "Quarterly report", "plain"),
    "utf8": mail(word("J\u00fcrgen M\u00fcller") + " <jm@corp.example>", word("Gr\u00fc\u00dfe aus K\u00f6ln"), "utf8"),
    "koi8": mail("ivan@ru.example", word("\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440", "koi8-r"), "koi8"),
    "jis": mail("taro@jp.example", word("\u6771\u4eac\u306e\u5929\u6c17", "iso-2022-jp"), "jis"),
    "folded": mail("x@y.example", "=?utf-8?Q?Gr=C3=BC?=\r\n =?utf-8?Q?ne_Wiese?=", "folded"),
    "latin": mail("x@y.example", LATIN, "latin", more="Cc: Carla <carla@z.example>\r\n"),
}


def setup():
    if RECEIVER != "ours":
        raise Skip("about our own commands")
    rig = start_rig(to_options={"virtdomains": "userid", "backup_retention": "2s"}, virtdomains="userid", delete_mode="delayed", munge8bit="no")
    rig.cyrus.user(*USERS)
    with rig.cyrus.imap("anna") as imap:
        imap.create("INBOX/Sent")
        for name, body in MAILS.items():
            imap.append("INBOX", body, "\\Flagged" if name == "plain" else "", "20-Nov-2025 10:00:00 +0000")
    with rig.cyrus.imap("bert") as imap:
        imap.append("INBOX", MAILS["plain"])
    with rig.cyrus.imap("carl@x.example") as imap:
        imap.append("INBOX", mail("Boss <boss@corp.example>", "other report", "carl"))
    rig.sync("-u", *USERS)
    return rig


def found(rig, *words):
    """Sorted Message-ID parts of what `search -j` finds, with user and mailbox."""
    rows = rig.to.json("search", *words)["messages"]
    return sorted((row["userid"], row["adminname"], row["message_id"][6:].split("@")[0]) for row in rows)


@case("search: by words of each header field, decoded from any charset, in any case")
def headers(rig):
    for words, expect_names in [
        (["--subject", "REPORT quarterly"], ["plain"]),
        (["--subject", "report annual"], []),
        (["--subject", "GR\u00dcSSE"], ["utf8"]),
        (["--subject", "gr\u00fc\u00dfe K\u00d6LN"], ["utf8"]),
        (["--subject", "\u043f\u0440\u0438\u0432\u0435\u0442"], ["koi8"]),
        (["--subject", "\u5929\u6c17"], ["jis"]),
        (["--subject", "gr\u00fcne wiese"], ["folded"]),
        (["--subject", "gr\u00fc"], ["folded", "utf8"]),
        (["--subject", "CAF\u00c9"], ["latin"]),
        (["--subject", "utf-8"], []),
        (["--from", "m\u00fcller"], ["utf8"]),
        (["--from", "jm@corp"], ["utf8"]),
        (["--from", "corp.example", "--subject", "report"], ["plain"]),
        (["--from", "boss"] * 9 + ["--from", "corp"], ["plain"]),
        (["--from", "boss"] * 9 + ["--from", "nobody"], []),
        (["--cc", "carla"], ["latin"]),
        (["--to", "ANNA@"], sorted(MAILS)),
        (["--message-id", "find-jis@"], ["jis"]),
    ]:
        names = [name for _user, _box, name in found(rig, "anna", *words)]
        expect_equal(names, expect_names, " ".join(words))


@case("search: over all, a domain, a prefix; by date, mailbox, flag")
def wide(rig):
    three = [("anna", "user/anna", "plain"), ("bert", "user/bert", "plain"), ("carl@x.example", "user/carl@x.example", "carl")]
    expect_equal(found(rig, "-A", "--from", "boss"), three, "-A")
    expect_equal(found(rig, "-D", "x.example", "--from", "boss"), three[2:], "-D")
    expect_equal(found(rig, "-P", "be", "--from", "boss"), three[1:2], "-P")
    expect_equal(found(rig, "anna", "bert", "--flag", "flagged"), three[:1], "--flag")
    expect_equal(found(rig, "anna", "bert", "--from", "boss", "--not-flag", "Flagged"), three[1:2], "--not-flag")
    expect_equal(found(rig, "-A", "--from", "boss", "--until", "2025-12-01"), three[:1], "--until")
    expect_equal(found(rig, "-A", "--from", "boss", "--since", "2025-12-01"), three[1:], "--since")
    expect_equal(found(rig, "-A", "--from", "boss", "--mailbox", "user/b*"), three[1:2], "--mailbox")
    expect_equal(found(rig, "anna", "--from", "boss", "--mailbox", "Sent"), [], "another mailbox")
    shown = rig.to.tool("search", "-A", "--from", "boss")
    expect_equal((shown.code, shown.out.count("Quarterly report")), (0, 2), "text")
    expect_equal(rig.to.tool("search", "anna", "nobody", "--from", "boss").code, 1, "one of two is missing")


@case("search: what is deleted, by expunge, with its mailbox, since when")
def deleted(rig):
    time.sleep(1.1)
    began = int(time.time())
    with rig.cyrus.imap("anna") as imap:
        imap.create("INBOX/Old")
        imap.select("INBOX")
        imap.copy("2", "INBOX/Old")
        imap.move("1", "INBOX/Sent")
        imap.expunge("3")
    rig.sync("-u", "anna")
    with rig.cyrus.imap("anna") as imap:
        imap.delete("INBOX/Old")
    rig.sync("-u", "anna")
    lost = [(box.rsplit("/", 1)[0] if "DELETED" in box else box, name) for _u, box, name in found(rig, "anna", "--deleted-only")]
    expect_equal(lost, [("DELETED/user/anna/Old", "utf8"), ("user/anna", "koi8"), ("user/anna", "plain")], "deleted")
    since = found(rig, "anna", "--deleted-since", str(began))
    expect_equal(len(since), 3, "since then")
    expect_equal(found(rig, "anna", "--deleted-until", str(began - 1)), [], "before")
    alive = [name for _u, box, name in found(rig, "anna", "--alive-only")]
    expect_equal(sorted(alive), ["folded", "jis", "latin", "plain", "utf8"], "alive")
    expect_equal(found(rig, "anna", "--mailbox", "Old")[0][2], "utf8", "a deleted mailbox by its former name")
    listed = rig.to.json("messages", "anna", "--deleted", "--since", str(began))["messages"]
    expect_equal(len(listed), 3, "messages --deleted --since")
    listed = rig.to.json("messages", "anna", "--deleted", "--until", str(began - 5))["messages"]
    expect_equal(listed, [], "messages --deleted --until")
    then = found(rig, "anna", "--at", str(began - 1), "--subject", "\u043f\u0440\u0438\u0432\u0435\u0442", "--alive-only")
    expect_equal(len(then), 1, "alive before")


def guid_of(rig, user, subject):
    return rig.to.json("search", user, "--subject", subject)["messages"][0]["guid"]


@case("a deleted folder goes by the name it had; folders are typed as people see them")
def names(rig):
    for words in (["history", "anna", "Old"], ["history", "anna", "user/anna/Old"]):
        told = rig.to.json(*words)["events"]
        expect(any("Old" in event["mboxname"] for event in told), " ".join(words), [str(told)])
    for name in ("Old", "user.anna.Old"):
        shown = rig.to.json("messages", "anna", name)["messages"]
        expect_equal([row["adminname"].rsplit("/", 1)[0] for row in shown], ["DELETED/user/anna/Old"], "messages " + name)
        shown = rig.to.json("show", "anna", name)["mailboxes"]
        expect_equal(len(shown), 1, "show " + name)
    expect_equal(rig.to.tool("messages", "anna", "Never").code, 1, "one that never was")
    for name in ("INBOX/Entw&APw-rfe", "INBOX/R&-D"):
        with rig.cyrus.imap("anna") as imap:
            imap.create(name)
            imap.append(name, mail("x@y.example", "in a folder", "typed"))
    # A live one of the name comes before the deleted one.
    with rig.cyrus.imap("anna") as imap:
        imap.create("INBOX/Old")
    rig.sync("-u", "anna")
    expect_equal(rig.to.json("messages", "anna", "Old")["messages"], [], "the live one, which is empty")
    for typed in ("Entw\u00fcrfe", "Entw&APw-rfe", "user/anna/Entw\u00fcrfe", "R&D", "R&-D", "user/anna/R&D"):
        expect_equal(len(rig.to.json("messages", "anna", typed)["messages"]), 1, "messages " + typed)
        expect_equal(len(rig.to.json("search", "anna", "--mailbox", typed)["messages"]), 1, "search " + typed)
        told = rig.to.json("restore", "-n", "anna", typed)["users"][0]["mailboxes"]
        expect_equal([box["brought"] for box in told], [1], "restore " + typed)
    told = rig.to.json("restore", "-n", "--prefix", "Zur\u00fcck", "anna", "R&D")["users"][0]["mailboxes"]
    expect_equal(told[0]["to"], "user.anna.Zur&APw-ck.R&-D", "--prefix")


@case("history: the life of a message, of a mailbox, of one UID")
def lives(rig):
    with rig.cyrus.imap("anna") as imap:
        imap.select("INBOX/Sent")
        imap.store("1", "+FLAGS", "\\Seen")
    rig.sync("-u", "anna")
    with rig.cyrus.imap("anna") as imap:
        imap.rename("INBOX/Sent", "INBOX/Out")
        imap.setacl("INBOX/Out", "bert", "lr")
    rig.sync("-u", "anna")
    with rig.cyrus.imap("anna") as imap:
        imap.select("INBOX/Out")
        imap.expunge("1")
    rig.sync("-u", "anna")
    guid = guid_of(rig, "anna", "quarterly")
    events = rig.to.json("history", "anna", guid)["events"]
    told = [(e["event"], e["adminname"]) for e in events]
    expect_equal(told[0], ("arrived", "user/anna"), "first")
    expect_equal(told[-1], ("expunged", "user/anna/Out"), "last")
    expect(("flags", "user/anna/Sent") in told, "flagged", [str(told)])
    expect(("renamed", "user/anna/Out") in told, "renamed with its mailbox", [str(told)])
    times = [e["time"] for e in events]
    expect_equal(times, sorted(times), "order")
    arrived = [e for e in events if e["event"] == "arrived"]
    expect_equal(len(arrived), 2, "arrived twice: it was moved")
    expect_equal(arrived[1]["elsewhere"][0]["adminname"], "user/anna", "from where")
    expect_equal([e["flags"] for e in arrived], [["\\Flagged"]] * 2, "with its flags")
    moved = [e for e in events if e["event"] == "expunged"][0]
    expect_equal(moved["adminname"], "user/anna", "where from")
    box = rig.to.json("history", "anna", "Out")["events"]
    words = [e["event"] for e in box]
    expect({"created", "renamed", "changed", "arrived", "flags", "expunged"} <= set(words), "of a mailbox", [str(words)])
    changed = [e for e in box if e["event"] == "changed"][0]["keys"]
    expect("bert\tlr" in changed["ACL"]["new"] and "bert" not in changed["ACL"]["old"], "its ACL", [str(changed)])
    former = rig.to.json("history", "anna", "Sent")["events"]
    expect_equal(former, box, "by the name it had before")
    for words in (["messages", "anna", "Sent"], ["show", "anna", "Sent"]):
        done = rig.to.tool(*words)
        expect(done.code == 1 and "Sent: no mailbox any more, it is user/anna/Out since " in done.err, words[0], [str(done)])
    one = rig.to.json("history", "anna", "INBOX", "--uid", "3")["events"]
    # Its last flag was \\Deleted.
    expect_equal([e["event"] for e in one if "uid" in e], ["arrived", "flags", "expunged"], "of a UID")
    text = rig.to.tool("history", "anna", guid)
    expect(text.code == 0 and "renamed, was user/anna/Sent" in text.out, "text", [str(text)])
    expect_equal(rig.to.json("history", "anna", guid, "--until", str(times[0] - 1))["events"], [], "--until")
    expect_equal(rig.to.tool("history", "anna", "f" * 40).code, 1, "no such message")
    deleted = [e for e in rig.to.json("history", "anna")["events"] if e["event"] == "renamed" and "DELETED" in e["mboxname"]]
    expect_equal(len(deleted), 1, "all of it: a mailbox was deleted")


@case("history: scripts and subscriptions, and what is built upon states agrees with it")
def own(rig):
    rig.cyrus.sieve_upload("anna", {"one": "keep;\n"}, active="one")
    with rig.cyrus.imap("anna") as imap:
        imap.subscribe("INBOX/Out")
    rig.sync("-u", "anna")
    rig.cyrus.sieve_upload("anna", {"one": "discard;\n"}, active="")
    with rig.cyrus.imap("anna") as imap:
        imap.unsubscribe("INBOX/Out")
    rig.sync("-u", "anna")
    words = [e["event"] for e in rig.to.json("history", "anna")["events"]]
    # The script and its bytecode may both come; a changed one is not deleted.
    for word_ in ("script put", "active script", "subscribed", "unsubscribed"):
        expect(word_ in words, word_, [str(words)])
    expect("script deleted" not in words, "a changed script is not deleted", [str(words)])


@case("diff: a mailbox between two times, and now")
def differences(rig):
    time.sleep(1.1)
    began = int(time.time())
    time.sleep(1.1)
    with rig.cyrus.imap("anna") as imap:
        imap.append("INBOX", mail("late@x.example", "late", "late"))
        imap.select("INBOX")
        imap.store("4", "+FLAGS", "\\Seen")
        imap.expunge("5")
        imap.create("INBOX/New")
        imap.subscribe("INBOX/New")
    rig.sync("-u", "anna")
    told = rig.to.json("diff", "anna", "--from", str(began))
    expect_equal(
        sorted((m["adminname"], m["uid"], m["change"], tuple(m["added"])) for m in told["messages"]),
        [("user/anna", 4, "flags", ("\\Seen",)), ("user/anna", 5, "went", ()), ("user/anna", 7, "came", ())],
        "messages",
    )
    expect_equal([(m["adminname"], m["change"]) for m in told["mailboxes"]], [("user/anna/New", "came")], "mailboxes")
    expect_equal([(o["kind"], o["name"], o["change"]) for o in told["others"]], [("subscription", "user.anna.New", "came")], "others")
    text = rig.to.tool("diff", "anna", "--from", str(began), "INBOX")
    signs = sorted(line[0] for line in text.out.splitlines())
    expect_equal((text.code, signs), (0, ["+", "-", "~"]), "text of one mailbox")
    none = rig.to.json("diff", "anna", "--from", str(began - 1), "--to", str(began))
    expect_equal((none["mailboxes"], none["messages"], none["others"]), ([], [], []), "nothing happened")
    before = rig.to.tool("diff", "anna", "--from", "2001-01-01")
    expect(before.code == 1 and "begins at" in before.err, "before it began", [str(before)])
    expect_equal(rig.to.tool("diff", "anna", "--from", str(began), "Nowhere").code, 1, "no such mailbox")


@case("history begins where compaction has left it: what was there is told by when it came")
def compacted(rig):
    before = rig.to.json("history", "anna", "INBOX")["events"]
    time.sleep(3)
    with rig.cyrus.imap("anna") as imap:
        imap.select("INBOX")
        imap.store("7", "+FLAGS", "\\Answered")
    rig.sync("-u", "anna")
    done = rig.to.tool("compact", "--force", "anna")
    expect(done.code == 0, "compact", [str(done)])
    told = rig.to.json("history", "anna", "INBOX")
    expect(told["begins"] is not None, "it begins", [str(told)])
    came = {e["uid"]: e["time"] for e in before if e["event"] == "arrived"}
    events = [e for e in told["events"] if "uid" in e]
    first = {e["uid"]: e["time"] for e in events if e["event"] == "arrived"}
    expect_equal(first, {uid: came[uid] for uid in (2, 4, 6, 7)}, "what is alive, and when it came")
    expect(all(e["before"] for e in events if e["event"] == "arrived"), "it was there before", [str(events)])
    last = events[-1]
    expect_equal((last["event"], last["uid"], last["before"]), ("flags", 7, False), "what came later")
    text = rig.to.tool("history", "anna", "INBOX").out.splitlines()
    expect(text[0].startswith("before ") and "not known" in text[0], "text", text[:3])


run(setup, Rig.close)
