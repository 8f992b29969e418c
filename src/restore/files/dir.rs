//! A directory as a [`Store`].
//!
//! A file is written under another name, synced, and then linked to its own, which fails if that is
//! taken: a name that is there has all its bytes, also after a crash. Many are synced together.
//! File systems without links get a rename behind a look. What is left over of files that were
//! not finished goes when we end; after a crash their names begin with `.cyr_backup-` or lie in `tmp`.

use super::store::{Fill, Hash, Store, Sum};
use crate::error::{Error, Kind, Result};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Files and bytes that wait to be synced together.
const WAIT_FILES: u64 = 64;
const WAIT_BYTES: u64 = 32 * 1024 * 1024;

/// Where unfinished files lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// Beside the finished one.
    Beside,
    /// In `tmp` beside `cur`, as a Maildir has it; else beside the finished one.
    Maildir,
}

struct Waiting {
    temp: PathBuf,
    path: PathBuf,
    file: File,
    size: u64,
}

/// A directory.
pub struct Dir {
    root: PathBuf,
    unfinished: Unfinished,
    count: u64,
    waiting: Vec<Waiting>,
    /// Directories in which names were made since the last sync.
    touched: BTreeSet<PathBuf>,
}

impl Dir {
    /// Over a directory, which need not exist.
    pub fn new(root: &Path, unfinished: Unfinished) -> Dir {
        Dir {
            root: root.to_owned(),
            unfinished,
            count: 0,
            waiting: Vec::new(),
            touched: BTreeSet::new(),
        }
    }

    /// The place of a path.
    pub fn place(&self, path: &str) -> PathBuf {
        match path {
            "" => self.root.clone(),
            _ => self.root.join(path),
        }
    }

    /// Makes a directory and those above it.
    fn make(&mut self, dir: &Path) -> Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        if let Some(above) = dir.parent().filter(|a| !a.as_os_str().is_empty()) {
            self.make(above)?;
            self.touched.insert(above.to_owned());
        }
        match fs::create_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::io("cannot make folder", e).at(dir))
            }
            _ => Ok(()),
        }
    }

    fn temp(&mut self, path: &Path) -> Result<PathBuf> {
        let dir = path.parent().unwrap_or(&self.root).to_owned();
        self.count += 1;
        let pid = std::process::id();
        let name = format!(".cyr_backup-{pid}-{}", self.count);
        if self.unfinished == Unfinished::Maildir && dir.ends_with("cur") {
            if let Some(above) = dir.parent() {
                let tmp = above.join("tmp");
                self.make(&tmp)?;
                return Ok(tmp.join(&name[1..]));
            }
        }
        Ok(dir.join(name))
    }
}

/// Gives a finished file its name; `AlreadyExists` if somebody has it.
fn name(temp: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(temp, path) {
        Ok(()) => fs::remove_file(temp),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(e),
        Err(_) => match fs::symlink_metadata(path) {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(temp, path),
        },
    }
}

fn moment(secs: i64) -> Option<SystemTime> {
    let away = Duration::from_secs(secs.unsigned_abs());
    match secs < 0 {
        true => UNIX_EPOCH.checked_sub(away),
        false => UNIX_EPOCH.checked_add(away),
    }
}

impl Store for Dir {
    fn list(&mut self, dir: &str) -> Result<Option<Vec<String>>> {
        let dir = self.place(dir);
        let fail = |e| Error::io("cannot read folder", e).at(&dir);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(fail(e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(fail)?.file_name();
            names.extend(name.into_string());
        }
        Ok(Some(names))
    }

    fn digest(&mut self, path: &str) -> Result<Option<Hash>> {
        self.settle()?;
        let path = self.place(path);
        let fail = |e| Error::io("cannot read", e).at(&path);
        match fs::symlink_metadata(&path) {
            Ok(m) if m.is_file() => {}
            // Something else has the name: not what we would write.
            Ok(_) => return Ok(Some(Hash::default())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(fail(e)),
        }
        let mut sum = Sum::default();
        let mut file = File::open(&path).map_err(fail)?;
        io::copy(&mut file, &mut sum).map_err(fail)?;
        Ok(Some(sha2::Digest::finalize(sum.hash).into()))
    }

    fn put(&mut self, path: &str, size: u64, mtime: i64, fill: &mut Fill<'_>) -> Result<()> {
        let path = self.place(path);
        if let Some(dir) = path.parent() {
            self.make(dir)?;
            self.touched.insert(dir.to_owned());
        }
        let temp = self.temp(&path)?;
        let fail = |e| Error::io("cannot write", e).at(&path);
        let made = File::options().write(true).create_new(true).open(&temp);
        let file = made.map_err(fail)?;
        let mut writer = BufWriter::with_capacity(64 * 1024, &file);
        let filled = fill(&mut writer).map_err(|e| match e.kind() {
            Kind::Damaged | Kind::NotFound => e,
            _ => e.at(&path),
        });
        let done = filled.and_then(|()| writer.flush().map_err(fail));
        if done.is_err() {
            // What is buffered is not to be written any more.
            let _ = writer.into_parts();
            let _ = fs::remove_file(&temp);
            return done;
        }
        drop(writer);
        if let Some(time) = moment(mtime) {
            // Not every file system knows every time; `mailbox.json` has it.
            let _ = file.set_modified(time);
        }
        self.waiting.push(Waiting {
            temp,
            path,
            file,
            size,
        });
        let (files, bytes) = self.waiting();
        if files >= WAIT_FILES || bytes >= WAIT_BYTES {
            self.name_all()?;
        }
        Ok(())
    }

    fn waiting(&self) -> (u64, u64) {
        let bytes = self.waiting.iter().map(|w| w.size).sum();
        (self.waiting.len() as u64, bytes)
    }

    fn settle(&mut self) -> Result<()> {
        self.name_all()?;
        let unable = [io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported];
        for dir in std::mem::take(&mut self.touched) {
            let synced = File::open(&dir).and_then(|d| d.sync_all());
            match synced {
                // Not every file system can.
                Err(e) if !unable.contains(&e.kind()) => {
                    return Err(Error::io("cannot sync", e).at(&dir));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.settle()
    }
}

impl Dir {
    /// Syncs the files that wait, then names them.
    fn name_all(&mut self) -> Result<()> {
        for w in &self.waiting {
            w.file
                .sync_all()
                .map_err(|e| Error::io("cannot write", e).at(&w.path))?;
        }
        while let Some(w) = self.waiting.first() {
            name(&w.temp, &w.path).map_err(|e| Error::io("cannot name", e).at(&w.path))?;
            self.waiting.remove(0);
        }
        Ok(())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        for w in &self.waiting {
            let _ = fs::remove_file(&w.temp);
        }
    }
}
