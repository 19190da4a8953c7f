"""End-to-end tests of the control plane against a server that misbehaves. Closes with a line 'N passed, N failed'."""
import base64
import gzip
import hashlib
import hmac
import http.client
import json
import os
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse
from concurrent import futures

import grpc
from harness import CHECK, Server, Sidecar, ask_over_tls, bundle, certificates, policy, policy_file, stepgate, wait
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from stack import STEPGATE, free_port


def eq(got, want, what):
    if got != want:
        raise AssertionError(f'{what}: got {got!r}, want {want!r}')


def config(server, **more):
    return {'services': {'s': {'url': server.url, 'response_header_timeout_seconds': 1}},
            'bundles': {'b': {'resource': '/b.tar.gz', 'polling': {'min_delay_seconds': 1, 'max_delay_seconds': 1},
                              **more.pop('bundle', {})}},
            'status': {'console': True}, **more}


def a_bad_answer_never_replaces_a_good_policy():
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


def the_server_is_asked_as_opa_asks():
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


def a_server_may_hold_its_answer_back():
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


def deltas_change_data_whole_or_not_at_all():
    server = Server()
    server.offer('/b.tar.gz', policy('one', 'r1'), '"r1"')

    def delta(revision, *changes, roots=('app',)):
        return bundle({'.manifest': {'revision': revision, 'roots': list(roots)}, 'patch.json': {'data': list(changes)}})

    with Sidecar(config(server)) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the first bundle')
        server.offer('/b.tar.gz', delta('r2', {'op': 'replace', 'path': '/app/word', 'value': 'two'}), '"r2"')
        sidecar.settled(lambda: sidecar.check('/two'), 'the delta')
        told = sidecar.bundle()
        eq((told['type'], told['active_revision']), ('delta', 'r2'), 'status')
        for change in (delta('r3', {'op': 'replace', 'path': '/app/word', 'value': 'three'}, {'op': 'remove', 'path': '/app/none'}),
                       delta('r3', {'op': 'upsert', 'path': '/other', 'value': 1}),
                       delta('r3', {'op': 'replace', 'path': '/app/word', 'value': 'three'}, roots=('app', 'more'))):
            server.offer('/b.tar.gz', change, '"r3"')
            sidecar.settled(lambda: 'code' in sidecar.bundle(), 'a refusal')
            eq((sidecar.check('/two'), sidecar.bundle()['active_revision']), (True, 'r2'), 'the old data whole')
            server.offer('/b.tar.gz', delta('r2'), '"r2"')
            sidecar.settled(lambda: 'code' not in sidecar.bundle(), 'no error any more')
    server.stop()


def only_what_is_signed_is_believed():
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


def saved_bundles_wait_for_those_they_need():
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


def discovery_configures_the_rest():
    server = Server()
    server.offer('/b.tar.gz', policy('one', 'r1'), '"b1"')
    server.offer('/c.tar.gz', bundle({'c.rego': 'package c\nx := 1', '.manifest': {'revision': 'c1', 'roots': ['c']}}), '"c1"')
    polling = {'min_delay_seconds': 1, 'max_delay_seconds': 1}
    port = free_port()
    grpc = {'addr': f'127.0.0.1:{port}', 'path': 'app/allow'}

    def found(etag, **document):
        rego = 'package found\nimport rego.v1\n' + ''.join(f'{name} := {json.dumps(value)}\n' for name, value in document.items())
        rego += 'default_decision := concat("/", ["/system", opa.runtime().config.labels.app])\n'
        server.offer('/d.tar.gz', bundle({'d.rego': rego, '.manifest': {'revision': etag}}), f'"{etag}"')

    b = {'b': {'service': 's', 'resource': '/b.tar.gz', 'polling': polling}}
    c = {'c': {'service': 's', 'resource': '/c.tar.gz', 'polling': polling}}
    boot = {'services': {'s': {'url': server.url}}, 'labels': {'app': 'shop'}, 'status': {'console': True},
            'discovery': {'resource': '/d.tar.gz', 'decision': 'found', 'polling': polling}}
    with Sidecar(boot, grpc_block=False) as sidecar:
        sidecar.grpc = port
        sidecar.settled(lambda: sidecar.get('/v1/status')[1]['result'].get('discovery', {}).get('http_code') == 404, 'a status')
        eq((sidecar.get('/health?bundles')[0], sidecar.get('/health?plugins')[0]), (500, 500), 'not ready yet')
        found('d1', bundles=b, plugins={'envoy_ext_authz_grpc': grpc, 'stepgate': {'limits': {'check_timeout': '99ms'}}},
              labels={'app': 'evil', 'region': 'eu'})
        sidecar.settled(lambda: sidecar.get('/health?plugins')[0] == 200, 'ready')
        eq((sidecar.check('/one'), sidecar.check('/two')), (True, False), 'the bundle that was discovered')
        told = sidecar.get('/v1/status')[1]['result']
        for name in ('labels.app', 'plugins.stepgate.limits'):
            eq(name in told['discovery']['message'], True, told['discovery'])
        eq({name: told['labels'][name] for name in ('app', 'region')}, {'app': 'shop', 'region': 'eu'}, 'labels')
        shown = sidecar.get('/v1/config')[1]['result']
        eq((shown['default_decision'], shown['labels']['app']), ('/system/shop', 'shop'), 'the configuration in force')
        # Another bundle beside it, and a log; a listener that would move says that it does not.
        logs = {'service': 's', 'reporting': {'min_delay_seconds': 1, 'max_delay_seconds': 1}}
        found('d2', bundles={**b, **c}, decision_logs=logs, plugins={'envoy_ext_authz_grpc': {**grpc, 'addr': '127.0.0.1:1'}})
        sidecar.settled(lambda: sidecar.get('/v1/data/c/x')[1].get('result') == 1, 'the other bundle')
        eq('plugins.envoy_ext_authz_grpc' in sidecar.get('/v1/status')[1]['result']['discovery']['message'], True, 'the listener')
        eq(sidecar.check('/one'), True, 'still there')
        wait(lambda: any(event['path'] == 'app/allow' for event in server.logs), 'a logged check', sidecar)
        # What is wrong changes nothing; what is gone is in force no more.
        found('d3', bundles={'b': {'service': 'nobody'}})
        sidecar.settled(lambda: 'no such service' in sidecar.get('/v1/status')[1]['result']['discovery'].get('message', ''), 'a refusal')
        eq(sidecar.check('/one'), True, 'still there')
        found('d4', bundles=b)
        sidecar.settled(lambda: 'result' not in sidecar.get('/v1/data/c/x')[1], 'the other bundle is gone')
        eq((sidecar.check('/one'), list(sidecar.get('/v1/status')[1]['result']['bundles'])), (True, ['b']), 'what is left')
        # A bundle that is configured anew has not been in force yet; what was goes on deciding.
        found('d5', bundles={'b': {**b['b'], 'resource': '/nothing-yet'}})
        sidecar.settled(lambda: sidecar.get('/health?bundles')[0] == 500, 'not ready')
        eq(sidecar.check('/one'), True, 'the one before still decides')
        server.offer('/nothing-yet', policy('two', 'r2'), '"b2"')
        sidecar.settled(lambda: sidecar.get('/health?bundles')[0] == 200, 'ready again')
        eq((sidecar.check('/one'), sidecar.check('/two')), (False, True), 'the new one decides')
        # A failure is told as long as it lasts.
        told = lambda: sidecar.get('/v1/status')[1]['result']['discovery']
        answer = server.routes['/d.tar.gz']
        server.routes['/d.tar.gz'] = lambda handler: handler.reply(500)
        sidecar.settled(lambda: told().get('http_code') == 500, 'a failure')
        server.routes['/d.tar.gz'] = answer
        sidecar.settled(lambda: 'code' not in told(), 'the failure is over')
    server.stop()


