"""The main job, step by step: what a caller sends and what comes back. The demo prints it, the tests check it."""
import os
import time

from stack import ROOT, Stack

ADMIN = '/api/v1/admin/data'


def policies():
    return [os.path.join(ROOT, 'policies')]


class Step:
    def __init__(self, title, answer, problems, shown):
        self.title, self.answer, self.problems, self.shown = title, answer, problems, shown


def expect(answer, status, **contains):
    """Problems with an answer: its status, and what must be in headers or body."""
    problems = [] if answer.status == status else [f'status {answer.status} instead of {status}']
    for part, text in contains.items():
        where = answer.body if part == 'body' else ' '.join(answer.header(part.replace('_', '-')))
        if text not in where:
            problems.append(f'{part} lacks {text!r}: {where[:300]!r}')
    return problems


def walk(stack, policy_file):
    """Yields every step; `policy_file` is the policy that is broken on purpose."""
    password = stack.token(amr=['pwd'])
    strong = stack.token(alg='ES256', amr=['pwd', 'mfa'], tenant='acme')

    answer = stack.request('GET', ADMIN)
    problems = expect(answer, 401, www_authenticate='Bearer realm=')
    problems += ['an error without credentials'] if 'error=' in ''.join(answer.header('www-authenticate')) else []
    yield Step('No token: asked to authenticate', answer, problems, f'GET {ADMIN}')

    answer = stack.request('GET', ADMIN, token=password)
    problems = expect(answer, 401, www_authenticate='error="insufficient_user_authentication"', cache_control='no-store',
                      body='"acr_values":["phr","mfa"]')
    yield Step('Password only: asked to prove more (RFC 9470)', answer, problems, f'GET {ADMIN}, amr ["pwd"]')

    answer = stack.request('GET', ADMIN, token=strong)
    problems = expect(answer, 200)
    if not problems and answer.upstream_headers().get('x-auth-subject') != ['alice']:
        problems.append(f'the upstream was not told who calls: {answer.body}')
    yield Step('Two factors: allowed, and the upstream knows who it is', answer, problems, f'GET {ADMIN}, amr ["pwd", "mfa"]')

    answer = stack.request('DELETE', ADMIN, token=strong)
    yield Step('Two factors, but no rule allows it: denied', answer, expect(answer, 403), f'DELETE {ADMIN}')

    answer = stack.request('GET', ADMIN, token=stack.token(amr=['mfa'], lifetime=-60))
    problems = expect(answer, 401, www_authenticate='error="invalid_token", error_description="The token has expired"')
    yield Step('Expired token', answer, problems, f'GET {ADMIN}')

    answer = stack.request('GET', ADMIN, token=stack.token(amr=['mfa'], aud='https://other.example.test'))
    problems = expect(answer, 401, www_authenticate='error="invalid_token"', body='wrong_audience')
    yield Step('Token for another audience', answer, problems, f'GET {ADMIN}')

    answer = stack.request('GET', '/public/..%2f' + ADMIN[1:], token=strong)
    yield Step('Ambiguous path: refused before the policy', answer, expect(answer, 400, body='ambiguous_path'),
               'GET /public/..%2fapi/v1/admin/data')

    with open(policy_file, encoding='utf-8') as file:
        good = file.read()
    try:
        with open(policy_file, 'w', encoding='utf-8') as file:
            file.write('package api_policy\n\ndecision := true if {{{\n')
        stack.wait('stepgate', lambda: 'policy not reloaded' in stack.log('stepgate'))
        answer = stack.request('GET', ADMIN, token=password)
        problems = expect(answer, 401, www_authenticate='insufficient_user_authentication')
        yield Step('Policy broken on purpose: the old one keeps deciding', answer, problems, f'GET {ADMIN}, amr ["pwd"]')

        with open(policy_file, 'w', encoding='utf-8') as file:
            file.write('package api_policy\n\ndecision := {"allowed": "yes"}\n')
        stack.wait('stepgate', lambda: 'policy reloaded' in stack.log('stepgate'))
        answer = stack.request('GET', ADMIN, token=strong)
        yield Step('Policy that answers nonsense: explicitly denied', answer, expect(answer, 403, body='invalid_decision'),
                   f'GET {ADMIN}, amr ["pwd", "mfa"]')
    finally:
        with open(policy_file, 'w', encoding='utf-8') as file:
            file.write(good)


def demo_stack(folder, **more):
    """A stack whose policies lie in `folder`, a copy that may be broken. Gives it and the file to break."""
    import shutil
    target = os.path.join(folder, 'policies')
    shutil.copytree(policies()[0], target)
    for name in os.listdir(os.path.join(target, 'api_policy')):
        if name.endswith('_test.rego'):
            os.remove(os.path.join(target, 'api_policy', name))
    # File times have a granularity; the first edit must be newer than the copy.
    time.sleep(0.01)
    return Stack([target], args=['--watch'], **more), os.path.join(target, 'api_policy', 'api_policy.rego')
