//! Settings that may differ by instance.
//!
//! Always true here: a setting for an instance holds for what is below it, too (`ci` for `ci/linux`), and the most specific one counts;
//! the instance without a name has nothing below it.

use std::{borrow::Cow, collections::BTreeMap};

use crate::store::{DigestFunction, Instance};

/// A setting for all instances, and the exceptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerInstance<T> {
    all: T,
    named: BTreeMap<String, T>,
}

impl<T> PerInstance<T> {
    /// The same for all.
    pub const fn new(all: T) -> Self {
        Self { all, named: BTreeMap::new() }
    }

    /// Sets it for an instance and what is below it, or for all that have none of their own.
    pub fn set(&mut self, instance: Option<&str>, value: T) {
        match instance {
            Some(name) => drop(self.named.insert(name.to_owned(), value)),
            None => self.all = value,
        }
    }

    /// What holds for an instance.
    pub fn get(&self, instance: &Instance) -> &T {
        self.levels(instance).next().unwrap_or(&self.all)
    }

    /// What was set for an instance, then for those above it, and at last for all.
    fn levels(&self, instance: &Instance) -> impl Iterator<Item = &T> {
        let name = instance.as_str();
        let above =
            std::iter::successors(Some(name), |name| name.rsplit_once('/').map(|(above, _)| above).filter(|above| !above.is_empty()));
        above.filter_map(|name| self.named.get(name)).chain([&self.all])
    }
}

impl PerInstance<Vec<DigestFunction>> {
    /// Adds a function, in place of one whose hashes are as long.
    pub fn add(&mut self, instance: Option<&str>, function: DigestFunction) {
        let functions = match instance {
            Some(name) => self.named.entry(name.to_owned()).or_default(),
            None => &mut self.all,
        };
        functions.retain(|other| other.hex_digits() != function.hex_digits());
        functions.push(function);
    }
}

/// What differs by instance, whatever the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceRules {
    /// Whether clients may store action results, and entries under names of their own.
    pub updates: PerInstance<bool>,
    /// Functions of hashes whose length leaves that open, where the client does not say: at most one for each length.
    pub default_functions: PerInstance<Vec<DigestFunction>>,
}

impl Default for InstanceRules {
    fn default() -> Self {
        Self { updates: PerInstance::new(true), default_functions: PerInstance::default() }
    }
}

impl InstanceRules {
    /// The functions in the order in which one that is not named is guessed: the first whose hashes are as long.
    pub fn functions<'a>(&self, instance: &Instance, offered: &'a [DigestFunction]) -> Cow<'a, [DigestFunction]> {
        let mut defaults = self.default_functions.levels(instance).flatten().filter(|function| offered.contains(function)).peekable();
        if defaults.peek().is_none() {
            return Cow::Borrowed(offered);
        }
        Cow::Owned(defaults.chain(offered).copied().collect())
    }

    /// The function that was set for hashes of that many digits.
    pub fn default_function(&self, instance: &Instance, digits: usize) -> Option<DigestFunction> {
        self.default_functions.levels(instance).flatten().copied().find(|function| function.hex_digits() == digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str) -> Instance {
        Instance::new(name)
    }

    #[test]
    fn the_most_specific_setting_holds() {
        let mut updates = PerInstance::new(1);
        for (name, value) in [(Some("ci"), 2), (Some("ci/linux"), 3), (Some(""), 4), (None, 5), (Some("ci"), 6)] {
            updates.set(name, value);
        }
        for (name, value) in
            [("ci", 6), ("ci/linux", 3), ("ci/linux/x", 3), ("ci/mac", 6), ("cis", 5), ("other", 5), ("", 4), ("/ci", 5), ("a/ci", 5)]
        {
            assert_eq!(*updates.get(&at(name)), value, "{name:?}");
        }
    }

    #[test]
    fn default_functions_come_first_each_for_its_length() {
        let mut rules = InstanceRules::default();
        assert!(matches!(rules.functions(&at("x"), &DigestFunction::ALL), Cow::Borrowed(_)));
        rules.default_functions.add(None, DigestFunction::GitSha1);
        rules.default_functions.add(Some("buck"), DigestFunction::Sha256Tree);
        rules.default_functions.add(Some("buck"), DigestFunction::Blake3);
        let first = |name: &str, digits| {
            let functions = rules.functions(&at(name), &DigestFunction::ALL);
            functions.iter().copied().find(|function| function.hex_digits() == digits)
        };
        assert_eq!((first("buck/a", 64), first("buck/a", 40)), (Some(DigestFunction::Blake3), Some(DigestFunction::GitSha1)));
        assert_eq!((first("x", 64), first("x", 40), first("x", 96)), {
            (Some(DigestFunction::Sha256), Some(DigestFunction::GitSha1), Some(DigestFunction::Sha384))
        });
        assert_eq!(rules.default_function(&at("buck"), 64), Some(DigestFunction::Blake3));
        assert_eq!(rules.default_function(&at("x"), 64), None);
        // What is not offered cannot be a default.
        assert!(!rules.functions(&at("buck"), &[DigestFunction::Sha1]).contains(&DigestFunction::Blake3));
    }
}
