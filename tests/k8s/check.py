"""Every manifest, rendered and examined: by the schemas of Kubernetes, by the CRDs of Istio, by Envoy, by our own lint; and every
manifest of `broken/` is caught, for the reason that its first line gives. Closes with a line 'N passed, N failed'."""
import copy
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import yaml
from live import Live

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGET = os.environ.get('CARGO_TARGET_DIR', os.path.join(ROOT, 'target'))
STEPGATE = os.environ.get('STEPGATE', os.path.join(TARGET, 'debug', 'stepgate'))
TOOLS, BIN = os.path.join(ROOT, '.tools', 'kube'), os.path.join(ROOT, '.tools', 'venv', 'bin')
SHARED = os.environ.get('STEPGATE_SHARED', os.path.join(ROOT, '..', 'shared'))
K8S, CHART = os.path.join(ROOT, 'k8s'), os.path.join(ROOT, 'k8s', 'charts', 'stepgate')
MESH = os.path.join(K8S, 'istio', 'istiod-values.yaml')
VERSIONS = ('1.29.0', '1.37.0')
# Kinds that come by CRDs of others.
FOREIGN = ('istio.io', 'keda.sh', 'gateway.', 'monitoring.coreos.com', 'x-k8s.io', 'kustomize.config')
passed, failed = 0, []


def run(*args, stdin=None):
    done = subprocess.run(args, capture_output=True, text=True, input=stdin)
    return done.returncode, done.stdout + done.stderr


def expect(what, is_good, output=''):
    global passed
    if is_good:
        passed += 1
    else:
        failed.append(what)
        print(f'FAIL  {what}\n{output.strip()[:2000]}')


def is_foreign(document):
    return any(part in document['apiVersion'] for part in FOREIGN)


def documents(text):
    return [document for document in yaml.safe_load_all(text) if document]


def kubernetes(folder, name, native):
    path = os.path.join(folder, f'{name}.native.yaml')
    with open(path, 'w') as out:
        yaml.safe_dump_all(native, out)
    found = []
    for version in VERSIONS:
        code, output = run(os.path.join(BIN, 'kubernetes-validate'), '--strict', '-k', version, path)
        if code or 'WARN' in output:
            found.append(output)
    return '\n'.join(found)


class Crds:
    """The CRDs of Istio, read once: a member that they do not know is an error, and their CEL rules are run."""

    def __init__(self, path):
        import cel
        import jsonschema
        self.cel, self.validator = cel, jsonschema.Draft202012Validator
        self.schemas = {}
        with open(path) as file:
            for crd in yaml.load_all(file, Loader=yaml.CSafeLoader):
                if crd and crd.get('kind') == 'CustomResourceDefinition':
                    for version in crd['spec']['versions']:
                        schema = version['schema']['openAPIV3Schema']
                        schema.setdefault('properties', {}).update({name: {} for name in ('apiVersion', 'kind', 'metadata')})
                        key = (f"{crd['spec']['group']}/{version['name']}", crd['spec']['names']['kind'])
                        self.schemas[key] = (strict(copy.deepcopy(schema)), schema)

    def problems(self, document):
        """What is wrong with it; None where no CRD is known."""
        found = self.schemas.get((document['apiVersion'], document['kind']))
        if found is None:
            return None
        problems = [error.message for error in self.validator(found[0]).iter_errors(document)]
        self.rules(found[1], document, problems)
        return problems

    def rules(self, schema, value, problems):
        for rule in schema.get('x-kubernetes-validations', []):
            try:
                holds = self.cel.evaluate(rule['rule'], {'self': value})
            except Exception:  # functions of Kubernetes that the evaluator has not
                continue
            if holds is not True:
                problems.append(f"CEL {rule.get('message') or rule['rule']}")
        if isinstance(value, dict):
            for name, inner in value.items():
                below = schema.get('properties', {}).get(name) or schema.get('additionalProperties')
                if isinstance(below, dict):
                    self.rules(below, inner, problems)
        elif isinstance(value, list) and isinstance(schema.get('items'), dict):
            for inner in value:
                self.rules(schema['items'], inner, problems)


