#!/usr/bin/env python3
"""Large things in little memory: one message of many MB, a mailbox of many thousand
messages, a first sync and one that touches them all.

The sizes here suit a run on every commit; `BIG_MB=200 BIG_COUNT=100000` is the real
thing (some 3 minutes, most of it to fill the server)."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *

COUNT = int(os.environ.get("BIG_COUNT", "20000"))
MEGABYTES = int(os.environ.get("BIG_MB", "100"))


# Highest resident size allowed, MB, whatever the sizes above. 8 and 17 were measured.
MEMORY = 32


def setup():
    rig = start_rig(maxmessagesize="0")
    rig.cyrus.user("anna")
    return rig


def peak(pid):
    """Highest resident size so far, MB."""
    with open("/proc/%d/status" % pid) as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024.0
    return 0.0


def little_memory(rig):
    used = peak(rig.to.process.pid)
    diag("peak resident size of the receiver %.0f MB" % used)
    expect(0 < used < MEMORY, "memory stays below %d MB" % MEMORY, ["peak was %.0f MB" % used])


@case("one message of %d MB, in constant memory" % MEGABYTES)
def huge(rig):
    # Some of it compresses badly.
    body = message("huge") + os.urandom(1 << 20).hex().encode() + b"\r\n"
    line = b"abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-%08d\r\n"
    part = b"".join(line % n for n in range(14000))
    body += part * (MEGABYTES * 1000000 // len(part))
    rig.cyrus.user("huge")
    with rig.cyrus.imap("huge") as imap:
        imap.append("INBOX", body)
    rig.sync("-u", "huge", timeout=120)
    rig.whole("huge", bodies=False)
    if RECEIVER == "ours":
        little_memory(rig)
        dumped = rig.to.tool("dump", "message", "huge", hash_of(body), timeout=60)
        expect(dumped.code == 0, "the message can be dumped", [dumped.err[-500:]])
        expect(dumped.out.encode(errors="surrogateescape") == body, "the dumped message is the same")


def hash_of(body):
    import hashlib

    return hashlib.sha1(body).hexdigest()


@case("a mailbox of %d messages" % COUNT)
def many(rig):
    with rig.cyrus.imap("anna") as imap:
        imap.fill_multi("INBOX", (message(n, 200) for n in range(COUNT)))
    held = rig.cyrus.dump(["anna"])
    expect_equal(len(held["mailboxes"]["user.anna"]["records"]), COUNT, "messages on the server")
    began = time.monotonic()
    rig.sync("-u", "anna", timeout=300)
    diag("first sync: %.1f s" % (time.monotonic() - began))
    rig.whole("anna", state=held)
    with rig.cyrus.imap("anna") as imap:
        imap.append("INBOX", message("one more"))
        imap.select("INBOX")
        imap.store("1:*", "+FLAGS", "\\Seen")
    began = time.monotonic()
    rig.sync("-u", "anna", timeout=120)
    diag("all flags and one message: %.1f s" % (time.monotonic() - began))
    rig.whole("anna", bodies=False)
    if RECEIVER == "ours":
        little_memory(rig)


run(setup, Rig.close, time_limit=900)
