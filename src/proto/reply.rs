//! XXX reply
