//! A data file that tells how far it was read.

use super::LogFile;
use std::io;
use std::sync::Arc;

/// Told after each read: the offset behind what was read.
pub type Watch = Box<dyn Fn(u64) + Send + Sync>;

/// Passes everything on to another file.
pub struct Watched {
    inner: Arc<dyn LogFile>,
    watch: Watch,
}

impl Watched {
    /// `inner`, with `watch` told of its reads.
    pub fn new(inner: Arc<dyn LogFile>, watch: Watch) -> Watched {
        Watched { inner, watch }
    }
}

impl LogFile for Watched {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.inner.read_at(buf, offset)?;
        (self.watch)(offset.saturating_add(n as u64));
        Ok(n)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }
}
