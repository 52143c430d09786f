//! Command lines that documents and help show can be read, and slips in options and commands are answered.

use super::command;
use crate::cli::tips;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[path = "../../../../../tests/typos.rs"]
mod slips;

use slips::{Count, require, typos};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What is proposed in the place of a slip; `None` if the line is read.
fn refusal(root: &clap::Command, line: &[String], kind: ErrorKind) -> Option<Option<String>> {
    let error = root.clone().try_get_matches_from(line).err()?;
    assert_eq!(error.kind(), kind, "{line:?}: {error}");
    let told = tips::unknown(&error, root, line);
    let said = told.map(|failure| failure.json()).map(|json| json["help"].to_string());
    let of_ours =
        said.as_deref().and_then(|help| Some(help.split_once("did you mean ")?.1.split('?').next()?.to_string()));
    let suggested = |kind| match error.get(kind) {
        Some(ContextValue::String(name)) => Some(name.clone()),
        _ => None,
    };
    let of_clap = || suggested(ContextKind::SuggestedArg).or_else(|| suggested(ContextKind::SuggestedValue));
    // What we say stands in the place of what clap says.
    Some(if said.is_some() { of_ours } else { of_clap() }.map(|name| name.trim_start_matches("--").to_string()))
}

/// Words that a command cannot do without.
fn required(sub: &clap::Command) -> Vec<String> {
    let needed = sub.get_arguments().filter(|argument| argument.is_required_set());
    let words = needed.flat_map(|argument| match argument.get_long() {
        Some("sweep") => vec!["--sweep".to_string(), "k=1".to_string()],
        Some(long) => vec![format!("--{long}"), "1".to_string()],
        None => vec!["x".to_string()],
    });
    [sub.get_name().to_string()].into_iter().chain(words).collect()
}

#[test]
fn slips_in_options_are_answered_with_the_option_that_was_meant() {
    let root = command(None);
    let mut count = Count::default();
    for sub in root.get_subcommands() {
        let options = || sub.get_arguments().chain(root.get_arguments()).filter(|argument| !argument.is_hide_set());
        let mut names: Vec<&str> = options().filter_map(clap::Arg::get_long).collect();
        names.push("help");
        for name in &names {
            let takes = options().any(|option| option.get_long() == Some(name) && option.get_action().takes_values());
            for typo in typos(name).iter().filter(|typo| !names.contains(&typo.as_str()) && !typo.starts_with('-')) {
                let mut line = vec!["moec".to_string()];
                line.extend(required(sub));
                line.push(format!("--{typo}"));
                line.extend(takes.then(|| "2".to_string()));
                count.note(name, typo, refusal(&root, &line, ErrorKind::UnknownArgument));
            }
        }
    }
    require(&BTreeMap::from([("options", count)]));
}

#[test]
fn slips_in_commands_are_answered_with_the_command_that_was_meant() {
    let root = command(None);
    let names: Vec<&str> = root.get_subcommands().map(clap::Command::get_name).chain(["help"]).collect();
    let mut count = Count::default();
    for name in &names {
        for typo in typos(name).iter().filter(|typo| !names.contains(&typo.as_str()) && !typo.starts_with('-')) {
            count.note(name, typo, refusal(&root, &["moec".to_string(), typo.clone()], ErrorKind::InvalidSubcommand));
        }
    }
    require(&BTreeMap::from([("commands", count)]));
}

#[test]
fn slips_in_words_of_options_are_answered_with_the_word_that_was_meant() {
    let root = command(None);
    let mut count = Count::default();
    for sub in root.get_subcommands() {
        for option in sub.get_arguments().filter(|argument| argument.get_action().takes_values()) {
            let Some(long) = option.get_long() else { continue };
            let words: Vec<String> = option.get_possible_values().iter().map(|v| v.get_name().to_string()).collect();
            let shown = option.get_possible_values().into_iter().filter(|value| !value.is_hide_set());
            for word in shown.map(|value| value.get_name().to_string()) {
                for typo in typos(&word).iter().filter(|typo| !words.contains(typo) && !typo.starts_with('-')) {
                    let mut line = vec!["moec".to_string()];
                    line.extend(required(sub));
                    line.extend([format!("--{long}"), typo.clone()]);
                    count.note(&word, typo, refusal(&root, &line, ErrorKind::InvalidValue));
                }
            }
        }
    }
    require(&BTreeMap::from([("words of options", count)]));
}

