//! Folders of the user in which moec keeps what it can make or fetch again.

use crate::cli::exit::{Exit, Failure};
use etcetera::BaseStrategy;
use std::path::PathBuf;

/// Names another cache folder; empty or `off`, compiled kernels are not kept.
const VARIABLE: &str = "MOEC_CACHE";

/// Where data sets are kept.
///
/// # Errors
/// When no folder is named and the user has no home.
pub(crate) fn data() -> Result<PathBuf, Failure> {
    Ok(cache(named().filter(|folder| !is_off(folder)))?.join("data"))
}

/// Where compiled kernels are kept, if they are.
pub(crate) fn kernels() -> Option<PathBuf> {
    let named = named();
    if named.as_deref().is_some_and(is_off) {
        return None;
    }
    // Without a home there is no place for them, which is no fault.
    Some(cache(named).ok()?.join("kernels"))
}

fn named() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

fn is_off(folder: &std::path::Path) -> bool {
    folder.as_os_str().is_empty() || folder.as_os_str() == "off"
}

fn cache(named: Option<PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(folder) = named {
        return Ok(folder);
    }
    let strategy = etcetera::base_strategy::choose_native_strategy();
    let strategy = strategy.map_err(|e| {
        Failure::new(Exit::Failure, format!("there is no home folder: {e}")).help("name a cache folder with MOEC_CACHE")
    })?;
    Ok(strategy.cache_dir().join("moec"))
}
