"""TLS of the listeners: certificates, roots, rejected connections."""
import os
import resource
import shutil
import socket
import ssl
import tempfile
import time

from expect import eq
from harness import Sidecar, ask_over_tls, certificates, policy_file, stepgate
from stack import free_port


def test_the_api_speaks_tls_and_knows_clients_by_their_certificates() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, certificate, key = certificates(folder)
        file = policy_file(folder, 'package system.authz\nimport rego.v1\ndefault allow := false\n'
                           'allow if {\n input.identity == "CN=localhost"\n input.client_certificates[0].Subject.CommonName == "localhost"\n}\n')
        flags = ['--tls-cert-file', certificate, '--tls-private-key-file', key, '--tls-ca-cert-file', root]

        ask = lambda port, own: ask_over_tls(port, root, (certificate, key) if own else None, '/v1/data')

        with Sidecar({}, files=[file], args=[*flags, '--authentication=tls', '--authorization=basic']) as sidecar:
            eq((ask(sidecar.api, True), ask(sidecar.api, False)), (200, 0), 'only with a certificate')
            eq(sidecar.get('/health')[0], 0, 'no plain HTTP')
            eq(sidecar.get('/health', port=sidecar.diagnostic)[0], 200, 'probes need none')
            # Somebody who never finishes a handshake holds nobody up.
            idle = [socket.create_connection(('localhost', sidecar.api)) for _ in range(300)]
            eq(ask(sidecar.api, True), 200, 'beside slow handshakes')
            for one in idle:
                one.close()
            # Everybody who is not served is counted by reason, and told now and then.
            sidecar.settled(lambda: all(f'stepgate_refused_connections_total{{listener="http",reason="{reason}"}}' in sidecar.get('/metrics', port=sidecar.diagnostic)[1].decode()
                                        for reason in ('no_certificate', 'client_closed')), 'who was not served')
        with Sidecar({}, files=[file], args=flags) as sidecar:
            eq((ask(sidecar.api, True), ask(sidecar.api, False)), (200, 200), 'a certificate is not asked for')
            before = ssl.get_server_certificate(('localhost', sidecar.api))
            certificates(folder)
            sidecar.settled(lambda: ssl.get_server_certificate(('localhost', sidecar.api)) != before, 'the new certificate')
        # As in OPA: an address without scheme is served over TLS, one with `http://` is not, whoever asks there for certificates.
        probes, plain = free_port(), free_port()
        more = [*flags, '--authentication=tls', '--diagnostic-addr', f'127.0.0.1:{probes}', '--addr', f'http://0.0.0.0:{plain}']
        served = {'plugins': {'envoy_ext_authz_grpc': {'path': 'system/authz/allow'}}}
        with Sidecar(served, files=[file], args=more) as sidecar:
            eq((ask(probes, True), ask(probes, False)), (404, 0), 'probes over TLS')
            doctor = lambda *args: stepgate('doctor', '--url', f'https://localhost:{probes}', *args, check=False)
            trusted, own = ('--tls-ca-cert-file', root), ('--tls-cert-file', certificate, '--tls-private-key-file', key)
            known, stranger, careless = doctor(*trusted, *own), doctor(*trusted), doctor()
            eq((known.returncode, 'takes checks' in known.stdout), (0, True), known.stdout + known.stderr)
            eq((stranger.returncode, careless.returncode), (1, 1), 'doctor without a certificate, or without roots')
            eq('--tls-ca-cert-file' in careless.stderr, True, careless.stderr)
            eq(doctor('--probe', *trusted, *own).returncode, 0, 'a probe over TLS')
            eq(doctor('--probe', '--tls-ca-cert-file', certificate, *own).returncode, 1, 'a probe of somebody who is not trusted')
            eq((sidecar.get('/v1/data', port=plain)[0], sidecar.get('/health', port=plain)[0]), (401, 200), 'plain, where nobody is known')
            eq(ask(sidecar.api, True), 200, 'over TLS somebody is')
        for args, why in ((['--authentication=tls'], 'needs --tls-cert-file'), (['--diagnostic-addr', 'https://127.0.0.1:0'], 'needs --tls-cert-file')):
            refused = stepgate('run', '--server', *args, check=False)
            eq((refused.returncode, why in refused.stderr), (1, True), refused.stderr)


