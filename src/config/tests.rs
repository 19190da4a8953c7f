//! Wrong values, typos and relations, each with the place where it is reported.

use serde_json::json;

use super::keys::{Effect, Kind, all};
use super::*;
use crate::feed::bundle::poller::Resource;
use crate::feed::bundle::{BundleSettings, Source};
use crate::opa::signature::SignaturePolicy;
use crate::token::KeySource;

pub(super) fn problems(document: serde_json::Value) -> Problems {
    resolve(&Document::of(document), None).1
}

fn issuer() -> serde_json::Value {
    json!({"issuer": "https://i", "audiences": ["a"], "algorithms": ["RS256"], "jwks_url": "https://i/jwks"})
}

pub(super) fn own(section: serde_json::Value) -> serde_json::Value {
    json!({"plugins": {"envoy_ext_authz_grpc": {}, "stepgate": section}})
}

#[test]
fn an_empty_configuration_is_good_and_opens_no_grpc_port() {
    let (config, problems) = resolve(&Document::of(json!({})), None);
    assert!(config.expect("it resolves").grpc.is_none());
    assert_eq!(problems, Problems::default());
    let (config, _) = resolve(&Document::of(json!({"plugins": {"envoy_ext_authz_grpc": null}})), None);
    assert!(config.expect("it resolves").grpc.is_some(), "null is all defaults, as in OPA");
}

/// A configuration with one bundle that has these members.
fn bundle(members: serde_json::Value) -> serde_json::Value {
    json!({"bundles": {"b": members}, "services": {"a": {"url": "http://a"}}})
}

#[test]
fn services_and_bundles_have_opas_defaults() {
    let (config, _) = resolve(
        &Document::of(json!({
            "services": [{"name": "a", "url": "http://a/base", "headers": {"X-Team": "blue"}}],
            "bundles": {"b": {}, "c": {"resource": "/c.tar.gz", "polling": {"min_delay_seconds": 1, "max_delay_seconds": 2}}},
        })),
        None,
    );
    let config = config.expect("it resolves");
    assert_eq!(config.services["a"].url.as_str(), "http://a/base");
    assert_eq!(config.services["a"].headers[0].0, "x-team");
    let [b, c] = config.bundles.as_slice() else { panic!("two bundles") };
    assert_eq!(b.source, Source::Service { service: "a".to_owned(), resource: Resource::Path("bundles/b".to_owned()) });
    let seconds = |it: &BundleSettings| (it.polling.min_delay.as_secs(), it.polling.max_delay.as_secs());
    assert_eq!((seconds(b), seconds(c), b.size_limit), ((60, 120), (1, 2), 1 << 30));
    assert_eq!(b.verification.demand, SignaturePolicy::Optional);
}

#[test]
fn a_public_key_makes_signatures_a_must() {
    let demand = |keys: serde_json::Value, signing: serde_json::Value, compat: serde_json::Value| {
        let mut document = bundle(json!({"signing": signing}));
        document["keys"] = keys;
        document["plugins"] = json!({"stepgate": {"compat": compat}});
        let (config, problems) = resolve(&Document::of(document), None);
        config.unwrap_or_else(|| panic!("{problems:?}")).bundles[0].verification.demand
    };
    let (public, private) = (json!({"algorithm": "HS256", "key": "x"}), json!({"private_key": "x"}));
    assert_eq!(demand(json!({"k": public}), json!(null), json!({})), SignaturePolicy::Required);
    assert_eq!(demand(json!({"k": public}), json!({"keyid": "k"}), json!({})), SignaturePolicy::Required);
    assert_eq!(demand(json!({}), json!({"scope": "x"}), json!({})), SignaturePolicy::Required);
    assert_eq!(demand(json!({"k": private}), json!(null), json!({})), SignaturePolicy::Optional);
    assert_eq!(demand(json!({"k": public}), json!(null), json!("strict")), SignaturePolicy::Required);
    assert_eq!(
        demand(json!({"k": public}), json!(null), json!({"bundle_signatures": "opa"})),
        SignaturePolicy::AsInOpa
    );
}

