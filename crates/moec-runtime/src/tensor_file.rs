//! Tensors by name in safetensors files, byte-reproducible: the metadata holds one key at most, because the format's
//! library writes several in random order.

use crate::files::{RealFiles, replace};
use moec_ir::{Data, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, View};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::path::Path;

/// Longer headers are refused: this is room for tens of thousands of tensors, and reading a hostile one takes seconds.
pub(crate) const MAX_HEADER: u64 = 4 << 20;

/// Why a safetensors file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorFileError {
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file breaks the format.
    #[error("{path} is not a safetensors file, or a damaged one: {reason}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor has an element type that models here do not have.
    #[error("{path}: tensor `{name}` has the element type {dtype}; F32, F64 and I32 can be read")]
    ElementType {
        /// The file.
        path: String,
        /// The tensor.
        name: String,
        /// Its element type.
        dtype: String,
    },
}

/// What a safetensors file says of a tensor before its data.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// The type of its elements.
    pub(crate) dtype: Dtype,
    /// Its shape.
    pub(crate) shape: &'a [usize],
}

/// An entry as the format's library sees it: without data, but noting when they would be written.
struct Announced<'a> {
    index: usize,
    entry: &'a Entry<'a>,
    order: &'a RefCell<Vec<usize>>,
}

impl View for Announced<'_> {
    fn dtype(&self) -> Dtype {
        self.entry.dtype
    }

    fn shape(&self) -> &[usize] {
        self.entry.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.order.borrow_mut().push(self.index);
        Cow::Borrowed(&[])
    }

    fn data_len(&self) -> usize {
        self.entry.shape.iter().product::<usize>() * self.entry.dtype.bitsize() / 8
    }
}

