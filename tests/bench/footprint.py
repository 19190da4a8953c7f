"""What stepgate takes: the binary, the memory when idle, the time from start to ready, and the memory under a limit: of 32 MiB with everything that
fills up full (tokens, and decisions whose service is away), of 64 MiB with bodies that a policy makes large values of. Fails beyond the bounds."""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import bench
import grpc
from stack import AUDIENCE, ISSUER, free_port

# What each addition cost is in docs/development.md; the binary may reach 35 MB with everything that is planned.
BINARY_MB, IDLE_MB, READY_MS, LIMIT = 26, 20, 50, 32 << 20
# Of the limit, for what is no file: the system can drop the pages of the binary and read them again.
ANONYMOUS_MB = 22
TOKENS = 2_000
# That of a sidecar in k8s/.
HOSTILE_LIMIT, HOSTILE_ANONYMOUS_MB = 64 << 20, 44


def limited(limit):
    """A file system of its own says what the limit is."""
    return f'mount -t tmpfs none /sys/fs/cgroup && echo {limit} >/sys/fs/cgroup/memory.max && exec "$@"'


POLICIES = os.path.join(bench.ROOT, 'policies')


class Idle(bench.Bench):
    def start(self):
        self.ready, self.idle = [], []
        for number in range(9):
            self.ready.append(self.stepgate('founding', 'api_policy/allow', POLICIES))
            # The system maps more or less of the binary beside the pages that are read: half a megabyte from start to start.
            if number >= 4:
                time.sleep(1)
                self.idle.append(self.servers['founding'].rss())
            if number < 8:
                self.servers['founding'].stop()


class Full(bench.Bench):
    under = ('unshare', '--mount', 'sh', '-c', limited(LIMIT), 'sh')

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
            readings.append(server.anonymous())
        logged = server.logged()
        if not logged.get('buffer_full'):
            raise SystemExit(f'the log did not fill up: {logged}')
        return max(readings), logged


# Bodies of 64 KiB that would be hundreds of MB where built-ins did not charge memory first.
HOSTILE = '''package hostile
default allow := false
allow if {
	body := json.unmarshal(input.attributes.request.http.body)
	count(concat(body.separator, body.tags)) > 0
}
allow if {
	body := json.unmarshal(input.attributes.request.http.body)
	walk(body, [path, value])
	value == path
}
'''
ROOM = 65_000
BODIES = (
    json.dumps({'separator': 's' * (ROOM // 2), 'tags': [''] * (ROOM // 8)}, separators=(',', ':')),
    '{"a":' * 500 + '[' + '1,' * (ROOM // 2 - 1_550) + '1]' + '}' * 500,
    '[' * 400 + '9,' * (ROOM // 2 - 400) + '9' + ']' * 400,
)


class Hostile(bench.Bench):
    under = ('unshare', '--mount', 'sh', '-c', limited(HOSTILE_LIMIT), 'sh')

    def start(self):
        self.stepgate('hostile', 'hostile/allow', self.write('hostile.rego', HOSTILE))

    def attack(self):
        """The most memory while every body comes 40 times, 8 at once. Every answer must be a denial."""
        server, readings, codes = self.servers['hostile'], [], {}
        with grpc.insecure_channel(f'127.0.0.1:{server.port}', options=[('grpc.use_local_subchannel_pool', 1)]) as channel:
            call = channel.unary_unary(bench.CHECK)
            for body in BODIES:
                request = bench.ea.CheckRequest()
                request.attributes.request.http.body = body
                data = request.SerializeToString()
                for _ in range(5):
                    answers = [call.future(data, timeout=10) for _ in range(8)]
                    while not all(answer.done() for answer in answers):
                        readings.append(server.anonymous())
                        time.sleep(0.001)
                    for answer in answers:
                        code = bench.ea.CheckResponse.FromString(answer.result()).status.code
                        codes[code] = codes.get(code, 0) + 1
        if server.process.poll() is not None or codes.get(0):
            raise SystemExit(f'the process ended or allowed: {codes}')
        if 'stepgate_faults_total{reason="evaluation_memory"}' not in server.metrics():
            raise SystemExit('no evaluation needed too much memory: not the attack that was meant')
        return max(readings), codes


def main():
    found = [('binary', os.path.getsize(bench.STEPGATE) / 1e6, BINARY_MB, 'MB')]
    with tempfile.TemporaryDirectory() as folder:
        idle = Idle(folder)
        found.append(('idle, median of 5', statistics.median(idle.idle), IDLE_MB, 'MB'))
        found.append(('start to ready, median of 9', statistics.median(idle.ready), READY_MS, 'ms'))
        idle.stop()
    if subprocess.run([*Full.under[:-2], limited(LIMIT).split('&& exec')[0]], capture_output=True).returncode:
        print('SKIPPED: no file system can be mounted here, so that no limit can be shown')
    else:
        with tempfile.TemporaryDirectory() as folder:
            full = Full(folder)
            try:
                most, logged = full.fill()
            finally:
                full.stop()
            found.append((f'most beside the binary with a limit of 32 MiB, {logged}', most, ANONYMOUS_MB, 'MiB'))
        with tempfile.TemporaryDirectory() as folder:
            hostile = Hostile(folder)
            try:
                most, codes = hostile.attack()
            finally:
                hostile.stop()
            found.append((f'most beside the binary with a limit of 64 MiB under attack, answers {codes}', most, HOSTILE_ANONYMOUS_MB, 'MiB'))
    for what, got, bound, unit in found:
        print(f'{"ok   " if got < bound else "FAIL "} {what}: {got:.1f} of {bound:.0f} {unit}')
    sys.exit(any(got >= bound for _, got, bound, _ in found))


if __name__ == '__main__':
    main()
