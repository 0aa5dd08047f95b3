//! Values of settings that have a form of their own.
//!
//! Always true here: what is read is within its bounds, and a refusal says what would be right.

use std::str::FromStr;

use bytesize::ByteSize;

use crate::store::{DigestFunction, Instance};

/// A size in bytes, with or without a unit. `GiB` is 2^30 and `GB` is 10^9. Sizes beyond what a file can have are refused.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    match parse_bytes_or_none(text)? {
        0 => Err("must be more than 0".into()),
        bytes => Ok(bytes),
    }
}

/// The same of what may be left out, by a size of 0.
pub(super) fn parse_bytes_or_none(text: &str) -> Result<u64, String> {
    let ByteSize(bytes) = text.parse().map_err(|_| "not a size: give bytes, or a number with a unit such as 10GiB".to_owned())?;
    if i64::try_from(bytes).is_err() {
        return Err("must be less than 8EiB".into());
    }
    Ok(bytes)
}

/// Reads a size between these bounds, both included.
pub(super) fn bytes_in(least: u64, most: u64) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    move |text| {
        let bytes = parse_bytes(text)?;
        if (least..=most).contains(&bytes) {
            return Ok(bytes);
        }
        Err(format!("must be from {} to {}", ByteSize(least), ByteSize(most)))
    }
}

/// A number of bytes in memory. What does not fit is bounded by the memory.
pub(super) fn saturated(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// `[INSTANCE=]on|off`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PerInstanceSwitch {
    pub(super) instance: Option<String>,
    pub(super) on: bool,
}

impl FromStr for PerInstanceSwitch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (instance, value) = per_instance(text)?;
        let on = match value {
            "on" => true,
            "off" => false,
            _ => return Err("give on, off, INSTANCE=on or INSTANCE=off".into()),
        };
        Ok(Self { instance, on })
    }
}

/// `[INSTANCE=]FUNCTION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PerInstanceFunction {
    pub(super) instance: Option<String>,
    pub(super) function: DigestFunction,
}

impl FromStr for PerInstanceFunction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (instance, value) = per_instance(text)?;
        let function = DigestFunction::from_name(value).ok_or_else(|| {
            let names: Vec<_> = DigestFunction::ALL.iter().map(|function| function.name()).collect();
            format!("no digest function is called {value:?}; there are {}", names.join(", "))
        })?;
        Ok(Self { instance, function })
    }
}

/// What stands before the last `=`, if there is one; an instance name may have others.
fn per_instance(text: &str) -> Result<(Option<String>, &str), String> {
    let Some((instance, value)) = text.rsplit_once('=') else {
        return Ok((None, text));
    };
    if instance.len() > Instance::BYTES_MAX {
        return Err(format!("instance name is longer than {} bytes", Instance::BYTES_MAX));
    }
    Ok((Some(instance.to_owned()), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        for (text, bytes) in [
            ("4096", 4096),
            ("10GiB", 10 << 30),
            ("10gib", 10 << 30),
            ("10 GiB", 10 << 30),
            ("10GB", 10_000_000_000),
            ("1.5MiB", 3 << 19),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "-1", "ten", "10Gb/s", "8EiB", "99999999999EiB", "GiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_bounds() {
        let parse = bytes_in(4096, 1 << 20);
        assert_eq!((parse("4KiB"), parse("1MiB")), (Ok(4096), Ok(1 << 20)));
        for text in ["4095", "1048577"] {
            assert!(parse(text).unwrap_err().contains("from 4.0 KiB to 1.0 MiB"), "{text}");
        }
    }

    #[test]
    fn instances_stand_in_front() {
        let switch = |text: &str| text.parse::<PerInstanceSwitch>().map(|switch| (switch.instance, switch.on));
        assert_eq!(switch("off"), Ok((None, false)));
        assert_eq!(switch("ci/linux=on"), Ok((Some("ci/linux".into()), true)));
        assert_eq!(switch("=on"), Ok((Some(String::new()), true)));
        assert_eq!(switch("a=b=on"), Ok((Some("a=b".into()), true)));
        let function = |text: &str| text.parse::<PerInstanceFunction>().map(|default| (default.instance, default.function));
        assert_eq!(function("buck=blake3"), Ok((Some("buck".into()), DigestFunction::Blake3)));
        assert!(function("buck=murmur3").unwrap_err().contains("gitsha1"));
        for text in ["", "maybe", "ci=", "ci=maybe"] {
            assert!(switch(text).is_err() && function(text).is_err(), "{text}");
        }
        assert!(switch(&format!("{}=on", "x".repeat(1025))).is_err());
    }
}
