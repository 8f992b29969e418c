#!/usr/bin/env python3
"""restore to the real Cyrus: what was deleted is back as IMAP shows it, in place and in a
tree; as it was at a time; flags alone; another user; and a second run adds nothing."""

import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *

DATE = "01-Jan-2020 10:00:00 +0000"
SCRIPT = 'require ["fileinto"];\r\n# Gr\u00fc\u00dfe\r\nfileinto "INBOX.Sent";\r\n'
TREE = "INBOX/RESTORED/" + time.strftime("%Y-%m-%d")


def setup():
    if RECEIVER != "ours":
        raise Skip("about our own command")
    return start_rig(to_options={"restore_authname": "admin", "restore_password": PASSWORD}, delete_mode="delayed")


def restore(rig, *args, to="imap", code=0, cyrus=None):
    """Run restore -j and return what it says about each user."""
    cyrus = cyrus or rig.cyrus
    where = {"imap": "imap://127.0.0.1:%d" % cyrus.imap_port, "unix": "unix:" + cyrus.csync_socket}[to]
    done = rig.to.tool("restore", "-j", "--to", where, *args)
    expect(done.code == code, "restore ends with %d" % code, [str(done)])
    return json.loads(done.out)["users"]


def totals(users):
    """(made, brought, there, flagged, failed) of all mailboxes together."""
    boxes = [box for user in users for box in user["mailboxes"]]
    failed = sum(len(box["failed"]) for box in boxes) + sum(len(user["failed"]) for user in users)
    return tuple(sum(int(b[k]) for b in boxes) for k in ("made", "brought", "there", "flagged")) + (failed,)


def shown(cyrus, user, name, modseq=False):
    """What IMAP shows of a folder, by content."""
    with cyrus.imap(user) as imap:
        held = imap.messages(name)
    return sorted((m["sha1"], sorted(m["flags"]), m["internaldate"], m["size"]) for m in held.values())


def new_user(rig, user, folders=("Sent",)):
    """A user with mail of different flags and dates, backed up."""
    rig.cyrus.user(user)
    with rig.cyrus.imap(user) as imap:
        for number in range(6):
            flags = ["", "\\Seen", "\\Flagged \\Seen", "\\Answered", "$Forwarded", "\\Draft own"][number]
            imap.append("INBOX", message(number, 400 + number, to=user), flags, DATE.replace("01-Jan", "%02d-Jan" % (number + 1)))
        for folder in folders:
            imap.create("INBOX/" + folder)
            imap.fill("INBOX/" + folder, [message("%s%d" % (folder, n), 500, to=user) for n in range(4)])
    rig.sync("-u", user)


def wait_second():
    """Times are told in seconds: what follows is later."""
    time.sleep(1.1)


@case("expunged messages are back alive with flags and dates, in place; a second run adds nothing")
def undelete(rig):
    for way in ("imap", "unix"):
        user = "anna" + way
        new_user(rig, user)
        before = shown(rig.cyrus, user, "INBOX")
        with rig.cyrus.imap(user) as imap:
            imap.select("INBOX")
            imap.expunge("2:4,6")
            imap.append("INBOX", message("new", to=user))
        rig.sync("-u", user)
        told = restore(rig, "--in-place", "--deleted-only", user, to=way)
        expect_equal(totals(told), (0, 4, 0, 0, 0), "what was done over " + way)
        after = shown(rig.cyrus, user, "INBOX")
        expect_equal([m for m in after if m in before], before, "all six are back over " + way)
        expect_equal(len(after), 7, "and the new one")
        told = restore(rig, "--in-place", "--deleted-only", user, to=way)
        expect_equal(totals(told)[1:2] + totals(told)[4:], (0, 0), "a second run")
        expect_equal(shown(rig.cyrus, user, "INBOX"), after, "which adds nothing")
        rig.sync("-u", user)
        rig.whole(user)
        told = restore(rig, "--in-place", "--deleted-only", user, to=way)
        expect_equal(totals(told), (0, 0, 0, 0, 0), "nothing is deleted any more")


