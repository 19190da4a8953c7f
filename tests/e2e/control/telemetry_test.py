"""Traces, metrics and what must appear in none of them."""
from concurrent import futures
import json
import os
import socket
import subprocess
import tempfile
import time

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
import grpc
from expect import eq
from harness import CHECK, Server, Sidecar, bundle, config, policy, policy_file, stepgate
from stack import STEPGATE, free_port


def test_traces_reach_a_collector() -> None:
    found = []

    class Collector(grpc.GenericRpcHandler):
        def service(self, details):
            if details.method != '/opentelemetry.proto.collector.trace.v1.TraceService/Export':
                return None
            return grpc.unary_unary_rpc_method_handler(
                lambda request, _: found.append(request) or trace_service_pb2.ExportTraceServiceResponse(),
                trace_service_pb2.ExportTraceServiceRequest.FromString, trace_service_pb2.ExportTraceServiceResponse.SerializeToString)

    collector = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Collector()])
    grpc_port = collector.add_insecure_port('127.0.0.1:0')
    collector.start()
    server = Server()
    server.offer('/b.tar.gz', policy('one', 'r1'))
    server.routes['/v1/traces'] = lambda handler: handler.reply(200)
    traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    for kind, port in (('grpc', grpc_port), ('http', server.port)):
        found.clear()
        tracing = {'type': kind, 'address': f'127.0.0.1:{port}', 'service_name': 'gate', 'sample_percentage': 0,
                   'resource': {'deployment_environment': 'test'}, 'batch_span_processor_options': {'batch_timeout_ms': 100}}
        with Sidecar(config(server, distributed_tracing=tracing)) as sidecar:
            sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
            request = sidecar.request('/two?secret=1')
            request.attributes.request.http.headers['traceparent'] = traceparent
            sidecar.call(request)

            def arrived():
                with server.lock:
                    bodies = [body for (_, path, _), body in zip(server.requests, server.bodies) if path == '/v1/traces']
                return found if kind == 'grpc' else [trace_service_pb2.ExportTraceServiceRequest.FromString(body) for body in bodies]

            sidecar.settled(arrived, f'the trace by {kind}')
            [resource] = arrived()[0].resource_spans
            about = {item.key: item.value.string_value for item in resource.resource.attributes}
            eq(about, {'service.name': 'gate', 'deployment.environment': 'test'}, 'who we are')
            spans = resource.scope_spans[0].spans
            eq([span.name for span in spans], ['envoy.service.auth.v3.Authorization/Check', 'queue', 'input', 'token', 'evidence', 'eval', 'respond'], 'spans')
            root = spans[0]
            eq((root.trace_id.hex(), root.parent_span_id.hex()), (traceparent[3:35], traceparent[36:52]), 'its place')
            eq({span.parent_span_id for span in spans[1:]}, {root.span_id}, 'the place of its parts')
            eq(all(root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano for span in spans),
               True, 'times')
            eq(abs(root.start_time_unix_nano / 1e9 - time.time()) < 20, True, 'the clock')
            said = {item.key: item.value.string_value for item in root.attributes}
            eq((said['stepgate.decision'], said['url.path'], len(said['stepgate.decision_id'])), ('deny', '/two', 36), 'what is told')
            eq('secret' in str(arrived()), False, 'no query')
    # What the policy asks other servers belongs to the trace, and they are told of it.
    dead = free_port()
    rego = ('package app\nimport rego.v1\ndefault allow := false\n'
            f'allow if {{ also == 0; http.send({{"method": "GET", "url": "http://127.0.0.1:{server.port}/asked?secret=1"}}).body.ok }}\n'
            f'also := http.send({{"method": "GET", "url": "http://127.0.0.1:{dead}/", "raise_error": false}}).status_code\n')
    server.offer('/b.tar.gz', bundle({'app.rego': rego, '.manifest': {'revision': 'r2', 'roots': ['app']}}))
    server.routes['/asked?secret=1'] = lambda handler: handler.reply(200, b'{"ok": true}', {'content-type': 'application/json'})
    whole = config(server, distributed_tracing={**tracing, 'type': 'grpc', 'address': f'127.0.0.1:{grpc_port}'})
    whole['plugins'] = {'stepgate': {'builtins': {'http_send': True}}}
    with Sidecar(whole) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
        found.clear()
        request = sidecar.request('/two')
        request.attributes.request.http.headers['traceparent'] = traceparent
        sidecar.call(request)
        sidecar.settled(lambda: found, 'the trace')
        root, *spans = found[0].resource_spans[0].scope_spans[0].spans
        calls = [span for span in spans if span.kind == span.SPAN_KIND_CLIENT]
        said = [{item.key: item.value.int_value or item.value.string_value for item in span.attributes} for span in calls]
        eq([(span.name, span.parent_span_id) for span in calls], [('HTTP GET', root.span_id)] * 2, 'its requests')
        eq(sorted(str(one.get('http.response.status_code', one.get('error.type'))) for one in said), ['200', 'network'], 'what came of them')
        with server.lock:
            told = [headers.get('traceparent') for _, path, headers in server.requests if path.startswith('/asked')]
        eq(told[-1] in [f'00-{root.trace_id.hex()}-{span.span_id.hex()}-01' for span in calls], True, f'what the other server is told: {told}')
        eq('secret' in str(found), False, 'no query')
    server.offer('/b.tar.gz', policy('one', 'r1'))
    # A server of gRPC that is no collector says so, and is not taken for one.
    other = grpc.server(futures.ThreadPoolExecutor(2))
    tracing.update(type='grpc', address=f'127.0.0.1:{other.add_insecure_port("127.0.0.1:0")}', sample_percentage=100)
    other.start()
    with Sidecar(config(server, distributed_tracing=tracing)) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
        sidecar.settled(lambda: 'with grpc-status 12' in sidecar.lines(), 'the log')
    other.stop(0)
    # One that never answers holds up no stop.
    with socket.create_server(('127.0.0.1', 0)) as hanging:
        tracing['address'] = f'127.0.0.1:{hanging.getsockname()[1]}'
        with Sidecar(config(server, distributed_tracing=tracing)) as sidecar:
            sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
            begin = time.monotonic()
            sidecar.process.terminate()
            eq((sidecar.process.wait(15), time.monotonic() - begin < 6), (0, True), f'{time.monotonic() - begin:.1f} s until the end')
    # Without a collector nothing waits, and nothing is traced that was not asked for.
    tracing['address'] = f'127.0.0.1:{free_port()}'
    with Sidecar(config(server, distributed_tracing={**tracing, 'sample_percentage': 100})) as sidecar:
        sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
        sidecar.settled(lambda: 'traces cannot be exported' in sidecar.lines(), 'the log')
        eq(sidecar.check('/two'), False, 'a denial')
    collector.stop(0)
    server.stop()


