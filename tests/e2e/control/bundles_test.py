"""Bundles from a server that misbehaves: polling, deltas, signatures, persistence, registries."""
import base64
import hashlib
import json
import os
import subprocess
import tempfile
import threading
import time

from expect import eq
from harness import Server, Sidecar, bundle, config, policy, stepgate


def test_a_bad_answer_never_replaces_a_good_policy() -> None:
    server = Server()
    server.offer('/b.tar.gz', policy('one', 'r1'), '"r1"')
    good = policy('two', 'r2')
    broken = bundle({'app.rego': 'package app\nallow := nothing()', '.manifest': {'revision': 'bad'}})
    endless = bundle({'app.rego': 'package app\nimport rego.v1\nallow if {\n n := numbers.range(1, 100000)\n some a in n\n some b in n\n a + b < 0\n}\n'})
    slow = threading.Event()
    answers = {
        'status 500': (lambda h: h.reply(500, b'oops'), 'server replied with Internal Server Error', 500),
        'status 404': (lambda h: h.reply(404), 'server replied with Not Found', 404),
        'cut in the middle': (lambda h: h.raw(f'HTTP/1.1 200 OK\r\ncontent-length: {len(good)}\r\n\r\n', good[:100]), 'request failed', None),
        'a promise of 10 GB': (lambda h: h.raw('HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n', good), 'request failed', None),
        'cut within, length right': (lambda h: h.reply(200, good[:-20]), 'the bundle is refused', None),
        'HTML': (lambda h: h.reply(200, b'<html>sign in</html>', {'content-type': 'text/html'}), 'a bundle is a gzipped tar', None),
        'nothing': (lambda h: h.reply(200), 'the bundle is refused', None),
        'no answer': (lambda h: slow.wait(30), 'sent nothing for 1s', None),
        'a redirect in circles': (lambda h: h.reply(302, headers={'location': '/b.tar.gz'}), 'redirects too often', None),
        'a policy that does not compile': (lambda h: h.reply(200, broken), 'error(s) occurred while compiling module(s)', None),
        'a policy that never ends': (lambda h: h.reply(200, endless), 'took longer than 1s', None),
    }
    with Sidecar(config(server)) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the first bundle')
        for name, (route, message, code) in answers.items():
            server.routes['/b.tar.gz'] = route
            sidecar.refresh('b')
            sidecar.settled(lambda: message in sidecar.bundle().get('message', ''), f'{name}: {message} in {sidecar.bundle()}')
            told = sidecar.bundle()
            eq((told['code'], told.get('http_code'), told['active_revision']), ('bundle_error', code, 'r1'), name)
            eq((sidecar.check('/one'), sidecar.check('/two')), (True, False), name)
            eq(sidecar.get('/health?bundles')[0], 200, f'{name}: still healthy')
            # Out of the way, so that the next answer is the next one's.
            server.offer('/b.tar.gz', policy('one', 'r1'), '"r1"')
            slow.set()
            sidecar.refresh('b')
            sidecar.settled(lambda: 'code' not in sidecar.bundle(), f'{name}: no error any more')
            slow.clear()
        server.offer('/b.tar.gz', good, '"r2"')
        sidecar.refresh('b')
        sidecar.settled(lambda: sidecar.check('/two'), 'the good one after all')
    server.stop()


