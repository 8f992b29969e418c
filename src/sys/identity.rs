//! XXX identity
