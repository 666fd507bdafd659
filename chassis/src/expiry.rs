//! The validity of certificates and tokens, so that metrics can warn before it ends.

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// The validity of a certificate or token, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its use in this process: one of a few names, with which metrics are labelled.
    pub name: &'static str,
    /// Since when it is valid, if it says so.
    pub not_before: Option<i64>,
    /// Until when it is valid.
    pub not_after: i64,
}

impl Validity {
    /// The validity of the certificate that ends first: of a chain all have to be valid, and of a list of CA
    /// certificates clients may need each. A certificate that cannot be read here is reported by a warning only, since its verifier
    /// may still be able to use it.
    pub(crate) fn of_certificates(name: &'static str, certificates: &[CertificateDer<'_>]) -> Option<Self> {
        let read = |certificate: &CertificateDer<'_>| {
            let certificate = Certificate::from_der(certificate)
                .inspect_err(
                    |error| tracing::warn!(%error, name, "the validity of a certificate cannot be read"),
                )
                .ok()?;
            let validity = certificate.tbs_certificate().validity();
            let [not_before, not_after] = [validity.not_before, validity.not_after]
                .map(|time| i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX));
            Some(Self { name, not_before: Some(not_before), not_after })
        };
        certificates.iter().filter_map(read).min_by_key(|validity| validity.not_after)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn until(year: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new([]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(year, 1, 1));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn the_certificate_that_ends_first_counts() {
        let all = [until(2040), until(2002), until(9999)];
        let first = Validity { name: "some", not_before: Some(978_307_200), not_after: 1_009_843_200 };
        assert_eq!(Validity::of_certificates("some", &all), Some(first));
        assert_eq!(Validity::of_certificates("some", &all[1..]), Some(first));
        let ends = |year| Validity::of_certificates("some", &[until(year)]).unwrap().not_after;
        // From 2050 on certificates encode years in another way.
        assert_eq!([ends(2049), ends(2050), ends(9999)], [2_493_072_000, 2_524_608_000, 253_370_764_800]);
        let unreadable = CertificateDer::from(vec![0x30, 0]);
        assert_eq!(Validity::of_certificates("some", std::slice::from_ref(&unreadable)), None);
        assert_eq!(Validity::of_certificates("some", &[unreadable, until(2002)]), Some(first));
    }
}
