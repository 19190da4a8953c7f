"""Identity and step-up with a real OpenID provider and real clients, through the real Envoy. Closes with 'N passed, N failed'.

The provider is npm's oidc-provider, the client openid-client, the browser Chromium; all of them in tests/idp."""
import base64
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse
import urllib.request
from concurrent import futures

from stack import Stack, free_port

IDP = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'idp')
POLICY = '''package api
import rego.v1
default allow := false
allow if input.jwt.state == "verified"
'''


def eq(got, want, what):
    if got != want:
        raise AssertionError(f'{what}: got {got!r}, want {want!r}')


def node(script, **arguments):
    """What a script prints."""
    run = subprocess.run(['node', os.path.join(IDP, script), json.dumps(arguments)], capture_output=True, text=True, timeout=120)
    if run.returncode:
        raise AssertionError(f'{script} failed:\n{run.stdout}{run.stderr[-3000:]}')
    return run.stdout.strip()


def key():
    """A private signing key as a JWK."""
    make = "const {privateKey} = crypto.generateKeyPairSync('ec', {namedCurve: 'P-256'}); console.log(JSON.stringify(privateKey.export({format: 'jwk'})))"
    made = subprocess.run(['node', '-e', make], check=True, capture_output=True, text=True)
    return {**json.loads(made.stdout), 'alg': 'ES256', 'use': 'sig', 'kid': os.urandom(4).hex()}


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


def policy(folder):
    path = os.path.join(folder, 'api.rego')
    with open(path, 'w') as f:
        f.write(POLICY)
    return [path]


def the_whole_loop_with_a_real_provider():
    callback = f'http://127.0.0.1:{free_port()}/callback'
    with tempfile.TemporaryDirectory() as folder, Provider([callback]) as provider:
        with Stack(policy(folder), settings(provider, folder), plugin={'path': 'api/allow'}) as stack:
            print(node('loop.mjs', api=f'http://127.0.0.1:{stack.port}', callback=callback))


def keys_rotate_and_the_provider_restarts():
    callback = f'http://127.0.0.1:{free_port()}/callback'
    with tempfile.TemporaryDirectory() as folder, Provider([callback]) as provider:
        with Stack(policy(folder), settings(provider, folder), plugin={'path': 'api/allow'}) as stack:
            api = f'http://127.0.0.1:{stack.port}'
            token = lambda: node('token.mjs', issuer=provider.issuer, callback=callback, api=api)
            old = token()
            eq(stack.request('GET', '/read', token=old).status, 200, 'a token of the first key')
            provider.stop()
            for _ in range(3):
                eq(stack.request('GET', '/read', token=old).status, 200, 'while the provider is away')
            provider.start([key()])
            new = token()
            eq(stack.request('GET', '/read', token=new).status, 200, 'the first request with a token of the new key')
            answer = stack.request('GET', '/read', token=old)
            eq((answer.status, 'invalid_token' in answer.header('www-authenticate')[0]), (401, True), 'a key that is gone')


def opaque_tokens_are_asked_about():
    callback = f'http://127.0.0.1:{free_port()}/callback'
    basic = base64.b64encode(urllib.parse.quote_plus('api').encode() + b':' + urllib.parse.quote_plus('only for tests').encode())
    with tempfile.TemporaryDirectory() as folder, Provider([callback], format='opaque') as provider:
        services = {'idp': {'url': provider.issuer, 'credentials': {'bearer': {'scheme': 'Basic', 'token': basic.decode()}}}}

        def own(api):
            asked = {'service': 'idp', 'resource': '/token/introspection', 'ttl': '2s'}
            issuer = {'issuer': provider.issuer, 'audiences': [api], 'introspection': asked}
            return {**settings(provider, folder)(api), 'issuers': [issuer]}
        with Stack(policy(folder), own, plugin={'path': 'api/allow'}, config={'services': services}) as stack:
            api = f'http://127.0.0.1:{stack.port}'
            token = node('token.mjs', issuer=provider.issuer, callback=callback, api=api)
            eq('.' in token, False, 'an opaque token')
            eq(stack.request('GET', '/read', token=token).status, 200, 'it is active')
            eq(stack.request('POST', '/pay', token=token).header('www-authenticate')[0].split(',')[0],
               'Bearer error="insufficient_user_authentication"', 'what the issuer says of it counts')
            eq(stack.request('GET', '/read', token=token + 'x').status, 401, 'a token that nobody gave out')
            revoke = urllib.parse.urlencode({'token': token, 'client_id': 'app'}).encode()
            urllib.request.urlopen(f'{provider.issuer}/token/revocation', revoke)
            time.sleep(2.1)
            eq(stack.request('GET', '/read', token=token).status, 401, 'it was revoked')
            other = node('token.mjs', issuer=provider.issuer, callback=callback, api=api)
            provider.stop()
            answer = stack.request('GET', '/read', token=other)
            eq((answer.status, json.loads(answer.body)['reason']), (503, 'introspection_unavailable'), 'an outage')


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


