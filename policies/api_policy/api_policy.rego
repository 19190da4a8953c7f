# METADATA
# title: The founding policy
# description: Admin data may be read by callers who proved two factors; other callers get a step-up challenge.
package api_policy

import data.lib.step_up

default allow := false

allow if {
	input.method == "GET"
	input.path == "/api/v1/admin/data"
	"mfa" in input.jwt.claims.amr
}

# The same rule as a full decision: a verified caller with too low a level gets a step-up challenge.
default decision := {"allowed": false, "reason": "not_allowed"}

decision := {"allowed": true} if allow

decision := {"allowed": false, "step_up": step_up.require(2)} if {
	not allow
	input.method == "GET"
	input.path == "/api/v1/admin/data"
	input.jwt.state == "verified"
}
