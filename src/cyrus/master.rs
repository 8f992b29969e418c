//! XXX master
