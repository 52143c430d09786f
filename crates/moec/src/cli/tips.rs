//! What was meant by an option that there is not, most often a value of the file, which is changed with `-s`; and what an
//! option takes.

use crate::cli::exit::{Exit, Failure};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use moec_model::{SettingForm, train_settings};
use moec_syntax::{Meant, meant};
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

/// The refusal of a command or an option that there is not, or of a value, if there is more to say than clap does.
pub(crate) fn unknown(error: &clap::Error, root: &clap::Command, arguments: &[String]) -> Option<Failure> {
    match error.kind() {
        ErrorKind::InvalidSubcommand => unknown_command(error, root),
        ErrorKind::UnknownArgument => unknown_option(error, root, arguments),
        ErrorKind::ValueValidation => no_number(error),
        _ => None,
    }
}

/// The command that is spelt alike: one, where clap names several that sound alike.
fn unknown_command(error: &clap::Error, root: &clap::Command) -> Option<Failure> {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let names = root.get_subcommands().map(clap::Command::get_name).chain(["help"]);
    let near = moec_syntax::did_you_mean(word, names)?;
    let failure = Failure::new(Exit::Usage, format!("moec has no command `{word}`"));
    Some(failure.help(format!("did you mean {near}?")).help("moec --help lists the commands"))
}

/// The refusal of an option that there is not, if more can be said than that another one is spelt alike.
fn unknown_option(error: &clap::Error, root: &clap::Command, arguments: &[String]) -> Option<Failure> {
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else { return None };
    let command = arguments.iter().skip(1).find_map(|word| root.find_subcommand(word))?;
    let own_name = command.get_name();
    let failure = Failure::new(Exit::Usage, format!("`moec {own_name}` has no option {option}"));
    let list = format!("moec {own_name} --help lists its options");
    let Some(name) = option.strip_prefix("--") else {
        return option.starts_with('-').then(|| failure.help(list));
    };
    let has =
        |command: &clap::Command, long: &str| command.get_arguments().any(|argument| argument.get_long() == Some(long));
    let takes = |long: &str| has(command, long);
    let others = root.get_subcommands().filter(|other| has(other, name));
    let others: Vec<String> = others.map(|other| format!("`moec {}`", other.get_name())).collect();
    // The nearest of the command's own options is clap's matter.
    let is_alike = error.get(ContextKind::SuggestedArg).is_some();
    if takes("set") {
        let value = value_of(option, arguments).unwrap_or("VALUE");
        match setting(name).filter(|path| !path.strip_prefix("train.").is_some_and(takes)) {
            Some(path) => {
                return Some(failure.help(format!("a value of the recipe is changed with -s: -s {path}={value}")));
            }
            None if !is_alike && others.is_empty() => {
                return Some(failure.help(format!(
                    "a `let` of the file, or a value of its recipe, is changed with -s: -s {}={value}",
                    name.replace('-', "_")
                )));
            }
            None => {}
        }
    }
    let takes_run = command.get_positionals().any(|argument| argument.get_id().as_str() == "run");
    if name == "checkpoint" && takes_run {
        let place = "a checkpoint is named by its folder in the place of the run: RUN/checkpoints/step-00001000";
        return Some(failure.help(place));
    }
    if is_alike {
        return None;
    }
    Some(match (own_name, name) {
        ("metrics", "csv") => failure.help("what it prints is CSV already"),
        _ if others.is_empty() => failure.help(list),
        _ => failure.help(format!("it is one of {}", others.join(", "))).help(list),
    })
}

/// The refusal of what is no number where one is taken, in our words for those of the parser.
fn no_number(error: &clap::Error) -> Option<Failure> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let (option, value) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
    let source = std::error::Error::source(error)?;
    let what = if let Some(error) = source.downcast_ref::<ParseIntError>() {
        match error.kind() {
            IntErrorKind::PosOverflow => "it is too large a number",
            _ if value.parse::<i128>().is_ok_and(|value| value < 0) => "it must not be negative",
            _ => "it must be a whole number",
        }
    } else {
        source.downcast_ref::<ParseFloatError>().map(|_| "it must be a number")?
    };
    Some(Failure::new(Exit::Usage, format!("invalid value '{value}' for '{option}': {what}")))
}

/// What clap says of a wrong command line, for programs.
pub(crate) fn plain(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let message = lines.next().unwrap_or_default();
    let failure = Failure::new(Exit::Usage, message.strip_prefix("error: ").unwrap_or(message));
    lines.filter_map(|line| line.strip_prefix("tip: ")).fold(failure, |failure, tip| failure.help(tip))
}

/// What was written behind an option.
fn value_of<'a>(option: &str, arguments: &'a [String]) -> Option<&'a str> {
    let mut rest = arguments.iter().skip_while(|word| *word != option && !word.starts_with(&format!("{option}=")));
    let word = rest.next()?;
    match word.split_once('=') {
        Some((_, value)) => Some(value),
        None => rest.next().map(String::as_str).filter(|value| !value.starts_with("--")),
    }
}

/// The path of a value of the recipe, by its name or by that of other tools: `lr`, `batch-size`, `checkpoint`.
fn setting(name: &str) -> Option<String> {
    let mut known: Vec<(String, String)> = Vec::new();
    for setting in train_settings() {
        let path = format!("train.{}", setting.name);
        match &setting.form {
            SettingForm::Data | SettingForm::Value(..) => known.push((setting.name.to_string(), path)),
            SettingForm::Arguments(arguments) => {
                let first = arguments.first().map(|first| (setting.name.to_string(), format!("{path}.{}", first.name)));
                known.extend(first);
                let of = |a: &moec_model::ParameterSpec| {
                    (format!("{}_{}", setting.name, a.name), format!("{path}.{}", a.name))
                };
                known.extend(arguments.iter().map(of));
            }
            SettingForm::Choice(choices) => {
                known.push((setting.name.to_string(), path.clone()));
                let parameters = choices.iter().flat_map(|(_, parameters)| parameters);
                known.extend(parameters.map(|p| (p.name.to_string(), format!("{path}.{}", p.name))));
            }
        }
    }
    let name = name.replace('-', "_");
    let path = |name: &str| known.iter().find(|(known, _)| known == name).map(|(_, path)| path.clone());
    path(&name).or_else(|| match meant(&name, known.iter().map(|(name, _)| name.as_str())) {
        // What is merely spelt alike may as well be an option.
        Some(Meant::Word(word)) if moec_syntax::did_you_mean(&name, [word]).is_none() => path(word),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_recipe_have_paths() {
        let path = |name| setting(name).unwrap_or_default();
        assert_eq!(path("lr"), "train.optimizer.lr");
        assert_eq!(path("learning-rate"), "train.optimizer.lr");
        assert_eq!(path("weight-decay"), "train.optimizer.weight_decay");
        assert_eq!(path("checkpoint"), "train.checkpoint.every");
        assert_eq!(path("checkpoint-keep"), "train.checkpoint.keep");
        assert_eq!(path("warmup"), "train.schedule.warmup");
        assert_eq!(path("batch-size"), "train.batch");
        assert_eq!((path("stpes"), path("width")), (String::new(), String::new()));
    }

    #[test]
    fn the_value_is_taken_over() {
        let words = |text: &str| text.split(' ').map(str::to_string).collect::<Vec<_>>();
        assert_eq!(value_of("--lr", &words("moec train a.moe --lr 1e-3")), Some("1e-3"));
        assert_eq!(value_of("--lr", &words("moec train --lr=3 a.moe")), Some("3"));
        assert_eq!(value_of("--lr", &words("moec train --lr --steps 3")), None);
    }
}
