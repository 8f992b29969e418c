//! `dump`: one thing out of a backup, byte for byte: a message, the plain text of a chunk or of the
//! whole log, a sieve script.
//!
//! Bytes stream to standard output as they are read and are judged at the end: a message by its
//! GUID, a sealed chunk by its checksum. `Damaged` then says that what was written is not right.
//! `dump log` goes on behind a damaged chunk, as far as there are more.

use super::args::{self, no_more, usage};
use super::output::Out;
use super::select::{self, Select};
use super::{Context, Job, Outcome, View, status};
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::store::index::ChunkRow;
use crate::store::log::read_chunk_plain;
use crate::store::reindex;
use getopts::{Matches, Options};

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    what: What,
    deleted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Message(Guid),
    Chunk(i64),
    Sieve(String),
    Log,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    let help = "sieve: the last version, though it was deleted";
    o.optflag("", "deleted", help);
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let (what, words) = m
            .free
            .split_first()
            .ok_or_else(|| usage("dump what? message, chunk, sieve or log"))?;
        let (select, items) = Select::one(m, words)?;
        let item = |what: &str| {
            let (first, rest) = items.split_first().ok_or_else(|| usage(what))?;
            no_more(rest).map(|()| first.as_str())
        };
        let what = match what.as_str() {
            "message" => {
                let text = item("no GUID named")?;
                let guid = Guid::parse(text.as_bytes());
                What::Message(guid.ok_or_else(|| usage(format!("{text} is no GUID")))?)
            }
            "chunk" => {
                let text = item("no chunk named")?;
                let id = text.parse().ok();
                What::Chunk(id.ok_or_else(|| usage(format!("{text} is no chunk's number")))?)
            }
            "sieve" => What::Sieve(item("no script named")?.to_owned()),
            "log" => {
                no_more(&items)?;
                What::Log
            }
            other => return Err(usage(format!("cannot dump {other}"))),
        };
        Ok(Args {
            select,
            what,
            deleted: m.opt_present("deleted"),
        })
    }
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let view = c.open_one(&args.select)?;
    c.audit(&format!("dump from=<{}> what=<{:?}>", view.key, args.what));
    match &args.what {
        What::Message(guid) => view.reader.body(*guid, &mut |part| out.bytes(part))?,
        What::Chunk(id) => {
            let row = view.reader.index().chunk(*id)?;
            let row = row.ok_or_else(|| {
                Error::new(Kind::NotFound, format!("no chunk {id}")).for_user(&view.key)
            })?;
            chunk(&view, &row, out)?;
        }
        What::Sieve(name) => out.bytes(&script(&view, name, args.deleted)?)?,
        What::Log => return whole(&view, c, out),
    }
    Ok(Outcome::Well)
}

/// The plain text of a chunk; of one still open, what is acknowledged.
fn chunk(view: &View, row: &ChunkRow, out: &mut Out) -> Result<()> {
    let file = view.reader.file();
    let plain = match row.plain_length {
        Some(n) => n,
        None => {
            let known = view.reader.index().meta_number("acknowledged_plain")?;
            u64::try_from(known.unwrap_or(0)).unwrap_or(0)
        }
    };
    read_chunk_plain(file, row.offset, 0, plain, &mut |part| out.bytes(part))
        .map_err(|e| e.in_chunk(row.id, 0))?;
    if let (Some(length), Some(sha256)) = (row.length, &row.sha256) {
        if reindex::hash(file, row.offset, length)?[..] != sha256[..] {
            let e = Error::new(Kind::Damaged, "damaged chunk: its checksum is wrong");
            return Err(e.in_chunk(row.id, 0));
        }
    }
    Ok(())
}

fn whole(view: &View, c: &Context, out: &mut Out) -> Result<Outcome> {
    let mut outcome = Outcome::Well;
    let mut complain = |e: &Error| {
        c.complain(&view.key, e);
        outcome = Outcome::Status(status(Kind::Damaged));
    };
    let mut end = 0;
    for row in view.reader.index().chunks()? {
        if row.offset != end {
            let what = format!("bytes {end} to {} are in no chunk", row.offset);
            complain(&Error::new(Kind::Damaged, what));
        }
        end = row.offset.saturating_add(row.length.unwrap_or(0));
        match chunk(view, &row, out) {
            Err(e) if e.kind() == Kind::Damaged => complain(&e),
            done => done?,
        }
    }
    Ok(outcome)
}

/// A script by its file name, with or without `.script`.
fn script(view: &View, name: &str, deleted: bool) -> Result<Vec<u8>> {
    let rows = view.reader.index().scripts(deleted)?;
    let full = format!("{name}.script");
    // Versions stand in order of age; a live one is the last.
    let row = rows
        .into_iter()
        .rev()
        .find(|r| r.filename == name || r.filename == full);
    match row {
        Some(row) => Ok(row.content),
        None => Err(Error::new(Kind::NotFound, format!("no script {name}")).for_user(&view.key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_has_its_item() {
        let args = |words: &[&str]| Args::parse(&options().parse(words).unwrap());
        let what = |words: &[&str]| args(words).unwrap().what;
        let guid = "5A184cd1a6222c5bdef730087d1de284fe479ccd";
        let expect = What::Message(Guid::parse(guid.as_bytes()).unwrap());
        assert_eq!(what(&["message", "anna", guid]), expect);
        assert_eq!(what(&["-f", "message", "/b/x", guid]), expect);
        assert_eq!(what(&["chunk", "anna", "7"]), What::Chunk(7));
        assert_eq!(what(&["sieve", "anna", "main"]), What::Sieve("main".into()));
        assert_eq!(what(&["log", "anna"]), What::Log);
        for bad in [
            &["message", "anna", "5a"][..],
            &["message", "anna", guid, guid],
            &["chunk", "anna", "1.5"],
            &["sieve", "anna"],
            &["log"],
            &["log", "-A"],
        ] {
            assert_eq!(args(bad).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
    }
}