def strict(schema):
    if schema.get('x-kubernetes-int-or-string'):
        schema.pop('type', None)
        schema['anyOf'] = [{'type': 'integer'}, {'type': 'string'}]
    if 'properties' in schema and 'additionalProperties' not in schema and not schema.get('x-kubernetes-preserve-unknown-fields'):
        schema['additionalProperties'] = False
    for inner in [*schema.get('properties', {}).values(), schema.get('items'), schema.get('additionalProperties')]:
        if isinstance(inner, dict):
            strict(inner)
    return schema


def lint(*paths):
    code, output = run(STEPGATE, 'doctor', 'k8s', '-f', 'json', *paths)
    return {finding['rule'] for finding in json.loads(output)} if code in (0, 1) else {output}


def examine(folder, name, text, crds):
    path = os.path.join(folder, f'{name}.yaml')
    with open(path, 'w') as out:
        out.write(text)
    every = documents(text)
    native = [document for document in every if not is_foreign(document)]
    expect(f'{name}: schemas of Kubernetes', not (problems := kubernetes(folder, name, native)), problems)
    if crds:
        for document in every:
            problems = crds.problems(document) if is_foreign(document) else None
            if problems is not None:
                expect(f'{name}: CRD of {document["kind"]} {document["metadata"]["name"]}', not problems, '\n'.join(problems))
    found = lint(path, MESH)
    expect(f'{name}: lint', not found, str(found))
    configurations(name, native)


def starts(name, native):
    """Each configuration starts with the policies beside it."""
    with tempfile.TemporaryDirectory() as folder:
        policies = []
        for document in native:
            for key, content in (document.get('data') or {}).items() if document['kind'] == 'ConfigMap' else ():
                if key.endswith('.rego'):
                    policies.append(os.path.join(folder, f'{len(policies)}.rego'))
                    with open(policies[-1], 'w') as out:
                        out.write(content)
        for document in native:
            for key, content in (document.get('data') or {}).items() if document['kind'] == 'ConfigMap' else ():
                if key != 'config.yaml':
                    continue
                config = os.path.join(folder, 'config.yaml')
                with open(config, 'w') as out:
                    out.write(content)
                command = [STEPGATE, 'run', '--server', '--config-file', config, '--addr=127.0.0.1:0', '--diagnostic-addr=127.0.0.1:0',
                           '--set=plugins.envoy_ext_authz_grpc.addr=127.0.0.1:0', *policies[:1]]
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                lines = []
                for line in process.stdout:
                    lines.append(line)
                    if 'serving HTTP' in line:
                        break
                is_up = process.poll() is None and any('serving ext_authz' in line for line in lines)
                process.terminate()
                process.wait(15)
                process.stdout.close()
                expect(f'{name}: {document["metadata"]["name"]} starts', is_up, ''.join(lines))


def configurations(name, native):
    starts(name, native)
    for document in native:
        for key, content in (document.get('data') or {}).items() if document['kind'] == 'ConfigMap' else ():
            if key.endswith('.rego'):
                with tempfile.NamedTemporaryFile('w', suffix='.rego') as file:
                    file.write(content)
                    file.flush()
                    code, output = run(STEPGATE, 'check', file.name)
                expect(f'{name}: {key} compiles', code == 0, output)


