//! XXX file
