//! Files as destinations: `maildir:DIR`, `mbox:FILE`, `tar:FILE`, `eml:DIR`; `-` is standard output.
//!
//! Every form holds everything of a plan: messages byte for byte, and in JSON beside them what IMAP
//! and replication know of mailboxes and users (`document`); sieve scripts as they are. Layouts and
//! bytes: `doc/format.md` 11.
//!
//! No file that is there is changed, but an archive or mbox of ours is added to. A message that
//! cannot be had is told and the rest goes on; a full disk or any other trouble with files ends the
//! run with an error that says how much is there, and the next run brings the rest and nothing
//! twice. A message's bytes are never held in memory.

mod dir;
mod document;
mod maildir;
mod mbox;
mod mboxrd;
mod names;
mod store;
mod tar;
mod tree;
mod ustar;

use super::Destination;
use super::target::{Format, Place};
use crate::cyrus::mboxname::Namespace;
use crate::error::{Error, Kind, Result};
use std::io;
use std::path::Path;

/// A way out to files; nothing is made or opened before the first folder comes.
pub fn open(
    format: Format,
    place: &Place,
    ns: &Namespace,
    name: String,
) -> Result<Box<dyn Destination>> {
    let ns = ns.clone();
    let tree = |form, store| Box::new(tree::Tree::new(name.clone(), form, store, ns.clone()));
    let dir = |path: &Path, unfinished| Box::new(dir::Dir::new(path, unfinished));
    Ok(match (format, place) {
        (Format::Eml, Place::Path(path)) => {
            tree(tree::Form::Eml, dir(path, dir::Unfinished::Beside))
        }
        (Format::Maildir, Place::Path(path)) => {
            let form = tree::Form::Maildir(path.clone());
            tree(form, dir(path, dir::Unfinished::Maildir))
        }
        (Format::Tar, Place::Path(path)) => tree(tree::Form::Eml, Box::new(tar::Tar::file(path))),
        (Format::Tar, Place::Stdout) => {
            let tar = tar::Tar::stream(Box::new(io::stdout()));
            tree(tree::Form::Eml, Box::new(tar))
        }
        (Format::Mbox, Place::Path(path)) => Box::new(mbox::Mbox::file(name, path, ns)),
        (Format::Mbox, Place::Stdout) => {
            Box::new(mbox::Mbox::stream(name, Box::new(io::stdout()), ns))
        }
        (Format::Eml | Format::Maildir, Place::Stdout) => {
            let why = "a directory cannot go to standard output: try tar:- or mbox:-";
            return Err(Error::new(Kind::Usage, why).place(name));
        }
    })
}

#[cfg(test)]
mod tests;
