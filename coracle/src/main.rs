//! The cluster tool. See the library.

fn main() -> std::process::ExitCode {
    coracle::cli::main()
}
