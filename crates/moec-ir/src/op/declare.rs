//! The macros that read the rows of the table of operations, and what can be an attribute.
//!
//! [`operations!`] turns the table of [`super`] into the enum [`Op`](super::Op) and into everything that follows from a
//! row: mnemonic, attributes, arity, ranges, legality, and the [`Declaration`](crate::Declaration) from which tests and
//! the reference page are made. [`attributes!`] does the same for attributes that several operations share as one struct.

use crate::declaration::{AttributeDeclaration, OutOfRange};
use crate::types::{Real, TensorType};
use std::str::FromStr;

/// What can be the value of an attribute.
pub(crate) trait Attribute: Sized {
    /// What it looks like in the text form.
    const FORM: &'static str;

    /// What is written down; `None` if the attribute is left out. `node` is the name of its node.
    fn written(&self, node: &str) -> Option<Written>;

    /// Takes the attribute of that name from a line, if it is there.
    fn read<S: Source>(source: &mut S, key: &'static str) -> Result<Option<Self>, S::Error>;

    /// The number that a range is about.
    fn number(&self) -> Option<f64> {
        None
    }
}

/// What is written down of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Its name alone.
    Flag,
    /// A number, a word, or a list.
    Plain(String),
    /// A text that needs quotes.
    Quoted(String),
}

/// A line of a text form, from which an operation is read.
pub(crate) trait Source {
    /// What is wrong, and where.
    type Error;

