//! Who may do what: the one place where credentials are looked at, whatever the protocol.
//!
//! Always true here: wrong credentials are refused even where none would do; nobody learns from an answer, or from how long it takes,
//! whether a user exists; no password is kept, printed or logged. A caller who was right once costs a keyed hash of what was sent and a
//! lookup; comparing a password with its hash, which is slow on purpose, happens on threads of its own, bounded in number and in waiting.

use std::{fmt, path::PathBuf, sync::Arc};

use futures::future::{BoxFuture, FutureExt};
use http::{HeaderMap, header};

use crate::metrics::{
    Metrics,
    labels::{AuthOutcome, Protocol, Reload},
};

mod basic;
mod htpasswd;
mod password;
mod users;

use users::{Limits, Looked, Users, Verdict};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// To be told what there is.
    Read,
    /// To change it.
    Write,
}

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    read: bool,
    write: bool,
}

impl Rights {
    /// Nothing.
    pub const NONE: Self = Self { read: false, write: false };
    /// To read.
    pub const READ: Self = Self { read: true, write: false };
    /// Everything.
    pub const ALL: Self = Self { read: true, write: true };

    /// Whether this is among them.
    pub fn allow(self, right: Right) -> bool {
        match right {
            Right::Read => self.read,
            Right::Write => self.write,
        }
    }
}

/// Where users are from, and what others may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Users and the hashes of their passwords, one a line, as Apache's htpasswd writes them.
    pub htpasswd_file: PathBuf,
    /// What a caller without credentials may do.
    pub anonymous: Rights,
}

impl Options {
    /// Looks whether there could be a guard, and makes none.
    ///
    /// # Errors
    /// The line for the user: which setting, file and line, what is wrong there and what would be right.
    pub fn check(&self) -> Result<(), String> {
        htpasswd::read(&self.htpasswd_file).map(drop)
    }
}

/// A caller who may do what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// All that the caller may do.
    pub rights: Rights,
    /// Who it is; `None` for a caller without credentials.
    pub user: Option<Arc<str>>,
}

/// A caller who may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why not.
    pub why: Why,
    /// Who it is, or claims to be; only ever a user who exists, since other names may be passwords in the wrong place.
    pub user: Option<Arc<str>>,
}

/// Why a caller may not do what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There are no credentials.
    Missing,
    /// They are wrong, or none that are understood.
    Wrong,
    /// They are right, and it takes more.
    Forbidden,
    /// Too many others are being looked at.
    Busy,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "this needs the name and password of a user (Basic)",
            Self::Wrong => "name or password is wrong, or is not sent as Basic has it",
            Self::Forbidden => "this user may not do that",
            Self::Busy => "too many passwords are being checked at the same time",
        })
    }
}

/// What is known of a caller.
pub enum Check {
    /// All.
    Now(Result<Pass, Refusal>),
    /// Nothing before a password was compared with its hash.
    Later(BoxFuture<'static, Result<Pass, Refusal>>),
}

/// Looks at credentials. Clones share what they know.
#[derive(Clone)]
pub struct Guard(Arc<Shared>);

struct Shared {
    users: Arc<Users>,
    anonymous: Rights,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("users", &self.0.users.count()).field("anonymous", &self.0.anonymous).finish()
    }
}

impl Guard {
    /// Reads the users. The key, of random bytes, is that under which credentials are remembered.
    ///
    /// # Errors
    /// As those of [`Options::check`].
    pub fn new(options: &Options, key: [u8; 32], metrics: Arc<Metrics>) -> Result<Self, String> {
        Self::with_limits(options, key, metrics, Limits::default())
    }

    fn with_limits(options: &Options, key: [u8; 32], metrics: Arc<Metrics>, limits: Limits) -> Result<Self, String> {
        let users = Users::read(&options.htpasswd_file, key, limits, metrics.clone())?;
        Ok(Self(Arc::new(Shared { users: Arc::new(users), anonymous: options.anonymous, metrics })))
    }

    /// How many users there are.
    pub fn users(&self) -> usize {
        self.0.users.count()
    }

    /// Reads the users again, which takes a file's time. Who is gone or has another password is refused from then on. How many there are.
    ///
    /// # Errors
    /// As those of [`Options::check`]; all is as before.
    pub fn reload(&self) -> Result<usize, String> {
        let read = self.0.users.reload();
        self.0.metrics.auth_reloaded(if read.is_ok() { Reload::Ok } else { Reload::Error });
        read
    }

    /// Whether a request with these headers may do something that needs this right. Has to be called within a Tokio runtime.
    pub fn check(&self, protocol: Protocol, right: Right, headers: &HeaderMap) -> Check {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let verdict = match (values.next(), values.next()) {
            (None, _) => return Check::Now(self.0.anonymous(protocol, right)),
            (Some(value), None) => match self.0.users.look(value.as_bytes()) {
                Looked::Now(verdict) => verdict,
                Looked::Later(verdict) => {
                    let shared = self.0.clone();
                    return Check::Later(async move { shared.decide(protocol, right, verdict.await) }.boxed());
                }
            },
            // Of two, one would be believed here and the other by whoever stands in front.
            (Some(_), Some(_)) => Verdict::Wrong(None),
        };
        Check::Now(self.0.decide(protocol, right, verdict))
    }
}

impl Shared {
    fn anonymous(&self, protocol: Protocol, right: Right) -> Result<Pass, Refusal> {
        if self.anonymous.allow(right) {
            self.metrics.auth(protocol, AuthOutcome::Anonymous);
            return Ok(Pass { rights: self.anonymous, user: None });
        }
        self.refuse(protocol, Why::Missing, None)
    }

    fn decide(&self, protocol: Protocol, right: Right, verdict: Verdict) -> Result<Pass, Refusal> {
        match verdict {
            Verdict::Right { user, rights } if rights.allow(right) => {
                self.metrics.auth(protocol, AuthOutcome::Granted);
                Ok(Pass { rights, user: Some(user) })
            }
            Verdict::Right { user, .. } => self.refuse(protocol, Why::Forbidden, Some(user)),
            Verdict::Wrong(user) => self.refuse(protocol, Why::Wrong, user),
            Verdict::Busy => self.refuse(protocol, Why::Busy, None),
        }
    }

    fn refuse(&self, protocol: Protocol, why: Why, user: Option<Arc<str>>) -> Result<Pass, Refusal> {
        let outcome = match why {
            Why::Missing => AuthOutcome::Missing,
            Why::Wrong => AuthOutcome::Wrong,
            Why::Forbidden => AuthOutcome::Forbidden,
            Why::Busy => AuthOutcome::Busy,
        };
        self.metrics.auth(protocol, outcome);
        Err(Refusal { why, user })
    }
}

#[cfg(test)]
pub(crate) mod tests;
