//! XXX apply
