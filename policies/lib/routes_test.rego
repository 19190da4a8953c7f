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

test_what_is_below_includes_itself if {
	every path in ["/admin", "/admin/", "/admin/x", "/admin/x/y"] {
		routes.step_up with data.routes as [{"path": "/admin/**", "level": 3}] with input as asked("GET", path, "h", strong)
	}
	routes.step_up with data.routes as [{"path": "/**", "level": 3}] with input as asked("GET", "/", "h", strong)
	routes.step_up with data.routes as [{"path": "/a/**/b", "level": 3}] with input as asked("GET", "/a/b", "h", strong)
	not routes.step_up with data.routes as [{"path": "/a.c", "level": 3}] with input as asked("GET", "/abc", "h", strong)
}

test_what_cannot_be_read_is_demanded if {
	unreadable := "route_unreadable"
	every table in [
		[{"path": "/x", "max_age": "5m"}], [{"path": "/x", "level": "3"}], [{"path": "/x", "level": 16}], [{"level": 1}],
		[{"path": "x"}], [{"path": "/x*"}], [{"path": "/x", "methods": "GET"}], [{"path": "/x", "methdos": ["GET"]}], {"path": "/x"},
	] {
		count(routes.problems) > 0 with data.routes as table
		routes.step_up.reason == unreadable with data.routes as table with input as asked("GET", "/y", "h", strong)
	}
	some_path := object.remove(asked("GET", "/", "h", strong), ["path"])
	routes.step_up.reason == unreadable with data.routes as table with input as some_path
	routes.step_up.reason == unreadable with data.routes as table with input as asked("GET", "/y", "a@b", strong)
	routes.problems == set() with data.routes as table
}

test_empty_lists_are_all if {
	routes.step_up with data.routes as [{"path": "/x", "level": 3, "methods": [], "hosts": []}] with input as asked("GET", "/x", "h", strong)
}

test_scp if {
	every scp in ["read pay", ["pay"]] {
		not routes.step_up with data.routes as table
			with input as object.union(asked("POST", "/pay/1", "h", strong), {"jwt": {"claims": {"scope": "", "scp": scp}}})
	}
}

test_hosts if {
	every name in ["a.b.example.com", "api.example.com:", "api.example.com."] {
		routes.step_up with input as asked("GET", "/hosts", name, {}) with data.routes as table
	}

	routes.step_up with input as asked("GET", "/hosts", "API.example.com:8443", {}) with data.routes as table
	not routes.step_up with input as asked("GET", "/hosts", "example.org", {}) with data.routes as table
}
