//! Broken invariants of moec itself: said, never answered with a default.
//!
//! What the user gives is checked and answered with a typed error. What cannot happen unless moec has a fault ends here:
//! the command line turns it into a sentence on how to report it and exit code 101.

use std::fmt;

/// Ends the program: an invariant of moec is broken. Takes a sentence like `format!`.
///
/// ```should_panic
/// moec_ir::internal_error!("a product has {} operands", 1);
/// ```
#[macro_export]
macro_rules! internal_error {
    ($($message:tt)+) => { $crate::broken_invariant(format_args!($($message)+)) };
}

/// What [`internal_error!`](crate::internal_error) calls.
#[cold]
#[track_caller]
#[allow(clippy::panic, reason = "the one place where a fault of moec ends the program")]
pub fn broken_invariant(message: fmt::Arguments<'_>) -> ! {
    panic!("{message}")
}

/// Values that are there unless moec has a fault.
pub trait Invariant {
    /// What is there.
    type Value;

    /// The value; where it is missing, an internal error that says what should have held.
    #[track_caller]
    fn invariant(self, what_holds: &str) -> Self::Value;
}

impl<T> Invariant for Option<T> {
    type Value = T;

    #[track_caller]
    fn invariant(self, what_holds: &str) -> T {
        match self {
            Some(value) => value,
            None => broken_invariant(format_args!("this does not hold: {what_holds}")),
        }
    }
}

impl<T, E: fmt::Display> Invariant for Result<T, E> {
    type Value = T;

    #[track_caller]
    fn invariant(self, what_holds: &str) -> T {
        match self {
            Ok(value) => value,
            Err(error) => broken_invariant(format_args!("this does not hold: {what_holds} ({error})")),
        }
    }
}
