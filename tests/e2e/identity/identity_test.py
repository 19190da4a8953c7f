"""Identity and step-up with a real OpenID provider and real clients, through the real Envoy.

The provider is npm's oidc-provider, the client openid-client, the browser Chromium; all of them in tests/idp."""
from concurrent import futures
import base64
import json
import os
import tempfile
import time
import urllib.parse
import urllib.request

from expect import eq
from harness import wait
from provider import Provider, Slow, key, node, policy, settings
from stack import Stack, free_port


def test_the_whole_loop_with_a_real_provider() -> None:
    callback = f'http://127.0.0.1:{free_port()}/callback'
    with tempfile.TemporaryDirectory() as folder, Provider([callback]) as provider:
        with Stack(policy(folder), settings(provider, folder), plugin={'path': 'api/allow'}) as stack:
            print(node('loop.mjs', api=f'http://127.0.0.1:{stack.port}', callback=callback))


def test_keys_rotate_and_the_provider_restarts() -> None:
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


def test_opaque_tokens_are_asked_about() -> None:
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
            wait(lambda: stack.request('GET', '/read', token=token).status == 401, 'the end of the revoked token')
            other = node('token.mjs', issuer=provider.issuer, callback=callback, api=api)
            provider.stop()
            answer = stack.request('GET', '/read', token=other)
            eq((answer.status, json.loads(answer.body)['reason']), (503, 'introspection_unavailable'), 'an outage')


def test_a_slow_provider_denies_nobody_who_was_here_before() -> None:
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


def test_grpc_callers_see_unauthenticated() -> None:
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


def test_a_browser_is_sent_to_the_login_and_comes_back() -> None:
    login = free_port()
    callback = f'http://127.0.0.1:{login}/callback'
    with tempfile.TemporaryDirectory() as folder, Provider([callback]) as provider:
        def own(api):
            redirect = {'login_url': f'http://127.0.0.1:{login}/login', 'return_origins': [api], 'allow_http': True}
            return {**settings(provider, folder)(api), 'step_up': {'redirect': redirect}}
        with Stack(policy(folder), own, plugin={'path': 'api/allow'}) as stack:
            print(node('browser.mjs', issuer=provider.issuer, login=login, api=f'http://127.0.0.1:{stack.port}'))
