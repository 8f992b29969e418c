//! The backup server for Cyrus IMAP. Rooms and who may import whom: `t/00-layers.t`.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod client;
pub mod cmd;
pub mod cyrus;
pub mod error;
pub mod proto;
pub mod restore;
pub mod server;
pub mod store;
pub mod sys;
pub mod util;
