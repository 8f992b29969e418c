//! XXX supervisor
