//! The HTTP endpoints that say whether the server is alive (`/healthz`) and whether it serves (`/readyz`).
//!
//! Always true here: neither waits for anything, so that they answer also while the store opens or drains.

use crate::phase::Phase;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::watch;

/// The routes, answering from `phase`.
pub fn router(phase: watch::Receiver<Phase>) -> Router {
    Router::new().route("/healthz", get(|| async { "alive\n" })).route("/readyz", get(ready)).with_state(phase)
}

async fn ready(State(phase): State<watch::Receiver<Phase>>) -> Response {
    let retry = [(header::RETRY_AFTER, "1")];
    match *phase.borrow() {
        Phase::Opening => (StatusCode::SERVICE_UNAVAILABLE, retry, "opening\n").into_response(),
        Phase::Serving => "ready\n".into_response(),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, retry, "draining\n").into_response(),
    }
}