def kustomizations(folder, crds):
    kubectl = os.path.join(TOOLS, 'kubectl')
    for path in sorted(glob.glob(f'{K8S}/**/kustomization.yaml', recursive=True)):
        where = os.path.dirname(path)
        if 'kind: Component' in open(path).read():
            continue
        code, output = run(kubectl, 'kustomize', where)
        name = os.path.relpath(where, K8S).replace('/', '-')
        expect(f'{name}: renders', code == 0, output)
        if code == 0:
            examine(folder, name, output, crds)
    # The other transports of the sidecar, by the change that docs/install/istio.md tells.
    for transport in ('abstract', 'socket'):
        other = os.path.join(folder, transport)
        shutil.copytree(K8S, other)
        overlay = os.path.join(other, 'overlays', 'sidecar', 'kustomization.yaml')
        text = open(overlay).read()
        with open(overlay, 'w') as out:
            out.write(text.replace('sidecar/loopback', f'sidecar/{transport}').replace('stepgate-loopback', f'stepgate-{transport}'))
        code, output = run(kubectl, 'kustomize', os.path.dirname(overlay))
        expect(f'sidecar by {transport}: renders', code == 0, output)
        examine(folder, f'sidecar-{transport}', output, crds)
        container = next(d for d in documents(output) if d['kind'] == 'Deployment')['spec']['template']['spec']['initContainers'][0]
        expect(f'sidecar by {transport}: whole', container['restartPolicy'] == 'Always' and len(container['args']) == 7, str(container))
    # The component for Envoy Gateway, in an overlay as a reader would write it.
    own = os.path.join(folder, 'abstract', 'overlays', 'gateway')
    os.makedirs(own)
    with open(os.path.join(own, 'kustomization.yaml'), 'w') as out:
        out.write('apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../base, ../../examples/hello]\n'
                  'components: [../../components/envoy-gateway, ../../components/monitoring]\n')
    code, output = run(kubectl, 'kustomize', own)
    expect('envoy-gateway: renders', code == 0, output)
    examine(folder, 'envoy-gateway', output, crds)
    # The hub of revocations beside the server, whose configuration reads it.
    own = os.path.join(folder, 'abstract', 'overlays', 'hub')
    os.makedirs(own)
    with open(os.path.join(own, 'kustomization.yaml'), 'w') as out:
        out.write('apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../base]\n'
                  'components: [../../components/hub, ../../components/monitoring]\n')
    code, output = run(kubectl, 'kustomize', own)
    expect('hub: renders', code == 0, output)
    examine(folder, 'hub', output, crds)
    path = os.path.join(folder, 'hub.yaml')
    with open(path, 'w') as out:
        out.write(output)
    expect('hub: lint', (found := lint(path)) == set(), str(found))
    code, output = run(STEPGATE, 'hub', '--config-file', os.path.join(K8S, 'components', 'hub', 'hub.yaml'))
    # Everything but the certificate of the Secret is right.
    # Several hubs with a Redis server.
    own = os.path.join(folder, 'abstract', 'overlays', 'hub-redis')
    os.makedirs(own)
    with open(os.path.join(own, 'kustomization.yaml'), 'w') as out:
        out.write('apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../base]\n'
                  'components: [../../components/hub, ../../components/hub-redis]\n')
    shared_code, shared = run(kubectl, 'kustomize', own)
    expect('hub-redis: renders', shared_code == 0, shared)
    examine(folder, 'hub-redis', shared, crds)
    path = os.path.join(folder, 'hub-redis.yaml')
    with open(path, 'w') as out:
        out.write(shared)
    expect('hub-redis: lint', (found := lint(path)) == set(), str(found))
    workload = next(d for d in documents(shared) if d['kind'] == 'StatefulSet')['spec']
    mounted = [mount['name'] for mount in workload['template']['spec']['containers'][0]['volumeMounts']]
    expect('hub-redis: two without a volume', workload['replicas'] == 2 and 'volumeClaimTemplates' not in workload and 'data' not in mounted, str(workload))
    _, shared = run(STEPGATE, 'hub', '--config-file', os.path.join(K8S, 'components', 'hub-redis', 'hub.yaml'))
    # Everything but the Secret is right.
    expect('hub-redis: its configuration', '/etc/stepgate/tokens/key' in shared, shared)
    expect('hub: its configuration', '/etc/stepgate/tls/tls.crt' in output or 'cannot be made' in output, output)
    # The component for the issuer of the cluster, with a configuration that needs it, and without it.
    own = os.path.join(folder, 'abstract', 'overlays', 'cluster-issuer')
    os.makedirs(own)
    with open(os.path.join(own, 'config.yaml'), 'w') as out:
        out.write(open(os.path.join(K8S, 'base', 'config.yaml')).read().replace(
            '  stepgate:\n', '  stepgate:\n    issuers:\n    - {preset: kubernetes, audiences: [https://api.example.com]}\n'))
    for components, want in (('components: [../../components/kubernetes-issuer]\n', set()), ('', {'kubernetes-token'})):
        with open(os.path.join(own, 'kustomization.yaml'), 'w') as out:
            out.write('apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../base]\n' + components
                      + 'configMapGenerator:\n- {name: stepgate-config, namespace: stepgate-system, behavior: replace, files: [config.yaml]}\n')
        code, output = run(kubectl, 'kustomize', own)
        expect('kubernetes-issuer: renders', code == 0, output)
        if components:
            examine(folder, 'kubernetes-issuer', output, crds)
        path = os.path.join(folder, 'cluster-issuer.yaml')
        with open(path, 'w') as out:
            out.write(output)
        expect(f'kubernetes-issuer: lint {"with" if components else "without"} the component', (found := lint(path)) == want, str(found))


