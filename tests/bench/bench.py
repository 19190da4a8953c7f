"""h2load against a no-op server and stepgate in several settings, alternating: rates, ratios, latencies, CPU and memory.

    bench.py [--write]        --write puts the figures into docs/operate/performance.md; ends with 1 where an aim is missed
    PAIRS=7 REQUESTS=40000    how much
    BENCH_PEER=host:port      another ext_authz server, measured in the same run"""
import datetime
import json
import os
import re
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from envoy.service.auth.v3 import external_auth_pb2 as ea

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, 'tests', 'e2e'))
from stack import AUDIENCE, ENVOY, ISSUER, TARGET, free_port  # noqa: E402

STEPGATE = os.path.join(TARGET, 'release', 'stepgate')
NOOP = os.path.join(TARGET, 'release', 'examples', 'noop')
PAIRS = int(os.environ.get('PAIRS', '7'))
REQUESTS = int(os.environ.get('REQUESTS', '40000'))
PEER = os.environ.get('BENCH_PEER')
# Connections and streams for fixed rates: each connection sends on its own beat, so that requests do not come in bursts.
CALM = (32, 1)
CHECK = '/envoy.service.auth.v3.Authorization/Check'
ABOUT = {
    'noop': '(a) a tonic server that decodes the message and always allows',
    'founding': '(b) the example policies, a cached RS256 token',
    'rbac': '(c) roles of 1,000 users in data',
    'rules': '(d) 200 rules, of which the last one matches',
    'logging': '(e) as (b), with every decision sent to a service',
    'peer': 'the server of BENCH_PEER',
}
# The rates that are aimed at, as parts of that of (a).
LEAST = {'founding': 0.85, 'rbac': 0.80, 'rules': 0.50}

RBAC = '''package bench
default allow := false
allow if {
	input.jwt.state == "verified"
	some role in data.users[input.jwt.claims.sub].roles
	some grant in data.grants[role]
	grant.method == input.attributes.request.http.method
	startswith(input.path, grant.prefix)
}
'''


def rules():
    every = [f'allow if {{\n\tinput.attributes.request.http.method == "{"GET" if n % 2 else "POST"}"\n\tinput.parsed_path[1] == "v{n}"\n'
             f'\t"mfa" in input.jwt.claims.amr\n}}\n' for n in range(200, 1, -1)]
    last = 'allow if {\n\tinput.attributes.request.http.method == "GET"\n\tinput.parsed_path[1] == "v1"\n\t"mfa" in input.jwt.claims.amr\n}\n'
    return 'package bench\ndefault allow := false\n' + '\n'.join([*every, last])


def message(token):
    """A check of 2.3 KB as Envoy sends it: headers, a cookie, addresses, a verified RS256 token."""
    request = ea.CheckRequest()
    http = request.attributes.request.http
    http.id, http.method, http.path, http.host = '11162302978245860749', 'GET', '/api/v1/admin/data', 'api.example.com'
    http.scheme, http.protocol = 'https', 'HTTP/2'
    for name, value in {
            ':authority': 'api.example.com', ':method': 'GET', ':path': '/api/v1/admin/data', ':scheme': 'https',
            'accept': 'application/json', 'accept-encoding': 'gzip, br', 'user-agent': 'bench/1.0',
            'x-forwarded-proto': 'https', 'x-forwarded-for': '10.1.2.3', 'x-envoy-internal': 'true',
            'x-request-id': '03248c7d-9de7-433c-8d18-65487c323060', 'authorization': f'Bearer {token}'}.items():
        http.headers[name] = value
    for peer, port in ((request.attributes.source, 54748), (request.attributes.destination, 8443)):
        peer.address.socket_address.address, peer.address.socket_address.port_value = '10.1.2.3', port
    request.attributes.source.principal = 'spiffe://cluster.local/ns/default/sa/sleep'
    request.attributes.request.time.GetCurrentTime()
    http.headers['cookie'] = 'session=' + 'c' * max(0, 2300 - len(request.SerializeToString()) - 28)
    data = request.SerializeToString()
    return b'\0' + struct.pack('>I', len(data)) + data


