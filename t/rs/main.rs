//! Store and server through the library.
mod adopt;
mod crash;
mod imapd_conf;
mod log;
mod looking;
mod review;
mod store;
mod twoskip;
