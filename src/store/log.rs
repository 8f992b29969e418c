//! XXX log
