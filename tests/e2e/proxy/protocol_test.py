"""Messages, health, drain and starts, as Envoy sees them."""
import json
import os
import socket
import subprocess
import tempfile
import threading
import time

from envoy.service.auth.v3 import external_auth_pb2 as ea
from expect import eq
from stack import STEPGATE, Stack, free_port

CHECK = '/envoy.service.auth.v3.Authorization/Check'
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
POLICY = [os.path.join(HERE, 'policy.rego')]
BUFFER = {'with_request_body': {'max_request_bytes': 64, 'allow_partial_message': True}}
RAW_BUFFER = {'with_request_body': {'max_request_bytes': 8 << 20, 'allow_partial_message': True, 'pack_as_bytes': True}}


def check_of(path):
    request = ea.CheckRequest()
    request.attributes.request.http.method, request.attributes.request.http.path = 'GET', path
    return request.SerializeToString()


def starts(config, *args):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'config.json')
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(config, file)
        command = [STEPGATE, 'run', '--server', '--addr', '127.0.0.1:0', '--diagnostic-addr', '127.0.0.1:0',
                   '--config-file', path, *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def test_faults_are_denials_even_with_failure_mode_allow() -> None:
    with Stack(POLICY, failure_mode_allow=True, ext_authz=RAW_BUFFER) as stack:
        eq(stack.request('GET', '/public').status, 200, 'an allowed request')
        eq(stack.request('GET', '/undefined').status, 403, 'undefined')
        eq(stack.request('GET', '/nonsense').status, 403, 'not a decision')
        eq(stack.request('GET', '/panic').status, 503, 'panic')
        eq(stack.request('GET', '/slow').status, 503, 'over budget')
        eq(stack.request('GET', '/public').status, 200, 'after a panic')
        answer = stack.request('POST', '/public', body=b'x' * (5 << 20))
        eq((answer.status, 'request_too_large' in answer.body), (413, True), f'five MiB: {answer.body[:200]}')
        eq(stack.request('POST', '/public', body=b'x' * (3 << 20)).status, 200, 'three MiB')
        status, head = stack.raw(b'GET /\xff HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n')
        eq((status, 'server: envoy' in head), (400, True), '0xFF in the path, which Envoy itself refuses')
        status, _ = stack.raw(b'GET /undefined HTTP/1.1\r\nhost: a\r\nx-odd: \xff\xfe\r\ncookie: \x80\r\nconnection: close\r\n\r\n')
        eq(status, 403, '0xFF in headers')
        kind = [('content-type', 'application/json')]
        eq(stack.request('POST', '/undefined', kind, b'{"a":"\xff"}').status, 403, '0xFF in a body')
        eq(stack.request('POST', '/undefined', kind, b'\xff').status, 400, '0xFF as a body')
        eq(stack.request('GET', '/undefined', [(f'x-{n}', 'v' * 400) for n in range(500)]).status, 403, '200 KiB of headers')


def test_text_bodies_that_are_not_utf8_are_denied() -> None:
    with Stack(POLICY, failure_mode_allow=True, ext_authz=BUFFER) as stack:
        answer = stack.request('POST', '/undefined', body=b'\xff\xfe')
        eq((answer.status, 'undefined_decision' in answer.body), (403, True), f'0xFF in a text body: {answer.body}')


def test_an_oversize_grpc_header_list_is_answered() -> None:
    metadata = [{'key': 'x-big', 'value': '%REQ(x-big)%'}]
    with Stack(POLICY, failure_mode_allow=True, initial_metadata=metadata) as stack:
        eq(stack.request('GET', '/undefined', [('x-big', 'v' * 100_000)]).status, 403, '100 KB of gRPC metadata')


def test_health_follows_the_state() -> None:
    with Stack(POLICY) as stack:
        for path, status in (('/health', 200), ('/health?plugins', 200), ('/health?bundles', 200), ('/live', 200),
                             ('/ready', 200), ('/v1/data', 404)):
            eq(stack.diagnose(path).status, status, path)
        stack.request('GET', '/public')
        text = stack.diagnose('/metrics').body
        eq('stepgate_checks_total{decision="allow"} 1' in text, True, 'a counter')
        name, process = stack.processes[0]
        process.terminate()
        eq(process.wait(12), 0, f'{name} ends with 0 on SIGTERM')


def test_grpc_health_and_reflection() -> None:
    import grpc
    port = free_port()
    raw = {'request_serializer': bytes, 'response_deserializer': bytes}
    for reflection in (True, False):
        with Stack(POLICY, addr=port, plugin={'enable-reflection': reflection}):
            with grpc.insecure_channel(f'127.0.0.1:{port}') as channel:
                check = channel.unary_unary('/grpc.health.v1.Health/Check', **raw)
                name = b'envoy.service.auth.v3.Authorization'
                for service in (b'', bytes([10, len(name)]) + name):
                    eq(check(service, timeout=5), b'\x08\x01', f'SERVING for {service!r}')
                info = channel.stream_stream('/grpc.reflection.v1.ServerReflection/ServerReflectionInfo', **raw)
                try:
                    # list_services: field 7, any text
                    answer = b''.join(info(iter([b'\x3a\x01*']), timeout=5))
                    eq((reflection, b'envoy.service.auth.v3.Authorization' in answer), (True, True), 'reflection')
                except grpc.RpcError as error:
                    eq((reflection, error.code()), (False, grpc.StatusCode.UNIMPLEMENTED), 'without reflection')


def test_messages_that_no_framework_would_decode_are_denied() -> None:
    import grpc
    port = free_port()
    with Stack(POLICY, addr=port):
        with grpc.insecure_channel(f'127.0.0.1:{port}') as channel:
            check = channel.unary_unary(CHECK, request_serializer=bytes, response_deserializer=ea.CheckResponse.FromString)
            good = check_of('/public')
            eq(check(good, timeout=5).status.code, 0, 'a good message')
            for what, message in (('garbage', b'\xff' * 9), ('0xFF in the path', good.replace(b'/pub', b'/\xffub')),
                                  ('half a message', good[:-3]), ('no attributes', b''), ('zeros', bytes(4000))):
                answer = check(message, timeout=5)
                eq((answer.status.code != 0, answer.denied_response.status.code in (400, 403)), (True, True), f'{what}: {answer}')
            for code in ('gzip', 'deflate'):
                packed = channel.unary_unary(CHECK, request_serializer=bytes, response_deserializer=ea.CheckResponse.FromString)
                how = {'gzip': grpc.Compression.Gzip, 'deflate': grpc.Compression.Deflate}[code]
                answer = packed(check_of('/public' + 'c' * 2000), timeout=5, compression=how)
                eq(answer.denied_response.status.code, 400, f'a message packed by {code}')
            eq(check(good, timeout=5).status.code, 0, 'a good message afterwards')


def test_a_check_whose_message_is_late_is_answered_during_a_drain() -> None:
    import grpc
    port = free_port()
    with Stack(POLICY, addr=port, stepgate={'limits': {'check_timeout': '8s'}}) as stack:
        with grpc.insecure_channel(f'127.0.0.1:{port}') as channel:
            check = channel.stream_unary(CHECK, request_serializer=bytes, response_deserializer=ea.CheckResponse.FromString)
            go, begun = threading.Event(), threading.Event()

            def late():
                begun.set()
                go.wait(10)
                yield check_of('/public')

            answer = check.future(late(), timeout=10)
            begun.wait(5)
            time.sleep(0.3)
            _, process = stack.processes[0]
            process.terminate()
            time.sleep(0.5)
            eq(process.poll(), None, 'it waits for the check')
            go.set()
            eq(answer.result().status.code, 0, 'the answer')
        eq(process.wait(12), 0, 'exit code')


def test_a_drain_lets_checks_in_flight_finish_and_says_not_serving() -> None:
    import grpc
    port = free_port()
    raw = {'request_serializer': bytes, 'response_deserializer': bytes}
    with Stack(POLICY, addr=port, args=['--shutdown-wait-period', '1']) as stack:
        with grpc.insecure_channel(f'127.0.0.1:{port}') as channel:
            check = channel.unary_unary('/grpc.health.v1.Health/Check', **raw)
            eq(check(b'', timeout=5), b'\x08\x01', 'SERVING')
            _, process = stack.processes[0]
            process.terminate()
            end = time.monotonic() + 5
            while check(b'', timeout=5) != b'\x08\x02':
                if time.monotonic() > end:
                    raise AssertionError('it never said NOT_SERVING')
            eq(stack.request('GET', '/public').status, 200, 'a check during the wait period')
            eq(stack.diagnose('/ready').status, 503, 'readiness')
        eq(process.wait(12), 0, 'exit code')


def test_a_bad_start_stops_and_says_why() -> None:
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = starts({'plugins': {'envoy_ext_authz_grpc': {'addr': f'127.0.0.1:{port}'}}}, *POLICY)
        eq((ended.returncode, f'127.0.0.1:{port}' in ended.stderr), (1, True), f'a taken port: {ended.stderr}')
    for what, config, args, words in (
            ('a bad address', {'plugins': {'envoy_ext_authz_grpc': {'addr': 'nowhere'}}}, POLICY, 'nowhere'),
            ('an empty list of issuers', {'plugins': {'stepgate': {'issuers': []}}}, POLICY, 'issuers'),
            ('a refused flag', {}, ['--tls-cipher-suites', 'x', *POLICY], '--tls-cipher-suites is refused'),
            ('a verification key that is none', {}, ['-b', '--verification-key', 'x', *POLICY], '--verification-key'),
            ('a bundle that is none', {}, ['-b', __file__], 'a bundle is a gzipped tar'),
            ('a missing file', {}, ['/nonexistent.rego'], '/nonexistent.rego')):
        ended = starts(config, *args)
        eq((ended.returncode, words in ended.stderr), (1, True), f'{what}: {ended.stderr}')
