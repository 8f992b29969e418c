//! XXX listen
