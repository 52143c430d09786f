//! `moec new`: a commented spec to begin with.

use crate::cli::args::{NewArgs, Template};
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::shell;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

impl Template {
    /// The text, with the name of its model.
    fn text(self) -> (&'static str, &'static str) {
        match self {
            Template::Dense => (include_str!("../templates/dense.moe"), "dense"),
            Template::Top2 => (include_str!("../templates/top2.moe"), "top2"),
            Template::NoisyTop2 => (include_str!("../templates/noisy_top2.moe"), "noisy_top2"),
            Template::Switch => (include_str!("../templates/switch.moe"), "switch"),
            Template::FineGrained => (include_str!("../templates/fine_grained.moe"), "fine_grained"),
            Template::Router => (include_str!("../templates/router.moe"), "my_router"),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the file exists or cannot be written, or no model can have the name.
pub(crate) fn run(args: &NewArgs, console: &Console) -> Result<Exit, Failure> {
    let path = match args.name.extension() {
        Some(extension) if extension == "moe" => args.name.clone(),
        _ => {
            let mut name = args.name.clone().into_os_string();
            name.push(".moe");
            name.into()
        }
    };
    let name = model_name(&path)?;
    let (text, named) = args.template.text();
    let text = text.replacen(&format!("\nmodel {named} {{"), &format!("\nmodel {name} {{"), 1);
    write_new(&path, &text)?;
    let shown = shell::path(&path);
    console.out(format!("wrote {shown}\n\n  moec check {shown}\n  moec train {shown}\n  moec sample runs/{name}"))?;
    Ok(Exit::Success)
}

/// What the model of a file is called: as the file, with `_` for what a name cannot have.
fn model_name(path: &Path) -> Result<String, Failure> {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    let name: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let name = if name.starts_with(|c: char| c.is_ascii_digit()) { format!("m{name}") } else { name };
    let wrong = |reason: String| Failure::new(Exit::Usage, reason).help("name it with letters, digits and `_`");
    if !name.contains(|c: char| c.is_ascii_alphanumeric()) {
        return Err(wrong(format!("`{}` is no name for a file", path.display())));
    }
    let source = moec_syntax::SourceFile::new("name", format!("model {name} {{ }}"));
    match moec_syntax::parse(&source) {
        Ok(_) => Ok(name),
        Err(_) => Err(wrong(format!("`{name}` is a word of the language, so no model can have that name"))),
    }
}

/// Writes a file that is not there yet.
fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let made = OpenOptions::new().write(true).create_new(true).open(path);
    made.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::new(Exit::Failure, format!("{} exists already", path.display()))
            .help("choose another name; a file is never replaced"),
        io::ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(path).display();
            Failure::new(Exit::Failure, format!("there is no folder {folder}")).help("make it first")
        }
        _ => Failure::file("write", path, &error),
    })
}
