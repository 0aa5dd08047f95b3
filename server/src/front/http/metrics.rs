//! `/metrics`: what the server counts, in the text format of Prometheus.

use http::{HeaderValue, Response, StatusCode, header};

use super::answer::{Answer, text};
use crate::{metrics::CONTENT_TYPE, operator::Operator};

pub(super) async fn page(operator: &Operator) -> Answer {
    match operator.metrics().await {
        Ok(page) => {
            let mut answer = Response::new(page.into());
            answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
            answer
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}
