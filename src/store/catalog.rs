//! XXX catalog
