"""An Envoy in the shape that Istio gives it, with a listener for each way in which a mesh asks, and all that stands behind it."""
import json
import os
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from concurrent import futures

import grpc
from stack import ENVOY, STEPGATE, Stack, Upstream, free_port

TYPES = 'type.googleapis.com/envoy.extensions.filters'
PROVIDER = 'istio-ext-authz-stepgate'


def typed(name, kind, **settings):
    return {'name': name, 'typed_config': {'@type': f'{TYPES}.{kind}', **settings}}


def cluster(name, where, http2=False, tls=None):
    address = {'pipe': {'path': where}} if isinstance(where, str) else {'socket_address': {'address': '127.0.0.1', 'port_value': where}}
    out = {'name': name, 'type': 'STATIC', 'connect_timeout': '1s', 'load_assignment': {
        'cluster_name': name, 'endpoints': [{'lb_endpoints': [{'endpoint': {'address': address}}]}]}}
    if http2:
        options = 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions'
        out['typed_extension_protocol_options'] = {options: {
            '@type': f'type.googleapis.com/{options}', 'explicit_http_config': {'http2_protocol_options': {}}}}
    if tls:
        certificate, key, root = tls
        out['transport_socket'] = {'name': 'envoy.transport_sockets.tls', 'typed_config': {
            '@type': 'type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext',
            'common_tls_context': {
                # Envoy as a client speaks nothing newer than 1.2 by itself.
                'tls_params': {'tls_maximum_protocol_version': 'TLSv1_3'},
                'tls_certificates': [{'certificate_chain': {'filename': certificate}, 'private_key': {'filename': key}}],
                'validation_context': {'trusted_ca': {'filename': root}}}}}
    return out


def shadow(network, permission):
    """The RBAC filter that only marks what the CUSTOM policy matches, as istiod writes it."""
    policy = {'permissions': [permission], 'principals': [{'any': True}]}
    where = 'network' if network else 'http'
    prefix = {'stat_prefix': 'tcp.'} if network else {}
    return typed(f'envoy.filters.{where}.rbac', f'{where}.rbac.v3.RBAC', shadow_rules_stat_prefix='istio_ext_authz_', **prefix, shadow_rules={
        'action': 'DENY', 'policies': {f'{PROVIDER}-ns[demo]-policy[stepgate]-rule[0]': policy}})


def ext_authz(network, authz, timeout='2s', authority='stepgate.stepgate-system.svc.cluster.local', **settings):
    where = 'network' if network else 'http'
    marked = {'filter': f'envoy.filters.{where}.rbac', 'path': [{'key': 'istio_ext_authz_shadow_effective_policy_id'}],
              'value': {'string_match': {'prefix': PROVIDER}}}
    service = {'envoy_grpc': {'cluster_name': authz, 'authority': authority}, 'timeout': timeout}
    if network:
        settings = {'stat_prefix': 'tcp.', **settings}
    else:
        settings = {'status_on_error': {'code': 'ServiceUnavailable'},
                    'with_request_body': {'max_request_bytes': 1024, 'allow_partial_message': True, 'pack_as_bytes': True}, **settings}
    return typed(f'envoy.filters.{where}.ext_authz', f'{where}.ext_authz.v3.ExtAuthz', transport_api_version='V3',
                 filter_enabled_metadata=marked, grpc_service=service, **settings)


NATIVE_DENY = typed('envoy.filters.http.rbac', 'http.rbac.v3.RBAC', rules={'action': 'DENY', 'policies': {'ns[demo]-policy[deny]-rule[0]': {
    'permissions': [{'header': {'name': 'x-native', 'string_match': {'exact': 'deny'}}}], 'principals': [{'any': True}]}}})
PER_ROUTE = f'{TYPES}.http.ext_authz.v3.ExtAuthzPerRoute'


def http_listener(name, port, authz, permission=None, routes=(), upstream='upstream', tls=None, xfcc='APPEND_FORWARD', **settings):
    route = {'cluster': upstream, 'timeout': '0s'}
    manager = typed('envoy.filters.network.http_connection_manager', 'network.http_connection_manager.v3.HttpConnectionManager',
                    stat_prefix=name.replace('-', '_'), codec_type='AUTO', use_remote_address=False, normalize_path=True,
                    path_with_escaped_slashes_action='KEEP_UNCHANGED', forward_client_cert_details=xfcc,
                    max_request_headers_kb=96,
                    set_current_client_cert_details={'subject': True, 'uri': True, 'dns': True},
                    upgrade_configs=[{'upgrade_type': 'websocket'}],
                    route_config={'virtual_hosts': [{'name': 'all', 'domains': ['*'], 'routes': [
                        *({**own, 'route': route} for own in routes), {'match': {'prefix': '/'}, 'route': route}]}]},
                    http_filters=[shadow(False, permission or {'any': True}), ext_authz(False, authz, **settings), NATIVE_DENY,
                                  typed('envoy.filters.http.router', 'http.router.v3.Router')])
    chain = {'filters': [manager]}
    if tls:
        certificate, key, root = tls
        chain['transport_socket'] = {'name': 'envoy.transport_sockets.tls', 'typed_config': {
            '@type': 'type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext',
            'require_client_certificate': True,
            'common_tls_context': {
                'tls_certificates': [{'certificate_chain': {'filename': certificate}, 'private_key': {'filename': key}}],
                'validation_context': {'trusted_ca': {'filename': root}}}}}
    return listener(name, port, chain)


