//! XXX index
