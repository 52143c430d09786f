//! Event files as TensorBoard reads them: records of TensorFlow (a length, the bytes, and a masked CRC-32C of either) that
//! hold a protocol buffer `Event` each (`tensorflow/core/util/event.proto`, `tensorflow/core/framework/summary.proto`). Of
//! these, only the few fields that a scalar needs.

/// An event file in the making, or records that are added to one.
#[derive(Debug, Default)]
pub(crate) struct EventFile {
    bytes: Vec<u8>,
}

impl EventFile {
    /// A file without events but the one that says its version, begun in this second.
    pub(crate) fn new(seconds: f64) -> Self {
        let mut file = Self { bytes: Vec::new() };
        let mut event = Message::default();
        event.double(1, seconds);
        event.text(3, "brain.Event:2");
        file.record(&event.0);
        file
    }

    /// Adds a number under a tag, at a step that was made after so many seconds.
    pub(crate) fn scalar(&mut self, seconds: f64, step: u64, tag: &str, value: f32) {
        let (mut number, mut summary, mut event) = (Message::default(), Message::default(), Message::default());
        number.text(1, tag);
        number.float(2, value);
        summary.bytes(1, &number.0);
        event.double(1, seconds);
        event.whole(2, step);
        event.bytes(5, &summary.0);
        self.record(&event.0);
    }

    /// Says that a program begins again at this step: what files before this one say of it and later steps no longer
    /// counts (`SessionLog` with `START`).
    pub(crate) fn begin_again(&mut self, seconds: f64, step: u64) {
        let (mut session, mut event) = (Message::default(), Message::default());
        session.whole(1, 1);
        event.double(1, seconds);
        event.whole(2, step);
        event.bytes(7, &session.0);
        self.record(&event.0);
    }

    /// What the file holds.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn record(&mut self, data: &[u8]) {
        let length = (data.len() as u64).to_le_bytes();
        for part in [&length[..], &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()] {
            self.bytes.extend_from_slice(part);
        }
    }
}

/// Turned and shifted, so that the sum of bytes that hold sums is not one of those (`tensorflow/core/lib/hash/crc32c.h`).
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protocol buffer message: fields one after another, each a key (its number and how it is written) and a value.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// Seven bits a byte, the lowest first; all but the last byte have the highest bit set.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, written: u64) {
        self.varint(field << 3 | written);
    }

    fn whole(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn text(&mut self, field: u64, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_as_tensorflow_writes_them() {
        let mut file = EventFile::new(0.0);
        // The first record of every event file: length 24, and the sums of it.
        assert_eq!(file.bytes()[..12], [24, 0, 0, 0, 0, 0, 0, 0, 163, 127, 75, 34]);
        let first = file.bytes().len();
        file.scalar(1.5, 300, "loss", 2.5);
        let record = &file.bytes()[first..];
        let event = [
            &[9][..],
            &1.5f64.to_le_bytes(),
            &[16, 0xac, 2, 42, 13, 10, 11, 10, 4],
            b"loss",
            &[21],
            &2.5f32.to_le_bytes(),
        ]
        .concat();
        assert_eq!(record[..8], (event.len() as u64).to_le_bytes());
        assert_eq!(record[12..record.len() - 4], event);
        assert_eq!(record[record.len() - 4..], masked_crc(&event).to_le_bytes());
    }
}