class Load:
    """What one run of h2load saw."""

    def __init__(self, out, log):
        self.rate = float(re.search(r'([\d.]+) req/s', out).group(1))
        with open(log, encoding='ascii') as file:
            micros = sorted(int(line.split('\t')[2]) for line in file)
        os.remove(log)
        self.count = len(micros)
        self.p50, self.p90, self.p99, self.p999 = (micros[min(len(micros) - 1, int(len(micros) * q))] for q in (.5, .9, .99, .999))


def h2load(port, folder, *args, path=CHECK, grpc=True, headers=(), clients=(4, 8)):
    log = os.path.join(folder, 'times')
    body = ['-d', os.path.join(folder, 'body'), '-H', 'content-type: application/grpc', '-H', 'te: trailers'] if grpc else []
    host, port = port.rsplit(':', 1) if isinstance(port, str) else ('127.0.0.1', port)
    out = subprocess.run(['h2load', '-c', str(clients[0]), '-m', str(clients[1]), '-t', '1', '--log-file', log, *args, *body,
                          *(part for header in headers for part in ('-H', header)), f'http://{host}:{port}{path}'],
                         check=True, capture_output=True, text=True).stdout
    found = re.search(r'(\d+) succeeded, (\d+) failed', out)
    if found is None or found.group(2) != '0' or int(found.group(1)) == 0 or ' 0 5xx' not in out or ' 0 4xx' not in out:
        raise SystemExit(f'not every request succeeded:\n{out}')
    return Load(out, log)


class Sink(BaseHTTPRequestHandler):
    """A service that takes every upload and looks at none."""
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
        self.rfile.read(int(self.headers['content-length']))
        self.send_response(200)
        self.send_header('content-length', '0')
        self.end_headers()

    def log_message(self, *_):
        pass


def is_ready(port):
    try:
        with socket.create_connection(('127.0.0.1', port), 1) as connection:
            connection.sendall(b'GET /ready HTTP/1.0\r\n\r\n')
            return b' 200 ' in connection.recv(100)
    except OSError:
        return False


