//! XXX lock
