//! XXX staging
