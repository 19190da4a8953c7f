"""OPA's API and AuthZEN on the HTTP listeners."""
import gzip
import json
import os
import tempfile

from expect import eq
from harness import Sidecar, policy_file
from stack import free_port


def test_the_api_answers_as_opa_does() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = policy_file(folder, 'package app\nimport rego.v1\nallow if input.user == "ann"\nseen := input\nconflict := 1 if true\nconflict := 2 if true\n'
                    'users := {"a": [{"name": "x"}]}\n')
        with open(os.path.join(folder, 'system.rego'), 'w') as f:
            f.write('package system\nimport rego.v1\nmain := {"got": input}\nhealth.live if input.plugins_ready\n')
        with Sidecar({}, files=[folder]) as sidecar:
            ask = sidecar.post
            status, body, _ = ask('/v1/data/app/allow', {'input': {'user': 'ann'}})
            eq((status, body), (200, {'result': True}), 'a decision')
            eq('result' in ask('/v1/data/app/allow', {'input': {'user': 'bob'}})[1], False, 'undefined')
            eq(ask('/v1/data/app/allow')[1]['warning']['code'], 'api_usage_warning', 'no input')
            eq(sidecar.get('/v1/data/app/allow?input=%7B%22user%22%3A%22ann%22%7D')[1]['result'], True, 'GET')
            eq(sidecar.get('/v1/data/app/users/a/0/name')[1]['result'], 'x', 'an index in the path')
            status, body, _ = ask('/v1/data/app/allow', '{')
            eq((status, body['code']), (400, 'invalid_parameter'), 'malformed input')
            status, body, _ = ask('/v1/data/app/conflict', {'input': {}})
            eq((status, body['code'], body['errors'][0]['code']), (500, 'internal_error', 'eval_conflict_error'), 'a conflict')
            eq(ask('/v0/data/app/allow', {'user': 'ann'})[1], True, 'version 0')
            eq(ask('/v0/data/app/allow', {'user': 'bob'})[:2][0], 404, 'version 0, undefined')
            eq(ask('/', {'x': 1})[1], {'got': {'x': 1}}, 'the default decision')
            eq(sidecar.get('/v1/query?q=x%20%3D%20data.app.users.a%5B_%5D.name')[1], {'result': [{'x': 'x'}]}, 'a query')
            eq(ask('/v1/query', {'query': 'input.n > 1', 'input': {'n': 2}})[1], {'result': [{}]}, 'a query that holds')
            eq(ask('/v1/query', {'query': 'input.n > 1; true', 'input': {'n': 1}})[1], {}, 'a query that does not')
            eq(sidecar.get('/v1/query?q=false')[1], {'result': [{}]}, 'a query that is false')
            eq(ask('/v0/data/app/seen')[:2], (200, None), 'version 0, no body')
            eq(sidecar.get('/v1/data//app/')[0::2][0], 301, 'another spelling of a path')
            eq(ask('/v1/query', {'query': 'x :='})[0], 400, 'a query that does not compile')
            eq(ask('/v1/data/app/seen', 'input: {a: [1]}', {'content-type': 'application/x-yaml'})[1]['result'], {'a': [1]}, 'YAML')
            packed = gzip.compress(json.dumps({'input': {'user': 'ann'}}).encode())
            eq(ask('/v1/data/app/allow', packed, {'content-encoding': 'gzip'})[1]['result'], True, 'gzip')
            _, body, headers = sidecar.get('/v1/policies', headers={'accept-encoding': 'gzip'})
            eq(sorted(item['id'] for item in sidecar.get('/v1/policies')[1]['result']), [file[1:], os.path.join(folder, 'system.rego')[1:]], 'policies')
            status, body, _ = sidecar.get('/v1/data/app/seen?metrics&provenance&pretty', 'POST', {'input': 1})
            eq((body['result'], 'timer_rego_query_eval_ns' in body['metrics'], 'version' in body['provenance']), (1, True, True), 'flags')
            body = ask('/v1/data/app/seen', {'input': {'jwt': {'state': 'verified'}, 'authn': {'mfa': True}, 'x': 1}})[1]
            eq((body['result'], body['warning']['code']), ({'x': 1}, 'api_usage_warning'), 'no caller fills the evidence')
            status, body, _ = sidecar.get('/v1/policies/new', 'PUT', 'package x')
            eq((status, '--allow-policy-writes' in body['message']), (403, True), 'policies are not written')
            eq(sidecar.get('/v1/status')[0], 500, 'no status')
            eq((sidecar.get('/health/live')[0], sidecar.get('/health/none')[0]), (200, 500), 'health rules')
            eq(sidecar.get('/v1/data', port=sidecar.diagnostic)[0], 404, 'not on the diagnostic port')
            eq(sidecar.get('/v1/data/app/allow', 'PATCH')[0], 405, 'a method that is not offered')
        with Sidecar({}, files=[file], args=['--allow-policy-writes']) as sidecar:
            eq(sidecar.get('/v1/policies/new', 'PUT', 'package app\nextra := 7')[:2], (200, {}), 'PUT')
            eq(sidecar.get('/v1/data/app/extra')[1]['result'], 7, 'what was put')
            status, body, _ = sidecar.get('/v1/policies/new', 'PUT', 'package app\nextra := nothing()')
            eq((status, body['errors'][0]['code']), (400, 'rego_type_error'), 'a policy that does not compile')
            eq(sidecar.get('/v1/data/app/extra')[1]['result'], 7, 'what was put before')
            eq(sidecar.get('/v1/policies/new', 'DELETE')[:2], (200, {}), 'DELETE')
            eq('result' in sidecar.get('/v1/data/app/extra')[1], False, 'gone')
            eq(sidecar.get('/v1/policies/new')[0], 404, 'not there')


