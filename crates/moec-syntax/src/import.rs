//! Imports: which files belong to a source, and how their trees become one.
//!
//! Reading is the business of whoever makes the [`SourceFile`]; here paths are joined and circles are found.

use std::collections::{BTreeMap, BTreeSet};

use crate::ast::{File, Import, Imported, Item};
use crate::codes::Code;
use crate::diag::Diagnostic;
use crate::literal::unescape;
use crate::parse::{parse_alone, parse_mended};
use crate::source::{ImportedFile, Imports, SourceFile};
use crate::span::{FileId, Span};
use crate::words::{self, MAX_FAULTS, TokenKind};

/// Most files that a source may import, counting those that they import.
const MAX_IMPORTS: u32 = 64;

impl SourceFile {
    /// Reads the files that this one imports, and those that they import. `read` is given the path of a file from the
    /// folder of this one, with `/` between folders and without detours, and answers with its bytes or with the reason
    /// why it cannot. Nothing fails here: parsing reports what could not be read, at the import.
    #[must_use]
    pub fn with_imports(self, read: impl FnMut(&str) -> Result<Vec<u8>, String>) -> Self {
        let own = own_path(&self);
        self.reading_imports(Some(own), read)
    }

    /// As [`Self::with_imports`], for a copy of a source that lies elsewhere, with copies of what it imports: their
    /// texts by the paths that [`Self::imported`] gave.
    #[must_use]
    pub fn with_kept_imports(self, kept: &BTreeMap<String, String>) -> Self {
        let read = |path: &str| match kept.get(path) {
            Some(text) => Ok(text.clone().into_bytes()),
            None => Err("it was not kept".to_owned()),
        };
        self.reading_imports(None, read)
    }

    /// `own` is the path of the source itself.
    fn reading_imports(mut self, own: Option<String>, mut read: impl FnMut(&str) -> Result<Vec<u8>, String>) -> Self {
        self.imports = Imports { asked: true, own, files: Vec::new() };
        let mut wanted: Vec<String> = paths_in(&self).iter().filter_map(|path| join("", path)).collect();
        wanted.reverse();
        for index in 0..=MAX_IMPORTS {
            let known = |path: &String| self.imports.own.as_ref() == Some(path) || self.import(path).is_some();
            while wanted.last().is_some_and(known) {
                wanted.pop();
            }
            let Some(path) = wanted.pop() else { break };
            let file = if index == MAX_IMPORTS {
                Err(format!("more than {MAX_IMPORTS} files are imported"))
            } else {
                read(&path).and_then(|bytes| {
                    let name = join(folder(self.name()), &path).unwrap_or_else(|| path.clone());
                    let file = SourceFile::from_bytes(name, &bytes).map_err(|fault| fault.message)?;
                    Ok(file.with_id(FileId::import(index)))
                })
            };
            if let Ok(file) = &file {
                wanted.extend(paths_in(file).iter().rev().filter_map(|inner| join(folder(&path), inner)));
            }
            self.imports.files.push(ImportedFile { path, file });
        }
        self
    }

    fn import(&self, path: &str) -> Option<&ImportedFile> {
        self.imports.files.iter().find(|imported| imported.path == path)
    }
}

/// Parses a file and those that it imports, as far as they were read with it (see [`SourceFile::with_imports`]). An
/// empty file is an empty tree.
///
/// # Errors
/// Every syntax error found, at most 20, in source order; where there is none, what is wrong with the imports and in the
/// imported files. Parsing goes on behind an error at the next statement.
pub fn parse(source: &SourceFile) -> Result<File, Vec<Diagnostic>> {
    let mut joined = Joined::new(source, parse_alone);
    match parse_alone(source) {
        Ok(items) => {
            joined.follow(&items, source.imports.own.as_deref().unwrap_or_default());
            if joined.faults.is_empty() {
                return Ok(File { items, imported: joined.items });
            }
        }
        Err(faults) => joined.faults = faults,
    }
    joined.faults.sort_by_key(|fault| fault.span().map(Span::before));
    joined.faults.truncate(MAX_FAULTS);
    Err(joined.faults)
}

