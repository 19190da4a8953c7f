# METADATA
# title: Sessions
# description: >-
#   Maximum age of an authentication, by its level: stronger ones count longer. `data.session.max_age`
#   overrides the seconds per level. What is unknown is over.
package lib.session

default_max_age := {"1": 28800, "2": 43200, "3": 86400, "4": 86400}

max_age := object.union(default_max_age, configured)

default configured := {}

configured := data.session.max_age

default over := true

over := false if {
	is_number(input.authn.age_seconds)
	limit := max_age[sprintf("%d", [input.authn.level])]
	is_number(limit)
	input.authn.age_seconds <= limit
}

# The `step_up` of a decision when the session is over.
step_up := {"max_age": limit, "reason": "session_over"} if {
	over
	limit := seconds(object.get(max_age, sprintf("%d", [object.get(input, ["authn", "level"], 0)]), 0))
}

# A limit that is no number has no meaning; nothing is fresh enough for it.
seconds(limit) := limit if is_number(limit)

seconds(limit) := 0 if not is_number(limit)