/// Writes a safetensors file. `tensor` is asked for the data of one entry after the other, in the order of the file, so
/// that only one of them is in memory.
pub(crate) fn write_entries(
    entries: &[Entry<'_>],
    tensor: &mut dyn FnMut(usize) -> io::Result<Tensor>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let order = RefCell::default();
    let announced =
        entries.iter().enumerate().map(|(index, entry)| (entry.name, Announced { index, entry, order: &order }));
    // "pt" tells PyTorch's tools that the axes are in its order.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let header = safetensors::serialize(announced, Some(metadata)).map_err(io::Error::other)?;
    out.write_all(&header)?;
    for index in order.into_inner() {
        let (entry, tensor) = (&entries[index], tensor(index)?);
        if tensor.shape() != entry.shape {
            return Err(io::Error::other(format!("tensor `{}` has another shape than announced", entry.name)));
        }
        match (tensor.data(), entry.dtype) {
            (Data::F32(v), Dtype::F32) => write_elements(v, |x| x.to_le_bytes(), out)?,
            (Data::F64(v), Dtype::F64) => write_elements(v, |x| x.to_le_bytes(), out)?,
            (Data::I32(v), Dtype::I32) => write_elements(v, |x| x.to_le_bytes(), out)?,
            _ => return Err(io::Error::other(format!("tensor `{}` has other elements than announced", entry.name))),
        }
    }
    Ok(())
}

/// Writes elements, some thousand at a time.
fn write_elements<T: Copy, const N: usize>(
    elements: &[T],
    bytes: impl Fn(T) -> [u8; N],
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    for chunk in elements.chunks(1 << 14) {
        buffer.clear();
        buffer.extend(chunk.iter().flat_map(|&x| bytes(x)));
        out.write_all(&buffer)?;
    }
    Ok(())
}

/// The element type of a tensor in a file: what it is in memory.
pub(crate) fn dtype_of(tensor: &Tensor) -> Dtype {
    match tensor.data() {
        Data::F32(_) => Dtype::F32,
        Data::F64(_) => Dtype::F64,
        Data::I32(_) => Dtype::I32,
    }
}

/// Writes tensors that are in memory.
fn write_map(tensors: &BTreeMap<String, Tensor>, out: &mut dyn Write) -> io::Result<()> {
    let entries: Vec<Entry<'_>> =
        tensors.iter().map(|(name, tensor)| Entry { name, dtype: dtype_of(tensor), shape: tensor.shape() }).collect();
    write_entries(&entries, &mut |index| Ok(tensors[entries[index].name].clone()), out)
}

/// The tensors of a safetensors file.
pub(crate) fn decode(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, TensorFileError> {
    let shown = || path.display().to_string();
    let format = |reason: String| TensorFileError::Format { path: shown(), reason };
    let header = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
    match header {
        None => return Err(format("it is shorter than the length of its header".into())),
        Some(length) if length > MAX_HEADER => {
            return Err(format(format!("its header claims {length} bytes; {MAX_HEADER} are accepted")));
        }
        Some(_) => {}
    }
    let file = SafeTensors::deserialize(bytes).map_err(|e| format(e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let bytes = view.data();
        let data = match view.dtype() {
            Dtype::F32 => Data::F32(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::F64 => Data::F64(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()),
            Dtype::I32 => Data::I32(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()),
            other => {
                let (name, dtype) = (name.to_string(), format!("{other:?}"));
                return Err(TensorFileError::ElementType { path: shown(), name, dtype });
            }
        };
        let tensor = Tensor::new(view.shape(), data)
            .ok_or_else(|| format(format!("tensor `{name}` has a shape of another size than its data")))?;
        tensors.insert(name.to_string(), tensor);
    }
    Ok(tensors)
}

/// Reads all tensors of a safetensors file.
///
/// # Errors
/// When the file cannot be read, is no safetensors file, has a header above 4 MiB, or holds other element types than
/// F32, F64 and I32.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, TensorFileError> {
    let failed = |source| TensorFileError::Io { path: path.display().to_string(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        let reason = "it is no ordinary file".to_string();
        return Err(TensorFileError::Format { path: path.display().to_string(), reason });
    }
    decode(path, &std::fs::read(path).map_err(failed)?)
}

/// Writes tensors as a safetensors file, whole or not at all.
///
/// # Errors
/// When the file cannot be written.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<(), TensorFileError> {
    replace(&RealFiles, path, &mut |out| write_map(tensors, out))
        .map_err(|source| TensorFileError::Io { path: path.display().to_string(), source })
}

/// The bytes of a safetensors file.
#[cfg(test)]
pub(crate) fn encode(tensors: &BTreeMap<String, Tensor>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    write_map(tensors, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> BTreeMap<String, Tensor> {
        BTreeMap::from([
            ("b".to_string(), Tensor::new([2, 3], Data::F32(vec![1.0, -2.5, 0.0, 3.5e-40, 7.0, -0.0])).unwrap()),
            ("a".to_string(), Tensor::new([1], Data::F64(vec![1.0 / 3.0])).unwrap()),
            ("c".to_string(), Tensor::ints([i32::MIN, 0, i32::MAX])),
            ("scalar".to_string(), Tensor::new([], Data::F32(vec![2.0])).unwrap()),
        ])
    }

    #[test]
    fn bits_survive_and_bytes_repeat() {
        let bytes = encode(&tensors()).unwrap();
        assert_eq!(decode(Path::new("x"), &bytes).unwrap(), tensors());
        for _ in 0..20 {
            assert_eq!(encode(&tensors()).unwrap(), bytes);
        }
    }

    #[test]
    fn damaged_files_are_refused() {
        let bytes = encode(&tensors()).unwrap();
        for length in 0..bytes.len() {
            assert!(decode(Path::new("x"), &bytes[..length]).is_err(), "{length}");
        }
        let mut long = bytes.clone();
        long[..8].copy_from_slice(&(MAX_HEADER + 1).to_le_bytes());
        let error = decode(Path::new("x"), &long).unwrap_err().to_string();
        assert!(error.contains("4194304 are accepted"), "{error}");
        long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode(Path::new("x"), &long).is_err());
    }

    #[test]
    fn other_element_types_are_named() {
        let view = safetensors::tensor::TensorView::new(Dtype::BF16, vec![1], &[0, 0]).unwrap();
        let bytes = safetensors::serialize([("half", view)], None).unwrap();
        let error = decode(Path::new("x"), &bytes).unwrap_err();
        assert_eq!(error.to_string(), "x: tensor `half` has the element type BF16; F32, F64 and I32 can be read");
    }

    #[test]
    fn files_are_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        write_tensors(&path, &tensors()).unwrap();
        assert_eq!(read_tensors(&path).unwrap(), tensors());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(matches!(read_tensors(&path.with_extension("none")), Err(TensorFileError::Io { .. })));
        // Neither a folder nor a device is read.
        for other in [folder.path(), Path::new("/dev/null")] {
            assert!(matches!(read_tensors(other), Err(TensorFileError::Format { .. })));
        }
        assert!(matches!(write_tensors(&path.join("x"), &tensors()), Err(TensorFileError::Io { .. })));
    }
}
