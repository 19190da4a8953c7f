"""A new bundle of 20,000 keys every second under load: every answer is compared with an oracle; latencies and memory with and without.

Then a bundle of 50 MB: how long it takes to load, and what it weighs. Exits with 1 when a bound is broken."""
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import zlib

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, 'tests', 'e2e'))
os.environ.setdefault('STEPGATE', os.path.join(os.environ.get('CARGO_TARGET_DIR', os.path.join(ROOT, 'target')), 'release', 'stepgate'))
from harness import Server, Sidecar, bundle, wait  # noqa: E402
from stack import TARGET  # noqa: E402

VERIFY = os.path.join(TARGET, 'release', 'examples', 'verify')
SECONDS = int(os.environ.get('SECONDS', '30'))
KEYS = 20_000
POLICY = '''package app
import rego.v1
key := trim_prefix(input.attributes.request.http.path, "/")
decision := {"allowed": data.app.words[key], "headers": {"x-revision": data.app.revision}}
'''


def made(revision, wrong=()):
    words = {f'k{n}': (zlib.crc32(f'{revision}:k{n}'.encode()) % 3 == 0) != (n in wrong) for n in range(KEYS)}
    return bundle({'data.json': {'app': {'words': words, 'revision': revision}}, 'app.rego': POLICY, '.manifest': {'revision': revision, 'roots': ['app']}})


def rss(sidecar, name='VmRSS'):
    with open(f'/proc/{sidecar.process.pid}/status', encoding='ascii') as file:
        return int(re.search(name + r':\s+(\d+)', file.read()).group(1)) / 1024


def load(sidecar, seconds, rate):
    out = subprocess.run([VERIFY, f'127.0.0.1:{sidecar.grpc}', str(seconds), str(rate), '4'], check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def users_of(count):
    """Data like that of real bundles: many small objects."""
    roles = ['admin', 'editor', 'viewer', 'auditor', 'owner']
    return {f'user-{n}': {'roles': random.sample(roles, 2), 'team': f'team-{n % 500}', 'mail': f'user-{n}@example.com',
                          'level': n % 5, 'active': n % 3 == 0} for n in range(count)}


def main():
    broken = []

    def bound(holds, what):
        print(('ok      ' if holds else 'BROKEN  ') + what, flush=True)
        if not holds:
            broken.append(what)

    server = Server()
    bundles = [made(f'r{n}') for n in range(8)]
    server.offer('/b.tar.gz', bundles[0], '"r0"')
    config = {'services': {'s': {'url': server.url}}, 'status': {'console': False, 'service': 's'},
              'bundles': {'b': {'resource': '/b.tar.gz', 'trigger': 'manual'}},
              'plugins': {'envoy_ext_authz_grpc': {'path': 'app/decision'}}}
    with Sidecar(config) as sidecar:
        sidecar.refresh('b')
        wait(lambda: sidecar.get('/health?bundles')[0] == 200, 'the first bundle', sidecar)
        most = load(sidecar, 5, 0)
        rate = most['rate'] // 2
        print(f'saturation {most["rate"]} checks/s with a client that verifies; from here on half of that')
        calm = load(sidecar, 10, rate)
        print(f'without reloads: {calm}')
        steady = rss(sidecar)
        stop, reloads = threading.Event(), []

        def keep_reloading():
            while not stop.is_set():
                at = len(reloads) + 1
                server.offer('/b.tar.gz', bundles[at % len(bundles)], f'"{at}"')
                sidecar.refresh('b')
                reloads.append(at)
                stop.wait(1)

        reloading = threading.Thread(target=keep_reloading)
        reloading.start()
        busy = load(sidecar, SECONDS, rate)
        stop.set()
        reloading.join()
        peak = rss(sidecar, 'VmHWM')
        print(f'with {len(reloads)} reloads: {busy}')
        bound(busy['failed'] == 0 and busy['wrong'] == 0, f'{busy["checks"]} checks, {busy["wrong"]} wrong, {busy["failed"]} failed')
        bound(busy['revisions'] == len(bundles), f'{busy["revisions"]} revisions were seen')
        bound(busy['p99'] <= 2 * calm['p99'], f'p99 {busy["p99"]} µs with reloads, {calm["p99"]} µs without')
        bound(peak <= 2.5 * steady, f'memory peak {peak:.0f} MB, steady {steady:.0f} MB')
        server.offer('/b.tar.gz', made('r0', wrong=range(50)), '"wrong"')
        sidecar.refresh('b')
        wait(lambda: load(sidecar, 1, rate)['wrong'] > 0, 'the seeded wrong decisions', sidecar)
        bound(True, 'decisions that are wrong on purpose are caught')

    # 50 MB of JSON data.
    random.seed(1)
    users = users_of(50_000_000 // len(json.dumps(users_of(1))))
    size = len(json.dumps({'users': users})) / 1e6
    rego = 'package app\nallow := data.users["user-7"].level == 2'
    big = [bundle({'data.json': {'users': users, 'n': n}, 'app.rego': rego, '.manifest': {'revision': f'b{n}'}}) for n in range(3)]
    with Sidecar(config) as sidecar:
        idle = rss(sidecar)
        for at, data in enumerate(big):
            server.offer('/b.tar.gz', data, f'"b{at}"')
            sidecar.refresh('b')
            wait(lambda: sidecar.get('/v1/status')[1]['result'].get('bundles', {}).get('b', {}).get('active_revision') == f'b{at}', f'bundle {at}', sidecar, 120)
            if at == 0:
                timers = sidecar.bundle()['metrics']
                took = {name.removeprefix('timer_').removesuffix('_ns'): round(value / 1e6) for name, value in timers.items()}
                print(f'{size:.0f} MB of JSON data: loaded in {sum(took.values())} ms: {took}')
                time.sleep(1)
                fresh = rss(sidecar)
                # The allocator gives pages back after about ten seconds.
                for _ in range(15):
                    sidecar.check('/x')
                    time.sleep(1)
                first = rss(sidecar)
        time.sleep(1)
        peak, steady = rss(sidecar, 'VmHWM'), rss(sidecar)
        print(f'memory: idle {idle:.0f} MB, right after the first {fresh:.0f} MB, settled {first:.0f} MB ({first / size:.1f} times the JSON), '
              f'after three {steady:.0f} MB')
        bound(peak <= 2.2 * fresh, f'peak while reloading {peak:.0f} MB, {peak / fresh:.2f} times that after the first')
    server.stop()
    return 1 if broken else 0


if __name__ == '__main__':
    sys.exit(main())
