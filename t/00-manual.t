#!/usr/bin/env python3
"""The manual says what the program does: commands and options of its help are in
cyr_backup(8) and no others, settings it reads are in cyr_backup.conf(5) with their
defaults, and examples are command lines that it understands."""

import os
import re
import shlex
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig.receiver import binary
from cyrusrig.sandbox import TOP

MAN = os.path.join(TOP, "doc/man")
OPTION = r"(?<!\S)--?[A-Za-z][\w-]*"


def read(*path):
    with open(os.path.join(TOP, *path), encoding="utf-8") as file:
        return file.read()


def help_of(*words):
    done = subprocess.run([binary(), *words, "-h"], capture_output=True, text=True, timeout=20)
    expect(done.returncode == 0, "help of %s" % (words,), [done.stderr])
    return done.stdout


def commands():
    """Names in the table of the help."""
    found = re.findall(r"^    (\w+) +\S", help_of().split("Commands:")[1].split("\n\n")[0], re.M)
    expect(len(found) > 5, "there are commands")
    return found


def options(text):
    """Options of a help text: the first column of what follows "Options:"."""
    out = set()
    for line in text.split("Options:")[1].splitlines():
        # Continued descriptions stand further to the right.
        if re.match(r" {4,8}-", line):
            out.update(re.findall(OPTION, re.split(r" {2,}", line.strip())[0]))
    return out


def sections(page, macro):
    """{title: text} of a page's parts; with ".Sh" the subsections belong to their section."""
    out, title = {}, None
    for line in page.splitlines():
        words = line.split(None, 1)
        if words and words[0] in (".Sh", macro):
            title = words[1]
        if title:
            out[title] = out.get(title, "") + line + "\n"
    return out


def flags(text):
    """Options that have a paragraph: all Fl of .It lines."""
    out = set()
    for line in re.findall(r"^\.It (.*)", text, re.M):
        words = line.replace(",", " ").split()
        for index, word in enumerate(words):
            if word != "Fl":
                continue
            for name in words[index + 1 :]:
                # A further Fl, an argument, or punctuation ends the row of flags.
                if name in ("Fl", "Ar", "Ns"):
                    break
                out.add("-" + name)
    return out


def synopsis(page):
    """{command: flags} of the SYNOPSIS."""
    out = {}
    for block in sections(page, ".Sh")["SYNOPSIS"].split("\n.Nm\n")[1:]:
        name = re.search(r"^\.Cm (\w+)$", block, re.M).group(1)
        behind = block.split(".Cm " + name, 1)[1]
        found = re.findall(r"\bFl ([\w-]+)", behind)
        out.setdefault(name, set()).update("-" + f for f in found)
    return out


PAGE = read("doc/man/cyr_backup.8")
PARTS = sections(PAGE, ".Ss")
CONF = read("doc/man/cyr_backup.conf.5")


@case("every command has its paragraph, its synopsis, and nothing else has")
def all_commands():
    known = commands()
    about = {t for t in PARTS if t == t.lower() and t.isalpha()}
    expect_equal(sorted(about), sorted(known), "paragraphs")
    expect_equal(sorted(synopsis(PAGE)), sorted(known), "synopsis")


@case("every option of the help is in the manual, and no other")
def all_options():
    everywhere = flags(PARTS["Global options"])
    expect_equal(sorted(everywhere), sorted(options(help_of())), "global options")
    modes = flags(PARTS["Mode"])
    out = []
    for name in commands():
        helped = options(help_of(name)) - (everywhere - {"--version"})
        if modes <= helped:
            helped -= modes
        told = flags(PARTS[name])
        out += ["%s: %s is not in its paragraph" % (name, o) for o in sorted(helped - told)]
        out += ["%s: there is no %s" % (name, o) for o in sorted(told - helped)]
        lines = synopsis(PAGE).get(name, set())
        out += ["%s: there is no %s of the synopsis" % (name, o) for o in sorted(lines - helped)]
        if name != "serve":
            out += ["%s: %s is not in the synopsis" % (name, o) for o in sorted(helped - lines)]
    expect_none(out, "options")


@case("every item of show and dump is told")
def items():
    out = []
    for word in re.findall(r'^ +"(\w+)" => (?:Item|What)::', read("src/cmd/show.rs"), re.M):
        if ".It Cm %s\n" % word not in PARTS["show"]:
            out.append("show: " + word)
    dumped = re.findall(r'^ +"(\w+)" => \{', read("src/cmd/dump.rs"), re.M)
    for word in dumped:
        if ".It Cm %s " % word not in PARTS["dump"]:
            out.append("dump: " + word)
    expect(len(dumped) >= 3, "dump has items")
    expect_none(out, "items")


def examples(page):
    """Command lines of EXAMPLES, as lists of words."""
    text = sections(page, ".Sh")["EXAMPLES"]
    lines = re.findall(r"^(?:\.Dl )?(cyr_backup .*)$", text, re.M)
    return [shlex.split(line) for line in lines]


