//! Writes the generated corpus to standard output, for programs that want it as a file.
//!
//! ```sh
//! cargo run --package moec --example synthetic > synthetic.txt
//! ```

use std::io::Write;

fn main() -> std::io::Result<()> {
    let seed = moec::model::Recipe::default().seed;
    std::io::stdout().write_all(moec::Corpus::synthetic(seed).text().as_bytes())
}
