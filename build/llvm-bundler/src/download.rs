//! Fetching a prebuilt LLVM, checking it, and unpacking it so that a half-finished copy is never seen.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::llvm_config::{self, run};

/// Where a prebuilt LLVM can be fetched from.
pub struct Source {
    /// What it is, in words.
    pub title: &'static str,
    /// Names the folder that it is unpacked to, with the platform appended.
    name: &'static str,
    /// Fetches and unpacks into an empty folder, and returns the prefix inside.
    unpack: fn(&Path) -> Result<PathBuf, String>,
}

/// In the order in which they are tried: first what CubeCL's authors test with.
pub const SOURCES: [&Source; 2] = [
    &Source { title: "the archive of tracel-llvm 23.1.0-4", name: ARCHIVE_FOLDER, unpack: archive },
    &Source { title: "the wheel mlc-llvm-static 23.1.1.post0", name: "mlc-llvm-static-23.1.1.post0", unpack: wheel },
];

/// The archive's one folder, which is also the name that the registry crate installs it under.
pub const ARCHIVE_FOLDER: &str = "tracel-llvm-23.1.0-4";

const ARCHIVE_URL: &str = "https://github.com/tracel-ai/tracel-llvm/releases/download/v23.1.0-4";

/// The requirement as pip reads it.
pub const WHEEL: &str = "mlc-llvm-static==23.1.1.post0";

/// SHA-256 of the wheel for each platform that has one, as the package index lists them.
const WHEEL_SHA256: [(&str, &str); 5] = [
    ("manylinux_2_28_x86_64", "dcfec888abfaa418be77d41af585805f31463584cf9c90582992c00f392c1ac5"),
    ("manylinux_2_28_aarch64", "3d4b1b30cea531ffa5956fa14ff4ffb0b1ed61284bf31eac3ebb752fb308b71d"),
    ("macosx_14_0_arm64", "2e32382ecef182b040d217d663d10ecb6f994b50b7066381063811e766354102"),
    ("win_amd64", "ef7745da82cf41dd68e0c9f0e323cec6ebdd7f32a92c25fc234753b3ec74cf94"),
    ("win_arm64", "5ca47ea88fec3742df6e075daa16e3fe08aefe32bc76f3e9c494c2c67e15e077"),
];

impl Source {
    /// The folder's name. A cache may be shared by machines of several kinds.
    pub fn folder(&self) -> String {
        format!("{}-{}-{}", self.name, std::env::consts::OS, std::env::consts::ARCH)
    }
}

/// Fetches `source` into `store` and returns the prefix. Where several processes do so at once, one fetches and the
/// others wait for it.
pub fn install(source: &Source, store: &Path, check: &dyn Fn(&Path) -> Result<(), String>) -> Result<PathBuf, String> {
    let describe = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let prefix = store.join(source.folder());
    fs::create_dir_all(store).map_err(|error| describe(store, error))?;
    let lock_path = store.join(format!("{}.lock", source.folder()));
    let lock = File::create(&lock_path).map_err(|error| describe(&lock_path, error))?;
    // Some network file systems have no locks. Then two processes fetch at once, and the rename still decides.
    let _ = lock.lock();
    if check(&prefix).is_ok() {
        return Ok(prefix);
    }

    let staging = Staging(store.join(format!("{}.{}", source.folder(), std::process::id())));
    let _ = fs::remove_dir_all(&staging.0); // of a process that had our number and was killed
    fs::create_dir_all(&staging.0).map_err(|error| describe(&staging.0, error))?;
    let unpacked = (source.unpack)(&staging.0)?;
    let program = llvm_config::program(&unpacked);
    backdate(&program).map_err(|error| describe(&program, error))?;
    check(&unpacked).map_err(|why| format!("was fetched, but {why}"))?;
    let _ = fs::remove_dir_all(&prefix); // it did not pass the check above
    match fs::rename(&unpacked, &prefix) {
        Err(error) if check(&prefix).is_err() => Err(describe(&prefix, error)),
        _ => Ok(prefix),
    }
}

