# METADATA
# title: Demands of routes, from data
# description: >-
#   As `plugins.stepgate.routes`, for teams that ship their table in the bundle: `data.routes` is a list of objects with
#   `path` (a glob of segments), and optionally `hosts`, `methods`, `level`, `max_age` (seconds) and `scopes`. All that
#   match count. `step_up` is what to put into a decision; it is undefined when nothing is missing.
package lib.routes

matching contains route if {
	some route in data.routes
	glob.match(route.path, ["/"], trim_suffix(input.path, "/"))
	has_method(route)
	has_host(route)
}

has_method(route) if not route.methods

has_method(route) if method in {upper(known) | some known in route.methods}

# What answers GET answers HEAD.
method := "GET" if upper(input.method) == "HEAD"

method := upper(input.method) if upper(input.method) != "HEAD"

has_host(route) if not route.hosts

has_host(route) if {
	some known in route.hosts
	glob.match(lower(known), ["."], host)
}

host := trim_suffix(lower(regex.replace(input.attributes.request.http.host, `:[0-9]+$`, "")), ".")

level := max({0} | {route.level | some route in matching})

max_age := min({route.max_age | some route in matching})

scopes := {scope |
	some route in matching
	some scope in route.scopes
}

is_low if not is_high

is_high if input.authn.level >= level

is_old if {
	max_age
	not is_fresh
}

is_fresh if input.authn.age_seconds <= max_age

missing := scopes - {scope | some scope in split(object.get(input, ["jwt", "claims", "scope"], ""), " ")}

acr_values := {1: ["mfa", "phr", "phrh"], 2: ["mfa", "phr", "phrh"], 3: ["phr", "phrh"], 4: ["phrh"]}

step_up := object.union_n([{"reason": "route"}, for_level, for_age, for_scope]) if {
	count({problem | some problem in [for_level, for_age, for_scope]; problem != {}}) > 0
}

default for_level := {}

for_level := {"acr_values": acr_values[level]} if {
	level > 0
	is_low
}

default for_age := {}

for_age := {"max_age": max_age} if is_old

default for_scope := {}

for_scope := {"scope": concat(" ", sort([scope | some scope in scopes]))} if count(missing) > 0
