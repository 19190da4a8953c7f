"""Load without end: 10,000 different tokens, then as many checks as come in SOAK_SECONDS (600). Fails when memory goes beyond SOAK_MB (60) or
grows over the last half."""
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import bench
import grpc
from stack import AUDIENCE, ISSUER

SECONDS, MOST_MB, TOKENS = int(os.environ.get('SOAK_SECONDS', '600')), float(os.environ.get('SOAK_MB', '60')), 10_000
# What may be noise between two readings.
NOISE_MB = 3


class Alone(bench.Bench):
    def start(self):
        self.stepgate('founding', 'api_policy/allow', os.path.join(bench.ROOT, 'policies'))

    def sign(self, n):
        claims = json.dumps({'iss': ISSUER, 'aud': AUDIENCE, 'sub': f'u{n}', 'amr': ['pwd', 'mfa']})
        return subprocess.run([bench.STEPGATE, 'token', 'sign', '--alg', 'RS256', '--key', self.path('key.pem'), '--lifetime', '7200', claims],
                              check=True, capture_output=True, text=True).stdout.strip()


def ask(channel, messages):
    call = channel.unary_unary(bench.CHECK)
    for at in range(0, len(messages), 200):
        for future in [call.future(message) for message in messages[at:at + 200]]:
            future.result()


def main():
    with tempfile.TemporaryDirectory() as folder:
        alone = Alone(folder)
        server = alone.servers['founding']
        try:
            print(f'idle: {server.rss():.1f} MB', flush=True)
            with ThreadPoolExecutor(4) as pool:
                messages = [bench.message(token)[5:] for token in pool.map(alone.sign, range(TOKENS))]
            readings, end = [], time.monotonic() + SECONDS
            with grpc.insecure_channel(f'127.0.0.1:{server.port}') as channel:
                while time.monotonic() < end:
                    ask(channel, messages)
                    bench.h2load(server.port, folder, '-n', '200000')
                    readings.append(server.rss())
                    print(f'{server.allowed():>10} checks: {readings[-1]:.1f} MB', flush=True)
        finally:
            alone.stop()
    half = readings[len(readings) // 2:]
    quarter = max(1, len(half) // 2)
    growth = sum(half[-quarter:]) / quarter - sum(half[:quarter]) / quarter
    print(f'most {max(readings):.1f} MB of {MOST_MB:.0f}; over the last half {growth:+.1f} MB')
    sys.exit(max(readings) > MOST_MB or growth > NOISE_MB)


if __name__ == '__main__':
    main()
