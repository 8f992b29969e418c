//! XXX compress
