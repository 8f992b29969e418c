//! Store and server through the library.
mod imapd_conf;
mod looking;
mod log;
mod store;
mod twoskip;
