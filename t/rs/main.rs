//! Store and server through the library.
mod adopt;
mod compact;
mod compact_odd;
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
mod torn;
mod twoskip;
