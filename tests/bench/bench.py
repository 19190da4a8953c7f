"""h2load against a no-op server and stepgate, without and with a decision log, alternating: rates, ratios, latencies, memory."""
import json
import os
import re
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
from stack import AUDIENCE, ISSUER, TARGET, free_port  # noqa: E402

STEPGATE = os.path.join(TARGET, 'release', 'stepgate')
NOOP = os.path.join(TARGET, 'release', 'examples', 'noop')
PAIRS = int(os.environ.get('PAIRS', '7'))
REQUESTS = int(os.environ.get('REQUESTS', '40000'))


def message(token):
    """A check as Envoy sends it: a dozen headers, addresses, a verified RS256 token."""
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
    request.attributes.request.time.GetCurrentTime()
    data = request.SerializeToString()
    return b'\0' + struct.pack('>I', len(data)) + data


def load(port, body, log):
    out = subprocess.run(
        ['h2load', '-n', str(REQUESTS), '-c', '4', '-m', '8', '-t', '1', '-d', body, '--log-file', log,
         '-H', 'content-type: application/grpc', '-H', 'te: trailers',
         f'http://127.0.0.1:{port}/envoy.service.auth.v3.Authorization/Check'], check=True, capture_output=True, text=True).stdout
    rate = float(re.search(r'([\d.]+) req/s', out).group(1))
    good = int(re.search(r'(\d+) succeeded', out).group(1))
    if good != REQUESTS:
        raise SystemExit(f'only {good} of {REQUESTS} succeeded:\n{out}')
    with open(log, encoding='ascii') as file:
        micros = sorted(int(line.split('\t')[2]) for line in file)
    os.remove(log)
    return rate, micros[len(micros) // 2], micros[len(micros) * 99 // 100]


def calm(port, body):
    """2,000 checks a second for five seconds."""
    subprocess.run(['h2load', '-D', '5', '-c', '4', '-m', '8', '-t', '1', '--rps', '500', '-d', body, '-H', 'content-type: application/grpc',
                    '-H', 'te: trailers', f'http://127.0.0.1:{port}/envoy.service.auth.v3.Authorization/Check'], check=True, capture_output=True)


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


def logged(port):
    """What became of decisions in the decision log, by outcome."""
    metrics = urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics').read().decode()
    return {name: int(count) for name, count in re.findall(r'stepgate_decision_logs_total\{outcome="(\w+)"\} (\d+)', metrics)}


def rss(process):
    with open(f'/proc/{process.pid}/status', encoding='ascii') as file:
        return int(re.search(r'VmRSS:\s+(\d+)', file.read()).group(1)) / 1024


def main():
    with tempfile.TemporaryDirectory() as folder:
        def path(name):
            return os.path.join(folder, name)

        keys = subprocess.run([STEPGATE, 'token', 'keygen', '--alg', 'RS256', '--out', path('key.pem')], check=True,
                              capture_output=True, text=True).stdout
        claims = {'iss': ISSUER, 'aud': AUDIENCE, 'sub': 'alice', 'amr': ['pwd', 'mfa']}
        token = subprocess.run([STEPGATE, 'token', 'sign', '--alg', 'RS256', '--key', path('key.pem'), '--lifetime', '3600',
                                json.dumps(claims)], check=True, capture_output=True, text=True).stdout.strip()
        with open(path('body'), 'wb') as file:
            file.write(message(token))
        names = ('noop', 'stepgate', 'logging')
        ports = {name: free_port() for name in names}
        diagnostic = {name: free_port() for name in names}
        sink = ThreadingHTTPServer(('127.0.0.1', 0), Sink)
        threading.Thread(target=sink.serve_forever, daemon=True).start()

        def config(name):
            config = {'plugins': {
                'envoy_ext_authz_grpc': {'addr': f'127.0.0.1:{ports[name]}', 'path': 'api_policy/allow'},
                'stepgate': {'issuers': [{'issuer': ISSUER, 'audiences': [AUDIENCE], 'algorithms': ['RS256'], 'jwks': json.loads(keys)}]}}}
            if name == 'logging':
                config['services'] = {'sink': {'url': f'http://127.0.0.1:{sink.server_port}'}}
                config['decision_logs'] = {'service': 'sink', 'reporting': {'min_delay_seconds': 1, 'max_delay_seconds': 1}}
            with open(path(name), 'w', encoding='ascii') as file:
                json.dump(config, file)
            return path(name)

        with open(path('log'), 'wb') as log:
            servers = {'noop': subprocess.Popen([NOOP, f'127.0.0.1:{ports["noop"]}'], stdout=log, stderr=log)}
            for name in names[1:]:
                servers[name] = subprocess.Popen(
                    [STEPGATE, 'run', '--server', '--addr', '127.0.0.1:0', '--diagnostic-addr', f'127.0.0.1:{diagnostic[name]}',
                     '--config-file', config(name), os.path.join(ROOT, 'policies')], stdout=log, stderr=log)
        try:
            time.sleep(1.5)
            print(f'idle memory: {rss(servers["stepgate"]):.1f} MB')
            results = {name: [] for name in names}
            busy = 0.0
            for _ in range(PAIRS):
                for name in names:
                    began = time.monotonic()
                    results[name].append(load(ports[name], path('body'), path('times')))
                    busy += time.monotonic() - began if name == 'logging' else 0.0
            for name in names[1:]:
                metrics = urllib.request.urlopen(f'http://127.0.0.1:{diagnostic[name]}/metrics').read().decode()
                allowed = int(re.search(r'stepgate_checks_total\{decision="allow"\} (\d+)', metrics).group(1))
                if allowed != PAIRS * REQUESTS:
                    raise SystemExit(f'{name}: {allowed} of {PAIRS * REQUESTS} were allowed: not the work that was to be measured')
            for name, runs in results.items():
                rate, p50, p99 = (statistics.median(column) for column in zip(*runs))
                print(f'{name:9} {rate:9.0f} checks/s   p50 {p50:6.0f} µs   p99 {p99:6.0f} µs')
            for one, other in (('noop', 'stepgate'), ('stepgate', 'logging')):
                ratios = [b[0] / a[0] for a, b in zip(results[one], results[other])]
                spread = f'{min(ratios):.2f} to {max(ratios):.2f}'
                print(f'{other} against {one}, median of {PAIRS} pairs: {statistics.median(ratios):.2f}   ({spread})')
            print(f'memory after load: {rss(servers["stepgate"]):.1f} MB, with the decision log {rss(servers["logging"]):.1f} MB')
            time.sleep(3)
            ends = logged(diagnostic['logging'])
            calm(ports['logging'], path('body'))
            time.sleep(3)
            after = logged(diagnostic['logging'])
            moved = {name: count - ends.get(name, 0) for name, count in after.items() if count != ends.get(name, 0)}
            if set(moved) != {'uploaded'}:
                raise SystemExit(f'at 2,000 checks/s decisions were lost: {moved}')
            print(f'decision log at 2,000 checks/s for 5 s: {moved}')
            total = PAIRS * REQUESTS
            print(f'decision log: {ends.get("uploaded", 0) / busy:.0f} uploaded/s while under load, {ends.get("uploaded", 0) / total:.0%} of '
                  f'{total}; {ends}')
        finally:
            for process in servers.values():
                process.terminate()
                process.wait(10)


if __name__ == '__main__':
    main()
