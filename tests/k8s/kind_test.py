"""k8s/kind/test with stubs in the place of kind, docker, kubectl, helm, curl and the image's build: what it does when all goes well, and at each
step that fails. Closes with a line 'N passed, N failed'."""
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STUB = r'''#!/usr/bin/env bash
# Writes down how it was called, and fails where FAIL is a part of that.
call="$(basename "$0") $*"
echo "$call" >> "$CALLS"
case "$call" in
    "kind get clusters"*) [ ! -e "$CLUSTER" ] || echo stepgate ;;
    "kind create cluster"*) touch "$CLUSTER" ;;
    "kind delete cluster"*) rm -f "$CLUSTER" ;;
    "curl "*) printf '%s' "${ANSWER:-200}" ;;
    *keygen*) echo '{"keys": []}'; for last in "$@"; do :; done; [ -e "$last" ] && exit 1; echo key > "$last" ;;
esac
if [ -n "${FAIL:-}" ]; then case "$call" in *"$FAIL"*) exit 1 ;; esac; fi
exit 0
'''
passed, failed = 0, []


def expect(what, is_good, output=''):
    global passed
    if is_good:
        passed += 1
    else:
        failed.append(what)
        print(f'FAIL  {what}\n{output[-2000:]}')


class Run:
    """A copy of what the script needs, with stubs; `programs` are those on the path."""

    def __init__(self, programs=('docker',)):
        self.folder = tempfile.mkdtemp(prefix='stepgate-kind-')
        self.bin, self.calls = os.path.join(self.folder, 'bin'), os.path.join(self.folder, 'calls')
        self.cluster, self.state = os.path.join(self.folder, 'cluster'), os.path.join(self.folder, '.tools', 'kind')
        os.makedirs(self.bin)
        for name in ('kind', 'kubectl', 'helm', 'curl', 'sleep', *programs):
            self.stub(os.path.join(self.bin, name))
        for name in ('k8s/image/build', 'elsewhere/release/stepgate', '.tools/venv/bin/python'):
            self.stub(os.path.join(self.folder, name))
        os.makedirs(os.path.join(self.folder, 'k8s', 'kind'))
        shutil.copy(os.path.join(ROOT, 'k8s', 'kind', 'test'), os.path.join(self.folder, 'k8s', 'kind', 'test'))

    @staticmethod
    def stub(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as file:
            file.write(STUB)
        os.chmod(path, 0o755)

    def go(self, **environment):
        open(self.calls, 'w').close()
        # The tools of the system without a docker or podman that may be there.
        for name in ('bash', 'env', 'mkdir', 'mv', 'rm', 'seq', 'grep', 'dirname', 'basename', 'touch', 'printf', 'kill', 'cat'):
            found = shutil.which(name)
            if found and not os.path.exists(os.path.join(self.bin, name)):
                os.symlink(found, os.path.join(self.bin, name))
        done = subprocess.run(['bash', 'k8s/kind/test'], cwd=self.folder, capture_output=True, text=True, timeout=60, env={
            'PATH': self.bin, 'CALLS': self.calls, 'CLUSTER': self.cluster, 'CARGO_TARGET_DIR': 'elsewhere', 'TRIES': '3', **environment})
        return done.returncode, open(self.calls).read(), done.stdout + done.stderr

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder, ignore_errors=True)


def all_goes_well():
    for program in ('docker', 'podman'):
        with Run((program,)) as run:
            code, calls, output = run.go()
            expect(f'{program}: it succeeds', code == 0, output + calls)
            expect(f'{program}: the image is an archive', f'{program} save --output' in calls and 'kind load image-archive' in calls, calls)
            expect(f'{program}: what it made is deleted', not os.path.exists(run.cluster), calls)
            expect(f'{program}: the scenarios are run', 'scenarios.py --at kind' in calls, calls)
    with Run(()) as run:
        code, calls, output = run.go()
        expect('without docker and podman it says what is needed', code == 1 and 'docker or podman is needed' in output, output)
        expect('and makes nothing', 'create' not in calls, calls)


def each_step_may_fail():
    for step in ('helm show', 'build localhost', 'docker save', 'kind create', 'kind load', 'istio-base', 'istio-cni', 'istiod', 'keygen', 'apply -f k8s/base',
                 'create secret', 'doctor k8s', 'apply -k', 'deployment/stepgate --timeout', 'deployment/hello', 'gateway.yaml', 'install gateway', 'scenarios.py'):
        with Run() as run:
            code, calls, output = run.go(FAIL=step)
            expect(f'{step} fails: so does the script', code != 0, output + calls)
            expect(f'{step} fails: nothing is left', not os.path.exists(run.cluster), calls)
            made = 'kind load' in calls
            expect(f'{step} fails: what the cluster says is kept', not made or os.path.exists(os.path.join(run.state, 'failure', 'events')), output)
            before = step in ('helm show', 'build localhost', 'docker save')
            expect(f'{step} fails: nothing is deleted that was not made', not before or 'delete cluster' not in calls, calls)
            code, calls, output = run.go()
            expect(f'{step} failed: the next run succeeds', code == 0, output + calls)


def a_kept_cluster_stays():
    with Run() as run:
        expect('KEEP=1: it succeeds', run.go(KEEP='1')[0] == 0)
        expect('KEEP=1: the cluster stays', os.path.exists(run.cluster))
        code, calls, output = run.go()
        expect('a kept cluster is used again', code == 0 and 'create cluster' not in calls, calls)
        expect('a kept cluster stays', os.path.exists(run.cluster), calls)
        code, calls, output = run.go(FAIL='build localhost')
        expect('a build that fails leaves a kept cluster', code != 0 and os.path.exists(run.cluster), calls)


def only_200_is_success():
    with Run() as run:
        code, calls, output = run.go(ANSWER='503')
        expect('503 is no success', code != 0 and 'answers 503' in output and 'scenarios.py' not in calls, output)
    with Run() as run:
        os.makedirs(run.state)
        open(os.path.join(run.state, 'key.pem'), 'w').write('of a run that was interrupted')
        code, calls, output = run.go()
        expect('a key without its key set is made anew', code == 0, output + calls)


if __name__ == '__main__':
    for test in (all_goes_well, each_step_may_fail, a_kept_cluster_stays, only_200_is_success):
        test()
    print(f'{passed} passed, {len(failed)} failed')
    sys.exit(bool(failed))
