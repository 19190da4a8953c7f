# METADATA
# title: Step-up
# description: >-
#   What to put under `step_up` in a decision. `satisfied` and `fresh_enough` say whether enough was proven and fail
#   closed: what is unknown is not enough.
package lib.step_up

acr_values := {
	1: ["phrh", "phr", "mfa"],
	2: ["phr", "mfa"],
	3: ["phrh", "phr"],
	4: ["phrh"],
}

# The caller's level is at least `level`.
satisfied(level) if {
	is_number(input.authn.level)
	input.authn.level >= level
}

# The caller authenticated within the last `max_age` seconds.
fresh_enough(max_age) if {
	is_number(input.authn.age_seconds)
	input.authn.age_seconds <= max_age
}

# A demand for `level`.
require(level) := {"acr_values": acr_values[level], "reason": "level_too_low"}

# A demand for an authentication within the last `max_age` seconds.
fresh(max_age) := {"max_age": max_age, "reason": "authentication_too_old"}
