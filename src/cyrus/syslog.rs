//! XXX

/// The syslog facilities of Cyrus' `syslog_facility`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Facility {
    /// Random user-level messages.
    User,
    /// Mail, the usual one.
    Mail,
    /// Daemons without a facility of their own.
    Daemon,
    /// News.
    News,
    /// LOCAL0 to LOCAL7, by number.
    Local(u8),
}

impl Facility {
    /// The facility of that name, in any case.
    pub fn from_name(name: &str) -> Option<Facility> {
        let name = name.to_ascii_uppercase();
        Some(match name.as_str() {
            "USER" => Facility::User,
            "MAIL" => Facility::Mail,
            "DAEMON" => Facility::Daemon,
            "NEWS" => Facility::News,
            _ => match name.strip_prefix("LOCAL")?.as_bytes() {
                [d @ b'0'..=b'7'] => Facility::Local(d - b'0'),
                _ => return None,
            },
        })
    }
}
