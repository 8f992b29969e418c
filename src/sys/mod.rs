//! The only unsafe code: locks, inherited descriptors, identity. Decides nothing.
#![allow(unsafe_code)]

pub mod fd;
pub mod identity;
pub mod lock;
