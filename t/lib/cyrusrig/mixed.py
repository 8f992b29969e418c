"""A mailbox tree with everything in it that is easily lost on the way to somewhere else, and how
any IMAP server shows such a tree: for comparisons between servers of different kinds."""

import hashlib
from datetime import datetime

from .server import message

# mUTF-7 of Entwürfe, of 日本語, and a name with an ampersand.
FOLDERS = ("Sent", "Sent/2025", "Sent/2025/Dezember", "Entw&APw-rfe", "&ZeVnLIqe-", "A &- B", "v1.2", "empty")


def bodies():
    """Messages that are hard in some way, as {word: bytes}."""
    quoted = b"From: a@b\r\nMessage-ID: <q@x>\r\nSubject: quoting\r\n\r\n"
    quoted += b"From here\r\n>From there\r\n>>From both\r\nFrom\r\n From\r\n.\r\n\r\nFrom the end\r\n"
    return {
        "plain": message("plain", 400),
        "quoted": quoted,
        "eight": b"From: a@b\r\nMessage-ID: <e@x>\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\xc3\xa4\xff\r\n",
        "noid1": b"From: a@b\r\nSubject: x\r\n\r\n1\r\n",
        "noid2": b"From: a@b\r\nSubject: x\r\n\r\n2\r\n",
        "noend": b"From: a@b\r\nMessage-ID: <n@x>\r\n\r\nno line end",
        "empty": b"Message-ID: <0@x>\r\n\r\n",
        "long": b"Message-ID: <l@x>\r\n\r\n" + b"y" * 100000 + b"\r\n",
        "big": message("big", 3000000),
    }


def fill(imap, prefix="INBOX/"):
    """Make the tree with an empty INBOX, as its owner."""
    all_of = bodies()
    flags = ("\\Seen", "\\Answered \\Seen", "\\Flagged $Forwarded", "\\Draft", "", "$Label1 NonJunk", "\\Deleted")
    dates = ("01-Jan-1999 00:00:00 +0000", "29-Feb-2024 23:59:59 +0100", "26-Nov-2026 08:00:00 -0800")
    for number, body in enumerate(all_of.values()):
        imap.append("INBOX", body, flags[number % len(flags)], dates[number % len(dates)])
    # Twice the same in one folder, and different ones that have no Message-ID but size and date alike.
    imap.append("INBOX", all_of["plain"], "$Label1", dates[1])
    for word in ("noid1", "noid2"):
        imap.append("INBOX", all_of[word], "", dates[2])
    for number, folder in enumerate(FOLDERS):
        imap.create(prefix + folder)
        if folder != "empty":
            imap.append(prefix + folder, message(folder, 300), flags[number % len(flags)], dates[number % len(dates)])
    imap.fill(prefix + "Sent", [message("sent%d" % n, 350) for n in range(150)], "\\Seen")
    for folder in ("Sent", "Entw&APw-rfe"):
        imap.subscribe(prefix + folder)
    imap.subscribe("INBOX")


def seconds(text):
    """INTERNALDATE as seconds since 1970."""
    return int(datetime.strptime(text.strip(), "%d-%b-%Y %H:%M:%S %z").timestamp())


def shown(imap, prefix="INBOX/"):
    """{folder: sorted [(sha1, seconds, flags)]}, names without what all begin with."""
    found = {}
    for name in imap.list():
        if name.startswith(("user/", "Other Users", "Shared Folders")):
            continue
        short = name[len(prefix) :] if name.startswith(prefix) else name
        rows = []
        for item in imap.messages(name).values():
            rows.append((item["sha1"], seconds(item["internaldate"]), tuple(sorted(item["flags"]))))
        found[short] = sorted(rows)
    return found


def differences(one, two):
    """Lines that say what is not equal."""
    out = []
    for name in sorted(set(one) | set(two)):
        here, there = one.get(name), two.get(name)
        if here is None or there is None:
            out.append("%s: is missing on %s side" % (name, "the first" if here is None else "the second"))
            continue
        for row in sorted(set(here) ^ set(there)):
            out.append("%s: %r only on %s side" % (name, row, "the first" if row in here else "the second"))
        if len(here) != len(there):
            out.append("%s: %d messages, %d on the second side" % (name, len(here), len(there)))
    return out


def sha1(data):
    return hashlib.sha1(data).hexdigest()


def subscriptions(imap):
    """Subscribed names, without INBOX/ before them."""
    found = set()
    for pieces in imap.command('LSUB "" "*"'):
        parts = imap.parse(pieces)
        if parts[1] == b"LSUB" and b"\\NoSelect" not in parts[2] and b"\\Noselect" not in parts[2]:
            name = parts[4].decode()
            found.add(name[6:] if name.startswith("INBOX/") else name)
    return found


__all__ = ["FOLDERS", "bodies", "differences", "fill", "seconds", "sha1", "shown", "subscriptions"]
