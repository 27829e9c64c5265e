"""BatchNorm over several processes equals BatchNorm over the joined batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ROWS = """
import sys, torch
from sslbench import dist
from sslbench.batchnorm import synchronised
with dist.process_group("cpu"):
    rank, out, cut = dist.rank(), sys.argv[1], int(sys.argv[2])
    torch.manual_seed(0)
    norms = [torch.nn.BatchNorm1d(5), torch.nn.BatchNorm2d(5), torch.nn.SyncBatchNorm(5)]
    norms = torch.nn.ModuleList(norms).double()
    shapes = [(6, 5), (6, 5, 3, 2), (6, 5, 2, 2)]
    rows = [torch.randn(shape).double() for shape in shapes]
    weights = [torch.randn(shape).double() for shape in shapes]
    mine = slice(0, 6)
    if dist.world_size() > 1:
        mine = slice(cut, 6) if rank else slice(0, cut)
    synchronised(norms, torch.device("cpu"))
    inputs = [x[mine].requires_grad_() for x in rows]
    outputs = [norm(x) for norm, x in zip(norms, inputs)]
    sum((y.tanh() * w[mine]).sum() for y, w in zip(outputs, weights)).backward()
    found = {"rows": [x.grad for x in inputs], "out": [y.detach() for y in outputs]}
    grads = [p.grad for p in norms.parameters()]
    dist.average_gradients(grads)
    found |= {"grads": [g * dist.world_size() for g in grads], "state": norms.state_dict()}
    narrow = synchronised(torch.nn.ModuleList([torch.nn.BatchNorm2d(5)]), torch.device("cpu"))
    narrow[0](rows[1][mine].bfloat16()).sum().backward()
    found |= {"narrow": str(narrow[0](rows[1][mine].bfloat16()).dtype)}
    torch.save(found, f"{out}.{rank}")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("cut", [3, 5, 6], ids=["halves", "unequal", "one has none"])
def test_batchnorm_over_processes_equals_the_big_batchs(cut: int, tmp_path: Path):
    """Outputs, gradients of inputs and parameters, and running statistics, in float64."""
    script = tmp_path / "rows.py"
    script.write_text(ROWS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(script)]
    one = [*words, str(tmp_path / "one"), str(cut)]
    subprocess.run(one, env=environment, check=True, timeout=120)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [*words, str(tmp_path / "two"), str(cut)],
            env={**environment, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    one, *two = (torch.load(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    for key in ("rows", "out"):
        for whole, *halves in zip(one[key], two[0][key], two[1][key], strict=True):
            assert torch.allclose(torch.cat(halves), whole, rtol=1e-10, atol=1e-12), key
    for half in two:
        for mine, whole in zip(half["grads"], one["grads"], strict=True):
            assert torch.allclose(mine, whole, rtol=1e-10)
        for name, whole in one["state"].items():
            assert torch.allclose(half["state"][name], whole, rtol=1e-10), name
        assert half["narrow"] == "torch.bfloat16"
