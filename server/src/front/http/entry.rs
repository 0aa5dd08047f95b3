//! Whatever a client keeps under names of its own: `…/kv/{name}`, with as much of WebDAV (RFC 4918) as clients need that believe in
//! folders.
//!
//! Always true here: there are no folders. A name that is empty or ends with a slash looks like one whatever there is, so that nobody has
//! to make one, and who does is told that it was made.

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};

use super::{
    Cache, Call,
    action::not_permitted,
    answer::{Answer, empty, missing, refused, store_error, text},
    download::{self, Kind},
    encoding,
};
use crate::store::Instance;

/// Clients insist on a time, and none is kept.
const MODIFIED: &str = "Thu, 01 Jan 1970 00:00:00 GMT";

pub(super) async fn call(cache: &Cache, instance: &Instance, name: &[u8], path: &str, call: Call) -> Answer {
    let folder = name.is_empty() || name.ends_with(b"/");
    if matches!(call.asked.method.as_str(), "PUT" | "DELETE")
        && let Some(answer) = not_permitted(cache, instance)
    {
        return refused(answer, call.incoming, call.version).await;
    }
    match call.asked.method.as_str() {
        "MKCOL" => refused(empty(StatusCode::CREATED), call.incoming, call.version).await,
        "PROPFIND" if folder => refused(described(path, None), call.incoming, call.version).await,
        "PROPFIND" => {
            let answer = match cache.store.get_entry(instance, name).await {
                Ok(Some(data)) => described(path, Some(data.len())),
                Ok(None) => missing(),
                Err(error) => store_error(&error),
            };
            refused(answer, call.incoming, call.version).await
        }
        _ if name.is_empty() => refused(text(StatusCode::BAD_REQUEST, "path ends before the name"), call.incoming, call.version).await,
        "PUT" => put(cache, instance, name, call).await,
        "DELETE" => {
            let answer = match cache.store.delete_entry(instance, name).await {
                Ok(true) => empty(StatusCode::NO_CONTENT),
                Ok(false) => missing(),
                Err(error) => store_error(&error),
            };
            refused(answer, call.incoming, call.version).await
        }
        _ => match cache.store.get_entry(instance, name).await {
            Ok(Some(data)) => download::bytes(data, Kind::Bytes, None, &call.asked),
            Ok(None) => missing(),
            Err(error) => store_error(&error),
        },
    }
}

async fn put(cache: &Cache, instance: &Instance, name: &[u8], call: Call) -> Answer {
    let (version, mut incoming) = (call.version, call.incoming);
    let limit_bytes = cache.store.capabilities().entry_bytes_max;
    match encoding::gather(cache, &call.asked.headers, &mut incoming, limit_bytes).await {
        Ok(data) => match cache.store.put_entry(instance, name, data).await {
            Ok(()) => empty(StatusCode::OK),
            Err(error) => store_error(&error),
        },
        Err(refusal) => refused(refusal, incoming, version).await,
    }
}

/// What PROPFIND says of an entry of that length, or of a folder.
fn described(path: &str, len_bytes: Option<usize>) -> Answer {
    let kind = match len_bytes {
        Some(len_bytes) => format!("<D:resourcetype/><D:getcontentlength>{len_bytes}</D:getcontentlength>"),
        None => "<D:resourcetype><D:collection/></D:resourcetype>".into(),
    };
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n\
         <D:multistatus xmlns:D=\"DAV:\"><D:response><D:href>{}</D:href><D:propstat><D:prop>{kind}\
         <D:getlastmodified>{MODIFIED}</D:getlastmodified></D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat>\
         </D:response></D:multistatus>\n",
        escaped(path)
    );
    let mut answer = Response::new(Body::from(text));
    *answer.status_mut() = StatusCode::MULTI_STATUS;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml; charset=utf-8"));
    answer
}

/// Text as XML has it.
fn escaped(text: &str) -> String {
    let mut xml = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => xml.push_str("&amp;"),
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            '"' => xml.push_str("&quot;"),
            '\'' => xml.push_str("&apos;"),
            c => xml.push(c),
        }
    }
    xml
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped() {
        assert_eq!(escaped("/kv/a&b<c>\"'d"), "/kv/a&amp;b&lt;c&gt;&quot;&apos;d");
    }
}
