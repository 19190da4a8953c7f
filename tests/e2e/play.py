"""`make play`: the demo left running, with tokens to paste, until it is interrupted.

`play.py --check` runs the commands of the README against it instead."""
import os
import re
import signal
import subprocess
import sys
import tempfile

import walk
from stack import ROOT

PLAY = os.path.join(ROOT, '.tools', 'play')
PORT = int(os.environ.get('PLAY_PORT', '10000'))


def commands():
    """The commands of the README that need `make play`, each with the status that its comment names."""
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        lines = re.findall(r'^(curl .*localhost:10000.*?)\s+# (\d{3})', file.read(), re.M)
    return [(command.replace(':10000', f':{PORT}'), status) for command, status in lines]


def check():
    wrong = 0
    for command, status in commands():
        out = subprocess.run(['bash', '-c', command], cwd=ROOT, capture_output=True, text=True).stdout
        got = out.split(' ')[1] if out.startswith('HTTP/') else out[:200]
        print(f'{"ok   " if got == status else "FAIL "}{command} -> {got}')
        wrong += got != status
    return wrong


def main():
    with tempfile.TemporaryDirectory() as folder:
        socket = os.path.join(PLAY, 'admin.sock')
        os.makedirs(PLAY, exist_ok=True)
        own = {'admin_socket': f'unix://{socket}'}
        stack, _ = walk.demo_stack(folder, stepgate=own, port=PORT)
        with stack:
            for name, claims in (('password', {'amr': ['pwd']}), ('mfa', {'amr': ['pwd', 'mfa'], 'tenant': 'acme'})):
                path = os.path.join(PLAY, name)
                with open(path, 'w', encoding='utf-8') as file:
                    file.write(stack.token(lifetime=3600, **claims))
            if '--check' in sys.argv:
                found = len(commands())
                sys.exit(1 if check() or found < 3 else 0)
            print(f'Envoy listens at localhost:{PORT}. Tokens of one hour: .tools/play/password (one factor), .tools/play/mfa (two).')
            for command, status in commands():
                print(f'  {command}   # {status}')
            print('  target/debug/stepgate tail --socket .tools/play/admin.sock\nInterrupt to end.', flush=True)
            signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == '__main__':
    main()
