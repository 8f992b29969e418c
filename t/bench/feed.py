"""Mail by seed, and a mailbox as a sender describes it: what the benchmarks play."""

import base64
import bisect
import hashlib
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cyrusrig import dlist


class Mail:
    """Mail as it lies in folders: of 20 messages 13 are short texts (0.5 to 8 KB), 4 long
    ones or HTML (8 to 60 KB), 3 carry a compressed attachment in base64. `mean` scales the
    sizes so that the average is about so many bytes."""

    BASE = 21000

    def __init__(self, seed, mean=BASE):
        self.random = random.Random(seed)
        self.seed = seed
        self.scale = mean / self.BASE
        # One text for all seeds: making it is the slow part. Words come by Zipf's law.
        if not hasattr(Mail, "text"):
            source = random.Random("text")
            letters = "etaoinshrdlucmfwypvbgkqjxz"
            weights = [26 - n for n in range(26)]
            words = [
                "".join(source.choices(letters, weights, k=source.randint(2, 10))) for _ in range(8000)
            ]
            sums, total = [], 0.0
            for rank in range(len(words)):
                total += 1 / (rank + 3)
                sums.append(total)
            lines = []
            for _line in range(40000):
                picks = (bisect.bisect(sums, source.random() * total) for _ in range(11))
                lines.append(" ".join(words[min(p, 7999)] for p in picks))
            Mail.text = "\r\n".join(lines).encode()
        self.number = 0

    def _text(self, size):
        out = b""
        while len(out) < size:
            at = self.random.randrange(len(Mail.text) - 8000)
            out += Mail.text[at : at + min(size - len(out), self.random.randint(500, 8000))]
        # No line end is left cut in half.
        return out.replace(b"\r\n", b"\n").replace(b"\r", b"").replace(b"\n", b"\r\n")

    def one(self, size=None):
        """A message; of about `size` bytes of attachment if that is given."""
        self.number += 1
        r = self.random
        names = (r.randrange(900), r.randrange(900))
        head = (
            "Return-Path: <user%d@example.com>\r\nReceived: from mx%d.example.net ([192.0.2.%d])\r\n"
            "\tby mail.example.com (8.1) with ESMTPS id %x; %d Oct 2025 10:%02d:00 +0000\r\n"
            "From: Somebody %d <user%d@example.com>\r\nTo: Anna <user%d@example.org>\r\n"
            "Subject: %s %d\r\nMessage-ID: <%s.%d.%x@example.com>\r\nDate: Thu, 2 Oct 2025 10:%02d:00 +0000\r\n"
            "MIME-Version: 1.0\r\nContent-Type: %s\r\n\r\n"
        )
        kind = "multipart/mixed; boundary=x" if size else "text/plain; charset=utf-8"
        what = r.randrange(20) if size is None else 20
        head = head % (
            names[0], r.randrange(9), r.randrange(250), r.getrandbits(60), r.randrange(28) + 1, r.randrange(60),
            names[0], names[0], names[1], self._text(24).decode().replace("\r\n", " "), self.number, self.seed,
            self.number, r.getrandbits(60), r.randrange(60), kind,
        )
        head = head.encode()
        scale = self.scale
        if what < 13:
            return head + self._text(int(r.randint(500, 8000) * scale)) + b"\r\n"
        if what < 17:
            return head + self._text(int(r.randint(8000, 60000) * scale)) + b"\r\n"
        raw = r.randbytes(int((size or r.randint(8000, 130000) * scale) * 3 / 4))
        return head + self._text(400) + b"\r\n--x\r\n\r\n" + base64.encodebytes(raw).replace(b"\n", b"\r\n")

    def total(self, size):
        """Messages of together about `size` bytes."""
        done = 0
        while done < size:
            body = self.one()
            done += len(body)
            yield body

    def count(self, count):
        """So many messages."""
        for _ in range(count):
            yield self.one()


class Feed:
    """A mailbox as a sender describes it."""

    def __init__(self, user):
        self.user = user
        self.uid = 0
        self.bytes = 0
        self.now = int(time.time())
        self.unique = hashlib.sha1(user.encode()).hexdigest()[:24]

    def record(self, guid, size):
        self.uid += 1
        record = {"UID": self.uid, "MODSEQ": self.uid + 1, "LAST_UPDATED": self.now, "FLAGS": []}
        record.update({"INTERNALDATE": self.now, "SIZE": size, "GUID": guid})
        return record

    def mailbox(self, records):
        box = {"UNIQUEID": self.unique, "MBOXNAME": "user." + self.user, "SYNC_CRC": 0}
        box.update({"LAST_UID": self.uid, "HIGHESTMODSEQ": self.uid + 1, "RECENTUID": 0, "RECENTTIME": 0})
        box.update({"LAST_APPENDDATE": self.now, "POP3_LAST_LOGIN": 0, "UIDVALIDITY": 1, "PARTITION": "default"})
        box.update({"ACL": "%s\tlrswipkxtecdan\t" % self.user, "OPTIONS": "P", "RECORD": records})
        return b"APPLY MAILBOX " + dlist.encode(box) + b"\r\n"

    def lines(self, messages, batch=100, state=10000):
        """The conversation of a sync, line by line: bodies in batches, a MAILBOX at the end
        and whenever there are `state` new records."""
        part, records = [], []
        for body in messages:
            self.bytes += len(body)
            guid = hashlib.sha1(body).hexdigest()
            part.append(dlist.File("default", guid, body))
            records.append(self.record(guid, len(body)))
            if len(part) == batch:
                yield b"APPLY MESSAGE " + dlist.encode(part) + b"\r\n"
                part = []
            if len(records) == state:
                if part:
                    yield b"APPLY MESSAGE " + dlist.encode(part) + b"\r\n"
                    part = []
                yield self.mailbox(records)
                records = []
        if part:
            yield b"APPLY MESSAGE " + dlist.encode(part) + b"\r\n"
        if records:
            yield self.mailbox(records)


def play(to, user, lines, restart=True):
    """Seconds from connecting to the last OK."""
    began = time.perf_counter()
    wire = to.csync()
    wire.command("GET USER", user)
    for line in lines:
        wire.send(line)
        wire.answer()
    if restart:
        wire.command("RESTART")
    seconds = time.perf_counter() - began
    wire.close()
    return seconds
