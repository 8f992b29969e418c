//! XXX sasl
