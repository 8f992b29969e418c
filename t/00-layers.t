#!/usr/bin/env python3
"""Which room of src/ may know which other. Reads every `crate::` path outside tests and
comments, and what each room touches, and fails on an arrow that is not in the table."""

import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig.sandbox import TOP

ROOMS = ("util", "sys", "cyrus", "proto", "store", "client", "restore", "server", "cmd")

# Room -> rooms it may import besides itself; `error` is everybody's.
MAY_IMPORT = {
    "util": set(),
    "sys": set(),
    "cyrus": {"util", "sys"},
    "proto": {"cyrus", "util"},
    "store": {"cyrus", "util", "sys"},
    "client": {"util", "sys", "cyrus", "proto"},
    "restore": {"util", "sys", "cyrus", "proto", "store", "client"},
    "server": {"util", "sys", "cyrus", "proto", "store"},
    "cmd": {"util", "sys", "cyrus", "proto", "store", "client", "restore"},
    "error": set(),
    "main": set(ROOMS),
    "lib": set(ROOMS),
}

# The one place where the table of subcommands meets the daemon.
EXCEPT = {("cmd/serve.rs", "server")}

# Files of `cyrus` that open or ask something; the rest of it is pure.
CYRUS_IO = ("cyrus/config/", "cyrus/twoskip/db", "cyrus/twoskip/mod", "cyrus/master", "cyrus/syslog")

SQL = r"\brusqlite::"
GZIP = r"\bminiz_oxide::"
FILES = r"\bstd::fs\b|\bFile::(open|create)\b|\bOpenOptions\b"
SOCKETS = r"\bstd::net\b|\b(Tcp|Unix)(Listener|Stream)\b"
CLOCK = r"\bSystemTime::now\b|\bInstant::now\b"
STDOUT = r"\be?println!|\bprint!|\bio::stdout\b"
ARGV = r"\benv::args"

# The wire may be deflated too (COMPRESS DEFLATE).
GZIP_TOO = ("proto/compress.rs",)

MUST_NOT = {
    "util": (SQL, GZIP, SOCKETS),
    "cyrus": (SQL, GZIP, STDOUT, ARGV),
    "proto": (SQL, GZIP, FILES, SOCKETS, STDOUT, ARGV),
    "store": (SOCKETS, STDOUT, ARGV),
    "client": (SQL, GZIP, STDOUT, ARGV),
    "restore": (SQL, GZIP, SOCKETS, ARGV),
    "server": (SQL, GZIP, r"\bprintln!|\bprint!|\bio::stdout\b"),
    "cmd": (SQL, GZIP),
}


def code_of(text):
    """Rust text without comments, strings and the test module at its end."""
    text = re.split(r"#\[cfg\((?:all\()?test\b", text)[0]
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)


def imports(code):
    """First components of all `crate::` paths, grouped ones too."""
    found = set(re.findall(r"\bcrate::([a-z_0-9]+)", code))
    for match in re.finditer(r"\bcrate::\{", code):
        depth, at, word = 1, match.end(), ""
        while depth and at < len(code):
            char = code[at]
            if char == "{":
                depth += 1
            elif char == "}":
                depth -= 1
            if depth == 1 and char in ",":
                found.add(word)
                word = ""
            elif depth >= 1:
                word += char
            at += 1
        found.add(word)
    return {re.split(r"\W", w.strip())[0] for w in found} - {""}


def check(name, text):
    """Complaints about one file; `name` is relative to src/."""
    room = name.split("/")[0].removesuffix(".rs")
    if room not in MAY_IMPORT:
        return ["%s: no such room in the table" % name]
    code = code_of(text)
    out = []
    for other in sorted(imports(code)):
        if other in (room, "error", "Error", "Result", "Kind"):
            continue
        if other not in ROOMS:
            continue
        if other not in MAY_IMPORT[room] and (name, other) not in EXCEPT:
            out.append("%s: %s must not import %s" % (name, room, other))
        pure = room == "cyrus" and not name.startswith(CYRUS_IO) and name != "cyrus/mod.rs"
        if pure and other == "sys":
            out.append("%s: a pure file of cyrus must not import sys" % name)
    bans = [b for b in MUST_NOT.get(room, ()) if not (b is GZIP and name in GZIP_TOO)]
    if room == "store" and not name.startswith("store/index"):
        bans.append(SQL)
    if room == "cyrus" and not name.startswith(CYRUS_IO):
        bans += [FILES, SOCKETS, CLOCK]
    for ban in bans:
        hit = re.search(ban, code)
        if hit:
            out.append("%s: %s must not touch %s" % (name, room, hit.group(0)))
    if room != "sys" and re.search(r"\bunsafe\s*(\{|fn|impl)", code):
        out.append("%s: unsafe outside sys" % name)
    return out


@case("every file of src keeps to its room")
def tree():
    out = []
    seen = 0
    top = os.path.join(TOP, "src")
    for folder, _dirs, files in os.walk(top):
        for file in files:
            if file.endswith(".rs") and file != "tests.rs":
                path = os.path.join(folder, file)
                with open(path, encoding="utf-8") as text:
                    out += check(os.path.relpath(path, top), text.read())
                seen += 1
    expect(seen > 10, "there are files to look at", [top])
    expect_none(sorted(out), "arrows that are not in the table")


@case("a forbidden arrow would be seen")
def self_test():
    bad = {
        "proto/a.rs": "use crate::store::Backup;\n",
        "store/b.rs": "use crate::{cyrus::guid::Guid, proto::{line, reply}};\n",
        "store/c.rs": "fn f() { crate::server::run() }\n",
        "cyrus/guid.rs": "use crate::sys::lock;\n",
        "cyrus/dlist/parse.rs": "fn f() { std::fs::read(\"x\"); }\n",
        "server/d.rs": "use rusqlite::Connection; fn f(c: rusqlite::Connection) {}\n",
        "store/log.rs": "fn f() { rusqlite::version(); }\n",
        "cmd/list.rs": "use crate::server::supervisor;\n",
        "util/e.rs": "use crate::cyrus::guid;\n",
        "proto/f.rs": "fn f() { unsafe { g() } }\n",
        "attic/g.rs": "fn f() {}\n",
    }
    missed = [name for name, text in bad.items() if not check(name, text)]
    expect_none(missed, "bad files that were not noticed")
    good = {
        "store/a.rs": "//! like crate::server, but not\nuse crate::cyrus::guid::Guid;\nuse crate::error::Result;\n",
        "proto/b.rs": "use crate::util::hex;\n#[cfg(test)]\nmod tests { use crate::store::X; }\n",
        "server/c.rs": "use crate::{proto::reply, store::Backup};\n",
        "cmd/serve.rs": "use crate::server;\n",
        "cyrus/master.rs": "use crate::sys::fd;\n",
    }
    expect_none([c for name, text in good.items() for c in check(name, text)], "good files that were refused")


run()
