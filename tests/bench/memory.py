"""Peak memory of the exact Fisher and of a training step, each in a process of its own.

`python -m tests.bench.memory NAME BATCHES` prints one peak above the model's own, in MB. What was there before includes
the code (of Numba and the compiled kernel, about 100 MB).
"""

import re
import subprocess
import sys
from pathlib import Path

from stages.curvature import diagonal_fisher, fused_cpu
from tests.bench.fisher import make_batches, minilm, training_step

CANDIDATES = ("training step", "exact Fisher")


def bench() -> str:
    """Peaks for 1, 8 and 32 batches of 16 sentences."""
    lines = ["Peak resident memory above the model's, MiniLM's shape (22 M parameters, 91 MB), batches of 16"]
    for name in CANDIDATES:
        peaks = [
            subprocess.run(
                [sys.executable, "-m", "tests.bench.memory", name, str(count)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            for count in (1, 8, 32)
        ]
        lines.append(
            f"{name:<14}  {peaks[0]:>4} MB for 16 sentences, {peaks[1]:>4} MB for 128, {peaks[2]:>4} MB for 512"
        )
    return "\n".join(lines)


def peak(name: str, count: int) -> int:
    """The peak of one candidate above what there was before it, in MB."""
    model = minilm(2)
    batches = (make_batches(16) * 4)[:count]
    assert fused_cpu  # imported late otherwise
    before = peak_resident()
    if name == "training step":
        training_step(model, batches)
    else:
        diagonal_fisher(model, batches)
    return round((peak_resident() - before) / 1000)


def peak_resident() -> int:
    """This process's, in kB, as Linux counts it."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


if __name__ == "__main__":
    print(peak(sys.argv[1], int(sys.argv[2])))
