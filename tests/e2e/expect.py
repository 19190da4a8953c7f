"""The assertion of the tests: the message names what was compared."""


def eq(got: object, want: object, what: str) -> None:
    """Fails with `what` where `got` is not `want`."""
    if got != want:
        raise AssertionError(f'{what}: got {got!r}, want {want!r}')
