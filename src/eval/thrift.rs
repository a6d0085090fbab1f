//! Thrift's compact protocol, as far as the headers of Parquet files use it.

use std::io::{self, Read};

/// How deep values may lie in each other. Those of Parquet are at most eight deep.
const DEPTH: u32 = 32;

/// The type that a value must have. The parquet crate reads the fields that it knows as what they
/// should be, whatever type they say they have. So with another type, a file would say one thing
/// here, and another one there.
#[derive(Clone, Copy)]
pub enum Shape {
    Bool,
    Byte,
    Int,
    Float,
    Text,
    List(&'static Shape),
    Struct(&'static [(i16, Shape)]),
}

impl Shape {
    /// Returns whether it has a type, by the number of the compact protocol.
    fn has(self, kind: u8) -> bool {
        match self {
            Self::Bool => matches!(kind, 1 | 2),
            Self::Byte => kind == 3,
            Self::Int => matches!(kind, 4..=6),
            Self::Float => kind == 7,
            Self::Text => kind == 8,
            Self::List(_) => matches!(kind, 9 | 10),
            Self::Struct(_) => kind == 12,
        }
    }
}

/// A structure: its fields, by their numbers.
#[derive(Debug, PartialEq)]
pub struct Struct(Vec<(i16, Value)>);

/// A value. Texts, booleans and floats are passed over, whatever their size.
#[derive(Debug, PartialEq)]
pub enum Value {
    Int(i64),
    List(Vec<Value>),
    Struct(Struct),
    Other,
}

impl Struct {
    /// Reads a structure with the fields of `known`, and maybe others, and returns how many bytes
    /// it takes, too. Takes no more memory than its bytes justify, whatever sizes they claim.
    ///
    /// # Errors
    /// The reader fails or ends, or its bytes are no such structure.
    pub fn read(reader: impl Read, known: &[(i16, Shape)]) -> io::Result<(Self, u64)> {
        let mut input = Input { reader, count: 0 };
        let read = input.structure(known, DEPTH)?;
        Ok((read, input.count))
    }

    /// Returns an integer field, with 32 bits as all of Parquet's headers. `None` if it is absent.
    ///
    /// # Errors
    /// The field has another type.
    pub fn int(&self, field: i16) -> Result<Option<i32>, String> {
        match self.get(field) {
            None => Ok(None),
            #[expect(clippy::cast_possible_truncation, reason = "as the parquet crate reads it")]
            Some(Value::Int(value)) => Ok(Some(*value as i32)),
            Some(_) => Err(format!("field {field} of a header is no integer")),
        }
    }

    /// Returns a field that is a structure.
    ///
    /// # Errors
    /// The field has another type.
    pub fn structure(&self, field: i16) -> Result<Option<&Self>, String> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Struct(value)) => Ok(Some(value)),
            Some(_) => Err(format!("field {field} of a header is no structure")),
        }
    }

    /// Returns the structures in a field that is a list of them.
    ///
    /// # Errors
    /// The field has another type, or an element has.
    pub fn structures(&self, field: i16) -> Result<Vec<&Self>, String> {
        let elements = match self.get(field) {
            None => &[],
            Some(Value::List(elements)) => &elements[..],
            Some(_) => return Err(format!("field {field} of a header is no list")),
        };
        let structures = elements.iter().map(|element| match element {
            Value::Struct(value) => Ok(value),
            _ => Err(format!("field {field} of a header is no list of structures")),
        });
        structures.collect()
    }

    fn get(&self, field: i16) -> Option<&Value> {
        self.0.iter().find(|(number, _)| *number == field).map(|(_, value)| value)
    }
}

/// Reads Thrift's numbers, which delta encoding has, too.
pub struct Input<R> {
    pub reader: R,
    /// How many bytes were read.
    pub count: u64,
}

