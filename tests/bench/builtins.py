#!/usr/bin/env python3
"""Counts the instructions between two polls of the deadline, for every built-in function with hostile arguments.

The example `builtin_cost` makes the calls with a deadline that has passed at the first poll, or at a later one; callgrind counts what each
call executes. Two runs whose deadlines lie one poll apart tell what lies between these polls. Names of functions as arguments limit the run
to them.
"""
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "target/release/examples/builtin_cost"
# One call of a library that cannot be interrupted takes at most so many instructions.
MAX_INSTRUCTIONS = 20_000_000
# Polls after which it is counted until the next one: at the start, at once, and after a while.
POLLS = [0, 1, 2, 40]


def counts(poll: int, names: list[str]) -> dict[str, int]:
    """The instructions of each call whose deadline has passed at `poll`."""
    with tempfile.TemporaryDirectory() as folder:
        tool = ["valgrind", "--tool=callgrind", "--toggle-collect=*run_call*", "--dump-after=builtin_cost::calls::run_call", "--combine-dumps=no",
                f"--callgrind-out-file={folder}/out"]
        run = subprocess.run([*tool, str(EXAMPLE), str(poll), *names], capture_output=True, text=True, check=False)
        if run.returncode:
            sys.exit(f"the example failed:\n{run.stderr[-2000:]}")
        calls = run.stdout.splitlines()
        files = sorted(pathlib.Path(folder).glob("out.*"), key=lambda it: int(it.name.split(".")[1]))
        totals = [int(re.search(r"^(?:totals|summary): (\d+)", it.read_text(), re.M).group(1)) for it in files]
    if len(totals) < len(calls):
        sys.exit(f"{len(calls)} calls, but {len(totals)} counts")
    return dict(zip(calls, totals, strict=False))


def main() -> None:
    names = sys.argv[1:]
    worst: list[tuple[int, str]] = []
    known: dict[int, dict[str, int]] = {0: {}}
    for poll in POLLS:
        for at in (poll, poll + 1):
            known[at] = known[at] if at in known else counts(at, names)
        before, after = known[poll], known[poll + 1]
        worst += [(total - before.get(call, 0), f"{call}, after poll {poll}") for call, total in after.items()]
    worst.sort(reverse=True)
    for total, call in worst[:15]:
        print(f"{total:12,}  {call}")
    broken = [call for total, call in worst if total > MAX_INSTRUCTIONS]
    print(f"{len(worst) - len(broken)} of {len(worst)} calls keep {MAX_INSTRUCTIONS:,} instructions between two polls")
    if broken:
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
