# METADATA
# title: Workload identity
# description: >-
#   Which roles a CI job or another workload has, by trust policies in `data.workload.trust`: a list of objects with
#   `role` and `conditions`, as cloud providers have them. All operators of `conditions` must hold, and all claims under
#   each; of several values of one claim, one is enough. `StringEquals`, `StringNotEquals`, `StringLike` (`*` and `?`) and
#   `Bool` are known; a policy with another never matches. `problems` says what is dangerous about them: put
#   `lib/workload/problems` into `plugins.stepgate.load_checks`, and such data is not activated.
package lib.workload

# The roles of the caller. Jobs with an untrusted trigger have none when they would change something.
roles contains policy.role if {
	input.jwt.state == "verified"
	not by_stranger
	some policy in data.workload.trust
	count(problems_of(policy)) == 0
	matches(policy.conditions)
}

by_stranger if {
	not input.workload.untrusted_trigger == false
	not input.method in {"GET", "HEAD", "OPTIONS"}
}

# A claim of the token fulfils every condition.
matches(conditions) if {
	count(conditions) > 0
	every operator, claims in conditions {
		every name, wanted in claims {
			holds(operator, name, wanted)
		}
	}
}

holds("StringEquals", name, wanted) if text(claim(name)) in texts(wanted)

holds("StringNotEquals", name, wanted) if {
	found := text(claim(name))
	not found in texts(wanted)
}

holds("StringLike", name, wanted) if {
	some pattern in texts(wanted)
	regex.match(like(pattern), text(claim(name)))
}

# Some providers write booleans as text.
holds("Bool", name, wanted) if lower(text(claim(name))) == lower(text(wanted))

# `iss` and `sub` are claims like any other.
claim(name) := input.jwt.claims[name]

text(value) := value if is_string(value)

text(value) := sprintf("%v", [value]) if is_boolean(value)

text(value) := sprintf("%v", [value]) if is_number(value)

texts(wanted) := {text(item) | some item in wanted} if is_array(wanted)

texts(wanted) := {text(wanted)} if not is_array(wanted)

# A pattern with `*` and `?` as a regular expression. Whatever else it holds stands for itself.
like(pattern) := sprintf("^%s$", [replace(replace(plain(pattern), "*", ".*"), "?", ".")])

plain(pattern) := regex.replace(pattern, `([.+()\[\]{}^$|\\])`, `\$1`)

operators := {"StringEquals", "StringNotEquals", "StringLike", "Bool"}

# Claims that name one repository, project, owner or account for good.
lasting := {"repository_id", "repository_owner_id", "project_id", "namespace_id"}

# Dangerous entries of the trust policies, as sentences.
problems contains problem if {
	some policy in data.workload.trust
	some problem in problems_of(policy)
}

problems_of(policy) := {problem | some problem in all_problems(object.union({"role": "?", "conditions": {}}, policy))}

all_problems(policy) := {sprintf("%v: it has no conditions", [policy.role]) | count(policy.conditions) == 0} |
	{sprintf("%v: the operator %v is unknown", [policy.role, operator]) |
		some operator, _ in policy.conditions
		not operator in operators
	} |
	{sprintf("%v: StringEquals does not name the issuer (iss)", [policy.role]) |
		not is_string(object.get(policy.conditions, ["StringEquals", "iss"], null))
	} |
	{sprintf("%v: what %v of %v is compared with is no text, boolean or number", [policy.role, name, operator]) |
		some operator, claims in policy.conditions
		some name, value in claims
		not is_value(value)
	} |
	{sprintf("%v: nothing names one repository, project, owner or subject", [policy.role]) |
		not names_one(policy.conditions)
	} |
	{sprintf("%v: the pattern %v of sub covers what others own", [policy.role, pattern]) |
		some pattern in texts(object.get(policy.conditions, ["StringLike", "sub"], []))
		is_wide(pattern)
	}

names_one(conditions) if {
	some name in lasting
	conditions.StringEquals[name]
}

names_one(conditions) if conditions.StringEquals.sub

names_one(conditions) if {
	patterns := texts(conditions.StringLike.sub)
	count(patterns) > 0
	every pattern in patterns {
		not is_wide(pattern)
	}
}

# A pattern of `sub` covers subjects of other owners. Without stars it covers one subject.
is_wide(pattern) if {
	has_star(pattern)
	not is_narrow(pattern)
}

has_star(text) if regex.match(`[*?]`, text)

# A repository or project of which only the branch, tag or environment may vary.
is_narrow(pattern) if {
	parts := split(pattern, ":")
	parts[0] in {"repo", "project_path"}
	count(parts) > 2
	not has_star(parts[1])
}

# A trust domain and the first part of the path.
is_narrow(pattern) if {
	startswith(pattern, "spiffe://")
	parts := split(pattern, "/")
	count(parts) > 4
	not has_star(parts[2])
	not has_star(parts[3])
}

is_value(value) if is_plain(value)

is_value(value) if {
	is_array(value)
	count(value) > 0
	every item in value {
		is_plain(item)
	}
}

is_plain(value) if is_string(value)

is_plain(value) if is_boolean(value)

is_plain(value) if is_number(value)
