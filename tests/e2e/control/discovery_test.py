"""Discovery, status, staleness and entry points."""
import json
import os
import tempfile
import threading
import time

from expect import eq
from harness import Server, Sidecar, bundle, config, policy, stepgate, wait
from stack import free_port


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


def test_discovery_configures_the_rest() -> None:
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


def test_the_status_is_told_when_it_changes() -> None:
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


def test_an_undefined_entrypoint_denies_and_is_reported() -> None:
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


def test_mounted_config_maps_are_read_by_their_visible_names() -> None:
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
