"""Says what differs between what a server holds and what a receiver lists.

Both sides in the form of `csync.common_mailbox`. Every difference is one line with
mailbox, UID and field, so that a failing test says where to look.
"""

MAILBOX_FIELDS = (
    "mboxname",
    "mboxtype",
    "uidvalidity",
    "lastuid",
    "highestmodseq",
    "acl",
    "options",
    "partition",
    "annotations",
)
RECORD_FIELDS = (
    "guid",
    "modseq",
    "internaldate",
    "last_updated",
    "size",
    "flags",
    "annotations",
)
FOLDED = {f.lower(): f for f in ("\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft")}


def _same(field, one, two):
    if field == "flags":
        fold = lambda flags: {FOLDED.get(f.lower(), f) for f in flags}
        return fold(one) == fold(two)
    return one == two


def _show(value):
    text = repr(sorted(value) if isinstance(value, set) else value)
    return text if len(text) < 160 else text[:150] + "... (%d)" % len(text)


def mailboxes(server, listed, ignore=(), exact=True):
    """Differences between {name: mailbox} of both sides, matched by uniqueid.

    Live messages must be the same set. A record that is expunged on the server must
    not be live in the listing; it may be missing there. With `exact` a mailbox that
    only the listing has is a difference too.
    """
    out = []
    by_id = {box["uniqueid"]: box for box in listed.values()}
    wanted = {box["uniqueid"] for box in server.values()}
    for name, box in sorted(server.items()):
        other = by_id.get(box["uniqueid"])
        if other is None:
            out.append("%s: mailbox is not listed (uniqueid %s)" % (name, box["uniqueid"]))
            continue
        for field in MAILBOX_FIELDS:
            # An intermediate mailbox travels without most of its fields.
            if field in ignore or field not in other:
                continue
            if "i" in box["mboxtype"] and field not in ("mboxname", "mboxtype"):
                continue
            if not _same(field, box[field], other[field]):
                out.append("%s: %s is %s, listed %s" % (name, field, _show(box[field]), _show(other[field])))
        if other["records"] is not None:
            out += records(name, box["records"], other["records"], ignore)
    if exact:
        for name, box in sorted(listed.items()):
            # What cyr_expire has cleaned away no client ever tells ("no tombstone").
            cleaned = name.split("!", 1)[-1].startswith("DELETED.")
            if box["uniqueid"] not in wanted and not cleaned:
                out.append("%s: listed, but the server has no such mailbox" % name)
    return out


def records(name, server, listed, ignore=()):
    """Differences between the records of one mailbox."""
    out = []
    for uid in sorted(set(server) | set(listed)):
        here, there = server.get(uid), listed.get(uid)
        alive = here is not None and not here["expunged"]
        listed_alive = there is not None and not there["expunged"]
        where = "%s: uid %d" % (name, uid)
        if alive and not listed_alive:
            out.append(where + (": listed as expunged" if there else ": is not listed"))
        elif listed_alive and not alive:
            out.append(where + ": listed as live, " + ("expunged" if here else "unknown") + " on the server")
        elif alive:
            for field in RECORD_FIELDS:
                if field in ignore or field not in there:
                    continue
                if not _same(field, here[field], there[field]):
                    out.append(
                        "%s: %s is %s, listed %s" % (where, field, _show(here[field]), _show(there[field]))
                    )
    return out


def users(server, listed, ignore=()):
    """Differences in what hangs on a user: subscriptions, seen, sieve, quota."""
    out = []
    for user, here in sorted(server.items()):
        there = listed.get(user)
        if there is None:
            out.append("%s: user is not listed" % user)
            continue
        if "subscriptions" not in ignore:
            for name in sorted(here["subscriptions"] ^ there["subscriptions"]):
                which = "missing" if name in here["subscriptions"] else "surplus"
                out.append("%s: subscription %s is %s" % (user, name, which))
        if "seen" not in ignore:
            for uniqueid, value in sorted(here["seen"].items()):
                if there["seen"].get(uniqueid) != value:
                    out.append("%s: seen %s is %r, listed %r" % (user, uniqueid, value, there["seen"].get(uniqueid)))
        if "sieve" not in ignore:
            script = lambda d: {n: v[0] for n, v in d.items() if n.endswith(".script")}
            active = lambda d: {n.rsplit(".", 1)[0] for n, v in d.items() if v[1]}
            if script(here["sieve"]) != script(there["sieve"]):
                out.append("%s: sieve scripts are %r, listed %r" % (user, here["sieve"], there["sieve"]))
            if "active" not in ignore and active(here["sieve"]) != active(there["sieve"]):
                out.append("%s: active sieve is %r, listed %r" % (user, active(here["sieve"]), active(there["sieve"])))
        if "quota" not in ignore and here["quota"] != there["quota"]:
            out.append("%s: quota is %r, listed %r" % (user, here["quota"], there["quota"]))
    return out


def states(before, after):
    """Differences between two `Cyrus.state()`s: the server must be unchanged."""
    out = []
    for name in sorted(set(before["mailboxes"]) ^ set(after["mailboxes"])):
        out.append("%s: mailbox %s" % (name, "vanished" if name in before["mailboxes"] else "appeared"))
    for name in sorted(set(before["mailboxes"]) & set(after["mailboxes"])):
        one, two = before["mailboxes"][name], after["mailboxes"][name]
        for field in one:
            if field != "records" and one[field] != two[field]:
                out.append("%s: %s was %s, is %s" % (name, field, _show(one[field]), _show(two[field])))
        for uid in sorted(set(one["records"]) | set(two["records"])):
            old, new = one["records"].get(uid), two["records"].get(uid)
            if old != new:
                if old and new:
                    fields = [f for f in old if old[f] != new[f]]
                    what = ", ".join("%s was %s, is %s" % (f, _show(old[f]), _show(new[f])) for f in fields)
                else:
                    what = "vanished" if old else "appeared"
                out.append("%s: uid %d: %s" % (name, uid, what))
    for label in sorted(set(before.get("imap", {})) | set(after.get("imap", {}))):
        one, two = before["imap"].get(label), after["imap"].get(label)
        if one != two:
            if one and two and "messages" in one and "messages" in two:
                for key in one:
                    if key != "messages" and one[key] != two.get(key):
                        out.append("IMAP %s: %s was %r, is %r" % (label, key, one[key], two.get(key)))
                for uid in sorted(set(one["messages"]) | set(two["messages"])):
                    if one["messages"].get(uid) != two["messages"].get(uid):
                        out.append(
                            "IMAP %s: uid %d was %s, is %s"
                            % (label, uid, _show(one["messages"].get(uid)), _show(two["messages"].get(uid)))
                        )
            else:
                out.append("IMAP %s: %s" % (label, "vanished" if one else "appeared"))
    for user in sorted(before["users"]):
        if before["users"][user] != after["users"].get(user):
            out.append("%s: was %s, is %s" % (user, _show(before["users"][user]), _show(after["users"].get(user))))
    return out
