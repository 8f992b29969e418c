#!/usr/bin/env python3
"""A bit of the log flips. verify names what it hits; heal asks the sender for it, or takes
it from a second copy, and says what exists nowhere any more. With the real sync_client."""

import hashlib
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *

COUNT = 40


def kept(rig, user):
    """{uid: item} of the INBOX, expunged ones too."""
    found = {}
    for item in rig.to.json("messages", user, "--deleted")["messages"]:
        found[int(item["uid"])] = item
    return found


def flip(rig, user):
    """Flips a bit among the messages of the log's largest chunk, while nobody uses it: they come
    before the line that lists them."""
    path = rig.to.data_file(user)
    chunk = max(rig.to.json("chunks", user)["chunks"], key=lambda c: c["length"])
    rig.to.stop()
    try:
        at = chunk["offset"] + chunk["length"] // 4
        with open(path, "r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 0x10]))
    finally:
        rig.to.start()


def varied(n, user):
    """A message that hardly shrinks, so that most of the chunk is messages."""
    digits = "".join(hashlib.sha512(b"%d.%d" % (n, i)).hexdigest() + "\r\n" for i in range(6))
    return message(n, 0, to=user) + digits.encode()


def prepare(rig, user):
    rig.cyrus.user(user)
    with rig.cyrus.imap(user) as imap:
        imap.fill("INBOX", [varied(n, user) for n in range(COUNT)])
    rig.sync("-u", user)
    with rig.cyrus.imap(user) as imap:
        imap.fill("INBOX", [message("later%d" % n, 600, to=user) for n in range(3)])
    rig.sync("-u", user)


def unreadable(rig, user):
    """UIDs whose message does not come out as what its GUID says."""
    bad = []
    for uid, item in sorted(kept(rig, user).items()):
        done = rig.to.tool("dump", "message", user, item["guid"])
        got = done.out.encode("latin-1", "replace")
        if done.code != 0 or hashlib.sha1(got).hexdigest() != item["guid"]:
            bad.append(uid)
    return bad


def found_damaged(rig, user):
    """verify says 65 and names exactly the messages that do not read."""
    bad = unreadable(rig, user)
    expect(bad, "the damage hit messages")
    expect(len(bad) <= COUNT, "only one chunk is concerned")
    done = rig.to.tool("verify", user, "-j")
    expect_equal(done.code, 65, "status of verify")
    guids = {item["guid"] for uid, item in kept(rig, user).items() if uid in bad}
    expect_none([g for g in guids if g not in done.out], "lost messages verify does not name")
    return bad


@case("the sender has it still: heal asks, the next sync brings it", only=("ours",))
def awaited(rig):
    prepare(rig, "asked")
    flip(rig, "asked")
    bad = found_damaged(rig, "asked")
    done = rig.to.tool("heal", "asked", "-j")
    expect_equal(done.code, 0, "status of heal: nothing is lost for good")
    for uid in bad:
        expect(kept(rig, "asked")[uid]["guid"] in done.out, "heal names uid %d" % uid)
    before = rig.cyrus.state(["asked"])
    rig.sync("-u", "asked", attempts=2)
    rig.harmless(before, ["asked"])
    rig.whole("asked", bodies=False)
    expect_equal(unreadable(rig, "asked"), [], "messages that do not read")
    again = rig.to.tool("heal", "asked")
    expect("0 awaited, 0 lost" in again.out, "heal has no more to do", [again.out[-300:]])
    rig.sync("-u", "asked")
    rig.whole("asked", bodies=False)


@case("only a second copy of the backup has it", only=("ours",))
def second_copy(rig):
    prepare(rig, "copied")
    copy = temp_dir("cyrusrig-second-")
    path = rig.to.data_file("copied")
    run_command(["cp", path, copy + "/" + os.path.basename(path)], cyrus=False)
    run_command(["chmod", "-R", "a+rX", copy], cyrus=False)
    with rig.cyrus.imap("copied") as imap:
        imap.select("INBOX")
        imap.expunge("1:%d" % COUNT)
    rig.sync("-u", "copied")
    flip(rig, "copied")
    bad = found_damaged(rig, "copied")
    done = rig.to.tool("heal", "copied", "--from", copy)
    expect_equal(done.code, 0, "status of heal")
    expect("%d messages came back, 0 awaited, 0 lost" % len(bad) in done.out, "all came back", [done.out[-300:]])
    expect_equal(unreadable(rig, "copied"), [], "messages that do not read")
    rig.sync("-u", "copied", attempts=2)
    rig.whole("copied", bodies=False)
    shutil.rmtree(copy)


@case("nobody has it any more: heal says so and names it, and replication goes on", only=("ours",))
def nowhere(rig):
    prepare(rig, "gone")
    with rig.cyrus.imap("gone") as imap:
        imap.select("INBOX")
        imap.expunge("1:%d" % COUNT)
    rig.sync("-u", "gone")
    flip(rig, "gone")
    bad = found_damaged(rig, "gone")
    done = rig.to.tool("heal", "gone")
    expect_equal(done.code, 65, "status of heal")
    for uid in bad:
        guid = kept(rig, "gone")[uid]["guid"]
        expect("message %s: lost" % guid in done.out, "heal names uid %d" % uid, [done.out[:300]])
    with rig.cyrus.imap("gone") as imap:
        imap.append("INBOX", message("after the loss", to="gone"))
    rig.sync("-u", "gone", attempts=2)
    rig.whole("gone", bodies=False)


run(start_rig, Rig.close)