/// A folder that is removed at the end, whatever the end is.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes a file old. Cargo watches `llvm-config` to notice that LLVM is gone, and would take one that is younger than
/// the start of this build script for changed: the next build would compile everything above LLVM again.
fn backdate(path: &Path) -> io::Result<()> {
    let year_2020 = SystemTime::UNIX_EPOCH + Duration::from_secs(1_577_836_800);
    File::options().append(true).open(path)?.set_modified(year_2020)
}

/// The registry crate's archive. Its digest is published beside it; no copy of ours is pinned.
fn archive(staging: &Path) -> Result<PathBuf, String> {
    let os = match std::env::consts::OS {
        system @ ("linux" | "macos" | "windows") => system,
        other => return Err(format!("there is none for {other}")),
    };
    let arch = match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "AArch64",
        other => return Err(format!("there is none for {other}")),
    };
    // A machine that cannot reach the host must find out in seconds; a slow but moving transfer may take its time.
    let digests = run(curl().args(["--max-time", "15"]).arg(format!("{ARCHIVE_URL}/{os}-{arch}.checksums.json")))?;
    let expected = json_text(&digests, "archive_sha256").ok_or("its list of digests has no archive_sha256")?;
    let file = staging.join("llvm.tar.xz");
    let stall = ["--speed-limit", "20000", "--speed-time", "20", "--output"];
    run(curl().args(stall).arg(&file).arg(format!("{ARCHIVE_URL}/{os}-{arch}.tar.xz")))?;
    require_sha256(&file, &[expected])?;
    let tar = run(Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(staging));
    // A `tar` without xz is common; Python's own can usually read it.
    tar.or_else(|why| {
        let python = llvm_config::python().map_err(|_| why)?;
        run(Command::new(python).args(["-m", "tarfile", "-e"]).arg(&file).arg(staging))
    })?;
    Ok(staging.join(ARCHIVE_FOLDER))
}

fn curl() -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--fail", "--silent", "--show-error", "--location", "--proto", "=https", "--connect-timeout", "5"]);
    curl
}

/// The wheel, fetched by pip, which knows the user's package index, proxy and certificates.
fn wheel(staging: &Path) -> Result<PathBuf, String> {
    let python = llvm_config::python()?;
    run(Command::new(python).args(["-m", "pip", "--version"]))?;
    let requirements = staging.join("requirements.txt");
    let digests: String = WHEEL_SHA256.iter().map(|(_, digest)| format!(" --hash=sha256:{digest}")).collect();
    fs::write(&requirements, format!("{WHEEL}{digests}\n"))
        .map_err(|error| format!("{}: {error}", requirements.display()))?;
    run(Command::new(python)
        .args(["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir"])
        // By default it would try five times, for minutes, where there is no network.
        .args(["--retries", "1"])
        // The wheel holds no module to import, so that its demand for a recent Python does not matter.
        .args(["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--require-hashes"])
        .arg("--requirement")
        .arg(&requirements)
        .arg("--dest")
        .arg(staging)
        .env("PIP_REQUIRE_VIRTUALENV", "0"))?;
    let file = fs::read_dir(staging)
        .and_then(|entries| entries.collect::<io::Result<Vec<_>>>())
        .map_err(|error| format!("{}: {error}", staging.display()))?
        .into_iter()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or("pip reported success and left no wheel")?;
    require_sha256(&file, &WHEEL_SHA256.map(|(_, digest)| digest))?;
    run(Command::new(python).args(["-m", "zipfile", "-e"]).arg(&file).arg(staging))?;
    let prefix = staging.join("mlc_llvm_static").join("static");
    set_run_bit(&prefix.join("bin").join("llvm-config"))?;
    Ok(prefix)
}

