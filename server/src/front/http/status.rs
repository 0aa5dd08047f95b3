//! `/status`: what the server is and holds, as JSON, under the names by which clients and scripts of the field know it.

use http::{HeaderValue, Response, StatusCode, header};

use super::answer::{Answer, text};
use crate::operator::Operator;

pub(super) fn page(operator: &Operator) -> Answer {
    match serde_json::to_string_pretty(&operator.status()) {
        Ok(json) => {
            let mut answer = Response::new(format!("{json}\n").into());
            answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            answer
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}