def test_authzen_clients_ask_the_same_policy() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rego = ('package app\nimport rego.v1\ndefault allow := false\n'
                'allow if { input.authzen.subject.id == "ann"; input.authzen.action.name == "read" }\n'
                'allow := {"allowed": false, "step_up": {"acr_values": ["phr", "mfa"], "reason": "weak"}} if input.authzen.action.name == "pay"\n'
                'allow if input.jwt.state == "verified"\nallow if input.authn.level > 1\n'
                'allow := "odd" if input.authzen.action.name == "odd"\n')
        whole = {'plugins': {'stepgate': {'authzen': {'url': 'http://pdp.test/'}}}}
        with Sidecar(whole, files=[policy_file(folder, rego)]) as sidecar:
            def ask(subject='ann', action='read', **more):
                return {'subject': {'type': 'user', 'id': subject}, 'action': {'name': action},
                        'resource': {'type': 'doc', 'id': '1'}, **more}
            one = lambda body: sidecar.post('/access/v1/evaluation', body)
            status, body, headers = sidecar.post('/access/v1/evaluation', ask(), {'x-request-id': 'r1'})
            eq((status, body, headers.get('x-request-id')), (200, {'decision': True}, 'r1'), 'allowed')
            eq(one(ask('bob'))[:2], (200, {'decision': False}), 'denied')
            eq(one(ask(action='pay'))[1], {'decision': False, 'context': {'acr_values': 'phr mfa', 'reason': 'weak'}}, 'step-up')
            forged = ask('bob', jwt={'state': 'verified'}, authn={'level': 4}, context={'jwt': {'state': 'verified'}})
            eq(one(forged)[1], {'decision': False}, 'what a caller says is no evidence')
            eq(one(ask(action='odd'))[0], 500, 'no decision')
            eq(one({'subject': {'type': 'user', 'id': 'ann'}})[:2], (400, 'action is missing'), 'a part is missing')
            eq(one('{')[0], 400, 'no JSON')
            shared = {'subject': {'type': 'user', 'id': 'ann'}, 'resource': {'type': 'doc', 'id': '1'}}
            actions = lambda *names, **more: {**shared, **more, 'evaluations': [{'action': {'name': n}} if n else {} for n in names]}
            def several(body):
                answers = sidecar.post('/access/v1/evaluations', body)[1]['evaluations']
                return [answer['decision'] for answer in answers]
            eq(several(actions('read', 'write', None, 'read')), [True, False, False, True], 'all')
            stop = lambda how: {'options': {'evaluations_semantic': how}}
            eq(several(actions('read', 'write', 'read', **stop('deny_on_first_deny'))), [True, False], 'until a denial')
            eq(several(actions('write', 'read', 'read', **stop('permit_on_first_permit'))), [False, True], 'until a permission')
            eq(sidecar.post('/access/v1/evaluations', actions('read', **stop('never')))[0], 400, 'an unknown semantic')
            eq(sidecar.post('/access/v1/evaluations', actions(*['read'] * 1001))[0], 400, 'too many')
            eq(sidecar.post('/access/v1/evaluations', ask())[1], {'decision': True}, 'one alone')
            eq(sidecar.get('/.well-known/authzen-configuration')[1], {
                'policy_decision_point': 'http://pdp.test', 'access_evaluation_endpoint': 'http://pdp.test/access/v1/evaluation',
                'access_evaluations_endpoint': 'http://pdp.test/access/v1/evaluations'}, 'what is offered')


def test_nobody_uses_the_api_from_elsewhere_unasked() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = policy_file(folder, 'package system.authz\nimport rego.v1\ndefault allow := false\nallow if input.identity == "s3cret"\n'
                    'allow if input.path == ["v1", "data", "open"]\nallow if input.body.input.word == "please"\n')
        port = free_port()
        with Sidecar({}, files=[file], addr=f'0.0.0.0:{port}') as sidecar:
            sidecar.api = port
            status, body, _ = sidecar.get('/v1/data')
            eq((status, '--authorization=basic' in body['message']), (401, True), 'no word about who may')
            eq((sidecar.get('/health')[0], sidecar.get('/metrics')[0]), (200, 200), 'probes')
            for path in ('/v1/policies', '/v1/config', '/v0/data', '/', '/v1/query?q=1'):
                eq(sidecar.get(path, 'POST' if path in ('/v0/data', '/') else 'GET')[0], 401, path)
        port = free_port()
        with Sidecar({}, files=[file], addr=f'0.0.0.0:{port}', args=['--authentication=token', '--authorization=basic']) as sidecar:
            sidecar.api = port
            eq(sidecar.get('/v1/data/x')[0], 401, 'no token')
            eq(sidecar.get('/v1/data/x', headers={'authorization': 'Bearer wrong'})[0], 401, 'the wrong token')
            eq(sidecar.get('/v1/data/x', headers={'authorization': 'Bearer s3cret'})[0], 200, 'the right token')
            eq(sidecar.get('/v1/data/open')[0], 200, 'a path that is open')
            eq(sidecar.post('/v1/data/x', {'input': {'word': 'please'}})[0], 200, 'what the body says')
            eq(sidecar.get('/health')[0], 401, 'as in OPA, the policy is asked for everything here')
            eq(sidecar.get('/health', port=sidecar.diagnostic)[0], 200, 'and for nothing there')
