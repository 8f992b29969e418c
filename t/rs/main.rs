//! Store and server through the library.
