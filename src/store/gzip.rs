//! XXX gzip
