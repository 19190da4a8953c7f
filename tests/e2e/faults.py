"""What goes wrong around stepgate, while every answer is compared with what it must be. Closes with a line 'N passed, N failed'."""
import glob
import json
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import grpc
from envoy.service.auth.v3 import external_auth_pb2 as ea
from harness import CHECK, Server, Sidecar, bundle, stepgate, wait
from stack import ENVOY, STEPGATE, Stack, Upstream, envoy_config, free_port

POLICY = 'package app\n\ndefault allow := false\n\nallow if input.parsed_path[0] == "one"\n'
ORACLE = {'/one': True, '/two': False}


def eq(got, want, what):
    if got != want:
        raise AssertionError(f'{what}: got {got!r}, want {want!r}')


class Load:
    """Threads that ask without end; a context. `wrong` are answers that are not the oracle's, `lost` those that did not come."""

    def __init__(self, ask, oracle=ORACLE, threads=4):
        self.ask, self.oracle = ask, oracle
        self.right, self.wrong, self.lost, self.ends = 0, [], [], False
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(threads)]

    def run(self):
        while not self.ends:
            path = random.choice(list(self.oracle))
            try:
                got = self.ask(path)
            except Exception as error:  # noqa: BLE001: whatever it is, there was no answer
                with self.lock:
                    self.lost.append(repr(error)[:200])
                time.sleep(0.01)
                continue
            with self.lock:
                if got == self.oracle[path]:
                    self.right += 1
                else:
                    self.wrong.append((path, got))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ends = True
        for thread in self.threads:
            thread.join(10)

    def settled(self, least):
        """Waits for so many more right answers."""
        goal = self.right + least
        wait(lambda: self.right >= goal, f'{least} right answers; wrong {self.wrong[:3]}, lost {self.lost[-3:]}')


def policy_folder(folder, text=POLICY):
    path = os.path.join(folder, 'p.rego')
    with open(path, 'w') as out:
        out.write(text)
    return path


def request(path, **http):
    message = ea.CheckRequest()
    message.attributes.request.http.method, message.attributes.request.http.path = 'GET', path
    for name, value in http.items():
        if isinstance(value, dict):
            for key, item in value.items():
                getattr(message.attributes.request.http, name)[key] = item
        else:
            setattr(message.attributes.request.http, name, value)
    return message


class Issuer:
    """Signs with a key of its own."""

    def __init__(self, folder):
        self.key = os.path.join(folder, 'issuer.pem')
        self.jwks = json.loads(stepgate('token', 'keygen', '--kid', 'k', '--out', self.key).stdout)

    def token(self, **claims):
        claims = {'iss': 'https://issuer', 'aud': 'a', 'sub': 'alice', **claims}
        return stepgate('token', 'sign', '--kid', 'k', '--key', self.key, json.dumps(claims)).stdout.strip()

    @staticmethod
    def settings(**source):
        return {'plugins': {'stepgate': {'issuers': [{'issuer': 'https://issuer', 'audiences': ['a'], 'algorithms': ['ES256'], **source}]}}}


class Alone:
    """stepgate with the policy above, or another, asked directly; a context."""

    def __init__(self, config=None, args=(), text=POLICY, env=None):
        self.temporary = tempfile.TemporaryDirectory(prefix='stepgate-faults-')
        self.sidecar = Sidecar(config or {}, args=args, files=[policy_folder(self.temporary.name, text)], env=env)

    def __enter__(self):
        self.sidecar.__enter__()
        wait(lambda: self.sidecar.get('/ready', port=self.sidecar.diagnostic)[0] == 200, 'readiness', self.sidecar)
        return self

    def __exit__(self, *more):
        self.sidecar.__exit__(*more)
        self.temporary.cleanup()

    def call(self, message, timeout=5):
        if self.sidecar.channel is None:
            options = [('grpc.max_send_message_length', 64 << 20)]
            self.sidecar.channel = grpc.insecure_channel(f'127.0.0.1:{self.sidecar.grpc}', options=options)
        call = self.sidecar.channel.unary_unary(CHECK, ea.CheckRequest.SerializeToString, ea.CheckResponse.FromString)
        return call(message, timeout=timeout)

    def ask(self, path):
        return self.call(request(path)).status.code == 0

    def metric(self, line):
        """The value of a line of the metrics; 0 where there is none."""
        metrics = self.sidecar.get('/metrics', port=self.sidecar.diagnostic)[1].decode().splitlines()
        return next((float(known.rsplit(' ', 1)[1]) for known in metrics if known.rsplit(' ', 1)[0] == line), 0)