def a_slow_provider_denies_nobody_who_was_here_before():
    callback = f'http://127.0.0.1:{free_port()}/callback'
    with tempfile.TemporaryDirectory() as folder, Provider([callback], format='opaque') as provider:
        slow = Slow(provider.issuer, 0.3)
        secret = os.path.join(folder, 'secret')
        with open(secret, 'w') as f:
            f.write('only for tests\n')

        def own(api):
            asked = {'service': 'idp', 'resource': '/token/introspection', 'ttl': '2s', 'timeout': '1s', 'client_id': 'api', 'client_secret_file': secret}
            issuer = {'issuer': provider.issuer, 'audiences': [api], 'introspection': asked}
            return {**settings(provider, folder)(api), 'issuers': [issuer], 'limits': {'check_timeout': '1s'}}
        with Stack(policy(folder), own, plugin={'path': 'api/allow'}, config={'services': {'idp': {'url': slow.url}}}) as stack:
            api = f'http://127.0.0.1:{stack.port}'
            tokens = node('token.mjs', issuer=provider.issuer, callback=callback, api=api, count=50).split()
            ask = lambda token: stack.request('GET', '/read', token=token).status
            with futures.ThreadPoolExecutor(40) as pool:
                eq(set(pool.map(ask, tokens)), {200}, 'each is asked about, and waited for')
                time.sleep(2.2)
                made_up = [pool.submit(ask, f'made-up-{number}') for number in range(300)]
                known = [pool.submit(ask, token) for token in tokens]
                eq({job.result() for job in known}, {200}, 'tokens that were active before, beside 300 that nobody gave out')
                eq({job.result() for job in made_up} <= {401, 503}, True, 'those')
        slow.server.shutdown()


def grpc_callers_see_unauthenticated():
    import grpc
    callback = f'http://127.0.0.1:{free_port()}/callback'
    with tempfile.TemporaryDirectory() as folder, Provider([callback]) as provider:
        own = settings(provider, folder, routes=[{'path': '/pay.Pay/Now', 'level': 2}])
        with Stack(policy(folder), own, plugin={'path': 'api/allow'}) as stack:
            api = f'http://127.0.0.1:{stack.port}'
            weak = node('token.mjs', issuer=provider.issuer, callback=callback, api=api)
            with grpc.insecure_channel(f'127.0.0.1:{stack.port}') as channel:
                pay = channel.unary_unary('/pay.Pay/Now', request_serializer=bytes, response_deserializer=bytes)
                try:
                    pay(b'', metadata=[('authorization', f'Bearer {weak}')], timeout=5)
                    raise AssertionError('it was answered')
                except grpc.RpcError as error:
                    eq(error.code(), grpc.StatusCode.UNAUTHENTICATED, 'the status')
                    headers = dict([*error.initial_metadata(), *error.trailing_metadata()])
                    eq('acr_values="mfa' in headers.get('www-authenticate', ''), True, f'the challenge in {headers}')


def a_browser_is_sent_to_the_login_and_comes_back():
    login = free_port()
    callback = f'http://127.0.0.1:{login}/callback'
    with tempfile.TemporaryDirectory() as folder, Provider([callback]) as provider:
        def own(api):
            redirect = {'login_url': f'http://127.0.0.1:{login}/login', 'return_origins': [api], 'allow_http': True}
            return {**settings(provider, folder)(api), 'step_up': {'redirect': redirect}}
        with Stack(policy(folder), own, plugin={'path': 'api/allow'}) as stack:
            print(node('browser.mjs', issuer=provider.issuer, login=login, api=f'http://127.0.0.1:{stack.port}'))


TESTS = [the_whole_loop_with_a_real_provider, keys_rotate_and_the_provider_restarts, opaque_tokens_are_asked_about, a_slow_provider_denies_nobody_who_was_here_before, grpc_callers_see_unauthenticated,
         a_browser_is_sent_to_the_login_and_comes_back]


def main():
    wanted, failed = sys.argv[1:], 0
    tests = [test for test in TESTS if not wanted or test.__name__ in wanted]
    for test in tests:
        began = time.monotonic()
        try:
            test()
            print(f'ok    {test.__name__} ({time.monotonic() - began:.1f} s)', flush=True)
        except Exception:
            failed += 1
            print(f'FAIL  {test.__name__}\n{traceback.format_exc()}', flush=True)
    print(f'{len(tests) - failed} passed, {failed} failed')
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