def test_certificates_and_roots_are_read_again_each_for_itself() -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        root, certificate, key = certificates(folder)
        root_b, certificate_b, key_b = certificates(other)
        file = policy_file(folder, 'package app\nallow := true\n')
        trusted = os.path.join(folder, 'trusted.pem')
        shutil.copy(root, trusted)
        flags = ['--tls-cert-file', certificate, '--tls-private-key-file', key, '--tls-ca-cert-file', trusted, '--authentication=tls']

        ask = lambda port, own: ask_over_tls(port, root, own, '/health')

        shutil.copy(key, os.path.join(other, 'mine'))
        mine = (shutil.copy(certificate, os.path.join(other, 'mine.pem')), os.path.join(other, 'mine'))
        with Sidecar({}, files=[file], args=flags) as sidecar:
            eq((ask(sidecar.api, mine), ask(sidecar.api, (certificate_b, key_b))), (200, 0), 'before')
            with open(key, 'w') as f:
                f.write('half a key')
            # Told although nobody connects.
            sidecar.settled(lambda: b'stepgate_certificate_usable{listener="http",part="certificate"} 0' in sidecar.get('/metrics', port=sidecar.diagnostic)[1],
                            'a key that cannot be used')
            signs = stepgate('doctor', '--url', f'http://127.0.0.1:{sidecar.diagnostic}').stdout
            eq('cannot be used, and the old one stays' in signs, True, signs)
            # The root is replaced, with the moment of modification of the old one.
            times = os.stat(trusted)
            shutil.copy(root_b, f'{trusted}.new')
            os.utime(f'{trusted}.new', ns=(times.st_atime_ns, times.st_mtime_ns))
            os.rename(f'{trusted}.new', trusted)
            sidecar.settled(lambda: ask(sidecar.api, (certificate_b, key_b)) == 200, 'the new root')
            eq(ask(sidecar.api, mine), 0, 'the old root is gone, although the key cannot be used')
            shutil.copy(mine[1], key)
            sidecar.settled(lambda: b'stepgate_certificate_usable{listener="http",part="certificate"} 1' in sidecar.get('/metrics', port=sidecar.diagnostic)[1],
                            'a key that fits again')
            # A change that comes while nothing can be opened is read once it can be.
            most = resource.prlimit(sidecar.process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(sidecar.process.pid, resource.RLIMIT_NOFILE, (3, most[1]))
            shutil.copy(root, f'{trusted}.new')
            os.rename(f'{trusted}.new', trusted)
            time.sleep(2.5)
            resource.prlimit(sidecar.process.pid, resource.RLIMIT_NOFILE, most)
            sidecar.settled(lambda: ask(sidecar.api, mine) == 200, 'the root that could not be read')
            eq('cannot be used; the old ones stay' in sidecar.lines(), True, 'that was told')


def test_whoever_is_not_served_holds_no_place_and_is_told() -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        root, certificate, key = certificates(folder)
        stranger = certificates(other)[0]
        plugins = {'stepgate': {'grpc': {'tls': {'cert_file': certificate, 'private_key_file': key}}, 'limits': {'connections': 5}}}

        def speaks(port, trusted):
            context = ssl.create_default_context(cafile=trusted)
            context.set_alpn_protocols(['h2'])
            with socket.create_connection(('localhost', port), 5) as plain, context.wrap_socket(plain, server_hostname='localhost') as secured:
                secured.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes.fromhex('000000040000000000'))
                return secured.recv(9)[3:4] == b'\x04'

        def counted(sidecar, reason):
            return f'stepgate_refused_connections_total{{listener="grpc",reason="{reason}"}}'.encode() in sidecar.get('/metrics', port=sidecar.diagnostic)[1]

        def refused(port, trusted):
            try:
                return not speaks(port, trusted)
            except OSError:
                return True

        file = policy_file(folder, 'package app\nallow := true\n')
        with Sidecar({'plugins': plugins}, files=[file]) as sidecar:
            silent = [socket.create_connection(('localhost', sidecar.grpc)) for _ in range(600)]
            for _ in range(3):
                eq(speaks(sidecar.grpc, root), True, 'beside handshakes that do not go on')
            sidecar.settled(lambda: counted(sidecar, 'handshakes'), 'the handshakes that made room')
            for one in silent:
                one.close()
            eq(refused(sidecar.grpc, stranger), True, 'a client that does not trust us')
            sidecar.settled(lambda: counted(sidecar, 'client_rejected_certificate'), 'its reason')
            # Nor do they hold up a stop: the grace period is for checks.
            silent = [socket.create_connection(('localhost', sidecar.grpc)) for _ in range(3)]
            began = time.monotonic()
            sidecar.process.terminate()
            eq((sidecar.process.wait(10), time.monotonic() - began < 5), (0, True), 'a stop during handshakes')
        with Sidecar({}, files=[file]) as sidecar:
            eq(refused(sidecar.grpc, root), True, 'TLS to a plain listener')
            sidecar.settled(lambda: counted(sidecar, 'protocol'), 'its reason')
            sidecar.settled(lambda: 'TLS is spoken to a listener that has none' in sidecar.lines(), 'the log')
