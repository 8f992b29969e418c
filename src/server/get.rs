//! XXX get
