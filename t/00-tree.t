#!/usr/bin/env python3
"""The tree stands alone and is in order: nothing refers to a place outside it, tests can
be run, every module says what it is for."""

import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig.sandbox import TOP

# Put together here so that this file does not contain them.
OUTSIDE = [
    re.compile(pattern)
    for pattern in (
        r"(?<![\w.])/wo" r"rk/",
        r"(?<![\w.])/ro" r"ot/",
        r"(?<![\w.])/ho" r"me/[a-z]",
        r"(?<![\w.])/mn" r"t/",
    )
]


def tracked():
    """Files of the tree, without fixtures and what building leaves."""
    listing = subprocess.run(["git", "-C", TOP, "ls-files", "-z"], capture_output=True)
    if listing.returncode == 0 and listing.stdout:
        names = listing.stdout.decode().split("\0")[:-1]
    else:
        names = []
        for folder, dirs, files in os.walk(TOP):
            dirs[:] = [d for d in dirs if d not in ("target", ".git")]
            names += [os.path.relpath(os.path.join(folder, f), TOP) for f in files]
    return [n for n in names if not n.startswith("t/data/") and os.path.isfile(os.path.join(TOP, n))]


def text_of(name):
    with open(os.path.join(TOP, name), "rb") as file:
        data = file.read()
    return None if b"\0" in data else data.decode("utf-8", "replace")


def outside(name, text):
    """Lines that name a place outside the tree."""
    out = []
    for number, line in enumerate(text.splitlines(), 1):
        for pattern in OUTSIDE:
            if pattern.search(line):
                out.append("%s:%d: %s" % (name, number, line.strip()[:120]))
    return out


@case("nothing refers to a place outside the tree")
def places():
    names = tracked()
    expect(len(names) > 20, "there are files to look at")
    out = []
    for name in names:
        text = text_of(name)
        if text is not None and name != "Cargo.lock":
            out += outside(name, text)
    expect_none(out, "places outside the tree")


@case("a place outside would be seen")
def self_test():
    for bad in ("/wo" + "rk/x", 'open("/ro' + 'ot/.cargo")', "cd /ho" + "me/anna"):
        expect(outside("x", "a\n%s\n" % bad), "seen: " + bad)
    expect(not outside("x", "net/wo" + "rk/x"), "not everything is refused")


@case("tests can be run: mode, first line")
def runnable():
    out = []
    for name in tracked():
        path = os.path.join(TOP, name)
        if re.fullmatch(r"t/[0-9][^/]*\.t", name) or name in ("t/run", ".ci/run", "contrib/quickstart"):
            if not os.access(path, os.X_OK):
                out.append(name + ": is not executable")
            if not text_of(name).startswith("#!"):
                out.append(name + ": has no #! line")
    expect_none(out, "scripts")


@case("text files are tidy: last newline, no blanks at line ends, no CR")
def tidy():
    out = []
    for name in tracked():
        if not name.endswith((".rs", ".py", ".t", ".md", ".toml", ".sh", "/run", ".8", ".5")):
            continue
        text = text_of(name)
        if text is None:
            out.append(name + ": has NUL bytes")
            continue
        if text and not text.endswith("\n"):
            out.append(name + ": no newline at the end")
        for number, line in enumerate(text.split("\n"), 1):
            if line != line.rstrip(" \t\r"):
                out.append("%s:%d: blanks or CR at the end of the line" % (name, number))
    expect_none(out, "text files")


@case("every module says what it is for")
def headers():
    out = []
    for name in tracked():
        if name.startswith("src/") and name.endswith(".rs") and name != "src/main.rs" and not name.endswith("/tests.rs"):
            if "//!" not in text_of(name):
                out.append(name + ": no //! header")
    expect_none(out, "modules")


run()
