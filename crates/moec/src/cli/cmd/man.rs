//! `moec man`: the help of every command as manual pages.

use crate::cli::args::{self, ManArgs};
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use moec_syntax::did_you_mean;

/// Runs the command.
///
/// # Errors
/// When there is no such command, or the pages cannot be written.
pub(crate) fn run(args: &ManArgs, console: &Console) -> Result<Exit, Failure> {
    // `moec help train` is the same page once more.
    let mut root = args::command(None).disable_help_subcommand(true);
    // Gives subcommands their whole names.
    root.build();
    if let Some(folder) = &args.output {
        let failed = |e: std::io::Error| Failure::file("write", folder, &e);
        std::fs::create_dir_all(folder).map_err(failed)?;
        for command in std::iter::once(&root).chain(root.get_subcommands()) {
            let name = command.get_display_name().unwrap_or_else(|| command.get_name());
            let path = folder.join(format!("{name}.1"));
            std::fs::write(&path, page(command)?).map_err(|e| Failure::file("write", &path, &e))?;
        }
        console.note(format!("wrote the pages into {}", folder.display()));
        return Ok(Exit::Success);
    }
    let command = match &args.command {
        None => root,
        Some(name) => match root.find_subcommand(name) {
            Some(command) => command.clone(),
            None => {
                let failure = Failure::new(Exit::Usage, format!("there is no command {name}"));
                let names = root.get_subcommands().map(clap::Command::get_name);
                return Err(match did_you_mean(name, names) {
                    Some(near) => failure.help(format!("did you mean {near}?")),
                    None => failure.help("moec --help lists them"),
                });
            }
        },
    };
    console.write(&page(&command)?)?;
    Ok(Exit::Success)
}

/// The page of a command. What stands below its options has a heading of its own there.
fn page(command: &clap::Command) -> Result<String, Failure> {
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(command.clone()).render(&mut page);
    rendered.map_err(|e| Failure::new(Exit::Failure, format!("cannot write the page: {e}")))?;
    let page = String::from_utf8_lossy(&page);
    let headings = [("EXTRA\nExamples:\n", "EXAMPLES\n"), ("EXTRA\nExit codes:\n", "\"EXIT STATUS\"\n")];
    Ok(headings
        .iter()
        .fold(page.into_owned(), |page, (from, to)| page.replace(&format!(".SH {from}"), &format!(".SH {to}"))))
}
