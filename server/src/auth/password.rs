//! Hashes of passwords: bcrypt and SHA-crypt, which have a salt and take as long as they were told to.
//!
//! Always true here: a hash that was taken is whole, and comparing a password with it takes a bounded time; a refusal quotes nothing of it.

use sha_crypt::{PasswordVerifier, ShaCrypt};

/// bcrypt's time is 2 to the power of this. At 14 it is about a second.
const BCRYPT_COST: std::ops::RangeInclusive<u32> = 4..=14;
/// Rounds of SHA-crypt: crypt(3) knows no fewer. At most about a second as well.
const SHA_ROUNDS: std::ops::RangeInclusive<u32> = 1000..=1_000_000;
/// crypt(3) uses no more of it.
const SHA_SALT_BYTES_MAX: usize = 16;
/// The digits of base64 as crypt(3) has them, in the order of their values.
const CRYPT_DIGITS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What a password is compared with.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Hash {
    Bcrypt(Box<str>),
    Sha(Box<str>),
}

impl Hash {
    /// Reads a hash as it stands in a file.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let weak = |what: &str| Err(format!("{what}; make the line again with `htpasswd -B`"));
        if let Some((kind, rest)) = text.strip_prefix('$').and_then(|rest| rest.split_once('$')) {
            return match kind {
                "2a" | "2b" | "2y" => bcrypt_hash(text, rest),
                "5" => sha_hash(text, rest, 43, 16),
                "6" => sha_hash(text, rest, 86, 4),
                "apr1" | "1" => weak("an MD5 hash is guessed too quickly"),
                _ => weak("a hash of this kind is not supported, only those of bcrypt and SHA-crypt are"),
            };
        }
        match text {
            "" => weak("no hash stands behind the name"),
            _ if text.starts_with("{SHA}") => weak("a SHA-1 hash without a salt is guessed too quickly"),
            _ => weak("this is a password in plain text, or a hash that is guessed as quickly"),
        }
    }

    /// Whether it is the hash of this password. Takes some milliseconds, or a second; the comparison itself takes the same time whatever
    /// it comes to.
    pub(super) fn is_of(&self, password: &[u8]) -> bool {
        match self {
            // Of a longer password 72 bytes count, as for htpasswd.
            Self::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
            Self::Sha(hash) => ShaCrypt::default().verify_password(password, &**hash).is_ok(),
        }
    }
}

fn bcrypt_hash(text: &str, rest: &str) -> Result<Hash, String> {
    let parts: bcrypt::HashParts =
        text.parse().map_err(|_| "this bcrypt hash is not whole; make the line again with `htpasswd -B`".to_owned())?;
    let digits = rest.bytes().take(2).all(|byte| byte.is_ascii_digit());
    if !digits || !BCRYPT_COST.contains(&parts.get_cost()) {
        let (least, most) = (BCRYPT_COST.start(), BCRYPT_COST.end());
        return Err(format!("the cost of this bcrypt hash is not from {least} to {most}; make the line again with `htpasswd -B -C 10`"));
    }
    Ok(Hash::Bcrypt(text.into()))
}

