//! XXX reader
