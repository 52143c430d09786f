//! The texts that the editor holds, and the files beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::PathBuf;
use std::rc::Rc;

use gen_lsp_types::Uri;
use moec_model::Registry;
use moec_syntax::{MAX_SOURCE_BYTES, SourceFile};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::analysis::Analysis;
use crate::text::Text;

/// What the editor holds, by the address that it gave.
#[derive(Default)]
pub(crate) struct Documents {
    open: BTreeMap<String, Document>,
}

struct Document {
    version: i32,
    text: Rc<Text>,
    /// What is known about it; gone where its text or a file that it imports has changed.
    analysis: Option<Rc<Analysis>>,
    /// Whether the editor has not yet been told of its faults.
    untold: bool,
}

impl Documents {
    /// Takes over a text.
    pub(crate) fn put(&mut self, uri: &Uri, version: i32, text: Text) {
        let document = Document { version, text: Rc::new(text), analysis: None, untold: true };
        self.open.insert(uri.0.clone(), document);
        self.changed(uri);
    }

    pub(crate) fn remove(&mut self, uri: &Uri) {
        self.open.remove(&uri.0);
        self.changed(uri);
    }

    pub(crate) fn text(&self, uri: &Uri) -> Option<Rc<Text>> {
        self.open.get(&uri.0).map(|document| document.text.clone())
    }

    /// Forgets what was known with the former text of a file.
    pub(crate) fn changed(&mut self, uri: &Uri) {
        let Some(path) = path_of(uri) else { return };
        for document in self.open.values_mut() {
            if document.analysis.as_ref().is_some_and(|known| known.asked.contains(&path)) {
                document.analysis = None;
                document.untold = true;
            }
        }
    }

    /// The documents whose faults are still to be told, with their versions; from now on they are told.
    pub(crate) fn take_untold(&mut self) -> Vec<(Uri, i32)> {
        let mut untold = Vec::new();
        for (uri, document) in &mut self.open {
            if std::mem::take(&mut document.untold) {
                untold.push((Uri(uri.clone()), document.version));
            }
        }
        untold
    }

    pub(crate) fn has_untold(&self) -> bool {
        self.open.values().any(|document| document.untold)
    }

    /// Everything that is known about an open document.
    pub(crate) fn analysis(&mut self, uri: &Uri, registry: &Registry) -> Option<Rc<Analysis>> {
        let document = self.open.get(&uri.0)?;
        if let Some(known) = &document.analysis {
            return Some(known.clone());
        }
        let text = document.text.clone();
        let (source, asked) = self.source(uri, text.content());
        let analysis = Rc::new(Analysis::new(uri.clone(), text, source, asked, registry));
        self.open.get_mut(&uri.0)?.analysis = Some(analysis.clone());
        Some(analysis)
    }

    /// What is known about every open document.
    pub(crate) fn analyses(&mut self, registry: &Registry) -> Vec<Rc<Analysis>> {
        let uris: Vec<Uri> = self.open.keys().map(|uri| Uri(uri.clone())).collect();
        uris.iter().filter_map(|uri| self.analysis(uri, registry)).collect()
    }

    /// A text with those that it imports, and where these were looked for.
    fn source(&self, uri: &Uri, content: &str) -> (SourceFile, BTreeSet<String>) {
        let mut asked = BTreeSet::new();
        let Some(path) = path_of(uri) else {
            // A buffer that has no file yet has no folder to import from.
            let name = uri.0.rsplit(['/', ':']).next().unwrap_or_default();
            return (SourceFile::new(name, content), asked);
        };
        let folder = path.rfind('/').map_or(String::new(), |at| path[..=at].to_owned());
        let source = SourceFile::new(path, content).with_imports(|import| {
            if let Some(found) = moec_model::library::read(import) {
                return found;
            }
            let path = if is_absolute(import) { import.to_owned() } else { plain(&format!("{folder}{import}")) };
            asked.insert(path.clone());
            self.read(&path)
        });
        (source, asked)
    }