@case("expunged for good on the server: back all the same, into the tree of today")
def tree(rig):
    new_user(rig, "tess")
    before = shown(rig.cyrus, "tess", "INBOX")
    with rig.cyrus.imap("tess") as imap:
        imap.select("INBOX")
        imap.expunge("1:*")
    rig.cyrus.expire()
    rig.sync("-u", "tess")
    dry = restore(rig, "-n", "--deleted-only", "tess")
    expect_equal(totals(dry)[1], 6, "a dry run says so")
    with rig.cyrus.imap("tess") as imap:
        expect_equal([n for n in imap.list() if "RESTORED" in n], [], "and does nothing")
    restore(rig, "--deleted-only", "tess")
    expect_equal(shown(rig.cyrus, "tess", TREE + "/INBOX"), before, "the messages")
    expect_equal(shown(rig.cyrus, "tess", "INBOX"), [], "INBOX is as it was")
    told = restore(rig, "--deleted-only", "tess")
    expect_equal(totals(told), (0, 0, 6, 0, 0), "a second run")
    expect_equal(len(shown(rig.cyrus, "tess", TREE + "/INBOX")), 6, "adds nothing")


@case("what was brought back is in the backup itself by now: a run like the last brings nothing again")
def again(rig):
    new_user(rig, "tina")
    told = restore(rig, "tina")
    expect_equal(totals(told)[1], 10, "into the tree")
    with rig.cyrus.imap("tina") as imap:
        first = sorted(imap.list())
    for _ in range(2):
        rig.sync("-u", "tina")
        told = restore(rig, "tina")
        expect_equal(totals(told), (0, 0, 10, 0, 0), "the same once more")
        expect("left out" in " ".join(told[0]["notes"]), "that the tree is left out is told", told[0]["notes"])
    with rig.cyrus.imap("tina") as imap:
        expect_equal(sorted(imap.list()), first, "mailboxes")
    told = restore(rig, "-n", "--in-place", "tina", "RESTORED/" + TREE.split("/")[-1] + "/INBOX")
    expect_equal(totals(told), (0, 0, 6, 0, 0), "unless it is named")
    # What was deleted stays so as long as only the tree has it; and does not become more when that goes.
    new_user(rig, "ute")
    with rig.cyrus.imap("ute") as imap:
        imap.select("INBOX")
        imap.expunge("1:3")
    rig.sync("-u", "ute")
    told = restore(rig, "--deleted-only", "ute")
    expect_equal(totals(told)[1], 3, "deleted ones into the tree")
    rig.sync("-u", "ute")
    told = restore(rig, "-n", "--deleted-only", "--in-place", "ute")
    expect_equal(totals(told)[1], 3, "they are not where they were")
    with rig.cyrus.imap("ute") as imap:
        for name in sorted(imap.list(), reverse=True):
            if "RESTORED" in name:
                imap.delete(name)
    rig.sync("-u", "ute")
    told = restore(rig, "--deleted-only", "--in-place", "ute")
    expect_equal(totals(told), (0, 3, 0, 0, 0), "three, and no tree")
    rig.sync("-u", "ute")
    told = restore(rig, "--deleted-only", "--in-place", "ute")
    expect_equal(totals(told)[1], 0, "and then none")


@case("a message that was moved is not deleted")
def moved(rig):
    new_user(rig, "mona")
    with rig.cyrus.imap("mona") as imap:
        imap.select("INBOX")
        imap.move("1:3", "INBOX/Sent")
        imap.expunge("4")
    rig.sync("-u", "mona")
    told = restore(rig, "--in-place", "--deleted-only", "mona")
    expect_equal(totals(told), (0, 1, 0, 0, 0), "only the deleted one")


@case("one message by GUID, and a list of them")
def by_guid(rig):
    new_user(rig, "gwen")
    listed = rig.to.json("messages", "gwen")["messages"]
    inbox = [m for m in listed if m["mboxname"] == "user.gwen"]
    with rig.cyrus.imap("gwen") as imap:
        imap.select("INBOX")
        imap.expunge("1:*")
    rig.sync("-u", "gwen")
    told = restore(rig, "--in-place", "gwen", inbox[2]["guid"])
    expect_equal(totals(told), (0, 1, 0, 0, 0), "one")
    path = rig.to.dir + "/tmp/guids"
    with open(path, "w") as file:
        json.dump({"version": 1, "messages": inbox[2:5]}, file)
    os.chmod(path, 0o644)
    told = restore(rig, "--in-place", "--guids", path, "gwen")
    expect_equal(totals(told), (0, 2, 1, 0, 0), "the list")
    found = rig.to.tool("search", "-j", "--deleted-only", "--subject", "message 5", "gwen")
    expect(found.code == 0, "search", [str(found)])
    where = "imap://127.0.0.1:%d" % rig.cyrus.imap_port
    done = rig.to.tool("restore", "-j", "--in-place", "--guids", "-", "--to", where, "gwen", stdin=found.out.encode())
    expect_equal((done.code, totals(json.loads(done.out)["users"])), (0, (0, 1, 0, 0, 0)), "what search found")
    told = restore(rig, "--into", "user/gwen/Sent", "gwen", inbox[0]["guid"])
    expect_equal(totals(told), (0, 1, 0, 0, 0), "into another mailbox")
    expect_equal(len(shown(rig.cyrus, "gwen", "INBOX/Sent")), 5, "is there")
    told = restore(rig, "--in-place", "gwen", "0" * 39 + "1", code=1)
    expect(told[0]["failed"], "a message that is not in the backup is told", [str(told)])


