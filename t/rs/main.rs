//! Store and server through the library.
mod adopt;
mod bytes;
mod compact;
mod crash;
mod heal;
mod history;
mod imapd_conf;
mod integrity;
mod keep;
mod log;
mod looking;
mod past;
mod restore;
mod review;
mod store;
mod sweep;
mod twoskip;