#[test]
fn every_problem_is_reported_with_its_place() {
    for (document, place) in [
        (json!({"discovery": {}}), "discovery.resource"),
        (
            json!({
                "bundles": {"b": {"resource": "file:///b.tar.gz"}},
                "plugins": {"stepgate": {"bundles": {"b": {"max_staleness": "5m"}}}},
            }),
            "plugins.stepgate.bundles.b.max_staleness",
        ),
        (
            json!({
                "services": {"a": {"url": "http://a"}},
                "decision_logs": {"service": "a", "reporting": {"max_decisions_per_second": 9}},
                "plugins": {"stepgate": {"log": {"audit": "required"}}},
            }),
            "decision_logs.reporting.max_decisions_per_second",
        ),
        (json!({"status": {"service": "z"}}), "status.service"),
        (json!({"plugins": {"stepgate": {"admin_socket": "0.0.0.0:1"}}}), "plugins.stepgate.admin_socket"),
        (json!({"plugins": {"stepgate": {"admin_socket": "unix://@admin"}}}), "plugins.stepgate.admin_socket"),
        (json!({"services": {"a": {"url": "file:///x"}}}), "services.a.url"),
        (json!({"services": [{"url": "http://a"}]}), "services[0]"),
        (json!({"services": [{"name": "a", "url": "http://a"}, {"name": "a", "url": "http://b"}]}), "services[1]"),
        (json!({"services": {"a": {"url": "http://a", "type": "git"}}}), "services.a.type"),
        (
            json!({"services": {"a": {"url": "http://a", "credentials": {"s3_signing": {}}}}}),
            "services.a.credentials.s3_signing",
        ),
        (
            json!({"services": {"a": {"url": "http://a", "credentials": {"bearer": {"token": "x"}, "oauth2": {}}}}}),
            "services.a.credentials",
        ),
        (
            json!({"services": {"a": {"url": "http://a", "credentials": {"oauth2": {"token_url": "http://t"}}}}}),
            "services.a.credentials.oauth2.token_url",
        ),
        (
            json!({"services": {"a": {"url": "http://a", "credentials": {"oauth2": {"token_url": "https://t", "client_secret": "s"}}}}}),
            "services.a.credentials.oauth2.client_id",
        ),
        (
            json!({"services": {"a": {"url": "http://a", "credentials": {"oauth2": {"token_url": "https://t", "signing_key": "k"}}}}}),
            "services.a.credentials.oauth2.signing_key",
        ),
        (
            json!({"services": {"a": {"url": "http://a", "credentials": {"client_tls": {"cert": "c"}}}}}),
            "services.a.credentials.client_tls",
        ),
        (
            json!({"services": {"a": {"url": "http://a", "credentials": {"gcp_metadata": {}}}}}),
            "services.a.credentials.gcp_metadata",
        ),
        (
            json!({"services": {"a": {"url": "http://a", "credentials": {"bearer": {}}}}}),
            "services.a.credentials.bearer",
        ),
        (
            json!({"services": {"a": {"url": "http://a", "credentials": {"bearer": {"token": "${NONE}"}}}}}),
            "services.a.credentials.bearer.token",
        ),
        (json!({"bundles": {"b": {}}}), "bundles.b.service"),
        (json!({"keys": {"k": {}}}), "keys.k"),
        (json!({"keys": {"k": {"key": "no PEM"}}}), "keys.k.key"),
        (json!({"keys": {"k": {"key": "x", "algorithm": "none"}}}), "keys.k.algorithm"),
        (bundle(json!({"signing": {"keyid": "k"}})), "bundles.b.signing.keyid"),
        (bundle(json!({"persist": "yes"})), "bundles.b.persist"),
        (json!({"services": {"a": {"url": "http://a"}}, "bundles": {"../b": {"persist": true}}}), "bundles.../b"),
        (json!({"plugins": {"stepgate": {"bundles": {"z": {}}}}}), "plugins.stepgate.bundles.z"),
        (json!({"decision_logs": {}}), "decision_logs"),
        (json!({"decision_logs": {"service": "z"}}), "decision_logs.service"),
        (json!({"decision_logs": {"console": true, "plugin": "x"}}), "decision_logs.plugin"),
        (
            json!({"decision_logs": {"console": true, "reporting": {"min_delay_seconds": 700}}}),
            "decision_logs.reporting",
        ),
        (json!({"bundles": {"b": {"service": "z"}}, "services": {"a": {"url": "http://a"}}}), "bundles.b.service"),
        (
            json!({"services": {"a": {"url": "http://a", "type": "oci"}}, "bundles": {"b": {"resource": "other/x:1"}}}),
            "bundles.b.resource",
        ),
        (bundle(json!({"trigger": "often"})), "bundles.b.trigger"),
        (bundle(json!({"polling": {"min_delay_seconds": 9}})), "bundles.b.polling"),
        (bundle(json!({"polling": {"min_delay_seconds": 9, "max_delay_seconds": 3}})), "bundles.b.polling"),
        (json!({"plugins": {"other": {}}}), "plugins.other"),
        (json!({"plugins": {"envoy_ext_authz_grpc": {"addr": "nowhere"}}}), "plugins.envoy_ext_authz_grpc.addr"),
        (json!({"plugins": {"envoy_ext_authz_grpc": {"dry-run": "yes"}}}), "plugins.envoy_ext_authz_grpc.dry-run"),
        (
            json!({"plugins": {"envoy_ext_authz_grpc": {"path": "a", "query": "data.b"}}}),
            "plugins.envoy_ext_authz_grpc.query",
        ),
        (
            json!({"plugins": {"envoy_ext_authz_grpc": {"proto-descriptor": "/none"}}}),
            "plugins.envoy_ext_authz_grpc.proto-descriptor",
        ),
        (own(json!({"inputt": {}})), "plugins.stepgate.inputt"),
        (own(json!({"limits": {"check_timeout": "fast"}})), "plugins.stepgate.limits.check_timeout"),
        (own(json!({"limits": {"evaluation_timeout": "1s"}})), "plugins.stepgate.limits.evaluation_timeout"),
        (own(json!({"step_up": {"realm": "${REALM}"}})), "plugins.stepgate.step_up.realm"),
        (own(json!({"socket_mode": "rw"})), "plugins.stepgate.socket_mode"),
        (own(json!({"client_ip": {"header": "x ip"}})), "plugins.stepgate.client_ip.header"),
        (own(json!({"client_ip": {"header": "x-ip", "forwarded_for": 1}})), "plugins.stepgate.client_ip"),
        (own(json!({"identity_headers": {"x-user": "sub"}})), "plugins.stepgate.identity_headers.x-user"),
        (own(json!({"identity_headers": {"x user": "claims.sub"}})), "plugins.stepgate.identity_headers.x user"),
        (own(json!({"identity_headers": {"x-user": "authn.nonsense"}})), "plugins.stepgate.identity_headers.x-user"),
        (
            own(json!({"identity_headers": {"X-User": "claims.sub", "x-user": "claims.sub"}})),
            "plugins.stepgate.identity_headers.x-user",
        ),
        (own(json!({"issuers": []})), "plugins.stepgate.issuers"),
        (own(json!({"issuers": [issuer(), issuer()]})), "plugins.stepgate.issuers[1].issuer"),
    ] {
        let found = problems(document);
        assert!(found.errors.iter().any(|problem| problem.path == place), "{place}: {found:?}");
    }
    let several = problems(own(json!({"x": 1, "y": 2, "compat": "lax"})));
    assert_eq!(several.errors.len(), 3, "{several:?}");
}

