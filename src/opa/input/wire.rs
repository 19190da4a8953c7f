//! Reading protobuf's wire format, field by field, without copying.
//!
//! Knows nothing about messages. Groups are refused: no message of Envoy's uses them.

/// Why bytes are not an acceptable message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("the message is cut short")]
    Cut,
    #[error("a variable-length integer is longer than 10 bytes")]
    Varint,
    #[error("a field has a wire type that its message does not allow")]
    WireType,
    #[error("a text field holds bytes that are not UTF-8")]
    Utf8,
    #[error("a field that may appear once appears twice")]
    Repeated,
    #[error("nested deeper than {0} levels")]
    Depth(usize),
}

/// The content of one field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Payload<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Payload<'a> {
    pub fn bytes(self) -> Result<&'a [u8], WireError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(WireError::WireType),
        }
    }

    pub fn text(self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError::Utf8)
    }

    pub fn varint(self) -> Result<u64, WireError> {
        match self {
            Self::Varint(number) => Ok(number),
            _ => Err(WireError::WireType),
        }
    }

    pub fn double(self) -> Result<f64, WireError> {
        match self {
            Self::Fixed64(bits) => Ok(f64::from_bits(bits)),
            _ => Err(WireError::WireType),
        }
    }
}

/// The fields of one message, in the order of the wire.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let mut number = 0u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or(WireError::Cut)?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or_default();
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(WireError::Varint)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(WireError::Cut)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.try_into().map_err(|_| WireError::Cut)
    }

    fn field(&mut self) -> Result<(u32, Payload<'a>), WireError> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| WireError::WireType)?;
        let payload = match tag & 7 {
            0 => Payload::Varint(self.varint()?),
            1 => Payload::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| WireError::Cut)?;
                Payload::Bytes(self.take(len)?)
            }
            5 => Payload::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(WireError::WireType),
        };
        Ok((number, payload))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Payload<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// The two halves of a map entry: an absent key or value is the type's zero.
pub fn entry(message: &[u8]) -> Result<(&str, &[u8]), WireError> {
    let (mut key, mut value) = ("", &[][..]);
    for field in Fields::of(message) {
        match field? {
            (1, payload) => key = payload.text()?,
            (2, payload) => value = payload.bytes()?,
            _ => {}
        }
    }
    Ok((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(u32, Payload<'_>)>, WireError> {
        Fields::of(bytes).collect()
    }

    #[test]
    fn each_wire_type_is_read() {
        assert_eq!(read(&[0x08, 0x96, 0x01]), Ok(vec![(1, Payload::Varint(150))]));
        assert_eq!(read(&[0x12, 2, b'h', b'i']), Ok(vec![(2, Payload::Bytes(b"hi"))]));
        assert_eq!(read(&[0x0d, 1, 0, 0, 0]), Ok(vec![(1, Payload::Fixed32(1))]));
        assert_eq!(read(&[0x09, 1, 0, 0, 0, 0, 0, 0, 0]), Ok(vec![(1, Payload::Fixed64(1))]));
    }

    #[test]
    fn malformed_bytes_are_errors_and_end_the_reading() {
        for (name, bytes, want) in [
            ("cut varint", &[0x08, 0x80][..], WireError::Cut),
            ("cut bytes", &[0x12, 9, 1], WireError::Cut),
            ("endless varint", &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], WireError::Varint),
            ("group", &[0x0b], WireError::WireType),
            ("length beyond memory", &[0x12, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], WireError::Cut),
        ] {
            assert_eq!(read(bytes), Err(want), "{name}");
        }
    }
}
