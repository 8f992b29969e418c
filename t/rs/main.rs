//! Store and server through the library.
mod adopt;
mod compact;
mod crash;
mod heal;
mod history;
mod imapd_conf;
mod integrity;
mod log;
mod looking;
mod restore;
mod review;
mod store;
mod twoskip;
