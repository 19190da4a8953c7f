"""End-to-end tests through the real Envoy. Closes with a line 'N passed, N failed'."""
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import walk
from envoy.service.auth.v3 import external_auth_pb2 as ea
from stack import STEPGATE, Stack, free_port

CHECK = '/envoy.service.auth.v3.Authorization/Check'
HERE = os.path.dirname(os.path.abspath(__file__))
POLICY = [os.path.join(HERE, 'policy.rego')]
BUFFER = {'with_request_body': {'max_request_bytes': 64, 'allow_partial_message': True}}
RAW_BUFFER = {'with_request_body': {'max_request_bytes': 8 << 20, 'allow_partial_message': True, 'pack_as_bytes': True}}


def eq(got, want, what):
    if got != want:
        raise AssertionError(f'{what}: got {got!r}, want {want!r}')


def the_demo_walk():
    with tempfile.TemporaryDirectory() as folder:
        stack, policy_file = walk.demo_stack(folder)
        with stack:
            for step in walk.walk(stack, policy_file):
                eq(step.problems, [], step.title)


def unix_sockets():
    with tempfile.TemporaryDirectory() as folder:
        for addr in (os.path.join(folder, 'authz.sock'), f'@stepgate-e2e-{os.getpid()}'):
            with Stack(POLICY, addr=addr) as stack:
                eq(stack.request('GET', '/public').status, 200, addr)
                eq(stack.request('GET', '/nothing').status, 403, addr)
        eq(os.listdir(folder), [], 'the socket file is removed on stop')


def headers_change_on_the_way():
    with Stack(POLICY) as stack:
        answer = stack.request('GET', '/headers', [('x-removed', 'secret'), ('x-replaced', 'old'), ('x-kept', '1')])
        eq(answer.status, 200, 'status')
        got = answer.upstream_headers()
        eq([got.get(name) for name in ('x-added', 'x-replaced', 'x-removed', 'x-kept')], [['by-policy'], ['new'], None, ['1']],
           'what the upstream received')
        eq(answer.header('x-response'), ['added'], 'response header')


def two_challenges_on_one_denial():
    with Stack(POLICY) as stack:
        answer = stack.request('GET', '/two-challenges')
        eq(answer.status, 401, 'status')
        eq(answer.header('www-authenticate'), ['Bearer realm="a"', 'DPoP algs="ES256"'], 'challenges')


def cors_before_ext_authz_lets_scripts_read_challenges():
    with open(os.path.join(HERE, '../../docs/providers/mcp.md'), encoding='utf-8') as page:
        snippets = [json.loads(block) for block in re.findall(r'```json\n(.*?)\n```', page.read(), re.S)]
    cors = next(one for one in snippets if one.get('name') == 'envoy.filters.http.cors')
    virtual_host = next(one for one in snippets if 'typed_per_filter_config' in one)
    origin = ('origin', 'https://inspector.example.com')
    with Stack(POLICY, before=[cors], virtual_host=virtual_host) as stack:
        preflight = [('access-control-request-method', 'POST'), ('access-control-request-headers', 'authorization')]
        answer = stack.request('OPTIONS', '/two-challenges', [origin, *preflight])
        eq((answer.status, answer.body), (200, ''), 'a preflight is answered by Envoy')
        eq(answer.header('access-control-allow-origin'), [origin[1]], 'for the origin that is named')
        eq('authorization' in answer.header('access-control-allow-headers')[0], True, 'scripts may send a token')
        answer = stack.request('GET', '/two-challenges', [origin])
        eq(answer.status, 401, 'other requests are checked')
        eq(answer.header('access-control-allow-origin'), [origin[1]], 'scripts may read the denial')
        eq('www-authenticate' in answer.header('access-control-expose-headers')[0], True, 'and its challenge')
        answer = stack.request('OPTIONS', '/two-challenges', [('origin', 'https://evil.example.com'), *preflight])
        eq((answer.status, answer.header('access-control-allow-origin')), (401, []), 'another origin is checked like any request')


