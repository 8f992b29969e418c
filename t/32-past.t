#!/usr/bin/env python3
"""--at shows a backup as the server was when it said so. Random work on a real server, synced and
recorded at random moments; afterwards each record must be what --at says of its moment.

PAST_ROUNDS (default 14) says how many moments, PAST_SEED which work."""

import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig.imap import No
from cyrusrig.rig import owner

ROUNDS = int(os.environ.get("PAST_ROUNDS", "14"))
SEED = os.environ.get("PAST_SEED", "1")
USERS = ["anna", "bert"]
FLAGS = ["\\Seen", "\\Flagged", "\\Answered", "\\Draft", "$Work", "$Later"]


def setup():
    if RECEIVER != "ours":
        raise Skip("about our own commands")
    rig = start_rig(delete_mode=random.Random(SEED).choice(["immediate", "delayed"]))
    rig.cyrus.user(*USERS)
    rig.moments = []
    # Mailboxes of which no client ever tells that they are gone, and since when.
    rig.untold = {}
    return rig


class Worker:
    """Random things a user and an administrator do."""

    def __init__(self, rig, chance):
        self.rig = rig
        self.random = chance
        self.count = 0

    def folders(self, imap):
        return [n for n in imap.list() if n.split("/")[0] == "INBOX"]

    def uids(self, imap, folder):
        imap.select(folder)
        for pieces in imap.command("UID SEARCH ALL"):
            words = pieces[0].split()
            if words[1:2] == [b"SEARCH"]:
                return [int(w) for w in words[2:]]
        return []

    def body(self, user):
        self.count += 1
        return message("%s-%d" % (SEED, self.count), self.random.choice([300, 3000, 40000]), to=user)

    def work(self, user):
        """Some commands of one user; how many were done."""
        r = self.random
        done = 0
        with self.rig.cyrus.imap(user) as imap:
            for _ in range(r.randint(2, 9)):
                folders = self.folders(imap)
                folder, other = r.choice(folders), r.choice(folders)
                what = r.choice(["append"] * 3 + ["store"] * 4 + ["copy", "move", "expunge", "create", "rename"]
                    + ["delete", "subscribe", "unsubscribe", "acl", "annotate", "same"])
                try:
                    self.one(imap, user, what, folder, other)
                    done += 1
                except No:
                    # Such as a name that is taken.
                    pass
        return done

    def one(self, imap, user, what, folder, other):
        r = self.random
        name = "INBOX/" + r.choice("ABCD") + r.choice(["", "/x", "/y"])
        if what == "append":
            imap.fill(folder, [self.body(user) for _ in range(r.randint(1, 4))], r.choice(["", "\\Seen", "$Work"]))
        elif what == "same":
            # One message twice in a folder.
            imap.fill(folder, [message("same", 500, to=user)] * 2)
        elif what in ("store", "copy", "move", "expunge"):
            uids = self.uids(imap, folder)
            if not uids:
                return
            some = ",".join(str(u) for u in r.sample(uids, r.randint(1, len(uids))))
            if what == "store":
                imap.store(some, r.choice(["+FLAGS", "-FLAGS", "FLAGS"]), " ".join(r.sample(FLAGS, 2)))
            elif what == "expunge":
                imap.expunge(some)
            elif folder != other:
                getattr(imap, what)(some, other)
        elif what == "create":
            imap.create(name)
        elif what == "rename" and folder != "INBOX":
            imap.rename(folder, name)
        elif what == "delete" and folder != "INBOX":
            imap.delete(folder)
        elif what == "subscribe":
            imap.subscribe(name)
        elif what == "unsubscribe":
            imap.unsubscribe(name)
        elif what == "acl":
            imap.setacl(folder, r.choice(USERS + ["anyone"]), r.choice(["lrs", "lrswipkxte", "lr"]))
        elif what == "annotate":
            imap.setmetadata(folder, "/shared/comment", r.choice(["one", "Gr\u00fc\u00dfe", None]))

    def about_user(self, user):
        """Scripts, limits, what is read in another's folder."""
        r = self.random
        what = r.choice(["sieve", "active", "quota", "seen", "none"])
        if what == "sieve":
            self.rig.cyrus.sieve_upload(user, {r.choice("st"): "# %d\nkeep;\n" % r.randrange(99)})
        elif what == "active":
            name = r.choice("st")
            self.rig.cyrus.sieve_upload(user, {name: "discard;\n"}, active=r.choice([name, ""]))
        elif what == "quota":
            with self.rig.cyrus.imap("admin") as imap:
                imap.setquota("user/" + user, storage=r.randint(10**6, 10**7))
        elif what == "seen":
            other = USERS[1 - USERS.index(user)]
            with self.rig.cyrus.imap(user) as imap:
                try:
                    imap.select("user/" + other)
                    imap.store("1:%d" % r.randint(1, 9), "+FLAGS", "\\Seen")
                except No:
                    pass

    def anew(self, user):
        """The user is deleted, and somebody else gets the name."""
        with self.rig.cyrus.imap("admin") as imap:
            imap.setacl("user/" + user, "admin", "lrswipkxtecda")
            imap.delete("user/" + user)
        self.rig.cyrus.sync_ok(self.rig.to, "-u", user, attempts=2)
        self.rig.cyrus.user(user)


