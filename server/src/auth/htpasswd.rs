//! The file of users: a line `name:hash` for each, as Apache's htpasswd writes it.
//!
//! Always true here: a file is taken whole or not at all; every mistake is one line that names the setting, the file and the line, and quotes
//! nothing of a hash.

use std::{collections::HashMap, fmt::Display, fs::File, io::Read, path::Path};

use super::password::Hash;

/// Largest file that is read, in bytes: some ten thousand users.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest name of a user in bytes, as for htpasswd.
const NAME_BYTES_MAX: usize = 255;

/// Users and the hashes of their passwords.
pub(super) type Lines = Vec<(Box<str>, Hash)>;

/// Reads a file.
///
/// # Errors
/// The line for the user.
pub(super) fn read(path: &Path) -> Result<Lines, String> {
    let cannot = |why: &dyn Display| format!("--htpasswd-file {}: {why}", path.display());
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| cannot(&format!("cannot open: {error}; `htpasswd -cB FILE NAME` makes one")))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| cannot(&format!("cannot read: {error}")))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(cannot(&"larger than 1 MiB, which no file of users is"));
    }
    let lines = parse(&bytes).map_err(|(line, why)| format!("--htpasswd-file {}:{line}: {why}", path.display()))?;
    match lines.is_empty() {
        true => Err(cannot(&"there is no user in it; `htpasswd -B FILE NAME` adds one")),
        false => Ok(lines),
    }
}

/// What is in a file, or the number of its first wrong line and what is wrong with it.
fn parse(bytes: &[u8]) -> Result<Lines, (usize, String)> {
    let mut users = Lines::new();
    let mut places = HashMap::new();
    for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
        let (name, hash) = match user(line) {
            Ok(Some(user)) => user,
            Ok(None) => continue,
            Err(why) => return Err((number, why)),
        };
        if let Some(first) = places.insert(name, number) {
            return Err((number, format!("line {first} has the same user; leave one of them out")));
        }
        users.push((name.into(), hash));
    }
    Ok(users)
}

/// The user of a line; `None` if it is empty or a comment.
fn user(line: &[u8]) -> Result<Option<(&str, Hash)>, String> {
    let line = std::str::from_utf8(line).map_err(|_| "this is no UTF-8; write the file in UTF-8")?.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (name, rest) = line.split_once(':').ok_or("this is no name, colon and hash; `htpasswd -B` writes such lines")?;
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(format!("a name has 1 to {NAME_BYTES_MAX} bytes and no control characters"));
    }
    // What may stand behind another colon means nothing.
    let hash = rest.split(':').next().unwrap_or_default();
    Ok(Some((name, Hash::parse(hash)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$04$nOkICUsgGg6PyVyqzneLJeeuZsGr4W6hJM52MtGCgY/rxzAHG9IKW";

    #[test]
    fn users_are_read_line_by_line() {
        let text = format!("# users\r\n\r\nalice:{HASH}\r\n  bob builder:{HASH}:a comment: of two parts  \n\n\u{e9}:{HASH}");
        let users = parse(text.as_bytes()).unwrap();
        let names: Vec<_> = users.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["alice", "bob builder", "\u{e9}"]);
        assert!(users.iter().all(|(_, hash)| hash.is_of(b"wonderland")));
    }

    #[test]
    fn a_wrong_line_is_named_and_costs_the_file() {
        for (line, named) in [
            ("carol", "name, colon and hash"),
            (":", "1 to 255 bytes"),
            (&format!(":{HASH}"), "1 to 255 bytes"),
            (&format!("{}:{HASH}", "x".repeat(256)), "1 to 255 bytes"),
            (&format!("a\u{7}b:{HASH}"), "control characters"),
            (&format!("alice:{HASH}"), "line 2 has the same user"),
            ("carol:", "no hash"),
            ("carol:secret", "plain text"),
            ("carol:{SHA}6vmGWVjjRpaEe0G3mfFRHM7XqIc=", "SHA-1"),
        ] {
            let text = format!("\nalice:{HASH}\n#\n{line}\nbob:{HASH}\n");
            let Err((number, why)) = parse(text.as_bytes()) else { panic!("{line} was taken") };
            assert!(number == 4 && why.contains(named) && !why.contains("secret"), "{line}: {number}: {why}");
        }
        assert!(parse(b"a:b\xff").is_err_and(|(number, why)| number == 1 && why.contains("UTF-8")));
        // Whatever it is, it is read or refused.
        for seed in 0..5000_u64 {
            let noise = blake3::hash(&seed.to_le_bytes());
            let noise = noise.as_bytes().map(|byte| b"a:$26y04r=\n#{} \xff"[usize::from(byte) % 16]);
            let _ = parse(&noise);
        }
    }

    #[test]
    fn files_that_are_none_are_refused_with_the_setting_s_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        let refused = |named: &str| {
            let Err(line) = read(&path) else { panic!("was taken, and not refused for {named}") };
            let setting = format!("--htpasswd-file {}", path.display());
            assert!(line.starts_with(&setting) && line.contains(named) && line.lines().count() == 1, "{line}");
        };
        refused("cannot open");
        for (text, named) in
            [("", "no user"), ("# nobody\n\n", "no user"), ("\n\nx:y\n", "users:3: "), (&"#".repeat((1 << 20) + 1), "1 MiB")]
        {
            std::fs::write(&path, text).unwrap();
            refused(named);
        }
        std::fs::write(&path, format!("alice:{HASH}\n{}", "#".repeat(1 << 19))).unwrap();
        assert_eq!(read(&path).map(|users| users.len()), Ok(1));
    }
}
