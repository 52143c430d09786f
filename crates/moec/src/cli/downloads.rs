//! Known data sets: downloaded once into a cache folder, and never used unless their hash is right.
//!
//! `MOEC_CACHE` names another cache folder, `MOEC_DATA_URL` another server with the same paths.

use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::write_whole;
use crate::cli::units::bytes;
use crate::cli::{folders, shell};
use moec_model::{DataSet, Registry};
use moec_runtime::{Corpus, DataError, sha256_hex};
use moec_syntax::did_you_mean;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Seed of the embedded corpus: the same text whatever the seed of a run.
const CORPUS_SEED: u64 = 0;

/// Reads a text, downloads a known one if there is no such file, or generates the embedded one.
pub(crate) fn corpus(data: &str, registry: &Registry, console: &Console) -> Result<Corpus, Failure> {
    let path = Path::new(data);
    match registry.find_data_set(data) {
        _ if data == "synthetic" => Ok(Corpus::synthetic(CORPUS_SEED)),
        Some(data_set) if !path.exists() => {
            let path = fetch(data_set, console)?;
            let content = std::fs::read(&path).map_err(|e| Failure::file("read", &path, &e))?;
            Ok(Corpus::from_bytes(data, content)?)
        }
        _ => Corpus::from_path(path).map_err(|error| {
            let is_missing = matches!(error, DataError::NotFound { .. });
            let failure = Failure::from(error);
            match meant(data, registry).filter(|_| is_missing) {
                Some(near) => failure.help(format!("did you mean {}?", shell::path(Path::new(&near)))),
                None => failure,
            }
        }),
    }
}

/// Whether [`corpus`] would read this text without a network.
pub(crate) fn is_here(data: &str, registry: &Registry) -> bool {
    let data_set = registry.find_data_set(data).filter(|_| !Path::new(data).exists());
    data_set.is_none_or(|data_set| fetched(data_set).is_some())
}

/// A data set that was downloaded before.
fn fetched(data_set: &DataSet) -> Option<Vec<u8>> {
    let content = std::fs::read(file_of(data_set, &folders::data().ok()?)).ok()?;
    is_right(data_set, &content).then_some(content)
}

/// A text that needs no download, if it can be read.
pub(crate) fn at_hand(data: &str, registry: &Registry) -> Option<Corpus> {
    let path = Path::new(data);
    match registry.find_data_set(data) {
        _ if data == "synthetic" => Some(Corpus::synthetic(CORPUS_SEED)),
        Some(data_set) if !path.exists() => Corpus::from_bytes(data, fetched(data_set)?).ok(),
        // A pipe would be empty for who reads it next.
        _ if path.is_file() => Corpus::from_path(path).ok(),
        _ => None,
    }
}

/// What was probably meant by the name of a text that is not there: a known one, or a file beside it.
fn meant(data: &str, registry: &Registry) -> Option<String> {
    let known = std::iter::once("synthetic").chain(registry.data_sets().map(|data_set| data_set.name));
    if let Some(near) = did_you_mean(data, known) {
        return Some(near.to_string());
    }
    let path = Path::new(data);
    let folder = path.parent()?;
    let listed = std::fs::read_dir(if folder.as_os_str().is_empty() { Path::new(".") } else { folder }).ok()?;
    // A folder with more is one of something else.
    let files = listed.take(1000).flatten().filter(|entry| entry.path().is_file());
    let names: Vec<String> = files.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let near = did_you_mean(path.file_name()?.to_str()?, names.iter().map(String::as_str))?;
    Some(folder.join(near).display().to_string())
}

fn file_of(data_set: &DataSet, folder: &Path) -> PathBuf {
    folder.join(format!("{}.txt", data_set.name))
}

/// The file of a data set in the cache, downloaded if it is not there or not what it should be.
///
/// # Errors
/// When it cannot be downloaded, is not what it should be, or cannot be written.
fn fetch(data_set: &DataSet, console: &Console) -> Result<PathBuf, Failure> {
    let base = std::env::var("MOEC_DATA_URL").ok().filter(|url| !url.is_empty());
    fetch_from(data_set, base.as_deref().unwrap_or(data_set.base), &folders::data()?, console)
}

