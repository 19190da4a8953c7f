"""The files of `scenarios/`: base.yaml directly over gRPC and through Envoy, mesh.yaml through an Envoy in Istio's shape."""
import os
from collections.abc import Iterator

import grpc
import pytest
from expect import eq
from mesh import Mesh
from scenarios import HERE, Example, directly, in_mesh, problems_of, through, wanted


def named(scenarios: list[dict]) -> list:
    return [pytest.param(scenario, id=scenario['name']) for scenario in scenarios]


@pytest.fixture(scope='module')
def example() -> Iterator[Example]:
    with Example() as started:
        yield started


@pytest.fixture(scope='module')
def mesh() -> Iterator[Mesh]:
    own = {'waypoint': {'peer_from_xfcc': True, 'client_ip': {'forwarded_for': 0}, 'cors_preflight': 'allow'}}
    with Mesh(os.path.join(HERE, 'policy.rego'), own) as started:
        yield started


@pytest.mark.parametrize('scenario', named(wanted('base', 'direct')))
def test_directly(example: Example, scenario: dict) -> None:
    with grpc.insecure_channel(f'127.0.0.1:{example.grpc}') as channel:
        eq(problems_of(scenario, lambda one: directly(channel, example.folder, one)), [], scenario['name'])


@pytest.mark.parametrize('scenario', named(wanted('base', 'envoy')))
def test_through_envoy(example: Example, scenario: dict) -> None:
    eq(problems_of(scenario, lambda one: through(example.port, example.folder, one)), [], scenario['name'])


@pytest.mark.parametrize('scenario', named(wanted('mesh', 'mesh')))
def test_in_mesh(mesh: Mesh, scenario: dict) -> None:
    eq(problems_of(scenario, lambda one: in_mesh(mesh, one)), [], scenario['name'])


def test_answers_of_the_decision_cache_are_those_that_were_evaluated() -> None:
    with Example('--set=plugins.stepgate.limits.decision_cache_bytes=1048576') as example:
        with grpc.insecure_channel(f'127.0.0.1:{example.grpc}') as channel:
            for scenario in wanted('base', 'direct'):
                problems = problems_of({**scenario, 'repeat': 3}, lambda one: directly(channel, example.folder, one))
                eq(problems, [], scenario['name'])
        eq(example.metric('stepgate_decision_cache_hits_total') >= 10, True, 'answers from the cache')