def test_the_server_is_asked_as_opa_asks() -> None:
    server = Server()
    server.offer('/b.tar.gz', policy('one', 'r1'), '"r1"')
    with Sidecar(config(server, bundle={'trigger': 'manual'})) as sidecar:
        time.sleep(0.3)
        eq(server.asked('/b.tar.gz'), [], 'a bundle that is triggered by hand')
        eq(sidecar.refresh('b'), 202, 'refresh')
        sidecar.settled(lambda: sidecar.check('/one'), 'the first bundle')
        activated = sidecar.bundle()['last_successful_activation']
        sidecar.refresh('b')
        sidecar.settled(lambda: len(server.asked('/b.tar.gz')) == 2, 'a second request')
        first, second = server.asked('/b.tar.gz')
        eq((first['prefer'], first.get('if-none-match')), ('modes=snapshot,delta', None), 'the first request')
        eq(second['if-none-match'], '"r1"', 'the second request')
        sidecar.settled(lambda: sidecar.bundle()['last_successful_request'] > activated, 'a 304 counts as an answer')
        eq(sidecar.bundle()['last_successful_activation'], activated, 'a 304 activates nothing')
        eq(sidecar.refresh('none'), 404, 'a bundle that is not there')
        eq(sidecar.post('/v1/bundles/b/refresh')[0], 404, 'refresh is for the admin socket alone')
    server.stop()


def test_a_server_may_hold_its_answer_back() -> None:
    server = Server()
    kind = {'content-type': 'application/vnd.openpolicyagent.bundles'}
    news = threading.Event()

    def route(handler):
        if handler.headers.get('if-none-match') == '"r1"':
            news.wait(20)
            return handler.reply(200, policy('two', 'r2'), {'etag': '"r2"', **kind})
        if handler.headers.get('if-none-match') == '"r2"':
            time.sleep(2 if len(server.asked('/b.tar.gz')) > 3 else 9)
            return handler.reply(304)
        handler.reply(200, policy('one', 'r1'), {'etag': '"r1"', **kind})

    server.routes['/b.tar.gz'] = route
    polling = {'min_delay_seconds': 600, 'max_delay_seconds': 600, 'long_polling_timeout_seconds': 10}
    with Sidecar(config(server, bundle={'polling': polling})) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the first bundle')
        sidecar.settled(lambda: len(server.asked('/b.tar.gz')) == 2, 'the next request at once')
        eq(server.asked('/b.tar.gz')[1]['prefer'], 'modes=snapshot,delta;wait=10', 'how long it may wait')
        # Longer than `response_header_timeout_seconds`.
        time.sleep(1.5)
        news.set()
        sidecar.settled(lambda: sidecar.check('/two'), 'the news')
        sidecar.settled(lambda: len(server.asked('/b.tar.gz')) == 3, 'a request that waits')
        asked = time.monotonic()
        eq(sidecar.refresh('b'), 202, 'a refresh')
        sidecar.settled(lambda: len(server.asked('/b.tar.gz')) >= 4, 'a new request')
        bound = 5
        eq(time.monotonic() - asked < bound, True, 'nobody waits for the old request, which takes 10 s')
    server.stop()