def the_status_is_told_when_it_changes():
    server = Server()
    server.offer('/b.tar.gz', policy('one', 'r1'), '"r1"')
    with Sidecar(config(server, status={'service': 's', 'prometheus': True}, labels={'app': 'shop'})) as sidecar:
        wait(lambda: any(status.get('bundles', {}).get('b', {}).get('active_revision') == 'r1' for status in server.statuses), 'a status')
        parts = {name: {'state': 'OK'} for name in ('bundle', 'discovery', 'envoy_ext_authz_grpc', 'status')}
        wait(lambda: server.statuses[-1]['plugins'] == parts, 'all parts', sidecar)
        eq(server.statuses[-1]['labels']['app'], 'shop', 'labels')
        count, polls = len(server.statuses), len(server.asked('/b.tar.gz'))
        wait(lambda: len(server.asked('/b.tar.gz')) > polls + 2, 'more polls')
        eq(len(server.statuses), count, 'a 304 is no news')
        metrics = sidecar.get('/metrics')[1].decode()
        for name in ('last_success_bundle_activation{name="b",active_revision="r1"}', 'plugin_status_gauge{name="bundle",status="OK"} 1'):
            eq(name in metrics, True, name)
        server.routes['/b.tar.gz'] = lambda handler: handler.reply(503)
        wait(lambda: server.statuses[-1]['bundles']['b'].get('http_code') == 503, 'the failure is told')
    server.stop()


def a_stale_bundle_ends_readiness():
    server = Server()
    server.offer('/b.tar.gz', policy('one', 'r1'), '"r1"')
    own = {'stepgate': {'bundles': {'b': {'max_staleness': '3s'}}}}
    with Sidecar(config(server, plugins=own)) as sidecar:
        sidecar.settled(lambda: sidecar.get('/ready')[0] == 200, 'ready')
        server.routes['/b.tar.gz'] = lambda handler: handler.reply(500)
        sidecar.settled(lambda: sidecar.get('/ready')[1].get('waiting_for') == ['bundle_freshness'], 'not ready any more')
        eq(sidecar.check('/one'), True, 'what is in force still decides')
        server.offer('/b.tar.gz', policy('one', 'r1'), '"r1"')
        sidecar.settled(lambda: sidecar.get('/ready')[0] == 200, 'ready again')
    server.stop()


def an_undefined_entrypoint_denies_and_is_reported():
    server = Server()
    elsewhere = bundle({'app.rego': 'package other\nallow := true', '.manifest': {'revision': 'r0', 'roots': ['other']}})
    server.offer('/b.tar.gz', elsewhere, '"r0"')
    undefined = lambda sidecar: b'stepgate_entrypoint_undefined 1' in sidecar.get('/metrics')[1]
    with Sidecar(config(server, plugins={'envoy_ext_authz_grpc': {'path': 'data/app/allow'}})) as sidecar:
        sidecar.settled(lambda: undefined(sidecar), 'the gauge')
        sidecar.settled(lambda: sidecar.get('/ready')[1].get('waiting_for') == ['entrypoint'], 'not ready before it was defined')
        eq(sidecar.get('/ready')[0], 503, 'not ready')
    with Sidecar(config(server)) as sidecar:
        sidecar.settled(lambda: 'did you mean `other/allow`' in sidecar.lines(), 'the likely rule')
        eq('"level":"error","msg":"nothing is defined at `app/allow`' in sidecar.lines().lower(), True, 'an error line')
        eq(sidecar.get('/ready')[0], 503, 'not ready')
        server.offer('/b.tar.gz', policy('one', 'r1'), '"r1"')
        sidecar.refresh('b')
        sidecar.settled(lambda: sidecar.get('/ready')[0] == 200 and sidecar.check('/one') and not undefined(sidecar), 'ready')
        server.offer('/b.tar.gz', elsewhere, '"r2"')
        sidecar.refresh('b')
        sidecar.settled(lambda: sidecar.bundle().get('code') == 'entrypoint_undefined', 'a status')
        eq((sidecar.get('/ready')[0], undefined(sidecar)), (200, True), 'still ready')
        answer = sidecar.answer('/one')
        eq((answer.status.code, answer.denied_response.status.code), (7, 403), 'denied')
        eq(b'stepgate_faults_total{reason="undefined_decision"} 1' in sidecar.get('/metrics')[1], True, 'as undefined')
    with Sidecar(config(server, plugins={'envoy_ext_authz_grpc': {'path': 'no/where'}, 'stepgate': {'compat': 'strict'}})) as sidecar:
        sidecar.settled(lambda: sidecar.get('/ready')[0] == 200, 'strict: ready as OPA is')
    server.stop()


def lay_out(folder, version, files):
    """A ConfigMap as the kubelet mounts it, or its next version."""
    os.makedirs(os.path.join(folder, version))
    for name, text in files.items():
        with open(os.path.join(folder, version, name), 'w') as f:
            f.write(text)
        if not os.path.islink(os.path.join(folder, name)):
            os.symlink(os.path.join('..data', name), os.path.join(folder, name))
    os.symlink(version, os.path.join(folder, '..data_tmp'))
    os.rename(os.path.join(folder, '..data_tmp'), os.path.join(folder, '..data'))


