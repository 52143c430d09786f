//! What an editor asks about a `.moe` file while it is being written, answered over the Language Server Protocol.
//!
//! [`serve`] speaks the protocol over standard input and output until the editor ends the session. What the names in a file
//! can mean is the [`Registry`](moec_model::Registry) that it is given, so that a program with routers of its own serves
//! these too.
//!
//! A text is read twice: by the parser and the checker, which say what is wrong with it, and leniently
//! (`moec_syntax::parse_leniently`), for what is asked about a text that is half written: definitions, completion, the
//! outline. What an editor holds and has not saved is used in place of the file, also where another file imports it.
//! Positions are those of the protocol, in UTF-16 code units.

mod analysis;
mod completion;
mod declared;
mod diagnostics;
mod documents;
mod hover;
mod names;
mod place;
mod rename;
mod server;
mod symbols;
mod text;

pub use server::{End, serve, serve_on};
