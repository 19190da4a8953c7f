package lib.mfa_test

import data.lib.mfa

test_two_kinds_are_enough if {
	mfa.satisfied with input as {"authn": {"factors": ["knowledge", "possession"], "mfa": false}}
}

test_the_provider_may_say_so if {
	mfa.satisfied with input as {"authn": {"factors": [], "mfa": true}}
}

test_one_kind_is_not_enough if {
	not mfa.satisfied with input as {"authn": {"factors": ["knowledge"], "mfa": false}}
}

test_one_kind_named_twice_is_not_enough if {
	not mfa.satisfied with input as {"authn": {"factors": ["knowledge", "knowledge"], "mfa": false}}
}

test_nothing_known_is_not_enough if {
	not mfa.satisfied with input as {}
}
