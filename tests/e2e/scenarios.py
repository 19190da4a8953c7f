"""Asks what the files of `scenarios/` describe. `scenarios_test.py` runs both files.

    scenarios.py --at pod URL FOLDER          base.yaml against something that runs (pod, kind); FOLDER has key.pem"""
import http.client
import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from functools import partial

import grpc
import yaml
from envoy.service.auth.v3 import external_auth_pb2 as ea
from stack import AUDIENCE, ISSUER, ROOT, STEPGATE, Upstream, free_port

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'scenarios')
CHECK = '/envoy.service.auth.v3.Authorization/Check'
EXAMPLE = os.path.join(ROOT, 'k8s', 'base', 'policy.rego')
EXAMPLE_CONFIG = os.path.join(ROOT, 'k8s', 'overlays', 'kind', 'config.yaml')
CALLERS = itertools.count(int(time.time() * 1000))
REQUEST_MEMBERS = {'method', 'path', 'headers', 'body', 'token', 'scheme'}
MEMBERS = {'name', 'kind', 'listener', 'client', 'request', 'send', 'expect', 'only', 'within', 'repeat'}
EXPECTED = {'status', 'challenge', 'body', 'grpc-status', 'upstream', 'headers', 'unchecked', 'reply', 'stat', 'metric', 'log'}


def scenarios(name):
    with open(os.path.join(HERE, f'{name}.yaml')) as file:
        found = yaml.safe_load(file)
    for one in found:
        unknown = (set(one) - MEMBERS) | (set(one.get('request', {})) - REQUEST_MEMBERS) | (set(one['expect']) - EXPECTED)
        assert not unknown and one['expect'], f'{one["name"]}: {unknown or "expects nothing"}'
    assert len({one['name'] for one in found}) == len(found), 'two scenarios with one name'
    return found


def keygen(folder):
    """key.pem, and its key set in jwks.json."""
    out = subprocess.run([STEPGATE, 'token', 'keygen', '--alg', 'ES256', '--kid', 'test', '--out', os.path.join(folder, 'key.pem')],
                         check=True, capture_output=True, text=True).stdout
    with open(os.path.join(folder, 'jwks.json'), 'w') as file:
        file.write(out)


def token(folder, claims):
    claims = dict(claims)
    kind, pad = claims.pop('as', 'good'), claims.pop('pad', 0)
    if kind == 'garbage':
        return 'garbage'
    # A caller of its own each time: one who comes with a third token that is not enough is told that asking again will not help.
    claims = {'iss': ISSUER, 'aud': AUDIENCE, 'sub': f'user-{next(CALLERS)}', **claims, **({'pad': 'x' * pad} if pad else {})}
    made = subprocess.run([STEPGATE, 'token', 'sign', '--kid', 'test', '--key', os.path.join(folder, 'key.pem'), '--lifetime',
                           '-60' if kind == 'expired' else '600', json.dumps(claims)], check=True, capture_output=True, text=True).stdout.strip()
    head, body, signature = made.split('.')
    if kind == 'tampered':
        return f'{head}.{body}.{"A" * len(signature)}'
    if kind == 'unsigned':
        return f'eyJhbGciOiJub25lIn0.{body}.'
    return made


def headers_of(folder, request):
    headers = [(name, value) for name, value in request.get('headers', [])]
    if 'token' in request:
        headers.append(('authorization', f'{request.get("scheme", "Bearer")} {token(folder, request["token"])}'))
    return headers


