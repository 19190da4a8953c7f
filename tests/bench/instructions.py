"""Counts the instructions that the release binary spends on a check with a cached token, from the socket and back, which no other load
on the machine changes. Fails beyond a bound: that of a measurement and a tenth more; whoever makes checks cheaper lowers it."""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import bench

BOUND = int(os.environ.get('INSTRUCTIONS', '158000'))
FEW, MANY = 200, 2200


def count(checks):
    """Instructions of a whole run that answers so many checks."""
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, 'out')
        server = Counted(folder, ['valgrind', '--tool=callgrind', f'--callgrind-out-file={out}'])
        try:
            bench.h2load(server.servers['founding'].port, folder, '-n', str(checks), clients=(1, 1))
        finally:
            server.stop()
        with open(out) as file:
            return int(re.search(r'^(?:summary|totals): (\d+)', file.read(), re.M).group(1))


class Counted(bench.Bench):
    """The example policies alone, under a program that counts."""

    def __init__(self, folder, under):
        self.under = under
        super().__init__(folder)

    def start(self):
        self.stepgate('founding', 'api_policy/allow', os.path.join(bench.ROOT, 'policies'))


def main():
    if shutil.which('valgrind') is None or shutil.which('h2load') is None:
        sys.exit('valgrind or h2load is missing: run `make bootstrap` as root')
    began = time.monotonic()
    each = (count(MANY) - count(FEW)) // (MANY - FEW)
    print(f'{each} instructions for a check with a cached token, {BOUND} at most ({time.monotonic() - began:.0f} s)')
    sys.exit(not 0 < each <= BOUND)


if __name__ == '__main__':
    main()
