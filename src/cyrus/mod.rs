//! What Cyrus defines whether or not backups exist.
#![forbid(unsafe_code)]

pub mod config;
pub mod dlist;
pub mod encoded;
pub mod guid;
pub mod header;
pub mod master;
pub mod mboxname;
pub mod partition;
pub mod sync;
pub mod syslog;
pub mod twoskip;
pub mod utf7;
