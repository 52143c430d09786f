//! The grammar of `.moe` files for tree-sitter. It is made from `moec.pest` by `tests/grammar.rs`, and takes more than that
//! does: an editor colours also what is half written.

use tree_sitter_language::LanguageFn;

unsafe extern "C" {
    fn tree_sitter_moe() -> *const ();
}

/// The language, for `tree_sitter::Parser::set_language`.
// SAFETY: the function is in `src/parser.c`, which the build script lets tree-sitter make, and returns a pointer to a constant table.
pub const LANGUAGE: LanguageFn = unsafe { LanguageFn::from_raw(tree_sitter_moe) };

/// What is coloured how.
pub const HIGHLIGHTS: &str = include_str!("queries/highlights.scm");
