"""Print the census of all architectures, or of those that are named with all details."""

import sys

from tests.architectures.census import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
