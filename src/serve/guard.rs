//! What every answer carries, and which requests are answered at all.

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::SocketAddr;

/// Only the page's own files and data. Styles in attributes: the chart library places its tooltips so.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; \
     img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// The names under which this server may be asked. A page of another site can point its own name at 127.0.0.1 and read
/// what is served there (DNS rebinding), but it cannot change the name that its requests carry.
#[derive(Clone, Copy, Debug)]
pub enum Hosts {
    /// Bound to a loopback address, so only its names with this port.
    Loopback(u16),
    /// Bound to an address that others reach, under names that only they know.
    Any,
}

impl Hosts {
    pub fn of(address: SocketAddr) -> Hosts {
        if address.ip().is_loopback() { Hosts::Loopback(address.port()) } else { Hosts::Any }
    }

    fn allow(self, host: Option<&str>) -> bool {
        let (Hosts::Loopback(port), Some(host)) = (self, host) else { return matches!(self, Hosts::Any) };
        let names = ["localhost", "127.0.0.1", "[::1]"];
        let asked = |name: &str| match host.strip_prefix(name) {
            Some("") => port == 80,
            Some(rest) => rest.strip_prefix(':') == Some(port.to_string().as_str()),
            None => false,
        };
        names.into_iter().any(asked)
    }
}

pub async fn guard(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    let mut response = if hosts.allow(host) {
        next.run(request).await
    } else {
        let why = "this server answers to localhost only: start bupo serve with --host to be reached by another name\n";
        (StatusCode::FORBIDDEN, why).into_response()
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_answered() {
        let hosts = Hosts::of("127.0.0.1:7777".parse().unwrap());
        for good in ["localhost:7777", "127.0.0.1:7777", "[::1]:7777"] {
            assert!(hosts.allow(Some(good)), "{good}");
        }
        for bad in
            ["evil.example:7777", "localhost", "localhost:80", "localhost.evil.example:7777", "127.0.0.1:77777", ""]
        {
            assert!(!hosts.allow(Some(bad)), "{bad}");
        }
        assert!(!hosts.allow(None));
        assert!(Hosts::of("0.0.0.0:7777".parse().unwrap()).allow(Some("gpu-box:7777")));
    }
}