@case("a deleted folder, with what is below it, its ACL and annotation")
def folder(rig):
    new_user(rig, "fred", ("Work", "Work/A", "Work/A/B"))
    with rig.cyrus.imap("fred") as imap:
        imap.setacl("INBOX/Work/A", "anyone", "lr")
        imap.setmetadata("INBOX/Work/A", "/shared/comment", "50% of \"it\"")
    rig.sync("-u", "fred")
    names = ["INBOX/Work", "INBOX/Work/A", "INBOX/Work/A/B"]
    before = {n: shown(rig.cyrus, "fred", n) for n in names}
    held = rig.cyrus.dump(["fred"])["mailboxes"]["user.fred.Work.A"]
    with rig.cyrus.imap("fred") as imap:
        for name in reversed(names):
            imap.delete(name)
    rig.sync("-u", "fred")
    told = restore(rig, "--in-place", "-r", "fred", "Work")
    expect_equal(totals(told), (3, 12, 0, 0, 0), "three mailboxes")
    for name in names:
        expect_equal(shown(rig.cyrus, "fred", name), before[name], name)
    after = rig.cyrus.dump(["fred"])["mailboxes"]["user.fred.Work.A"]
    expect_equal(after["acl"], held["acl"], "ACL")
    expect_equal(after["annotations"], held["annotations"], "annotations")
    told = restore(rig, "--in-place", "-r", "fred", "Work")
    expect_equal(totals(told), (0, 0, 12, 0, 0), "a second run")
    # The same with --deleted-only and the whole user: they live again, so nothing is deleted.
    rig.sync("-u", "fred")


@case("what went through the trash is deleted once, where it was last; what left a folder before that went, not at all")
def trash(rig):
    for user, steps in (("theo", True), ("thea", False)):
        new_user(rig, user, ("Trash", "Old"))
        with rig.cyrus.imap(user) as imap:
            imap.select("INBOX")
            imap.move("1:2", "INBOX/Trash")
            imap.select("INBOX/Old")
            imap.move("1", "INBOX")
        if steps:
            rig.sync("-u", user)
            wait_second()
        with rig.cyrus.imap(user) as imap:
            imap.select("INBOX/Trash")
            imap.expunge("1:*")
            imap.delete("INBOX/Old")
        rig.sync("-u", user)
        told = restore(rig, "-n", "--in-place", "--deleted-only", user)
        boxes = {b["mboxname"]: b["brought"] for b in told[0]["mailboxes"]}
        expect_equal(boxes, {"user.%s.Trash" % user: 6, "user.%s.Old" % user: 3}, user)
        told = restore(rig, "-n", "--in-place", "--deleted-only", user, "INBOX")
        expect_equal(totals(told)[1], 2, "unless where it was first is named")