def test_only_what_is_signed_is_believed() -> None:
    server = Server()
    with tempfile.TemporaryDirectory() as folder:
        path = lambda name: os.path.join(folder, name)
        for key in ('own', 'other'):
            subprocess.run(['openssl', 'genpkey', '-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:2048', '-out', path(f'{key}.pem')],
                           check=True, capture_output=True)
        public = subprocess.run(['openssl', 'pkey', '-in', path('own.pem'), '-pubout'], check=True, capture_output=True, text=True).stdout
        with open(path('app.rego'), 'w') as f:
            f.write('package app\nimport rego.v1\nallow if input.parsed_path[0] == data.app.word\n')
        with open(path('claims.json'), 'w') as f:
            json.dump({'keyid': 'k', 'scope': 'write'}, f)

        def built(word, key='own', claims=True):
            with open(path('data.json'), 'w') as f:
                json.dump({'app': {'word': word, 'n': 1.0, 'text': '<é>'}}, f)
            sign = ['--signing-key', path(f'{key}.pem'), '--claims-file', path('claims.json')] if key else []
            stepgate('build', path('app.rego'), path('data.json'), '-o', path('b.tar.gz'), '-r', word, *sign)
            with open(path('b.tar.gz'), 'rb') as f:
                return f.read()

        server.offer('/b.tar.gz', built('one'))
        eq('SIGNED: yes' in stepgate('inspect', path('b.tar.gz')).stdout, True, 'inspect')
        shown = json.loads(stepgate('inspect', path('b.tar.gz'), '-f', 'json').stdout)
        eq((shown['manifest']['revision'], sorted(shown['namespaces'])), ('one', ['data', 'data.app']), 'inspect as JSON')
        keys = {'k': {'key': public, 'scope': 'write'}}
        with Sidecar(config(server, keys=keys, bundle={'persist': True}, persistence_directory=path('kept'))) as sidecar:
            sidecar.settled(lambda: sidecar.check('/one'), 'the signed bundle')
            eq(sidecar.get('/v1/config')[1]['result']['keys'], {'k': {'scope': 'write'}}, 'keys are not shown')
            patch = bundle({'.manifest': {'roots': ['']}, 'patch.json': {'data': [{'op': 'replace', 'path': '/app/word', 'value': 'two'}]}})
            for data, message in ((built('two', None), 'missing .signatures.json'), (patch, 'missing .signatures.json'),
                                  (built('two', 'other'), 'not that of the key `k`')):
                server.offer('/b.tar.gz', data)
                sidecar.settled(lambda: message in sidecar.bundle().get('message', ''), message)
                eq((sidecar.check('/one'), sidecar.check('/two')), (True, False), message)
        # The next start begins with what was kept, whatever the server says, and believes it only when it is whole.
        server.routes['/b.tar.gz'] = lambda handler: handler.reply(500)
        with Sidecar(config(server, keys=keys, bundle={'persist': True}, persistence_directory=path('kept'))) as sidecar:
            sidecar.settled(lambda: sidecar.check('/one'), 'the kept bundle')
        with open(path('kept/bundles/b/bundle.tar.gz'), 'wb') as f:
            f.write(built('two', 'other'))
        with Sidecar(config(server, keys=keys, bundle={'persist': True}, persistence_directory=path('kept'))) as sidecar:
            sidecar.settled(lambda: 'the saved bundle is not used' in sidecar.lines(), 'a refusal of the kept bundle')
            eq((sidecar.check('/one'), sidecar.check('/two')), (False, False), 'nothing is in force')
        # The command line: a signed bundle needs its key.
        with open(path('signed.tar.gz'), 'wb') as f:
            f.write(built('one'))
        with open(path('own.pub'), 'w') as f:
            f.write(public)
        verify = ['--verification-key', path('own.pub'), '--verification-key-id', 'k', '--scope', 'write']
        with Sidecar({}, args=['--bundle', *verify], files=[path('signed.tar.gz')]) as sidecar:
            eq(sidecar.check('/one'), True, 'a signed bundle of the command line')
        refused = stepgate('run', '--server', '--bundle', path('signed.tar.gz'), check=False)
        eq((refused.returncode, 'verification key not provided' in refused.stderr), (1, True), refused.stderr)
    server.stop()


def test_saved_bundles_wait_for_those_they_need() -> None:
    server = Server()
    rego = 'package app\nimport rego.v1\ndefault allow := false\nallow if data.lib.f(input)\n'
    server.offer('/app.tar.gz', bundle({'a.rego': rego, '.manifest': {'revision': 'a', 'roots': ['app']}}), '"a"')
    # It takes long to read, so that the other one is there first.
    data = {'lib': {'many': {f'k{n}': [n] for n in range(50_000)}}}
    server.offer('/lib.tar.gz', bundle({'l.rego': 'package lib\nf(_) := true\n', 'data.json': data, '.manifest': {'revision': 'l', 'roots': ['lib']}}), '"l"')
    bundles = {name: {'service': 's', 'resource': f'/{name}.tar.gz', 'persist': True, 'polling': {'min_delay_seconds': 1, 'max_delay_seconds': 1}}
               for name in ('app', 'lib')}
    with tempfile.TemporaryDirectory() as folder:
        whole = {'services': {'s': {'url': server.url}}, 'bundles': bundles, 'persistence_directory': folder, 'status': {'console': True}}
        with Sidecar(whole) as sidecar:
            sidecar.settled(lambda: sidecar.check('/x'), 'both')
            files = [os.path.join(folder, 'bundles', name, 'bundle.tar.gz') for name in bundles]
            sidecar.settled(lambda: all(map(os.path.exists, files)), 'both on disk')
            eq([os.stat(file).st_mode & 0o777 for file in files], [0o600, 0o600], 'nobody else reads them')
        server.routes.clear()
        with Sidecar(whole) as sidecar:
            sidecar.settled(lambda: sidecar.get('/health?bundles')[0] == 200, 'both from disk')
            eq(sidecar.check('/x'), True, 'they decide')
    server.stop()


