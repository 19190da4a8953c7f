"""Load that compares every answer with an oracle, and stepgate asked directly."""
import json
import os
import random
import struct
import tempfile
import threading
import time

from envoy.service.auth.v3 import external_auth_pb2 as ea
import grpc
from harness import CHECK, Sidecar, stepgate, wait

POLICY = 'package app\n\ndefault allow := false\n\nallow if input.parsed_path[0] == "one"\n'
ORACLE = {'/one': True, '/two': False}


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


def frames():
    """What makes a frame of HTTP/2, and the headers of a check."""
    text = lambda text: bytes([len(text)]) + text
    fields = {b':method': b'POST', b':scheme': b'http', b':path': CHECK.encode(), b':authority': b'a', b'content-type': b'application/grpc'}
    headers = b''.join(b'\0' + text(name) + text(value) for name, value in fields.items())
    return lambda kind, flags, stream, data=b'': struct.pack('>I', len(data))[1:] + bytes([kind, flags]) + struct.pack('>I', stream) + data, headers
