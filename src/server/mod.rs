//! Sockets and threads: turns a command into calls on the store.
#![forbid(unsafe_code)]

pub mod acceptor;
pub mod apply;
pub mod auth;
pub mod get;
pub mod held;
pub mod listen;
pub mod session;
pub mod shared;
pub mod stop;
pub mod stream;
pub mod supervisor;
pub mod wanted;