def ids(state):
    """Identities of the mailboxes of a state."""
    return {box["uniqueid"] for box in state["mailboxes"].values()}


def next_second():
    """Waits until what comes is stamped later; the second that is over."""
    now = time.time()
    time.sleep(1.02 - now % 1)
    return int(now)


def record(rig):
    """What the server has now, and the time at which it is so."""
    rig.cyrus.sync_ok(rig.to, "-u", *USERS, attempts=12)
    state = rig.cyrus.dump(USERS)
    rig.moments.append((next_second(), state))


def check(rig, at, state):
    """Differences between a record and what --at says."""
    listed = rig.to.listing(USERS, at=at)
    listed = {n: b for n, b in listed.items() if at < rig.untold.get(b["uniqueid"], at + 1)}
    told = compare.mailboxes(state["mailboxes"], listed, rig.to.ignore)
    told += compare.users(state["users"], rig.to.own_listing(USERS, at=at), rig.to.ignore)
    return ["at %d: %s" % (at, line) for line in told]


@case("every moment recorded from the server is what --at says of it")
def moments(rig):
    chance = random.Random(SEED)
    worker = Worker(rig, chance)
    with rig.cyrus.imap("bert") as imap:
        imap.setacl("INBOX", "anna", "lrsw")
        imap.fill("INBOX", [message("first%d" % n, to="bert") for n in range(6)])
    copy = None
    for number in range(ROUNDS):
        for user in USERS:
            worker.work(user)
            worker.about_user(user)
        if number == ROUNDS // 3:
            rig.cyrus.sync_ok(rig.to, "-u", *USERS, attempts=12)
            copy = rig.cyrus.snapshot()
        if number == 2 * ROUNDS // 3 and copy:
            # An older copy of the server: UIDs come again with other messages.
            before = ids(rig.cyrus.dump(USERS))
            rig.cyrus.restore(copy)
            rig.untold = dict.fromkeys(before - ids(rig.cyrus.dump(USERS)), int(time.time()))
            worker.work("anna")
        if number % 7 == 5:
            worker.anew("bert")
        if number % 5 == 4:
            rig.cyrus.expire()
        record(rig)
    expect_none([line for at, state in rig.moments for line in check(rig, at, state)], "--at, seed %s" % SEED)
    kinds = {len(state["mailboxes"]) for _at, state in rig.moments}
    diag("%d moments, %s mailboxes, %d bytes of log" % (len(rig.moments), sorted(kinds), os.path.getsize(rig.to.data_files()["anna"])))
    expect(len(kinds) > 1, "something happened")


