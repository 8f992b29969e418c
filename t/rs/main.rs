//! Store and server through the library.
mod imapd_conf;

mod twoskip;
mod log;