def exchange(connection, folder, request):
    """Status, headers in lower case, body."""
    body = request.get('body')
    if body is not None:
        body = bytes(range(256)) if body == 'binary' else b'x' * body
    connection.putrequest(request.get('method', 'GET'), request['path'], skip_accept_encoding=True)
    for name, value in headers_of(folder, request):
        connection.putheader(name, value)
    if body is not None:
        connection.putheader('content-length', str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    found = answer.status, [(name.lower(), value) for name, value in answer.getheaders()], answer.read().decode('utf-8', 'replace')
    connection.close()
    return found


def judge(expect, status, headers, body, upstream):
    """What is not as expected. `upstream` are the headers that arrived there, if it was reached."""
    value = lambda name: ', '.join(value for own, value in headers if own == name)
    problems = []
    if status != expect.get('status', status):
        problems.append(f'status {status}')
    if expect.get('challenge', '') not in value('www-authenticate'):
        problems.append(f'challenge {value("www-authenticate")!r}')
    if expect.get('body', '') not in body:
        problems.append(f'body {body[:200]!r}')
    if 'grpc-status' in expect and value('grpc-status') != expect['grpc-status']:
        problems.append(f'grpc-status {value("grpc-status")!r}')
    for name, wanted in expect.get('headers', {}).items():
        if value(name) != wanted:
            problems.append(f'{name}: {value(name)!r}')
    for name, wanted in expect.get('upstream', {}).items():
        if (upstream or {}).get(name) != wanted:
            problems.append(f'upstream {name}: {(upstream or {}).get(name)!r}')
    if expect.get('unchecked') and upstream is None:
        problems.append('nothing arrived at the upstream')
    if 'unchecked' in expect and ('x-checked' not in (upstream or {})) != expect['unchecked']:
        problems.append('somebody decided' if expect['unchecked'] else 'nobody decided')
    return problems


def through(port, folder, scenario, context=None):
    make = http.client.HTTPSConnection if context else http.client.HTTPConnection
    connection = make('127.0.0.1', port, timeout=10, **({'context': context} if context else {}))
    status, headers, body = exchange(connection, folder, scenario['request'])
    try:
        upstream = {name: value for name, value in json.loads(body)['headers']}
    except (ValueError, KeyError, TypeError):
        upstream = None
    return judge(scenario['expect'], status, headers, body, upstream)


def directly(channel, folder, scenario):
    """The check that Envoy would send."""
    request = scenario['request']
    message = ea.CheckRequest()
    http_request = message.attributes.request.http
    http_request.method, http_request.path, http_request.host = request.get('method', 'GET'), request['path'], 'localhost'
    joined = {}
    for name, value in headers_of(folder, request):
        joined[name] = f'{joined[name]},{value}' if name in joined else value
    for name, value in joined.items():
        http_request.headers[name] = value
    call = channel.unary_unary(CHECK, ea.CheckRequest.SerializeToString, ea.CheckResponse.FromString)
    answer = call(message, timeout=5)
    denied = answer.denied_response
    status = 200 if answer.status.code == 0 else denied.status.code or 403
    headers = [(option.header.key.lower(), option.header.value or option.header.raw_value.decode()) for option in denied.headers]
    return judge(scenario['expect'], status, headers, denied.body, None)


def tcp(port, scenario):
    with socket.create_connection(('127.0.0.1', port), 10) as connection:
        reply = b''
        try:
            connection.sendall(scenario['send'].encode())
            reply = connection.recv(4096)
        except ConnectionError:
            pass
        return [] if reply.decode() == scenario['expect']['reply'] else [f'reply {reply!r}']


def upgrade(port, scenario):
    with socket.create_connection(('127.0.0.1', port), 10) as connection:
        connection.sendall(f'GET {scenario["request"]["path"]} HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n'
                           'sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n'.encode())
        status = int(connection.recv(4096).split(b' ')[1])
        return [] if status == scenario['expect']['status'] else [f'status {status}']


def grpc_call(port, scenario):
    with grpc.insecure_channel(f'127.0.0.1:{port}') as channel:
        try:
            channel.unary_unary(scenario['request']['path'])(b'', timeout=5)
            status = 0
        except grpc.RpcError as error:
            status = error.code().value[0]
    return [] if status == scenario['expect']['grpc-status'] else [f'grpc-status {status}']


def in_mesh(mesh, scenario):
    expect = scenario['expect']
    counters = {name: partial(mesh.metric, server, name) for server, name in expect.get('metric', {}).items()}
    if 'stat' in expect:
        counters[expect['stat']] = partial(mesh.stat, expect['stat'])
    before = {name: read() for name, read in counters.items()}
    problems = asked_in_mesh(mesh, scenario)
    wanted = {f'{name} did not grow': lambda name=name, read=read: read() > before[name] for name, read in counters.items()}
    for server, text in expect.get('log', {}).items():
        wanted[f'the log of {server} does not say {text!r}'] = lambda server=server, text=text: text in mesh.log(server)
    # A connection is closed before that is counted and told.
    return problems + [problem for problem, is_there in wanted.items() if not comes_true(is_there)]


def comes_true(condition):
    deadline = time.monotonic() + 2
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def asked_in_mesh(mesh, scenario):
    port = mesh.ports[scenario.get('listener', 'plain')]
    kind = scenario.get('kind', 'http')
    if kind != 'http':
        return {'tcp': tcp, 'upgrade': upgrade, 'grpc': grpc_call}[kind](port, scenario)
    context = None
    if 'client' in scenario:
        context = ssl.create_default_context(cafile=mesh.root)
        context.check_hostname = False
        context.load_cert_chain(*mesh.certificates[scenario['client']])
    return through(port, mesh.folder, scenario, context)


def example_server(folder, addr, diagnostic):
    """stepgate with the example of k8s/, its addresses and keys apart."""
    with open(EXAMPLE_CONFIG) as file:
        config = yaml.safe_load(file)
    config['plugins']['envoy_ext_authz_grpc']['addr'] = addr
    config['plugins']['stepgate']['issuers'][0]['jwks_file'] = os.path.join(folder, 'jwks.json')
    path = os.path.join(folder, 'config.json')
    with open(path, 'w') as file:
        json.dump(config, file)
    return [STEPGATE, 'run', '--server', '--addr', '127.0.0.1:0', '--diagnostic-addr', f'127.0.0.1:{diagnostic}', '--config-file', path, EXAMPLE]


class Example:
    """The example behind the Envoy of k8s/envoy, and the port to ask it directly. Envoy's file is used as it is, but for its ports."""

    def __init__(self, *flags):
        self.temporary = tempfile.TemporaryDirectory(prefix='stepgate-example-')
        self.folder, self.upstream = self.temporary.name, Upstream()
        keygen(self.folder)
        self.grpc, self.port, self.diagnostic = free_port(), free_port(), free_port()
        with open(os.path.join(ROOT, 'k8s', 'envoy', 'envoy.yaml')) as file:
            text = file.read()
        for was, now in ((8080, self.port), (9191, self.grpc), (8000, self.upstream.port), (15000, free_port())):
            assert text.count(f'port_value: {was}}}') == 1
            text = text.replace(f'port_value: {was}}}', f'port_value: {now}}}')
        # Two slashes are stepgate's to refuse here; merging them first is what the file does by itself.
        assert text.count('merge_slashes: true') == 1 and text.count('REJECT_REQUEST\n          # Names') == 1
        text = text.replace('merge_slashes: true', 'merge_slashes: false').replace('REJECT_REQUEST\n          # Names', 'KEEP_UNCHANGED\n          # Names')
        path = os.path.join(self.folder, 'envoy.yaml')
        with open(path, 'w') as file:
            file.write(text)
        envoy = os.environ.get('ENVOY', os.path.join(ROOT, '.tools', 'venv', 'bin', 'envoy'))
        quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
        server = example_server(self.folder, f'127.0.0.1:{self.grpc}', self.diagnostic)
        self.processes = [subprocess.Popen([*server, *flags], **quiet),
                          subprocess.Popen([envoy, '-c', path, '--base-id', str(self.port), '--log-level', 'error'], **quiet)]
        self.wait(lambda: subprocess.run([STEPGATE, 'doctor', '--probe', '--url', f'http://127.0.0.1:{self.diagnostic}']).returncode == 0)
        self.wait(lambda: socket.create_connection(('127.0.0.1', self.port), 1).close() is None)

    def metric(self, name):
        with urllib.request.urlopen(f'http://127.0.0.1:{self.diagnostic}/metrics') as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f'{name} '))

    def wait(self, is_ready):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                if is_ready():
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise SystemExit('the example did not get ready')

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
            process.wait(15)
        self.upstream.stop()
        self.temporary.cleanup()