@case("the same after compaction, to which nothing has outlived its retention")
def compacted(rig):
    before = {user: rig.to.json("history", user)["events"] for user in USERS}
    for user in USERS:
        done = rig.to.tool("compact", "--force", user)
        expect(done.code == 0, "compact", [str(done)])
    expect_none([line for at, state in rig.moments for line in check(rig, at, state)], "--at")
    for user in USERS:
        expect_equal(rig.to.json("history", user)["events"], before[user], "history of " + user)


@case("the same after the index was made anew")
def reindexed(rig):
    rig.to.stop()
    for user in USERS:
        rig.to.drop_index(user)
    rig.to.start()
    expect_none([line for at, state in rig.moments for line in check(rig, at, state)], "--at")


@case("diff between two moments is what differs between their records")
def differences(rig):
    out = []
    for (begin, old), (end, new) in zip(rig.moments, rig.moments[1:]):
        for user in USERS:
            told = rig.to.json("diff", user, "--from", str(begin), "--to", str(end))
            lost = {unique for unique, since in rig.untold.items() if end >= since}
            out += ["%d to %d: %s" % (begin, end, line) for line in unlike(user, old, new, told, lost)]
    expect_none(out, "diff")


def unlike(user, old, new, told, lost):
    """How a diff differs from that of two records, by names and live UIDs, `lost` mailboxes aside."""

    def boxes(state):
        return {b["uniqueid"]: b for n, b in state["mailboxes"].items() if owner(n) == user and not n.startswith("DELETED.")}

    def live(box):
        return {u: r for u, r in (box["records"] if box else {}).items() if not r["expunged"]}

    def fold(flags):
        return {f.lower() for f in flags}

    old, new = boxes(old), boxes(new)
    want, got = set(), set()
    for unique in set(old) | set(new):
        a, b = old.get(unique), new.get(unique)
        if a is None or b is None:
            want.add((unique, "came" if b else "went"))
        elif a["mboxname"] != b["mboxname"]:
            want.add((unique, "renamed"))
        one, two = live(a), live(b)
        for uid in set(one) | set(two):
            was, now = one.get(uid), two.get(uid)
            if was and now and was["guid"] == now["guid"]:
                if fold(was["flags"]) != fold(now["flags"]):
                    want.add((unique, uid, "flags", was["guid"]))
                continue
            want |= {(unique, uid, "went", was["guid"])} if was else set()
            want |= {(unique, uid, "came", now["guid"])} if now else set()
    for item in told["mailboxes"]:
        # Deleted ones that are kept are none here; so one that was deleted was renamed there.
        kept = item["mboxname"].startswith("DELETED.")
        before = item.get("old_mboxname", "")
        if kept and item["change"] == "renamed":
            got.add((item["uniqueid"], "went"))
        elif not kept and before.startswith("DELETED."):
            got.add((item["uniqueid"], "came"))
        elif not kept and item["change"] != "changed":
            got.add((item["uniqueid"], item["change"]))
    # Where a mailbox is kept, or comes back from there, its messages neither went nor came.
    with_it = {unique for unique in old if unique not in new}
    with_it |= {item["uniqueid"] for item in told["mailboxes"] if item["change"] == "renamed" and item["uniqueid"] not in old}
    for item in told["messages"]:
        kept = item["mboxname"].startswith("DELETED.")
        if not kept and item["change"] != "annotations":
            got.add((item["uniqueid"], item["uid"], item["change"], item["guid"]))
    want = {w for w in want if w[0] not in lost and not (len(w) == 4 and w[0] in with_it)}
    got = {g for g in got if g[0] not in lost and not (len(g) == 4 and g[0] in with_it)}
    return ["surplus %r" % (g,) for g in sorted(got - want, key=str)] + ["lacks %r" % (w,) for w in sorted(want - got, key=str)]


run(setup, Rig.close, time_limit=60 + 20 * ROUNDS)
