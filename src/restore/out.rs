//! Opens the way out that `--to` names.

use super::Destination;
use super::target::Target;
use crate::client::Login;
use crate::client::csync::Timeouts;
use crate::client::imap::Imap;
use crate::cyrus::mboxname::Namespace;
use crate::error::{Error, Kind, Result};

/// What a destination may need to know.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Who logs in at a server.
    pub login: Option<Login>,
    /// How long a server may take.
    pub timeouts: Timeouts,
    /// How names are read and shown.
    pub namespace: Namespace,
}

/// Opens a destination. A server is connected to and logged in at; of files nothing is made before
/// the first folder comes. Each call is a connection of its own.
pub fn open(target: &Target, setting: &Setting) -> Result<Box<dyn Destination>> {
    if let Target::Imap(address) = target {
        let imap = Imap::connect(address, setting.login.as_ref(), "", setting.timeouts)?;
        let why = match imap.has("X-REPLICATION") {
            true => "restoring over replication is not in this version",
            false => "restoring over APPEND is not in this version",
        };
        return Err(Error::new(Kind::Config, why).place(target.to_string()));
    }
    let why = "restoring to there is not in this version";
    Err(Error::new(Kind::Config, why).place(target.to_string()))
}