@case("at a time: before and after a mass change of flags; flags alone, new mail untouched")
def flags(rig):
    for way in ("imap", "unix"):
        user = "flo" + way
        new_user(rig, user)
        before = shown(rig.cyrus, user, "INBOX")
        wait_second()
        then = int(time.time())
        wait_second()
        with rig.cyrus.imap(user) as imap:
            imap.select("INBOX")
            imap.store("1:*", "+FLAGS", "\\Seen")
            imap.expunge("1")
        rig.sync("-u", user)
        wait_second()
        between = int(time.time())
        wait_second()
        with rig.cyrus.imap(user) as imap:
            imap.append("INBOX", message("later", to=user), "\\Seen \\Flagged")
        rig.sync("-u", user)
        # Into a tree: as it was then, and as it was afterwards.
        restore(rig, "--at", str(then), "--prefix", "then", user, "INBOX", to=way)
        expect_equal(shown(rig.cyrus, user, "INBOX/then/INBOX"), before, "before the change")
        restore(rig, "--at", str(between), "--prefix", "afterwards", user, "INBOX", to=way)
        seen = shown(rig.cyrus, user, "INBOX/afterwards/INBOX")
        expect_equal((len(seen), all("\\Seen" in m[1] for m in seen)), (5, True), "after the change")
        # Only flags.
        dry = restore(rig, "-n", "--flags-only", "--at", str(then), user, "INBOX", to=way)
        log = rig.cyrus.sync_log_path()
        if os.path.exists(log):
            os.unlink(log)
        told = restore(rig, "--flags-only", "--at", str(then), user, "INBOX", to=way)
        expect_equal(totals(told), (0, 0, 5, 3, 0), "flags over " + way)
        if way == "imap":
            # The server's own replicas and backups hear of it.
            with open(log) as file:
                expect("MAILBOX user." + user in file.read(), "imapd logs it")
        expect_equal(totals(dry), totals(told), "as the dry run said")
        after = shown(rig.cyrus, user, "INBOX")
        expect_equal([m for m in after if m in before], before[:0] + [m for m in before if m in after], "flags are back")
        expect_equal(len([m for m in after if m in before]), 5, "of all five that are there")
        new = [m for m in after if m not in before]
        expect_equal([m[1] for m in new], [["\\Flagged", "\\Seen"]], "new mail is untouched")
        told = restore(rig, "--flags-only", "--at", str(then), user, "INBOX", to=way)
        expect_equal(totals(told), (0, 0, 5, 0, 0), "a second run")
        rig.sync("-u", user)
        rig.whole(user)


@case("what is not mail: sieve active again, subscriptions, seen, quota; nothing is overwritten")
def own(rig):
    new_user(rig, "olga")
    new_user(rig, "otto")
    with rig.cyrus.imap("olga") as imap:
        imap.setacl("INBOX", "otto", "lrs")
        imap.subscribe("INBOX/Sent")
    with rig.cyrus.imap("otto") as imap:
        imap.subscribe("user/olga")
        imap.select("user/olga")
        imap.store("2:4", "+FLAGS", "\\Seen")
    with rig.cyrus.imap("admin") as imap:
        imap.setquota("user/olga", storage=54321)
    rig.cyrus.sieve_upload("olga", {"night": SCRIPT, "day": "keep;\n"}, active="night")
    rig.sync("-u", "olga", "otto")
    before = rig.cyrus.dump(["olga", "otto"])["users"]
    with rig.cyrus.imap("olga") as imap:
        imap.unsubscribe("INBOX/Sent")
    rig.cyrus.sieve_upload("olga", {}, active="")
    rig.cyrus.sieve_delete("olga", "night")
    with rig.cyrus.imap("admin") as imap:
        imap.command('SETQUOTA "user/olga" ()')
    lost = rig.cyrus.dump(["olga", "otto"])["users"]
    expect(lost["olga"] != before["olga"], "it is lost")
    told = restore(rig, "--in-place", "olga")
    expect_equal(totals(told), (0, 0, 10, 0, 0), "mail is there")
    told_more = restore(rig, "--prefix", "more", "olga", "INBOX")
    expect("limit" in " ".join(told_more[0]["mailboxes"][0]["notes"]), "that limits are not minded is told", [str(told_more)])
    with rig.cyrus.imap("olga") as imap:
        imap.delete("INBOX/more/INBOX")
        imap.delete("INBOX/more")
    after = rig.cyrus.dump(["olga", "otto"])["users"]
    for key in ("sieve", "subscriptions", "quota"):
        expect_equal(after["olga"].get(key), before["olga"].get(key), key)
    became = {(o["kind"], o["name"]): o["became"] for o in told[0]["own"]}
    expect_equal(became[("script", "night.script")], "brought", "the script is told")
    expect_equal(became[("script", "day.script")], "there", "and the other, which was there")
    expect_equal(became[("active script", "night.bc")], "brought", "and that it is active")
    expect_equal(became[("subscription", "user.olga.Sent")], "brought", "and the subscription")
    expect_equal(became[("quota", "user.olga")], "brought", "and the limit")
    # Changed since: stays.
    rig.cyrus.sieve_upload("olga", {"night": "discard;\n"}, active="day")
    changed = rig.cyrus.dump(["olga"])["users"]
    for words in (["-n", "--in-place"], ["--in-place"]):
        told = restore(rig, *words, "olga")
        expect_equal(rig.cyrus.dump(["olga"])["users"], changed, "nothing is overwritten")
        became = {(o["kind"], o["name"]): o["became"] for o in told[0]["own"]}
        expect_equal(became[("script", "night.script")], "left", "that the script is another one is told")
        expect_equal(became[("active script", "night.bc")], "left", "and that another is active")
    text = rig.to.tool("restore", "--in-place", "--to", "unix:" + rig.cyrus.csync_socket, "olga").out
    expect("olga: script night.script: left: another one" in text, "for people too", text.splitlines())
    expect("script: 1 there already" in text, "what is there is counted", text.splitlines())
    text = rig.to.tool("restore", "-n", "--in-place", "--as", "nele", "--to", "unix:" + rig.cyrus.csync_socket, "olga").out
    expect("olga: quota user/nele: to bring" in text, "names as people see them", text.splitlines())


