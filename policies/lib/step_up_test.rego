package lib.step_up_test

import data.lib.step_up

test_a_reached_level_satisfies if {
	step_up.satisfied(2) with input as {"authn": {"level": 3}}
}

test_a_lower_level_does_not if {
	not step_up.satisfied(2) with input as {"authn": {"level": 1}}
}

test_an_unknown_level_does_not if {
	not step_up.satisfied(0) with input as {"authn": {}}
	not step_up.satisfied(0) with input as {"authn": {"level": null}}
}

test_a_recent_authentication_is_fresh if {
	step_up.fresh_enough(300) with input as {"authn": {"age_seconds": 300}}
}

test_an_old_one_is_not if {
	not step_up.fresh_enough(300) with input as {"authn": {"age_seconds": 301}}
}

test_an_unknown_age_is_not_fresh if {
	not step_up.fresh_enough(300) with input as {"authn": {}}
	not step_up.fresh_enough(300) with input as {"authn": {"age_seconds": null}}
}

test_demands_name_what_is_enough if {
	step_up.require(2) == {"acr_values": ["phr", "mfa"], "reason": "level_too_low"}
	step_up.fresh(60) == {"max_age": 60, "reason": "authentication_too_old"}
}

test_what_is_no_number_is_met_by_nobody if {
	not step_up.fresh_enough("5m") with input as {"authn": {"age_seconds": 1}}
	not step_up.satisfied(null) with input as {"authn": {"level": 4}}
}
