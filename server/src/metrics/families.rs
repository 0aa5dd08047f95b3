//! Families of figures that are kept elsewhere and read when the page is asked for.

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// Families that were read.
#[derive(Debug, Default)]
pub struct Families(Vec<MetricFamily>);

impl Families {
    /// A figure that only grows while the process lives; its name ends with `_total`.
    pub fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.add(name, help, MetricType::COUNTER, vec![counter(&[], value)]);
    }

    /// The same for each value of a label.
    pub fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(&str, f64)]) {
        let metrics = values.iter().map(|(text, value)| counter(&[(label, text)], *value)).collect();
        self.add(name, help, MetricType::COUNTER, metrics);
    }

    /// A figure that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.add(name, help, MetricType::GAUGE, vec![gauge(&[], value)]);
    }

    /// The same for each value of a label.
    pub fn gauges(&mut self, name: &str, help: &str, label: &str, values: &[(&str, f64)]) {
        let metrics = values.iter().map(|(text, value)| gauge(&[(label, text)], *value)).collect();
        self.add(name, help, MetricType::GAUGE, metrics);
    }

    /// A gauge that is always 1 and says something in its labels.
    pub fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) {
        self.add(name, help, MetricType::GAUGE, vec![gauge(labels, 1.0)]);
    }

    /// Observations by class: `classes` has one for each bound and one for what is beyond the last.
    pub fn histogram(&mut self, name: &str, help: &str, bounds: impl IntoIterator<Item = f64>, classes: &[u64], sum: f64) {
        let mut below = 0;
        let buckets = bounds.into_iter().zip(classes).map(|(bound, n)| {
            below += n;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(below);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(classes.iter().sum());
        histogram.set_sample_sum(sum);
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        self.add(name, help, MetricType::HISTOGRAM, vec![metric]);
    }

    fn add(&mut self, name: &str, help: &str, field_type: MetricType, metrics: Vec<Metric>) {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(field_type);
        family.set_metric(metrics);
        self.0.push(family);
    }

    /// What was added, in that order.
    pub(super) fn into_inner(self) -> Vec<MetricFamily> {
        self.0
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pairs = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    Metric::from_label(pairs.collect())
}

fn counter(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = labelled(labels);
    metric.set_counter(counter);
    metric
}

fn gauge(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = labelled(labels);
    metric.set_gauge(gauge);
    metric
}
