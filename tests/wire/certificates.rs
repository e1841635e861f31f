//! Certificates for sidecars that speak TLS with each other.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// What the one certificate says.
pub(crate) const NAME: &str = "door";

/// Writes a CA and one certificate for [`NAME`], good for both ends.
pub(crate) fn write(folder: &Path) {
    let key = KeyPair::generate().expect("a key can be made");
    let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).expect("it can sign itself");
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate().expect("a key can be made");
    let params = CertificateParams::new(vec![NAME.to_owned()]).expect("a valid name");
    let signed = params.signed_by(&own, &issuer).expect("the CA signs");
    for (name, text) in [
        ("ca.crt", ca.pem()),
        ("tls.crt", signed.pem()),
        ("tls.key", own.serialize_pem()),
    ] {
        fs::write(folder.join(name), text).expect("the folder can be written");
    }
}

/// The section `tls` of a file, with `mesh` for what [`write`] wrote.
pub(crate) fn yaml(folder: &Path) -> String {
    let at = folder.display();
    format!(
        "tls: {{ mesh: {{ cert: \"{at}/tls.crt\", key: \"{at}/tls.key\", ca: \"{at}/ca.crt\" }} }}"
    )
}
