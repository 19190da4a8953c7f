package lib.workload_test

import data.lib.workload

github := "https://token.actions.githubusercontent.com"

deploy := {"role": "deploy", "conditions": {
	"StringEquals": {"iss": github, "repository_id": ["7", "8"]},
	"StringLike": {"ref": "refs/heads/release-*"},
	"Bool": {"ref_protected": true},
}}

claims := {"iss": github, "repository_id": "7", "ref": "refs/heads/release-1.2", "ref_protected": "true"}

asked(method, more) := {
	"method": method,
	"jwt": {"state": "verified", "claims": object.union(claims, more)},
	"workload": {"untrusted_trigger": object.get(more, "event_name", "push") == "pull_request"},
}

test_all_conditions_must_hold if {
	workload.roles == {"deploy"} with input as asked("POST", {}) with data.workload.trust as [deploy]
}

test_each_condition_counts if {
	every more in [
		{"iss": "https://gitlab.com"}, {"repository_id": "9"}, {"repository_id": 77}, {"ref": "refs/heads/main"},
		{"ref": "xrefs/heads/release-1"}, {"ref": "refs/heads/releasex"}, {"ref_protected": "false"}, {"ref_protected": null},
	] {
		workload.roles == set() with input as asked("POST", more) with data.workload.trust as [deploy]
	}
}

test_pull_requests_may_only_read if {
	pull := {"event_name": "pull_request"}
	workload.roles == set() with input as asked("POST", pull) with data.workload.trust as [deploy]
	workload.roles == {"deploy"} with input as asked("GET", pull) with data.workload.trust as [deploy]
}

test_a_job_of_which_nothing_is_known_may_only_read if {
	bare := object.remove(asked("POST", {}), ["workload"])
	workload.roles == set() with input as bare with data.workload.trust as [deploy]
}

test_only_verified_tokens_have_roles if {
	every state in ["rejected", "absent", "asserted"] {
		workload.roles == set() with input as {"method": "GET", "jwt": {"state": state, "claims": claims}}
			with data.workload.trust as [deploy]
	}
}

test_a_dot_in_a_pattern_is_a_dot if {
	exact := {"role": "r", "conditions": {"StringEquals": {"iss": github, "repository_id": "7"}, "StringLike": {"ref": "v1.?"}}}
	workload.roles == {"r"} with input as asked("GET", {"ref": "v1.2"}) with data.workload.trust as [exact]
	workload.roles == set() with input as asked("GET", {"ref": "v1x2"}) with data.workload.trust as [exact]
}

test_dangerous_policies_are_told_and_match_nothing if {
	every conditions in [
		{},
		{"StringEquals": {"iss": github}},
		{"StringEquals": {"repository_id": "7"}},
		{"StringEquals": {"iss": github}, "StringLike": {"sub": "repo:org/*:*"}},
		{"StringEquals": {"iss": github}, "StringLike": {"sub": "repo:*"}},
		{"StringEquals": {"iss": github}, "StringLike": {"sub": ["repo:org/one:ref:*", "*"]}},
		{"StringEquals": {"iss": github, "repository_id": "7"}, "StringLike": {"sub": "repo:o*/r:*"}},
		{"StringEquals": {"iss": "k"}, "StringLike": {"sub": "system:serviceaccount:*:*"}},
		{"StringEquals": {"iss": "k"}, "StringLike": {"sub": "system:serviceaccount:prod:*"}},
		{"StringEquals": {"iss": "s"}, "StringLike": {"sub": "spiffe://*/ns/a"}},
		{"StringEquals": {"iss": "s"}, "StringLike": {"sub": "spiffe://example.org/*"}},
		{"StringEquals": {"iss": github, "repository_id": "7"}, "StringNotEquals": {"environment": [null]}},
		{"StringEquals": {"iss": github, "repository_id": []}},
		{"StringEquals": {"iss": github, "repository_id": "7"}, "ForAnyValue:StringLike": {"ref": "*"}},
	] {
		policy := {"role": "r", "conditions": conditions}
		count(workload.problems) > 0 with data.workload.trust as [policy]
		wide := {"sub": "repo:org/one:ref:x"}
		workload.roles == set() with input as asked("GET", wide) with data.workload.trust as [policy]
	}
}

test_good_policies_have_no_problems if {
	narrow := {"role": "r", "conditions": {"StringEquals": {"iss": github}, "StringLike": {"sub": "repo:org/one:environment:*"}}}
	pods := {"role": "r", "conditions": {"StringEquals": {"iss": "s"}, "StringLike": {"sub": "spiffe://example.org/ns/*"}}}
	account := {"role": "r", "conditions": {"StringEquals": {"iss": "k", "sub": "system:serviceaccount:prod:app"}}}
	workload.problems == set() with data.workload.trust as [deploy, narrow, pods, account]
	workload.problems == set()
}
