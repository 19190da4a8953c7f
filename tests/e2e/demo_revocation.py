"""`make demo-revocation`: an employee leaves, and the token that was good a moment before is rejected."""
import json
import sys
import time

import walk
from hub import OKTA_DEACTIVATES, USER, Hub
from stack import Stack

PATH = walk.ADMIN


def departure():
    """Yields each step as (title, what is sent, what comes back, problem)."""
    with Hub() as hub:
        services, own = hub.sidecar()
        with Stack(walk.policies(), config=services, stepgate=own) as stack:
            user = {'schemas': [USER], 'userName': 'alice@acme.example', 'externalId': 'alice', 'active': True}
            status, created = hub.send('POST', '/Users', user)
            yield 'Okta provisions Alice', f'POST {hub.scim}/Users', f'{status} {json.dumps(created)}', status != 201
            token = stack.token(alg='ES256', amr=['pwd', 'mfa'])
            answer = stack.request('GET', PATH, token=token)
            yield 'Alice calls the API, with two factors', f'GET {PATH}', str(answer.status), answer.status != 200
            body = json.dumps(OKTA_DEACTIVATES)
            status, _ = hub.send('PATCH', f'/Users/{created["id"]}', OKTA_DEACTIVATES)
            began = time.monotonic()
            yield 'Alice leaves: Okta deactivates her', f'PATCH {hub.scim}/Users/{created["id"]}\n      {body}', str(status), status != 200
            while True:
                answer = stack.request('GET', PATH, token=token)
                took = time.monotonic() - began
                if answer.status != 200 or took > 5:
                    break
            problem = answer.status != 401 or took > 1 or '"account_disabled"' not in answer.body
            shown = f'{answer.status} {answer.body}\n      {1000 * took:.1f} ms after the answer to Okta'
            yield 'The same token, at once', f'GET {PATH}', shown, problem


def main():
    print('Starting a hub, stepgate, Envoy and a small upstream ...')
    wrong = 0
    for number, (title, sent, came, problem) in enumerate(departure(), 1):
        print(f'\n{number}. {title}\n   -> {sent}\n   <- {came}')
        if problem:
            wrong += 1
            print('   WRONG')
    print('\nAll answers are as they should be.' if not wrong else f'\n{wrong} answers are wrong.')
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    main()