/// Python's zip reader drops the permissions.
#[cfg(unix)]
fn set_run_bit(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(not(unix))]
fn set_run_bit(_: &Path) -> Result<(), String> {
    Ok(())
}

/// Fails unless the file has one of the digests.
fn require_sha256(path: &Path, allowed: &[&str]) -> Result<(), String> {
    let found = sha256(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if allowed.contains(&found.as_str()) {
        return Ok(());
    }
    Err(format!("has SHA-256 {found}, which is not one of: {}", allowed.join(", ")))
}

/// The digest of a file in lower-case hexadecimal.
fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => break,
            read => digest.update(&block[..read]),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The text under `key` in a flat JSON object of plain texts, which is all that a list of digests is.
fn json_text<'a>(json: &'a str, key: &str) -> Option<&'a str> {
    let after = json.split_once(&format!("\"{key}\""))?.1;
    let value = after.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    Some(value.split_once('"')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("moec-llvm-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn present(prefix: &Path) -> Result<(), String> {
        if llvm_config::program(prefix).is_file() { Ok(()) } else { Err("it is empty".into()) }
    }

    fn fake(staging: &Path) -> Result<PathBuf, String> {
        let prefix = staging.join("inner");
        fs::create_dir_all(prefix.join("bin")).unwrap();
        fs::write(llvm_config::program(&prefix), "").unwrap();
        Ok(prefix)
    }

    #[test]
    fn digests_are_read_from_json() {
        let json = "{\n  \"archive_sha256\" : \"abc\",\"content_sha256\":\"def\"}";
        assert_eq!(json_text(json, "archive_sha256"), Some("abc"));
        assert_eq!(json_text(json, "content_sha256"), Some("def"));
        assert_eq!(json_text(json, "sha256"), None);
        assert_eq!(json_text("{\"archive_sha256\": 3}", "archive_sha256"), None);
    }

    #[test]
    fn a_file_must_have_an_allowed_digest() {
        let folder = folder("digest");
        let file = folder.join("abc");
        fs::write(&file, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(require_sha256(&file, &["00", digest]), Ok(()));
        assert!(require_sha256(&file, &["00"]).unwrap_err().contains(digest));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn pinned_digests_are_digests() {
        for (platform, digest) in WHEEL_SHA256 {
            assert!(digest.len() == 64 && digest.bytes().all(|byte| b"0123456789abcdef".contains(&byte)), "{platform}");
        }
    }

    #[test]
    fn an_installation_appears_whole_and_old() {
        let store = folder("install");
        let source = Source { title: "a test", name: "test", unpack: fake };
        let prefix = install(&source, &store, &present).unwrap();
        let modified = fs::metadata(llvm_config::program(&prefix)).unwrap().modified().unwrap();
        assert!(modified < SystemTime::now() - Duration::from_secs(86_400));
        // A second time nothing is fetched.
        let source = Source { title: "a test", name: "test", unpack: |_| Err("fetched again".into()) };
        assert_eq!(install(&source, &store, &present), Ok(prefix));
        fs::remove_dir_all(store).unwrap();
    }

    #[test]
    fn a_failed_installation_leaves_nothing_but_its_lock() {
        let store = folder("failure");
        let source = Source { title: "a test", name: "test", unpack: |_| Err("no network".into()) };
        assert_eq!(install(&source, &store, &present), Err("no network".into()));
        let left: Vec<_> = fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [format!("{}.lock", source.folder()).as_str()]);
        fs::remove_dir_all(store).unwrap();
    }

    #[test]
    fn several_at_once_agree() {
        let store = folder("race");
        let source = Source { title: "a test", name: "test", unpack: fake };
        std::thread::scope(|scope| {
            let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| install(&source, &store, &present))).collect();
            for run in runs {
                assert_eq!(run.join().unwrap(), Ok(store.join(source.folder())));
            }
        });
        fs::remove_dir_all(store).unwrap();
    }
}
