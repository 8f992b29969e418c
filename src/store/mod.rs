//! One backup on disk: lock, log, index, catalogue. Has never heard of a socket.
#![forbid(unsafe_code)]

pub mod ahead;
pub mod backup;
pub mod catalog;
pub mod compact;
pub mod compacted;
pub mod diff;
pub mod doubt;
pub mod erased;
pub mod file;
pub mod former;
pub mod gzip;
pub mod heal;
pub mod history;
pub mod identify;
pub mod index;
pub mod line;
pub mod lock;
pub mod log;
mod manifest;
pub mod moving;
pub mod notes;
pub mod orphan;
pub mod past;
pub mod proven;
pub mod reader;
pub mod recover;
pub mod reindex;
pub mod renaming;
pub mod rescan;
pub mod search;
mod shorter;
pub mod spool;
pub mod staging;
pub mod summary;
mod tail;
pub mod verify;