def mounted_config_maps_are_read_by_their_visible_names():
    rego = ('package app\nimport rego.v1\ndefault allow := {"allowed": true}\n'
            'allow := {"allowed": false} if input.attributes.request.http.path in data.blocked\n')
    for flags in (['--watch'], ['--watch', '--bundle']):
        with tempfile.TemporaryDirectory() as folder:
            lay_out(folder, '..2026_01_01_00_00_00.1', {'policy.rego': rego, 'data.json': '{"blocked": ["/secret"]}'})
            with Sidecar({}, args=flags, files=[folder]) as sidecar:
                doctor = lambda: stepgate('doctor', '--url', f'http://127.0.0.1:{sidecar.diagnostic}', check=False)
                sidecar.settled(lambda: sidecar.get('/ready')[0] == 200, 'ready')
                eq((sidecar.check('/secret'), sidecar.check('/other')), (False, True), f'{flags}: the deny list')
                lay_out(folder, '..2026_01_02_00_00_00.2', {'policy.rego': rego, 'data.json': '{"blocked": ["/other"]}'})
                sidecar.settled(lambda: (sidecar.check('/secret'), sidecar.check('/other')) == (True, False), f'{flags}: the next version')
                eq(doctor().returncode, 0, 'all is well')
                # A version that is rejected changes nothing, and it shows.
                lay_out(folder, '..2026_01_03_00_00_00.3', {'policy.rego': rego + 'broken := nothing()\n', 'data.json': '{}'})
                sidecar.settled(lambda: b'stepgate_policy_rejected{source="files"} 1' in sidecar.get('/metrics')[1], f'{flags}: rejected')
                eq((sidecar.check('/secret'), sidecar.check('/other'), sidecar.get('/ready')[0]), (True, False, 200), 'the old one decides')
                told = doctor()
                eq((told.returncode, 'newest policies of `files` are rejected' in told.stdout), (1, True), told.stdout)
                eq(f'{folder}/policy.rego:' in sidecar.lines() or 'policy.rego:' in sidecar.lines(), True, 'the visible path')
                eq('..2026' in sidecar.lines(), False, 'no name of the kubelet in the log')
                threading.Timer(1, lay_out, (folder, '..2026_01_04_00_00_00.4', {'policy.rego': rego, 'data.json': '{"blocked": []}'})).start()
                waited = stepgate('doctor', '--wait', '20s', '--url', f'http://127.0.0.1:{sidecar.diagnostic}', check=False)
                eq((waited.returncode, sidecar.check('/other')), (0, True), waited.stdout)
            began = time.time()
            gone = stepgate('doctor', '--wait', '1s', '--url', f'http://127.0.0.1:{sidecar.diagnostic}', check=False)
            eq((gone.returncode, 'no answer' in gone.stderr, 1 <= time.time() - began < 5), (1, True, True), gone.stderr)


def the_api_answers_as_opa_does():
    with tempfile.TemporaryDirectory() as folder:
        file = policy_file(folder, 'package app\nimport rego.v1\nallow if input.user == "ann"\nseen := input\nconflict := 1 if true\nconflict := 2 if true\n'
                    'users := {"a": [{"name": "x"}]}\n')
        with open(os.path.join(folder, 'system.rego'), 'w') as f:
            f.write('package system\nimport rego.v1\nmain := {"got": input}\nhealth.live if input.plugins_ready\n')
        with Sidecar({}, files=[folder]) as sidecar:
            ask = sidecar.post
            status, body, _ = ask('/v1/data/app/allow', {'input': {'user': 'ann'}})
            eq((status, body), (200, {'result': True}), 'a decision')
            eq('result' in ask('/v1/data/app/allow', {'input': {'user': 'bob'}})[1], False, 'undefined')
            eq(ask('/v1/data/app/allow')[1]['warning']['code'], 'api_usage_warning', 'no input')
            eq(sidecar.get('/v1/data/app/allow?input=%7B%22user%22%3A%22ann%22%7D')[1]['result'], True, 'GET')
            eq(sidecar.get('/v1/data/app/users/a/0/name')[1]['result'], 'x', 'an index in the path')
            status, body, _ = ask('/v1/data/app/allow', '{')
            eq((status, body['code']), (400, 'invalid_parameter'), 'malformed input')
            status, body, _ = ask('/v1/data/app/conflict', {'input': {}})
            eq((status, body['code'], body['errors'][0]['code']), (500, 'internal_error', 'eval_conflict_error'), 'a conflict')
            eq(ask('/v0/data/app/allow', {'user': 'ann'})[1], True, 'version 0')
            eq(ask('/v0/data/app/allow', {'user': 'bob'})[:2][0], 404, 'version 0, undefined')
            eq(ask('/', {'x': 1})[1], {'got': {'x': 1}}, 'the default decision')
            eq(sidecar.get('/v1/query?q=x%20%3D%20data.app.users.a%5B_%5D.name')[1], {'result': [{'x': 'x'}]}, 'a query')
            eq(ask('/v1/query', {'query': 'input.n > 1', 'input': {'n': 2}})[1], {'result': [{}]}, 'a query that holds')
            eq(ask('/v1/query', {'query': 'input.n > 1; true', 'input': {'n': 1}})[1], {}, 'a query that does not')
            eq(sidecar.get('/v1/query?q=false')[1], {'result': [{}]}, 'a query that is false')
            eq(ask('/v0/data/app/seen')[:2], (200, None), 'version 0, no body')
            eq(sidecar.get('/v1/data//app/')[0::2][0], 301, 'another spelling of a path')
            eq(ask('/v1/query', {'query': 'x :='})[0], 400, 'a query that does not compile')
            eq(ask('/v1/data/app/seen', 'input: {a: [1]}', {'content-type': 'application/x-yaml'})[1]['result'], {'a': [1]}, 'YAML')
            packed = gzip.compress(json.dumps({'input': {'user': 'ann'}}).encode())
            eq(ask('/v1/data/app/allow', packed, {'content-encoding': 'gzip'})[1]['result'], True, 'gzip')
            _, body, headers = sidecar.get('/v1/policies', headers={'accept-encoding': 'gzip'})
            eq(sorted(item['id'] for item in sidecar.get('/v1/policies')[1]['result']), [file[1:], os.path.join(folder, 'system.rego')[1:]], 'policies')
            status, body, _ = sidecar.get('/v1/data/app/seen?metrics&provenance&pretty', 'POST', {'input': 1})
            eq((body['result'], 'timer_rego_query_eval_ns' in body['metrics'], 'version' in body['provenance']), (1, True, True), 'flags')
            body = ask('/v1/data/app/seen', {'input': {'jwt': {'state': 'verified'}, 'authn': {'mfa': True}, 'x': 1}})[1]
            eq((body['result'], body['warning']['code']), ({'x': 1}, 'api_usage_warning'), 'no caller fills the evidence')
            status, body, _ = sidecar.get('/v1/policies/new', 'PUT', 'package x')
            eq((status, '--allow-policy-writes' in body['message']), (403, True), 'policies are not written')
            eq(sidecar.get('/v1/status')[0], 500, 'no status')
            eq((sidecar.get('/health/live')[0], sidecar.get('/health/none')[0]), (200, 500), 'health rules')
            eq(sidecar.get('/v1/data', port=sidecar.diagnostic)[0], 404, 'not on the diagnostic port')
            eq(sidecar.get('/v1/data/app/allow', 'PATCH')[0], 405, 'a method that is not offered')
        with Sidecar({}, files=[file], args=['--allow-policy-writes']) as sidecar:
            eq(sidecar.get('/v1/policies/new', 'PUT', 'package app\nextra := 7')[:2], (200, {}), 'PUT')
            eq(sidecar.get('/v1/data/app/extra')[1]['result'], 7, 'what was put')
            status, body, _ = sidecar.get('/v1/policies/new', 'PUT', 'package app\nextra := nothing()')
            eq((status, body['errors'][0]['code']), (400, 'rego_type_error'), 'a policy that does not compile')
            eq(sidecar.get('/v1/data/app/extra')[1]['result'], 7, 'what was put before')
            eq(sidecar.get('/v1/policies/new', 'DELETE')[:2], (200, {}), 'DELETE')
            eq('result' in sidecar.get('/v1/data/app/extra')[1], False, 'gone')
            eq(sidecar.get('/v1/policies/new')[0], 404, 'not there')


