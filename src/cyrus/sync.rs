//! XXX sync