def identity_headers_cannot_be_smuggled():
    with Stack(POLICY) as stack:
        forged = [('x-auth-subject', 'root'), ('X_Auth_Subject', 'root'), ('x-auth_subject', 'root'), ('x-auth-tenant', 'root')]
        got = stack.request('GET', '/public', forged).upstream_headers()
        eq({name: values for name, values in got.items() if 'auth' in name}, {}, 'without a token')
        got = stack.request('GET', '/public', forged, token=stack.token()).upstream_headers()
        ours = {name: values for name, values in got.items() if name.startswith(('x-auth', 'x_auth'))}
        eq(ours, {'x-auth-subject': ['alice']}, 'with a token')
        got = stack.request('GET', '/headers', forged).upstream_headers()
        eq({name: values for name, values in got.items() if 'auth' in name}, {}, 'with a decision that has headers')


def the_upstream_is_told_by_a_token_of_our_own():
    with tempfile.TemporaryDirectory() as folder:
        pem, keys = os.path.join(folder, 'own.pem'), None
        subprocess.run([STEPGATE, 'token', 'keygen', '--out', pem], check=True, capture_output=True)
        keys = json.loads(subprocess.run([STEPGATE, 'token', 'jwks', '--key', pem], check=True, capture_output=True).stdout)
        eq([key['kid'] for key in keys['keys']], ['stepgate'], 'the key set')
        own = {'identity_token': {'header': 'x-stepgate-identity', 'issuer': 'https://gate', 'audience': 'upstream', 'key_file': pem,
                                  'claims': {'tenant': 'claims.tenant'}}}
        with Stack(POLICY, own) as stack:
            forged = [('x-stepgate-identity', 'forged'), ('x-stepgate_identity', 'forged')]
            got = stack.request('GET', '/public', forged, token=stack.token(tenant='t1')).upstream_headers()
            eq('x-stepgate_identity' in got, False, 'another spelling')
            eq(len(got['x-stepgate-identity']), 1, 'one token')
            shown = subprocess.run([STEPGATE, 'token', 'decode', got['x-stepgate-identity'][0]], check=True, capture_output=True, text=True).stdout
            eq(all(word in shown for word in ('stepgate-identity+jwt', '"alice"', '"t1"', '"upstream"')), True, shown)
            got = stack.request('GET', '/public', forged).upstream_headers()
            eq([name for name in got if 'identity' in name], [], 'nobody is nobody')


def bodies_are_buffered_and_truncation_is_seen():
    with Stack(POLICY, ext_authz=BUFFER) as stack:
        kind = [('content-type', 'application/json')]
        answer = stack.request('POST', '/body', kind, b'{"a":1}')
        eq(json.loads(answer.body), {'truncated': False, 'parsed': {'a': 1}}, 'small')
        long = json.dumps({'a': 'x' * 100}).encode()
        answer = stack.request('POST', '/body', kind, long)
        eq(json.loads(answer.body), {'truncated': True, 'parsed': None}, 'long')
        chunked = f'{len(long):x}\r\n'.encode() + long + b'\r\n0\r\n\r\n'
        answer = stack.request('POST', '/body', kind + [('transfer-encoding', 'chunked')], chunked)
        eq(json.loads(answer.body), {'truncated': True, 'parsed': None}, 'chunked')
        answer = stack.request('POST', '/body', kind + [('x-envoy-auth-partial-body', 'false')], long)
        eq(json.loads(answer.body)['truncated'], True, 'a forged flag')
        eq(stack.request('POST', '/public', kind, b'{"a":').status, 400, 'malformed')
        eq(stack.request('POST', '/public', kind, b'{}').status, 200, 'well-formed')


def faults_are_denials_even_with_failure_mode_allow():
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


def text_bodies_that_are_not_utf8_are_denied():
    with Stack(POLICY, failure_mode_allow=True, ext_authz=BUFFER) as stack:
        answer = stack.request('POST', '/undefined', body=b'\xff\xfe')
        eq((answer.status, 'undefined_decision' in answer.body), (403, True), f'0xFF in a text body: {answer.body}')


def an_oversize_grpc_header_list_is_answered():
    metadata = [{'key': 'x-big', 'value': '%REQ(x-big)%'}]
    with Stack(POLICY, failure_mode_allow=True, initial_metadata=metadata) as stack:
        eq(stack.request('GET', '/undefined', [('x-big', 'v' * 100_000)]).status, 403, '100 KB of gRPC metadata')


