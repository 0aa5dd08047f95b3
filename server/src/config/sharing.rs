//! Settings about what instances have in common, and what counts as an action result.

use clap::{Args, ValueEnum};

use crate::store::local::Sharing;

#[derive(Debug, Args)]
pub(super) struct InstanceArguments {
    /// Whether a blob that one instance stored is there for all, or for that instance only
    #[arg(long, value_enum, default_value_t = Instances::Shared)]
    cas_instances: Instances,

    /// Whether an action result that one instance stored is one for all, or for that instance only
    #[arg(long, value_enum, default_value_t = Instances::Separate)]
    ac_instances: Instances,

    /// Whether an action result counts only if everything that it names is there
    #[arg(long, value_enum, default_value_t = Switch::On)]
    ac_completeness_check: Switch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Instances {
    Shared,
    Separate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl InstanceArguments {
    pub(super) fn sharing(&self) -> Sharing {
        Sharing { blobs: self.cas_instances == Instances::Shared, action_results: self.ac_instances == Instances::Shared }
    }

    pub(super) fn completeness_check(&self) -> bool {
        self.ac_completeness_check == Switch::On
    }
}
