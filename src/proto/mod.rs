//! The replication conversation over any Read and Write. Never imports the store.
#![forbid(unsafe_code)]

pub mod compress;
pub mod line;
pub mod reply;
pub mod sasl;
pub mod scram;
pub mod verifier;
