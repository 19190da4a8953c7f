"""Revocation through the real Envoy: who leaves is rejected."""
from demo_revocation import departure
from expect import eq


def test_the_demo() -> None:
    eq([title for title, _, _, problem in departure() if problem], [], 'steps with a wrong answer')
