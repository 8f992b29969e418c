//! The command lines of the old tools, said anew: what an administrator's scripts call
//! `ctl_backups` keeps working when that name leads to this program. Options, long forms and modes
//! are those of the 3.0 to 3.10 tools; output and exit status are ours.
#![forbid(unsafe_code)]

use super::args::usage;
use crate::error::Result;
use getopts::{Matches, Options, ParsingStyle};
use std::ffi::OsString;

/// Commands of `ctl_backups`, and whether ours has the old `-w`.
const CTL: &[(&str, bool)] = &[
    ("compact", true),
    ("list", false),
    ("lock", true),
    ("reindex", true),
    ("stat", false),
    ("verify", false),
];

fn modes(o: &mut Options) {
    o.optflag("A", "all", "");
    o.optflag("D", "domains", "");
    o.optflag("P", "prefixes", "");
    o.optflag("f", "filenames", "");
    o.optflag("m", "mailboxes", "");
    o.optflag("u", "userids", "");
}

/// The arguments of `ctl_backups` (without the program's name) as arguments of ours. `Kind::Usage`
/// for what the old tool did not know.
pub fn ctl_backups(args: &[OsString]) -> Result<Vec<OsString>> {
    let mut o = Options::new();
    o.parsing_style(ParsingStyle::FloatingFrees);
    modes(&mut o);
    o.optopt("C", "", "", "FILE");
    for (short, long) in [
        ("F", "force"),
        ("S", "stop-on-error"),
        ("V", "no-verify"),
        ("j", "json"),
        ("w", "wait-for-locks"),
        ("c", "create"),
        ("p", "pause"),
        ("s", "sqlite3"),
    ] {
        o.optflag(short, long, "");
    }
    o.optflagmulti("v", "verbose", "");
    o.optflagopt("t", "stale", "", "HOURS");
    o.optopt("x", "execute", "", "COMMAND");
    let m = o.parse(args).map_err(|e| usage(e.to_string()))?;
    let Some((name, names)) = m.free.split_first() else {
        return Err(usage("no command"));
    };
    let Some((name, waits)) = CTL.iter().find(|(n, _)| n == name) else {
        return Err(usage(format!("unknown command {name}")));
    };
    let mut out = Words::new(name);
    out.globals(&m);
    out.flag(m.opt_present("j") && *name != "lock", "-j");
    out.flag(m.opt_present("w") && *waits, "-w");
    out.flag(m.opt_present("F") && *name == "compact", "--force");
    if *name == "list" && m.opt_present("t") {
        let hours = m.opt_str("t").unwrap_or_else(|| "24".into());
        out.option("--stale", &hours);
    }
    if *name == "lock" {
        for letter in ["c", "p", "s"] {
            out.flag(m.opt_present(letter), &format!("-{letter}"));
        }
        if let Some(command) = m.opt_str("x") {
            out.option("-x", &command);
        }
    }
    for mode in ["A", "D", "P", "f", "m", "u"] {
        out.flag(m.opt_present(mode), &format!("-{mode}"));
    }
    Ok(out.end(names))
}

/// The arguments of `restore` as arguments of ours: in place, of what lives unless `-x` says else.
/// `Kind::Usage` for what the old tool did not know, and for what has no equal.
pub fn restore(args: &[OsString]) -> Result<Vec<OsString>> {
    let mut o = Options::new();
    o.parsing_style(ParsingStyle::FloatingFrees);
    for (short, long) in [
        ("D", "keep-deletedprefix"),
        ("L", "local-only"),
        ("U", "keep-uidvalidity"),
        ("X", "skip-expunged"),
        ("a", "all-mailboxes"),
        ("n", "dry-run"),
        ("r", "recursive"),
        ("x", "only-expunged"),
        ("z", "require-compression"),
    ] {
        o.optflag(short, long, "");
    }
    o.optflagmulti("v", "verbose", "");
    o.optflag("", "help", "");
    for (short, long) in [
        ("A", "override-acl"),
        ("C", ""),
        ("F", "input-file"),
        ("M", "dest-mailbox"),
        ("P", "dest-partition"),
        ("f", "file"),
        ("m", "mailbox"),
        ("u", "userid"),
        ("w", "delayed-startup"),
    ] {
        o.optopt(short, long, "", "X");
    }
    let m = o.parse(args).map_err(|e| usage(e.to_string()))?;
    if m.opt_present("help") {
        return Ok(vec!["restore".into(), "--help".into()]);
    }
    let Some((server, rest)) = m.free.split_first() else {
        return Err(usage("no server"));
    };
    if m.opt_present("D") {
        return Err(usage(
            "-D has no equal: what was deleted comes back under its name",
        ));
    }
    if m.opt_present("L") {
        return Err(usage("-L has no equal"));
    }
    let mut out = Words::new("restore");
    out.globals(&m);
    let to = match server.starts_with('/') {
        true => format!("unix:{server}"),
        false => format!("csync://{server}"),
    };
    out.option("--to", &to);
    match m.opt_str("M") {
        Some(mailbox) => out.option("--into", &mailbox),
        None if m.opt_present("U") => out.flag(true, "--keep-uids"),
        None => out.flag(true, "--in-place"),
    }
    for (old, new) in [("A", "--acl"), ("P", "--partition"), ("F", "--guids")] {
        if let Some(value) = m.opt_str(old) {
            out.option(new, &value);
        }
    }
    out.flag(m.opt_present("x"), "--deleted-only");
    out.flag(m.opt_present("n"), "-n");
    out.flag(m.opt_present("r"), "-r");
    let mut given = ["f", "m", "u"]
        .iter()
        .filter_map(|mode| Some((mode, m.opt_str(mode)?)));
    let mut names = rest.to_vec();
    if let Some((mode, backup)) = given.next() {
        out.flag(true, &format!("-{mode}"));
        names.insert(0, backup);
    }
    match names.len() {
        0 => Err(usage("no backup named")),
        1 if !m.opt_present("a") && !m.opt_present("F") => Err(usage(
            "nothing to restore: name mailboxes or messages, or -a",
        )),
        _ => Ok(out.end(&names)),
    }
}

