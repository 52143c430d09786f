//! Makes the parser of the grammar, where editors look for it, and compiles it.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=src/grammar.json");
    let grammar = fs::read_to_string("src/grammar.json")?;
    let (level, mut remarks) = (tree_sitter_generate::OptLevel::default(), Vec::new());
    let made = tree_sitter_generate::generate_parser_for_grammar(&grammar, Some((0, 1, 0)), level, &mut remarks);
    let (_, parser) = made.map_err(io::Error::other)?;
    for remark in remarks {
        println!("cargo:warning={remark}");
    }
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?).join("src");
    fs::create_dir_all(folder.join("tree_sitter"))?;
    fs::write(folder.join("parser.c"), parser)?;
    fs::write(folder.join("tree_sitter/parser.h"), tree_sitter_generate::PARSER_HEADER)?;
    cc::Build::new().include(&folder).file(folder.join("parser.c")).warnings(false).compile("tree-sitter-moe");
    Ok(())
}
