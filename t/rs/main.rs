//! Store and server through the library.
mod heal;
mod imapd_conf;
mod integrity;
mod log;
mod looking;
mod store;
mod twoskip;