#[test]
fn each_way_to_misconfigure_an_issuer_is_an_error() {
    for (name, value, place) in [
        ("audiences", json!([]), ".audiences"),
        ("algorithms", json!([]), ".algorithms"),
        ("algorithms", json!(["HS256"]), ".algorithms"),
        ("algorithms", json!(["none"]), ".algorithms"),
        ("jwks_url", json!("file:///etc/passwd"), ".jwks_url"),
        ("jwks_url", json!(null), ".jwks_url"),
        ("discovery", json!("https://i/.well-known/openid-configuration"), ""),
        ("token_from", json!([{"header": "a", "cookie": "b"}]), ".token_from[0]"),
        ("token_from", json!([{"cookie": "a", "scheme": "b"}]), ".token_from[0].scheme"),
        ("audiences", json!(["${AUDIENCE}"]), ".audiences"),
        ("acr_levels", json!({"x": "in_person"}), ".acr_levels.x"),
        ("leeway", json!("11m"), ".leeway"),
        ("amr_aliases", json!({"x": "nonsense"}), ".amr_aliases.x"),
        ("acr_levels", json!({"x": 9}), ".acr_levels.x"),
        ("token_profile", json!("strict"), ".token_profile"),
        ("audience", json!(["a"]), ".audience"),
    ] {
        let mut issuer = issuer();
        issuer[name] = value;
        let found = problems(own(json!({"issuers": [issuer]})));
        let place = format!("plugins.stepgate.issuers[0]{place}");
        assert!(found.errors.iter().any(|problem| problem.path == place), "{name} at {place}: {found:?}");
    }
    assert_eq!(problems(own(json!({"issuers": [issuer()]}))), Problems::default());
    let mut proofed = issuer();
    proofed["acr_levels"] = json!({"x": "in_person", "y": 1});
    let route = json!({"path": "/", "level": "in_person"});
    let own_levels = json!({"levels": ["none", "mfa", "in_person"], "issuers": [proofed], "routes": [route]});
    assert_eq!(problems(own(own_levels)), Problems::default());
    let upside_down = problems(own(json!({"levels": ["mfa", "none"]})));
    assert!(upside_down.errors.iter().any(|problem| problem.path == "plugins.stepgate.levels"), "{upside_down:?}");
}

