"""Processes that are killed, replaced or cut off, while every answer is compared with an oracle."""
import glob
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from expect import eq
from harness import Server, Sidecar, bundle, wait
from load import Alone, Issuer, Load, policy_folder, request
from stack import ENVOY, STEPGATE, Stack, Upstream, envoy_config, free_port


def test_the_oracle_sees_a_wrong_answer() -> None:
    with Alone() as alone:
        with Load(alone.ask, oracle={'/one': True, '/two': True}) as load:
            wait(lambda: load.wrong and load.right, 'both kinds')
        eq({path for path, _ in load.wrong}, {'/two'}, 'what is called wrong')


def test_envoy_is_killed_and_comes_back() -> None:
    folder = tempfile.mkdtemp()
    upstream, port, authz = Upstream(), free_port(), free_port()
    config = os.path.join(folder, 'envoy.json')
    with open(config, 'w') as out:
        json.dump(envoy_config(port, free_port(), upstream.port, authz, False, {'status_on_error': {'code': 'ServiceUnavailable'}}, None), out)
    start = lambda: subprocess.Popen([ENVOY, '-c', config, '--base-id', str(port), '--concurrency', '1', '--log-level', 'off'])

    def ask(path):
        answer = Stack.exchange(port, 'GET', path, [], None)
        if answer.status not in (200, 403):
            raise OSError(answer.status)
        return answer.status == 200

    process = start()
    try:
        with Alone({'plugins': {'envoy_ext_authz_grpc': {}}}) as alone:
            # Envoy asks at a port of its own choice: here it is that of the server.
            with open(config) as file:
                text = file.read().replace(str(authz), str(alone.sidecar.grpc))
            with open(config, 'w') as out:
                out.write(text)
            process.kill()
            process.wait()
            process = start()
            with Load(ask) as load:
                for _ in range(3):
                    load.settled(200)
                    process.kill()
                    process.wait()
                    process = start()
                load.settled(200)
            eq(load.wrong, [], 'wrong answers')
            # Checks whose Envoy is gone are given up, and hold nothing.
            alone.sidecar.settled(lambda: alone.metric('stepgate_in_flight_checks') == 0, 'nothing in flight')
    finally:
        process.kill()
        process.wait()
        upstream.stop()
        shutil.rmtree(folder)


def test_one_of_two_is_replaced_under_load() -> None:
    folder = tempfile.mkdtemp()
    upstream, port = Upstream(), free_port()
    rego = policy_folder(folder)
    ports = [free_port(), free_port()]

    def start(authz):
        config = os.path.join(folder, f'{authz}.json')
        with open(config, 'w') as out:
            json.dump({'plugins': {'envoy_ext_authz_grpc': {'addr': f'127.0.0.1:{authz}', 'path': 'app/allow'}}}, out)
        process = subprocess.Popen([STEPGATE, 'run', '--server', '--addr', '127.0.0.1:0', '--diagnostic-addr', '127.0.0.1:0', '--config-file',
                                    config, '--shutdown-wait-period', '2', '--log-level', 'error', rego])
        wait(lambda: socket.socket().connect_ex(('127.0.0.1', authz)) == 0, 'the port')
        return process

    servers = [start(authz) for authz in ports]
    config = envoy_config(port, free_port(), upstream.port, ports[0], False, {'status_on_error': {'code': 'ServiceUnavailable'}}, None)
    authz = next(cluster for cluster in config['static_resources']['clusters'] if cluster['name'] == 'authz')
    ends = authz['load_assignment']['endpoints'][0]['lb_endpoints']
    ends.append({'endpoint': {'address': {'socket_address': {'address': '127.0.0.1', 'port_value': ports[1]}}}})
    # As the endpoints of Kubernetes do it: what is not ready gets nothing new.
    authz['health_checks'] = [{'timeout': '2s', 'interval': '0.1s', 'no_traffic_interval': '0.1s', 'unhealthy_threshold': 1, 'healthy_threshold': 1,
                               'grpc_health_check': {}}]
    path = os.path.join(folder, 'envoy.json')
    with open(path, 'w') as out:
        json.dump(config, out)
    envoy = subprocess.Popen([ENVOY, '-c', path, '--base-id', str(port), '--concurrency', '1', '--log-level', 'off'])

    def ask(path):
        answer = Stack.exchange(port, 'GET', path, [], None)
        if answer.status not in (200, 403):
            raise OSError(answer.status)
        return answer.status == 200

    try:
        wait(lambda: socket.socket().connect_ex(('127.0.0.1', port)) == 0, 'Envoy')
        wait(lambda: Stack.exchange(port, 'GET', '/one', [], None).status == 200, 'the first answer')
        with Load(ask) as load:
            load.settled(200)
            for at in (0, 1, 0):
                servers[at].send_signal(signal.SIGTERM)
                eq(servers[at].wait(15), 0, 'how it ends')
                servers[at] = start(ports[at])
                load.settled(300)
        eq((load.wrong, load.lost), ([], []), 'wrong and lost answers')
    finally:
        envoy.kill()
        envoy.wait()
        for server in servers:
            server.kill()
            server.wait()
        upstream.stop()
        shutil.rmtree(folder)