/// A command line as it grows.
struct Words(Vec<OsString>);

impl Words {
    fn new(command: &str) -> Words {
        Words(vec![command.into()])
    }

    fn globals(&mut self, m: &Matches) {
        if let Some(file) = m.opt_str("C") {
            self.option("-C", &file);
        }
        for _ in 0..m.opt_count("v") {
            self.0.push("-v".into());
        }
    }

    fn flag(&mut self, is_set: bool, word: &str) {
        if is_set {
            self.0.push(word.into());
        }
    }

    fn option(&mut self, name: &str, value: &str) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn end(mut self, names: &[String]) -> Vec<OsString> {
        self.0.push("--".into());
        self.0.extend(names.iter().map(OsString::from));
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ctl(text: &str) -> String {
        let words: Vec<OsString> = text.split(' ').map(OsString::from).collect();
        let out = ctl_backups(&words).unwrap();
        let out: Vec<&str> = out.iter().map(|w| w.to_str().unwrap()).collect();
        out.join(" ")
    }

    #[test]
    fn ctl_backups_is_said_anew() {
        for (old, new) in [
            ("list", "list --"),
            ("-C /x -vv list -t 5", "list -C /x -v -v --stale 5 --"),
            ("list -t", "list --stale 24 --"),
            ("-j stat -A", "stat -j -A --"),
            ("-F -w compact -m user.a", "compact -w --force -m -- user.a"),
            ("-S -V -w verify -f /b/x", "verify -f -- /b/x"),
            ("reindex -w a b", "reindex -w -- a b"),
            ("lock -p -u anna", "lock -p -u -- anna"),
            ("lock -c -s anna", "lock -c -s -- anna"),
            ("-j -w lock --pause anna", "lock -w -p -- anna"),
            ("lock -x true anna", "lock -x true -- anna"),
            ("compact --all --force", "compact --force -A --"),
        ] {
            assert_eq!(ctl(old), new, "{old}");
        }
    }

    #[test]
    fn restore_is_said_anew() {
        let said = |text: &str| {
            let words: Vec<OsString> = text.split(' ').map(OsString::from).collect();
            let out = restore(&words)?;
            let out: Vec<&str> = out.iter().map(|w| w.to_str().unwrap()).collect();
            Ok::<_, crate::error::Error>(out.join(" "))
        };
        for (old, new) in [
            (
                "host -a anna",
                "restore --to csync://host --in-place -- anna",
            ),
            (
                "-C /x -v -n /run/csync -u anna user.anna.Sent",
                "restore -C /x -v --to unix:/run/csync --in-place -n -u -- anna user.anna.Sent",
            ),
            (
                "-x -r -M user.b host:2005 -m user.anna user.anna",
                "restore --to csync://host:2005 --into user.b --deleted-only -r -m -- user.anna user.anna",
            ),
            (
                "-U -X -z -w 3 -a host -f /b/x",
                "restore --to csync://host --keep-uids -f -- /b/x",
            ),
            ("--help", "restore --help"),
            (
                "-P p2 -F /list host anna",
                "restore --to csync://host --in-place --partition p2 --guids /list -- anna",
            ),
        ] {
            assert_eq!(said(old).unwrap(), new, "{old}");
        }
        for bad in [
            "",
            "host",
            "host anna",
            "-D host -a anna",
            "-L -a host anna",
            "-q host anna",
        ] {
            assert!(said(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_it_never_knew_is_refused() {
        for text in ["", "delete anna", "list -z", "-C"] {
            let words: Vec<OsString> = text.split(' ').map(OsString::from).collect();
            assert!(ctl_backups(&words).is_err(), "{text}");
        }
    }
}