@case("the examples are command lines that it understands")
def understood():
    found = examples(PAGE)
    expect(len(found) > 8, "there are examples")
    out = []
    for words in found:
        # Where no settings can be read, only the command line is judged.
        done = subprocess.run(
            [binary(), "-C", "/nonexistent/imapd.conf", *words[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
        )
        if done.returncode == 64:
            out.append("%s: %s" % (" ".join(words), done.stderr.strip()))
    expect_none(out, "examples")
    done = subprocess.run([binary(), "-C", "/nonexistent/x", "list", "--nonsense"], capture_output=True, timeout=20)
    expect_equal(done.returncode, 64, "a wrong command line is noticed")


def table():
    """{name: default} of our options and Cyrus' in src/cyrus/config/options.rs."""
    out = {}
    named = {"OFF": "no", "ON": "yes", "None": None}
    text = read("src/cyrus/config/options.rs").split("options! {", 1)[1].split("\n}", 1)[0]
    for row in re.finditer(r'^    (\w+) "([\w]+)" (?:.*), (OFF|ON|None|Some\("(.*?)"\))(?:, replaced by \w+)?;', text, re.M):
        word = row.group(3)
        out[row.group(1)] = (row.group(2), named[word] if word in named else row.group(4))
    return out


def read_by_program(known):
    """Names of the options that something outside src/cyrus/config asks for."""
    access = read("src/cyrus/config/access.rs")
    asks = {}
    for function in re.split(r"\n    pub fn ", access)[1:]:
        asks[function.split("(")[0]] = set(re.findall(r"Opt::(\w+)", function.split("\n    }\n")[0]))
    used = set()
    for folder, _dirs, files in os.walk(os.path.join(TOP, "src")):
        if "cyrus/config" in folder:
            continue
        for name in files:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                text = file.read().split("#[cfg(test)]")[0]
            used.update(re.findall(r"Opt::(\w+)", text))
            for function in re.findall(r"\bconfig\s*\.(\w+)\(\)", text):
                used |= asks.get(function, set())
    return {known[o][0] for o in used if o in known}


@case("every setting the program reads is in cyr_backup.conf(5), and no backup_ setting that is none")
def settings():
    known = table()
    names = {name for name, _default in known.values()}
    expect(len(names) > 60, "the table is read", sorted(names))
    wanted = read_by_program(known)
    expect({"backup_drain", "backup_open_max", "admins", "debug"} <= wanted, "settings are found", sorted(wanted))
    told = set(re.findall(r"^\.(?:It )?Cm ([a-z_]+)", CONF, re.M))
    out = ["%s is not in the manual" % n for n in sorted(wanted - told) if n.startswith("backup_")]
    # What belongs together is told together.
    out += [
        "%s is not in the manual" % n
        for n in sorted(wanted - told)
        if not n.startswith(("backup_", "tcp_keepalive_"))
    ]
    out += ["%s: no such setting" % n for n in sorted(told - names) if n.startswith("backup_") and n != "backup_partition"]
    example = set(re.findall(r"^#?(backup_\w+):", read("etc/imapd.conf"), re.M))
    out += ["etc/imapd.conf: no such setting: " + n for n in sorted(example - names)]
    install = set(re.findall(r"\b(backup_[a-z_]+)", read("INSTALL")))
    programs = {"backup_passwd"}
    out += ["INSTALL: no such setting: " + n for n in sorted(install - names - programs)]
    expect_none(out, "settings")


@case("defaults in cyr_backup.conf(5) and etc/imapd.conf are those of the program")
def defaults():
    known = {name: default for name, default in table().values()}
    out, seen = [], 0
    for name, text in re.findall(r"^\.It Cm (\w+) : .*\nDefault: *(.*(?:\n\..*)?)", CONF, re.M):
        if name not in known:
            continue
        first = text.split("\n")
        said = first[0].strip().rstrip(".") or re.sub(r"^\.\w+ (.*?) ?\.?$", r"\1", first[1])
        said = {"none": None, "nobody": "", "off": "no"}.get(said, said)
        seen += 1
        if name == "backup_staging_path":
            continue
        if said != known[name]:
            out.append("%s: said %s, is %s" % (name, said, known[name]))
    expect(seen > 12, "defaults are found")
    for name, said in re.findall(r"^#(backup_\w+): (.*)$", read("etc/imapd.conf"), re.M):
        # Places to listen have no default; the staging folder depends on temp_path.
        if name in ("backup_listen", "backup_socket", "backup_staging_path"):
            continue
        if said != known.get(name):
            out.append("etc/imapd.conf: %s: said %s, is %s" % (name, said, known.get(name)))
    expect_none(out, "defaults")


@case("mandoc has nothing to complain about")
def lint():
    if not shutil.which("mandoc"):
        raise Skip("mandoc is not installed")
    pages = sorted(os.listdir(MAN))
    expect(len(pages) >= 2, "there are pages")
    # Inside the folder, so that references between the pages are followed.
    done = subprocess.run(["mandoc", "-Tlint", "-Wwarning", *pages], cwd=MAN, capture_output=True, text=True)
    expect_none((done.stdout + done.stderr).splitlines(), "complaints")


run()