def chart(folder, crds):
    helm = os.path.join(TOOLS, 'helm')
    code, output = run(helm, 'lint', '--strict', CHART)
    expect('chart: helm lint --strict', code == 0, output)
    switches = ('autoscaling.enabled', 'podDisruptionBudget.enabled', 'networkPolicy.enabled', 'istio.enabled', 'serviceAccount.create')
    for name, flags in {
        'default': [],
        'everything': ['--set', 'serviceMonitor.enabled=true,image.tag=1.2.3,priorityClassName=high,podLabels.team=a,podAnnotations.b=c',
                       '--set', 'nodeSelector.disk=ssd,extraArgs={--log-level=debug},env[0].name=KEY,env[0].value=x',
                       '--set', 'extraVolumes[0].name=keys,extraVolumes[0].secret.secretName=keys',
                       '--set', 'extraVolumeMounts[0].name=keys,extraVolumeMounts[0].mountPath=/keys'],
        # Names that YAML would take for numbers and switches.
        'numbers': ['--namespace', '123', '--set-string', 'priorityClassName=1,serviceAccount.name=0x1,networkPolicy.monitoringNamespace=1e3',
                    '--set-string', 'istio.namespace=on,image.tag=1,podLabels.team=2,nodeSelector.disk=true,serviceMonitor.interval=1h30m',
                    '--set', 'serviceMonitor.enabled=true'],
        'kubernetes': ['--set', 'kubernetesIssuer.enabled=true,kubernetesIssuer.audience=https://api.example', '--set', r'policies.mesh\.rego=package mesh',
                       '--set', 'config.plugins.stepgate.issuers[0].preset=kubernetes,config.plugins.stepgate.issuers[0].audiences={https://a.example}'],
        'hub': ['--set', 'hub.enabled=true,hub.storage.className=fast', '--set',
                'hub.config.plugins.stepgate.issuers[0].issuer=https://a.example,hub.config.plugins.stepgate.issuers[0].preset=okta'],
        'hub-redis': ['--set', 'hub.enabled=true,hub.replicas=2,hub.config.plugins.stepgate.hub.data_dir=null', '--set',
                      'hub.config.plugins.stepgate.hub.redis.urls={rediss://r:6379},hub.config.plugins.stepgate.hub.redis.key_file=/etc/stepgate/tokens/key',
                      '--set', 'hub.config.plugins.stepgate.issuers[0].issuer=https://a.example,hub.config.plugins.stepgate.issuers[0].preset=okta'],
        'little': ['--set', ','.join(f'{switch}=false' for switch in switches), '--set', 'policies=null'],
    }.items():
        code, output = run(helm, 'template', 'stepgate', CHART, '--namespace', 'stepgate-system', *flags)
        expect(f'chart {name}: renders', code == 0, output)
        if code:
            continue
        examine(folder, f'chart-{name}', output, crds)
    code, output = run(helm, 'template', 'stepgate', CHART, '--set', 'hub.enabled=true,hub.replicas=2')
    expect('chart: several hubs need Redis', code != 0 and 'several hubs need' in output, output)
    replicas(helm)
    rendered = lambda *flags: documents(run(helm, 'template', 'stepgate', CHART, '--namespace', 'stepgate-system', *flags)[1])
    pod = next(document for document in rendered() if document['kind'] == 'Deployment')['spec']['template']['spec']
    expect('chart: secrets can be read', pod['securityContext']['fsGroup'] == 65532, str(pod['securityContext']))
    expect('chart: it answers on after SIGTERM', '--shutdown-wait-period=5' in pod['containers'][0]['args'] and 'lifecycle' not in pod['containers'][0], str(pod))
    test = next(document for document in rendered() if document['metadata']['name'] == 'stepgate-test')
    expect('chart: helm test waits, beside a native sidecar', test['spec']['containers'][0]['args'][:2] == ['doctor', '--wait=30s']
           and test['metadata']['annotations']['sidecar.istio.io/nativeSidecar'] == 'true', str(test))
    checked = [document for document in rendered('--set', r'policies.a\.rego=package a') if 'policy-check' in document['metadata']['name']]
    hooks = {document['kind']: document['metadata']['annotations']['helm.sh/hook'] for document in checked}
    expect('chart: new policies are compiled first', hooks == {'ConfigMap': 'pre-install,pre-upgrade', 'Job': 'pre-install,pre-upgrade'}, str(hooks))
    job = next(document for document in checked if document['kind'] == 'Job')['spec']['template']['spec']
    with tempfile.TemporaryDirectory() as policies:
        for text, good in (('package a\nallow := true\n', True), ('package a\nallow := nothing()\n', False)):
            with open(os.path.join(policies, 'a.rego'), 'w') as out:
                out.write(text)
            code, output = run(STEPGATE, *[policies if word == '/policies' else word for word in job['containers'][0]['args']])
            expect(f'chart: the check {"passes" if good else "stops"}', (code == 0) == good, output)
    without = [document['metadata']['name'] for flags in ([], ['--set', r'policies.a\.rego=x,policyCheck.enabled=false']) for document in rendered(*flags)]
    expect('chart: nothing is checked where there are no policies', not [name for name in without if 'policy-check' in name], str(without))
    policies = lambda *flags: next((document['data'] for document in documents(run(helm, 'template', 'gate', CHART, *flags)[1])
                                    if document['kind'] == 'ConfigMap' and document['metadata']['name'].endswith('-policies')), None)
    expect('chart: the example decides where nothing else does', list(policies()) == ['policy.rego'])
    expect('chart: the example goes where there are policies', policies('--set', r'policies.mine\.rego=package mesh') == {'mine.rego': 'package mesh'})
    expect('chart: the example goes where there are bundles', policies('--set', 'config.bundles.a.resource=x') is None)
    for name, (flag, why) in {
        'a text for a number': ('replicas=two', '/replicas'),
        'an unknown value': ('replica=2', "'replica'"),
        'another port': ('config.plugins.envoy_ext_authz_grpc.addr=:9292', 'addr'),
        'a token of a minute': ('kubernetesIssuer.expirationSeconds=60', '/kubernetesIssuer/expirationSeconds'),
        'no digest': ('image.digest=latest', '/image/digest'),
        'a section taken away': ('istio=null', "'istio'"),
        'a value taken away': ('autoscaling.minReplicas=null', "'minReplicas'"),
        'labels of its own': ('podLabels.app\\.kubernetes\\.io/name=x', "invalid propertyName 'app.kubernetes.io/name'"),
        'flags of its own': ('extraArgs={--diagnostic-addr=:1}', '/extraArgs/0'),
        'arguments that are no flags': ('extraArgs={policy.rego}', '/extraArgs/0'),
        'a budget that blocks drains': ('podDisruptionBudget.maxUnavailable=0', '/podDisruptionBudget'),
        'an address of its own': ('extraArgs={--set=plugins.envoy_ext_authz_grpc.addr=:1}', '/extraArgs/0'),
        'flags by the environment': ('env[0].name=OPA_RUN_ADDR', '/env/0/name'),
        'a tag in the name': ('image.repository=registry.example/stepgate:1', '/image/repository'),
        'a volume of its own': ('extraVolumes[0].name=config', '/extraVolumes/0/name'),
        'a scale without a measure': ('resources.requests=null', 'resources.requests.cpu'),
        'fewer at most than at least': ('autoscaling.minReplicas=20', 'autoscaling.minReplicas is more than'),
    }.items():
        code, output = run(helm, 'template', 'gate', CHART, '--set', flag)
        expect(f'chart refuses {name}', code != 0 and why in output, output)


