//! XXX line