/// What can be read of a text that is being written, and of what it imports: statements with faults are left out, and
/// brackets that are missing are taken as closed. The tree says where names are defined and used; it need not mean
/// anything, and nothing is said of the faults, which [`parse`] reports. Spans may end behind the text.
pub fn parse_leniently(source: &SourceFile) -> File {
    let read = |file: &SourceFile| Ok(parse_mended(file));
    let mut joined = Joined::new(source, read);
    let items = parse_mended(source);
    joined.follow(&items, source.imports.own.as_deref().unwrap_or_default());
    File { items, imported: joined.items }
}

/// What the items of one file are, or its faults.
type Read = fn(&SourceFile) -> Result<Vec<Item>, Vec<Diagnostic>>;

struct Joined<'a> {
    source: &'a SourceFile,
    /// How the imported files are read.
    read: Read,
    /// Paths that were followed.
    done: BTreeSet<String>,
    /// Paths that are being followed, outermost first.
    open: Vec<String>,
    /// The import of the source that is being followed.
    import: Span,
    items: Vec<Imported>,
    faults: Vec<Diagnostic>,
}

impl<'a> Joined<'a> {
    fn new(source: &'a SourceFile, read: Read) -> Self {
        Joined {
            source,
            read,
            done: BTreeSet::new(),
            open: Vec::new(),
            import: Span::default(),
            items: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Follows the imports among the items of the file at `path`.
    fn follow(&mut self, items: &[Item], path: &str) {
        self.open.push(path.to_owned());
        let mut seen: Vec<(String, Span)> = Vec::new();
        for item in items {
            let Item::Import(import) = item else { continue };
            let Some(target) = join(folder(path), &import.path) else {
                let fault = Diagnostic::new(Code::CannotImport, "an import names a file");
                let fault = fault.primary(import.path_span, "this names none");
                self.faults
                    .push(fault.help("write the path from the folder of this file, as in `import \"other.moe\"`"));
                continue;
            };
            if let Some((_, first)) = seen.iter().find(|(other, _)| *other == target) {
                let message = format!("`{}` is imported twice", import.path);
                let fault = Diagnostic::new(Code::ImportedTwice, message)
                    .primary(import.path_span, "imported again here")
                    .secondary(*first, "first imported here");
                self.faults.push(fault.patch(import.span, "", "remove the second import"));
                continue;
            }
            seen.push((target.clone(), import.path_span));
            if self.open.len() == 1 {
                self.import = import.path_span;
            }
            if let Some(at) = self.open.iter().position(|open| *open == target) {
                self.circle(import, at);
            } else if self.done.insert(target.clone()) {
                self.enter(import, &target);
            }
        }
        self.open.pop();
    }

    /// Takes over what the file at `path` defines.
    fn enter(&mut self, import: &Import, path: &str) {
        let file = match self.source.import(path) {
            Some(ImportedFile { file: Ok(file), .. }) => file,
            Some(ImportedFile { file: Err(reason), .. }) => {
                let message = format!("`{}` cannot be imported: {reason}", import.path);
                let fault = Diagnostic::new(Code::CannotImport, message).primary(import.path_span, "imported here");
                let place = join(folder(self.source.name()), path).unwrap_or_else(|| path.to_owned());
                let in_library = path.starts_with(LIBRARY_FOLDER);
                self.faults.push(if in_library { fault } else { fault.note(format!("looked for at `{place}`")) });
                return;
            }
            None => {
                let message = format!("`{}` cannot be imported here", import.path);
                let fault = Diagnostic::new(Code::CannotImport, message).primary(import.path_span, "imported here");
                let fault = if self.source.imports.asked {
                    fault.note(format!("more than {MAX_IMPORTS} files are imported"))
                } else {
                    fault.note("this text stands alone: no other files are read with it")
                };
                self.faults.push(fault);
                return;
            }
        };
        match (self.read)(file) {
            Ok(items) => {
                self.follow(&items, path);
                let brought = |item: &Item| matches!(item, Item::Model(_) | Item::Block(_) | Item::Router(_));
                let import = self.import;
                self.items.extend(items.into_iter().filter(brought).map(|item| Imported { item, import }));
            }
            Err(faults) => self.faults.extend(faults),
        }
    }

    fn circle(&mut self, import: &Import, at: usize) {
        let fault = Diagnostic::new(Code::ImportCircle, "files import each other in a circle");
        let fault = match self.open[at..].split_last() {
            Some((_, [])) => fault.primary(import.path_span, "this file imports itself"),
            _ => {
                let circle: Vec<String> =
                    self.open[at..].iter().chain(self.open.get(at)).map(|p| format!("`{p}`")).collect();
                fault.primary(import.path_span, "this closes the circle").note(circle.join(" imports "))
            }
        };
        self.faults.push(fault.help("move what both need into a file of its own, and import that from both"));
    }
}

/// The paths that a text imports, as written. The text need not be free of faults.
fn paths_in(source: &SourceFile) -> Vec<String> {
    let tokens = words::read(source, 0).tokens;
    let path = |pair: &[words::Token]| {
        let [keyword, path] = pair else { return None };
        let imports = keyword.parent.is_none() && source.slice(keyword.span) == "import";
        if imports && path.kind == TokenKind::String { unescape(source.slice(path.span)) } else { None }
    };
    tokens.windows(2).filter_map(path).collect()
}

/// The path of a source from its own folder: its name without folders.
fn own_path(source: &SourceFile) -> String {
    source.name().rsplit(['/', '\\']).next().unwrap_or("").to_owned()
}

/// The folder of a path, with the `/` at its end; empty for a path without folders.
fn folder(path: &str) -> &str {
    path.rfind('/').map_or("", |i| &path[..=i])
}

/// The folder of the library: its files are named so wherever the importing file lies, and no folder of that name is
/// looked into.
pub const LIBRARY_FOLDER: &str = "std/";

/// `path` as seen from `folder`, without `.` and `..` where that can be known from the text. `None` if it names no file.
fn join(folder: &str, path: &str) -> Option<String> {
    let last = path.rsplit('/').next().unwrap_or("");
    if matches!(last, "" | "." | "..") || path.contains('\0') {
        return None;
    }
    // The library is nowhere on the disk.
    let folder = if path.starts_with(LIBRARY_FOLDER) { "" } else { folder };
    let (root, whole) = match path.strip_prefix('/') {
        Some(path) => ("/", path.to_owned()),
        None => (if folder.starts_with('/') { "/" } else { "" }, format!("{folder}{path}")),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            // Above the root there is nothing.
            ".." if root == "/" => {}
            part => parts.push(part),
        }
    }
    Some(format!("{root}{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_without_detours() {
        let cases = [
            ("", "a.moe", Some("a.moe")),
            ("specs/", "a.moe", Some("specs/a.moe")),
            ("specs/", "../b/a.moe", Some("b/a.moe")),
            ("specs/", "../../a.moe", Some("../a.moe")),
            ("../", "../a.moe", Some("../../a.moe")),
            ("specs/", "./x//y/../a.moe", Some("specs/x/a.moe")),
            ("specs/", "/lib/a.moe", Some("/lib/a.moe")),
            ("specs/", "std/a.moe", Some("std/a.moe")),
            ("/specs/", "std/a.moe", Some("std/a.moe")),
            ("specs/", "./std/a.moe", Some("specs/std/a.moe")),
            ("/lib/", "../../a.moe", Some("/a.moe")),
            ("", "", None),
            ("", "..", None),
            ("specs/", "a/", None),
        ];
        for (folder, path, expected) in cases {
            assert_eq!(join(folder, path).as_deref(), expected, "{folder} {path}");
        }
        assert_eq!([folder("a/b.moe"), folder("b.moe"), folder("/b.moe")], ["a/", "", "/"]);
    }

    fn source(main: &str, others: &[(&str, &str)]) -> SourceFile {
        let files: BTreeMap<&str, &str> = others.iter().copied().collect();
        let read = |path: &str| match files.get(path) {
            Some(text) => Ok(text.as_bytes().to_vec()),
            None => Err("there is no such file".to_owned()),
        };
        SourceFile::new("specs/main.moe", main).with_imports(read)
    }

    fn faults(main: &str, others: &[(&str, &str)]) -> Vec<String> {
        let source = source(main, others);
        parse(&source).err().unwrap_or_default().iter().map(|fault| fault.render_short(&source)).collect()
    }

    #[test]
    fn what_is_imported_comes_along_with_spans_of_its_own() {
        let main = "import \"lib/a.moe\"\nblock own { relu }\n";
        let a = "import \"b.moe\"\nimport \"../c.moe\"\nblock a { gelu }\ntrain { steps 3 }";
        let b = "import \"../c.moe\"\nblock b { silu }";
        let source = source(main, &[("lib/a.moe", a), ("lib/b.moe", b), ("c.moe", "block c { relu }")]);
        let file = parse(&source).unwrap();
        assert_eq!(file.items.len(), 2);
        let texts: Vec<&str> = file.imported.iter().map(|brought| source.slice(brought.item.span())).collect();
        let imports: Vec<Span> = file.imported.iter().map(|brought| brought.import).collect();
        // Each file once, what it needs before it; its recipe stays behind.
        assert_eq!(texts, ["block c { relu }", "block b { silu }", "block a { gelu }"]);
        let span = file.imported[1].item.span();
        assert_eq!((source.file(span.file()).name(), span.start()), ("specs/lib/b.moe", 18));
        assert!(imports.iter().all(|import| source.slice(*import) == "\"lib/a.moe\""));
        assert_eq!(source.imported().map(|(path, _)| path).collect::<Vec<_>>(), ["lib/a.moe", "lib/b.moe", "c.moe"]);
    }

    #[test]
    fn faults_of_imports_point_at_the_import_and_faults_inside_at_the_file() {
        assert_eq!(
            faults("import \"no.moe\"", &[]),
            ["specs/main.moe:1:8: error[E0119]: `no.moe` cannot be imported: there is no such file"]
        );
        assert_eq!(
            faults("import \"a.moe\"\nimport \"./a.moe\"", &[("a.moe", "")]),
            ["specs/main.moe:2:8: error[E0121]: `./a.moe` is imported twice"]
        );
        let circle = "files import each other in a circle";
        assert_eq!(
            faults("import \"a.moe\"", &[("a.moe", "\n import \"main.moe\"")]),
            [format!("specs/a.moe:2:9: error[E0120]: {circle}")]
        );
        assert_eq!(faults("import \"main.moe\"", &[]), [format!("specs/main.moe:1:8: error[E0120]: {circle}")]);
        assert_eq!(
            faults("import \"a.moe\"", &[("a.moe", "block b {\n  mlp(hidden 4)\n}")]),
            ["specs/a.moe:2:13: error[E0106]: arguments are written `name: value`"]
        );
        assert_eq!(faults("import \"a/\"", &[]), ["specs/main.moe:1:8: error[E0119]: an import names a file"]);
        let alone = SourceFile::new("a.moe", "import \"b.moe\"");
        assert_eq!(parse(&alone).unwrap_err()[0].message, "`b.moe` cannot be imported here");
    }

    #[test]
    fn a_copy_is_read_from_copies() {
        let original =
            source("import \"spec.moe\"", &[("spec.moe", "import \"b.moe\""), ("b.moe", "block b { relu }")]);
        let kept = original.imported().map(|(path, file)| (path.to_owned(), file.text().to_owned())).collect();
        // Under this name the import would be the file itself.
        let copy = SourceFile::new("run/spec.moe", original.text()).with_kept_imports(&kept);
        assert_eq!(parse(&copy).unwrap(), parse(&original).unwrap());
        let lost = SourceFile::new("run/spec.moe", original.text()).with_kept_imports(&BTreeMap::new());
        assert_eq!(parse(&lost).unwrap_err()[0].code, Code::CannotImport);
    }

    #[test]
    fn the_number_of_files_is_bounded() {
        // A file that names two more, without end.
        let mut asked = 0;
        let source = SourceFile::new("main.moe", "import \"0.moe\"").with_imports(|_| {
            asked += 1;
            Ok(format!("import \"{}.moe\"\nimport \"{}.moe\"", 2 * asked, 2 * asked + 1).into_bytes())
        });
        let faults = parse(&source).unwrap_err();
        assert_eq!(asked, MAX_IMPORTS as usize);
        assert!(faults.iter().all(|fault| fault.code == Code::CannotImport));
    }
}