def tcp_listener(name, port, authz):
    proxy = typed('envoy.filters.network.tcp_proxy', 'network.tcp_proxy.v3.TcpProxy', stat_prefix='tcp', cluster='echo')
    return listener(name, port, {'filters': [shadow(True, {'any': True}), ext_authz(True, authz), proxy]})


def listener(name, port, chain):
    return {'name': name, 'address': {'socket_address': {'address': '127.0.0.1', 'port_value': port}}, 'filter_chains': [chain]}


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(4096):
            self.request.sendall(data)


class Hung(socketserver.BaseRequestHandler):
    """Takes connections and never says anything."""

    def handle(self):
        while self.request.recv(4096):
            pass


def serve(handler):
    server = socketserver.ThreadingTCPServer(('127.0.0.1', 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class AnyCall(grpc.GenericRpcHandler):
    def service(self, _):
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request)


def workload_certificates(folder, names):
    """A root, and certificates with SPIFFE ids: name -> (certificate, key)."""
    path = lambda name: os.path.join(folder, name)
    run = lambda *args: subprocess.run(['openssl', *args], check=True, capture_output=True)
    run('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/O=cluster.local', '-days', '2',
        '-keyout', path('root.key'), '-out', path('root.pem'), '-addext', 'basicConstraints=critical,CA:TRUE')
    for name in names:
        run('req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/', '-keyout', path(f'{name}.key'), '-out', path('csr'))
        with open(path('ext'), 'w') as out:
            out.write(f'subjectAltName=critical,URI:spiffe://cluster.local/ns/default/sa/{name}\nextendedKeyUsage=serverAuth,clientAuth\n')
        run('x509', '-req', '-in', path('csr'), '-CA', path('root.pem'), '-CAkey', path('root.key'), '-CAcreateserial', '-days', '2',
            '-extfile', path('ext'), '-out', path(f'{name}.pem'))
    return path('root.pem'), {name: (path(f'{name}.pem'), path(f'{name}.key')) for name in names}


class Mesh:
    """A context: `ports` by the names of listeners, `root` and `certificates` for mTLS."""

    def __init__(self, policy, configs):
        """`configs` are stepgate's own section by the name of the server: shared, file, abstract, waypoint."""
        self.folder, self.processes, self.diagnostics = tempfile.mkdtemp(prefix='stepgate-mesh-'), [], {}
        self.upstream, self.echo, self.hung = Upstream(), serve(Echo), serve(Hung)
        self.grpc = grpc.server(futures.ThreadPoolExecutor(4), handlers=[AnyCall()])
        grpc_port = self.grpc.add_insecure_port('127.0.0.1:0')
        self.grpc.start()
        try:
            self.root, self.certificates = workload_certificates(self.folder, ('server', 'sleep', 'other'))
            names = ('plain', 'selective', 'file', 'abstract', 'odd-authority', 'mtls', 'waypoint', 'whole-bodies', 'routes', 'tcp-open',
                     'tcp-shut', 'dead', 'tcp-dead', 'dead-selective', 'fail-open', 'hung', 'http1', 'grpc', 'tls', 'tls-stranger', 'tls-plain')
            self.ports, self.admin = {name: free_port() for name in names}, free_port()
            where = {'shared': free_port(), 'file': os.path.join(self.folder, 'stepgate.sock'), 'abstract': f'@stepgate-mesh-{os.getpid()}',
                     'waypoint': free_port(), 'tls': free_port()}
            self.write('data.json', {'open_port': self.ports['tcp-open']})
            certificate, key = self.certificates['server']
            tls = {'cert_file': certificate, 'private_key_file': key, 'ca_cert_file': self.root, 'min_version': '1.3',
                   'allowed_spiffe_ids': ['spiffe://cluster.local/ns/default/sa/sleep']}
            configs = {**configs, 'tls': {'grpc': {'tls': tls, 'max_connection_age': '1s', 'keepalive': '1s'}}}
            for name, addr in where.items():
                self.stepgate(name, addr, policy, configs.get(name) or {})
            self.envoy(where, grpc_port)
        except BaseException:
            self.stop()
            raise

    def write(self, name, value):
        path = os.path.join(self.folder, name)
        with open(path, 'w') as out:
            json.dump(value, out)
        return path

    def stepgate(self, name, addr, policy, own):
        diagnostic = self.diagnostics[name] = free_port()
        config = self.write(f'{name}.json', {'plugins': {
            'envoy_ext_authz_grpc': {'addr': f'127.0.0.1:{addr}' if isinstance(addr, int) else f'unix://{addr}', 'path': 'mesh/decision'},
            'stepgate': own}})
        self.start(name, [STEPGATE, 'run', '--server', '--addr', '127.0.0.1:0', '--diagnostic-addr', f'127.0.0.1:{diagnostic}',
                          '--config-file', config, policy, os.path.join(self.folder, 'data.json')])
        probe = [STEPGATE, 'doctor', '--probe', '--url', f'http://127.0.0.1:{diagnostic}']
        self.wait(name, lambda: subprocess.run(probe).returncode == 0)

    def envoy(self, where, grpc_port):
        ports = self.ports
        protected = {'url_path': {'path': {'prefix': '/protected'}}}
        tls = (*self.certificates['server'], self.root)
        unchecked = {'match': {'prefix': '/unchecked'}, 'typed_per_filter_config': {
            'envoy.filters.http.ext_authz': {'@type': PER_ROUTE, 'disabled': True}}}
        tier = {'match': {'prefix': '/tier'}, 'typed_per_filter_config': {
            'envoy.filters.http.ext_authz': {'@type': PER_ROUTE, 'check_settings': {'context_extensions': {'tier': 'gold'}}}}}
        http = lambda name, authz, **more: http_listener(name, ports[name], authz, **more)
        listeners = [
            http('plain', 'shared'), http('selective', 'shared', permission=protected), http('file', 'file'), http('abstract', 'abstract'),
            http('odd-authority', 'shared', authority='outbound_.9191_._.stepgate.internal'), http('mtls', 'shared', tls=tls),
            http('waypoint', 'waypoint', xfcc='ALWAYS_FORWARD_ONLY'), http('whole-bodies', 'shared', with_request_body={'max_request_bytes': 1024}),
            http('routes', 'shared', routes=[unchecked, tier]), http('dead', 'dead'),
            http('dead-selective', 'dead', permission=protected), http('fail-open', 'dead', failure_mode_allow=True),
            http('hung', 'hung', timeout='0.3s'), http('http1', 'http1', status_on_error={'code': 'Forbidden'}),
            http('grpc', 'shared', upstream='calls'), *(http(name, name) for name in ('tls', 'tls-stranger', 'tls-plain')),
            tcp_listener('tcp-open', ports['tcp-open'], 'shared'), tcp_listener('tcp-shut', ports['tcp-shut'], 'shared'),
            tcp_listener('tcp-dead', ports['tcp-dead'], 'dead')]
        clusters = [cluster('upstream', self.upstream.port), cluster('echo', self.echo.server_address[1]), cluster('calls', grpc_port, True),
                    *(cluster(name, addr, True) for name, addr in where.items() if name != 'tls'),
                    cluster('tls', where['tls'], True, (*self.certificates['sleep'], self.root)),
                    cluster('tls-stranger', where['tls'], True, (*self.certificates['other'], self.root)),
                    cluster('tls-plain', where['tls'], True), cluster('dead', free_port(), True),
                    cluster('hung', self.hung.server_address[1], True), cluster('http1', where['shared'])]
        config = self.write('envoy.json', {
            'node': {'id': 'sidecar~10.0.0.1~hello-0.demo~demo.svc.cluster.local', 'cluster': 'hello.demo'},
            'admin': {'address': {'socket_address': {'address': '127.0.0.1', 'port_value': self.admin}}},
            'static_resources': {'listeners': listeners, 'clusters': clusters}})
        subprocess.run([ENVOY, '--mode', 'validate', '-c', config, '--log-level', 'error'], check=True, capture_output=True)
        self.start('envoy', [ENVOY, '-c', config, '--base-id', str(ports['plain']), '--log-level', 'error', '--concurrency', '1'])
        self.wait('envoy', lambda: socket.create_connection(('127.0.0.1', ports['plain']), 1).close() is None)

    def start(self, name, command):
        log = open(os.path.join(self.folder, f'{name}.log'), 'wb')
        self.processes.append((name, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)))

    def stat(self, name):
        """A counter of Envoy's."""
        answer = Stack.exchange(self.admin, 'GET', '/stats?format=json', [], None)
        found = [stat['value'] for stat in json.loads(answer.body)['stats'] if stat.get('name') == name]
        return found[0] if found else 0

    def metric(self, server, name):
        """A counter without labels of a stepgate."""
        text = Stack.exchange(self.diagnostics[server], 'GET', '/metrics', [], None).body
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(f'{name} ')), 0)

    def log(self, name):
        with open(os.path.join(self.folder, f'{name}.log'), errors='replace') as file:
            return file.read()[-3000:]

    def wait(self, name, is_ready, seconds=20):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if any(process.poll() is not None for _, process in self.processes):
                break
            try:
                if is_ready():
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise SystemExit(f'{name} did not get ready:\n{self.log(name)}')

    def stop(self):
        for _, process in reversed(self.processes):
            process.terminate()
        for _, process in self.processes:
            process.wait(15)
        self.grpc.stop(0)
        for server in (self.echo, self.hung):
            server.shutdown()
        self.upstream.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
