"""The parts of an end-to-end run: stepgate, the real Envoy in front of a small upstream, and a plain HTTP client.

Standard library only. Every port is free and on loopback; everything that was started is stopped again. Envoy ends when
the thread that started it does, so `Stack` must be made on the main thread."""
import http.client
import http.server
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGET = os.environ.get('CARGO_TARGET_DIR', os.path.join(ROOT, 'target'))
STEPGATE = os.environ.get('STEPGATE', os.path.join(TARGET, 'debug', 'stepgate'))
ENVOY = os.environ.get('ENVOY', os.path.join(ROOT, '.tools', 'venv', 'bin', 'envoy'))
ISSUER = 'https://id.example.test'
AUDIENCE = 'https://api.example.test'


GIVEN_PORTS = set()


def free_port() -> int:
    """A port that nothing listens on, below those that the system takes for outgoing connections. Parallel workers have ranges of
    their own."""
    worker = int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw')) % 4
    while True:
        port = secrets.randbelow(3_000) + 20_000 + worker * 3_000
        with socket.socket() as s:
            try:
                s.bind(('127.0.0.1', port))
            except OSError:
                continue
        if port not in GIVEN_PORTS:
            GIVEN_PORTS.add(port)
            return port


class Upstream:
    """Answers 200 with the request's headers as JSON, so that a test sees what really arrived."""

    def __init__(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def answer(self):
                if self.headers.get('upgrade'):
                    self.send_response(101)
                    self.send_header('connection', 'Upgrade')
                    self.send_header('upgrade', self.headers['upgrade'])
                    self.end_headers()
                    self.close_connection = True
                    return
                length = int(self.headers.get('content-length') or 0)
                body = self.rfile.read(length)
                pairs = [[name.lower(), value] for name, value in self.headers.items()]
                data = json.dumps({'path': self.path, 'headers': pairs, 'body_bytes': len(body)}).encode()
                self.send_response(200)
                self.send_header('content-type', 'application/json')
                self.send_header('content-length', str(len(data)))
                self.end_headers()
                if self.command != 'HEAD':
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_HEAD = do_PURGE = answer

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def header(self, name):
        return [value for key, value in self.headers if key.lower() == name]

    def upstream_headers(self):
        """What the upstream received, by name."""
        found = {}
        for name, value in json.loads(self.body)['headers']:
            found.setdefault(name, []).append(value)
        return found


def envoy_config(port, admin, upstream, authz, failure_mode_allow, extra, initial_metadata, before=(), virtual_host=None):
    """One listener: the filters `before`, ext_authz over gRPC, then the upstream. `authz` is a port or a socket path."""
    if isinstance(authz, int):
        address = {'socket_address': {'address': '127.0.0.1', 'port_value': authz}}
    else:
        address = {'pipe': {'path': authz}}

    def cluster(name, where, http2):
        out = {'name': name, 'type': 'STATIC', 'connect_timeout': '1s', 'load_assignment': {
            'cluster_name': name, 'endpoints': [{'lb_endpoints': [{'endpoint': {'address': where}}]}]}}
        if http2:
            out['typed_extension_protocol_options'] = {'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
                '@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions',
                'explicit_http_config': {'http2_protocol_options': {}}}}
        return out

    grpc = {'envoy_grpc': {'cluster_name': 'authz'}, 'timeout': '2s'}
    if initial_metadata:
        grpc['initial_metadata'] = initial_metadata
    authz_filter = {
        '@type': 'type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz',
        'transport_api_version': 'V3', 'failure_mode_allow': failure_mode_allow, 'grpc_service': grpc, **extra}
    manager = {
        '@type': 'type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager',
        'stat_prefix': 'in', 'max_request_headers_kb': 512,
        'common_http_protocol_options': {'max_headers_count': 2000},
        'route_config': {'virtual_hosts': [{'name': 'all', 'domains': ['*'], 'routes': [
            {'match': {'prefix': '/'}, 'route': {'cluster': 'upstream'}}], **(virtual_host or {})}]},
        'http_filters': [
            *before,
            {'name': 'envoy.filters.http.ext_authz', 'typed_config': authz_filter},
            {'name': 'envoy.filters.http.router', 'typed_config': {
                '@type': 'type.googleapis.com/envoy.extensions.filters.http.router.v3.Router'}}]}
    return {
        'admin': {'address': {'socket_address': {'address': '127.0.0.1', 'port_value': admin}}},
        'static_resources': {
            'listeners': [{'name': 'in', 'per_connection_buffer_limit_bytes': 16 << 20, 'address': {'socket_address': {'address': '127.0.0.1', 'port_value': port}},
                           'filter_chains': [{'filters': [{
                               'name': 'envoy.filters.network.http_connection_manager', 'typed_config': manager}]}]}],
            'clusters': [
                cluster('upstream', {'socket_address': {'address': '127.0.0.1', 'port_value': upstream}}, False),
                cluster('authz', address, True)]}}