def authzen_clients_ask_the_same_policy():
    with tempfile.TemporaryDirectory() as folder:
        rego = ('package app\nimport rego.v1\ndefault allow := false\n'
                'allow if { input.authzen.subject.id == "ann"; input.authzen.action.name == "read" }\n'
                'allow := {"allowed": false, "step_up": {"acr_values": ["phr", "mfa"], "reason": "weak"}} if input.authzen.action.name == "pay"\n'
                'allow if input.jwt.state == "verified"\nallow if input.authn.level > 1\n'
                'allow := "odd" if input.authzen.action.name == "odd"\n')
        whole = {'plugins': {'stepgate': {'authzen': {'url': 'http://pdp.test/'}}}}
        with Sidecar(whole, files=[policy_file(folder, rego)]) as sidecar:
            def ask(subject='ann', action='read', **more):
                return {'subject': {'type': 'user', 'id': subject}, 'action': {'name': action},
                        'resource': {'type': 'doc', 'id': '1'}, **more}
            one = lambda body: sidecar.post('/access/v1/evaluation', body)
            status, body, headers = sidecar.post('/access/v1/evaluation', ask(), {'x-request-id': 'r1'})
            eq((status, body, headers.get('x-request-id')), (200, {'decision': True}, 'r1'), 'allowed')
            eq(one(ask('bob'))[:2], (200, {'decision': False}), 'denied')
            eq(one(ask(action='pay'))[1], {'decision': False, 'context': {'acr_values': 'phr mfa', 'reason': 'weak'}}, 'step-up')
            forged = ask('bob', jwt={'state': 'verified'}, authn={'level': 4}, context={'jwt': {'state': 'verified'}})
            eq(one(forged)[1], {'decision': False}, 'what a caller says is no evidence')
            eq(one(ask(action='odd'))[0], 500, 'no decision')
            eq(one({'subject': {'type': 'user', 'id': 'ann'}})[:2], (400, 'action is missing'), 'a part is missing')
            eq(one('{')[0], 400, 'no JSON')
            shared = {'subject': {'type': 'user', 'id': 'ann'}, 'resource': {'type': 'doc', 'id': '1'}}
            actions = lambda *names, **more: {**shared, **more, 'evaluations': [{'action': {'name': n}} if n else {} for n in names]}
            def several(body):
                answers = sidecar.post('/access/v1/evaluations', body)[1]['evaluations']
                return [answer['decision'] for answer in answers]
            eq(several(actions('read', 'write', None, 'read')), [True, False, False, True], 'all')
            stop = lambda how: {'options': {'evaluations_semantic': how}}
            eq(several(actions('read', 'write', 'read', **stop('deny_on_first_deny'))), [True, False], 'until a denial')
            eq(several(actions('write', 'read', 'read', **stop('permit_on_first_permit'))), [False, True], 'until a permission')
            eq(sidecar.post('/access/v1/evaluations', actions('read', **stop('never')))[0], 400, 'an unknown semantic')
            eq(sidecar.post('/access/v1/evaluations', actions(*['read'] * 1001))[0], 400, 'too many')
            eq(sidecar.post('/access/v1/evaluations', ask())[1], {'decision': True}, 'one alone')
            eq(sidecar.get('/.well-known/authzen-configuration')[1], {
                'policy_decision_point': 'http://pdp.test', 'access_evaluation_endpoint': 'http://pdp.test/access/v1/evaluation',
                'access_evaluations_endpoint': 'http://pdp.test/access/v1/evaluations'}, 'what is offered')


def nobody_uses_the_api_from_elsewhere_unasked():
    with tempfile.TemporaryDirectory() as folder:
        file = policy_file(folder, 'package system.authz\nimport rego.v1\ndefault allow := false\nallow if input.identity == "s3cret"\n'
                    'allow if input.path == ["v1", "data", "open"]\nallow if input.body.input.word == "please"\n')
        port = free_port()
        with Sidecar({}, files=[file], addr=f'0.0.0.0:{port}') as sidecar:
            sidecar.api = port
            status, body, _ = sidecar.get('/v1/data')
            eq((status, '--authorization=basic' in body['message']), (401, True), 'no word about who may')
            eq((sidecar.get('/health')[0], sidecar.get('/metrics')[0]), (200, 200), 'probes')
            for path in ('/v1/policies', '/v1/config', '/v0/data', '/', '/v1/query?q=1'):
                eq(sidecar.get(path, 'POST' if path in ('/v0/data', '/') else 'GET')[0], 401, path)
        port = free_port()
        with Sidecar({}, files=[file], addr=f'0.0.0.0:{port}', args=['--authentication=token', '--authorization=basic']) as sidecar:
            sidecar.api = port
            eq(sidecar.get('/v1/data/x')[0], 401, 'no token')
            eq(sidecar.get('/v1/data/x', headers={'authorization': 'Bearer wrong'})[0], 401, 'the wrong token')
            eq(sidecar.get('/v1/data/x', headers={'authorization': 'Bearer s3cret'})[0], 200, 'the right token')
            eq(sidecar.get('/v1/data/open')[0], 200, 'a path that is open')
            eq(sidecar.post('/v1/data/x', {'input': {'word': 'please'}})[0], 200, 'what the body says')
            eq(sidecar.get('/health')[0], 401, 'as in OPA, the policy is asked for everything here')
            eq(sidecar.get('/health', port=sidecar.diagnostic)[0], 200, 'and for nothing there')


def every_decision_is_accounted_for():
    server = Server()
    with tempfile.TemporaryDirectory() as folder:
        file = policy_file(folder, 'package app\ndefault allow := true\n')
        logs = {'service': 's', 'reporting': {'min_delay_seconds': 1, 'max_delay_seconds': 1, 'upload_size_limit_bytes': 4096}}
        slow = lambda handler: time.sleep(0.2) or 200
        with Sidecar({'services': {'s': {'url': server.url}}, 'decision_logs': logs}, files=[file]) as sidecar:
            for status in (500, slow, 503, 200):
                server.log_status = status
                for _ in range(100):
                    eq(sidecar.check('/x'), True, 'a check')
                time.sleep(0.5)
            # What is decided while everything stops is uploaded, too.
            eq(sidecar.check('/last'), True, 'the last check')
        got = [event['decision_id'] for event in server.logs]
        eq((len(got), len(set(got))), (401, 401), 'every decision once')
    server.stop()


