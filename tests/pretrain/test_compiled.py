"""The compiled trunk: really compiled, the same numbers, the same checkpoint.

Unit tests use the backend that stops before code generation, which takes minutes on a CPU.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from pretrain import compiled
from pretrain.compiled import trunk_maps
from pretrain.config import PretrainConfig
from pretrain.methods.cyborgs import build as build_method
from pretrain.train import Place, Run
from sslbench.config import ConfigError, build, departures
from sslbench.log import RunLog, read_metrics
from sslbench.resnet import ResNet


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Compile from nothing, up to differentiated graphs that run as they are."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def changed(tiny: PretrainConfig, **keys) -> PretrainConfig:
    return build(PretrainConfig, json.loads(tiny.model_dump_json()) | keys, "test")


def train(cfg: PretrainConfig, pictures, folder: Path) -> tuple[dict, list[float]]:
    folder.mkdir()
    with RunLog(folder) as log:
        Run(cfg, pictures, Place(folder, torch.device("cpu")), log).train()
    saved = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    return saved, [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_and_the_keys_of_a_plain_one(tiny, image_list, tmp_path):
    """Warm-up, contrast, and both: three sets of layers in each of two branches, in two sizes.

    The second size is the pair of images by which memory is estimated on the CPU.
    """
    plain, losses = train(tiny, image_list, tmp_path / "plain")
    assert counters["stats"]["unique_graphs"] == 0
    found, compiled_losses = train(changed(tiny, compile=True), image_list, tmp_path / "compiled")
    assert counters["stats"]["unique_graphs"] == 12
    assert not counters["graph_break"]
    assert compiled_losses == pytest.approx(losses, abs=1e-4)
    assert found["model"].keys() == plain["model"].keys()
    counts = [n for n in plain["model"] if n.endswith("num_batches_tracked")]
    assert all(torch.equal(found["model"][n], plain["model"][n]) for n in counts)


def test_a_plain_runs_weights_fit_the_compiled_method(tiny):
    plain, other = build_method(tiny), build_method(changed(tiny, compile=True, seed=1))
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other.online_backbone.conv1.weight, plain.online_backbone.conv1.weight)


def test_bfloat16_is_compiled_too():
    torch.manual_seed(0)
    network, pixels = ResNet(18, 0.125).eval(), torch.randn(2, 3, 32, 32)
    layers = ("layer2.1", "layer3")
    with torch.autocast("cpu", torch.bfloat16):
        plain = network.maps(pixels, layers)
        found = trunk_maps(compiled=True)(network, pixels, layers)
    assert counters["stats"]["unique_graphs"] == 1
    for layer in layers:
        assert found[layer].dtype == torch.bfloat16
        assert torch.allclose(found[layer], plain[layer], atol=1e-2)


@pytest.mark.slow
def test_generated_code_gives_the_same_maps_and_gradients(monkeypatch):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    torch.manual_seed(0)
    network, pixels = ResNet(18, 0.125).train(), torch.randn(4, 3, 32, 32)
    found = []
    for is_compiled in (False, True):
        network.zero_grad()
        maps = trunk_maps(compiled=is_compiled)(network, pixels, ("layer1.0",))
        maps["layer1.0"].square().mean().backward()
        found.append((maps["layer1.0"].detach(), network.conv1.weight.grad.clone()))
    assert counters["stats"]["unique_graphs"] == 1
    for plain, generated in zip(*found, strict=True):
        assert torch.allclose(plain, generated, atol=1e-4)


def test_compiling_is_part_of_the_identity():
    assert departures(PretrainConfig(compile=True)) == {"compile": True}


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr("sslbench.dist.world_size", lambda: 2)
    with pytest.raises(ConfigError, match="compile=true works in one process, but there are 2"):
        trunk_maps(compiled=True)
