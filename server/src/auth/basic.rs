//! Credentials as a client sends them: `Basic`, base64 of a name, a colon and a password (RFC 7617).
//!
//! Always true here: what is read is bounded, and has none of the control characters that the RFC forbids: to bcrypt, `x` and
//! `x\0x` would be one password.

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

/// Longest header that is looked at: twice 255 bytes and a colon, in base64, have room in it.
const HEADER_BYTES_MAX: usize = 1024;
/// Some clients leave the padding out.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// A name and a password that somebody claims go together.
pub(super) struct Credentials {
    pub(super) name: Box<str>,
    pub(super) password: Vec<u8>,
}

impl Credentials {
    /// Reads the value of the header `Authorization`. `None` if it is of another kind or none at all.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        if value.len() > HEADER_BYTES_MAX {
            return None;
        }
        let (scheme, encoded) = value.split_at(value.iter().position(|byte| *byte == b' ')?);
        if !scheme.eq_ignore_ascii_case(b"basic") {
            return None;
        }
        let decoded = BASE64.decode(encoded.trim_ascii()).ok()?;
        if decoded.iter().any(u8::is_ascii_control) {
            return None;
        }
        let mut parts = decoded.splitn(2, |byte| *byte == b':');
        let (name, password) = (parts.next()?, parts.next()?);
        Some(Self { name: std::str::from_utf8(name).ok()?.into(), password: password.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Option<(String, Vec<u8>)> {
        Credentials::parse(value.as_bytes()).map(|credentials| (credentials.name.into(), credentials.password))
    }

    fn encoded(text: &[u8]) -> String {
        format!("Basic {}", BASE64.encode(text))
    }

    #[test]
    fn names_and_passwords_are_told_apart_by_the_first_colon() {
        let is = |name: &str, password: &[u8]| Some((name.to_owned(), password.to_vec()));
        // The example of RFC 7617.
        assert_eq!(read("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), is("Aladdin", b"open sesame"));
        assert_eq!(read("bASIC   QWxhZGRpbjpvcGVuIHNlc2FtZQ "), is("Aladdin", b"open sesame"));
        assert_eq!(read(&encoded(b"a:b:c")), is("a", b"b:c"));
        assert_eq!(read(&encoded(b"a:")), is("a", b""));
        assert_eq!(read(&encoded("é:\u{10ffff}".as_bytes())), is("é", "\u{10ffff}".as_bytes()));
        assert_eq!(read(&encoded(b"a:\xff")), is("a", b"\xff"));
        let longest = format!("{}:{}", "n".repeat(255), "p".repeat(255));
        assert_eq!(read(&encoded(longest.as_bytes())), is(&"n".repeat(255), "p".repeat(255).as_bytes()));
    }

    #[test]
    fn everything_else_is_none() {
        for wrong in ["", "Basic", "Basic ", "Basic !", "Basic QQ==", "Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        for wrong in [&b"a:x\0x"[..], b"a\n:x", b"a:\x7f", b"\xff:x", b"no colon", &[b'x'; 2000]] {
            assert_eq!(read(&encoded(wrong)), None, "{wrong:?}");
        }
    }
}
