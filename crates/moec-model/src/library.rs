//! The library: routers written in the language that come with the program, for `import "std/NAME.moe"`.

use std::sync::Arc;

use moec_ir::Invariant;
use moec_syntax::{LIBRARY_FOLDER, SourceFile, parse};

use crate::registry::Registry;
use crate::router::RoutingStrategy;
use crate::router_language;
use crate::words::listed;

/// A file of the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LibraryFile {
    /// What an import calls it.
    pub path: &'static str,
    /// What is in it.
    pub text: &'static str,
}

macro_rules! files {
    ($($name:literal),+ $(,)?) => {
        &[$(LibraryFile {
            path: concat!("std/", $name, ".moe"),
            text: include_str!(concat!("library/", $name, ".moe")),
        }),+]
    };
}

/// Every file of the library.
pub const LIBRARY: &[LibraryFile] = files![
    "top_p",
    "relu_router",
    "expert_threshold",
    "quantile_balancing",
    "sqrt_softplus",
    "cosine",
    "sinkhorn",
    "sequence_choice",
    "similarity",
    "forced",
];

/// The bytes of an import that names a file of the library; `None` for one that names another file.
///
/// # Errors
/// When the library has no such file, as the reason why it cannot be imported.
pub fn read(path: &str) -> Option<Result<Vec<u8>, String>> {
    path.strip_prefix(LIBRARY_FOLDER)?;
    Some(match LIBRARY.iter().find(|file| file.path == path) {
        Some(file) => Ok(file.text.as_bytes().to_vec()),
        None => Err(format!("the library has {}", listed(LIBRARY.iter().map(|file| file.path)))),
    })
}

/// A text that imports nothing but files of the library, with what it imports.
pub fn imported_into(source: SourceFile) -> SourceFile {
    source.with_imports(|path| read(path).unwrap_or_else(|| Err("this text stands alone".to_owned())))
}

/// Every router of the library, with what an import calls its file.
pub fn routers() -> Vec<(&'static str, Arc<dyn RoutingStrategy>)> {
    let mut all = Vec::new();
    for file in LIBRARY {
        let source = SourceFile::new(file.path, file.text);
        let tree = parse(&source).ok().invariant("the library is syntax, as its test says");
        let defined = router_language::define(&source, &tree, &Registry::with_builtins());
        all.extend(defined.routers.into_iter().map(|router| (file.path, router)));
    }
    all
}

/// What an import calls the file that has the router of that name.
pub fn file_of(router: &str) -> Option<&'static str> {
    routers().into_iter().find(|(_, strategy)| strategy.name() == router).map(|(path, _)| path)
}