#[test]
fn workloads_need_no_more_than_an_audience() {
    for (preset, name, keys) in [
        (
            "github",
            "https://token.actions.githubusercontent.com",
            KeySource::Discovery(
                "https://token.actions.githubusercontent.com/.well-known/openid-configuration".to_owned(),
            ),
        ),
        (
            "gitlab",
            "https://gitlab.com",
            KeySource::Discovery("https://gitlab.com/.well-known/openid-configuration".to_owned()),
        ),
        (
            "kubernetes",
            "https://kubernetes.default.svc.cluster.local",
            KeySource::Service { name: "kubernetes".to_owned(), resource: "openid/v1/jwks".to_owned() },
        ),
    ] {
        let document = own(json!({"issuers": [{"preset": preset, "audiences": ["a"]}]}));
        let (config, found) = resolve(&Document::of(document), None);
        assert_eq!(found, Problems::default(), "{preset}");
        let config = config.expect("it resolves");
        let issuer = config.issuers.into_iter().flatten().next().expect("an issuer");
        assert_eq!((issuer.issuer.as_str(), &issuer.keys), (name, &keys));
        assert_eq!(config.issuer_services.contains_key("kubernetes"), preset == "kubernetes");
        assert!(config.services.is_empty(), "bundles and logs go nowhere that was not named");
    }
    for (preset, audience) in [("github", "https://github.com/org"), ("gitlab", "https://gitlab.com")] {
        let found = problems(own(json!({"issuers": [{"preset": preset, "audiences": [audience]}]})));
        let place = "plugins.stepgate.issuers[0].audiences";
        assert!(found.errors.iter().any(|problem| problem.path == place), "{preset}: {found:?}");
    }
}

#[test]
fn envoy_may_be_trusted_with_what_it_is_asked_for_alone() {
    let document =
        own(json!({"issuers": [{"issuer": "i", "audiences": ["a"], "trust": "envoy", "payload_in_metadata": "p"}]}));
    let (config, found) = resolve(&Document::of(document), None);
    assert_eq!(found, Problems::default());
    let config = config.expect("it resolves");
    assert_eq!(config.check.asserted.len(), 1);
    assert_eq!(config.issuers.map(|issuers| issuers.len()), Some(0));
}

