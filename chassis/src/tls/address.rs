//! Addresses of servers.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::Uri;

/// The address of a server: `http://HOST:PORT` or `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub(super) is_https: bool,
    host: String,
    port: u16,
}

impl Address {
    /// Whether data sent there cannot be read on the way: it is encrypted, or stays on this machine.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.is_https || self.host == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// The host's IP address, if it is one and not a name.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.bare_host().parse().ok()
    }

    /// The host without the brackets of an IPv6 address.
    #[must_use]
    pub fn bare_host(&self) -> &str {
        self.host.trim_matches(['[', ']'])
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn uri(&self, scheme: &str) -> Uri {
        format!("{scheme}://{}:{}", self.host, self.port).parse().unwrap_or_default()
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text} must have the form http://HOST:PORT or https://HOST:PORT");
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let is_https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else { return Err(wrong()) };
        let address = Self { is_https, host: host.to_owned(), port };
        if address.to_string() == text.trim_end_matches('/') { Ok(address) } else { Err(wrong()) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}
