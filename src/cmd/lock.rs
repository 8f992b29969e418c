//! `lock`: holds the lock of one backup, so that nothing is written to it meanwhile.
//!
//! Until end of input (`-p`), around `sqlite3` on its index (`-s`), or around a command (`-x`), as
//! `ctl_backups lock` did; scripts find the files in the same two variables of the environment.
//! Under the lock the log ends with a sealed chunk and the index is closed, so both may be copied.
//!
//! The exit status is that of the child, 128 and the signal's number if one ended it; 75 if
//! somebody else holds the backup.

use super::args::{self, usage};
use super::output::{Out, plain};
use super::select::Select;
use super::{Context, Job, Outcome, say, status};
use crate::error::{Error, Kind, Result};
use crate::store::backup::{Backup, Settings};
use crate::store::former;
use crate::store::index;
use crate::store::lock::{Create, DataLock, Wait};
use crate::sys::child;
use getopts::{Matches, Options};
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

/// Where a child finds the path of the log.
const DATA: &str = "ctl_backups_lock_data_fname";
/// Where a child finds the path of the index.
const INDEX: &str = "ctl_backups_lock_index_fname";

/// What happens under the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// Standard input is read to its end.
    Pause,
    /// `sqlite3` runs on the index.
    Sqlite,
    /// A shell runs this.
    Execute(String),
}

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    what: What,
    create: bool,
    wait: bool,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    super::select::options(&mut o);
    o.optflag("p", "", "until end of input (default)");
    o.optflag("s", "", "around sqlite3 on the index");
    o.optopt("x", "", "around a command of the shell", "COMMAND");
    o.optflag("c", "", "make the data file, which must not exist");
    o.optflag("w", "", "wait while it is locked");
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let command = m.opt_str("x");
        let given = ["p", "s", "x"].iter().filter(|o| m.opt_present(o)).count();
        if given > 1 {
            return Err(usage("only one of -p -s -x"));
        }
        let what = match command {
            Some(command) => What::Execute(command),
            None if m.opt_present("s") => What::Sqlite,
            None => What::Pause,
        };
        let (select, rest) = Select::one(m, &m.free)?;
        args::no_more(&rest)?;
        Ok(Args {
            select,
            what,
            create: m.opt_present("c"),
            wait: m.opt_present("w"),
        })
    }
}

/// The lock, with both files at rest.
fn hold(args: &Args, c: &Context, path: &Path, key: &str) -> Result<DataLock> {
    let wait = if args.wait { Wait::Forever } else { Wait::No };
    let create = if args.create { Create::New } else { Create::No };
    let settings = Settings {
        level: c.config.backup_ingest_level(),
        chunk_max: c.config.backup_chunk_max(),
    };
    let backup = Backup::open(path, key, wait, create, settings);
    backup.map_err(|e| former::explain(e, path))?.into_lock()
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let chosen = args.select.find_one(&c.catalog(), &c.namespace)?;
    let path = std::path::absolute(&chosen.path)
        .map_err(|e| Error::io("cannot find", e).at(&chosen.path))?;
    let key = chosen.key.clone().unwrap_or_default();
    let name = plain(&chosen.name());
    if args.what != What::Pause {
        if c.globals.verbose > 0 {
            say(format_args!("trying to obtain lock on {name}..."));
        }
        let lock = hold(args, c, &path, &key)?;
        let done = under(&args.what, &path);
        drop(lock);
        return done.map(Outcome::Status);
    }
    // Somebody waits for these words at the other end of a pipe.
    out.line(format_args!("* Trying to obtain lock on {name}..."))?;
    out.flush()?;
    match hold(args, c, &path, &key) {
        Ok(lock) => {
            out.line(format_args!("OK locked"))?;
            out.flush()?;
            let done = pause();
            drop(lock);
            done.map(|()| Outcome::Well)
        }
        Err(e) => {
            out.line(format_args!("NO failed ({})", plain(&e.to_string())))?;
            Ok(Outcome::Status(status(e.kind())))
        }
    }
}

fn pause() -> Result<()> {
    let mut input = io::stdin().lock();
    let mut buf = [0; 4096];
    loop {
        match input.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("cannot read standard input", e)),
        }
    }
}

/// Runs the child; its exit status as a shell tells it.
fn under(what: &What, path: &Path) -> Result<u8> {
    let index = index::path_of(path);
    let mut command = match what {
        What::Execute(text) => {
            let mut shell = Command::new("/bin/sh");
            shell.arg("-c").arg(text);
            shell
        }
        _ => {
            let mut sqlite = Command::new("sqlite3");
            sqlite.arg(&index);
            sqlite
        }
    };
    command.env(DATA, path).env(INDEX, &index);
    let ended = child::run(&mut command).map_err(|e| {
        let name = command.get_program().to_string_lossy().into_owned();
        Error::io(format!("cannot run {name}"), e).with_kind(Kind::Io)
    })?;
    let code = ended.code().or(ended.signal().map(|n| 128 + n));
    Ok(code.and_then(|n| u8::try_from(n).ok()).unwrap_or(255))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Result<Args> {
        Args::parse(&options().parse(words).unwrap())
    }

    #[test]
    fn one_backup_and_one_deed() {
        let plain = args(&["anna"]).unwrap();
        assert_eq!(plain, args(&["-p", "-u", "anna"]).unwrap());
        assert!(plain.what == What::Pause && !plain.create && !plain.wait);
        let other = args(&["-c", "-w", "-x", "true", "-f", "/b/a"]).unwrap();
        assert!(other.create && other.wait);
        assert_eq!(other.what, What::Execute("true".into()));
        assert_eq!(args(&["-s", "a"]).unwrap().what, What::Sqlite);
        for bad in [
            &["-p", "-s", "a"][..],
            &["-s", "-x", "true", "a"],
            &["-A"],
            &["-P", "a"],
            &["a", "b"],
            &[],
        ] {
            assert_eq!(args(bad).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
    }
}
