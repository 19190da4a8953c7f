"""As much of an API server as Helm's `lookup` asks, with the objects that it is given."""
import http.server
import json
import threading

# What the chart is made of; Helm asks for each.
RESOURCES = {
    'v1': ('ConfigMap', 'Service', 'ServiceAccount', 'Pod'), 'apps/v1': ('Deployment',), 'batch/v1': ('Job',), 'policy/v1': ('PodDisruptionBudget',),
    'autoscaling/v2': ('HorizontalPodAutoscaler',), 'networking.k8s.io/v1': ('NetworkPolicy',),
    'security.istio.io/v1': ('AuthorizationPolicy', 'PeerAuthentication'),
}


def plural(kind):
    return f'{kind.lower()[:-1]}ies' if kind.endswith('y') else f'{kind.lower()}s'


class Live:
    """Serves `objects`, by kind, whatever name and namespace are asked for; a context."""

    def __init__(self, objects):
        live = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                status, body = live.answer(self.path.split('?')[0].strip('/'))
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header('content-type', 'application/json')
                self.send_header('content-length', str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.objects = objects
        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}'

    def answer(self, path):
        if path == 'version':
            return 200, {'major': '1', 'minor': '34', 'gitVersion': 'v1.34.0'}
        if path == 'api':
            return 200, {'kind': 'APIVersions', 'versions': ['v1']}
        if path == 'apis':
            groups = [{'name': version.split('/')[0], 'versions': [{'groupVersion': version, 'version': version.split('/')[1]}],
                       'preferredVersion': {'groupVersion': version, 'version': version.split('/')[1]}} for version in RESOURCES if '/' in version]
            return 200, {'kind': 'APIGroupList', 'apiVersion': 'v1', 'groups': groups}
        for version, kinds in RESOURCES.items():
            root = f'apis/{version}' if '/' in version else f'api/{version}'
            if path == root:
                resources = [{'name': plural(kind), 'singularName': kind.lower(), 'namespaced': True, 'kind': kind, 'verbs': ['get', 'list']} for kind in kinds]
                return 200, {'kind': 'APIResourceList', 'groupVersion': version, 'resources': resources}
            for kind in kinds:
                if path.startswith(f'{root}/namespaces/') and f'/{plural(kind)}/' in path and kind in self.objects:
                    owner = {'meta.helm.sh/release-name': 'stepgate', 'meta.helm.sh/release-namespace': path.split('/namespaces/')[1].split('/')[0]}
                    metadata = {'name': path.rsplit('/', 1)[1], 'labels': {'app.kubernetes.io/managed-by': 'Helm'}, 'annotations': owner}
                    return 200, {'apiVersion': version, 'kind': kind, 'metadata': metadata, **self.objects[kind]}
        return 404, {'kind': 'Status', 'apiVersion': 'v1', 'status': 'Failure', 'reason': 'NotFound', 'code': 404}

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
