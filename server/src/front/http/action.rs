//! Action results by the hash of their action: `…/ac/{hash}`. The same entries as gRPC's.
//!
//! Always true here: what is sent as JSON is stored as the message that it stands for, and only if that is a result that a client could use,
//! whatever else is taken for one; bytes of another kind have no JSON.

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};

use super::{
    Asked, Cache, Call,
    answer::{Answer, empty, missing, refused, store_error, text},
    download::{self, Kind},
    encoding, json,
    path::Hash,
};
use crate::store::{ActionKey, DigestFunction, Instance, ResultRule, StoreError, action_result};

/// The header that chooses between bytes and JSON.
const VARY: &str = "accept";

pub(super) async fn call(cache: &Cache, instance: &Instance, hash: &Hash, call: Call) -> Answer {
    let actions = names(cache, instance, hash);
    if actions.is_empty() {
        return refused(text(StatusCode::BAD_REQUEST, "digest function of the hash is not offered"), call.incoming, call.version).await;
    }
    if call.asked.method == Method::PUT {
        return put(cache, instance, &actions, call).await;
    }
    for action in &actions {
        match cache.store.get_action_result(instance, action, cache.options.result_rule).await {
            Ok(Some(result)) => return found(result, action.digest.function, &call.asked),
            Ok(None) => {}
            Err(error) => return store_error(&error),
        }
    }
    missing()
}

/// What the action may be called, the likeliest first: a hash does not say of which function it is. A setting does.
fn names(cache: &Cache, instance: &Instance, hash: &Hash) -> Vec<ActionKey> {
    let options = &cache.options;
    let digests = hash.digests(0, &cache.store.capabilities().digest_functions);
    let function = options.action_function.or_else(|| options.instances.default_function(instance, hash.hex().len()));
    let configured = digests.iter().position(|digest| Some(digest.function) == function);
    let digests = configured.and_then(|place| digests.get(place..=place)).unwrap_or(&digests);
    digests.iter().map(|&digest| ActionKey { digest, size_known: false }).collect()
}

/// The one of the names under which all that the result names is there; clients upload outputs first. Otherwise the likeliest.
async fn name_of<'a>(
    cache: &Cache,
    instance: &Instance,
    actions: &'a [ActionKey],
    result: &Bytes,
) -> Result<Option<&'a ActionKey>, StoreError> {
    if actions.len() > 1 {
        for action in actions {
            let function = action.digest.function;
            let Ok(parsed) = action_result::parse(result.clone(), function) else { break };
            let named: Vec<_> = action_result::named(&parsed, function).collect();
            if !cache.store.find_missing(instance, &named).await?.contains(&true) {
                return Ok(Some(action));
            }
        }
    }
    Ok(actions.first())
}

fn found(result: Bytes, function: DigestFunction, asked: &Asked) -> Answer {
    if !json::is_wanted(&asked.headers) {
        return download::bytes(result, Kind::Bytes, Some(VARY), asked);
    }
    let written = action_result::parse(result.clone(), function)
        .map_err(|error| error.to_string())
        .and_then(|parsed| json::encode(&result, &parsed).map_err(|error| error.to_string()));
    match written {
        Ok(json) => download::bytes(json.into(), Kind::Json, Some(VARY), asked),
        Err(_) if json::bytes_will_do(&asked.headers) => download::bytes(result, Kind::Bytes, Some(VARY), asked),
        Err(why) => not_acceptable(&why),
    }
}

fn not_acceptable(why: &str) -> Answer {
    let mut answer =
        text(StatusCode::NOT_ACCEPTABLE, &format!("there is no JSON for what is stored, only application/octet-stream: {why}"));
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static(VARY));
    answer
}

async fn put(cache: &Cache, instance: &Instance, actions: &[ActionKey], call: Call) -> Answer {
    let (version, mut incoming) = (call.version, call.incoming);
    if let Some(answer) = not_permitted(cache, instance) {
        return refused(answer, incoming, version).await;
    }
    let limit_bytes = cache.store.capabilities().action_result_bytes_max;
    let sent = match encoding::gather(cache, &call.asked.headers, &mut incoming, limit_bytes).await {
        Ok(sent) => sent,
        Err(refusal) => return refused(refusal, incoming, version).await,
    };
    let is_json = json::is_sent(&call.asked.headers);
    let result = match is_json.then(|| json::decode(&sent)) {
        None => sent,
        Some(Ok(result)) => result.into(),
        Some(Err(error)) => return text(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let action = match name_of(cache, instance, actions, &result).await {
        Ok(Some(action)) => action,
        Ok(None) => return missing(),
        Err(error) => return store_error(&error),
    };
    if (is_json || cache.options.result_rule == ResultRule::Strict)
        && let Err(error) = action_result::parse(result.clone(), action.digest.function)
    {
        return text(StatusCode::BAD_REQUEST, &error.to_string());
    }
    match cache.store.put_action_result(instance, action, result).await {
        Ok(()) => empty(StatusCode::OK),
        Err(error) => store_error(&error),
    }
}

/// The refusal of what only those may do who may store action results.
pub(super) fn not_permitted(cache: &Cache, instance: &Instance) -> Option<Answer> {
    let permitted = *cache.options.instances.updates.get(instance);
    (!permitted).then(|| text(StatusCode::FORBIDDEN, "this instance takes no action results and no entries"))
}
