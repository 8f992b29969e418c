//! XXX spool