def events_without_room_go_to_disk_and_are_uploaded_later():
    server = Server()
    server.log_status = 500
    with tempfile.TemporaryDirectory() as folder:
        file = policy_file(folder, 'package app\ndefault allow := true\n')
        logs = {'service': 's', 'reporting': {'min_delay_seconds': 1, 'max_delay_seconds': 1, 'upload_size_limit_bytes': 2000,
                                              'buffer_size_limit_bytes': 20000}}
        own = {'log': {'overflow': 'spill', 'spill_directory': os.path.join(folder, 'spill')}}
        whole = {'services': {'s': {'url': server.url}}, 'decision_logs': logs, 'plugins': {'stepgate': own}}
        with Sidecar(whole, files=[file]) as sidecar:
            for _ in range(300):
                eq(sidecar.check('/x'), True, 'a check')
            wait(lambda: os.listdir(os.path.join(folder, 'spill')), 'events on disk', sidecar)
        eq(server.logs, [], 'nothing was taken')
        server.log_status = 200
        with Sidecar(whole, files=[file]) as sidecar:
            wait(lambda: len(server.logs) >= 300, 'all of them', sidecar)
            wait(lambda: not os.listdir(os.path.join(folder, 'spill')), 'nothing left on disk', sidecar)
        eq(len({event['decision_id'] for event in server.logs}), 300, 'every decision once')
    server.stop()


def what_must_be_logged_is_denied_when_it_cannot_be():
    server = Server()
    server.log_status = 500
    with tempfile.TemporaryDirectory() as folder:
        file = policy_file(folder, 'package app\ndefault allow := true\n')
        logs = {'service': 's', 'reporting': {'min_delay_seconds': 1, 'max_delay_seconds': 1, 'buffer_size_limit_bytes': 100000}}
        whole = {'services': {'s': {'url': server.url}}, 'decision_logs': logs, 'plugins': {'stepgate': {'log': {'audit': 'required', 'cpu_share_percent': 100}}}}
        with Sidecar(whole, files=[file]) as sidecar:
            allowed = 0
            while sidecar.check('/x') and allowed < 20000:
                allowed += 1
            answer = sidecar.answer('/x')
            eq((answer.status.code, answer.denied_response.status.code), (7, 503), 'no room is a denial')
            eq('audit_log_full' in answer.denied_response.body, True, answer.denied_response.body)
            server.log_status = 200
            sidecar.settled(lambda: sidecar.check('/x'), 'room again')
        eq(len([event for event in server.logs if event.get('result')]), allowed + 1, 'every allowed check in the log')
    server.stop()


def services_are_shown_who_we_are():
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


def nothing_secret_follows_a_redirect():
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


def proxies_of_the_environment_are_used():
    proxy = Server()
    proxy.routes['http://bundles.invalid/b.tar.gz'] = lambda handler: handler.reply(200, policy('one', 'r1'))
    whole = config(proxy)
    whole['services']['s'] = {'url': 'http://bundles.invalid'}
    with Sidecar(whole, env={'HTTP_PROXY': proxy.url, 'http_proxy': proxy.url, 'NO_PROXY': '', 'no_proxy': ''}) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the bundle through the proxy')
    proxy.stop()


def a_url_of_the_command_line_is_a_bundle():
    server = Server()
    server.offer('/b.tar.gz?v=1', policy('one', 'r1'))
    with Sidecar({}, files=[f'{server.url}/b.tar.gz?v=1']) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
        kept = os.path.join(sidecar.folder, '.opa/bundles/cli1/bundle.tar.gz')
        sidecar.settled(lambda: os.path.exists(kept), 'it is kept')
    server.stop()


def traces_reach_a_collector():
    found = []

    class Collector(grpc.GenericRpcHandler):
        def service(self, details):
            if details.method != '/opentelemetry.proto.collector.trace.v1.TraceService/Export':
                return None
            return grpc.unary_unary_rpc_method_handler(
                lambda request, _: found.append(request) or trace_service_pb2.ExportTraceServiceResponse(),
                trace_service_pb2.ExportTraceServiceRequest.FromString, trace_service_pb2.ExportTraceServiceResponse.SerializeToString)

    collector = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Collector()])
    grpc_port = collector.add_insecure_port('127.0.0.1:0')
    collector.start()
    server = Server()
    server.offer('/b.tar.gz', policy('one', 'r1'))
    server.routes['/v1/traces'] = lambda handler: handler.reply(200)
    traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    for kind, port in (('grpc', grpc_port), ('http', server.port)):
        found.clear()
        tracing = {'type': kind, 'address': f'127.0.0.1:{port}', 'service_name': 'gate', 'sample_percentage': 0,
                   'resource': {'deployment_environment': 'test'}, 'batch_span_processor_options': {'batch_timeout_ms': 100}}
        with Sidecar(config(server, distributed_tracing=tracing)) as sidecar:
            sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
            request = sidecar.request('/two?secret=1')
            request.attributes.request.http.headers['traceparent'] = traceparent
            sidecar.call(request)

            def arrived():
                with server.lock:
                    bodies = [body for (_, path, _), body in zip(server.requests, server.bodies) if path == '/v1/traces']
                return found if kind == 'grpc' else [trace_service_pb2.ExportTraceServiceRequest.FromString(body) for body in bodies]

            sidecar.settled(arrived, f'the trace by {kind}')
            [resource] = arrived()[0].resource_spans
            about = {item.key: item.value.string_value for item in resource.resource.attributes}
            eq(about, {'service.name': 'gate', 'deployment.environment': 'test'}, 'who we are')
            spans = resource.scope_spans[0].spans
            eq([span.name for span in spans], ['envoy.service.auth.v3.Authorization/Check', 'queue', 'input', 'token', 'evidence', 'eval', 'respond'], 'spans')
            root = spans[0]
            eq((root.trace_id.hex(), root.parent_span_id.hex()), (traceparent[3:35], traceparent[36:52]), 'its place')
            eq({span.parent_span_id for span in spans[1:]}, {root.span_id}, 'the place of its parts')
            eq(all(root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano for span in spans),
               True, 'times')
            eq(abs(root.start_time_unix_nano / 1e9 - time.time()) < 20, True, 'the clock')
            said = {item.key: item.value.string_value for item in root.attributes}
            eq((said['stepgate.decision'], said['url.path'], len(said['stepgate.decision_id'])), ('deny', '/two', 36), 'what is told')
            eq('secret' in str(arrived()), False, 'no query')
    # What the policy asks other servers belongs to the trace, and they are told of it.
    dead = free_port()
    rego = ('package app\nimport rego.v1\ndefault allow := false\n'
            f'allow if {{ also == 0; http.send({{"method": "GET", "url": "http://127.0.0.1:{server.port}/asked?secret=1"}}).body.ok }}\n'
            f'also := http.send({{"method": "GET", "url": "http://127.0.0.1:{dead}/", "raise_error": false}}).status_code\n')
    server.offer('/b.tar.gz', bundle({'app.rego': rego, '.manifest': {'revision': 'r2', 'roots': ['app']}}))
    server.routes['/asked?secret=1'] = lambda handler: handler.reply(200, b'{"ok": true}', {'content-type': 'application/json'})
    whole = config(server, distributed_tracing={**tracing, 'type': 'grpc', 'address': f'127.0.0.1:{grpc_port}'})
    whole['plugins'] = {'stepgate': {'builtins': {'http_send': True}}}
    with Sidecar(whole) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
        found.clear()
        request = sidecar.request('/two')
        request.attributes.request.http.headers['traceparent'] = traceparent
        sidecar.call(request)
        sidecar.settled(lambda: found, 'the trace')
        root, *spans = found[0].resource_spans[0].scope_spans[0].spans
        calls = [span for span in spans if span.kind == span.SPAN_KIND_CLIENT]
        said = [{item.key: item.value.int_value or item.value.string_value for item in span.attributes} for span in calls]
        eq([(span.name, span.parent_span_id) for span in calls], [('HTTP GET', root.span_id)] * 2, 'its requests')
        eq(sorted(str(one.get('http.response.status_code', one.get('error.type'))) for one in said), ['200', 'network'], 'what came of them')
        with server.lock:
            told = [headers.get('traceparent') for _, path, headers in server.requests if path.startswith('/asked')]
        eq(told[-1] in [f'00-{root.trace_id.hex()}-{span.span_id.hex()}-01' for span in calls], True, f'what the other server is told: {told}')
        eq('secret' in str(found), False, 'no query')
    server.offer('/b.tar.gz', policy('one', 'r1'))
    # A server of gRPC that is no collector says so, and is not taken for one.
    other = grpc.server(futures.ThreadPoolExecutor(2))
    tracing.update(type='grpc', address=f'127.0.0.1:{other.add_insecure_port("127.0.0.1:0")}', sample_percentage=100)
    other.start()
    with Sidecar(config(server, distributed_tracing=tracing)) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
        sidecar.settled(lambda: 'with grpc-status 12' in sidecar.lines(), 'the log')
    other.stop(0)
    # One that never answers holds up no stop.
    with socket.create_server(('127.0.0.1', 0)) as hanging:
        tracing['address'] = f'127.0.0.1:{hanging.getsockname()[1]}'
        with Sidecar(config(server, distributed_tracing=tracing)) as sidecar:
            sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
            begin = time.monotonic()
            sidecar.process.terminate()
            eq((sidecar.process.wait(15), time.monotonic() - begin < 6), (0, True), f'{time.monotonic() - begin:.1f} s until the end')
    # Without a collector nothing waits, and nothing is traced that was not asked for.
    tracing['address'] = f'127.0.0.1:{free_port()}'
    with Sidecar(config(server, distributed_tracing={**tracing, 'sample_percentage': 100})) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
        sidecar.settled(lambda: 'traces cannot be exported' in sidecar.lines(), 'the log')
        eq(sidecar.check('/two'), False, 'a denial')
    collector.stop(0)
    server.stop()