def replicas(helm):
    """The number of replicas, by what runs already."""
    running, scaler = {'Deployment': {'spec': {'replicas': 8}}}, {'HorizontalPodAutoscaler': {'spec': {'maxReplicas': 10}}}
    by_hand, off = ['--set', 'autoscaling.enabled=false'], ['--set', 'autoscaling.setReplicas=false']
    for name, objects, flags, want in (
            ('installed with autoscaling', {}, [], 2), ('installed without', {}, by_hand, 2), ('upgraded with autoscaling', {**running, **scaler}, [], 8),
            ('autoscaling turned on', running, [], 8), ('autoscaling turned off', {**running, **scaler}, by_hand, 8), ('upgraded without', running, by_hand, 2),
            ('left to the autoscaler', {}, off, None)):
        with Live(objects) as live:
            code, output = run(helm, 'template', 'stepgate', CHART, '--namespace', 'stepgate-system', '--dry-run=server', '--disable-openapi-validation',
                               '--kube-apiserver', live.url, '-s', 'templates/deployment.yaml', *flags)
        found = None if code else documents(output)[0]['spec'].get('replicas')
        expect(f'chart: replicas, {name}', code == 0 and found == want, f'{found}\n{output[:500]}')


def good(folder, crds):
    """What is right, though it looks like a mistake."""
    for path in sorted(glob.glob(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'good', '*.yaml'))):
        name = f'good/{os.path.basename(path)}'
        expect(name, not (found := lint(path)), f'found {found}')
        objects = [document for document in documents(open(path, encoding='utf-8-sig').read()) if 'kind' in document]
        native = [document for document in objects if not is_foreign(document)]
        if native:
            expect(f'{name}: schemas of Kubernetes', not (problems := kubernetes(folder, 'good', native)), problems)
        for document in objects if crds else ():
            problems = crds.problems(document) if is_foreign(document) else None
            expect(f'{name}: CRD of {document["kind"]}', not problems, '\n'.join(problems or []))


