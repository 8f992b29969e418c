//! The only unsafe code: locks, inherited descriptors, identity, terminal. Decides nothing.
#![allow(unsafe_code)]

pub mod clock;
pub mod fd;
pub mod fs;
pub mod identity;
pub mod lock;
pub mod tty;
