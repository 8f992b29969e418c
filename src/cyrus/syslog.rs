//! XXX syslog
