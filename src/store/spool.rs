//! Bytes on their way: in memory while they are few, else in a file that has no name any more.
//!
//! The file is unlinked as soon as it is open, so that nothing is left behind however we end. It
//! is never synced: what must last is in a log. A spool that passes its budget fails with
//! `Kind::NoSpace` and takes nothing.

use crate::error::{Error, Kind, Result};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What is kept in memory before a file is made.
const IN_MEMORY: usize = 256 * 1024;

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A growing run of bytes with random access.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    budget: u64,
    memory: Vec<u8>,
    file: Option<File>,
    /// Bytes in the file; those in `memory` come behind them.
    filed: u64,
}

impl Spool {
    /// An empty spool whose file, if one is needed, is made in `dir`; `budget` in bytes.
    pub fn new(dir: &Path, budget: u64) -> Spool {
        Spool {
            dir: dir.to_owned(),
            budget,
            memory: Vec::new(),
            file: None,
            filed: 0,
        }
    }

    /// Bytes held.
    pub fn len(&self) -> u64 {
        self.filed + self.memory.len() as u64
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds bytes at the end.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.len() + bytes.len() as u64 > self.budget {
            return Err(Error::new(
                Kind::NoSpace,
                format!(
                    "more than {} bytes staged (backup_staging_max)",
                    self.budget
                ),
            ));
        }
        self.memory.extend_from_slice(bytes);
        if self.memory.len() > IN_MEMORY {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        let fail = |e| Error::io("cannot stage", e).at(&self.dir);
        let file = match self.file.take() {
            Some(f) => f,
            None => nameless(&self.dir).map_err(fail)?,
        };
        let written = file.write_all_at(&self.memory, self.filed).map_err(fail);
        self.file = Some(file);
        written?;
        self.filed += self.memory.len() as u64;
        self.memory.clear();
        Ok(())
    }

    /// Cuts the spool back to `len` bytes.
    pub fn truncate(&mut self, len: u64) -> Result<()> {
        if len >= self.filed {
            self.memory
                .truncate(usize::try_from(len - self.filed).unwrap_or(usize::MAX));
            return Ok(());
        }
        self.memory.clear();
        self.filed = len;
        if let Some(file) = &self.file {
            file.set_len(len)
                .map_err(|e| Error::io("cannot truncate staging", e).at(&self.dir))?;
        }
        Ok(())
    }

    /// Drops everything and gives the disk space back.
    pub fn clear(&mut self) {
        self.memory = Vec::new();
        self.file = None;
        self.filed = 0;
    }

    /// Reads `len` bytes from `from` on; what lies beyond the end is not read.
    pub fn reader(&self, from: u64, len: u64) -> BufReader<SpoolReader<'_>> {
        BufReader::with_capacity(
            64 * 1024,
            SpoolReader {
                spool: self,
                at: from,
                end: self.len().min(from.saturating_add(len)),
            },
        )
    }
}

/// Reads a range of a [`Spool`].
#[derive(Debug)]
pub struct SpoolReader<'a> {
    spool: &'a Spool,
    at: u64,
    end: u64,
}

impl Read for SpoolReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.end - self.at)
            .unwrap_or(usize::MAX)
            .min(out.len());
        if want == 0 {
            return Ok(0);
        }
        let n = match &self.spool.file {
            Some(file) if self.at < self.spool.filed => {
                let want = usize::try_from(self.spool.filed - self.at)
                    .unwrap_or(usize::MAX)
                    .min(want);
                file.read_at(&mut out[..want], self.at)?
            }
            _ => {
                let from = usize::try_from(self.at - self.spool.filed).unwrap_or(usize::MAX);
                let part = self.spool.memory.get(from..).unwrap_or(&[]);
                let n = part.len().min(want);
                out[..n].copy_from_slice(&part[..n]);
                n
            }
        };
        self.at += n as u64;
        Ok(n)
    }
}

fn nameless(dir: &Path) -> io::Result<File> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(format!(
        "spool.{}.{}",
        std::process::id(),
        NUMBER.fetch_add(1, Ordering::Relaxed)
    ));
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_read_back_equal_and_leave_no_file() {
        let dir = std::env::temp_dir().join(format!("cyrbackup-spool-{}", std::process::id()));
        let mut spool = Spool::new(&dir, 3 << 20);
        let data: Vec<u8> = (0..2_000_000u32).map(|i| (i / 7) as u8).collect();
        for part in data.chunks(100_001) {
            spool.append(part).unwrap();
        }
        assert_eq!(spool.len(), data.len() as u64);
        for (from, len) in [
            (0, data.len()),
            (1_999_990, 10),
            (262_000, 300_000),
            (1_900_000, 1 << 20),
        ] {
            let mut back = Vec::new();
            spool
                .reader(from as u64, len as u64)
                .read_to_end(&mut back)
                .unwrap();
            assert_eq!(back, &data[from..(from + len).min(data.len())]);
        }
        let e = spool.append(&vec![0; 2 << 20]).unwrap_err();
        assert_eq!(e.kind(), Kind::NoSpace);
        spool.truncate(1000).unwrap();
        spool.append(b"xyz").unwrap();
        let mut back = Vec::new();
        spool.reader(998, 100).read_to_end(&mut back).unwrap();
        assert_eq!(back, [&data[998..1000], b"xyz"].concat());
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        spool.clear();
        assert!(spool.is_empty());
        std::fs::remove_dir(&dir).unwrap();
    }
}
