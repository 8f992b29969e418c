"""The list language of the replication protocol and of the backup log.

Values become Python values: atom, quoted string and literal are `bytes`, NIL is
None, a list is a `list`, a kvlist is a `dict` (first key wins), a flag is `bytes`
with its backslash, a file is a `File`. `read_item` takes any object with
`peek()`, `take(n)` and `line_end()`; `Buffer` is the one over bytes in memory.
"""

import re


class File:
    """A message body on the wire: `%{partition guid size}` and its bytes."""

    def __init__(self, partition, guid, body):
        self.partition = partition
        self.guid = guid
        self.body = body

    def __repr__(self):
        return "File(%s, %d bytes)" % (self.guid, len(self.body))


class Atom(bytes):
    """Bytes to be printed as they are."""


class Buffer:
    """Bytes in memory with a position; `more()` may be overridden to fetch."""

    def __init__(self, data=b""):
        self.data = data
        self.at = 0

    def more(self):
        raise EOFError("dlist ends early")

    def peek(self):
        while self.at >= len(self.data):
            self.more()
        return self.data[self.at]

    def take(self, count):
        while len(self.data) - self.at < count:
            self.more()
        piece = self.data[self.at : self.at + count]
        self.at += count
        return bytes(piece)

    def until(self, stops):
        """The bytes before the first of `stops`, which is left unread."""
        pattern = _patterns.get(stops)
        if pattern is None:
            pattern = _patterns[stops] = re.compile(b"[^" + re.escape(stops) + b"]*")
        while True:
            end = pattern.match(self.data, self.at).end()
            if end < len(self.data):
                found = bytes(self.data[self.at : end])
                self.at = end
                return found
            self.more()


_patterns = {}
SPACE = b" \t\r\n"
STOPS = b' \t\r\n()"'


def _skip(source):
    while source.peek() in SPACE:
        source.take(1)


def _literal(source):
    head = source.until(b"}")
    source.take(1)
    if source.take(1) == b"\r":
        source.take(1)
    return source.take(int(head.rstrip(b"+")))


def read_value(source):
    """One value at the source's position."""
    first = source.peek()
    if first == 0x28:  # (
        source.take(1)
        items = []
        while True:
            _skip(source)
            if source.peek() == 0x29:
                source.take(1)
                return items
            items.append(read_value(source))
    if first == 0x25:  # %
        source.take(1)
        if source.take(1) == b"(":
            pairs = {}
            while True:
                _skip(source)
                if source.peek() == 0x29:
                    source.take(1)
                    return pairs
                key = read_value(source)
                _skip(source)
                value = read_value(source)
                pairs.setdefault(key.decode(), value)
        # The partition is a string like any other, so it may be quoted.
        partition = read_value(source)
        guid, size = source.until(b"}").split()
        source.take(1)
        if source.take(1) == b"\r":
            source.take(1)
        return File(partition.decode(errors="replace"), guid.decode(), source.take(int(size)))
    if first == 0x7B:  # {
        source.take(1)
        return _literal(source)
    if first == 0x22:  # "
        source.take(1)
        text = bytearray()
        while True:
            byte = source.take(1)
            if byte == b'"':
                return bytes(text)
            text += source.take(1) if byte == b"\\" else byte
    word = source.until(STOPS)
    if not word:
        raise ValueError("dlist: empty atom before %r" % chr(source.peek()))
    return None if word == b"NIL" else word


def encode(value):
    """The bytes of a value; literals are `{n+}`, as a client must write them."""
    if value is None:
        return b"NIL"
    if isinstance(value, Atom):
        return bytes(value)
    if isinstance(value, bool):
        raise TypeError("dlist has no bool")
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        plain = value and len(value) < 1024 and value != b"NIL"
        if plain and not any(b >= 0x7F or b <= 0x20 or b in b'(){"%*\\' for b in value):
            return value
        if not any(b >= 0x7F or b in b'\0\r\n"%\\' for b in value) and len(value) < 1024:
            return b'"' + value + b'"'
        return b"{%d+}\r\n%s" % (len(value), value)
    if isinstance(value, dict):
        return b"%(" + b" ".join(encode(k) + b" " + encode(v) for k, v in value.items()) + b")"
    if isinstance(value, File):
        head = "%%{%s %s %d}\r\n" % (value.partition, value.guid, len(value.body))
        return head.encode() + value.body
    return b"(" + b" ".join(encode(v) for v in value) + b")"