def dry_run_allows_denials_but_not_faults():
    with Stack(POLICY, plugin={'dry-run': True}) as stack:
        answer = stack.request('GET', '/two-challenges', [('x-auth-subject', 'root')])
        eq(answer.status, 200, 'a denial')
        eq(answer.upstream_headers().get('x-auth-subject'), None, 'identity headers are stripped all the same')
        eq(stack.request('GET', '/undefined').status, 403, 'a fault')


def health_follows_the_state():
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


def grpc_health_and_reflection():
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


def check_of(path):
    request = ea.CheckRequest()
    request.attributes.request.http.method, request.attributes.request.http.path = 'GET', path
    return request.SerializeToString()


def messages_that_no_framework_would_decode_are_denied():
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


def a_check_whose_message_is_late_is_answered_during_a_drain():
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


def a_drain_lets_checks_in_flight_finish_and_says_not_serving():
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


def starts(config, *args):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'config.json')
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(config, file)
        command = [STEPGATE, 'run', '--server', '--addr', '127.0.0.1:0', '--diagnostic-addr', '127.0.0.1:0',
                   '--config-file', path, *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def a_bad_start_stops_and_says_why():
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


def tokens_and_secrets_stay_out_of_logs():
    with Stack(POLICY, args=['--log-level', 'debug', '--set', 'decision_logs.console=true']) as stack:
        token = stack.token(secret_claim='canary-in-claims')
        stack.request('GET', f'/undefined?access_token={token}', token=token)
        stack.request('GET', '/undefined', token=token[:-6] + 'aaaaaa')
        time.sleep(0.1)
        log = stack.log('stepgate')
        eq(log.count('"msg":"Decision Log"') >= 2, True, f'both decisions are logged: {log[-2000:]}')
        for part in token.split('.') + ['canary-in-claims']:
            eq(part[:40] in log, False, 'part of a token in the log')


def a_probe_goes_through_a_proxy():
    with Stack(POLICY) as stack:
        def doctor(port):
            return subprocess.run([STEPGATE, 'doctor', '--url', f'http://127.0.0.1:{port}'], capture_output=True, text=True)

        asked = doctor(stack.diagnostic)
        eq((asked.returncode, asked.stdout.startswith('ready'), 'by a fault' in asked.stdout), (0, True, False), asked.stdout + asked.stderr)
        # The policy has no answer to /ready; a proxy that did not take the request at all would answer 426.
        asked = doctor(stack.port)
        eq((asked.returncode, 'answers 403' in asked.stdout), (1, True), asked.stdout + asked.stderr)
        # What went wrong since the start is told, with what to do.
        asked = doctor(stack.diagnostic)
        eq('denied by a fault, undefined_decision: no rule gave a decision' in asked.stdout, True, asked.stdout)


TESTS = [
    the_demo_walk, unix_sockets, headers_change_on_the_way, two_challenges_on_one_denial, cors_before_ext_authz_lets_scripts_read_challenges,
    identity_headers_cannot_be_smuggled, the_upstream_is_told_by_a_token_of_our_own, bodies_are_buffered_and_truncation_is_seen,
    faults_are_denials_even_with_failure_mode_allow, text_bodies_that_are_not_utf8_are_denied,
    an_oversize_grpc_header_list_is_answered, dry_run_allows_denials_but_not_faults, health_follows_the_state,
    grpc_health_and_reflection, messages_that_no_framework_would_decode_are_denied,
    a_check_whose_message_is_late_is_answered_during_a_drain, a_drain_lets_checks_in_flight_finish_and_says_not_serving,
    a_bad_start_stops_and_says_why, tokens_and_secrets_stay_out_of_logs, a_probe_goes_through_a_proxy]


def main():
    wanted = sys.argv[1:]
    passed = failed = 0
    free_port()
    for test in TESTS:
        if wanted and test.__name__ not in wanted:
            continue
        try:
            test()
            passed += 1
            print(f'ok   {test.__name__}')
        except BaseException as error:  # noqa: BLE001 -- a test that ends the process is a failed test
            failed += 1
            print(f'FAIL {test.__name__}')
            if not isinstance(error, AssertionError):
                traceback.print_exc(file=sys.stdout)
            else:
                print(f'     {error}')
    print(f'{passed} passed, {failed} failed')
    sys.exit(1 if failed or not passed else 0)


if __name__ == '__main__':
    main()