fn fetch_from(data_set: &DataSet, base: &str, folder: &Path, console: &Console) -> Result<PathBuf, Failure> {
    let path = file_of(data_set, folder);
    if let Ok(cached) = std::fs::read(&path) {
        if is_right(data_set, &cached) {
            return Ok(path);
        }
        console.note(format!("{} is damaged and is downloaded again", path.display()));
    }
    let url = format!("{}/{}", base.trim_end_matches('/'), data_set.path);
    console.note(format!("downloading {} ({}) from {url}", data_set.name, bytes(data_set.bytes)));
    let content = download(data_set, &url).map_err(|reason| instead(data_set, &path, &reason))?;
    if !is_right(data_set, &content) {
        let reason = format!(
            "what {url} sent is not it: {} bytes with SHA-256 {}, not {} bytes with {}",
            content.len(),
            sha256_hex(&content),
            data_set.bytes,
            data_set.sha256
        );
        return Err(instead(data_set, &path, &reason));
    }
    std::fs::create_dir_all(folder).map_err(|e| Failure::file("make", folder, &e))?;
    write_whole(&path, &content, None).map_err(|e| Failure::file("write", &path, &e))?;
    Ok(path)
}

/// A failure with what helps whoever has no network.
fn instead(data_set: &DataSet, path: &Path, reason: &str) -> Failure {
    Failure::new(Exit::Data, format!("{} cannot be downloaded: {reason}", data_set.name))
        .help(format!("put the file at {}, or give it with --data FILE", path.display()))
        .help("MOEC_DATA_URL names another server with the same paths; `--data synthetic` needs no download")
}

fn is_right(data_set: &DataSet, content: &[u8]) -> bool {
    content.len() as u64 == data_set.bytes && sha256_hex(content) == data_set.sha256
}

fn download(data_set: &DataSet, url: &str) -> Result<Vec<u8>, String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_global(Some(Duration::from_secs(300)))
        .build()
        .into();
    let mut response = agent.get(url).call().map_err(|e| format!("{url}: {e}"))?;
    let mut content = Vec::new();
    // One byte more than there should be tells a file that is too large.
    let mut body = response.body_mut().as_reader().take(data_set.bytes.saturating_add(1));
    body.read_to_end(&mut content).map_err(|e| format!("{url}: {e}"))?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Color;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const TEXT: &str = "To be, or not to be";

    /// A server that answers `/texts/hamlet.txt` with `content`, and counts its answers.
    fn serve(content: &'static str) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let answers = Arc::new(AtomicUsize::new(0));
        let counted = answers.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = String::new();
                BufReader::new(&stream).read_line(&mut request).unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let found = request.starts_with("GET /texts/hamlet.txt ");
                let (status, body) = if found { ("200 OK", content) } else { ("404 Not Found", "") };
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                stream.write_all((head + body).as_bytes()).unwrap();
            }
        });
        (base, answers)
    }

    fn hamlet(path: &'static str) -> DataSet {
        let sha256 = Box::leak(sha256_hex(TEXT.as_bytes()).into_boxed_str());
        DataSet { name: "hamlet", summary: "", base: "", path, bytes: TEXT.len() as u64, sha256 }
    }

    #[test]
    fn a_text_is_downloaded_once_and_again_when_it_is_damaged() {
        let (base, answers) = serve(TEXT);
        let console = Console::new(Color::Never);
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("not/there/yet");
        let fetch = || fetch_from(&hamlet("texts/hamlet.txt"), &base, &folder, &console);
        let path = fetch().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), TEXT);
        assert_eq!(fetch().unwrap(), path);
        assert_eq!(answers.load(Ordering::SeqCst), 1);
        std::fs::write(&path, "To be").unwrap();
        fetch().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), TEXT);
        assert_eq!(answers.load(Ordering::SeqCst), 2);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "a temporary file was left behind");
    }

    #[test]
    fn anything_else_is_refused_and_not_kept() {
        let console = Console::new(Color::Never);
        let cache = tempfile::tempdir().unwrap();
        for content in ["To be, or not to bE", "To be", "To be, or not to be, that is the question"] {
            let (base, _) = serve(content);
            let failure = fetch_from(&hamlet("texts/hamlet.txt"), &base, cache.path(), &console).unwrap_err();
            assert_eq!(failure.exit(), Exit::Data);
            assert!(failure.to_string().contains("SHA-256"), "{failure}");
        }
        let (base, _) = serve(TEXT);
        let failure = fetch_from(&hamlet("elsewhere.txt"), &base, cache.path(), &console).unwrap_err();
        assert!(failure.to_string().contains("404"), "{failure}");
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    }
}
