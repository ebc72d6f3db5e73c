"""The benchmark of training drives every library so that it learns; run in a process of its own, with the libraries."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SCRIPT = """
import json
from dataclasses import replace
from benchmarks.trainers import WAYS, Work
from benchmarks.training import synthetic, unexplained
from sae_models.sae import SaeConfig
base = Work(SaeConfig(32, 128, 8), 64, 60, "cpu", "PRECISION", lr=3e-3, dead_steps=5)
batches = synthetic(32, 64, directions=40, active=4)
fvus = {}
for name, way in ((name, make(base)) for name, make in WAYS.items()):
    way.step(batches(0))
    first = unexplained(way, batches(-1))
    for i in range(1, 60):
        way.step(batches(i))
    fvus[name] = first, unexplained(way, batches(-1))
print(json.dumps(fvus))
"""


@pytest.mark.parametrize("precision", ["default", "fp32"])
def test_every_library_learns_in_the_benchmark(precision):
    done = subprocess.run([sys.executable, "-c", SCRIPT.replace("PRECISION", precision)], cwd=REPO, text=True,
                          capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    fvus = json.loads(done.stdout.splitlines()[-1])
    assert set(fvus) == {"ours", "sae-lens", "eai-sparsify", "dictionary-learning"}
    for name, (first, last) in fvus.items():
        assert last < first, name
