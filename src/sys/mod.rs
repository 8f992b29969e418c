//! The only unsafe code: locks, inherited descriptors, identity, memory, priority, terminal,
//! children. Decides nothing.
#![allow(unsafe_code)]

pub mod child;
pub mod clock;
pub mod fd;
pub mod fs;
pub mod identity;
pub mod lock;
pub mod memory;
pub mod priority;
pub mod tty;
