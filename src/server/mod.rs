//! Sockets and threads: turns a command into calls on the store.
#![forbid(unsafe_code)]

pub mod acceptor;
pub mod apply;
pub mod auth;
pub mod held;
pub mod shared;
pub mod get;
pub mod listen;
pub mod session;
pub mod stop;
pub mod stream;
pub mod supervisor;
