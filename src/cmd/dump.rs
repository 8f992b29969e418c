//! XXX not there yet
use super::{Job, args};
use crate::error::Result;
use getopts::{Matches, Options};
/// The options.
pub fn options() -> Options {
    args::common()
}
/// The command.
pub fn job(_: &Matches) -> Result<Job> {
    Err(args::usage("not yet"))
}
