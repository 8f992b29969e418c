//! The narrow seam under the log: what the log asks of a file, and nothing more.
//!
//! `std::fs::File` is the real one. [`FaultFile`] is the one for tests: it lives in memory, fails or
//! freezes at the Nth operation, and shows what would be left after a kill or a power loss.
//! Positions are explicit, so a file may be shared by threads without a common cursor.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

mod fault;
mod watch;

#[cfg(test)]
pub(crate) use fault::next_random;
pub use fault::{Fault, FaultFile};
pub use watch::{Watch, Watched};

/// A file of bytes at explicit positions.
pub trait LogFile: Send + Sync {
    /// Reads at most `buf.len()` bytes at `offset`; 0 means the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `offset`. After an error any part of it may have been written.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// True when the length is 0.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or extends the file to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns when all written bytes and the length are on stable storage.
    fn sync_data(&self) -> io::Result<()>;
}

impl LogFile for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match FileExt::read_at(self, buf, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                done => return done,
            }
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }
}

impl<T: LogFile + ?Sized> LogFile for std::sync::Arc<T> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        (**self).write_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        (**self).set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        (**self).sync_data()
    }
}

/// Reads a [`LogFile`] from an offset on, without buffering and up to an optional end.
pub struct FileReader<'a> {
    file: &'a dyn LogFile,
    offset: u64,
    end: u64,
}

impl<'a> FileReader<'a> {
    /// Reads from `offset` to the end of the file.
    pub fn new(file: &'a dyn LogFile, offset: u64) -> FileReader<'a> {
        FileReader::until(file, offset, u64::MAX)
    }

    /// Reads from `offset`, and not beyond `end`.
    pub fn until(file: &'a dyn LogFile, offset: u64, end: u64) -> FileReader<'a> {
        FileReader { file, offset, end }
    }
}

impl io::Read for FileReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_sub(self.offset);
        let want = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got = self.file.read_at(&mut buf[..want], self.offset)?;
        self.offset += got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_real_file_obeys_the_seam() {
        let path = std::env::temp_dir().join(format!("cyrlog-{}-seam", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        let file: &dyn LogFile = &file;
        assert!(file.is_empty().unwrap());
        file.write_at(b"hello world", 0).unwrap();
        file.write_at(b"W", 6).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.len().unwrap(), 11);
        file.set_len(8).unwrap();
        let mut all = String::new();
        FileReader::new(file, 6).read_to_string(&mut all).unwrap();
        assert_eq!(all, "Wo");
        all.clear();
        FileReader::until(file, 0, 3)
            .read_to_string(&mut all)
            .unwrap();
        assert_eq!(all, "hel");
        assert_eq!(file.read_at(&mut [0; 4], 100).unwrap(), 0);
    }
}