#[test]
fn an_entry_may_be_for_several_tenants() {
    let entra = |tenants: serde_json::Value| {
        let mut issuer = json!({
            "issuer": "https://login.example.com/{tenant}/v2.0", "audiences": ["a"], "algorithms": ["RS256"],
            "discovery": "https://login.example.com/{tenant}/v2.0/.well-known/openid-configuration",
        });
        issuer["tenants"] = tenants;
        own(json!({"issuers": [issuer]}))
    };
    let (config, problems) = resolve(&Document::of(entra(json!(["t-1", "t-2"]))), None);
    assert!(problems.errors.is_empty(), "{problems:?}");
    let issuers = config.expect("it is good").issuers.expect("issuers");
    let names: Vec<_> = issuers.iter().map(|issuer| issuer.issuer.as_str()).collect();
    assert_eq!(names, ["https://login.example.com/t-1/v2.0", "https://login.example.com/t-2/v2.0"]);
    assert!(matches!(&issuers[1].keys, crate::token::KeySource::Discovery(url) if url.contains("/t-2/")));
    for bad in [json!([]), json!(["*"]), json!(["common"]), json!([".."]), json!(["a/b"]), json!([""]), json!(null)] {
        let found = super::tests::problems(entra(bad.clone()));
        assert!(found.errors.iter().any(|error| error.to_string().contains("tenants")), "{bad}: {found:?}");
    }
}

#[test]
fn names_that_match_nothing_are_found() {
    let with = |name: &str, value: serde_json::Value| {
        let mut issuer = issuer();
        issuer[name] = value;
        json!({"issuers": [issuer]})
    };
    let route = |name: &str, value: serde_json::Value| {
        let mut route = json!({"path": "/a", "level": 1});
        route[name] = value;
        json!({"issuers": [issuer()], "routes": [route]})
    };
    for (section, place, stops) in [
        (route("path", json!("/users/{id}")), "routes[0].path", true),
        (route("path", json!("/users/<id>")), "routes[0].path", true),
        (route("path", json!("/users/:id")), "routes[0].path", false),
        (route("methods", json!(["GET,POST"])), "routes[0].methods", true),
        (route("methods", json!(["*"])), "routes[0].methods", true),
        (route("methods", json!(["FETCH"])), "routes[0].methods", false),
        (route("acr_values", json!(["a b"])), "routes[0].acr_values", false),
        (route("acr_values", json!([""])), "routes[0].acr_values", false),
        (with("audiences", json!([""])), "issuers[0].audiences", true),
        (with("audiences", json!(["*"])), "issuers[0].audiences", false),
        (with("issuer", json!(" https://a")), "issuers[0].issuer", false),
        (with("acr_levels", json!({"": 1})), "issuers[0].acr_levels", false),
        (with("token_from", json!([{"header": "Authorization:"}])), "issuers[0].token_from[0].header", false),
        (with("token_from", json!([{"header": "a", "scheme": "Bearer "}])), "issuers[0].token_from[0].scheme", false),
        (with("token_from", json!([{"cookie": "a=b"}])), "issuers[0].token_from[0].cookie", false),
    ] {
        let found = problems(own(section.clone()));
        let place = format!("plugins.stepgate.{place}: ");
        let (errors, warnings): (Vec<_>, Vec<_>) = (
            found.errors.iter().map(ToString::to_string).collect(),
            found.warnings.iter().map(ToString::to_string).collect(),
        );
        assert_eq!(errors.iter().any(|error| error.starts_with(&place)), stops, "{section}: {errors:?}");
        assert_eq!(warnings.iter().any(|warning| warning.starts_with(&place)), !stops, "{section}: {warnings:?}");
    }
}

