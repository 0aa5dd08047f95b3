//! Asking a server about the store that it holds.
//!
//! Always true here: a question ends after ten seconds and a mebibyte; no message repeats a password.

use crate::output::{self, Failure, Lines, Verdict, bytes};
use bytesize::ByteSize;
use serde_json::{Value, json};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

/// Name of the file in which a server says where it answers, beside the store under `--dir`.
const ADDRESSES_FILE_NAME: &str = "server.json";
const ANSWER_WAIT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Where a server answers HTTP, as `[http://][USER:PASSWORD@]HOST:PORT`.
#[derive(Clone)]
pub(crate) struct Address {
    url: String,
    /// Without what is secret.
    shown: String,
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl std::str::FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "is no address: give HOST:PORT of its HTTP port, or http://USER:PASSWORD@HOST:PORT".to_string();
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => return Err(format!("{scheme} is not spoken: give http://, or HOST:PORT")),
            None => text,
        };
        let rest = rest.trim_end_matches('/');
        let shown = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        let port = shown.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none() || shown.contains('/') || rest.contains(char::is_whitespace) {
            return Err(wrong());
        }
        Ok(Self { url: format!("http://{rest}/status"), shown: shown.to_string() })
    }
}

/// Where the server answers that says so beside the store at `path`, if one does. It may be gone.
pub(crate) fn beside(path: &Path) -> Option<Address> {
    let said: Value = serde_json::from_slice(&fs::read(path.parent()?.join(ADDRESSES_FILE_NAME)).ok()?).ok()?;
    let mut http: SocketAddr = said.get("http")?.as_str()?.parse().ok()?;
    // Who listens on every address of this machine can be asked on its own.
    if http.ip().is_unspecified() {
        http.set_ip(if http.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    http.to_string().parse().ok()
}

/// Asks a server what it is and holds. The line says why there is no answer.
pub(crate) async fn ask(address: &Address) -> Result<Value, String> {
    let Address { url, shown } = address.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(ANSWER_WAIT))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .build()
            .new_agent();
        let mut answer = agent.get(&url).call().map_err(|error| format!("does not answer: {error}"))?;
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        match answer.status().as_u16() {
            200 => {}
            401 => return Err("wants to know who asks: give --server http://USER:PASSWORD@HOST:PORT".to_string()),
            status => return Err(format!("answers {status} instead of what it holds")),
        }
        let body = body.map_err(|error| format!("does not finish its answer: {error}"))?;
        match serde_json::from_str::<Value>(&body) {
            Ok(status) if status.get("phase").is_some() => Ok(status),
            _ => Err("answers something else than a blockstored does".to_string()),
        }
    });
    let answered = asked.await.map_err(|error| error.to_string()).and_then(|answered| answered);
    answered.map_err(|why| format!("the server at {shown} {why}"))
}

/// Prints what a server answered. A server that found damaged records, or takes no writes, has damage.
pub(crate) fn print(address: &Address, status: &Value, as_json: bool) -> Result<Verdict, Failure> {
    let number = |path: &str| status.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let text = |path: &str| status.pointer(path).and_then(Value::as_str).unwrap_or("unknown").to_string();
    let refuses = status.pointer("/engine/writable").and_then(Value::as_bool) == Some(false);
    let verdict = Verdict::of(refuses || number("/engine/damaged_records") > 0);
    if as_json {
        output::json(&json!({ "verdict": verdict.word(), "served": true, "server": address.shown, "status": status }))?;
        return Ok(verdict);
    }
    let mut out = Lines::new();
    out.line("held by", format!("the server at {}, version {}", address.shown, text("/version")))?;
    let uptime = status.pointer("/uptime_seconds").and_then(Value::as_f64).unwrap_or(0.0);
    out.line("phase", format!("{}, up {uptime:.0} s, {} requests run", text("/phase"), number("/running_requests")))?;
    out.line("capacity", bytes(number("/MaxSize")))?;
    let slots = format!("{} of {} slots", number("/NumFiles"), number("/engine/table_slots"));
    out.line("in use", format!("{}, {slots}; {} on its way in", bytes(number("/CurrSize")), ByteSize(number("/ReservedSize"))))?;
    let age = status.pointer("/engine/oldest_block_age_seconds").and_then(Value::as_f64).unwrap_or(0.0);
    out.line("blocks", format!("{} spare; the oldest is {age:.0} s old, or older than the server", number("/engine/spare_blocks")))?;
    out.line("not yet flushed", ByteSize(number("/engine/unflushed_bytes")))?;
    out.line("lookups", format!("{} found their key, {} did not", number("/engine/hits"), number("/engine/misses")))?;
    out.line("retention", format!("{} records were dropped although they were wanted", number("/engine/retention_breaches")))?;
    if refuses {
        out.line("writes", format!("none are taken: {}", text("/engine/not_writable_because")))?;
    }
    out.line("damage", format!("{} records failed a checksum or could not be read", number("/engine/damaged_records")))?;
    out.line("", "stop the server for all that the store itself says")?;
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts_with_a_port() {
        let url = |text: &str| text.parse::<Address>().map(|address| (address.url, address.shown));
        let expected = |url: &str, shown: &str| Ok((url.to_string(), shown.to_string()));
        assert_eq!(url("127.0.0.1:8080"), expected("http://127.0.0.1:8080/status", "127.0.0.1:8080"));
        assert_eq!(url("http://cache:80/"), expected("http://cache:80/status", "cache:80"));
        assert_eq!(url("http://me:se@cret@[::1]:80"), expected("http://me:se@cret@[::1]:80/status", "[::1]:80"));
        for wrong in ["", "cache", ":80", "cache:80/status", "cache:99999", "ca che:80"] {
            assert!(url(wrong).unwrap_err().contains("is no address"), "{wrong}");
        }
        assert!(url("https://cache:80").unwrap_err().contains("https is not spoken"));
        assert_eq!(format!("{:?}", "me:secret@cache:80".parse::<Address>().unwrap()), "cache:80");
    }
}
