//! Asking an LLVM installation about itself through its `llvm-config`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The `llvm-config` of an installation: a program, or, in the wheel, a Python script of that name beside the program.
pub fn program(prefix: &Path) -> PathBuf {
    let bin = prefix.join("bin");
    let script = bin.join("llvm-config.py");
    if script.is_file() { script } else { bin.join(format!("llvm-config{}", std::env::consts::EXE_SUFFIX)) }
}

/// What `llvm-config` of the installation at `prefix` answers, without surrounding white space.
pub fn query(prefix: &Path, arguments: &[&str]) -> Result<String, String> {
    let program = program(prefix);
    let mut command = if program.extension().is_some_and(|extension| extension == "py") {
        let mut python = Command::new(python()?);
        python.arg(&program);
        python
    } else {
        Command::new(&program)
    };
    // The wheel's script would otherwise follow these to another installation.
    command.env_remove("MLC_LLVM_STATIC_SDK_PREFIX").env_remove("MLC_LLVM_STATIC_PROFILE");
    run(command.args(arguments))
}

/// The name under which Python 3 can be started.
pub fn python() -> Result<&'static str, String> {
    let names: [&'static str; 2] = if cfg!(windows) { ["python", "python3"] } else { ["python3", "python"] };
    // Starting it, not only finding it: on Windows the name may be a stub that opens a shop.
    let works = |name: &&str| run(Command::new(name).arg("--version")).is_ok_and(|answer| answer.contains("Python 3"));
    names.into_iter().find(works).ok_or_else(|| "no Python 3 on PATH".into())
}

/// Runs a command to its end and returns its standard output, trimmed. The error is one line: the program and the end
/// of what it wrote to standard error.
pub fn run(command: &mut Command) -> Result<String, String> {
    let name = Path::new(command.get_program()).display().to_string();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_string());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing");
    Err(format!("{name} ended with {}: {last}", output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_an_error_with_its_name() {
        let error = run(&mut Command::new("moec-no-such-program")).unwrap_err();
        assert!(error.starts_with("moec-no-such-program: "), "{error}");
    }

    #[test]
    fn the_script_is_preferred_to_the_program() {
        let folder = std::env::temp_dir().join(format!("moec-llvm-config-{}", std::process::id()));
        let bin = folder.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        assert_eq!(program(&folder).file_stem().unwrap(), "llvm-config");
        std::fs::write(bin.join("llvm-config.py"), "").unwrap();
        assert_eq!(program(&folder), bin.join("llvm-config.py"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