/// `[rounds=N$]salt$hash`, the hash of so many digits, of which the last one is less than `last_below`.
fn sha_hash(text: &str, rest: &str, digits: usize, last_below: usize) -> Result<Hash, String> {
    let again = "make the line again with `htpasswd -5`";
    let mut parts = rest.split('$');
    let mut next = parts.next().unwrap_or_default();
    if let Some(rounds) = next.strip_prefix("rounds=") {
        let rounds = rounds.bytes().all(|byte| byte.is_ascii_digit()).then(|| rounds.parse().ok()).flatten();
        if !rounds.is_some_and(|rounds| SHA_ROUNDS.contains(&rounds)) {
            let (least, most) = (SHA_ROUNDS.start(), SHA_ROUNDS.end());
            return Err(format!("the rounds of this SHA-crypt hash are not from {least} to {most}; {again} -r 5000"));
        }
        next = parts.next().unwrap_or_default();
    }
    let (salt, hash) = (next, parts.next().unwrap_or_default());
    let digit = |byte: u8| CRYPT_DIGITS.iter().position(|digit| *digit == byte);
    if salt.is_empty() {
        return Err(format!("this SHA-crypt hash has no salt; {again}"));
    }
    let whole = salt.len() <= SHA_SALT_BYTES_MAX
        && salt.bytes().all(|byte| digit(byte).is_some())
        && hash.len() == digits
        && hash.bytes().all(|byte| digit(byte).is_some())
        && hash.bytes().last().and_then(digit).is_some_and(|last| last < last_below)
        && parts.next().is_none();
    match whole {
        true => Ok(Hash::Sha(text.into())),
        false => Err(format!("this SHA-crypt hash is not whole; {again}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by Apache's htpasswd 2.4.71 and by `openssl passwd` 3.0.
    const HASHES: [(&str, &str); 5] = [
        ("wonderland", "$2y$04$nOkICUsgGg6PyVyqzneLJeeuZsGr4W6hJM52MtGCgY/rxzAHG9IKW"),
        ("pw", "$6$abcdefgh$KQeXafAQAaOoKTevphVU215RvJdgzyfASRasIOuh12hO8u0r1bGW92ZnTmC9IjsiQ8VPiTXBiZF49dFL1U4wX/"),
        ("correct horse", "$5$ja7jpjnUsLa9QX4q$IhCsObaxuxV5/QpPrg8ACAATMqRnfMapiU7KWJWqMUD"),
        (
            "battery",
            "$6$rounds=1000$QocjI1TADYnSYxhG$Ujlosk9d5bsZZPpFCjXPwjzBdbP2gJvDK4ShioDTyXCnTkdIii/kPOksyEhdfcI7hOvUNaMkxUamqm4RHiAsX/",
        ),
        ("stäple", "$5$rounds=2000$PjxMbKFmOe2h3w9.$y1G.hP/QFyO4nVnpJK9z0NAqU3TW/FRYUnAYyriuM2A"),
    ];
    const BCRYPT: &str = HASHES[0].1;
    const SHA: &str = HASHES[1].1;

    #[test]
    fn hashes_that_others_made_are_of_their_passwords_and_no_others() {
        for (password, text) in HASHES {
            let hash = Hash::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert!(hash.is_of(password.as_bytes()), "{text}");
            for wrong in [&password[1..], &format!("{password}x"), &password.to_uppercase(), ""] {
                assert!(!hash.is_of(wrong.as_bytes()), "{text}: {wrong}");
            }
        }
        for version in ["2a", "2b"] {
            assert!(Hash::parse(&BCRYPT.replace("2y", version)).unwrap().is_of(b"wonderland"), "{version}");
        }
    }

    #[test]
    fn what_is_weak_broken_or_takes_too_long_is_refused_and_not_quoted() {
        let with_rounds = |rounds: &str| SHA.replace("$6$", &format!("$6$rounds={rounds}$"));
        assert!(Hash::parse(&with_rounds("1000")).is_ok() && Hash::parse(&with_rounds("1000000")).is_ok());
        for cost in ["04", "14"] {
            assert!(Hash::parse(&BCRYPT.replace("$04$", &format!("${cost}$"))).is_ok(), "{cost}");
        }
        for (text, named) in [
            (String::new(), "no hash"),
            ("secret".into(), "plain text"),
            ("$secret".into(), "plain text"),
            ("rqXexS6ZhobKA".into(), "plain text"),
            ("{SHA}6vmGWVjjRpaEe0G3mfFRHM7XqIc=".into(), "SHA-1"),
            ("$apr1$abcdefgh$7WQjTIDkIRUI7VGQpNNWv.".into(), "MD5"),
            ("$1$abcdefgh$sQkJpYkTmVGqMkuzMGSdX1".into(), "MD5"),
            ("$argon2id$v=19$m=16,t=2,p=1$c2FsdHNhbHQ$x".into(), "not supported"),
            ("$2x$04$nOkICUsgGg6PyVyqzneLJeeuZsGr4W6hJM52MtGCgY/rxzAHG9IKW".into(), "not supported"),
            (BCRYPT[..59].into(), "not whole"),
            (format!("{BCRYPT}x"), "not whole"),
            (BCRYPT.replace("$04$", "$03$"), "from 4 to 14"),
            (BCRYPT.replace("$04$", "$15$"), "from 4 to 14"),
            (BCRYPT.replace("$04$", "$+5$"), "from 4 to 14"),
            (with_rounds("999"), "from 1000 to 1000000"),
            (with_rounds("1000001"), "from 1000 to 1000000"),
            (with_rounds("+1000"), "from 1000 to 1000000"),
            (with_rounds(""), "from 1000 to 1000000"),
            (with_rounds("99999999999999999999"), "from 1000 to 1000000"),
            (SHA.replace("abcdefgh", ""), "no salt"),
            (SHA.replace("abcdefgh", "abcdefghabcdefghi"), "not whole"),
            (SHA.replace("abcdefgh", "abc efgh"), "not whole"),
            (SHA.replace("wX/", "wX"), "not whole"),
            (SHA.replace("wX/", "wXz"), "not whole"),
            (SHA.replace("wX/", "wX/$"), "not whole"),
            (SHA.replace("$6$", "$5$"), "not whole"),
            ("$6$".into(), "no salt"),
            ("$5$x".into(), "not whole"),
        ] {
            let Err(why) = Hash::parse(&text) else { panic!("{text} was taken") };
            assert!(why.contains(named) && why.contains("htpasswd -"), "{text}: {why}");
            assert!(!text.contains("secret") || !why.contains("secret"), "{why}");
        }
    }
}
