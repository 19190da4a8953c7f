"""A server of bundles that can be made to misbehave, and stepgate without Envoy, asked over gRPC and over its API."""
import gzip
import http.client
import http.server
import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import tarfile
import tempfile
import threading
import time

import grpc
from envoy.service.auth.v3 import external_auth_pb2 as ea
from stack import STEPGATE, free_port

CHECK = '/envoy.service.auth.v3.Authorization/Check'


def bundle(files, leading='/'):
    """A bundle as `opa build` packs it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w:gz') as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            info = tarfile.TarInfo(leading + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def policy_file(folder, text):
    """Writes a policy into a folder and gives its path."""
    path = os.path.join(folder, 'p.rego')
    with open(path, 'w') as f:
        f.write(text)
    return path


def policy(word, revision, extra=None):
    """A bundle that allows the path `/<word>` alone."""
    rego = f'package app\nimport rego.v1\ndefault allow := false\nallow if input.parsed_path[0] == data.app.word\nrevision := "{revision}"\n'
    return bundle({'data.json': {'app': {'word': word}}, 'app.rego': rego,
                   '.manifest': {'revision': revision, 'roots': ['app'], **(extra or {})}})


def config(server, **more):
    """A configuration with the bundle `b` of a server, and `more`; `bundle` is added to the bundle."""
    return {'services': {'s': {'url': server.url, 'response_header_timeout_seconds': 1}},
            'bundles': {'b': {'resource': '/b.tar.gz', 'polling': {'min_delay_seconds': 1, 'max_delay_seconds': 1},
                              **more.pop('bundle', {})}},
            'status': {'console': True}, **more}


class Server:
    """Serves what `routes` holds: path -> a function of the handler. Keeps every request."""

    def __init__(self, port=0, tls=None):
        """`tls` is certificate, key and, if clients need certificates, the root of those."""
        self.routes, self.requests, self.bodies, self.logs, self.statuses = {}, [], [], [], []
        self.log_status = 200
        self.lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def any(self):
                length = int(self.headers.get('content-length') or 0)
                body = self.rfile.read(length)
                with outer.lock:
                    outer.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
                    outer.bodies.append(body)
                if self.command == 'POST' and self.path.startswith('/logs'):
                    status = outer.log_status(self) if callable(outer.log_status) else outer.log_status
                    if status == 200:
                        with outer.lock:
                            outer.logs.extend(json.loads(gzip.decompress(body)))
                    return self.reply(status)
                if self.command == 'POST' and self.path.startswith('/status'):
                    with outer.lock:
                        outer.statuses.append(json.loads(body))
                    return self.reply(200)
                route = outer.routes.get(self.path)
                return route(self) if route else self.reply(404, b'nothing here')

            do_GET = do_POST = any

            def reply(self, status, body=b'', headers=()):
                self.send_response(status)
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.send_header('content-length', str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def raw(self, head, body=b''):
                """Whatever it is, and then the end of the connection."""
                self.wfile.write(head.encode() + body)
                self.wfile.flush()
                self.close_connection = True

            def log_message(self, *_):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self.server = Quiet(('127.0.0.1', port), Handler)
        self.port = self.server.server_port
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls[:2])
            if len(tls) > 2:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(tls[2])
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f'{"https" if tls else "http"}://localhost:{self.port}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def offer(self, path, data, etag=None, headers=None):
        def route(handler):
            if etag and handler.headers.get('if-none-match') == etag:
                return handler.reply(304, headers={'etag': etag})
            handler.reply(200, data, {**({'etag': etag} if etag else {}), **(headers or {})})
        self.routes[path] = route

    def asked(self, path):
        with self.lock:
            return [headers for _, known, headers in self.requests if known == path]

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


class Sidecar:
    """stepgate with a configuration; a context."""

    def __init__(self, config, args=(), grpc_block=True, env=None, addr=None, files=()):
        self.folder = tempfile.mkdtemp(prefix='stepgate-control-')
        self.api, self.diagnostic, self.grpc = free_port(), free_port(), free_port()
        self.admin = os.path.join(self.folder, 'admin.sock')
        config = json.loads(json.dumps(config))
        plugins = config.setdefault('plugins', {})
        if grpc_block:
            plugins.setdefault('envoy_ext_authz_grpc', {}).update(addr=f'127.0.0.1:{self.grpc}')
            plugins['envoy_ext_authz_grpc'].setdefault('path', 'app/allow')
        plugins.setdefault('stepgate', {}).setdefault('admin_socket', f'unix://{self.admin}')
        with open(os.path.join(self.folder, 'config.json'), 'w') as f:
            json.dump(config, f)
        self.log = open(os.path.join(self.folder, 'log'), 'w+')
        self.process = subprocess.Popen(
            [STEPGATE, 'run', '--server', '--config-file', os.path.join(self.folder, 'config.json'),
             '--addr', addr or f'127.0.0.1:{self.api}', '--diagnostic-addr', f'http://127.0.0.1:{self.diagnostic}', *args, *files],
            stdout=self.log, stderr=self.log, cwd=self.folder, env={**os.environ, **(env or {})})
        self.channel = None

    def __enter__(self):
        wait(lambda: self.get('/health', port=self.diagnostic)[0] == 200, 'the diagnostic port', self)
        return self

    def __exit__(self, *_):
        if self.channel:
            self.channel.close()
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def lines(self):
        with open(os.path.join(self.folder, 'log')) as f:
            return f.read()

    def get(self, path, method='GET', body=None, headers=None, port=None, host='127.0.0.1'):
        connection = http.client.HTTPConnection(host, port or self.api, timeout=10)
        try:
            data = json.dumps(body) if isinstance(body, (dict, list)) else body
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            raw = answer.read()
            try:
                return answer.status, json.loads(raw), dict(answer.getheaders())
            except ValueError:
                return answer.status, raw, dict(answer.getheaders())
        except (OSError, http.client.HTTPException):
            return 0, None, {}
        finally:
            connection.close()

    def post(self, path, body=None, headers=None, **more):
        return self.get(path, 'POST', body, headers, **more)

    def refresh(self, name):
        connection = http.client.HTTPConnection('admin')
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.admin)
        connection.request('POST', f'/v1/bundles/{name}/refresh')
        status = connection.getresponse().status
        connection.close()
        return status

    def check(self, path):
        """Whether a request is allowed."""
        return self.answer(path).status.code == 0

    def answer(self, path):
        return self.call(self.request(path))

    @staticmethod
    def request(path):
        request = ea.CheckRequest()
        request.attributes.request.http.method = 'GET'
        request.attributes.request.http.path = path
        return request

    def call(self, request):
        if self.channel is None:
            self.channel = grpc.insecure_channel(f'127.0.0.1:{self.grpc}')
        call = self.channel.unary_unary(CHECK, ea.CheckRequest.SerializeToString, ea.CheckResponse.FromString)
        return call(request, timeout=5)

    def bundle(self, name='b'):
        return self.get('/v1/status')[1]['result'].get('bundles', {}).get(name, {})

    def settled(self, condition, what):
        wait(condition, what, self)


def wait(condition, what, sidecar=None, seconds=15):
    end = time.time() + seconds
    while time.time() < end:
        if condition():
            return
        if sidecar and sidecar.process.poll() is not None:
            break
        time.sleep(0.03)
    tail = sidecar.lines()[-3000:] if sidecar else ''
    raise AssertionError(f'waited in vain for {what}\n{tail}')


def certificates(folder):
    """A root, and with it one certificate and key for the server and the client: their paths."""
    path = lambda name: os.path.join(folder, name)
    run = lambda *args: subprocess.run(['openssl', *args], check=True, capture_output=True)
    run('req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=root', '-days', '2', '-keyout', path('root.key'), '-out', path('root.pem'),
        '-addext', 'basicConstraints=critical,CA:TRUE')
    run('req', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=localhost', '-keyout', path('own.key'), '-out', path('own.csr'))
    with open(path('ext'), 'w') as f:
        f.write('subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n')
    run('x509', '-req', '-in', path('own.csr'), '-CA', path('root.pem'), '-CAkey', path('root.key'), '-CAcreateserial', '-days', '2',
        '-extfile', path('ext'), '-out', path('own.pem'))
    return path('root.pem'), path('own.pem'), path('own.key')


def ask_over_tls(port, root, own, path):
    """The status of a GET by somebody who trusts `root` and shows the certificate and key of `own`; 0 when there is none."""
    context = ssl.create_default_context(cafile=root)
    if own:
        context.load_cert_chain(*own)
    connection = http.client.HTTPSConnection('localhost', port, context=context, timeout=5)
    try:
        connection.request('GET', path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def stepgate(*args, check=True, cwd=None):
    done = subprocess.run([STEPGATE, *args], capture_output=True, text=True, cwd=cwd)
    if check and done.returncode:
        raise AssertionError(f'{args}: {done.stderr}')
    return done
