//! Store and server through the library.
mod adopt;
mod imapd_conf;
mod log;
mod looking;
mod store;
mod twoskip;
