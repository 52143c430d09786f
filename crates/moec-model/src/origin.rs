//! Places in the source as graphs carry them: `moec-ir` knows no texts, so its origins are numbers.

use moec_ir::Origin;
use moec_syntax::Span;

/// What a graph carries of a place.
pub(crate) fn origin_of(span: Span) -> Origin {
    let [file, start, end] = span.numbers();
    Origin { file, start, end }
}

/// The place that a graph carries.
pub fn span_of(origin: Origin) -> Span {
    Span::from_numbers([origin.file, origin.start, origin.end])
}
