//! twoskip, the key-value file of Cyrus, read and written beside the C tools.
//!
//! A skip list in one file: `format` knows the bytes, `list` searches and `change` changes the skip
//! list over any [`Disk`], `db` is the file with its locks, replacement and repack.
//!
//! Promises: a committed transaction is on disk; a crash at any moment leaves the old or the new
//! state; both sides' locks exclude each other. Keys are in raw byte order. A damaged file is
//! reported with its name and offset and kept as it is: nothing is rebuilt by guessing (what Cyrus
//! calls "recovery2" is known to bring deleted keys back).
//!
//! The format is Cyrus' (3.6 `lib/cyrusdb_twoskip.c`, the same before and since).

mod change;
mod db;
pub mod format;
mod list;
#[cfg(test)]
mod tests;

pub use db::{Db, OpenMode, Txn};
pub use list::{Condition, Fault, List};

use std::io;

/// The file under a [`List`], narrow enough that a test can stop it at any call.
pub trait Disk {
    /// Reads at `at` until `buf` is full or the file ends; how much was read.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `at`.
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Cuts the file, or lets it grow by zeros.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
    /// Waits until the written bytes are on disk.
    fn sync_data(&mut self) -> io::Result<()>;
    /// Waits until the written bytes and the file's length are on disk.
    fn sync_all(&mut self) -> io::Result<()>;
    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}
