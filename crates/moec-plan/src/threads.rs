//! The functions of a program are compiled side by side.

use std::panic::resume_unwind;
use std::thread;

/// Does something to each of a few items, the first on this thread and each other one on its own. Results come in the
/// order of the items; a panic of one is a panic of this.
pub fn on_threads<T: Sync, R: Send>(items: &[T], each: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let Some((first, rest)) = items.split_first() else { return Vec::new() };
    let each = &each;
    thread::scope(|scope| {
        let rest: Vec<_> = rest.iter().map(|item| scope.spawn(move || each(item))).collect();
        let mut results = vec![each(first)];
        results.extend(rest.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))));
        results
    })
}
