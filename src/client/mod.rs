//! Being a client: a connection to a mail server, log in, and the replication protocol from its
//! other side. Knows nothing of backups.
//!
//! `socket` is TCP or a UNIX socket, `stream` the connection over it (encrypted and compressed if wished), `tls` whom a
//! certificate must be from, `sasl` the client's half
//! of logging in, `csync` the replication protocol on its own port or inside IMAP, `imap` IMAP itself.
//! Everything blocks, up to its deadlines. A connection that fails once is of no more use: drop it, connect again.
#![forbid(unsafe_code)]

pub mod csync;
pub mod imap;
pub mod sasl;
pub mod socket;
pub mod stream;
pub mod tls;

/// Who logs in.
#[derive(Clone)]
pub struct Login {
    /// Whose password it is.
    pub user: String,
    /// The password, byte for byte.
    pub password: Vec<u8>,
    /// Whether the password itself may go over a connection that others can listen to.
    pub allow_plaintext: bool,
}

/// Never shows the password.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}
