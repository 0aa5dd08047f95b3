//! `/metrics`, read as strictly as the text format of Prometheus (version 0.0.4) and its conventions can be meant.

use crate::server::Server;
use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

/// What a test waits for that does not come: a defect, and not a slow machine.
const STUCK: Duration = Duration::from_secs(180);

pub type Labels = BTreeMap<String, String>;

/// All families with the same first name.
#[derive(Debug, Default)]
pub struct Family {
    pub help: String,
    pub kind: String,
    /// Names, labels and values in the order of the page.
    pub samples: Vec<(String, Labels, f64)>,
}

#[derive(Debug)]
pub struct Page(pub BTreeMap<String, Family>);

impl Page {
    /// Asks for the page and reads it.
    pub async fn of(server: &Server) -> Self {
        let answer = server.http.get("/metrics").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4"));
        Self::parse(std::str::from_utf8(&answer.body.unwrap()).unwrap())
    }

    /// Asks until the page is as it has to become: what is counted at the very end of a request may be there a moment after its answer.
    pub async fn when(server: &Server, ready: impl Fn(&Self) -> bool) -> Self {
        let since = Instant::now();
        loop {
            let page = Self::of(server).await;
            if ready(&page) {
                return page;
            }
            assert!(since.elapsed() < STUCK, "never came: {page:#?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The sum of all series of that name that have these labels, and perhaps others.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let all = self.0.values().flat_map(|family| &family.samples);
        let has = |of: &Labels| labels.iter().all(|(label, value)| of.get(*label).is_some_and(|v| v == value));
        let (mut sum, mut found) = (0.0, false);
        for (_, _, value) in all.filter(|(n, of, _)| n == name && has(of)) {
            (sum, found) = (sum + value, true);
        }
        assert!(found || self.0.contains_key(name) || !labels.is_empty(), "no series {name} with {labels:?}");
        sum
    }

    /// The names and labels of all series.
    pub fn series(&self) -> BTreeSet<(String, Labels)> {
        self.0.values().flat_map(|family| &family.samples).map(|(name, labels, _)| (name.clone(), labels.clone())).collect()
    }

    /// Reads the text; panics where it is not exactly as it has to be.
    pub fn parse(text: &str) -> Self {
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut current: Option<String> = None;
        assert!(text.ends_with('\n'), "the last line has an end");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
                assert!(!help.trim().is_empty() && help.ends_with('.'), "help is a sentence: {line}");
                let family = Family { help: help.into(), ..Family::default() };
                assert!(families.insert(name.into(), family).is_none(), "a family is there once: {line}");
                current = Some(name.into());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("no type: {line}"));
                assert_eq!(current.as_deref(), Some(name), "TYPE follows HELP: {line}");
                assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
                let family = families.get_mut(name).unwrap();
                assert!(family.kind.is_empty(), "a second type: {line}");
                family.kind = kind.into();
            } else {
                let name = current.as_ref().unwrap_or_else(|| panic!("no family before {line}"));
                let family = families.get_mut(name).unwrap();
                assert!(!family.kind.is_empty(), "TYPE is before samples: {line}");
                family.samples.push(sample(line));
            }
        }
        for (name, family) in &families {
            check(name, family);
        }
        Self(families)
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn sample(line: &str) -> (String, Labels, f64) {
    let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}")));
    assert!(is_name(name), "{line}");
    let mut labels = Labels::new();
    let mut rest = rest;
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            let (label, value) = inner.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
            assert!(is_name(label), "{label:?} in {line}");
            let mut text = String::new();
            let mut chars = value.char_indices();
            let end = loop {
                match chars.next().unwrap_or_else(|| panic!("no end of a value: {line}")) {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next() {
                        Some((_, 'n')) => text.push('\n'),
                        Some((_, c @ ('\\' | '"'))) => text.push(c),
                        other => panic!("escape {other:?} in {line}"),
                    },
                    (_, c) => text.push(c),
                }
            };
            assert!(labels.insert(label.into(), text).is_none(), "a label is there once: {line}");
            inner = &value[end + 1..];
            if let Some(behind) = inner.strip_prefix('}') {
                rest = behind;
                break;
            }
            inner = inner.strip_prefix(',').unwrap_or_else(|| panic!("neither comma nor end: {line}"));
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no blank before the value: {line}"));
    let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number, or a time behind it: {line}"));
    assert!(value.is_finite() && value >= 0.0, "nothing here can be negative: {line}");
    (name.into(), labels, value)
}

