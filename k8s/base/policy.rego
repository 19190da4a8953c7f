# The example: everyone may read /public, verified callers may read the rest, and /admin needs two factors.
# The level that /admin demands is in config.yaml (`routes`): stepgate itself asks for it.
package mesh

default decision := {"allowed": false}

decision := {"allowed": true} if input.path in {"/public", "/healthz"}

decision := {"allowed": true} if {
	not input.path in {"/public", "/healthz"}
	input.jwt.state == "verified"
}

decision := {"allowed": false, "reason": "no_http"} if not input.attributes.request.http