#[test]
fn what_routes_redirects_and_resources_say_is_checked() {
    for (section, place) in [
        (json!({"routes": [{"path": "/a", "level": 2}]}), "routes"),
        (json!({"routes": [{"path": "a", "level": 2}]}), "routes[0].path"),
        (json!({"routes": [{"path": "/a*", "level": 2}]}), "routes[0].path"),
        (json!({"routes": [{"path": "/a"}]}), "routes[0]"),
        (json!({"routes": [{"path": "/a", "level": 5}]}), "routes[0].level"),
        (json!({"routes": [{"path": "/a", "level": 1, "hosts": ["a:80"]}]}), "routes[0].hosts"),
        (json!({"routes": [{"path": "/a", "level": 1, "hosts": ["a*"]}]}), "routes[0].hosts"),
        (json!({"routes": [{"path": "/a", "scopes": ["a b"]}]}), "routes[0].scopes"),
        (json!({"routes": [{"path": "/a/./b", "level": 1}]}), "routes[0].path"),
        (json!({"step_up": {"redirect": {}}}), "step_up.redirect.login_url"),
        (
            json!({"step_up": {"redirect": {"login_url": "https://l", "return_origins": []}}}),
            "step_up.redirect.return_origins",
        ),
        (
            json!({"step_up": {"redirect": {"login_url": "https://l", "return_origins": ["https://a/path"]}}}),
            "step_up.redirect.return_origins",
        ),
        (json!({"step_up": {"redirect": {"login_url": "javascript:1"}}}), "step_up.redirect.login_url"),
        (
            json!({"step_up": {"redirect": {"login_url": "http://l", "return_origins": ["https://a"]}}}),
            "step_up.redirect.login_url",
        ),
        (json!({"resource": {"id": "http://api.example.com"}}), "resource.id"),
        (json!({"issuers": [{"issuer": "i", "audiences": ["a"], "trust": "envoy"}]}), "issuers[0].payload_in_metadata"),
        (
            json!({"issuers": [{"issuer": "i", "audiences": ["a"], "trust": "envoy", "payload_in_metadata": "p", "jwks_url": "https://i"}]}),
            "issuers[0].jwks_url",
        ),
        (json!({"issuers": [{"issuer": "i", "trust": "envoy", "payload_in_metadata": "p"}]}), "issuers[0].audiences"),
        (json!({"dpop": {"nonce_key_file": "/nowhere"}}), "dpop.nonce_key_file"),
        (
            json!({"issuers": [{"issuer": "i", "audiences": ["a"], "introspection": {"service": "s"}}]}),
            "issuers[0].introspection.service",
        ),
        (
            json!({"issuers": [{"issuer": "i", "audiences": ["a"], "algorithms": ["RS256"], "jwks_service": "s"}]}),
            "issuers[0].jwks_service",
        ),
    ] {
        let found = problems(own(section.clone()));
        let place = format!("plugins.stepgate.{place}");
        assert!(found.errors.iter().any(|problem| problem.path == place), "{section}: {found:?}");
    }
}

#[test]
fn a_listener_with_tls_says_all_that_it_needs() {
    let tls = |tls: serde_json::Value| {
        let plugins = json!({"envoy_ext_authz_grpc": {}, "stepgate": {"grpc": {"tls": tls}}});
        json!({"plugins": plugins})
    };
    let (config, found) =
        resolve(&Document::of(tls(json!({"cert_file": "c", "private_key_file": "k", "ca_cert_file": "r"}))), None);
    assert_eq!(found, Problems::default());
    let settings = config.and_then(|config| config.grpc).and_then(|listener_config| listener_config.tls).expect("TLS");
    assert!(settings.needs_client && settings.is_http2 && !settings.only_1_3);
    for (wrong, place) in [
        (json!({"cert_file": "c"}), "plugins.stepgate.grpc.tls"),
        (serde_json::Value::Null, "plugins.stepgate.grpc.tls"),
        (
            json!({"cert_file": "c", "private_key_file": "k", "ca_cert_file": "r", "allowed_spiffe_ids": []}),
            "plugins.stepgate.grpc.tls.allowed_spiffe_ids",
        ),
        (json!({"ca_cert_file": "c"}), "plugins.stepgate.grpc.tls"),
        (
            json!({"cert_file": "c", "private_key_file": "k", "allowed_spiffe_ids": ["spiffe://a/b"]}),
            "plugins.stepgate.grpc.tls.allowed_spiffe_ids",
        ),
        (
            json!({"cert_file": "c", "private_key_file": "k", "ca_cert_file": "r", "allowed_spiffe_ids": ["a"]}),
            "plugins.stepgate.grpc.tls.allowed_spiffe_ids[0]",
        ),
    ] {
        let found = problems(tls(wrong.clone()));
        assert!(found.errors.iter().any(|problem| problem.path == place), "{wrong}: {found:?}");
    }
    let mut on_a_socket = tls(json!({"cert_file": "c", "private_key_file": "k"}));
    on_a_socket["plugins"]["envoy_ext_authz_grpc"]["addr"] = json!("unix:///run/s.sock");
    assert!(problems(on_a_socket).errors.iter().any(|problem| problem.path == "plugins.stepgate.grpc.tls"));
}

