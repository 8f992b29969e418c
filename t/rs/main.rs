//! Store and server through the library.
mod log;
