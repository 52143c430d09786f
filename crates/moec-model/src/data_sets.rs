//! The texts that a file can name: where they are, and by what a copy is known to be right. Nothing is read here.

/// A text that `data` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSet {
    /// Name in the file.
    pub name: &'static str,
    /// One line on what it is.
    pub summary: &'static str,
    /// Where it is published: scheme and host.
    pub base: &'static str,
    /// Path below the base.
    pub path: &'static str,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, in lower-case hexadecimal.
    pub sha256: &'static str,
}

/// The texts that are always known.
pub(crate) const DATA_SETS: [DataSet; 1] = [DataSet {
    name: "tinyshakespeare",
    summary: "a million characters of Shakespeare's plays (Karpathy 2015), what makeMoE is trained on",
    base: "https://raw.githubusercontent.com",
    path: "karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    bytes: 1_115_394,
    sha256: "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
}];
