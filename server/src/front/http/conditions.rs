//! `Range`, `If-Range` and `If-None-Match` (RFC 9110).
//!
//! Always true here: a header that is not understood is not there; then the answer is the whole.

use http::{HeaderMap, HeaderValue, header};

/// What of a representation is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    All,
    /// `len_bytes` from `offset_bytes` on: at least one byte, all of them there.
    Range {
        offset_bytes: u64,
        len_bytes: u64,
    },
    /// The range begins behind the end.
    None,
}

/// An entity tag of these characters.
pub(super) fn etag(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("\"{text}\"")).ok()
}

/// Whether the client says that it has this already.
pub(super) fn is_known(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let tags = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    // Comparison is weak here: the prefix of a weak tag does not count.
    tags.flat_map(|list| list.split(',')).map(str::trim).any(|tag| {
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        tag == "*" || tag.as_bytes() == etag.as_bytes()
    })
}

/// The part of a representation of that size and tag that a GET asks for. Several ranges at once are not offered.
pub(super) fn part(headers: &HeaderMap, etag: &HeaderValue, size_bytes: u64) -> Part {
    let same = headers.get(header::IF_RANGE).is_none_or(|tag| tag == etag);
    let mut ranges = headers.get_all(header::RANGE).iter();
    match (same, ranges.next(), ranges.next()) {
        (true, Some(range), None) => range.to_str().ok().and_then(|range| parse(range, size_bytes)).unwrap_or(Part::All),
        _ => Part::All,
    }
}

fn parse(range: &str, size_bytes: u64) -> Option<Part> {
    let (unit, range) = range.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (offset_bytes, end_bytes) = match (first, last) {
        ("", suffix) => (size_bytes.saturating_sub(number(suffix)?), size_bytes),
        (first, "") => (number(first)?, size_bytes),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            (first, last.saturating_add(1).min(size_bytes))
        }
    };
    Some(match end_bytes.checked_sub(offset_bytes) {
        None | Some(0) => Part::None,
        Some(len_bytes) => Part::Range { offset_bytes, len_bytes },
    })
}

/// A number, or the largest where it is larger.
fn number(digits: &str) -> Option<u64> {
    // `parse` would take a sign.
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(http::HeaderName, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn one_range_is_honoured() {
        let tag = etag("abc").unwrap();
        let of = |range: &str, size| part(&headers(&[(header::RANGE, range)]), &tag, size);
        let range = |offset_bytes, len_bytes| Part::Range { offset_bytes, len_bytes };
        for (text, expected) in [
            ("bytes=0-0", range(0, 1)),
            ("bytes=2-5", range(2, 4)),
            ("bytes=2-", range(2, 8)),
            ("bytes=2-99999999999999999999999", range(2, 8)),
            ("bytes=9-9", range(9, 1)),
            ("bytes=-3", range(7, 3)),
            ("bytes=-30", range(0, 10)),
            ("Bytes = 1-1", range(1, 1)),
            ("bytes=10-", Part::None),
            ("bytes=10-20", Part::None),
            ("bytes=99999999999999999999999-", Part::None),
            ("bytes=-0", Part::None),
            ("bytes=5-2", Part::All),
            ("bytes=0-1,3-4", Part::All),
            ("bytes=+1-2", Part::All),
            ("bytes=a-b", Part::All),
            ("bytes=-", Part::All),
            ("bytes", Part::All),
            ("lines=0-1", Part::All),
        ] {
            assert_eq!(of(text, 10), expected, "{text}");
        }
        assert_eq!(of("bytes=0-", 0), Part::None);
        assert_eq!(part(&HeaderMap::new(), &tag, 10), Part::All);
    }

    #[test]
    fn a_range_of_something_else_is_not_wanted() {
        let tag = etag("abc").unwrap();
        let of = |value: &str| part(&headers(&[(header::RANGE, "bytes=0-0"), (header::IF_RANGE, value)]), &tag, 10);
        assert_eq!(of("\"abc\""), Part::Range { offset_bytes: 0, len_bytes: 1 });
        assert_eq!(of("\"abd\""), Part::All);
        assert_eq!(of("W/\"abc\""), Part::All);
    }

    #[test]
    fn tags_of_a_client_are_a_list_or_a_star() {
        let tag = etag("abc").unwrap();
        for (value, known) in [
            ("\"abc\"", true),
            ("W/\"abc\"", true),
            ("\"x\", \"abc\"", true),
            ("*", true),
            ("\"abcd\"", false),
            ("abc", false),
            ("", false),
        ] {
            assert_eq!(is_known(&headers(&[(header::IF_NONE_MATCH, value)]), &tag), known, "{value}");
        }
        assert!(!is_known(&HeaderMap::new(), &tag));
    }
}
