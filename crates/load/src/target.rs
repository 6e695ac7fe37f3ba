//! Where requests go: a server's address and what it wants to be told.

use std::net::{SocketAddr, ToSocketAddrs as _};

use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Uri};

use crate::body::Pieces;

/// Why an address is none.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It isn't of the form.
    #[error("\"{base}\" is no address of a server: expected http://HOST:PORT")]
    Form {
        /// What was given.
        base: String,
    },
    /// It has no encryption to speak to this with.
    #[error("\"{base}\" is encrypted, and load is sent without: expected http://HOST:PORT")]
    Encrypted {
        /// What was given.
        base: String,
    },
    /// The name has no address.
    #[error("{host} has no address")]
    Name {
        /// The name.
        host: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The key can't be sent.
    #[error("the API key has characters that can't be sent in a header")]
    Key,
}

/// A server.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its addresses, looked up once: a look-up a request would be measured with it.
    pub(crate) addresses: Vec<SocketAddr>,
    /// What it is called in requests.
    pub(crate) host: HeaderValue,
    /// What comes before `/v1`.
    pub(crate) prefix: String,
    pub(crate) authorization: Option<HeaderValue>,
}

impl Target {
    /// A server at `http://HOST:PORT[/PREFIX]`, with the key to it; a `/v1` at the end may be there or not.
    pub fn parse(base: &str, key: Option<&str>) -> Result<Self, TargetError> {
        let form = || TargetError::Form { base: base.to_owned() };
        let uri: Uri = base.trim().parse().map_err(|_| form())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(TargetError::Encrypted { base: base.to_owned() }),
            _ => return Err(form()),
        }
        let authority = uri.authority().ok_or_else(form)?;
        let path = uri.path().trim_end_matches('/');
        Ok(Self {
            addresses: addresses(authority.host(), authority.port_u16().unwrap_or(80))?,
            host: HeaderValue::from_str(authority.as_str()).map_err(|_| form())?,
            prefix: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
            authorization: key.map(bearer).transpose()?,
        })
    }

    /// A request with JSON.
    pub(crate) fn post(&self, path: &str, body: Pieces) -> Request<Pieces> {
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        // Parsed before, so that it is only joined here.
        *request.uri_mut() = format!("{}{path}", self.prefix).parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = &self.authorization {
            headers.insert(AUTHORIZATION, key.clone());
        }
        request
    }
}

fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, TargetError> {
    let named = |source| TargetError::Name { host: host.to_owned(), source };
    // Brackets belong to an address of version 6 in a URL only.
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found: Vec<_> = (bare, port).to_socket_addrs().map_err(named)?.collect();
    match found.is_empty() {
        true => Err(named(std::io::ErrorKind::NotFound.into())),
        false => Ok(found),
    }
}

fn bearer(key: &str) -> Result<HeaderValue, TargetError> {
    let mut value =
        HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| TargetError::Key)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        for (base, want) in [
            ("http://127.0.0.1:8000", Ok("")),
            ("http://127.0.0.1:8000/", Ok("")),
            ("http://127.0.0.1:8000/v1/", Ok("")),
            ("http://[::1]:8000/a/v1", Ok("/a")),
            ("http://127.0.0.1", Ok("")),
            ("https://127.0.0.1", Err("is encrypted")),
            ("127.0.0.1:8000", Err("expected http://HOST:PORT")),
            ("", Err("expected http://HOST:PORT")),
            ("http://", Err("expected http://HOST:PORT")),
        ] {
            match (Target::parse(base, None), want) {
                (Ok(target), Ok(prefix)) => assert_eq!(target.prefix, prefix, "{base}"),
                (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{error}"),
                (got, want) => panic!("{base}: {got:?}, not {want:?}"),
            }
        }
        assert!(matches!(Target::parse("http://127.0.0.1", Some("a\nb")), Err(TargetError::Key)));
    }
}
