//! The configuration file: the flags of the command line as keys of a TOML document.
//!
//! Always true here: no setting is defined here. A key is the flag whose name it has, the tables around it in front (`[http]` with
//! `ac_validation` is `--http-ac-validation`), and becomes an argument that is read as if it had been given; so a value is right here
//! when it is right there. Every mistake is one line that names the file, the line and the key.

use std::{ffi::OsString, fs::File, io::Read, ops::Range, path::Path};

use clap::{
    ArgAction, Command, Id,
    error::{ContextKind, ContextValue, ErrorKind},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::one_line;

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// In a table that has the name of a flag, this key is that flag: `[http] address` is `--http`, since `http` cannot be both.
const OF_THE_TABLE: &str = "address";
/// Flags that belong to one start only.
const COMMAND_LINE_ONLY: [(&str, &str); 4] = [
    ("format", "it would empty the device at every start"),
    ("force", "it would empty the device at every start"),
    ("config", "one file is read"),
    ("check-config", "it ends the program"),
];

/// What a key of the file sets.
pub(super) struct Given {
    /// Which argument it is.
    pub(super) id: Id,
    /// The same on a command line.
    pub(super) arguments: Vec<OsString>,
}

/// Reads a file of settings for this command.
///
/// # Errors
/// The line for the user.
pub(super) fn read(path: &Path, command: &Command) -> Result<Vec<Given>, String> {
    let cannot = |why: &dyn std::fmt::Display| format!("--config {}: {why}", path.display());
    let mut text = String::new();
    let file = File::open(path).map_err(|error| cannot(&error))?;
    let read_bytes = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| cannot(&error))?;
    if read_bytes as u64 > FILE_BYTES_MAX {
        return Err(cannot(&"larger than 1 MiB, which no settings are"));
    }
    Reading { name: path.display().to_string(), text: &text, command }.given()
}

/// A file whose text is known.
struct Reading<'a> {
    name: String,
    text: &'a str,
    command: &'a Command,
}

/// A key that is no table: where it stands, its path, and its value.
struct Key<'a> {
    span: Range<usize>,
    path: Vec<&'a str>,
    value: &'a DeValue<'a>,
}

impl Reading<'_> {
    fn given(&self) -> Result<Vec<Given>, String> {
        let table = DeTable::parse(self.text).map_err(|error| self.mistake(&error.span().unwrap_or(0..0), error.message()))?;
        let mut keys = Vec::new();
        collect(table.get_ref(), &[], &mut keys);
        keys.sort_by_key(|key| key.span.start);
        let mut seen: Vec<(Id, Range<usize>)> = Vec::new();
        let mut given = Vec::with_capacity(keys.len());
        for key in keys {
            let setting = self.setting(&key).map_err(|why| self.mistake(&key.span, &format!("`{}`: {why}", key.path.join("."))))?;
            if let Some((_, first)) = seen.iter().find(|(id, _)| *id == setting.id) {
                let why = format!("`{}` was set in line {} already: leave one of them out", key.path.join("."), self.line(first));
                return Err(self.mistake(&key.span, &why));
            }
            seen.push((setting.id.clone(), key.span));
            given.push(setting);
        }
        Ok(given)
    }

    fn line(&self, span: &Range<usize>) -> usize {
        self.text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
    }

    fn mistake(&self, span: &Range<usize>, why: &str) -> String {
        format!("{}:{}: {}", self.name, self.line(span), one_line(why))
    }

    /// What a key stands for, or why it stands for nothing.
    fn setting(&self, key: &Key<'_>) -> Result<Given, String> {
        let mut flag = flag_of(&key.path);
        if let Some((&OF_THE_TABLE, table)) = key.path.split_last()
            && !self.has(&flag)
        {
            flag = flag_of(table);
        }
        if let Some((_, why)) = COMMAND_LINE_ONLY.iter().find(|(only, _)| *only == flag) {
            return Err(format!("--{flag} is for the command line only, {why}"));
        }
        let Some(argument) = self.command.get_arguments().find(|argument| argument.get_long() == Some(&flag)) else {
            return Err(format!("is no setting{}", self.similar(&flag)));
        };
        let list = matches!(argument.get_action(), ArgAction::Append);
        let arguments = match (key.value, argument.get_action()) {
            (DeValue::Boolean(true), ArgAction::SetTrue) => vec![format!("--{flag}")],
            (DeValue::Boolean(false), ArgAction::SetTrue) => vec![],
            (_, ArgAction::SetTrue) => return Err("should be true or false".into()),
            // A list without anything in it is not the one that holds where none is given.
            (DeValue::Array(values), _) if list && values.is_empty() && !argument.get_default_values().is_empty() => {
                vec![format!("--{flag}=")]
            }
            (DeValue::Array(values), _) if list => {
                let items: Option<Vec<_>> = values.iter().map(|value| scalar(value.get_ref())).collect();
                let items = items.ok_or("should be a list of strings")?;
                items.into_iter().map(|item| format!("--{flag}={item}")).collect()
            }
            (value, _) => match (scalar(value), list) {
                (Some(value), _) => vec![format!("--{flag}={value}")],
                (None, true) => return Err("should be a list of strings".into()),
                (None, false) => return Err(format!("is {}, and should be a string or a whole number", kind(value))),
            },
        };
        let line = std::iter::once(self.command.get_name()).chain(arguments.iter().map(String::as_str));
        match self.command.clone().try_get_matches_from(line) {
            Ok(_) => Ok(Given { id: argument.get_id().clone(), arguments: arguments.into_iter().map(OsString::from).collect() }),
            Err(error) => Err(one_line(&error.to_string())),
        }
    }

    fn has(&self, flag: &str) -> bool {
        self.command.get_arguments().any(|argument| argument.get_long() == Some(flag))
    }

    /// The flag that was probably meant, as a key.
    fn similar(&self, flag: &str) -> String {
        let line = [self.command.get_name(), &format!("--{flag}")].map(str::to_owned);
        let error = self.command.clone().try_get_matches_from(line).err();
        let meant = error.filter(|error| error.kind() == ErrorKind::UnknownArgument);
        match meant.as_ref().and_then(|error| error.get(ContextKind::SuggestedArg)) {
            Some(ContextValue::String(meant)) => format!("; a similar one is `{}`", meant.trim_start_matches("--").replace('-', "_")),
            _ => "; `blockstored --help` lists them".into(),
        }
    }
}

fn flag_of(path: &[&str]) -> String {
    path.join("-").replace('_', "-")
}

fn collect<'a>(table: &'a DeTable<'a>, above: &[&'a str], keys: &mut Vec<Key<'a>>) {
    for (name, value) in table {
        let mut path = above.to_vec();
        path.push(name.get_ref());
        match value.get_ref() {
            // The parser bounds how deep this goes.
            DeValue::Table(inner) => collect(inner, &path, keys),
            value => keys.push(Key { span: Spanned::span(name), path, value }),
        }
    }
}

/// A value as it would stand on a command line.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string()),
        _ => None,
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
