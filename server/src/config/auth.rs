//! Settings about who may do what.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::auth::{Options, Rights};

#[derive(Debug, Args)]
pub(super) struct AuthArguments {
    /// Let in only who is in this file, which has a line NAME:HASH for each user, as `htpasswd -B` writes them; SIGHUP reads it again.
    /// Health checks are open to everybody
    #[arg(long, value_name = "FILE")]
    htpasswd_file: Option<PathBuf>,

    /// With --htpasswd-file: what those may do who send no name and password; default none
    #[arg(long, value_enum)]
    anonymous: Option<Anonymous>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Anonymous {
    None,
    Read,
}

impl AuthArguments {
    /// Where users are from, if there are any.
    pub(super) fn options(self) -> Result<Option<Options>, String> {
        let anonymous = match self.anonymous {
            Some(Anonymous::Read) => Rights::READ,
            Some(Anonymous::None) | None => Rights::NONE,
        };
        match (self.htpasswd_file, self.anonymous) {
            (Some(htpasswd_file), _) => Ok(Some(Options { htpasswd_file, anonymous })),
            (None, Some(_)) => Err("--anonymous goes with --htpasswd-file FILE: without users everybody may do everything".into()),
            (None, None) => Ok(None),
        }
    }
}