def broken(folder, crds):
    for path in sorted(glob.glob(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'broken', '*.yaml'))):
        name = f'broken/{os.path.basename(path)}'
        text = open(path).read()
        by, want = text.splitlines()[0].removeprefix('# ').split(': ', 1)
        if by == 'lint':
            expect(name, (found := lint(path)) == {want}, f'wanted {want}, found {found}')
        elif by == 'kubernetes':
            found = kubernetes(folder, 'broken', documents(text))
            expect(name, want in found, f'wanted {want}, found {found}')
        elif crds:
            found = [problem for document in documents(text) for problem in crds.problems(document) or []]
            expect(name, any(problem.startswith(want) for problem in found), f'wanted {want}, found {found}')


# What the commands of docs/ need a cluster or much time for; all others are run as they stand. Those of a hub are run by
# tests/it/service/hub.rs, with a hub.
ELSEWHERE = ('kubectl apply', 'kubectl get', 'kubectl run', 'kubectl -n', 'kubectl label', 'helm upgrade', 'helm test', 'rustup', 'make image', 'make sbom',
             'k8s/image/build', 'TARGET_TRIPLE', 'export CARGO_TARGET', 'stepgate token decode "$TOKEN"',
             'stepgate tail', 'stepgate run', 'stepgate hub', 'stepgate revoke', 'stepgate build', 'make ', 'k8s/pod/ask', 'curl ', 'stepgate inspect', 'stepgate explain 27', 'stepgate explain request', 'systemctl',
             'journalctl', 'stepgate doctor --wait', 'stepgate doctor plan --config-file config.yaml policy.rego')


# A decision as a log has it, for the commands that look at one.
EVENT = {'decision_id': 'a-decision', 'path': 'mesh/decision', 'result': {'allowed': True},
         'input': {'path': '/public', 'jwt': {'state': 'absent'}, 'attributes': {'request': {'http': {'method': 'GET', 'path': '/public'}}}}}


def documented():
    with tempfile.TemporaryDirectory() as folder:
        decisions = os.path.join(folder, 'decisions.json')
        with open(decisions, 'w') as file:
            json.dump(EVENT, file)
        path = os.pathsep.join([os.path.dirname(STEPGATE), TOOLS, BIN, os.environ['PATH']])
        commands({**os.environ, 'PATH': path, 'DECISIONS': decisions, 'DECISION_ID': EVENT['decision_id']})


