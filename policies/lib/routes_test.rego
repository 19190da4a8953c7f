package lib.routes_test

import data.lib.routes

table := [
	{"path": "/pay/**", "methods": ["POST"], "level": 2, "scopes": ["pay"]},
	{"path": "/pay/*", "max_age": 300},
	{"path": "/read", "methods": ["GET"], "level": 1},
	{"path": "/hosts", "hosts": ["*.example.com"], "level": 3},
]

asked(method, path, host, authn) := {
	"method": method, "path": path, "authn": authn, "jwt": {"claims": {"scope": "read pay"}},
	"attributes": {"request": {"http": {"host": host}}},
}

strong := {"level": 2, "age_seconds": 10}

test_nothing_is_missing if {
	not routes.step_up with input as asked("POST", "/pay/1", "h", strong) with data.routes as table
	not routes.step_up with input as asked("POST", "/other", "h", {}) with data.routes as table
}

test_all_that_match_count if {
	routes.step_up == {"reason": "route", "acr_values": ["mfa", "phr", "phrh"], "max_age": 300} with data.routes as table
		with input as asked("POST", "/pay/1", "h", {"level": 1, "age_seconds": 301})
}

test_what_is_unknown_is_missing if {
	routes.step_up.max_age == 300 with input as asked("POST", "/pay/1", "h", {"level": 2}) with data.routes as table
	routes.step_up.acr_values with input as asked("POST", "/pay/1", "h", {"age_seconds": 1}) with data.routes as table
}

test_scopes if {
	routes.step_up.scope == "pay" with input as object.union(asked("POST", "/pay/1", "h", strong), {"jwt": {"claims": {"scope": "payment"}}})
		with data.routes as table
}

test_head_is_get_and_a_slash_is_nothing if {
	routes.step_up with input as asked("HEAD", "/read/", "h", {}) with data.routes as table
	not routes.step_up with input as asked("POST", "/read", "h", {}) with data.routes as table
}

test_hosts if {
	routes.step_up with input as asked("GET", "/hosts", "API.example.com:8443", {}) with data.routes as table
	not routes.step_up with input as asked("GET", "/hosts", "example.org", {}) with data.routes as table
}