def test_killed_while_it_writes() -> None:
    """SIGKILL while bundles are kept and decisions are spilled: what is on disk is whole, or not there."""
    server, folder = Server(), tempfile.mkdtemp()
    server.log_status = 503
    config = {'services': {'s': {'url': server.url}},
              'bundles': {'b': {'service': 's', 'resource': 'b.tar.gz', 'persist': True, 'polling': {'min_delay_seconds': 1, 'max_delay_seconds': 1}}},
              'persistence_directory': os.path.join(folder, 'kept'),
              'decision_logs': {'service': 's', 'reporting': {'min_delay_seconds': 1, 'max_delay_seconds': 1, 'buffer_size_limit_bytes': 4096,
                                                              'upload_size_limit_bytes': 2048}},
              'plugins': {'stepgate': {'log': {'overflow': 'spill', 'spill_directory': os.path.join(folder, 'spill')}}}}
    try:
        for turn in range(6):
            revision = f'r{turn}'
            # Large enough that writing it takes a while.
            files = {'data.json': {'app': {'word': 'one', 'pad': 'x' * (2 << 20)}}, '.manifest': {'revision': revision, 'roots': ['app']},
                     'app.rego': 'package app\nimport rego.v1\ndefault allow := false\nallow if input.parsed_path[0] == data.app.word\n'}
            server.offer('/b.tar.gz', bundle(files), etag=revision)
            sidecar = Sidecar(config, args=['--log-level', 'error'])
            with sidecar:
                sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
                # The next one comes within a second, and is kept, too.
                files['.manifest'] = {'revision': f'{revision}b', 'roots': ['app']}
                server.offer('/b.tar.gz', bundle(files), etag=f'{revision}b')
                end = time.time() + random.uniform(0.05, 1.6)
                while time.time() < end:
                    sidecar.check('/two')
                sidecar.process.send_signal(signal.SIGKILL)
                sidecar.process.wait()
            # The server of bundles is gone; what was kept decides.
            server.routes['/b.tar.gz'] = lambda handler: handler.reply(503)
            with Sidecar(config, args=['--log-level', 'error']) as again:
                again.settled(lambda: again.check('/one'), 'the bundle that was kept')
                eq(again.check('/two'), False, 'a denial')
        server.log_status = 200
        with Sidecar(config, args=['--log-level', 'error']) as last:
            last.settled(lambda: server.logs, 'what was spilled')
        eq({event['path'] for event in server.logs}, {'app/allow'}, 'whole events')
    finally:
        server.stop()
        shutil.rmtree(folder)


def test_a_full_disk_stops_no_check() -> None:
    folder = tempfile.mkdtemp()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'none', folder], capture_output=True).returncode:
        os.rmdir(folder)
        return 'SKIPPED: this machine mounts no small disk'
    server = Server()
    server.log_status = 503
    config = {'services': {'s': {'url': server.url}}, 'persistence_directory': folder,
              'bundles': {'b': {'service': 's', 'resource': 'b.tar.gz', 'persist': True}},
              'decision_logs': {'service': 's', 'reporting': {'min_delay_seconds': 1, 'max_delay_seconds': 1, 'buffer_size_limit_bytes': 4096}},
              'plugins': {'stepgate': {'log': {'overflow': 'spill', 'spill_directory': os.path.join(folder, 'spill')}}}}
    files = {'data.json': {'app': {'word': 'one', 'pad': os.urandom(200_000).hex()}}, '.manifest': {'revision': 'r', 'roots': ['app']},
             'app.rego': 'package app\nimport rego.v1\ndefault allow := false\nallow if input.parsed_path[0] == data.app.word\n'}
    server.offer('/b.tar.gz', bundle(files))
    try:
        with Sidecar(config) as sidecar:
            sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
            with Load(sidecar.check) as load:
                load.settled(3_000)
            eq((load.wrong, load.lost), ([], []), 'wrong and lost answers')
            eq('No space left' in sidecar.lines(), True, 'what the log says')
    finally:
        server.stop()
        subprocess.run(['umount', folder], check=True)
        os.rmdir(folder)
    return None