fn check(name: &str, family: &Family) {
    assert!(is_name(name), "{name}");
    assert!(!family.samples.is_empty(), "{name} has no series");
    assert_eq!(name.ends_with("_total"), family.kind == "counter", "{name} is a {}", family.kind);
    for wrong in ["_ms", "_milliseconds", "_micros", "_kib", "_mb", "_percent", "_count", "_sum", "_bucket"] {
        assert!(!name.ends_with(wrong), "{name}");
    }
    let mut seen = BTreeSet::new();
    for (series, labels, _) in &family.samples {
        assert!(seen.insert((series, labels)), "{series} {labels:?} is there twice");
        if family.kind != "histogram" {
            assert_eq!(series, name);
            assert!(!labels.contains_key("le"), "{name}");
        }
    }
    if family.kind == "histogram" {
        check_histogram(name, family);
    }
}

fn check_histogram(name: &str, family: &Family) {
    type Parts = (Vec<(f64, f64)>, Option<f64>, Option<f64>);
    let mut by_labels: BTreeMap<Labels, Parts> = BTreeMap::new();
    for (series, labels, value) in &family.samples {
        let mut labels = labels.clone();
        let le = labels.remove("le");
        let parts = by_labels.entry(labels).or_default();
        match (series.strip_prefix(name), le) {
            (Some("_bucket"), Some(le)) => parts.0.push((le.parse().unwrap_or_else(|_| panic!("{name}: le {le:?}")), *value)),
            (Some("_sum"), None) => assert_eq!(parts.1.replace(*value), None),
            (Some("_count"), None) => assert_eq!(parts.2.replace(*value), None),
            other => panic!("{series} in {name}: {other:?}"),
        }
    }
    for (labels, (buckets, sum, count)) in by_labels {
        assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{name} {labels:?}: {buckets:?}");
        assert_eq!(buckets.last().map(|last| last.0), Some(f64::INFINITY), "{name} {labels:?}");
        assert_eq!(buckets.last().map(|last| last.1), count, "{name} {labels:?}");
        assert!(sum.is_some(), "{name} {labels:?}");
    }
}

#[test]
fn what_is_not_exact_is_not_read() {
    let good = "# HELP a_total A.\n# TYPE a_total counter\na_total{b=\"c\\n\\\"\\\\\"} 1\n";
    let page = Page::parse(good);
    assert_eq!(page.sum("a_total", &[("b", "c\n\"\\")]), 1.0);
    for bad in [
        "# TYPE a_total counter\na_total 1\n",
        "# HELP a_total A.\na_total 1\n",
        "# HELP a_total A.\n# TYPE a_total counter\na_total 1",
        "# HELP a_total A.\n# TYPE a_total counter\n",
        "# HELP a A.\n# TYPE a counter\na 1\n",
        "# HELP a_total A.\n# TYPE a_total gauge\na_total 1\n",
        "# HELP a_total A.\n# TYPE a_total counter\na_total 1\na_total 1\n",
        "# HELP a_total A.\n# TYPE a_total counter\na_total 1 1700000000\n",
        "# HELP a_total A.\n# TYPE a_total counter\na_total -1\n",
        "# HELP a_total A.\n# TYPE a_total counter\na_total{b=\"c\",b=\"d\"} 1\n",
        "# HELP a_total A.\n# TYPE a_total counter\na_total{b=\"c} 1\n",
        "# HELP a_total A.\n# TYPE a_total counter\nb_total 1\n",
        "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n",
        "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"1\"} 1\na_sum 1\na_count 1\n",
        "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"+Inf\"} 2\na_sum 1\na_count 1\n",
    ] {
        let read = std::panic::catch_unwind(|| Page::parse(bad));
        assert!(read.is_err(), "{bad}");
    }
}
