//! The connections of a run, one kind for each protocol whose address was given.

use crate::{grpc::Session, http::Pool, options::ClientOptions};

/// Opens them.
pub(crate) async fn connect(client: &ClientOptions) -> Result<(Option<Session>, Option<Pool>), String> {
    let session = match &client.addresses.remote {
        Some(remote) => Some(Session::connect(remote, client).await?),
        None => None,
    };
    let pool = match &client.addresses.http {
        Some(http) => Some(Pool::connect(http, client).await?),
        None => None,
    };
    Ok((session, pool))
}
