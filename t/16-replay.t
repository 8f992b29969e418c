#!/usr/bin/env python3
"""Conversations of newer Cyrus versions, recorded with their own receivers, are played
to ours turn by turn: what they answered OK we must not refuse. The files and how to
read them: t/data/transcripts/README.md."""

import glob
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox
from cyrusrig.sandbox import TOP

DATA = os.path.join(TOP, "t/data/transcripts")
MARK = re.compile(rb"([<>])[0-9]{10}[<>]")

# Stories: files that build upon each other, each on an empty receiver.
STORIES = (
    ("01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11", "12", "13", "14", "15")
    + ("16", "17", "18", "19", "20", "21", "22", "23", "24", "25"),
    ("41", "42", "51"),
    ("43", "44"),
    ("45",),
    ("46", "47", "48"),
    ("49", "50"),
    ("60a", "61a", "62a", "63a", "64a", "65a", "66a", "67a", "68a"),
    ("60b", "61b", "62b", "63b", "64b", "65b", "66b", "67b", "68b"),
)
# Not replayed: 00, 29, 30 are greetings by hand, 26 and 27 need a receiver that was
# tampered with, 28 is IMAP, 31 continues them, 52 is 3.13's only and needs 51.


def turns(path):
    """(what the client sent, how the answer ended) of a file."""
    with open(path, "rb") as file:
        data = file.read()
    # Our header, then the telemetry's own line.
    data = data[data.index(b"---------- ") :]
    data = data[data.index(b"\n\n" if b"\n\n" in data[:200] else b"\n") + 1 :]
    pieces = MARK.split(data)[1:]
    found, sent, answer = [], b"", b""
    for side, text in zip(pieces[::2], pieces[1::2]):
        if side == b"<":
            if answer:
                found.append((sent, answer))
                sent, answer = b"", b""
            sent += text
        else:
            answer += text
    if sent:
        found.append((sent, answer))
    return found


def last_word(answer):
    """OK, NO, BAD or BYE of the final line."""
    words = re.findall(rb"(?:^|\n)(OK|NO|BAD|BYE)\b[^\n]*\r?\n?\s*\Z", answer)
    return words[-1].decode() if words else "?"


def files_of(version, story):
    found = []
    for number in story:
        side = {"a": "*to-361-backupd*", "b": "*to-38-backupd*"}.get(number[2:], "*")
        names = sorted(glob.glob("%s/%s/%s-%s.txt" % (DATA, version, number[:2], side)))
        found += [n for n in names if number[2:] or "backupd" not in n]
    return found


def play(to, path):
    """Refusals of what was once OK."""
    out = []
    wire = to.csync()
    count = 0
    try:
        for sent, answer in turns(path):
            words = sent[:60].split()
            if not words or words[0] in (b"EXIT", b"COMPRESS", b"AUTHENTICATE"):
                continue
            was = last_word(answer)
            wire.send(sent)
            count += 1
            try:
                wire.answer()
            except Refused as why:
                # What is gone already is as good as removed: the client thinks so too.
                gone = words[1:2] in ([b"UNMAILBOX"], [b"UNUSER"]) and "NONEXISTENT" in str(why)
                if was == "OK" and not gone:
                    out.append(
                        "%s: turn %d: %s\n      is answered %s"
                        % (os.path.basename(path), count, sent[:150].decode(errors="replace").strip(), why)
                    )
    finally:
        wire.close()
    if count == 0:
        out.append("%s: no turns were found" % path)
    return out


def made_anew(to):
    """Mailboxes in doubt behind `reindex` that were not before."""

    def marks():
        return {user: to.json("show", user, "marks")["marks"] for user in to.data_files()}

    before = marks()
    done = to.tool("reindex", "-A", "-w")
    expect_equal(done.code, 0, "reindex: %s" % done)
    after = marks()
    return ["%s: %s before reindex, now %s" % (u, before[u], after[u]) for u in before if before[u] != after[u]]


def register(version, story):
    @case(
        "%s: %s" % (version, " ".join(story)),
        todo={"replica": "an older receiver refuses some", "backupd": "the original refuses some"},
    )
    def story_case(_nothing):
        names = files_of(version, story)
        expect(len(names) >= len(story), "the files are there", names)
        to = receiver(**({"sync_log": "no"} if RECEIVER == "replica" else {}))
        out = []
        try:
            for name in names:
                out += play(to, name)
            if to.kind == "ours":
                out += made_anew(to)
        finally:
            to.stop()
        expect_none([line for text in out for line in text.split("\n")], "refusals")


for each in ("3.12", "3.13"):
    for one in STORIES:
        register(each, one)


def setup():
    if sandbox.problem():
        raise Skip(sandbox.problem())
    if not os.path.isdir(DATA):
        raise Skip("no transcripts in t/data")
    return "replay"


run(setup)
