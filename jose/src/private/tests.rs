use super::*;

const MESSAGE: &[u8] = b"header.payload";

fn verifies_only_its_own(key: &VerifyingKey, algorithm: Algorithm, signature: &str) {
    let name = algorithm.name();
    assert!(key.verifies_encoded(algorithm, MESSAGE, signature), "{name}");
    assert!(!key.verifies_encoded(algorithm, b"another", signature), "{name}");
    let (first, rest) = signature.split_at(1);
    let changed = format!("{}{rest}", if first == "A" { "B" } else { "A" });
    for wrong in [changed.as_str(), "", "!", &format!("{signature}AA")] {
        assert!(!key.verifies_encoded(algorithm, MESSAGE, wrong), "{name} {wrong}");
    }
    for other in Algorithm::all_asymmetric().filter(|other| *other != algorithm) {
        assert!(!key.verifies_encoded(other, MESSAGE, signature), "{name} as {}", other.name());
    }
}

fn published(members: &[(&str, String)]) -> Result<VerifyingKey, KeyError> {
    let member = |name: &str| members.iter().find(|(known, _)| *known == name).map(|(_, text)| text.as_str());
    VerifyingKey::from_published_jwk(&member)
}

#[test]
fn every_algorithm_verifies_its_own_signatures_only() {
    let rsa = PrivateKey::generate(Algorithm::Rs(Bits::B256)).expect("a key");
    for algorithm in Algorithm::all_asymmetric().filter(|algorithm| *algorithm != Algorithm::EdDsa) {
        let pem = match algorithm.key_type() {
            KeyType::Rsa => rsa.clone(),
            _ => PrivateKey::generate(algorithm).expect("a key"),
        };
        let signer = PrivateKey::from_pem(&pem).expect("it is read");
        let key = published(&signer.public_jwk()).expect("a key");
        assert_eq!(key, signer.public());
        verifies_only_its_own(&key, algorithm, &signer.sign_encoded(algorithm, MESSAGE).expect("it signs"));
    }
}

#[test]
fn ed25519_verifies_what_its_library_signs() {
    let pair = Ed25519KeyPair::generate().expect("a key");
    let members = [("kty", "OKP"), ("crv", "Ed25519")].map(|(name, text)| (name, text.to_owned()));
    let x = ("x", URL_SAFE_NO_PAD.encode(pair.public_key()));
    let key = published(&[members.as_slice(), &[x]].concat()).expect("a key");
    verifies_only_its_own(&key, Algorithm::EdDsa, &URL_SAFE_NO_PAD.encode(pair.sign(MESSAGE)));
}

#[test]
fn published_keys_are_as_rfc_7518_wants_them() {
    let ec = PrivateKey::from_pem(&PrivateKey::generate(Algorithm::Es(Bits::B512)).expect("a key")).expect("a key");
    let jwk = ec.public_jwk();
    let but = |name: &str, text: &str| {
        let member = |(known, old): &(&'static str, String)| {
            (*known, if *known == name { text.to_owned() } else { old.clone() })
        };
        published(&jwk.iter().map(member).collect::<Vec<_>>())
    };
    let y = &jwk.iter().find(|(name, _)| *name == "y").expect("y").1;
    assert_eq!(but("x", y), Err(KeyError::Point), "not on the curve");
    assert_eq!(but("x", "AAAA"), Err(KeyError::Point));
    assert_eq!(but("x", &format!("{y}=")), Err(KeyError::Encoding));
    assert_eq!(but("crv", "P-256"), Err(KeyError::Point));
    let rsa = PrivateKey::from_pem(&PrivateKey::generate(Algorithm::Rs(Bits::B256)).expect("a key")).expect("a key");
    let PrivateKey::Rsa([n, e, ..]) = &rsa else { panic!("an RSA key") };
    let jwk = |n: &[u8], e: &[u8]| {
        let text = |bytes| URL_SAFE_NO_PAD.encode(bytes);
        published(&[("kty", "RSA".to_owned()), ("n", text(n)), ("e", text(e))])
    };
    assert_eq!(
        jwk(&[&[0, 0], n.as_slice()].concat(), &[&[0], e.as_slice()].concat()),
        Ok(rsa.public()),
        "leading zeros"
    );
    assert_eq!(jwk(&n[..128], e), Err(KeyError::RsaSize));
    assert_eq!(jwk(n, &[0]), Err(KeyError::Encoding));
    assert_eq!(published(&[("kty", "oct".to_owned()), ("k", "AAAA".to_owned())]), Err(KeyError::Encoding));
}