def test_callers_make_no_series() -> None:
    """100,000 different paths, methods, hosts, tokens and addresses leave the metrics as many as they were."""
    rego = 'package app\nimport rego.v1\ndefault allow := false\nallow if startswith(input.attributes.request.http.path, "/a")\n'
    with tempfile.TemporaryDirectory() as folder:
        issuers = [{'issuer': 'https://i', 'audiences': ['a'], 'algorithms': ['ES256'], 'jwks': json.loads(stepgate('token', 'keygen', '--out', os.path.join(folder, 'own.pem')).stdout)}]
        plugins = {'envoy_ext_authz_grpc': {'enable-performance-metrics': True}, 'stepgate': {'issuers': issuers}}
        with Sidecar({'plugins': plugins, 'decision_logs': {'console': True}}, args=['--log-level', 'error'], files=[policy_file(folder, rego)]) as sidecar:
            series = lambda: {line.rsplit(' ', 1)[0] for line in sidecar.get('/metrics', port=sidecar.diagnostic)[1].decode().splitlines() if line[0] != '#'}

            def ask(numbers):
                call = grpc.insecure_channel(f'127.0.0.1:{sidecar.grpc}').unary_unary(CHECK)
                for at in range(0, len(numbers), 200):
                    futures = []
                    for n in numbers[at:at + 200]:
                        request = sidecar.request(f'/{"ab"[n % 2]}{n}?q={n}')
                        http = request.attributes.request.http
                        http.method, http.host = f'M{n}', f'h{n}.example'
                        http.headers['x-request-id'] = f'id-{n}'
                        if n % 10 == 0:
                            http.headers['authorization'] = f'Bearer a{n}.b.c'
                        request.attributes.source.principal = f'spiffe://d/ns/n{n}/sa/s'
                        futures.append(call.future(request.SerializeToString(), timeout=30))
                    for future in futures:
                        future.result()

            ask(range(400))
            sidecar.settled(lambda: any('outcome="' in name and 'decision_logs' in name for name in series()), 'the first series')
            before = series()
            ask(range(400, 100_000))
            # What a machine that stands still for a moment adds is none of the callers'.
            own = ('stepgate_decision_logs_total', 'stepgate_faults_total', 'error_counter', 'outcome="fault"')
            more = {name for name in series() - before if not any(part in name for part in own)}
            eq(more, set(), 'new series')
            eq(len(before) < 250, True, f'{len(before)} series')


