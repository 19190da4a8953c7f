"""What stepgate takes: the binary, the memory when idle, the time from start to ready, and the memory under a limit of 32 MiB, with everything that fills
up full: tokens, and decisions whose service is away. Fails beyond the bounds."""
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import bench
import grpc
from stack import AUDIENCE, ISSUER, free_port

BINARY_MB, IDLE_MB, READY_MS, LIMIT = 25, 20, 50, 32 << 20
# Of the limit, for what is no file: the system can drop the pages of the binary and read them again.
ANONYMOUS_MB = 22
TOKENS = 2_000
# A file system of its own says what the limit is.
LIMITED = f'mount -t tmpfs none /sys/fs/cgroup && echo {LIMIT} >/sys/fs/cgroup/memory.max && exec "$@"'
POLICIES = os.path.join(bench.ROOT, 'policies')


class Idle(bench.Bench):
    def start(self):
        self.ready = []
        for _ in range(9):
            self.ready.append(self.stepgate('founding', 'api_policy/allow', POLICIES))
            self.servers['founding'].stop()
        self.stepgate('founding', 'api_policy/allow', POLICIES)
        time.sleep(1)


class Full(bench.Bench):
    under = ('unshare', '--mount', 'sh', '-c', LIMITED, 'sh')

    def start(self):
        self.stepgate('founding', 'api_policy/allow', POLICIES, services={'away': {'url': f'http://127.0.0.1:{free_port()}'}},
                      decision_logs={'service': 'away'})

    def sign(self, n):
        claims = json.dumps({'iss': ISSUER, 'aud': AUDIENCE, 'sub': f'u{n}', 'amr': ['pwd', 'mfa']})
        return subprocess.run([bench.STEPGATE, 'token', 'sign', '--alg', 'RS256', '--key', self.path('key.pem'), claims],
                              check=True, capture_output=True, text=True).stdout.strip()

    def fill(self):
        with ThreadPoolExecutor(4) as pool:
            messages = [bench.message(token)[5:] for token in pool.map(self.sign, range(TOKENS))]
        server, readings = self.servers['founding'], []
        with grpc.insecure_channel(f'127.0.0.1:{server.port}') as channel:
            call = channel.unary_unary(bench.CHECK)
            for at in range(0, len(messages), 100):
                for future in [call.future(message) for message in messages[at:at + 100]]:
                    future.result()
        if server.allowed() != TOKENS or f'stepgate_token_cache_misses_total {TOKENS}' not in server.metrics():
            raise SystemExit('not every token was verified: not the work that was to be measured')
        # Slow enough that the log keeps up, then as fast as it goes.
        for load in (('-n', '16000', '--rps', '500'), ('-n', '30000'), ('-n', '30000')):
            bench.h2load(server.port, self.folder, *load, clients=(8, 1))
            with open(f'/proc/{server.process.pid}/status', encoding='ascii') as file:
                readings.append(int(re.search(r'RssAnon:\s+(\d+)', file.read()).group(1)) / 1024)
        logged = server.logged()
        if not logged.get('buffer_full'):
            raise SystemExit(f'the log did not fill up: {logged}')
        return max(readings), logged


def main():
    found = [('binary', os.path.getsize(bench.STEPGATE) / 1e6, BINARY_MB, 'MB')]
    with tempfile.TemporaryDirectory() as folder:
        idle = Idle(folder)
        found.append(('idle', idle.servers['founding'].rss(), IDLE_MB, 'MB'))
        found.append(('start to ready, median of 9', statistics.median(idle.ready), READY_MS, 'ms'))
        idle.stop()
    if subprocess.run([*Full.under[:-2], LIMITED.split('&& exec')[0]], capture_output=True).returncode:
        print('SKIPPED: no file system can be mounted here, so that no limit can be shown')
    else:
        with tempfile.TemporaryDirectory() as folder:
            full = Full(folder)
            try:
                most, logged = full.fill()
            finally:
                full.stop()
            found.append((f'most beside the binary with a limit of 32 MiB, {logged}', most, ANONYMOUS_MB, 'MiB'))
    for what, got, bound, unit in found:
        print(f'{"ok   " if got < bound else "FAIL "} {what}: {got:.1f} of {bound:.0f} {unit}')
    sys.exit(any(got >= bound for _, got, bound, _ in found))


if __name__ == '__main__':
    main()
