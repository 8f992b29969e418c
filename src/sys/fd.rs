//! XXX fd
