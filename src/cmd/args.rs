//! What the commands' options have in common, and the global options.
//!
//! Words in, values or `Kind::Usage` out; only a time asks the clock.

use crate::cyrus::config::parse::duration;
use crate::error::{Error, Kind, Result};
use crate::sys::clock;
use crate::util::time::{Timestamp, now};
use crate::util::when::{self, Day};
use getopts::{Matches, Options};
use std::path::PathBuf;
use std::time::Duration;

/// The global options; they may stand before or behind the command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Globals {
    /// `-C`: the imapd.conf.
    pub config: Option<PathBuf>,
    /// `-v`, counted.
    pub verbose: usize,
    /// `-q`.
    pub quiet: bool,
}

impl Globals {
    /// Adds what was typed in one place; a later `-C` wins.
    pub fn add(&mut self, m: &Matches) {
        if let Some(path) = m.opt_str("C") {
            self.config = Some(path.into());
        }
        self.verbose += m.opt_count("v");
        self.quiet |= m.opt_present("q");
    }
}

/// Options every command has; each command's own are added to these.
pub fn common() -> Options {
    let mut o = Options::new();
    o.optopt("C", "", "read this imapd.conf", "FILE");
    o.optflagmulti("v", "", "say more on standard error");
    quiet_and_help(&mut o);
    o
}

/// The rest of them, for a command that brings its own `-C` and `-v`.
pub fn quiet_and_help(o: &mut Options) {
    o.optflagmulti("q", "", "say less: errors only");
    o.optflag("h", "help", "show this help");
}

/// Adds `-j`.
pub fn json(o: &mut Options) {
    o.optflagmulti("j", "", "print JSON");
}

/// Adds `--jobs`.
pub fn jobs(o: &mut Options) {
    o.optopt("", "jobs", "threads that work (default 2)", "N");
}

/// What it says.
pub fn jobs_of(m: &Matches) -> Result<usize> {
    match m.opt_str("jobs").map(|n| n.parse().unwrap_or(0)) {
        None => Ok(2),
        Some(n @ 1..=64) => Ok(n),
        Some(_) => Err(usage("--jobs wants a number from 1 to 64")),
    }
}

/// Adds `--at`.
pub fn at(o: &mut Options) {
    o.optopt("", "at", "as it was at that time", "TIME");
}

/// The time an option gives; of a day the beginning or the end.
pub fn time(m: &Matches, name: &str, day: Day) -> Result<Option<Timestamp>> {
    let zone = |t: Timestamp| clock::ahead(t.0);
    let parse = |text: String| {
        when::parse(&text, now(), &zone, day).map_err(|why| usage(format!("--{name}: {why}")))
    };
    m.opt_str(name).map(parse).transpose()
}

/// Adds `--max-time`.
pub fn max_time(o: &mut Options) {
    o.optopt("", "max-time", "begin no further one after that", "TIME");
}

/// What it says.
pub fn max_time_of(m: &Matches) -> Result<Option<Duration>> {
    let parse = |text: String| {
        let secs = duration(&text, b's').and_then(|n| u64::try_from(n).ok());
        let secs = secs.filter(|&n| n > 0);
        let bad = || usage("--max-time wants a time such as 90m or 2h30m");
        secs.map(Duration::from_secs).ok_or_else(bad)
    };
    m.opt_str("max-time").map(parse).transpose()
}

/// An error in the command line.
pub fn usage(why: impl Into<String>) -> Error {
    Error::new(Kind::Usage, why)
}

/// Refuses words that nobody asked for.
pub fn no_more(words: &[String]) -> Result<()> {
    match words.first() {
        Some(word) => Err(usage(format!("unexpected argument {word}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globals_add_up() {
        let mut g = Globals::default();
        g.add(&common().parse(["-C", "/a", "-v"]).unwrap());
        g.add(&common().parse(["-vv", "-q", "-C", "/b"]).unwrap());
        let expect = Globals {
            config: Some("/b".into()),
            verbose: 3,
            quiet: true,
        };
        assert_eq!(g, expect);
        g.add(&common().parse::<[&str; 0]>([]).unwrap());
        assert_eq!(g, expect);
    }

    #[test]
    fn surplus_words_are_named() {
        assert!(no_more(&[]).is_ok());
        let e = no_more(&["x".into()]).unwrap_err();
        assert_eq!(
            (e.kind(), e.to_string().as_str()),
            (Kind::Usage, "unexpected argument x")
        );
    }
}
