//! Store and server through the library.
mod adopt;
mod bytes;
mod crash;
mod heal;
mod imapd_conf;
mod integrity;
mod log;
mod looking;
mod past;
mod restore;
mod review;
mod store;
mod sweep;
mod twoskip;
