//! `chunks`: the chunks of a log, from the index.

use super::args;
use super::output::{Out, number, when};
use super::select::{self, Select};
use super::{Context, Job, Outcome};
use crate::error::Result;
use getopts::{Matches, Options};
use serde_json::json;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    json: bool,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let (select, rest) = Select::one(m, &m.free)?;
        args::no_more(&rest)?;
        let json = m.opt_present("j");
        Ok(Args { select, json })
    }
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let view = c.open_one(&args.select)?;
    let rows = view.reader.index().chunks()?;
    if args.json {
        let userid = view.key.as_str().into();
        out.document(&[("userid", userid)], |d| {
            d.list("chunks")?;
            rows.iter().try_for_each(|r| {
                d.row(&json!({
                    "id": r.id,
                    "offset": r.offset,
                    "length": r.length,
                    "plain_length": r.plain_length,
                    "first_time": r.first_time,
                    "last_time": r.last_time,
                }))
            })
        })?;
        return Ok(Outcome::Well);
    }
    out.line(format_args!(
        "{:>6} {:>14} {:>11} {:>11} {:<20} {:<20}",
        "ID", "OFFSET", "LENGTH", "PLAIN", "FIRST", "LAST"
    ))?;
    for r in &rows {
        out.line(format_args!(
            "{:>6} {:>14} {:>11} {:>11} {:<20} {:<20}",
            r.id,
            r.offset,
            number(r.length),
            number(r.plain_length),
            when(Some(r.first_time)),
            when(Some(r.last_time))
        ))?;
    }
    Ok(Outcome::Well)
}