def test_a_url_of_the_command_line_is_a_bundle() -> None:
    server = Server()
    server.offer('/b.tar.gz?v=1', policy('one', 'r1'))
    with Sidecar({}, files=[f'{server.url}/b.tar.gz?v=1']) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
        kept = os.path.join(sidecar.folder, '.opa/bundles/cli1/bundle.tar.gz')
        sidecar.settled(lambda: os.path.exists(kept), 'it is kept')
    server.stop()


def test_bundles_come_from_a_registry() -> None:
    """Manifest, token exchange and layer, as registries have them."""
    server = Server()
    host = f'localhost:{server.port}'
    layers = {}

    def serve(data, media='application/vnd.oci.image.layer.v1.tar+gzip', digest=None):
        digest = digest or 'sha256:' + hashlib.sha256(data).hexdigest()
        layers[digest] = data
        manifest = json.dumps({'schemaVersion': 2, 'layers': [{'mediaType': 'application/x', 'digest': 'sha256:00'},
                                                              {'mediaType': media, 'digest': digest, 'size': len(data)}]}).encode()

        def guarded(answer):
            def route(handler):
                if handler.headers.get('authorization') != 'Bearer pulled':
                    challenge = f'Bearer realm="{server.url}/token",service="registry",scope="repository:org/app:pull"'
                    return handler.reply(401, headers={'www-authenticate': challenge})
                handler.reply(200, answer)
            return route

        server.routes['/v2/org/app/manifests/v1'] = guarded(manifest)
        server.routes[f'/v2/org/app/blobs/{digest}'] = guarded(data)

    basic = 'Basic ' + base64.b64encode(b'user:s3cret').decode()
    server.routes['/token?scope=repository%3Aorg%2Fapp%3Apull&service=registry'] = \
        lambda handler: handler.reply(200, b'{"token": "pulled"}') if handler.headers.get('authorization') == basic else handler.reply(403)
    serve(policy('one', 'r1'))
    whole = config(server, bundle={'resource': f'{host}/org/app:v1'})
    whole['services']['s'].update(type='oci', credentials={'bearer': {'scheme': 'Basic', 'token': 'user:s3cret'}})
    with Sidecar(whole) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
        activated = sidecar.bundle()['last_successful_activation']
        sidecar.settled(lambda: sidecar.bundle()['last_successful_request'] > activated, 'another look')
        eq(sidecar.bundle()['last_successful_activation'], activated, 'the same layer is not put in force again')
        for data, digest, media, message in (
                (policy('two', 'r2'), 'sha256:' + '0' * 64, 'application/vnd.oci.image.layer.v1.tar+gzip', 'digest that the manifest names'),
                (policy('two', 'r2'), None, 'application/other', 'no tarball descriptor')):
            serve(data, media, digest)
            sidecar.settled(lambda: message in sidecar.bundle().get('message', ''), message)
            eq((sidecar.check('/one'), sidecar.check('/two')), (True, False), message)
        serve(policy('two', 'r2'))
        sidecar.settled(lambda: sidecar.check('/two'), 'the new bundle')
    server.stop()