def commands(environment):
    total = 0
    pages = sorted(glob.glob('docs/**/*.md', root_dir=ROOT, recursive=True))
    # The commands of development.md are the suites themselves.
    for name in ['README.md'] + [page for page in pages if not page.startswith(('docs/adr/', 'docs/development'))]:
        text = open(os.path.join(ROOT, name)).read()
        for block in re.findall(r'```sh\n(.*?)```', text, re.S):
            # A line that ends with a pipe goes on in the next.
            block = re.sub(r'\|\n\s+', '| ', block)
            for command in filter(None, (line.split(' #')[0].strip() for line in block.splitlines())):
                if command.startswith(ELSEWHERE):
                    continue
                total += 1
                done = subprocess.run(['bash', '-o', 'pipefail', '-c', command], capture_output=True, text=True, env=environment, cwd=ROOT)
                # Nothing runs here that `doctor` could ask, and it says so.
                is_good = 'no answer from' in done.stderr if command == 'stepgate doctor' else done.returncode == 0
                expect(f'{name}: {command}', is_good, done.stdout + done.stderr)
    expect('commands of the documents', total >= 12, str(total))
    # What the documents show of `doctor migrate` is what it says.
    shown = re.search(r'```text\n(.*?)```', open(os.path.join(ROOT, 'docs', 'install', 'migrate-from-opa-envoy.md')).read(), re.S)[1]
    _, output = run(STEPGATE, 'doctor', 'migrate', 'tests/k8s/opa-envoy.yaml')
    missing = [line for line in shown.splitlines() if line not in output]
    expect('docs/install/migrate-from-opa-envoy.md shows what is said', not missing, '\n'.join(missing))


def monitoring():
    """Every metric that the dashboard and the alerts ask for is registered."""
    source = ''.join(open(path).read() for path in glob.glob(os.path.join(ROOT, 'src', '**', '*.rs'), recursive=True))
    names = set(re.findall(r'"(stepgate_[a-z_]+)"', source))
    for name in ('dashboard.json', 'rules.yaml'):
        used = set(re.findall(r'\bstepgate_[a-z_]+', open(os.path.join(K8S, 'components', 'monitoring', name)).read()))
        unknown = {metric for metric in used if metric not in names and re.sub('_(total|bucket)$', '', metric) not in names}
        expect(f'{name}: {len(used)} metrics are those of stepgate', used and not unknown, str(unknown))


def others():
    for path in [os.path.join(K8S, 'envoy', 'envoy.yaml'), os.path.join(K8S, 'pod', 'envoy.yaml'), os.path.join(K8S, 'examples', 'hello', 'envoy.yaml')]:
        code, output = run(os.path.join(BIN, 'envoy'), '--mode', 'validate', '-c', path)
        expect(f'envoy --mode validate {os.path.relpath(path, ROOT)}', code == 0, output)
    values, operator = (yaml.safe_load(open(os.path.join(K8S, 'istio', name))) for name in ('istiod-values.yaml', 'istio-operator.yaml'))
    expect('istiod-values.yaml and istio-operator.yaml say the same', values['meshConfig'] == operator['spec']['meshConfig'])
    policies = [open(os.path.join(K8S, where, 'policy.rego')).read() for where in ('base', 'components/sidecar/common')]
    expect('the sidecar has the policy of the base', policies[0] == policies[1])
    scripts = [path for path in glob.glob(f'{K8S}/**/*', recursive=True) + glob.glob(f'{ROOT}/tests/k8s/*')
               if os.path.isfile(path) and open(path, errors='replace').readline().startswith('#!/usr/bin/env bash')]
    code, output = run('shellcheck', '--external-sources', *scripts)
    expect(f'shellcheck of {len(scripts)} scripts', code == 0 and len(scripts) >= 3, output)


def main():
    os.chdir(ROOT)
    crds = None
    path = os.path.join(SHARED, 'crds', 'istio-crd-all.gen.yaml')
    if os.path.exists(path):
        crds = Crds(path)
    elif os.environ.get('STEPGATE_REQUIRE_SHARED') == '1':
        sys.exit(f'the CRDs of Istio are required, and {path} is missing')
    else:
        print(f'SKIPPED: what only the CRDs of Istio tell, because {path} is missing')
    with tempfile.TemporaryDirectory() as folder:
        kustomizations(folder, crds)
        chart(folder, crds)
        good(folder, crds)
        broken(folder, crds)
    documented()
    monitoring()
    others()
    print(f'{passed} passed, {len(failed)} failed')
    sys.exit(bool(failed))


if __name__ == '__main__':
    main()