def test_all_servers_around_are_gone() -> None:
    """Those of bundles, of logs and of the issuer's keys: what is known goes on deciding, also about tokens that were never seen."""
    server, folder = Server(), tempfile.TemporaryDirectory()
    issuer = Issuer(folder.name)
    server.offer('/jwks', json.dumps(issuer.jwks).encode())
    rego = 'package app\nimport rego.v1\ndefault allow := false\nallow if {\n\tinput.parsed_path[0] == "one"\n\tinput.jwt.state == "verified"\n}\n'
    server.offer('/b.tar.gz', bundle({'app.rego': rego, '.manifest': {'revision': 'r1', 'roots': ['app']}}))
    config = {**issuer.settings(jwks_url=f'{server.url}/jwks'), 'services': {'s': {'url': server.url}},
              'bundles': {'b': {'service': 's', 'resource': 'b.tar.gz', 'polling': {'min_delay_seconds': 1, 'max_delay_seconds': 1}}},
              'decision_logs': {'service': 's', 'reporting': {'min_delay_seconds': 1, 'max_delay_seconds': 1}}, 'status': {'service': 's'}}
    seen, new = ([issuer.token(jti=f'{kind}{n}') for n in range(20)] for kind in 'ab')
    with folder, Sidecar(config) as sidecar:
        def asks(tokens):
            return lambda path: sidecar.call(request(path, headers={'authorization': f'Bearer {random.choice(tokens)}'})).status.code == 0

        sidecar.settled(lambda: asks(seen)('/one'), 'the bundle and the keys')
        server.stop()
        eq(sidecar.check('/one'), False, 'without a token')
        for tokens in (seen, new):
            with Load(asks(tokens)) as load:
                load.settled(2_000)
                time.sleep(2)
                load.settled(1_000)
            eq((load.wrong, load.lost), ([], []), 'wrong and lost answers')


def test_the_clock_jumps() -> None:
    """By an hour, to and fro, while a token is valid for half an hour: it is denied and allowed as the clock says, and nothing is lost."""
    library = next(iter(glob.glob('/usr/lib/*/faketime/libfaketimeMT.so.1')), '')
    if not os.path.exists(library):
        return 'SKIPPED: there is no libfaketime (the Debian package of that name)'
    rego = 'package app\ndefault allow := false\nallow if {\n\tinput.parsed_path[0] == "one"\n\tinput.jwt.state == "verified"\n}\nallow if input.parsed_path[0] == "open"\n'
    with tempfile.TemporaryDirectory() as folder:
        issuer, hands = Issuer(folder), os.path.join(folder, 'hands')
        now = int(time.time())
        token = issuer.token(nbf=now - 60, exp=now + 1_800)

        def turn(offset):
            with open(f'{hands}.new', 'w') as out:
                out.write(offset)
            os.rename(f'{hands}.new', hands)

        turn('+0')
        env = {'LD_PRELOAD': library, 'FAKETIME_TIMESTAMP_FILE': hands, 'FAKETIME_NO_CACHE': '1', 'FAKETIME_DONT_FAKE_MONOTONIC': '1'}
        with Alone({**issuer.settings(jwks=issuer.jwks), 'decision_logs': {'console': True}}, text=rego, env=env) as alone:
            ask = lambda path: alone.call(request(path, headers={'authorization': f'Bearer {token}'})).status.code == 0
            for offset, is_valid in (('+0', True), ('+3600', False), ('+0', True), ('-3600', False), ('+0', True)):
                turn(offset)
                with Load(ask, oracle={'/one': is_valid, '/two': False, '/open': True}) as load:
                    load.settled(300)
                eq((load.wrong, load.lost), ([], []), f'wrong and lost answers at {offset}')
                alone.sidecar.settled(lambda: alone.metric('stepgate_decision_log_queue') == 0, 'the log')
            hours = [json.loads(line)['timestamp'][:13] for line in alone.sidecar.lines().splitlines() if '"Decision Log"' in line]
            eq(len(set(hours)) >= 3, True, f'hours in the log: { {hour: hours.count(hour) for hour in hours} }')
