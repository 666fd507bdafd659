//! TLS on both ends of a connection, with hot reload of certificates.
//!
//! A certificate only lets a connection in; each call on it is identified by itself.

mod address;
mod client;
mod server;

use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use self::address::Address;
pub use self::client::{Client, ClientSettings};
pub use self::server::{Server, ServerSettings};
use crate::expiry::Validity;

/// The name of HTTP/2 in a handshake.
const H2: &[u8] = b"h2";

/// The name of HTTP/1.1 in a handshake.
const HTTP1: &[u8] = b"http/1.1";

/// A configuration made from files of certificates, and their validity.
#[derive(Debug)]
struct Configured<C> {
    config: Arc<C>,
    validity: Vec<Validity>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Reads a certificate chain and its key.
fn identity(
    contents: &[Vec<u8>],
    name: &'static str,
    validity: &mut Vec<Validity>,
) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let [chain, key, ..] = contents else { bail!("a certificate needs its key") };
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| anyhow!("there is no private key in PEM"))?;
    let chain = certificates(chain)?;
    validity.extend(Validity::of_certificates(name, &chain));
    Ok((chain, key))
}

fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.context("a certificate is no PEM")?;
    ensure!(!all.is_empty(), "there is no certificate in PEM");
    Ok(all)
}

fn ca_certificates(
    pem: &[u8],
    name: &'static str,
    validity: &mut Vec<Validity>,
) -> anyhow::Result<RootCertStore> {
    let all = certificates(pem)?;
    validity.extend(Validity::of_certificates(name, &all));
    let mut roots = RootCertStore::empty();
    for certificate in all {
        roots.add(certificate).context("a CA certificate")?;
    }
    Ok(roots)
}