class Server:
    """A process that is measured; `diagnostic` is 0 for one that is not stepgate."""

    def __init__(self, command, port, diagnostic, log):
        self.port, self.diagnostic, self.cpu = port, diagnostic, 0.0
        self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self):
        self.process.terminate()
        self.process.wait(10)

    def rss(self):
        with open(f'/proc/{self.process.pid}/status', encoding='ascii') as file:
            return int(re.search(r'VmRSS:\s+(\d+)', file.read()).group(1)) / 1024

    def anonymous(self):
        """The memory that is no file, MiB."""
        with open(f'/proc/{self.process.pid}/status', encoding='ascii') as file:
            return int(re.search(r'RssAnon:\s+(\d+)', file.read()).group(1)) / 1024

    def peak(self):
        """The most memory so far, MiB."""
        with open(f'/proc/{self.process.pid}/status', encoding='ascii') as file:
            return int(re.search(r'VmHWM:\s+(\d+)', file.read()).group(1)) / 1024

    def cpu_seconds(self):
        with open(f'/proc/{self.process.pid}/stat', encoding='ascii') as file:
            fields = file.read().rsplit(')', 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    def metrics(self):
        return urllib.request.urlopen(f'http://127.0.0.1:{self.diagnostic}/metrics').read().decode()

    def allowed(self):
        return int(re.search(r'stepgate_checks_total\{decision="allow"\} (\d+)', self.metrics()).group(1))

    def logged(self):
        """What became of decisions in the decision log, by outcome."""
        return {name: int(count) for name, count in re.findall(r'stepgate_decision_logs_total\{outcome="(\w+)"\} (\d+)', self.metrics())}


def envoy_config(admin, ports, authz):
    """A listener for each name: it answers by itself, and asks the server of that name before, if there is one."""
    types = 'type.googleapis.com/envoy.extensions.filters'

    def typed(name, kind, **settings):
        return {'name': name, 'typed_config': {'@type': f'{types}.{kind}', **settings}}

    listeners, clusters = [], []
    for name, port in ports.items():
        filters = [typed('envoy.filters.http.router', 'http.router.v3.Router')]
        if name in authz:
            filters.insert(0, typed('envoy.filters.http.ext_authz', 'http.ext_authz.v3.ExtAuthz', transport_api_version='V3',
                                    grpc_service={'envoy_grpc': {'cluster_name': name}, 'timeout': '1s'}))
            options = 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions'
            clusters.append({'name': name, 'type': 'STATIC', 'load_assignment': {'cluster_name': name, 'endpoints': [{'lb_endpoints': [
                {'endpoint': {'address': {'socket_address': {'address': '127.0.0.1', 'port_value': authz[name]}}}}]}]},
                'typed_extension_protocol_options': {options: {
                    '@type': f'type.googleapis.com/{options}', 'explicit_http_config': {'http2_protocol_options': {}}}}})
        manager = typed('envoy.filters.network.http_connection_manager', 'network.http_connection_manager.v3.HttpConnectionManager',
                        stat_prefix=name, codec_type='HTTP2', http_filters=filters, route_config={'virtual_hosts': [
                            {'name': 'all', 'domains': ['*'], 'routes': [{'match': {'prefix': '/'}, 'direct_response': {'status': 200}}]}]})
        listeners.append({'name': name, 'address': {'socket_address': {'address': '127.0.0.1', 'port_value': port}},
                          'filter_chains': [{'filters': [manager]}]})
    return {'admin': {'address': {'socket_address': {'address': '127.0.0.1', 'port_value': admin}}},
            'static_resources': {'listeners': listeners, 'clusters': clusters}}


class Bench:
    # What the servers run under.
    under = ()

    def __init__(self, folder):
        self.folder, self.lines, self.aims = folder, [], []
        keys = subprocess.run([STEPGATE, 'token', 'keygen', '--alg', 'RS256', '--out', self.path('key.pem')], check=True,
                              capture_output=True, text=True).stdout
        self.keys = json.loads(keys)
        claims = {'iss': ISSUER, 'aud': AUDIENCE, 'sub': 'u7', 'amr': ['pwd', 'mfa']}
        self.token = subprocess.run([STEPGATE, 'token', 'sign', '--alg', 'RS256', '--key', self.path('key.pem'), '--lifetime', '3600',
                                     json.dumps(claims)], check=True, capture_output=True, text=True).stdout.strip()
        body = message(self.token)
        with open(self.path('body'), 'wb') as file:
            file.write(body)
        self.bytes = len(body) - 5
        self.sink = ThreadingHTTPServer(('127.0.0.1', 0), Sink)
        threading.Thread(target=self.sink.serve_forever, daemon=True).start()
        self.log = open(self.path('log'), 'wb')
        self.servers = {}
        self.start()

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), 'w', encoding='utf-8') as file:
            file.write(text if isinstance(text, str) else json.dumps(text))
        return self.path(name)

    def say(self, line=''):
        print(line, flush=True)
        self.lines.append(line)

    def stepgate(self, name, entrypoint, *policies, own=None, **more):
        port, diagnostic = free_port(), free_port()
        config = {'plugins': {
            'envoy_ext_authz_grpc': {'addr': f'127.0.0.1:{port}', 'path': entrypoint},
            'stepgate': {'issuers': [{'issuer': ISSUER, 'audiences': [AUDIENCE], 'algorithms': ['RS256'], 'jwks': self.keys}],
                         **(own or {})}}, **more}
        command = [*self.under, STEPGATE, 'run', '--server', '--addr', '127.0.0.1:0', '--diagnostic-addr', f'127.0.0.1:{diagnostic}', '--config-file',
                   self.write(f'{name}.json', config), *policies]
        began = time.monotonic()
        self.servers[name] = Server(command, port, diagnostic, self.log)
        while not is_ready(diagnostic):
            time.sleep(0.001)
        return (time.monotonic() - began) * 1000

    def start(self):
        port = free_port()
        self.servers['noop'] = Server([NOOP, f'127.0.0.1:{port}'], port, 0, self.log)
        starts = []
        for _ in range(9):
            starts.append(self.stepgate('founding', 'api_policy/allow', os.path.join(ROOT, 'policies')))
            self.servers['founding'].stop()
        ready = statistics.median(starts)
        self.stepgate('founding', 'api_policy/allow', os.path.join(ROOT, 'policies'))
        users = {f'u{n}': {'roles': [f'r{n % 20}', f'r{(n + 7) % 20}']} for n in range(1000)}
        grants = {f'r{n}': [{'method': method, 'prefix': f'/api/v{n % 3}'} for method in ('GET', 'POST')] for n in range(20)}
        self.stepgate('rbac', 'bench/allow', self.write('rbac.rego', RBAC), self.write('rbac-data.json', {'users': users, 'grants': grants}))
        self.stepgate('rules', 'bench/allow', self.write('rules.rego', rules()))
        self.stepgate('logging', 'api_policy/allow', os.path.join(ROOT, 'policies'),
                      services={'sink': {'url': f'http://127.0.0.1:{self.sink.server_port}'}},
                      decision_logs={'service': 'sink', 'reporting': {'min_delay_seconds': 1, 'max_delay_seconds': 1}})
        self.names = list(self.servers)
        time.sleep(1)
        self.say(f'Message: {self.bytes} bytes. Binary: {os.path.getsize(STEPGATE) / 1e6:.1f} MB. Start to ready: {ready:.0f} ms (median of 9). '
                 f'Idle memory: {self.servers["founding"].rss():.1f} MB.')

    def closed_loop(self):
        results = {name: [] for name in [*self.names, *(['peer'] if PEER else [])]}
        for _ in range(PAIRS):
            for name in results:
                server = self.servers.get(name)
                before = server.cpu_seconds() if server else 0.0
                results[name].append(h2load(server.port if server else PEER, self.folder, '-n', str(REQUESTS)))
                if server:
                    server.cpu += server.cpu_seconds() - before
        for name in self.names[1:]:
            if (allowed := self.servers[name].allowed()) != PAIRS * REQUESTS:
                raise SystemExit(f'{name}: {allowed} of {PAIRS * REQUESTS} were allowed: not the work that was to be measured')
        median = lambda name, member: statistics.median(getattr(run, member) for run in results[name])
        self.say(f'\nClosed loop: 4 connections of 8 streams, {PAIRS} alternating runs of {REQUESTS} checks, medians.\n')
        self.say('| | checks/s | of (a) | p50 µs | p90 | p99 | p99.9 | CPU s per 10,000 | memory MB |')
        self.say('| --- | --- | --- | --- | --- | --- | --- | --- | --- |')
        for name in results:
            server = self.servers.get(name)
            ratios = [own.rate / first.rate for own, first in zip(results[name], results['noop'])]
            if name in LEAST:
                self.aim(f'{ABOUT[name].split()[0]} of (a)', statistics.median(ratios), LEAST[name])
            spread = f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
            own = f'{server.cpu * 10_000 / (PAIRS * REQUESTS):.3f} | {server.rss():.1f}' if server else ' | '
            times = ' | '.join(f'{median(name, member):.0f}' for member in ('p50', 'p90', 'p99', 'p999'))
            self.say(f'| {ABOUT[name]} | {median(name, "rate"):.0f} | {spread} | {times} | {own} |')
        ratios = [own.rate / first.rate for own, first in zip(results['logging'], results['founding'])]
        total = PAIRS * REQUESTS
        time.sleep(3)
        ends = self.servers['logging'].logged()
        lost = total - ends.get('uploaded', 0)
        self.aim('(e) of (b)', statistics.median(ratios), 0.85)
        self.say(f'\n(e) against (b): {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); of {total} decisions '
                 f'{lost / total:.0%} were dropped and counted under full load: logging may take a tenth of the processors.')
        return {name: median(name, 'rate') for name in results}

    def calm(self):
        """2,000 decisions a second must all be uploaded."""
        server = self.servers['logging']
        before = server.logged()
        h2load(server.port, self.folder, '-D', '5', '--rps', '500')
        time.sleep(3)
        moved = {name: count - before.get(name, 0) for name, count in server.logged().items() if count != before.get(name, 0)}
        if set(moved) != {'uploaded'}:
            raise SystemExit(f'at 2,000 checks/s decisions were lost: {moved}')
        self.say(f'At 2,000 checks/s every decision was uploaded: {moved["uploaded"]}.')

    def fixed_rate(self, rates):
        per_client = int(rates['noop'] / 2 / CALM[0])
        self.say(f'\nFixed rate: {per_client * CALM[0]} checks/s, half of what (a) can do, for 5 s.\n')
        self.say('| | p50 µs | p90 | p99 | p99.9 | CPU s per 10,000 | memory MB |')
        self.say('| --- | --- | --- | --- | --- | --- | --- |')
        for name in [*self.names, *(['peer'] if PEER else [])]:
            server = self.servers.get(name)
            before = server.cpu_seconds() if server else 0.0
            run = h2load(server.port if server else PEER, self.folder, '-D', '5', '--rps', str(per_client), clients=CALM)
            own = f'{(server.cpu_seconds() - before) * 10_000 / run.count:.3f} | {server.rss():.1f}' if server else ' | '
            self.say(f'| {ABOUT[name]} | {run.p50} | {run.p90} | {run.p99} | {run.p999} | {own} |')

    def through_envoy(self):
        listeners = {name: free_port() for name in ('plain', 'noop', 'founding')}
        authz = {name: self.servers[name].port for name in ('noop', 'founding')}
        config = self.write('envoy.json', envoy_config(free_port(), listeners, authz))
        envoy = subprocess.Popen([ENVOY, '-c', config, '--concurrency', '1', '--log-level', 'error', '--base-id', str(listeners['plain'])],
                                 stdout=self.log, stderr=self.log)
        about = {'plain': 'Envoy alone', 'noop': 'Envoy that asks (a)', 'founding': '(f) Envoy that asks (b)'}
        ask = lambda name, *args, **more: h2load(listeners[name], self.folder, *args, path='/api/v1/admin/data', grpc=False,
                                                 headers=[f'authorization: Bearer {self.token}'], **more)
        try:
            time.sleep(2)
            rates = {name: [] for name in listeners}
            for _ in range(3):
                for name in listeners:
                    rates[name].append(ask(name, '-n', str(REQUESTS // 2)).rate)
            rate = {name: statistics.median(found) for name, found in rates.items()}
            per_client = int(rate['noop'] / 2 / CALM[0])
            runs = {name: [] for name in listeners}
            for _ in range(3):
                for name in listeners:
                    runs[name].append(ask(name, '-D', '4', '--rps', str(per_client), clients=CALM))
            self.say(f'\nThrough the real Envoy with one worker. Latencies at {per_client * CALM[0]} requests/s, half of what Envoy with (a) can do, '
                     'medians of three runs of 4 s.\n')
            self.say('| | requests/s at most | p50 µs | p90 | p99 | p99.9 |')
            self.say('| --- | --- | --- | --- | --- | --- |')
            median = lambda name, member: statistics.median(getattr(run, member) for run in runs[name])
            for name in listeners:
                times = ' | '.join(f'{median(name, member):.0f}' for member in ('p50', 'p90', 'p99', 'p999'))
                self.say(f'| {about[name]} | {rate[name]:.0f} | {times} |')
            added = (median('founding', 'p99') - median('noop', 'p99')) / 1000
            self.aim('p99 added through Envoy, ms', added, 0.5, most=True)
            self.say(f'\nAdded to the p99 of Envoy that asks (a): {added:.2f} ms.')
        finally:
            envoy.terminate()
            envoy.wait(10)

    def aim(self, what, got, bound, most=False):
        self.aims.append((what, got, bound, got <= bound if most else got >= bound))

    def stop(self):
        for server in self.servers.values():
            server.stop()


def machine():
    with open('/proc/cpuinfo', encoding='utf-8') as file:
        model = re.search(r'model name\s+: (.*)', file.read()).group(1)
    kernel = '.'.join(os.uname().release.split('.')[:2])
    return f'{os.cpu_count()} processors ({model}), Linux {kernel}; server and load share them'


def main():
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder)
        try:
            rates = bench.closed_loop()
            bench.calm()
            bench.fixed_rate(rates)
            bench.through_envoy()
        finally:
            bench.stop()
        missed = [f'{what}: {got:.2f}, and {bound} is aimed at' for what, got, bound, is_met in bench.aims if not is_met]
        bench.say('\n' + ('Missed: ' + '; '.join(missed) if missed else 'Every aim is met: ' + ', '.join(
            f'{what} {got:.2f} ({bound})' for what, got, bound, _ in bench.aims)) + '.')
    if '--write' in sys.argv[1:]:
        revision = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        with open(os.path.join(ROOT, 'docs', 'operate', 'performance.md'), 'w', encoding='utf-8') as out:
            out.write('# Performance\n\nWritten by `make bench`. Compare ratios, not rates: machines differ, and the no-op server runs in the same minutes.\n'
                      f'`BENCH_PEER=host:port make bench` measures another ext_authz server beside it.\n\n{datetime.date.today()}, after {revision}, on '
                      f'{machine()}.\n\n' + '\n'.join(bench.lines) + '\n')
    sys.exit(bool(missed))


if __name__ == '__main__':
    main()
