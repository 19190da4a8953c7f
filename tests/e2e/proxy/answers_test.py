"""The answers of stepgate through the real Envoy."""
import json
import os
import re
import subprocess
import tempfile

from expect import eq
from harness import wait
from stack import STEPGATE, Stack
import walk

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
POLICY = [os.path.join(HERE, 'policy.rego')]
BUFFER = {'with_request_body': {'max_request_bytes': 64, 'allow_partial_message': True}}


def test_the_demo_walk() -> None:
    with tempfile.TemporaryDirectory() as folder:
        stack, policy_file = walk.demo_stack(folder)
        with stack:
            for step in walk.walk(stack, policy_file):
                eq(step.problems, [], step.title)


def test_unix_sockets() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for addr in (os.path.join(folder, 'authz.sock'), f'@stepgate-e2e-{os.getpid()}'):
            with Stack(POLICY, addr=addr) as stack:
                eq(stack.request('GET', '/public').status, 200, addr)
                eq(stack.request('GET', '/nothing').status, 403, addr)
        eq(os.listdir(folder), [], 'the socket file is removed on stop')


def test_headers_change_on_the_way() -> None:
    with Stack(POLICY) as stack:
        answer = stack.request('GET', '/headers', [('x-removed', 'secret'), ('x-replaced', 'old'), ('x-kept', '1')])
        eq(answer.status, 200, 'status')
        got = answer.upstream_headers()
        eq([got.get(name) for name in ('x-added', 'x-replaced', 'x-removed', 'x-kept')], [['by-policy'], ['new'], None, ['1']],
           'what the upstream received')
        eq(answer.header('x-response'), ['added'], 'response header')


def test_two_challenges_on_one_denial() -> None:
    with Stack(POLICY) as stack:
        answer = stack.request('GET', '/two-challenges')
        eq(answer.status, 401, 'status')
        eq(answer.header('www-authenticate'), ['Bearer realm="a"', 'DPoP algs="ES256"'], 'challenges')


def test_cors_before_ext_authz_lets_scripts_read_challenges() -> None:
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


def test_identity_headers_cannot_be_smuggled() -> None:
    with Stack(POLICY) as stack:
        forged = [('x-auth-subject', 'root'), ('X_Auth_Subject', 'root'), ('x-auth_subject', 'root'), ('x-auth-tenant', 'root')]
        got = stack.request('GET', '/public', forged).upstream_headers()
        eq({name: values for name, values in got.items() if 'auth' in name}, {}, 'without a token')
        got = stack.request('GET', '/public', forged, token=stack.token()).upstream_headers()
        ours = {name: values for name, values in got.items() if name.startswith(('x-auth', 'x_auth'))}
        eq(ours, {'x-auth-subject': ['alice']}, 'with a token')
        got = stack.request('GET', '/headers', forged).upstream_headers()
        eq({name: values for name, values in got.items() if 'auth' in name}, {}, 'with a decision that has headers')


def test_the_upstream_is_told_by_a_token_of_our_own() -> None:
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


def test_bodies_are_buffered_and_truncation_is_seen() -> None:
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


def test_dry_run_allows_denials_but_not_faults() -> None:
    with Stack(POLICY, plugin={'dry-run': True}) as stack:
        answer = stack.request('GET', '/two-challenges', [('x-auth-subject', 'root')])
        eq(answer.status, 200, 'a denial')
        eq(answer.upstream_headers().get('x-auth-subject'), None, 'identity headers are stripped all the same')
        eq(stack.request('GET', '/undefined').status, 403, 'a fault')


def test_tokens_and_secrets_stay_out_of_logs() -> None:
    with Stack(POLICY, args=['--log-level', 'debug', '--set', 'decision_logs.console=true']) as stack:
        token = stack.token(secret_claim='canary-in-claims')
        stack.request('GET', f'/undefined?access_token={token}', token=token)
        stack.request('GET', '/undefined', token=token[:-6] + 'aaaaaa')
        wait(lambda: stack.log('stepgate').count('"msg":"Decision Log"') >= 2, 'both decisions in the log')
        log = stack.log('stepgate')
        for part in token.split('.') + ['canary-in-claims']:
            eq(part[:40] in log, False, 'part of a token in the log')


def test_a_probe_goes_through_a_proxy() -> None:
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
