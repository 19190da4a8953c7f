# METADATA
# title: Demands of routes, from data
# description: >-
#   As `plugins.stepgate.routes`, for teams that ship their table in the bundle: `data.routes` is a list of objects with
#   `path` (`*` is one segment, `**` any number), and optionally `hosts`, `methods`, `level`, `max_age` in seconds and
#   `scopes`. Every match counts. `step_up` is a member for a decision; it is undefined when nothing is missing. A
#   request whose path is ambiguous, or a table that cannot be understood, gets a requirement that no caller meets; `problems`
#   names what is wrong with a table: put `lib/routes/problems` into `plugins.stepgate.load_checks`.
package lib.routes

members := {"path", "hosts", "methods", "level", "max_age", "scopes"}

problems contains "data.routes is no list" if {
	data.routes
	not is_array(data.routes)
}

problems contains sprintf("%v: %v is unknown or has no such value", [route, name]) if {
	some route in data.routes
	some name, value in route
	not is_sound(name, value)
}

problems contains sprintf("%v: it has no path", [route]) if {
	some route in data.routes
	not route.path
}

is_sound("path", path) if regex.match(`^/([^/*?#%;]+|\*\*?)?(/([^/*?#%;]+|\*\*?))*/?$`, path)

is_sound("level", level) if level in numbers.range(0, 15)

is_sound("max_age", max_age) if {
	is_number(max_age)
	max_age >= 0
}

is_sound(name, list) if {
	name in {"hosts", "methods", "scopes"}
	is_array(list)
	every item in list {
		is_string(item)
	}
}

# Nothing can be said of this request.
is_unreadable if count(problems) > 0

is_unreadable if not has_path

# A negated call whose argument is undefined is undefined itself.
has_path if is_string(input.path)

is_unreadable if not host

matching contains route if {
	some route in data.routes
	regex.match(expression(route.path), trim_suffix(input.path, "/"))
	has_method(object.get(route, "methods", []))
	has_host(object.get(route, "hosts", []))
}

expression(path) := sprintf("^%s$", [concat("", [segment(part) | some part in split(path, "/"); part != ""])])

segment("**") := "(/[^/]+)*"

segment("*") := "/[^/]+"

segment(part) := concat("", ["/", regex.replace(part, `([.+()\[\]{}^$|\\])`, `\$1`)]) if not part in {"*", "**"}

has_method(methods) if count(methods) == 0

has_method(methods) if method in {upper(known) | some known in methods}

# HEAD is treated as GET.
method := "GET" if upper(input.method) == "HEAD"

method := upper(input.method) if upper(input.method) != "HEAD"

has_host(hosts) if count(hosts) == 0

has_host(hosts) if trim_suffix(lower(hosts[_]), ".") == host

has_host(hosts) if {
	some known in hosts
	startswith(known, "*.")
	endswith(host, trim_suffix(lower(substring(known, 1, -1)), "."))
}

# In one spelling; undefined when it is no host.
host := name if {
	name := trim_right(lower(regex.replace(input.attributes.request.http.host, `:[0-9]*$`, "")), ".")
	regex.match(`^([a-z0-9._-]+|\[[0-9a-f:.]+\])$`, name)
}

level := max({0} | {route.level | some route in matching})

max_age := min({route.max_age | some route in matching})

scopes := {scope |
	some route in matching
	some scope in route.scopes
}

granted := {scope | some scope in split(object.get(input, ["jwt", "claims", "scope"], ""), " ")} |
	{scope | some scope in listed(object.get(input, ["jwt", "claims", "scp"], []))}

listed(scp) := scp if is_array(scp)

listed(scp) := split(scp, " ") if is_string(scp)

is_high if {
	is_number(input.authn.level)
	input.authn.level >= level
}

is_fresh if {
	is_number(input.authn.age_seconds)
	input.authn.age_seconds <= max_age
}

acr_values := {1: ["mfa", "phr", "phrh"], 2: ["mfa", "phr", "phrh"], 3: ["phr", "phrh"], 4: ["phrh"]}

step_up := {"acr_values": ["phrh"], "max_age": 0, "reason": "route_unreadable"} if is_unreadable

step_up := object.union_n([{"reason": "route"}, for_level, for_age, for_scope]) if {
	not is_unreadable
	count({problem | some problem in [for_level, for_age, for_scope]; problem != {}}) > 0
}

default for_level := {}

for_level := {"acr_values": acr_values[level]} if {
	level > 0
	not is_high
}

default for_age := {}

for_age := {"max_age": max_age} if not is_fresh

default for_scope := {}

for_scope := {"scope": concat(" ", sort([scope | some scope in scopes]))} if count(scopes - granted) > 0
