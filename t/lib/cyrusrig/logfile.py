"""Reads a backup's data file with nothing but zlib: what `zcat` would show, parsed.

Independent of the program under test on purpose. The file is a row of gzip members;
each holds lines `<time> APPLY <NAME> <dlist>` after a comment. An unsealed last
member is read as far as it was flushed.
"""

import gzip
import hashlib
import zlib

from . import dlist
from .csync import common_mailbox


class Broken(Exception):
    """The file is not what it promises to be."""


def plain(path, unsealed=True):
    """Each member's text in order; the last may be unsealed if that is allowed."""
    with open(path, "rb") as file:
        data = file.read()
    at = 0
    members = []
    while at < len(data):
        inflater = zlib.decompressobj(31)
        try:
            text = inflater.decompress(data[at:])
        except zlib.error as why:
            raise Broken("%s: member at byte %d: %s" % (path, at, why)) from why
        if not inflater.eof:
            if not unsealed:
                raise Broken("%s: member at byte %d is not sealed" % (path, at))
            members.append(text)
            break
        members.append(text)
        at = len(data) - len(inflater.unused_data)
    return members


def members(path):
    """Each member as a list of (raw bytes, time, name, value); comments have no name."""
    found = []
    for text in plain(path):
        source = dlist.Buffer(text)
        member = []
        while source.at < len(text):
            start = source.at
            try:
                if text[start : start + 1] == b"#":
                    source.until(b"\n")
                    source.take(1)
                    member.append((text[start : source.at], None, None, None))
                    continue
                stamp = int(source.until(b" "))
                source.take(1)
                if source.until(b" ") != b"APPLY":
                    raise ValueError("no APPLY")
                source.take(1)
                name = source.until(b" ").decode()
                source.take(1)
                value = dlist.read_value(source)
                if source.take(2) != b"\r\n":
                    raise ValueError("line does not end in CR LF")
            except (ValueError, EOFError) as why:
                raise Broken("%s: near byte %d of a member: %s" % (path, source.at, why)) from why
            member.append((text[start : source.at], stamp, name, value))
        found.append(member)
    return found


def lines(path):
    """(time, name, value) of every line; raises Broken on anything else."""
    return [line[1:] for member in members(path) for line in member if line[2]]


def state(path):
    """{mboxname: mailbox} as the lines of a log of ours tell it, read from front to back
    by these few lines alone: what a person without our program would get."""
    boxes = {}
    complete = set()

    def named(name):
        return [box for box in boxes.values() if box.get("MBOXNAME") == name]

    for _stamp, name, value in lines(path):
        if name == "RESERVE":
            fact = value.get("X-CYRBACKUP") or {}
            if "COMPLETE" in fact:
                # The next MAILBOX of it lists every record there is.
                complete.add(fact["COMPLETE"]["UNIQUEID"])
            if "MAILBOX" not in fact:
                continue
            name, value = "MAILBOX", fact["MAILBOX"]
        if name == "MAILBOX":
            box = boxes.setdefault(value["UNIQUEID"], {"records": {}})
            if value["UNIQUEID"] in complete:
                complete.discard(value["UNIQUEID"])
                box["records"] = {}
            records = box["records"]
            for record in value.pop("RECORD", None) or ():
                records[int(record["UID"])] = record
            for other in named(value["MBOXNAME"]):
                if other is not box:
                    del boxes[other["UNIQUEID"]]
            # A whole head replaces the last one: a key that is absent is none.
            box.clear()
            box.update(value, records=records)
        elif name == "RENAME":
            for box in named(value["OLDMBOXNAME"]):
                box["MBOXNAME"] = value["NEWMBOXNAME"]
                box["PARTITION"] = value.get("PARTITION", box.get("PARTITION"))
        elif name == "UNMAILBOX":
            for box in named(value):
                del boxes[box["UNIQUEID"]]
    found = {}
    for box in boxes.values():
        head = dict(box, RECORD=[box["records"][uid] for uid in sorted(box["records"])])
        found[box["MBOXNAME"].decode()] = common_mailbox(head)
    return found


def rewrite(path, keep):
    """Write the file anew without the lines for which `keep(name, value)` is false;
    how many went. The index knows nothing of it: this is damage."""
    dropped = 0
    out = b""
    for member in members(path):
        text = b""
        for raw, _stamp, name, value in member:
            if name is None or keep(name, value):
                text += raw
            else:
                dropped += 1
        out += gzip.compress(text, 6)
    with open(path, "r+b") as file:
        file.write(out)
        file.truncate()
    return dropped


def bodies(path):
    """{guid: size} of every message body; raises Broken if a GUID is wrong."""
    found = {}
    for _stamp, name, value in lines(path):
        if name != "MESSAGE":
            continue
        for item in value:
            if item is None:
                continue
            if hashlib.sha1(item.body).hexdigest() != item.guid:
                raise Broken("%s: body of %s has another SHA-1" % (path, item.guid))
            found[item.guid] = len(item.body)
    return found