def the_oracle_sees_a_wrong_answer():
    with Alone() as alone:
        with Load(alone.ask, oracle={'/one': True, '/two': True}) as load:
            wait(lambda: load.wrong and load.right, 'both kinds')
        eq({path for path, _ in load.wrong}, {'/two'}, 'what is called wrong')


def envoy_is_killed_and_comes_back():
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


def one_of_two_is_replaced_under_load():
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


def killed_while_it_writes():
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


def a_full_disk_stops_no_check():
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


def all_servers_around_are_gone():
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


def the_clock_jumps():
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


SLOW = 'package app\ndefault allow := false\nallow if {\n\tsome a in numbers.range(1, 400)\n\tsome b in numbers.range(1, 60)\n\ta * b == 24000\n}\n'


def more_than_can_be_answered_is_denied_at_once():
    """What finds no place, and what has waited too long for its turn, is told so; nothing waits until its caller is gone."""
    for limits, least in (({'checks_in_flight': 4}, 100), ({}, 1)):
        with Alone({'plugins': {'stepgate': {'limits': {**limits, 'evaluation_timeout': '150ms'}}}}, text=SLOW) as alone:
            call = grpc.insecure_channel(f'127.0.0.1:{alone.sidecar.grpc}').unary_unary(CHECK, ea.CheckRequest.SerializeToString, ea.CheckResponse.FromString)
            futures = [call.future(request('/one'), timeout=60) for _ in range(300 * os.cpu_count())]
            answers = [future.result() for future in futures]
            allowed = sum(answer.status.code == 0 for answer in answers)
            reasons = [answer.dynamic_metadata.fields['reason'].string_value for answer in answers if answer.status.code]
            eq(set(reasons) <= {'overloaded', 'check_timeout', 'evaluation_timeout'}, True, set(reasons))
            eq({answer.denied_response.status.code for answer in answers if answer.status.code}, {503}, 'the status')
            eq((allowed > 0, reasons.count('overloaded') >= least), (True, True), f'{allowed} allowed, the others {sorted(reasons)[:1]}…, {len(reasons)}')
            eq(alone.metric('stepgate_faults_total{reason="overloaded"}'), reasons.count('overloaded'), 'what is counted')
            # A line for each would take the time that is missing.
            lines = sum('"reason":"overloaded"' in line for line in alone.sidecar.lines().splitlines())
            eq(1 <= lines <= 3, True, f'{lines} lines')
            eq(alone.ask('/one'), True, 'afterwards')


def silent_and_half_closed_connections():
    with Alone() as alone:
        begun = []
        for n in range(400):
            connection = socket.create_connection(('127.0.0.1', alone.sidecar.grpc))
            connection.sendall((b'', b'PRI * HTTP/2.0\r\n', b'GET / HTTP/1.1\r\n\r\n', b'\x16\x03\x01\x02\x00\x01')[n % 4])
            if n % 3 == 0:
                connection.shutdown(socket.SHUT_WR)
            begun.append(connection)
        with Load(alone.ask) as load:
            load.settled(2_000)
        eq((load.wrong, load.lost), ([], []), 'wrong and lost answers')
        # Whoever has not begun to speak HTTP/2 after ten seconds is left.
        for connection in begun:
            connection.settimeout(15)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionError:
                pass
            connection.close()
        # Nor does such a one hold up the end.
        with socket.create_connection(('127.0.0.1', alone.sidecar.grpc)):
            time.sleep(0.2)
            begin = time.monotonic()
            alone.sidecar.process.terminate()
            eq(alone.sidecar.process.wait(15), 0, 'how it ends')
            eq(time.monotonic() - begin < 5, True, f'{time.monotonic() - begin:.1f} s until the end')


