# Rules for the scenarios of the mesh: peers, client addresses, and Envoy's other attributes.
package mesh

sleep := "spiffe://cluster.local/ns/default/sa/sleep"

default decision := {"allowed": false}

# The upstream receives the decision.
decision := {"allowed": true, "headers": {"x-checked": "1"}} if input.path in {"/public", "/protected"}

decision := {"allowed": true, "headers": {"x-peer": input.peer.principal}} if {
	input.path == "/peer"
	input.peer.principal == sleep
}

decision := {"allowed": true, "headers": {"x-client": input.client.ip}} if input.path == "/client"

decision := {"allowed": true} if {
	input.path == "/tier"
	input.attributes.contextExtensions.tier == "gold"
}

decision := {"allowed": true, "headers": {"x-cut": sprintf("%v", [input.truncated_body])}} if input.path == "/body"

decision := {
	"allowed": true,
	"headers": {"x-added": "by-policy"},
	"request_headers_to_remove": ["x-secret"],
	"response_headers_to_add": {"x-answered": "yes"},
} if {
	input.path == "/headers"
}

# Connections without requests: by their destination port.
decision := {"allowed": true} if {
	not input.attributes.request.http
	input.attributes.destination.address.socketAddress.portValue == data.open_port
}
