//! Commands that are printed to be pasted into a shell.

use std::path::Path;

/// A path as one word of a command: quoted where a shell would see more in it, and never taken for an option.
pub(crate) fn path(path: &Path) -> String {
    let text = path.display().to_string();
    if text.starts_with('-') { word(&format!("./{text}")) } else { word(&text) }
}

/// A text as one word of a command.
pub(crate) fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./=:,@%+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) { text.to_string() } else { quoted(text) }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_program_as_they_are() {
        assert_eq!(path(Path::new("runs/tiny-2")), "runs/tiny-2");
        assert_eq!(path(Path::new("my runs/a")), "'my runs/a'");
        assert_eq!(path(Path::new("-r")), "./-r");
        assert_eq!(word("it's $5"), r"'it'\''s $5'");
        assert_eq!(word(""), "''");
        assert_eq!(word("train.optimizer.lr=3e-4"), "train.optimizer.lr=3e-4");
    }
}