def test_nothing_secret_comes_out_anywhere() -> None:
    """Known strings in every place where secrets are sent or configured, and none of them in anything that is told."""
    server = Server()
    server.offer('/b.tar.gz', policy('one', 'r1'))
    server.routes['/v1/traces'] = lambda handler: handler.reply(200)
    with tempfile.TemporaryDirectory() as folder:
        pem = os.path.join(folder, 'own.pem')
        stepgate('token', 'keygen', '--out', pem)
        with open(pem) as file:
            private = file.read().splitlines()[1]
        whole = config(server, decision_logs={'console': True, 'service': 's', 'reporting': {'min_delay_seconds': 1, 'max_delay_seconds': 1}},
                       distributed_tracing={'type': 'http', 'address': f'localhost:{server.port}', 'batch_span_processor_options': {'batch_timeout_ms': 100}})
        whole['services']['s'].update(credentials={'bearer': {'token': 'canary-service'}}, headers={'x-key': 'canary-header'})
        whole['keys'] = {'shared': {'algorithm': 'HS256', 'key': 'canary-of-a-shared-secret-canary-0'}}
        whole['plugins'] = {'stepgate': {
            'issuers': [{'issuer': 'https://i', 'audiences': ['a'], 'algorithms': ['ES256'], 'jwks': {'keys': [
                {'kty': 'EC', 'crv': 'P-256', 'x': 'f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU', 'y': 'x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0'}]}}],
            'identity_token': {'header': 'x-own', 'issuer': 'https://gate', 'audience': 'up', 'key_file': pem}}}
        whole['plugins']['stepgate']['compat'] = {'bundle_signatures': 'opa'}
        canaries = ['canary', private]
        with Sidecar(whole, args=['--log-level', 'debug']) as sidecar:
            sidecar.settled(lambda: sidecar.check('/one'), 'the bundle')
            tail = subprocess.Popen([STEPGATE, 'tail', '--socket', sidecar.admin, '-n', '2', '--format', 'json'], stdout=subprocess.PIPE, text=True)
            pretty = subprocess.Popen([STEPGATE, 'tail', '--socket', f'unix://{sidecar.admin}', '-n', '2'], stdout=subprocess.PIPE, text=True)
            deadline = time.time() + 10
            while (tail.poll() is None or pretty.poll() is None) and time.time() < deadline:
                request = sidecar.request('/two?token=canary-query&code=canary-code')
                http = request.attributes.request.http
                http.method = 'POST'
                for name, value in {'authorization': 'Bearer canary.canary.canary', 'cookie': 'session=canary', 'dpop': 'canary', 'x-api-key': 'canary',
                                    'content-type': 'application/json', 'referer': 'https://a/?access_token=canary'}.items():
                    http.headers[name] = value
                http.body = '{"password": "canary", "nested": {"client_secret": "canary"}}'
                sidecar.call(request)
                time.sleep(0.05)
            sidecar.settled(lambda: server.logs and any(path == '/v1/traces' for _, path, _ in server.requests), 'uploads')
            told = {'the watcher': tail.communicate(timeout=5)[0], 'the watcher of lines': pretty.communicate(timeout=5)[0],
                    'metrics': sidecar.get('/metrics')[1].decode(), 'the configuration': json.dumps(sidecar.get('/v1/config')[1]),
                    'the status': json.dumps(sidecar.get('/v1/status')[1]), 'the decision log': json.dumps(server.logs)}
            with server.lock:
                told['traces'] = repr([body for (_, path, _), body in zip(server.requests, server.bodies) if path == '/v1/traces'])
            told['the log'] = sidecar.lines()
        for place, text in told.items():
            eq((len(text) > 50, [canary for canary in canaries if canary in text]), (True, []), f'{place}: {text[:1500]}')
    server.stop()