def callers_make_no_series():
    """100,000 different paths, methods, hosts, tokens and addresses leave the metrics as many as they were."""
    rego = 'package app\nimport rego.v1\ndefault allow := false\nallow if startswith(input.attributes.request.http.path, "/a")\n'
    with tempfile.TemporaryDirectory() as folder:
        issuers = [{'issuer': 'https://i', 'audiences': ['a'], 'algorithms': ['ES256'], 'jwks': json.loads(stepgate('token', 'keygen', '--out', os.path.join(folder, 'own.pem')).stdout)}]
        plugins = {'envoy_ext_authz_grpc': {'enable-performance-metrics': True}, 'stepgate': {'issuers': issuers}}
        with Sidecar({'plugins': plugins, 'decision_logs': {'console': True}}, args=['--log-level', 'error'], files=[policy_file(folder, rego)]) as sidecar:
            series = lambda: {line.rsplit(' ', 1)[0] for line in sidecar.get('/metrics', port=sidecar.diagnostic)[1].decode().splitlines() if line[0] != '#'}

            def ask(numbers):
                call = grpc.insecure_channel(f'127.0.0.1:{sidecar.grpc}').unary_unary(CHECK)
                for at in range(0, len(numbers), 200):
                    futures = []
                    for n in numbers[at:at + 200]:
                        request = sidecar.request(f'/{"ab"[n % 2]}{n}?q={n}')
                        http = request.attributes.request.http
                        http.method, http.host = f'M{n}', f'h{n}.example'
                        http.headers['x-request-id'] = f'id-{n}'
                        if n % 10 == 0:
                            http.headers['authorization'] = f'Bearer a{n}.b.c'
                        request.attributes.source.principal = f'spiffe://d/ns/n{n}/sa/s'
                        futures.append(call.future(request.SerializeToString(), timeout=30))
                    for future in futures:
                        future.result()

            ask(range(400))
            sidecar.settled(lambda: any('outcome="' in name and 'decision_logs' in name for name in series()), 'the first series')
            before = series()
            ask(range(400, 100_000))
            # What a machine that stands still for a moment adds is none of the callers'.
            own = ('stepgate_decision_logs_total', 'stepgate_faults_total', 'error_counter', 'outcome="fault"')
            more = {name for name in series() - before if not any(part in name for part in own)}
            eq(more, set(), 'new series')
            eq(len(before) < 250, True, f'{len(before)} series')


def nothing_secret_comes_out_anywhere():
    """Known strings in every place where secrets are sent or configured, and none of them in anything that is told."""
    server = Server()
    server.offer('/b.tar.gz', policy('one', 'r1'))
    server.routes['/v1/traces'] = lambda handler: handler.reply(200)
    with tempfile.TemporaryDirectory() as folder:
        pem = os.path.join(folder, 'own.pem')
        stepgate('token', 'keygen', '--out', pem)
        with open(pem) as file:
            private = file.read().splitlines()[1]
        whole = config(server, decision_logs={'console': True, 'service': 's', 'reporting': {'min_delay_seconds': 1, 'max_delay_seconds': 1}},
                       distributed_tracing={'type': 'http', 'address': f'localhost:{server.port}', 'batch_span_processor_options': {'batch_timeout_ms': 100}})
        whole['services']['s'].update(credentials={'bearer': {'token': 'canary-service'}}, headers={'x-key': 'canary-header'})
        whole['keys'] = {'shared': {'algorithm': 'HS256', 'key': 'canary-of-a-shared-secret-canary-0'}}
        whole['plugins'] = {'stepgate': {
            'issuers': [{'issuer': 'https://i', 'audiences': ['a'], 'algorithms': ['ES256'], 'jwks': {'keys': [
                {'kty': 'EC', 'crv': 'P-256', 'x': 'f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU', 'y': 'x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0'}]}}],
            'identity_token': {'header': 'x-own', 'issuer': 'https://gate', 'audience': 'up', 'key_file': pem}}}
        whole['plugins']['stepgate']['compat'] = {'bundle_signatures': 'opa'}
        canaries = ['canary', private]
        with Sidecar(whole, args=['--log-level', 'debug']) as sidecar:
            sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
            tail = subprocess.Popen([STEPGATE, 'tail', '--socket', sidecar.admin, '-n', '2', '--format', 'json'], stdout=subprocess.PIPE, text=True)
            pretty = subprocess.Popen([STEPGATE, 'tail', '--socket', f'unix://{sidecar.admin}', '-n', '2'], stdout=subprocess.PIPE, text=True)
            deadline = time.time() + 10
            while (tail.poll() is None or pretty.poll() is None) and time.time() < deadline:
                request = sidecar.request('/two?token=canary-query&code=canary-code')
                http = request.attributes.request.http
                http.method = 'POST'
                for name, value in {'authorization': 'Bearer canary.canary.canary', 'cookie': 'session=canary', 'dpop': 'canary', 'x-api-key': 'canary',
                                    'content-type': 'application/json', 'referer': 'https://a/?access_token=canary'}.items():
                    http.headers[name] = value
                http.body = '{"password": "canary", "nested": {"client_secret": "canary"}}'
                sidecar.call(request)
                time.sleep(0.05)
            sidecar.settled(lambda: server.logs and any(path == '/v1/traces' for _, path, _ in server.requests), 'uploads')
            told = {'the watcher': tail.communicate(timeout=5)[0], 'the watcher of lines': pretty.communicate(timeout=5)[0],
                    'metrics': sidecar.get('/metrics')[1].decode(), 'the configuration': json.dumps(sidecar.get('/v1/config')[1]),
                    'the status': json.dumps(sidecar.get('/v1/status')[1]), 'the decision log': json.dumps(server.logs)}
            with server.lock:
                told['traces'] = repr([body for (_, path, _), body in zip(server.requests, server.bodies) if path == '/v1/traces'])
            told['the log'] = sidecar.lines()
        for place, text in told.items():
            eq((len(text) > 50, [canary for canary in canaries if canary in text]), (True, []), f'{place}: {text[:1500]}')
    server.stop()


