//! XXX command
