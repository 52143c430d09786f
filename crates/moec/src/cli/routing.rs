//! Where the characters of a text go: a model run on it, and what is shown of its routes.

pub(crate) mod characters;
pub(crate) mod evidence;
pub(crate) mod forward;
pub(crate) mod marks;
pub(crate) mod record;
pub(crate) mod text;
pub(crate) mod view;
