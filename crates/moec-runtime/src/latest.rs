//! `runs/latest`: a link to the run that was trained last, beside the runs in a folder of that name.
//!
//! It is a symbolic link where the system makes one, and otherwise a small text file. Both hold the name of a folder beside
//! them, so that they stay right when all of them move; whatever else is called `latest` belongs to the user.

use crate::files;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Its name.
const NAME: &str = "latest";

/// The folder whose runs it points to.
const RUNS: &str = "runs";

/// How the text file begins.
const HEAD: &str = "moec run: ";

/// What became of the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Latest {
    /// It points to the run.
    Points(PathBuf),
    /// The run does not lie in a folder `runs`, so there is none.
    Elsewhere,
    /// Something else has its name, and stays.
    Occupied(PathBuf),
}

/// Lets `latest` point to a run, if that lies in a folder `runs`. What is there and is no such link is left alone.
///
/// # Errors
/// When the system refuses.
pub fn point_latest(root: &Path) -> io::Result<Latest> {
    let whole = root.canonicalize()?;
    let Some((name, folder)) = whole.file_name().and_then(|name| Some((name.to_str()?, whole.parent()?))) else {
        return Ok(Latest::Elsewhere);
    };
    if folder.file_name().is_none_or(|folder| folder != RUNS) {
        return Ok(Latest::Elsewhere);
    }
    // As the user names it.
    let link = files::parent(root).join(NAME);
    if fs::symlink_metadata(&link).is_ok() && target(&link).is_none() {
        return Ok(Latest::Occupied(link));
    }
    // Two runs that begin at once prepare a link each.
    let temporary = files::incomplete(&folder.join(format!("{NAME}-{name}")));
    let _ = fs::remove_file(&temporary);
    symlink(name, &temporary).or_else(|_| fs::write(&temporary, format!("{HEAD}{name}\n")))?;
    fs::rename(&temporary, folder.join(NAME)).inspect_err(|_| {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    })?;
    Ok(Latest::Points(link))
}

/// A path with the run in the place of `latest`, if it leads over that.
pub fn follow_latest(path: &Path) -> PathBuf {
    for link in path.ancestors() {
        if let Some(target) = target(link)
            && let Ok(rest) = path.strip_prefix(link)
        {
            let run = link.with_file_name(target);
            return if rest.as_os_str().is_empty() { run } else { run.join(rest) };
        }
    }
    path.to_path_buf()
}

/// The name that a link holds, if it is one of ours.
fn target(link: &Path) -> Option<String> {
    if link.file_name()? != NAME {
        return None;
    }
    let found = fs::symlink_metadata(link).ok()?;
    let target = if found.is_symlink() {
        fs::read_link(link).ok()?.to_str()?.to_string()
    } else if found.is_file() && found.len() < 4096 {
        fs::read_to_string(link).ok()?.strip_prefix(HEAD)?.trim_end().to_string()
    } else {
        return None;
    };
    let mut parts = Path::new(&target).components();
    let is_name = matches!((parts.next(), parts.next()), (Some(Component::Normal(name)), None) if name != NAME);
    is_name.then_some(target)
}

#[cfg(unix)]
fn symlink(name: &str, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(name, link)
}

#[cfg(windows)]
fn symlink(name: &str, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_dir(name, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &str, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder `runs` with the runs `a` and `b`.
    fn runs() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let runs = folder.path().join("runs");
        for name in ["a", "b"] {
            fs::create_dir_all(runs.join(name)).unwrap();
        }
        (folder, runs)
    }

    #[test]
    fn it_points_to_the_run_that_was_trained_last() {
        let (_folder, runs) = runs();
        let latest = runs.join("latest");
        assert_eq!(follow_latest(&latest), latest);
        for name in ["a", "b", "a"] {
            assert_eq!(point_latest(&runs.join(name)).unwrap(), Latest::Points(latest.clone()));
            assert_eq!(follow_latest(&latest), runs.join(name));
        }
        assert_eq!(follow_latest(&latest.join("checkpoints/step-00000001")), runs.join("a/checkpoints/step-00000001"));
        assert_eq!(fs::read_dir(&runs).unwrap().count(), 3, "nothing else is left");
        // A run that is gone is still named.
        fs::remove_dir(runs.join("a")).unwrap();
        assert_eq!(follow_latest(&latest), runs.join("a"));
        point_latest(&runs.join("b")).unwrap();
        assert_eq!(follow_latest(&latest), runs.join("b"));
    }

    #[test]
    fn a_text_file_does_where_there_are_no_links() {
        let (_folder, runs) = runs();
        let latest = runs.join("latest");
        fs::write(&latest, "moec run: b\n").unwrap();
        assert_eq!(follow_latest(&latest), runs.join("b"));
        assert_eq!(follow_latest(&latest.join("spec.moe")), runs.join("b/spec.moe"));
        point_latest(&runs.join("a")).unwrap();
        assert_eq!(follow_latest(&latest), runs.join("a"));
    }

    #[test]
    fn what_is_not_ours_stays() {
        let (folder, runs) = runs();
        let latest = runs.join("latest");
        let occupied = || assert_eq!(point_latest(&runs.join("a")).unwrap(), Latest::Occupied(latest.clone()));
        for text in ["my notes", "moec run: ../elsewhere\n", "moec run: latest\n", "moec run: \n"] {
            fs::write(&latest, text).unwrap();
            occupied();
            assert_eq!(fs::read_to_string(&latest).unwrap(), text);
        }
        fs::remove_file(&latest).unwrap();
        fs::create_dir(&latest).unwrap();
        occupied();
        assert_eq!(follow_latest(&latest), latest);
        fs::remove_dir(&latest).unwrap();
        #[cfg(unix)]
        {
            symlink(folder.path().to_str().unwrap(), &latest).unwrap();
            occupied();
            assert_eq!(fs::read_link(&latest).unwrap(), folder.path());
        }
        // Runs in other folders.
        let elsewhere = folder.path().join("mine");
        fs::create_dir(&elsewhere).unwrap();
        assert_eq!(point_latest(&elsewhere).unwrap(), Latest::Elsewhere);
        assert!(!folder.path().join("latest").exists());
    }
}
