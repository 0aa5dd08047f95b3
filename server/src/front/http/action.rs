//! Action results by the hash of their action: `…/ac/{hash}`. The same entries as gRPC's.

use http::{HeaderMap, Method, StatusCode, header};

use super::{
    Cache, Call,
    answer::{Answer, empty, missing, refused, store_error, text},
    cas::encoded,
    download,
    path::Hash,
};
use crate::store::{ActionKey, Instance, ResultRule, action_result};

pub(super) async fn call(cache: &Cache, instance: &Instance, hash: &Hash, call: Call) -> Answer {
    let digests = hash.digests(0, &cache.store.capabilities().digest_functions);
    let options = &cache.options;
    let function = options.action_function.or_else(|| options.instances.default_function(instance, hash.hex().len()));
    let configured = digests.iter().find(|digest| Some(digest.function) == function);
    let Some(&digest) = configured.or(digests.first()) else {
        return refused(text(StatusCode::BAD_REQUEST, "digest function of the hash is not offered"), call.incoming, call.version).await;
    };
    let action = ActionKey { digest, size_known: false };
    match call.asked.method {
        Method::PUT => put(cache, instance, &action, call).await,
        _ => match cache.store.get_action_result(instance, &action, cache.options.result_rule).await {
            Ok(Some(result)) => download::bytes(result, &call.asked),
            Ok(None) => missing(),
            Err(error) => store_error(&error),
        },
    }
}

async fn put(cache: &Cache, instance: &Instance, action: &ActionKey, call: Call) -> Answer {
    let (version, mut incoming) = (call.version, call.incoming);
    let refusal = not_permitted(cache, instance).or_else(|| encoded(&call.asked.headers)).or_else(|| {
        is_json(&call.asked.headers).then(|| text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "JSON is not supported: send the message as it is"))
    });
    if let Some(answer) = refusal {
        return refused(answer, incoming, version).await;
    }
    let limit_bytes = cache.store.capabilities().action_result_bytes_max;
    let gathered = match incoming.gather(limit_bytes, &cache.memory).await {
        Ok(gathered) => gathered,
        Err(broken) => return refused(broken.answer(), incoming, version).await,
    };
    if cache.options.result_rule == ResultRule::Strict
        && let Err(error) = action_result::parse(gathered.data.clone(), action.digest.function)
    {
        return text(StatusCode::BAD_REQUEST, &error.to_string());
    }
    match cache.store.put_action_result(instance, action, gathered.data).await {
        Ok(()) => empty(StatusCode::OK),
        Err(error) => store_error(&error),
    }
}

/// The refusal of what only those may do who may store action results.
pub(super) fn not_permitted(cache: &Cache, instance: &Instance) -> Option<Answer> {
    let permitted = *cache.options.instances.updates.get(instance);
    (!permitted).then(|| text(StatusCode::FORBIDDEN, "this instance takes no action results and no entries"))
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}
