"""Credentials of services, redirects and proxies."""
import base64
import hashlib
import hmac
import json
import os
import subprocess
import tempfile
import urllib.parse

from expect import eq
from harness import Server, Sidecar, certificates, config, policy


def test_services_are_shown_who_we_are() -> None:
    """Each kind of credentials, by what really arrives: the bundle comes only with the right ones."""
    with tempfile.TemporaryDirectory() as folder:
        root, certificate, key = certificates(folder)
        server, tokens, closed = Server(), Server(tls=(certificate, key)), Server(tls=(certificate, key, root))
        served = policy('one', 'r1')
        path = lambda name: os.path.join(folder, name)
        issued = []

        def guarded(expected):
            def route(handler):
                got = handler.headers.get('authorization')
                return handler.reply(200, served) if got == expected() else handler.reply(401)
            server.routes['/b.tar.gz'] = route

        def token(handler):
            issued.append(f'token-{len(issued)}')
            answer = {'access_token': issued[-1], 'token_type': 'Bearer', 'expires_in': 3600}
            handler.reply(200, json.dumps(answer).encode(), {'content-type': 'application/json'})

        tokens.routes['/token'] = token
        latest = lambda: f'Bearer {issued[-1]}' if issued else None
        form = lambda: dict(urllib.parse.parse_qsl(tokens.bodies[-1].decode()))

        def fetched(credentials, what, url=None, tls=None, env=None, keys=None):
            whole = config(server, keys=keys or {})
            whole['services']['s'] = {'url': url or server.url, 'credentials': credentials, **({'tls': {'ca_cert': tls}} if tls else {})}
            with Sidecar(whole, env=env) as sidecar:
                sidecar.settled(lambda: sidecar.check('/one'), what)
                eq('s3cret' in sidecar.get('/v1/config')[1].__repr__(), False, 'no secret is shown')

        # OAuth 2.0: a secret, a signed assertion for the client, one as the grant, and one from a file.
        oauth2 = {'token_url': tokens.url + '/token', 'client_id': 'me', 'scopes': ['read', 'log']}
        guarded(latest)
        fetched({'oauth2': {**oauth2, 'client_secret': 's3cret+/'}}, 'a client secret', tls=root)
        eq(form(), {'grant_type': 'client_credentials', 'scope': 'read log'}, 'the form')
        basic = tokens.asked('/token')[-1]['authorization']
        eq(basic, 'Basic ' + base64.b64encode(b'me:s3cret%2B%2F').decode(), 'HTTP Basic')
        subprocess.run(['openssl', 'genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256', '-out', path('ec.pem')],
                       check=True, capture_output=True)
        with open(path('ec.pem')) as f:
            signing = {'k': {'private_key': f.read(), 'algorithm': 'ES256'}}
        claims = {'additional_claims': {'iss': 'me', 'aud': 'there'}, 'include_jti_claim': True}
        fetched({'oauth2': {**oauth2, 'signing_key': 'k', **claims}}, 'a client assertion', tls=root, keys=signing)
        eq(form()['client_assertion_type'], 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer', 'the form')
        part = form()['client_assertion'].split('.')[1]
        made = json.loads(base64.urlsafe_b64decode(part + '=' * (-len(part) % 4)))
        eq((made['iss'], made['exp'] - made['iat'], made['scope']), ('me', 600, 'read log'), 'the assertion')
        fetched({'oauth2': {**oauth2, 'grant_type': 'jwt_bearer', 'signing_key': 'k', **claims}}, 'the grant', tls=root, keys=signing)
        eq(form()['grant_type'], 'urn:ietf:params:oauth:grant-type:jwt-bearer', 'the form')
        with open(path('assertion'), 'w') as f:
            f.write('made-elsewhere\n')
        fetched({'oauth2': {**oauth2, 'client_assertion_path': path('assertion')}}, 'an assertion from a file', tls=root)
        eq((form()['client_assertion'], form()['client_id']), ('made-elsewhere', 'me'), 'the form')
        count = len(issued)
        fetched({'oauth2': {**oauth2, 'client_secret': 's3cret'}}, 'a kept token', tls=root)
        eq(len(issued), count + 1, 'one token for many polls')

        # The metadata servers of two clouds.
        server.routes['/computeMetadata/v1/instance/service-accounts/default/identity?audience=me'] = \
            lambda handler: handler.reply(200, b'identity') if handler.headers.get('metadata-flavor') == 'Google' else handler.reply(403)
        guarded(lambda: 'Bearer identity')
        fetched({'gcp_metadata': {'audience': 'me', 'endpoint': server.url}}, 'GCP')
        server.routes['/msi?api-version=2018-02-01&resource=https%3A%2F%2Fstorage.azure.com%2F&client_id=c'] = \
            lambda handler: handler.reply(200, b'{"access_token": "azure", "token_type": "Bearer", "expires_in": "3600"}')
        guarded(lambda: 'Bearer azure')
        fetched({'azure_managed_identity': {'endpoint': server.url + '/msi', 'client_id': 'c'}}, 'Azure')

        # AWS: the signature is computed here once more.
        def signed(handler):
            got = dict((name.lower(), value) for name, value in handler.headers.items())
            scope = got['x-amz-date'][:8] + '/eu-west-1/s3/aws4_request'
            names = got['authorization'].split('SignedHeaders=')[1].split(',')[0]
            headers = ''.join(f'{name}:{got[name]}\n' for name in names.split(';'))
            request = f'GET\n/b.tar.gz\n\n{headers}\n{names}\n{got["x-amz-content-sha256"]}'
            text = f'AWS4-HMAC-SHA256\n{got["x-amz-date"]}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}'
            secret = b'AWS4s3cret'
            for item in scope.split('/'):
                secret = hmac.new(secret, item.encode(), hashlib.sha256).digest()
            right = hmac.new(secret, text.encode(), hashlib.sha256).hexdigest() in got['authorization']
            ours = got['x-amz-content-sha256'] == hashlib.sha256(b'').hexdigest() and got['x-amz-security-token'] == 'session'
            handler.reply(200, served) if right and ours else handler.reply(403)

        server.routes['/b.tar.gz'] = signed
        env = {'AWS_ACCESS_KEY_ID': 'id', 'AWS_SECRET_ACCESS_KEY': 's3cret', 'AWS_SESSION_TOKEN': 'session', 'AWS_REGION': 'eu-west-1'}
        fetched({'s3_signing': {'environment_credentials': {}}}, 'AWS', env=env)

        # A client certificate, over TLS with roots of its own.
        closed.routes['/b.tar.gz'] = lambda handler: handler.reply(200, served)
        fetched({'client_tls': {'cert': certificate, 'private_key': key}}, 'a client certificate', url=closed.url, tls=root)
        for one in (server, tokens, closed):
            one.stop()


def test_nothing_secret_follows_a_redirect() -> None:
    server, elsewhere = Server(), Server()
    elsewhere.routes['/stolen'] = lambda handler: handler.reply(200, policy('one', 'r1'))
    server.routes['/b.tar.gz'] = lambda handler: handler.reply(302, headers={'location': f'http://127.0.0.1:{elsewhere.port}/stolen'})
    whole = config(server)
    whole['services']['s'].update(credentials={'s3_signing': {'environment_credentials': {}}}, headers={'x-team': 'canary'})
    env = {'AWS_ACCESS_KEY_ID': 'id', 'AWS_SECRET_ACCESS_KEY': 'canary', 'AWS_SESSION_TOKEN': 'canary', 'AWS_REGION': 'eu-west-1'}
    with Sidecar(whole, env=env) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the bundle from elsewhere')
        eq('canary' in server.asked('/b.tar.gz')[0].__repr__(), True, 'the first')
        asked = elsewhere.asked('/stolen')[0]
        eq(('canary' in asked.__repr__(), 'authorization' in asked), (False, False), f'the second: {asked}')
    server.stop()
    elsewhere.stop()
    with tempfile.TemporaryDirectory() as folder:
        root, certificate, key = certificates(folder)
        # Both want a certificate: a bundle from elsewhere would show that it was given there, too.
        server, elsewhere = Server(tls=(certificate, key, root)), Server(tls=(certificate, key, root))
        away = lambda handler: handler.reply(302, headers={'location': f'https://localhost:{elsewhere.port}/stolen'})
        elsewhere.routes['/stolen'], server.routes['/b.tar.gz'] = (lambda handler: handler.reply(200, policy('one', 'r1'))), away
        whole = config(server)
        whole['services']['s'] = {'url': f'https://localhost:{server.port}', 'tls': {'ca_cert': root},
                                  'credentials': {'client_tls': {'cert': certificate, 'private_key': key}}}
        with Sidecar(whole) as sidecar:
            sidecar.settled(lambda: len(server.asked('/b.tar.gz')) > 1, 'two questions')
            eq((sidecar.check('/one'), elsewhere.asked('/stolen')), (False, []), 'nothing came from elsewhere')
        server.stop()
        elsewhere.stop()


def test_proxies_of_the_environment_are_used() -> None:
    proxy = Server()
    proxy.routes['http://bundles.invalid/b.tar.gz'] = lambda handler: handler.reply(200, policy('one', 'r1'))
    whole = config(proxy)
    whole['services']['s'] = {'url': 'http://bundles.invalid'}
    with Sidecar(whole, env={'HTTP_PROXY': proxy.url, 'http_proxy': proxy.url, 'NO_PROXY': '', 'no_proxy': ''}) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the bundle through the proxy')
    proxy.stop()
