//! XXX backup