    /// Name of the operation.
    fn mnemonic(&self) -> &str;
    /// Name of the node.
    fn node(&self) -> &str;
    /// The type of a result, which has to be there.
    fn result(&self, slot: usize) -> Result<&TensorType, Self::Error>;
    /// Whether a flag is set.
    fn flag(&mut self, key: &'static str) -> Result<bool, Self::Error>;
    /// A whole number.
    fn whole<T: FromStr>(&mut self, key: &'static str) -> Result<Option<T>, Self::Error>;
    /// A number.
    fn real(&mut self, key: &'static str) -> Result<Option<Real>, Self::Error>;
    /// A list of whole numbers.
    fn wholes(&mut self, key: &'static str) -> Result<Option<Vec<usize>>, Self::Error>;
    /// Which of the words stands there.
    fn word(&mut self, key: &'static str, known: &[&str]) -> Result<Option<usize>, Self::Error>;
    /// A text in quotes.
    fn text(&mut self, key: &'static str) -> Result<Option<String>, Self::Error>;
    /// That an attribute is missing.
    fn missing(&self, key: &'static str) -> Self::Error;
}

/// An attribute that must be there.
pub(crate) fn required<T: Attribute, S: Source>(source: &mut S, key: &'static str) -> Result<T, S::Error> {
    match T::read(source, key)? {
        Some(value) => Ok(value),
        None => Err(source.missing(key)),
    }
}

/// The type of the first result.
pub(super) fn result_type<S: Source>(source: &S) -> Result<TensorType, S::Error> {
    source.result(0).cloned()
}

/// The shape of the first result.
pub(super) fn result_shape<S: Source>(source: &S) -> Result<Vec<usize>, S::Error> {
    Ok(source.result(0)?.shape.clone())
}

/// The number of elements of the first result.
pub(super) fn result_elements<S: Source>(source: &S) -> Result<usize, S::Error> {
    Ok(source.result(0)?.elements())
}

/// The number of elements of the second result.
pub(super) fn elements_of_second_result<S: Source>(source: &S) -> Result<usize, S::Error> {
    Ok(source.result(1)?.elements())
}

/// How often an operand is there: at least and at most.
pub(crate) type Times = (usize, usize);
/// Once, or not at all.
pub(crate) const OPTIONAL: Times = (0, 1);
/// Once or more.
pub(crate) const SEVERAL: Times = (1, usize::MAX);

/// Once, or not at all if something does not hold.
pub(crate) fn when(holds: bool) -> Times {
    (usize::from(holds), usize::from(holds))
}

/// One attribute of an operation, in one of the ways in which it is used.
///
/// `[implied]` names the function that finds the attribute elsewhere on the line if it does not stand in braces, and
/// `[default]` is the value of an attribute that is left out.
macro_rules! attribute {
    (declare $field:ident $ty:ty [$($doc:literal)+] [$($range:ident)?] [$($implied:ident)?]) => {
        AttributeDeclaration {
            name: stringify!($field),
            doc: &[$($doc),+],
            form: attribute!(form $ty [$($implied)?]),
            range: attribute!(range $($range)?),
        }
    };
    (form $ty:ty []) => { <$ty as Attribute>::FORM };
    (form $ty:ty [$implied:ident]) => { "" };
    (range) => { Range::Any };
    (range $range:ident) => { Range::$range };

    (written $list:ident $node:ident $field:ident [$implied:ident] []) => {};
    (written $list:ident $node:ident $field:ident [] []) => {
        $list.extend(Attribute::written($field, $node).map(|written| (stringify!($field), written)));
    };
    (written $list:ident $node:ident $field:ident [] [$default:expr]) => {
        if *$field != $default {
            attribute!(written $list $node $field [] []);
        }
    };

    (check $list:ident $field:ident []) => {};
    (check $list:ident $field:ident [$range:ident]) => {
        if Attribute::number($field).is_some_and(|value| !Range::$range.holds(value)) {
            $list.push(OutOfRange {
                attribute: stringify!($field),
                value: format!("{:?}", $field),
                range: Range::$range,
            });
        }
    };

    (read $source:ident $field:ident $ty:ty [$implied:ident] []) => { $implied($source)? };
    (read $source:ident $field:ident $ty:ty [] []) => { required::<$ty, _>($source, stringify!($field))? };
    (read $source:ident $field:ident $ty:ty [] [$default:expr]) => {
        match <$ty as Attribute>::read($source, stringify!($field))? {
            Some(value) => value,
            None => $default,
        }
    };
}

/// Attributes that operations have as one struct.
pub(crate) trait Attributes: Sized {
    /// What they are.
    const DECLARED: &'static [AttributeDeclaration];

    /// What is written down of them.
    fn written(&self, node: &str) -> Vec<(&'static str, Written)>;

    /// Those out of range.
    fn out_of_range(&self) -> Vec<OutOfRange>;

    /// Reads them.
    fn read<S: Source>(source: &mut S) -> Result<Self, S::Error>;
}

/// Declares a struct of attributes, each a field with its documentation, range and default.
macro_rules! attributes {
    (
        $(#[$meta:meta])+
        pub struct $name:ident {
            $( $(#[doc = $doc:literal])+ pub $field:ident : $ty:ty $(as $range:ident)? $(= $default:expr)? ),+ $(,)?
        }
    ) => {
        $(#[$meta])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $ty ),+
        }

        impl Attributes for $name {
            const DECLARED: &'static [AttributeDeclaration] =
                &[$( attribute!(declare $field $ty [$($doc)+] [$($range)?] []) ),+];

            fn written(&self, node: &str) -> Vec<(&'static str, Written)> {
                let Self { $($field),+ } = self;
                let mut list = Vec::new();
                $( attribute!(written list node $field [] [$($default)?]); )+
                list
            }

            fn out_of_range(&self) -> Vec<OutOfRange> {
                let Self { $($field),+ } = self;
                let mut list = Vec::new();
                $( attribute!(check list $field [$($range)?]); )+
                let _ = ($($field),+);
                list
            }

            fn read<S: Source>(source: &mut S) -> Result<Self, S::Error> {
                Ok(Self { $( $field: attribute!(read source $field $ty [] [$($default)?]) ),+ })
            }
        }
    };
}

/// Declares [`Op`](super::Op): rows of operations by family, then the operations that the table does not describe.
///
/// A row reads
///
/// ```text
/// /// What it does.
/// Variant { attribute: Type as Range = default, other: Type => function_of_the_line }
///     = "mnemonic"(operand "type", sometimes "type": when(condition)) -> (result "type" over operand)
///     : FirstStage or LaterStage if condition, Gradient, random;
/// ```
///
/// where attributes may also be one struct, `Variant(name: Struct)`. Conditions see the attributes by reference. A result
/// `over` an operand takes the place of it.
macro_rules! operations {
    (
        $(#[$op_meta:meta])+
        $(
            $family:ident {
                $(
                    $(#[doc = $doc:literal])+
                    $variant:ident
                    $({ $(
                        $(#[doc = $field_doc:literal])+
                        $field:ident : $field_ty:ty $(as $range:ident)? $(= $default:expr)? $(=> $implied:ident)?
                    ),+ $(,)? })?
                    $(( $attributes:ident : $attributes_ty:ty ))?
                    = $mnemonic:literal
                    ( $( $operand:ident $operand_ty:literal $(: $times:expr)? ),* $(,)? )
                    -> ( $( $result:ident $result_ty:literal $(over $over:ident)? ),+ $(,)? )
                    : $stage:ident $(or $later:ident if $condition:expr)?, $gradient:ident $(, $random:tt)?;
                )+
            }
        )+
        ; undeclared {
            $( $(#[$other_meta:meta])+ $other:ident $({ $($other_fields:tt)+ })? $(( $other_ty:ty ))? ),+ $(,)?
        }
    ) => {
        $(#[$op_meta])+
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum Op {
            $($(
                $(#[doc = $doc])+
                ///
                $( #[doc = concat!("- operand `", stringify!($operand), " ", $operand_ty, "`")] )*
                $( #[doc = concat!("- result `", stringify!($result), " ", $result_ty, "`")] )+
                $variant
                $({ $( $(#[doc = $field_doc])+ $field: $field_ty ),+ })?
                $(( $attributes_ty ))?,
            )+)+
            $( $(#[$other_meta])+ $other $({ $($other_fields)+ })? $(( $other_ty ))?, )+
        }

        /// The rows, to count them.
        #[derive(Clone, Copy)]
        enum Row { $($( $variant, )+)+ }

        static ROWS: &[Declaration] = &[$($(
            Declaration {
                mnemonic: $mnemonic,
                family: Family::$family,
                doc: &[$($doc),+],
                operands: &[$( Slot {
                    name: stringify!($operand),
                    ty: $operand_ty,
                    always: operations!(@always $($times)?),
                } ),*],
                results: &[$( Slot { name: stringify!($result), ty: $result_ty, always: true } ),+],
                attributes: operations!(@attributes
                    $($( [$field $field_ty [$($field_doc)+] [$($range)?] [$($implied)?]] )+)?
                    $( $attributes_ty )?
                ),
                stage: (Stage::$stage, operations!(@later $($later)?)),
                gradient: Gradient::$gradient,
                random: operations!(@random $($random)?),
            },
        )+)+];

        impl Op {
            /// The row of the table; `None` if the table does not describe the operation.
            #[allow(unused_variables, reason = "a row sees all attributes")]
            fn row(&self) -> Option<Row> {
                Some(match self {
                    $($( Op::$variant $({ $($field),+ })? $(( $attributes ))? => Row::$variant, )+)+
                    _ => return None,
                })
            }

            /// What is written down of the attributes, in their canonical order.
            #[allow(unused_variables, unused_mut, reason = "some rows have no attributes")]
            fn row_written(&self, node: &str) -> Option<Vec<(&'static str, Written)>> {
                Some(match self {
                    $($( Op::$variant $({ $($field),+ })? $(( $attributes ))? => {
                        let mut list: Vec<(&'static str, Written)> = Vec::new();
                        $($( attribute!(written list node $field [$($implied)?] [$($default)?]); )+)?
                        $( list.extend(<$attributes_ty as Attributes>::written($attributes, node)); )?
                        list
                    } )+)+
                    _ => return None,
                })
            }

            /// Attributes that are not in their range.
            #[allow(unused_variables, unused_mut, reason = "some rows have no attributes")]
            fn row_out_of_range(&self) -> Vec<OutOfRange> {
                let mut list: Vec<OutOfRange> = Vec::new();
                match self {
                    $($( Op::$variant $({ $($field),+ })? $(( $attributes ))? => {
                        $($( attribute!(check list $field [$($range)?]); )+)?
                        $( list.extend(<$attributes_ty as Attributes>::out_of_range($attributes)); )?
                    } )+)+
                    _ => (),
                }
                list
            }

            /// How often each operand is there.
            #[allow(unused_variables, reason = "a condition sees all attributes")]
            fn row_times(&self) -> Option<Vec<Times>> {
                Some(match self {
                    $($( Op::$variant $({ $($field),+ })? $(( $attributes ))? => {
                        vec![$( operations!(@times $($times)?) ),*]
                    } )+)+
                    _ => return None,
                })
            }

            /// The first stage in which the operation is legal with its attributes.
            #[allow(unused_variables, reason = "a condition sees all attributes")]
            fn row_stage(&self) -> Option<Stage> {
                Some(match self {
                    $($( Op::$variant $({ $($field),+ })? $(( $attributes ))? => {
                        $( if $condition { return Some(Stage::$later) } )?
                        Stage::$stage
                    } )+)+
                    _ => return None,
                })
            }

            /// For each result the name of the operand that it takes the place of.
            fn row_over(row: Row) -> &'static [Option<&'static str>] {
                match row {
                    $($( Row::$variant => &[$( operations!(@over $($over)?) ),+], )+)+
                }
            }

            /// The operation of that name with the attributes of its line; `None` if the table has none.
            #[allow(unused_variables, reason = "some rows have no attributes")]
            fn row_read<S: Source>(source: &mut S) -> Result<Option<Op>, S::Error> {
                Ok(Some(match source.mnemonic() {
                    $($( $mnemonic => Op::$variant
                        $({ $( $field: attribute!(read source $field $field_ty [$($implied)?] [$($default)?]) ),+ })?
                        $(( <$attributes_ty as Attributes>::read(source)? ))?,
                    )+)+
                    _ => return Ok(None),
                }))
            }
        }
    };
    (@attributes $([$field:ident $ty:ty [$($doc:literal)+] [$($range:ident)?] [$($implied:ident)?]])+) => {
        &[$( attribute!(declare $field $ty [$($doc)+] [$($range)?] [$($implied)?]) ),+]
    };
    (@attributes) => { &[] };
    (@attributes $ty:ty) => { <$ty as Attributes>::DECLARED };
    (@random) => { false };
    (@random random) => { true };
    (@always) => { true };
    (@always $times:expr) => { false };
    (@later) => { None };
    (@later $later:ident) => { Some(Stage::$later) };
    (@times) => { (1, 1) };
    (@times $times:expr) => { $times };
    (@over) => { None };
    (@over $over:ident) => { Some(stringify!($over)) };
}

/// Makes attributes of enums whose members have a word each (`ALL` and `name`).
macro_rules! one_of_words {
    ($($ty:ident: $form:literal;)+) => { $(
        impl Attribute for $ty {
            const FORM: &'static str = $form;

            fn written(&self, _: &str) -> Option<Written> {
                Some(Written::Plain(self.name().to_string()))
            }

            fn read<S: Source>(source: &mut S, key: &'static str) -> Result<Option<Self>, S::Error> {
                let at = source.word(key, &Self::ALL.map(Self::name))?;
                Ok(at.map(|at| Self::ALL[at]))
            }
        }
    )+ };
}

pub(crate) use {attribute, attributes, one_of_words, operations};

impl Attribute for bool {
    const FORM: &'static str = "flag";

    fn written(&self, _: &str) -> Option<Written> {
        self.then_some(Written::Flag)
    }

    /// A flag is always known: set or not.
    fn read<S: Source>(source: &mut S, key: &'static str) -> Result<Option<Self>, S::Error> {
        source.flag(key).map(Some)
    }
}

impl Attribute for Real {
    const FORM: &'static str = "number";

    fn written(&self, _: &str) -> Option<Written> {
        Some(Written::Plain(self.to_string()))
    }

    fn read<S: Source>(source: &mut S, key: &'static str) -> Result<Option<Self>, S::Error> {
        source.real(key)
    }

    fn number(&self) -> Option<f64> {
        Some(self.get())
    }
}

macro_rules! whole_numbers {
    ($($ty:ty),+) => { $(
        impl Attribute for $ty {
            const FORM: &'static str = "whole number";

            fn written(&self, _: &str) -> Option<Written> {
                Some(Written::Plain(self.to_string()))
            }

            fn read<S: Source>(source: &mut S, key: &'static str) -> Result<Option<Self>, S::Error> {
                source.whole(key)
            }

            fn number(&self) -> Option<f64> {
                Some(*self as f64)
            }
        }
    )+ };
}
whole_numbers!(usize, u32, i32);

impl Attribute for Vec<usize> {
    const FORM: &'static str = "list of whole numbers";

    fn written(&self, _: &str) -> Option<Written> {
        let list: Vec<String> = self.iter().map(usize::to_string).collect();
        Some(Written::Plain(format!("[{}]", list.join(", "))))
    }

    fn read<S: Source>(source: &mut S, key: &'static str) -> Result<Option<Self>, S::Error> {
        source.wholes(key)
    }
}

/// A name that is left out where it is that of the node.
impl Attribute for String {
    const FORM: &'static str = "name in quotes, that of the node if it is left out";

    fn written(&self, node: &str) -> Option<Written> {
        (self != node).then(|| Written::Quoted(self.clone()))
    }

    fn read<S: Source>(source: &mut S, key: &'static str) -> Result<Option<Self>, S::Error> {
        let given = source.text(key)?;
        Ok(given.or_else(|| Some(source.node().to_string())))
    }
}