/// The command lines of a text that is given to a shell, without what a shell does with them.
fn command_lines(text: &str) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    for line in text.replace("\\\n", " ").lines() {
        let line = line.trim().trim_start_matches("$ ");
        let words = shlex::split(line).unwrap_or_else(|| panic!("no shell reads {line}"));
        let mut rest = words.as_slice();
        // A line can have several commands, and what they go through.
        while let Some(at) = rest.iter().position(|word| word == "moec" || word == "cargo") {
            rest = &rest[at..];
            let end = |word: &String| ["&&", "|", ";", ">", ">>", "2>", "<", "#"].contains(&word.as_str());
            let length = rest.iter().position(end).unwrap_or(rest.len());
            let begins_with_cargo = rest[..length].starts_with(&["cargo", "run", "--"].map(str::to_string));
            if rest[0] == "moec" {
                lines.push(rest[..length].to_vec());
            } else if begins_with_cargo {
                lines.push([&["moec".to_string()], &rest[3..length]].concat());
            }
            rest = &rest[length..];
        }
    }
    lines
}

#[test]
fn command_lines_that_are_shown_can_be_read() {
    let root_of_commands = command(None);
    // Where it stands, the line, and whether it is whole: a part of the text may be about one option.
    let mut shown: Vec<(String, String, bool)> = Vec::new();
    for sub in root_of_commands.get_subcommands() {
        let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples = help.lines().filter(|line| line.starts_with("  "));
        // What it does stands behind it, apart.
        let lines = examples.filter_map(|line| line.trim().split("   ").next());
        shown.extend(lines.map(|line| (format!("moec {} --help", sub.get_name()), line.to_string(), true)));
    }
    let documents = [
        "README.md",
        "CONTRIBUTING.md",
        "docs/comparing.md",
        "docs/from-makemoe.md",
        "docs/json.md",
        "docs/reading-a-run.md",
        "docs/tracking.md",
        "docs/merging.md",
        "grammar/README.md",
        "specs/README.md",
        "examples/README.md",
        "examples/router-plugin/README.md",
        "benchmarks/README.md",
        "build/wheel/README.md",
        "editors/README.md",
    ];
    for path in documents {
        let text = std::fs::read_to_string(root().join(path)).unwrap();
        let mut language = None;
        for line in text.lines() {
            language = match (line.trim_start().strip_prefix("```"), language) {
                (Some(language), None) => Some(language),
                (Some(_), Some(_)) => None,
                (None, language) => language,
            };
            let is_command = match language {
                Some("sh") => !line.starts_with("```"),
                Some("console") => line.starts_with("$ "),
                _ => false,
            };
            if is_command {
                shown.push((path.to_string(), line.to_string(), true));
            }
            if language.is_none() {
                // In the text, those without a word that stands for something.
                let codes = line
                    .split('`')
                    .skip(1)
                    .step_by(2)
                    .filter(|code| code.starts_with("moec ") && !code.starts_with("moec ="));
                let stands = |word: &str| {
                    word.contains("..")
                        || (word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase()))
                        || ["N", "K", "S"].contains(&word)
                };
                let concrete = codes.filter(|code| !code.split([' ', '=', '[', ']']).any(stands));
                shown.extend(concrete.map(|code| (path.to_string(), code.replace("\\|", "|"), false)));
            }
        }
    }
    let mut seen = 0;
    for (place, line, is_whole) in shown {
        for words in command_lines(&line) {
            seen += 1;
            let read = root_of_commands.clone().try_get_matches_from(&words);
            let is_right = |error: &clap::Error| {
                !error.use_stderr() || (!is_whole && error.kind() == ErrorKind::MissingRequiredArgument)
            };
            assert!(read.as_ref().err().is_none_or(is_right), "{place}: {line}\n{}", read.unwrap_err());
        }
    }
    assert!(seen > 120, "only {seen} command lines were found");
}
