"""A real `stepgate hub` with a directory that provisions users, and the sidecar's part of the configuration."""
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from stack import AUDIENCE, ISSUER, STEPGATE, free_port

TOKEN = '0123456789abcdef0123456789abcdef'
USER = 'urn:ietf:params:scim:schemas:core:2.0:User'
PATCH = 'urn:ietf:params:scim:api:messages:2.0:PatchOp'
# What Okta sends when a user is deactivated.
OKTA_DEACTIVATES = {'schemas': [PATCH], 'Operations': [{'op': 'replace', 'value': {'active': False}}]}

OKTA_ACTIVATES = {'schemas': [PATCH], 'Operations': [{'op': 'replace', 'value': {'active': True}}]}


class Hub:
    """One with a file; `redis` puts its ledger there."""

    def __init__(self, issuer=ISSUER, link=None, rate=100, keys=None, **more):
        self.folder = tempfile.mkdtemp(prefix='stepgate-hub-')
        self.feed, self.public = free_port(), free_port()
        self.socket = os.path.join(self.folder, 'hub.sock')
        with open(os.path.join(self.folder, 'token'), 'w') as file:
            file.write(TOKEN)
        hub = {'addr': f'127.0.0.1:{self.feed}', 'data_dir': os.path.join(self.folder, 'data'), 'admin_socket': f'unix://{self.socket}',
               'public': {'addr': f'127.0.0.1:{self.public}', 'url': f'http://127.0.0.1:{self.public}'},
               'scim': [{'name': 'okta', 'token_files': [os.path.join(self.folder, 'token')], 'issuers': [issuer],
                         'link': link or [{'attribute': 'externalId', 'join': 'sub'}], 'rate': rate}], **more}
        if 'redis' in more:
            del hub['data_dir']
        issuers = [{'issuer': issuer, 'audiences': [AUDIENCE], 'algorithms': ['RS256', 'ES256'],
                    **(keys or {'jwks_url': f'{issuer}/jwks'})}]
        self.config = os.path.join(self.folder, 'hub.json')
        with open(self.config, 'w') as file:
            json.dump({'plugins': {'stepgate': {'hub': hub, 'issuers': issuers}}}, file)
        with open(os.path.join(self.folder, 'hub.log'), 'wb') as log:
            self.process = subprocess.Popen([STEPGATE, 'hub', '-c', self.config], stdout=log, stderr=log)
        end = time.monotonic() + 20
        while not self.listens():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f'the hub did not get ready:\n{self.log()}')
            time.sleep(0.05)

    def listens(self):
        try:
            socket.create_connection(('127.0.0.1', self.public), 1).close()
            return True
        except OSError:
            return False

    def log(self):
        with open(os.path.join(self.folder, 'hub.log'), encoding='utf-8', errors='replace') as file:
            return file.read()

    def sidecar(self):
        """The configuration of a sidecar: members of `services`, and of `plugins.stepgate`."""
        return {'services': {'hub': {'url': f'http://127.0.0.1:{self.feed}'}}}, {'revocation': {'service': 'hub', 'persist': False}}

    @property
    def scim(self):
        return f'http://127.0.0.1:{self.public}/scim/okta/v2'

    def send(self, method, path, body=None):
        """A request of the directory; gives the status and the body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.scim + path, data, {'Content-Type': 'application/scim+json', 'Authorization': f'Bearer {TOKEN}'},
                                         method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read() or b'null')
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b'null')

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