    /// The bytes of a file: those in the editor, if it is open there.
    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        if let Some(document) = self.at(path) {
            return Ok(document.1.text.content().as_bytes().to_vec());
        }
        let mut bytes = Vec::new();
        // A pipe or a device would hold up the session, or take what the editor says.
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            return Err("it is no file".to_owned());
        }
        let file = std::fs::File::open(PathBuf::from(path));
        let read = file.and_then(|file| file.take(MAX_SOURCE_BYTES as u64 + 1).read_to_end(&mut bytes));
        read.map(|_| bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            _ => error.to_string(),
        })
    }

    fn at(&self, path: &str) -> Option<(&String, &Document)> {
        self.open.iter().find(|(uri, _)| path_of(&Uri((*uri).clone())).as_deref() == Some(path))
    }

    /// The address of a file, as the editor writes it if it is open there.
    pub(crate) fn uri(&self, path: &str) -> Uri {
        self.at(path).map_or_else(|| uri_of(path), |(uri, _)| Uri(uri.clone()))
    }
}

/// What stays as it is in the path of an address.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The path of a file, with `/` between folders and without detours; `None` for what is no file.
pub(crate) fn path_of(uri: &Uri) -> Option<String> {
    let rest = uri.0.strip_prefix("file://")?;
    // A host stands before the path on Windows alone.
    let (host, path) = rest.split_at(rest.find('/')?);
    let path = percent_decode_str(path).decode_utf8().ok()?;
    let has_drive = path.as_bytes().get(2) == Some(&b':');
    let host = if host.is_empty() || host == "localhost" { String::new() } else { format!("//{host}") };
    Some(plain(&format!("{host}{}", if has_drive { &path[1..] } else { &path })))
}

/// The address of a file.
fn uri_of(path: &str) -> Uri {
    let root = if path.starts_with('/') { "" } else { "/" };
    Uri(format!("file://{root}{}", utf8_percent_encode(path, PATH)))
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/') || path.as_bytes().get(1) == Some(&b':')
}

/// A path without `.` and `..`.
fn plain(path: &str) -> String {
    let root = if path.starts_with("//") {
        "//"
    } else if path.starts_with('/') {
        "/"
    } else {
        ""
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("{root}{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_and_back() {
        for (uri, path) in [
            ("file:///a/b.moe", "/a/b.moe"),
            ("file:///a%20b/%C3%B1.moe", "/a b/ñ.moe"),
            ("file://localhost/a/./c/../b.moe", "/a/b.moe"),
            ("file:///c%3A/x/b.moe", "c:/x/b.moe"),
        ] {
            assert_eq!(path_of(&Uri(uri.into())).as_deref(), Some(path));
        }
        assert_eq!(path_of(&Uri("untitled:Untitled-1".into())), None);
        assert_eq!(uri_of("/a b/ñ.moe").0, "file:///a%20b/%C3%B1.moe");
        assert_eq!(uri_of("c:/x.moe").0, "file:///c%3A/x.moe");
    }

    #[test]
    fn what_is_not_saved_is_imported() {
        let (main, lib) = (Uri("file:///no/main.moe".into()), Uri("file:///no/lib/a.moe".into()));
        let registry = Registry::with_builtins();
        let mut documents = Documents::default();
        documents.put(&main, 1, Text::new("import \"lib/a.moe\""));
        let codes = |documents: &mut Documents| {
            let known = documents.analysis(&main, &registry).unwrap();
            known.diagnostics.iter().map(|found| found.code.number().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(codes(&mut documents), ["E0119"]);
        documents.take_untold();
        documents.put(&lib, 1, Text::new("block b { relu }"));
        assert_eq!(documents.take_untold().len(), 2, "the importer is told, too");
        assert_ne!(codes(&mut documents), ["E0119"]);
        documents.remove(&lib);
        assert_eq!(codes(&mut documents), ["E0119"]);
    }
}
