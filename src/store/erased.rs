//! The record of what was erased for good: `backups.db.erased`, lines of text beside the catalogue.
//!
//! `<time> <seconds since 1970> <what>`; only ever appended to, and on disk when [`append`] returns.
//! It holds names, and no mail. Nothing reads it but people.

use crate::error::{Error, Result};
use crate::util::time::{Timestamp, iso};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Adds a line.
pub fn append(backups_db: &Path, now: Timestamp, what: &str) -> Result<()> {
    let mut path = backups_db.as_os_str().to_owned();
    path.push(".erased");
    let path = Path::new(&path);
    let what = what.replace(char::is_control, "?");
    let line = format!("{} {} {what}\n", iso(now), now.0);
    let mut options = File::options();
    options.append(true).create(true).mode(0o600);
    let write = || -> std::io::Result<()> {
        let mut file = options.open(path)?;
        file.write_all(line.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| Error::io("cannot record", e).at(path))
}