impl<R: Read> Input<R> {
    /// Reads a byte.
    pub fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte)?;
        self.count += 1;
        Ok(byte[0])
    }

    /// Passes over bytes.
    pub fn skip(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.reader.by_ref().take(count), &mut io::sink())?;
        self.count += skipped;
        if skipped == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Reads an unsigned integer: seven bits in each byte, the lowest ones first.
    pub fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(invalid("a number has more than 64 bits"))
    }

    /// Reads a signed integer.
    fn signed(&mut self) -> io::Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    fn structure(&mut self, known: &[(i16, Shape)], depth: u32) -> io::Result<Struct> {
        let mut fields: Vec<(i16, Value)> = vec![];
        let mut number = 0_i16;
        loop {
            let header = self.byte()?;
            let (step, kind) = (header >> 4, header & 15);
            if kind == 0 {
                return Ok(Struct(fields));
            }
            number = match step {
                0 => self.signed()?.try_into().ok(),
                step => number.checked_add(step.into()),
            }
            .ok_or_else(|| invalid("a field's number has more than 16 bits"))?;
            if fields.iter().any(|(other, _)| *other == number) {
                return Err(invalid(&format!("it has the field {number} twice")));
            }
            let shape = known.iter().find(|(field, _)| *field == number).map(|(_, shape)| *shape);
            fields.push((number, self.value(kind, shape, depth)?));
        }
    }

    fn value(&mut self, kind: u8, shape: Option<Shape>, depth: u32) -> io::Result<Value> {
        let depth = depth.checked_sub(1).ok_or_else(|| invalid("it is too deep"))?;
        if shape.is_some_and(|shape| !shape.has(kind)) {
            return Err(invalid(&format!("a value has the wrong type, {kind}")));
        }
        match (kind, shape) {
            // The type of a field says which boolean it is.
            (1 | 2, _) => {}
            (3, _) => self.skip(1)?,
            (4..=6, _) => return self.signed().map(Value::Int),
            (7, _) => self.skip(8)?,
            (8, _) => {
                let count = self.varint()?;
                self.skip(count)?;
            }
            (9 | 10, Some(Shape::List(element))) => return self.list(Some(*element), depth).map(Value::List),
            (9 | 10, _) => return self.list(None, depth).map(Value::List),
            (12, Some(Shape::Struct(known))) => return self.structure(known, depth).map(Value::Struct),
            (12, _) => return self.structure(&[], depth).map(Value::Struct),
            (13, _) => self.skip(16)?,
            // The headers have no mappings.
            _ => return Err(invalid(&format!("it has a value of type {kind}"))),
        }
        Ok(Value::Other)
    }

    fn list(&mut self, shape: Option<Shape>, depth: u32) -> io::Result<Vec<Value>> {
        let header = self.byte()?;
        let count = match header >> 4 {
            15 => self.varint()?,
            count => count.into(),
        };
        // Nor lists of booleans, which readers disagree on.
        let kind = header & 15;
        if count > 0 && kind <= 2 {
            return Err(invalid(&format!("it has a list of type {kind}")));
        }
        // Each element takes a byte of the input at least, which ends.
        let mut elements = vec![];
        for _ in 0..count {
            elements.push(self.value(kind, shape, depth)?);
        }
        Ok(elements)
    }
}

fn invalid(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a header makes no sense: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<(Struct, u64), String> {
        Struct::read(bytes, &[(6, Shape::Int), (7, Shape::List(&Shape::Text))]).map_err(|e| e.to_string())
    }

    #[test]
    fn fields_are_found_by_their_numbers() {
        // 1: -3, 2: true, 3: "ab", 4: a float, 20: [{1: 1}, {}], 21: {5: 300}, and 6: 7.
        let bytes = b"\x15\x05\x11\x18\x02ab\x1700000000\x09\x28\x2c\x15\x02\0\0\x1c\x55\xd8\x04\0\x05\x0c\x0e\0after";
        let (read, count) = read(bytes).unwrap();
        assert_eq!(count, bytes.len() as u64 - 5);
        assert_eq!((read.int(1), read.int(6), read.int(9)), (Ok(Some(-3)), Ok(Some(7)), Ok(None)));
        assert_eq!(read.structure(21).unwrap().unwrap().int(5), Ok(Some(300)));
        let elements: Vec<_> = read.structures(20).unwrap().iter().map(|element| element.int(1)).collect();
        assert_eq!(elements, [Ok(Some(1)), Ok(None)]);
        for wrong in [read.int(2).is_err(), read.structure(1).is_err(), read.structures(21).is_err()] {
            assert!(wrong);
        }
    }

    #[test]
    fn what_is_no_header_is_an_error() {
        for (bytes, named) in [
            (&b"\x15"[..], "fill whole buffer"),
            (b"\x18\x05ab", "unexpected end of file"),
            (b"\x15\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\0", "more than 64 bits"),
            (b"\x19\xf5\xff\xff\xff\xff\x0f", "fill whole buffer"),
            (b"\x19\xf1\xff\xff\xff\xff\x07\0", "a list of type 1"),
            (b"\x1b\x01\x55\x02\x02\0", "a value of type 11"),
            (&[0x1c; 100], "it is too deep"),
            (b"\x15\x02\x05\x02\x02\0", "the field 1 twice"),
            (b"\x68\x01x\0", "the wrong type, 8"),
            (b"\x79\x15\x02\0", "the wrong type, 5"),
            (b"\x05\x80\x80\x04\x02\0", "more than 16 bits"),
        ] {
            let error = read(bytes).unwrap_err();
            assert!(error.contains(named), "{bytes:?}: {error}");
        }
    }
}
