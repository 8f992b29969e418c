//! The program: all of it is in the library.
fn main() -> std::process::ExitCode {
    cyr_backup::cmd::main()
}