@case("a script that is another one now is not made active, whatever was active then")
def not_active(rig):
    new_user(rig, "vera")
    rig.cyrus.sieve_upload("vera", {"vac": "keep;\n"}, active="vac")
    rig.sync("-u", "vera")
    wait_second()
    then = int(time.time())
    wait_second()
    rig.cyrus.sieve_upload("vera", {"vac": "discard;\n"}, active="")
    rig.sync("-u", "vera")
    changed = rig.cyrus.dump(["vera"])["users"]["vera"]["sieve"]
    told = restore(rig, "--in-place", "--at", str(then), "vera")
    expect_equal(rig.cyrus.dump(["vera"])["users"]["vera"]["sieve"], changed, "the new text is not active")
    left = [o["kind"] for o in told[0]["own"] if o["became"] == "left"]
    expect_equal(left, ["script", "active script"], "and that is told")
    # The same text, only switched off.
    rig.cyrus.sieve_upload("vera", {"vac": "keep;\n"}, active="")
    told = restore(rig, "--in-place", "--at", str(then), "vera")
    expect_equal([o["became"] for o in told[0]["own"] if o["kind"] == "active script"], ["brought"], "is switched on")


@case("a deleted user, with everything, and a user to another one")
def users(rig):
    new_user(rig, "dora", ("Sent", "Sent/2020"))
    rig.cyrus.user("emil")
    rig.cyrus.sieve_upload("dora", {"main": SCRIPT, "other": "keep;\n"}, active="main")
    with rig.cyrus.imap("dora") as imap:
        imap.subscribe("INBOX/Sent/2020")
    with rig.cyrus.imap("admin") as imap:
        imap.setquota("user/dora", storage=23456)
    new_user(rig, "elsa")
    with rig.cyrus.imap("elsa") as imap:
        imap.setacl("INBOX", "dora", "lrs")
    with rig.cyrus.imap("dora") as imap:
        imap.select("user/elsa")
        imap.store("2:3", "+FLAGS", "\\Seen")
    rig.sync("-u", "dora", "emil")
    names = ["INBOX", "INBOX/Sent", "INBOX/Sent/2020"]
    before = {n: shown(rig.cyrus, "dora", n) for n in names}
    own = rig.cyrus.dump(["dora"])["users"]["dora"]
    wait_second()
    then = int(time.time())
    wait_second()
    told = restore(rig, "--in-place", "--as", "emil", "dora")
    expect_equal(totals(told)[1:], (14, 0, 0, 0), "to another user")
    for name in names:
        expect_equal(shown(rig.cyrus, "emil", name), before[name], "emil's " + name)
    given = rig.cyrus.dump(["emil"])["users"]["emil"]
    expect(own["sieve"] and own["quota"] and own["seen"], "there is something to lose", [str(own)])
    expect_equal(given["sieve"], own["sieve"], "scripts")
    expect_equal(given["subscriptions"], {n.replace("user.dora", "user.emil") for n in own["subscriptions"]}, "subscriptions")
    client = rig.cyrus.rolling(rig.to)
    try:
        with rig.cyrus.imap("admin") as imap:
            imap.setacl("user/dora", "admin", "lrswipkxtecdan")
            imap.delete("user/dora")
        rig.cyrus.expire()
        client.drain()
    finally:
        client.stop()
    told = restore(rig, "--in-place", "dora")
    expect_equal(totals(told), (3, 14, 0, 0, 0), "a deleted user")
    for name in names:
        expect_equal(shown(rig.cyrus, "dora", name), before[name], "dora's " + name)
    after = rig.cyrus.dump(["dora"])["users"]["dora"]
    for key in ("sieve", "subscriptions", "quota", "seen"):
        expect_equal(after.get(key), own.get(key), key)
    told = restore(rig, "--in-place", "--at", str(then), "dora")
    expect_equal(totals(told), (0, 0, 14, 0, 0), "mail is there")
    expect_none([str(o) for o in told[0]["own"] if o["became"] != "there"], "and all the rest")


