//! XXX auth