def ten_thousand_idle_connections():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    many = min(10_000, hard - 600)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Alone() as alone:
        preface = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + b'\0\0\0\4\0\0\0\0\0'
        idle = []
        for _ in range(many):
            connection = socket.create_connection(('127.0.0.1', alone.sidecar.grpc))
            connection.sendall(preface)
            idle.append(connection)
        with Load(alone.ask) as load:
            load.settled(2_000)
        eq((load.wrong, load.lost), ([], []), 'wrong and lost answers')
        for connection in idle:
            connection.close()
    return f'{many} connections' + ('' if many == 10_000 else ' (the limit of open files here allows no more)')


def messages_of_every_size():
    with Alone() as alone:
        eq(alone.call(request('/one', headers={'x-long': 'x' * (1 << 20)})).status.code, 0, 'a header of 1 MiB')
        eq(alone.call(request('/two', headers={f'x-{n}': 'y' for n in range(20_000)})).status.code, 7, '20,000 headers')
        eq(alone.call(request('/one', body='x' * (4 << 20) )).denied_response.status.code, 413, 'a body over the limit')
        kind = {'content-type': 'application/json'}
        whole = '[' + '0,' * ((4 << 19) - 1_000) + '0]'
        eq((alone.call(request('/one', headers=kind, body=whole)).status.code, alone.call(request('/two', headers=kind, body=whole)).status.code), (0, 7),
           'a body just below the limit')
        for body in ('[' * 10_000, '{"a":' * 10_000, '[' * 10_000 + ']' * 10_000):
            eq(alone.call(request('/one', headers=kind, body=body)).status.code in (0, 3, 7), True, 'a deep body')
            eq(alone.call(request('/two', headers=kind, body=body)).status.code == 0, False, 'a deep body where nothing is allowed')
        with Load(alone.ask) as load:
            load.settled(500)
        eq((load.wrong, load.lost), ([], []), 'wrong and lost answers')


def messages_that_come_after_their_refusal():
    """Whoever finds no place is refused before his message is here; what comes late ends no connection, also after thousands."""
    limits = {'plugins': {'stepgate': {'limits': {'checks_in_flight': 1}}}}
    with Alone(limits) as alone, socket.create_connection(('127.0.0.1', alone.sidecar.grpc)) as raw:
        raw.settimeout(5)
        frame, headers = frames()
        message = request('/one').SerializeToString()
        # With a window for all answers: a stream is closed once its answer has left.
        raw.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + frame(4, 0, 0) + frame(8, 0, 0, struct.pack('>I', 1 << 30)))
        ended = []

        def read():
            try:
                data = b''
                while True:
                    while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], 'big'):
                        if data[3] == 7:
                            ended.append(data[9:])
                        data = data[9 + int.from_bytes(data[:3], 'big'):]
                    more = raw.recv(1 << 16)
                    if not more:
                        return
                    data += more
            except OSError:
                return

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        for first in range(1, 8_000, 200):
            streams = range(first, first + 200, 2)
            raw.sendall(b''.join(frame(1, 4, stream, headers) for stream in streams))
            time.sleep(0.01)
            raw.sendall(b''.join(frame(0, 1, stream, b'\0' + struct.pack('>I', len(message)) + message) for stream in streams))
        alone.sidecar.settled(lambda: alone.metric('stepgate_in_flight_checks') == 0, 'answers')
        eq((ended, reader.is_alive()), ([], True), 'the connection')
        eq(alone.metric('stepgate_faults_total{reason="overloaded"}') > 2_000, True, 'refusals')


def frames():
    """What makes a frame of HTTP/2, and the headers of a check."""
    text = lambda text: bytes([len(text)]) + text
    fields = {b':method': b'POST', b':scheme': b'http', b':path': CHECK.encode(), b':authority': b'a', b'content-type': b'application/grpc'}
    headers = b''.join(b'\0' + text(name) + text(value) for name, value in fields.items())
    return lambda kind, flags, stream, data=b'': struct.pack('>I', len(data))[1:] + bytes([kind, flags]) + struct.pack('>I', stream) + data, headers


