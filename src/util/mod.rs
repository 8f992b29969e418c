//! Small and total helpers that have never heard of mail.
#![forbid(unsafe_code)]

pub mod hex;
pub mod progress;
pub mod time;
pub mod when;
