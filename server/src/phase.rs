//! Where the server is in its life.

/// Goes forward only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The store is being opened: nothing is answered but health.
    Opening,
    /// Requests are answered.
    Serving,
    /// Running requests may end, new ones are turned away.
    Draining,
}

impl Phase {
    /// How it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}