def problems_of(scenario, ask):
    """What is wrong with the answers to a scenario, which may be asked several times."""
    begin, problems = time.monotonic(), []
    for number in range(scenario.get('repeat', 1)):
        if number:
            time.sleep(0.05)
        try:
            problems += ask(scenario)
        except Exception as error:  # noqa: BLE001: a scenario that breaks is one that fails
            problems.append(repr(error))
    if time.monotonic() - begin > scenario.get('within', 10):
        problems.append('too late')
    return problems


def wanted(name, where):
    """The scenarios of a file that are for this place."""
    return [scenario for scenario in scenarios(name) if where in scenario.get('only', [where])]


def main():
    if sys.argv[1:2] != ['--at']:
        raise SystemExit(__doc__)
    where, url, folder = sys.argv[2:]
    port, failed, listed = urllib.parse.urlsplit(url).port, 0, wanted('base', sys.argv[2])
    for scenario in listed:
        problems = problems_of(scenario, lambda one: through(port, folder, one))
        failed += bool(problems)
        print(f'{"FAIL" if problems else "ok  "}  {where}: {scenario["name"]} {"; ".join(problems)}', flush=True)
    print(f'{len(listed) - failed} passed, {failed} failed')
    sys.exit(bool(failed))


if __name__ == '__main__':
    main()
