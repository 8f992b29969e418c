//! `rename`: a user's backup goes to the user's new name, with all of its past.

use super::args::{self, usage};
use super::output::{Out, plain};
use super::{Context, Job, Outcome};
use crate::cyrus::mboxname::canonical_userid;
use crate::error::{Kind, Result};
use crate::store::backup::Settings;
use crate::store::lock::Wait;
use crate::store::renaming;
use crate::util::time::now;
use getopts::{Matches, Options};

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    old: String,
    new: String,
    wait: bool,
    json: bool,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    args::json(&mut o);
    o.optflag("w", "", "wait for a backup that is locked");
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let [old, new] = m.free.as_slice() else {
            return Err(usage("wants the old name and the new one"));
        };
        Ok(Args {
            old: old.clone(),
            new: new.clone(),
            wait: m.opt_present("w"),
            json: m.opt_present("j"),
        })
    }
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let userid =
        |name: &str| canonical_userid(name, &c.namespace).map_err(|e| e.with_kind(Kind::Usage));
    let (old, new) = (userid(&args.old)?, userid(&args.new)?);
    let wait = if args.wait { Wait::Forever } else { Wait::No };
    let settings = Settings {
        level: c.config.backup_ingest_level(),
        chunk_max: c.config.backup_chunk_max(),
    };
    let names = (old.as_str(), new.as_str());
    let path = renaming::rename(&c.catalog(), names, wait, settings, &c.namespace, now())?;
    let path = path.to_string_lossy();
    if args.json {
        let fields = [
            ("userid", new.as_str().into()),
            ("was", old.as_str().into()),
            ("path", path.as_ref().into()),
        ];
        out.document(&fields, |_| Ok(()))?;
    } else {
        out.line(format_args!(
            "{} is {} now: {}",
            plain(&old),
            plain(&new),
            plain(&path)
        ))?;
    }
    Ok(Outcome::Well)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_names() {
        let args = |words: &[&str]| Args::parse(&options().parse(words).unwrap());
        let both = args(&["miss", "missis", "-w"]).unwrap();
        assert_eq!(
            (both.old.as_str(), both.new.as_str(), both.wait),
            ("miss", "missis", true)
        );
        for bad in [&[][..], &["miss"], &["a", "b", "c"]] {
            assert_eq!(args(bad).unwrap_err().kind(), Kind::Usage);
        }
    }
}
