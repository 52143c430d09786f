//! Text to spanned AST, and everything about talking to the author of that text.
