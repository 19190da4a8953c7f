package api_policy_test

import data.api_policy

request(path, amr) := {
	"method": "GET",
	"path": path,
	"jwt": {"state": "verified", "claims": {"amr": amr}},
	"authn": {"level": 1, "mfa": false},
}

test_mfa_is_allowed if {
	api_policy.allow with input as request("/api/v1/admin/data", ["pwd", "mfa"])
}

test_password_alone_is_not if {
	not api_policy.allow with input as request("/api/v1/admin/data", ["pwd"])
}

test_another_path_is_not if {
	not api_policy.allow with input as request("/api/v1/admin/data/", ["mfa"])
}

test_an_ambiguous_path_is_not if {
	not api_policy.allow with input as object.remove(request("", ["mfa"]), ["path"])
}

test_a_known_caller_is_asked_for_more if {
	decision := api_policy.decision with input as request("/api/v1/admin/data", ["pwd"])
	decision.step_up.acr_values == ["phr", "mfa"]
}

test_an_unknown_caller_is_not_asked_by_the_policy if {
	decision := api_policy.decision with input as {"method": "GET", "path": "/api/v1/admin/data", "jwt": {"state": "absent"}}
	decision == {"allowed": false, "reason": "not_allowed"}
}