def acl(cyrus, name):
    """Who may what, of everybody but the administrators."""
    box = cyrus.dump([], [name])["mailboxes"][name]
    words = box["acl"].split("\t")
    return {words[n]: words[n + 1] for n in range(0, len(words) - 1, 2) if words[n] != "admin"}


@case("what is made above a mailbox does not get its ACL: an open folder opens no INBOX")
def above(rig):
    new_user(rig, "pia")
    rig.cyrus.user("zora", "zoltan")
    with rig.cyrus.imap("pia") as imap:
        imap.setacl("INBOX/Sent", "anyone", "lrs")
        imap.setacl("INBOX", "zora", "lr")
    rig.sync("-u", "pia")
    before = acl(rig.cyrus, "user.pia")
    expect("anyone" not in before and "zora" in before, "INBOX is private", [str(before)])
    # To somebody who is not there, into a tree.
    told = restore(rig, "--as", "ernst", "pia", "Sent")
    expect("ernst" in " ".join(told[0]["mailboxes"][0]["notes"]), "the new account is told", [str(told)])
    names = ["user.ernst", "user.ernst.RESTORED", "user.ernst." + TREE[6:].replace("/", ".")]
    expect_equal(told[0]["mailboxes"][0]["made_above"], names, "what was made above")
    for name in names:
        expect("anyone" not in acl(rig.cyrus, name), name + " is private", [str(acl(rig.cyrus, name))])
    expect("ernst" in acl(rig.cyrus, "user.ernst"), "his own", [str(acl(rig.cyrus, "user.ernst"))])
    expect("zora" not in acl(rig.cyrus, "user.ernst"), "and not of pia's friends")
    expect("anyone" in acl(rig.cyrus, names[-1] + ".Sent"), "the folder is as open as it was")
    # In place: what is above is as it was.
    client = rig.cyrus.rolling(rig.to)
    try:
        with rig.cyrus.imap("admin") as imap:
            imap.setacl("user/pia", "admin", "lrswipkxtecdan")
            imap.delete("user/pia")
        client.drain()
    finally:
        client.stop()
    dry = restore(rig, "-n", "--in-place", "pia", "Sent")
    told = restore(rig, "--in-place", "pia", "Sent")
    expect_equal(told[0]["mailboxes"][0]["made_above"], ["user.pia"], "INBOX was made")
    expect_equal(dry[0]["mailboxes"][0]["made_above"], ["user.pia"], "as the dry run said")
    expect_equal(acl(rig.cyrus, "user.pia"), before, "INBOX is as private as it was")
    expect("anyone" in acl(rig.cyrus, "user.pia.Sent"), "and Sent as open")


@case("a search by time; everything that ever was")
def ever(rig):
    new_user(rig, "ines")
    with rig.cyrus.imap("ines") as imap:
        imap.select("INBOX")
        imap.expunge("1:3")
    rig.sync("-u", "ines")
    told = restore(rig, "-n", "--ignore-deletes", "ines", "INBOX")
    expect_equal(totals(told)[1], 6, "everything")
    told = restore(rig, "-n", "--ignore-deletes", "--since", "2020-01-02", "--until", "2020-01-04", "ines")
    expect_equal(totals(told)[1], 3, "of three days")
    told = restore(rig, "-n", "--deleted-only", "--since", "2020-01-01", "--until", "2020-12-31", "ines")
    expect_equal(totals(told)[1], 0, "nothing was deleted then")
    told = restore(rig, "-n", "--deleted-only", "--since", "-1h", "ines")
    expect_equal(totals(told)[1], 3, "but in the last hour")


run(setup, Rig.close)
