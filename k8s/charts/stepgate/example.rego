# The policy while `policies` is empty and no bundles are configured: only public paths are allowed.
package mesh

default decision := {"allowed": false}

decision := {"allowed": true} if input.path in {"/public", "/healthz"}
