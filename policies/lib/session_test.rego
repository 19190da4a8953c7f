package lib.session_test

import data.lib.session

test_a_session_lasts_by_its_level if {
	not session.over with input as {"authn": {"level": 1, "age_seconds": 28800}}
	session.over with input as {"authn": {"level": 1, "age_seconds": 28801}}
	not session.over with input as {"authn": {"level": 3, "age_seconds": 28801}}
}

test_what_is_unknown_is_over if {
	session.over with input as {}
	session.over with input as {"authn": {"level": 2}}
	session.over with input as {"authn": {"level": 0, "age_seconds": 1}}
	session.over with input as {"authn": {"level": 2, "age_seconds": null}}
}

test_the_limits_are_data if {
	session.over with input as {"authn": {"level": 1, "age_seconds": 61}} with data.session.max_age as {"1": 60}
}

test_a_limit_that_is_no_number_is_no_limit_to_rely_on if {
	session.over with input as {"authn": {"level": 1, "age_seconds": 1}} with data.session.max_age as {"1": "1h"}
	session.step_up.max_age == 0 with input as {"authn": {"level": 1, "age_seconds": 1}} with data.session.max_age as {"1": "1h"}
}

test_the_demand_names_the_limit if {
	session.step_up == {"max_age": 43200, "reason": "session_over"} with input as {"authn": {"level": 2, "age_seconds": 50000}}
	session.step_up == {"max_age": 0, "reason": "session_over"} with input as {}
	not session.step_up with input as {"authn": {"level": 2, "age_seconds": 1}}
}
