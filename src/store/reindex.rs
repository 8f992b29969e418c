//! XXX reindex
