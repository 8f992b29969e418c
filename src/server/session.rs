//! XXX session
