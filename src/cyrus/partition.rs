//! XXX partition