def what_was_reset_while_it_waited_is_not_decided():
    """Whole messages, and the end of their streams in the same breath: behind slow ones they are looked at once more, and dropped."""
    with Alone({'plugins': {'stepgate': {'limits': {'check_timeout': '5s', 'evaluation_timeout': '1s'}}}}, text=SLOW) as alone:
        frame, headers = frames()
        message = request('/one').SerializeToString()
        whole = b'\0' + struct.pack('>I', len(message)) + message
        with socket.create_connection(('127.0.0.1', alone.sidecar.grpc)) as raw:
            streams = b''.join(frame(1, 4, stream, headers) + frame(0, 1, stream, whole) + frame(3, 0, stream, struct.pack('>I', 8)) for stream in range(1, 400, 2))
            raw.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + frame(4, 0, 0) + streams)
            ends = lambda: (alone.metric('stepgate_cancelled_checks_total'), alone.metric('stepgate_checks_total{decision="allow"}'))
            alone.sidecar.settled(lambda: sum(ends()) == 200, 'the ends of all')
        cancelled, decided = ends()
        eq(cancelled > decided, True, f'{cancelled} given up, {decided} decided')


def streams_that_are_reset_at_once():
    # A check that waits behind the flood of another has time.
    patient = {'plugins': {'stepgate': {'limits': {'check_timeout': '3s'}}}}
    with Alone(patient) as alone, Load(alone.ask) as load:
        channel = grpc.insecure_channel(f'127.0.0.1:{alone.sidecar.grpc}')
        call = channel.unary_unary(CHECK, ea.CheckRequest.SerializeToString, ea.CheckResponse.FromString)
        for _ in range(20):
            for future in [call.future(request('/one')) for _ in range(500)]:
                future.cancel()
        load.settled(1_000)
        channel.close()
        eq((load.wrong, load.lost), ([], []), 'wrong and lost answers')
        eq(alone.metric('stepgate_in_flight_checks') <= 4, True, 'nothing is left behind')
        # Opened and reset in one breath, before there is a message: given up, and no fault of anybody.
        alone.sidecar.settled(lambda: alone.metric('stepgate_in_flight_checks') <= 4, 'those before')
        before, lines = alone.metric('stepgate_cancelled_checks_total'), alone.sidecar.lines().count('"level":"error"')
        frame, headers = frames()
        with socket.create_connection(('127.0.0.1', alone.sidecar.grpc)) as raw:
            raw.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + frame(4, 0, 0))
            for stream in range(1, 2_000, 2):
                raw.sendall(frame(1, 4, stream, headers) + frame(3, 0, stream, struct.pack('>I', 8)))
            alone.sidecar.settled(lambda: alone.metric('stepgate_cancelled_checks_total') - before >= 1_000, 'those that were given up')
        load.settled(1_000)
        eq(alone.metric('stepgate_cancelled_checks_total') - before, 1_000, 'each counts once')
        eq((load.wrong, load.lost), ([], []), 'wrong and lost answers')
        eq((alone.sidecar.lines().count('"level":"error"'), alone.metric('stepgate_faults_total{reason="check_timeout"}')), (lines, 0), 'no fault')


TESTS = [value for name, value in list(globals().items()) if callable(value) and getattr(value, '__module__', '') == __name__
         and name[0].islower() and name not in ('eq', 'policy_folder', 'request', 'frames', 'main')]


def main():
    passed = failed = 0
    for test in TESTS:
        if sys.argv[1:] and test.__name__ not in sys.argv[1:]:
            continue
        began = time.time()
        try:
            note = test()
            passed += 1
            print(f'ok    {test.__name__} ({time.time() - began:.1f} s) {note or ""}', flush=True)
        except Exception:  # noqa: BLE001: each is reported
            failed += 1
            print(f'FAIL  {test.__name__}\n{traceback.format_exc()}', flush=True)
    print(f'{passed} passed, {failed} failed')
    sys.exit(bool(failed))


if __name__ == '__main__':
    main()