def decisions_are_watched_as_they_are_made():
    server = Server()
    server.offer('/b.tar.gz', policy('one', 'r1'))
    with Sidecar(config(server, plugins={'stepgate': {'input': {'ambiguous_path': 'reject'}}})) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
        tail = [STEPGATE, 'tail', '--socket', sidecar.admin]
        odd = subprocess.Popen([*tail, '-n', '1', '--format', 'json', '--reason', 'ambiguous_path'], stdout=subprocess.PIPE, text=True)
        watching = subprocess.Popen([*tail, '-n', '2', '--format', 'json', '--path', '/two'], stdout=subprocess.PIPE, text=True)
        pretty = subprocess.Popen([*tail, '-n', '1', '--denied', '--color', 'always'], stdout=subprocess.PIPE, text=True)
        forever = subprocess.Popen([*tail, '--contains', 'nothing has this'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.time() + 10
        while (watching.poll() is None or pretty.poll() is None) and time.time() < deadline:
            sidecar.check('/one')
            sidecar.answer('/two?access_token=secret')
            time.sleep(0.05)
        events = [json.loads(line) for line in watching.communicate(timeout=5)[0].splitlines()]
        eq([event['input']['parsed_path'] for event in events], [['two']] * 2, 'what was asked for')
        eq([event['result'] for event in events], [False] * 2, 'what came of it')
        eq('secret' in json.dumps(events), False, 'nothing secret')
        eq(odd.poll(), None, 'nothing had that reason yet')
        sidecar.check('/a/%2e%2e/b')
        eq(json.loads(odd.communicate(timeout=5)[0])['input']['attributes']['request']['http']['path'], '/a/%2e%2e/b', 'for that reason')
        line = pretty.communicate(timeout=5)[0]
        eq(('DENY' in line, '/two' in line, 'secret' in line), (True, True, False), line)
        # One who asks and never reads, as a terminal that is stopped.
        stalled = socket.socket(socket.AF_UNIX)
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(sidecar.admin)
        stalled.sendall(b'GET /v1/decisions HTTP/1.1\r\nhost: a\r\n\r\n')
        time.sleep(0.2)
        for _ in range(60):
            sidecar.answer('/two?' + 'x' * 20_000)
        time.sleep(0.5)
        begin = time.monotonic()
        sidecar.process.terminate()
        eq((sidecar.process.wait(15), time.monotonic() - begin < 6), (0, True), f'{time.monotonic() - begin:.1f} s until the end')
        stalled.close()
    # The server stops although somebody watches.
    eq(forever.wait(5), 0, 'the end of the watcher')
    eq('has ended' in forever.communicate()[1], True, 'and why')
    server.stop()
    gone = stepgate('tail', '--socket', '/nowhere/admin.sock', check=False)
    eq((gone.returncode != 0, 'admin_socket' in gone.stderr), (True, True), gone.stderr)


def the_api_speaks_tls_and_knows_clients_by_their_certificates():
    with tempfile.TemporaryDirectory() as folder:
        root, certificate, key = certificates(folder)
        file = policy_file(folder, 'package system.authz\nimport rego.v1\ndefault allow := false\n'
                           'allow if {\n input.identity == "CN=localhost"\n input.client_certificates[0].Subject.CommonName == "localhost"\n}\n')
        flags = ['--tls-cert-file', certificate, '--tls-private-key-file', key, '--tls-ca-cert-file', root]

        ask = lambda port, own: ask_over_tls(port, root, (certificate, key) if own else None, '/v1/data')

        with Sidecar({}, files=[file], args=[*flags, '--authentication=tls', '--authorization=basic']) as sidecar:
            eq((ask(sidecar.api, True), ask(sidecar.api, False)), (200, 0), 'only with a certificate')
            eq(sidecar.get('/health')[0], 0, 'no plain HTTP')
            eq(sidecar.get('/health', port=sidecar.diagnostic)[0], 200, 'probes need none')
            # Somebody who never finishes a handshake holds nobody up.
            idle = [socket.create_connection(('localhost', sidecar.api)) for _ in range(300)]
            eq(ask(sidecar.api, True), 200, 'beside slow handshakes')
            for one in idle:
                one.close()
            # Everybody who is not served is counted by reason, and told now and then.
            sidecar.settled(lambda: all(f'stepgate_refused_connections_total{{listener="http",reason="{reason}"}}' in sidecar.get('/metrics', port=sidecar.diagnostic)[1].decode()
                                        for reason in ('no_certificate', 'client_closed')), 'who was not served')
        with Sidecar({}, files=[file], args=flags) as sidecar:
            eq((ask(sidecar.api, True), ask(sidecar.api, False)), (200, 200), 'a certificate is not asked for')
            before = ssl.get_server_certificate(('localhost', sidecar.api))
            certificates(folder)
            sidecar.settled(lambda: ssl.get_server_certificate(('localhost', sidecar.api)) != before, 'the new certificate')
        # As in OPA: an address without scheme is served over TLS, one with `http://` is not, whoever asks there for certificates.
        probes, plain = free_port(), free_port()
        more = [*flags, '--authentication=tls', '--diagnostic-addr', f'127.0.0.1:{probes}', '--addr', f'http://0.0.0.0:{plain}']
        served = {'plugins': {'envoy_ext_authz_grpc': {'path': 'system/authz/allow'}}}
        with Sidecar(served, files=[file], args=more) as sidecar:
            eq((ask(probes, True), ask(probes, False)), (404, 0), 'probes over TLS')
            doctor = lambda *args: stepgate('doctor', '--url', f'https://localhost:{probes}', *args, check=False)
            trusted, own = ('--tls-ca-cert-file', root), ('--tls-cert-file', certificate, '--tls-private-key-file', key)
            known, stranger, careless = doctor(*trusted, *own), doctor(*trusted), doctor()
            eq((known.returncode, 'takes checks' in known.stdout), (0, True), known.stdout + known.stderr)
            eq((stranger.returncode, careless.returncode), (1, 1), 'doctor without a certificate, or without roots')
            eq('--tls-ca-cert-file' in careless.stderr, True, careless.stderr)
            eq(doctor('--probe', *trusted, *own).returncode, 0, 'a probe over TLS')
            eq(doctor('--probe', '--tls-ca-cert-file', certificate, *own).returncode, 1, 'a probe of somebody who is not trusted')
            eq((sidecar.get('/v1/data', port=plain)[0], sidecar.get('/health', port=plain)[0]), (401, 200), 'plain, where nobody is known')
            eq(ask(sidecar.api, True), 200, 'over TLS somebody is')
        for args, why in ((['--authentication=tls'], 'needs --tls-cert-file'), (['--diagnostic-addr', 'https://127.0.0.1:0'], 'needs --tls-cert-file')):
            refused = stepgate('run', '--server', *args, check=False)
            eq((refused.returncode, why in refused.stderr), (1, True), refused.stderr)


def certificates_and_roots_are_read_again_each_for_itself():
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        root, certificate, key = certificates(folder)
        root_b, certificate_b, key_b = certificates(other)
        file = policy_file(folder, 'package app\nallow := true\n')
        trusted = os.path.join(folder, 'trusted.pem')
        shutil.copy(root, trusted)
        flags = ['--tls-cert-file', certificate, '--tls-private-key-file', key, '--tls-ca-cert-file', trusted, '--authentication=tls']

        ask = lambda port, own: ask_over_tls(port, root, own, '/health')

        shutil.copy(key, os.path.join(other, 'mine'))
        mine = (shutil.copy(certificate, os.path.join(other, 'mine.pem')), os.path.join(other, 'mine'))
        with Sidecar({}, files=[file], args=flags) as sidecar:
            eq((ask(sidecar.api, mine), ask(sidecar.api, (certificate_b, key_b))), (200, 0), 'before')
            with open(key, 'w') as f:
                f.write('half a key')
            # Told although nobody connects.
            sidecar.settled(lambda: b'stepgate_certificate_usable{listener="http",part="certificate"} 0' in sidecar.get('/metrics', port=sidecar.diagnostic)[1],
                            'a key that cannot be used')
            signs = stepgate('doctor', '--url', f'http://127.0.0.1:{sidecar.diagnostic}').stdout
            eq('cannot be used, and the old one stays' in signs, True, signs)
            # The root is replaced, with the moment of modification of the old one.
            times = os.stat(trusted)
            shutil.copy(root_b, f'{trusted}.new')
            os.utime(f'{trusted}.new', ns=(times.st_atime_ns, times.st_mtime_ns))
            os.rename(f'{trusted}.new', trusted)
            sidecar.settled(lambda: ask(sidecar.api, (certificate_b, key_b)) == 200, 'the new root')
            eq(ask(sidecar.api, mine), 0, 'the old root is gone, although the key cannot be used')
            shutil.copy(mine[1], key)
            sidecar.settled(lambda: b'stepgate_certificate_usable{listener="http",part="certificate"} 1' in sidecar.get('/metrics', port=sidecar.diagnostic)[1],
                            'a key that fits again')
            # A change that comes while nothing can be opened is read once it can be.
            most = resource.prlimit(sidecar.process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(sidecar.process.pid, resource.RLIMIT_NOFILE, (3, most[1]))
            shutil.copy(root, f'{trusted}.new')
            os.rename(f'{trusted}.new', trusted)
            time.sleep(2.5)
            resource.prlimit(sidecar.process.pid, resource.RLIMIT_NOFILE, most)
            sidecar.settled(lambda: ask(sidecar.api, mine) == 200, 'the root that could not be read')
            eq('cannot be used; the old ones stay' in sidecar.lines(), True, 'that was told')


def whoever_is_not_served_holds_no_place_and_is_told():
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        root, certificate, key = certificates(folder)
        stranger = certificates(other)[0]
        plugins = {'stepgate': {'grpc': {'tls': {'cert_file': certificate, 'private_key_file': key}}, 'limits': {'connections': 5}}}

        def speaks(port, trusted):
            context = ssl.create_default_context(cafile=trusted)
            context.set_alpn_protocols(['h2'])
            with socket.create_connection(('localhost', port), 5) as plain, context.wrap_socket(plain, server_hostname='localhost') as secured:
                secured.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes.fromhex('000000040000000000'))
                return secured.recv(9)[3:4] == b'\x04'

        def counted(sidecar, reason):
            return f'stepgate_refused_connections_total{{listener="grpc",reason="{reason}"}}'.encode() in sidecar.get('/metrics', port=sidecar.diagnostic)[1]

        def refused(port, trusted):
            try:
                return not speaks(port, trusted)
            except OSError:
                return True

        file = policy_file(folder, 'package app\nallow := true\n')
        with Sidecar({'plugins': plugins}, files=[file]) as sidecar:
            silent = [socket.create_connection(('localhost', sidecar.grpc)) for _ in range(600)]
            for _ in range(3):
                eq(speaks(sidecar.grpc, root), True, 'beside handshakes that do not go on')
            sidecar.settled(lambda: counted(sidecar, 'handshakes'), 'the handshakes that made room')
            for one in silent:
                one.close()
            eq(refused(sidecar.grpc, stranger), True, 'a client that does not trust us')
            sidecar.settled(lambda: counted(sidecar, 'client_rejected_certificate'), 'its reason')
            # Nor do they hold up a stop: the grace period is for checks.
            silent = [socket.create_connection(('localhost', sidecar.grpc)) for _ in range(3)]
            began = time.monotonic()
            sidecar.process.terminate()
            eq((sidecar.process.wait(10), time.monotonic() - began < 5), (0, True), 'a stop during handshakes')
        with Sidecar({}, files=[file]) as sidecar:
            eq(refused(sidecar.grpc, root), True, 'TLS to a plain listener')
            sidecar.settled(lambda: counted(sidecar, 'protocol'), 'its reason')
            sidecar.settled(lambda: 'TLS is spoken to a listener that has none' in sidecar.lines(), 'the log')


def bundles_come_from_a_registry():
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


TESTS = [value for name, value in list(globals().items()) if callable(value) and getattr(value, '__module__', '') == __name__
         and name not in ('eq', 'config', 'lay_out')]


def main():
    wanted = sys.argv[1:]
    passed = failed = 0
    for test in TESTS:
        if wanted and test.__name__ not in wanted:
            continue
        began = time.time()
        try:
            test()
            passed += 1
            print(f'ok    {test.__name__} ({time.time() - began:.1f} s)', flush=True)
        except Exception:
            failed += 1
            print(f'FAIL  {test.__name__}\n{traceback.format_exc()}', flush=True)
    print(f'{passed} passed, {failed} failed')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
