"""`make demo`: the real Envoy holds requests, stepgate decides, a person watches."""
import json
import sys
import tempfile

import walk


def show(number, step):
    print(f'\n{number}. {step.title}')
    print(f'   -> {step.shown}')
    print(f'   <- {step.answer.status}')
    for name in ('www-authenticate', 'cache-control'):
        for value in step.answer.header(name):
            print(f'      {name}: {value}')
    if step.answer.status == 200:
        received = step.answer.upstream_headers()
        ours = {name: values for name, values in received.items() if name.startswith('x-auth-')}
        print(f'      the upstream received {json.dumps(ours)}')
    elif step.answer.body:
        print(f'      {step.answer.body}')
    for problem in step.problems:
        print(f'   WRONG: {problem}')


def main():
    print('Starting stepgate, Envoy and a small upstream ...')
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        stack, policy_file = walk.demo_stack(folder)
        with stack:
            for number, step in enumerate(walk.walk(stack, policy_file), 1):
                show(number, step)
                wrong += bool(step.problems)
    print('\nAll answers are as they should be.' if not wrong else f'\n{wrong} answers are wrong.')
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    main()
