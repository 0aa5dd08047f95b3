//! Content codings (RFC 9110, 8.4 and 12.5.3): zstd and none, in both directions.
//!
//! Always true here: nobody gets a coding that was not asked for or was excluded; a body whose coding is not known here is not taken, and
//! one that is has to say how large it gets.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{
    Cache,
    answer::{Answer, store_error, text},
    upload::Incoming,
};
use crate::store::{
    StoreError,
    compression::{self, DecompressError},
};

/// Size of a body once it is decoded, in bytes, in decimal digits.
const SIZE: HeaderName = HeaderName::from_static("x-digest-sizebytes");
/// Bodies up to this size are decompressed where they are: a fraction of a millisecond.
const AT_ONCE_BYTES_MAX: u64 = 256 << 10;

/// What codings of an answer a client takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Takes {
    /// None at all.
    pub(super) plain: bool,
    /// zstd.
    pub(super) zstd: bool,
    /// Rather zstd than none. Only who names zstd does; `*` alone may not mean it.
    pub(super) rather_zstd: bool,
}

impl Takes {
    /// Reads `Accept-Encoding`. What is malformed in it is not there.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let (mut zstd, mut plain, mut other) = (None, None, None);
        for value in headers.get_all(header::ACCEPT_ENCODING) {
            for item in value.to_str().unwrap_or_default().split(',') {
                let Some((coding, weight)) = weighted(item) else { continue };
                match coding.to_ascii_lowercase().as_str() {
                    "zstd" => zstd = Some(weight),
                    "identity" => plain = Some(weight),
                    "*" => other = Some(weight),
                    _ => {}
                }
            }
        }
        Self {
            plain: plain.or(other) != Some(0),
            zstd: zstd.or(other).unwrap_or(0) > 0,
            rather_zstd: zstd.is_some_and(|zstd| zstd > 0 && zstd >= plain.unwrap_or(0)),
        }
    }
}

/// An item of a list with its weight in thousandths; `None` if it is malformed.
pub(super) fn weighted(item: &str) -> Option<(&str, u16)> {
    let mut parts = item.split(';').map(str::trim);
    let name = parts.next().filter(|name| !name.is_empty())?;
    let mut weight = 1000;
    for parameter in parts {
        if let Some((key, value)) = parameter.split_once('=')
            && key.trim().eq_ignore_ascii_case("q")
        {
            weight = thousandths(value.trim())?;
        }
    }
    Some((name, weight))
}

/// A weight as RFC 9110 has it: 0 to 1 with up to three decimals.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || decimals.len() > 3 || !decimals.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let weight = format!("{whole}{decimals:0<3}").parse().ok()?;
    (weight <= 1000).then_some(weight)
}

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// Not at all. The size is there where the client said it beside the length of the body.
    Plain { size_bytes: Option<u64> },
    /// As zstd frames of that many bytes together.
    Zstd { size_bytes: u64 },
}

/// Why a body is not taken as it is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CodingError {
    /// Its size is missing, or no number.
    Size,
    /// It is neither zstd nor plain.
    Unsupported,
}

impl CodingError {
    pub(super) fn answer(self) -> Answer {
        match self {
            Self::Size => {
                text(StatusCode::BAD_REQUEST, "X-Digest-SizeBytes has to be there, with the size of the decoded body in decimal digits")
            }
            Self::Unsupported => {
                let mut answer = text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Encoding has to be zstd, identity or absent");
                answer.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("zstd, identity"));
                answer
            }
        }
    }
}

impl Coding {
    /// Reads `Content-Encoding` and `X-Digest-SizeBytes`.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, CodingError> {
        let size_bytes = headers.get(SIZE).map(|value| size(value).ok_or(CodingError::Size)).transpose()?;
        let mut codings = headers.get_all(header::CONTENT_ENCODING).iter().map(|coding| coding.as_bytes().trim_ascii());
        match (codings.next(), codings.next()) {
            (None, _) => Ok(Self::Plain { size_bytes }),
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"identity") => Ok(Self::Plain { size_bytes }),
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"zstd") => {
                size_bytes.map(|size_bytes| Self::Zstd { size_bytes }).ok_or(CodingError::Size)
            }
            _ => Err(CodingError::Unsupported),
        }
    }
}