#[test]
fn a_small_machine_gets_small_limits() {
    let listener_config = |limit| {
        let (config, found) = resolve(&Document::of(json!({"plugins": {"envoy_ext_authz_grpc": {}}})), limit);
        assert_eq!(found, Problems::default());
        let settings = config.and_then(|config| config.grpc).expect("a listener_config").settings;
        (settings.max_connections, settings.max_bytes_in_flight)
    };
    assert_eq!(listener_config(None), (20_000, 128 << 20));
    assert_eq!(listener_config(Some(32 << 20)), (128, 4 << 20));
    assert_eq!(listener_config(Some(8 << 30)), (20_000, 128 << 20));
    let filled = |limit| {
        let document = json!({"plugins": {"stepgate": {"compat": "strict"}}});
        let config = resolve(&Document::of(document), limit).0.expect("a configuration");
        let outbound = config.builtins.http_send.expect("http.send").cache_bytes;
        let log = config.decision_log;
        (config.tokens.cache_bytes >> 10, log.limits.bytes >> 10, log.waiting_bytes >> 10, outbound >> 10)
    };
    assert_eq!(filled(None), (64 << 10, 64 << 10, 16 << 10, 64 << 10));
    assert_eq!(filled(Some(32 << 20)), (1_024, 256, 256, 256));
    assert_eq!(filled(Some(64 << 20)), (9 << 10, 2_304, 2_304, 2_304));
}

#[test]
fn room_for_less_than_one_message_is_warned_about() {
    let warnings = |bytes: u64| problems(own(json!({"limits": {"bytes_in_flight": bytes}}))).warnings;
    assert_eq!(warnings(4 << 20), []);
    let found = warnings((4 << 20) - 1);
    assert!(found.iter().any(|problem| problem.path == "plugins.stepgate.limits.bytes_in_flight"), "{found:?}");
}

#[test]
fn one_header_is_not_read_with_and_without_a_scheme() {
    let mut second = issuer();
    second["issuer"] = json!("https://other");
    second["token_from"] = json!([{"header": "Authorization"}]);
    let found = problems(own(json!({"issuers": [issuer(), second.clone()]})));
    assert!(found.errors.iter().any(|problem| problem.path == "plugins.stepgate.issuers"), "{found:?}");
    second["token_from"] = json!([{"header": "Authorization", "scheme": "bearer"}]);
    assert_eq!(problems(own(json!({"issuers": [issuer(), second]}))), Problems::default());
}

#[test]
fn keys_over_plain_http_are_warned_about() {
    let mut issuer = issuer();
    issuer["jwks_url"] = json!("http://idp/jwks");
    assert_eq!(problems(own(json!({"issuers": [issuer]}))).warnings.len(), 1);
}

#[test]
fn a_choice_that_yaml_takes_for_a_number_is_told_to_need_quotes() {
    let tls = json!({"cert_file": "a", "private_key_file": "b", "min_version": 1.3});
    let found = problems(own(json!({"grpc": {"tls": tls}})));
    assert!(found.errors.iter().any(|problem| problem.to_string().contains("in quotes")), "{:?}", found.errors);
}

#[test]
fn a_typo_in_opas_section_is_a_warning_with_a_hint() {
    let found = problems(json!({"plugins": {"envoy_ext_authz_grpc": {"dry_run": true}}, "lables": {}}));
    assert_eq!(found.errors, []);
    let warnings: Vec<_> = found.warnings.iter().map(ToString::to_string).collect();
    assert!(
        warnings.contains(
            &"plugins.envoy_ext_authz_grpc.dry_run: unknown key, ignored; did you mean `dry-run`?".to_owned()
        ),
        "{warnings:?}"
    );
    assert!(warnings.contains(&"lables: unknown key, ignored; did you mean `labels`?".to_owned()), "{warnings:?}");
}

#[test]
fn every_key_that_works_refuses_a_value_of_another_type() {
    for key in all().filter(|key| matches!(key.effect, Effect::Supported) && !matches!(key.kind, Kind::Any)) {
        let mut document = json!(-3.5);
        for piece in key.path.split('.').rev() {
            document = match piece.strip_suffix("[]") {
                Some(name) => json!({name: [document]}),
                None => json!({piece: document}),
            };
        }
        let found = problems(document);
        let place = key.path.replace("[]", "[0]");
        assert!(found.errors.iter().any(|problem| problem.path == place), "{place}: {found:?}");
    }
}
