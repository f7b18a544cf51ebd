//! Who answers at an address: what is trusted, and told apart from others, by scheme, host and port.

use std::fmt;

use ureq::http::Uri;

/// Who answers at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// That of an address; nothing where it is not of HTTP, or names a user.
    pub fn of(address: &str) -> Option<Self> {
        let uri: Uri = address.parse().ok()?;
        let authority = uri.authority()?;
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let default = default_port(&scheme)?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        let port = authority.port_u16().unwrap_or(default);
        Some(Self { scheme, host: authority.host().to_ascii_lowercase(), port })
    }

    /// Whether nobody on the way can read or change what is said.
    pub fn is_encrypted(&self) -> bool {
        self.scheme == "https"
    }

    /// Whether it is this machine, to which there is no way that anybody could be on.
    pub fn is_loopback(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// The address of a path here.
    pub fn with_path(&self, path: &str) -> String {
        format!("{}://{}:{}{path}", self.scheme, self.host, self.port)
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "https" => Some(443),
        "http" => Some(80),
        _ => None,
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        if default_port(&self.scheme) == Some(self.port) { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_shown_without_what_is_secret_or_usual() {
        for (address, shown) in [
            ("https://CDN.example/x?Signature=secret", "https://cdn.example"),
            ("https://cdn.example:443", "https://cdn.example"),
            ("http://127.0.0.1:8080/x", "http://127.0.0.1:8080"),
            ("http://[::1]:443", "http://[::1]:443"),
        ] {
            assert_eq!(Origin::of(address).unwrap().to_string(), shown);
        }
        assert_eq!(Origin::of("https://user@cdn.example"), None);
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (address, here) in [
            ("http://127.0.0.1", true),
            ("http://127.1.2.3:80", true),
            ("http://[::1]:80", true),
            ("http://LOCALHOST", true),
            ("http://localhost.example", false),
            ("http://127.0.0.1.example", false),
            ("http://0.0.0.0", false),
            ("http://10.0.0.1", false),
            ("http://[::]", false),
        ] {
            assert_eq!(Origin::of(address).unwrap().is_loopback(), here, "{address}");
        }
    }
}