fn size(value: &HeaderValue) -> Option<u64> {
    let digits = value.to_str().ok()?.trim();
    // `parse` would take a sign.
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The status of what is no zstd or decompresses to something else.
pub(super) fn decompress_error(error: &DecompressError) -> Answer {
    match error {
        DecompressError::Store(error) => store_error(error),
        DecompressError::Malformed(_) | DecompressError::Cut => text(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

/// All of a decoded body in memory, at most `limit_bytes`; else the refusal.
pub(super) async fn gather(cache: &Cache, headers: &HeaderMap, incoming: &mut Incoming, limit_bytes: u64) -> Result<Bytes, Answer> {
    let size_bytes = match Coding::of(headers).map_err(CodingError::answer)? {
        Coding::Plain { .. } => return incoming.gather(limit_bytes, 0, &cache.memory).await.map_err(|broken| broken.answer()),
        Coding::Zstd { size_bytes } => size_bytes,
    };
    if size_bytes > limit_bytes {
        return Err(store_error(&StoreError::TooLarge { size_bytes, limit_bytes }));
    }
    // What does not compress becomes a little larger, and may be in many frames.
    let frames_bytes_max = limit_bytes + limit_bytes / 64 + 4096;
    let frames = incoming.gather(frames_bytes_max, size_bytes, &cache.memory).await.map_err(|broken| broken.answer())?;
    let decompress = move || {
        let room_bytes = usize::try_from(size_bytes).map_err(|_| DecompressError::Cut)?;
        compression::decompress_whole(&frames, room_bytes)
    };
    let data = match size_bytes {
        ..=AT_ONCE_BYTES_MAX => decompress(),
        _ => tokio::task::spawn_blocking(decompress)
            .await
            .unwrap_or_else(|error| Err(StoreError::Internal(format!("decompression ended: {error}")).into())),
    };
    let data = data.map_err(|error| decompress_error(&error))?;
    let sent_bytes = data.len() as u64;
    if sent_bytes != size_bytes {
        return Err(store_error(&StoreError::SizeMismatch { declared_bytes: size_bytes, sent_bytes }));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn codings_are_weighed_as_the_specification_has_it() {
        for (value, plain, zstd, rather_zstd) in [
            ("", true, false, false),
            ("zstd", true, true, true),
            ("ZSTD", true, true, true),
            ("gzip, deflate, br, zstd", true, true, true),
            ("gzip", true, false, false),
            ("identity", true, false, false),
            ("zstd;q=0", true, false, false),
            ("zstd;q=0.000, *", true, false, false),
            ("zstd;q=0.5", true, true, true),
            ("zstd;q=0.5, identity", true, true, false),
            ("zstd;q=0.5, identity;q=0.5", true, true, true),
            ("zstd ; q=0.5 , identity ; Q=0.501", true, true, false),
            ("*", true, true, false),
            ("*;q=0", false, false, false),
            ("zstd, *;q=0", false, true, true),
            ("identity;q=0", false, false, false),
            ("identity;q=0, zstd", false, true, true),
            ("identity;q=0, *", false, true, false),
            ("identity, *;q=0", true, false, false),
            ("zstd;q=2", true, false, false),
            ("zstd;q=0.1234", true, false, false),
            ("zstd;q=-1", true, false, false),
            ("zstd;q=1.001", true, false, false),
            ("zstd;level=3", true, true, true),
            (";q=1, zstd", true, true, true),
        ] {
            assert_eq!(Takes::of(&headers(&[(header::ACCEPT_ENCODING, value)])), Takes { plain, zstd, rather_zstd }, "{value:?}");
        }
        let two = headers(&[(header::ACCEPT_ENCODING, "zstd"), (header::ACCEPT_ENCODING, "identity;q=0")]);
        assert_eq!(Takes::of(&two), Takes { plain: false, zstd: true, rather_zstd: true });
        assert_eq!(Takes::of(&HeaderMap::new()), Takes { plain: true, zstd: false, rather_zstd: false });
    }

    #[test]
    fn a_body_says_how_it_is_encoded_and_how_large_it_gets() {
        use header::CONTENT_ENCODING as CODING;
        let of = |lines: &[(HeaderName, &str)]| Coding::of(&headers(lines)).map_err(|error| error.answer().status().as_u16());
        assert_eq!(of(&[]), Ok(Coding::Plain { size_bytes: None }));
        assert_eq!(of(&[(SIZE, "7")]), Ok(Coding::Plain { size_bytes: Some(7) }));
        assert_eq!(of(&[(CODING, "Identity")]), Ok(Coding::Plain { size_bytes: None }));
        assert_eq!(of(&[(CODING, "zstd"), (SIZE, " 7 ")]), Ok(Coding::Zstd { size_bytes: 7 }));
        assert_eq!(of(&[(CODING, "zstd"), (SIZE, "18446744073709551615")]), Ok(Coding::Zstd { size_bytes: u64::MAX }));
        for size in ["", "+7", "-7", "7.0", "0x7", "seven", "18446744073709551616"] {
            assert_eq!(of(&[(CODING, "zstd"), (SIZE, size)]), Err(400), "{size}");
            assert_eq!(of(&[(SIZE, size)]), Err(400), "{size}");
        }
        assert_eq!(of(&[(CODING, "zstd")]), Err(400));
        for coding in ["gzip", "br", "", "zstd, zstd", "zstd, identity"] {
            assert_eq!(of(&[(CODING, coding), (SIZE, "7")]), Err(415), "{coding}");
        }
        assert_eq!(of(&[(CODING, "zstd"), (CODING, "zstd"), (SIZE, "7")]), Err(415));
    }
}
