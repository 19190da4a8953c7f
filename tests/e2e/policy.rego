# One decision for each thing that the end-to-end tests look at.
package api_policy

seg := input.parsed_path[0]

decision := {
	"allowed": true,
	"headers": {"x-added": "by-policy", "x-replaced": "new"},
	"request_headers_to_remove": ["x-removed"],
	"response_headers_to_add": {"x-response": "added"},
} if {
	seg == "headers"
}

decision := {"allowed": false, "http_status": 401, "headers": {"www-authenticate": ["Bearer realm=\"a\"", "DPoP algs=\"ES256\""]}} if {
	seg == "two-challenges"
}

decision := {"allowed": false, "http_status": 403, "body": json.marshal({
	"truncated": input.truncated_body,
	"parsed": input.parsed_body,
})} if {
	seg == "body"
}

decision := true if seg == "public"

decision := true if {
	seg == "panic"
	internal.test_panic()
}

decision := true if {
	seg == "slow"
	some i in numbers.range(1, 400000)
	some j in numbers.range(1, 400000)
	i * j == -1
}

decision := "yes" if seg == "nonsense"
