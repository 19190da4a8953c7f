"""The real provider, its settings and scripts."""
import http.server
import json
import os
import subprocess
import threading
import time
import urllib.parse
import urllib.request

from stack import free_port

IDP = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), 'idp')
POLICY = '''package api
import rego.v1
default allow := false
allow if input.jwt.state == "verified"
'''


def key():
    """A private signing key as a JWK."""
    make = "const {privateKey} = crypto.generateKeyPairSync('ec', {namedCurve: 'P-256'}); console.log(JSON.stringify(privateKey.export({format: 'jwk'})))"
    made = subprocess.run(['node', '-e', make], check=True, capture_output=True, text=True)
    return {**json.loads(made.stdout), 'alg': 'ES256', 'use': 'sig', 'kid': os.urandom(4).hex()}


def settings(provider, folder, **more):
    """stepgate's own part of the configuration, once it is known where the API is."""
    nonce_key = os.path.join(folder, 'nonce.key')
    with open(nonce_key, 'wb') as f:
        f.write(os.urandom(32))

    def own(api):
        return {
            'issuers': [{'issuer': provider.issuer, 'audiences': [api], 'algorithms': ['ES256'], 'token_profile': 'rfc9068',
                         'discovery': f'{provider.issuer}/.well-known/openid-configuration', 'dpop': 'optional',
                         'token_from': [{'header': 'authorization', 'scheme': 'bearer'}, {'cookie': 'session'}]}],
            'resource': {'id': api}, 'dpop': {'nonce_key_file': nonce_key},
            'routes': [{'path': '/pay', 'methods': ['POST'], 'level': 2}, {'path': '/fresh', 'max_age': '2s'},
                       {'path': '/page', 'level': 2}, {'path': '/strict', 'level': 2, 'max_age': '60s'},
                       {'path': '/never', 'level': 'phishing_resistant'}], **more}
    return own


def node(script, **arguments):
    """What a script prints."""
    run = subprocess.run(['node', os.path.join(IDP, script), json.dumps(arguments)], capture_output=True, text=True, timeout=120)
    if run.returncode:
        raise AssertionError(f'{script} failed:\n{run.stdout}{run.stderr[-3000:]}')
    return run.stdout.strip()


class Provider:
    """npm's oidc-provider on a port of its own; a restart forgets its sessions."""

    def __init__(self, callbacks, **more):
        self.port, self.callbacks, self.more, self.process = free_port(), callbacks, more, None
        self.issuer = f'http://127.0.0.1:{self.port}'

    def start(self, keys):
        settings = {'port': self.port, 'jwks': {'keys': keys}, 'callbacks': self.callbacks, **self.more}
        self.process = subprocess.Popen(['node', os.path.join(IDP, 'provider.mjs'), json.dumps(settings)],
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in self.process.stdout:
            if line.strip() == 'ready':
                return
        raise SystemExit('the provider did not start')

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait(10)

    def __enter__(self):
        self.start([key()])
        return self

    def __exit__(self, *_):
        self.stop()


def policy(folder):
    path = os.path.join(folder, 'api.rego')
    with open(path, 'w') as f:
        f.write(POLICY)
    return [path]


class Slow:
    """Passes requests on to the provider, each after a while."""

    def __init__(self, target, delay):
        slow = self
        self.target, self.delay, self.asked = target, delay, 0

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_POST(self):
                slow.asked += 1
                body = self.rfile.read(int(self.headers['content-length']))
                headers = {name: self.headers[name] for name in ('authorization', 'content-type')}
                time.sleep(slow.delay)
                with urllib.request.urlopen(urllib.request.Request(slow.target + self.path, body, headers)) as answer:
                    status, data = answer.status, answer.read()
                self.send_response(status)
                self.send_header('content-type', 'application/json')
                self.send_header('content-length', str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size, daemon_threads = 1024, True

        self.server = Server(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