class Stack:
    """stepgate, Envoy and the upstream, with keys and tokens."""

    def __init__(self, policies, stepgate=None, plugin=None, addr=None, failure_mode_allow=False, ext_authz=None,
                 initial_metadata=None, args=(), config=None, before=(), virtual_host=None, port=None):
        self.folder = tempfile.mkdtemp(prefix='stepgate-e2e-')
        self.processes, self.upstream = [], Upstream()
        try:
            self.keys = self.make_keys()
            self.diagnostic, self.port = free_port(), port or free_port()
            authz = free_port() if addr is None else addr
            # What depends on where Envoy will be is made by a function of that.
            own = stepgate(f'http://127.0.0.1:{self.port}') if callable(stepgate) else stepgate or {}
            config = {**(config or {}), 'plugins': {
                'envoy_ext_authz_grpc': {
                    'addr': f'127.0.0.1:{authz}' if isinstance(authz, int) else f'unix://{authz}',
                    'path': 'api_policy/decision', **(plugin or {})},
                'stepgate': {
                    'issuers': [{'issuer': ISSUER, 'audiences': [AUDIENCE], 'algorithms': ['RS256', 'ES256'],
                                 'jwks_file': os.path.join(self.folder, 'jwks.json'), 'leeway': '0s'}],
                    'identity_headers': {'x-auth-subject': 'claims.sub', 'x-auth-tenant': 'claims.tenant'},
                    'input': {'ambiguous_path': 'reject'}, **own}}}
            self.write('config.json', json.dumps(config))
            self.start('stepgate', [
                STEPGATE, 'run', '--server', '--addr', '127.0.0.1:0', '--diagnostic-addr', f'127.0.0.1:{self.diagnostic}',
                '--config-file', os.path.join(self.folder, 'config.json'), '--log-level', 'info', *args, *policies])
            self.wait('stepgate', lambda: self.diagnose('/ready').status == 200)
            envoy = envoy_config(self.port, free_port(), self.upstream.port, authz, failure_mode_allow, ext_authz or {},
                                 initial_metadata, before, virtual_host)
            self.write('envoy.json', json.dumps(envoy))
            self.start('envoy', [ENVOY, '-c', os.path.join(self.folder, 'envoy.json'), '--base-id', str(self.port),
                                 '--log-level', 'error', '--concurrency', '1'])
            self.wait('envoy', lambda: socket.create_connection(('127.0.0.1', self.port), 1).close() is None)
        except BaseException:
            self.stop()
            raise

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, 'w', encoding='utf-8') as file:
            file.write(text)
        return path

    def make_keys(self):
        keys, sets = {}, []
        for alg in ('RS256', 'ES256'):
            keys[alg] = os.path.join(self.folder, f'{alg}.pem')
            out = subprocess.run([STEPGATE, 'token', 'keygen', '--alg', alg, '--kid', alg, '--out', keys[alg]],
                                 check=True, capture_output=True, text=True).stdout
            sets += json.loads(out)['keys']
        self.write('jwks.json', json.dumps({'keys': sets}))
        return keys

    def token(self, alg='RS256', lifetime=600, **claims):
        claims = {'iss': ISSUER, 'aud': AUDIENCE, 'sub': 'alice', **claims}
        return subprocess.run(
            [STEPGATE, 'token', 'sign', '--alg', alg, '--kid', alg, '--key', self.keys[alg], '--lifetime', str(lifetime),
             json.dumps(claims)], check=True, capture_output=True, text=True).stdout.strip()

    def start(self, name, command):
        log = open(os.path.join(self.folder, f'{name}.log'), 'wb')
        self.processes.append((name, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)))

    def log(self, name):
        with open(os.path.join(self.folder, f'{name}.log'), encoding='utf-8', errors='replace') as file:
            return file.read()

    def wait(self, name, ready, seconds=20):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for known, process in self.processes:
                if process.poll() is not None:
                    raise SystemExit(f'{known} ended:\n{self.log(known)[-3000:]}')
            try:
                if ready():
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise SystemExit(f'{name} did not get ready:\n{self.log(name)[-3000:]}')

    def diagnose(self, path):
        return self.exchange(self.diagnostic, 'GET', path, [], None)

    def request(self, method, path, headers=(), body=None, token=None):
        headers = list(headers)
        if token is not None:
            headers.append(('authorization', f'Bearer {token}'))
        return self.exchange(self.port, method, path, headers, body)

    @staticmethod
    def exchange(port, method, path, headers, body):
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            if body is not None and not any(name == 'transfer-encoding' for name, _ in headers):
                connection.putheader('content-length', str(len(body)))
            connection.endheaders()
            if body is not None:
                connection.send(body)
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read().decode('utf-8', 'replace'))
        finally:
            connection.close()

    def raw(self, data):
        """Sends bytes that no client library would send; gives the status."""
        with socket.create_connection(('127.0.0.1', self.port), 10) as connection:
            connection.sendall(data)
            head = connection.recv(65536).decode('latin-1')
            return int(head.split(' ')[1]), head

    def stop(self):
        for _, process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for _, process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        self.upstream.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
