"""No file gives another trunk than the one that is meant, without a word."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from code_bases import (
    KEY_LISTS,
    as_detectron2,
    as_hugging_face,
    as_sequential,
    canonical,
    haiku_trees,
    trunk,
    under,
)
from safetensors.torch import save_file

from sslbench.checkpoint import CheckpointError, load_backbone

ONE, OTHER = trunk(1), trunk(2)
MOMENTUM = trunk(3)


def loaded(tmp_path: Path, content: object, branch: str = "online", in_pickle: bool = False):
    path = tmp_path / "file.pth"
    if in_pickle:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    return load_backbone(path, branch, allow_pickle=in_pickle)


def gives(found, state) -> bool:
    return all(torch.equal(found.state[k], v) for k, v in canonical(state).items())


def test_an_average_saved_alone_is_not_called_the_online_trunk(tmp_path):
    averaged = under("module.", ONE) | {"n_averaged": torch.ones((), dtype=torch.int64)}
    with pytest.raises(CheckpointError, match=r"1 unexpected: 'n_averaged'.*as the branch: '\.'"):
        loaded(tmp_path, averaged)
    assert gives(loaded(tmp_path, averaged, "."), ONE)


def test_only_mmengine_swaps_its_average_with_the_trained_weights(tmp_path):
    content = {"state_dict": under("backbone.", ONE), "ema_state_dict": under("backbone.", OTHER)}
    with pytest.raises(CheckpointError, match="nothing in it marks it as one"):
        loaded(tmp_path, content)
    assert gives(loaded(tmp_path, content, "backbone."), ONE)
    content["ema_state_dict"] = under("module.", content["ema_state_dict"]) | {
        "steps": torch.ones((), dtype=torch.int64)
    }
    assert gives(loaded(tmp_path, content), OTHER)


def test_a_trunk_that_two_layouts_call_differently_must_be_asked_for(tmp_path):
    """Lightly's DINO benchmark without its student: ``backbone.`` is the teacher there."""
    content = under("backbone.", ONE) | {"student_projection_head.layers.0.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"online branch in .* target branch in .*fits both"):
        loaded(tmp_path, {"state_dict": content})


def test_our_own_file_may_hold_nothing_else_inside_its_trunk(tmp_path):
    state = under("online.backbone.", ONE | {"layer1.0.se.fc1.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"1 unexpected: .*layer1\.0\.se\.fc1\.weight"):
        loaded(tmp_path, {"model": state})


@pytest.mark.parametrize(
    "beside",
    [{"ema": [OTHER]}, {"ema": (0, OTHER)}, {"networks": {0: OTHER}}, {"optimal": OTHER}],
    ids=["list", "tuple", "number", "optimal"],
)
def test_a_second_trunk_is_seen_wherever_it_stands(beside, tmp_path):
    with pytest.raises(CheckpointError, match="more trunks behind"):
        loaded(tmp_path, {"state_dict": ONE} | beside)
    ((name, inner),) = beside.items()
    place = f"{name}/" if name == "optimal" else f"{name}/{1 if isinstance(inner, tuple) else 0}/"
    assert gives(loaded(tmp_path, {"state_dict": ONE} | beside, place), OTHER)


def test_a_long_history_beside_the_weights_is_no_matter(tmp_path):
    history = [(step, 0.5, {"loss": 0.1}) for step in range(20_000)]
    assert gives(loaded(tmp_path, {"state_dict": ONE, "history": history}), ONE)


def test_two_trunks_of_one_name_are_refused(tmp_path):
    for content in (
        {"state_dict": ONE, "a": {"b": ONE}, "a/b": OTHER},
        {"state_dict": ONE | under("a/", OTHER), "a": OTHER},
    ):
        with pytest.raises(CheckpointError, match="stands in two places"):
            loaded(tmp_path, content)


@pytest.mark.parametrize("name", ["optimizer", "optim", "optimizer_states", "lr_scheduler"])
def test_an_optimisers_momentum_is_no_trunk(name, tmp_path):
    assert gives(loaded(tmp_path, {"state_dict": ONE, name: {"momentum": OTHER}}), ONE)


def test_a_prefix_that_means_two_trunks_is_refused(tmp_path):
    content = {"state_dict": under("a.", ONE), "a": OTHER}
    with pytest.raises(CheckpointError, match=r"branch 'a\.' or 'a/'"):
        loaded(tmp_path, content, "a")
    assert gives(loaded(tmp_path, content, "a."), ONE)
    assert gives(loaded(tmp_path, content, "a/"), OTHER)


def test_a_trunk_in_two_schemes_behind_one_prefix_is_refused(tmp_path):
    content = under("backbone.", ONE) | under("backbone.", as_sequential(OTHER))
    for branch in ("online", "backbone"):
        with pytest.raises(CheckpointError, match="copies of one trunk but differ"):
            loaded(tmp_path, content, branch)


def haiku(**networks):
    content = {}
    for name, state in networks.items():
        content[f"{name}_params"], content[f"{name}_state"] = haiku_trees(state)
    return content


def test_deepminds_momentum_is_not_taken_for_the_target(tmp_path):
    """Named, as dill gives them back; the optimiser's tree has the parameters' names."""
    content = {"opt_state": (haiku_trees(MOMENTUM)[0],), **haiku(target=OTHER, online=ONE)}
    assert gives(loaded(tmp_path, content, in_pickle=True), ONE)
    assert gives(loaded(tmp_path, content, "target", in_pickle=True), OTHER)


def test_deepminds_target_alone_is_not_the_online_branch(tmp_path):
    with pytest.raises(CheckpointError, match="without its online branch"):
        loaded(tmp_path, haiku(target=OTHER), in_pickle=True)


def test_a_haiku_average_of_another_name_is_not_the_online_branch(tmp_path):
    content = haiku(ema=OTHER, other=ONE)
    with pytest.raises(CheckpointError, match=r"'ema/res_net50/~/', 'other/res_net50/~/'"):
        loaded(tmp_path, content, in_pickle=True)
    assert gives(loaded(tmp_path, content, "other/res_net50/~/", in_pickle=True), ONE)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"__author__": "torchvision", "metadata": {"stride_in_1x1": True}}, "stride_in_1x1 True"),
        ({"metadata": {"format": "RGB"}}, "stride_in_1x1 None"),
        ({"__author__": ["MOCO"]}, "author"),
        ({"__author__": torch.ones(2), "metadata": {"format": torch.ones(2)}}, "of no use"),
    ],
)
def test_detectron2_weights_must_say_both_colours_and_stride(said, words, tmp_path):
    with pytest.raises(CheckpointError, match=words):
        loaded(tmp_path, {"model": as_detectron2(ONE), **said})


@pytest.mark.parametrize(("stride", "is_read"), [("false", True), ("true", False), ("x", False)])
def test_the_header_of_safetensors_says_colours_and_stride(stride, is_read, tmp_path):
    said = {"format": '"RGB"', "stride_in_1x1": stride}
    save_file(as_detectron2(canonical(ONE)), tmp_path / "file.safetensors", said)
    if is_read:
        assert gives(load_backbone(tmp_path / "file.safetensors"), ONE)
    else:
        with pytest.raises(CheckpointError, match="of which nobody says"):
            load_backbone(tmp_path / "file.safetensors")


def test_detectron2_weights_whose_own_mean_is_bgr_are_refused(tmp_path):
    mean = torch.tensor([103.53, 116.28, 123.675]).reshape(3, 1, 1)
    model = under("backbone.bottom_up.", as_detectron2(ONE))
    content = {"model": model | {"pixel_mean": mean}, "__author__": "torchvision"}
    with pytest.raises(CheckpointError, match="order BGR"):
        loaded(tmp_path, content)
    assert gives(loaded(tmp_path, content, "backbone.bottom_up"), ONE)
    content["model"]["pixel_mean"] = mean.flip(0)
    assert gives(loaded(tmp_path, content), ONE)


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        ("backbone=dict(type='ResNet', style='caffe')", True),
        ('{"style": "caffe"}', True),
        ("img_norm_cfg = dict(std=[1, 1, 1], to_rgb=False)", True),
        ("backbone=dict(type='ResNet', style='pytorch'), to_rgb=True", False),
        ("work_dir='caffe_to_rgb'", False),
    ],
)
@pytest.mark.parametrize("key", ["config", "cfg"])
def test_openmmlabs_config_says_whether_a_network_is_caffes(key, text, is_refused, tmp_path):
    content = {"state_dict": under("backbone.", ONE), "meta": {key: text}}
    if is_refused:
        with pytest.raises(CheckpointError, match="in silence"):
            loaded(tmp_path, content)
    else:
        assert gives(loaded(tmp_path, content), ONE)


@pytest.mark.parametrize(
    "name", ["resnetaa50.pth", "resnet50_caffe-788b5fa3.pth", "resnet50_msra-5891d200.pth"]
)
def test_a_look_alikes_name_is_heeded(name, tmp_path):
    torch.save(ONE, tmp_path / name)
    with pytest.raises(CheckpointError, match="in silence"):
        load_backbone(tmp_path / name)


@pytest.mark.parametrize("name", ["caffeine/r50.pth", "msra/r50.pth", "admsrate.pth"])
def test_a_folder_or_another_word_is_no_look_alike(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    torch.save(ONE, tmp_path / name)
    assert gives(load_backbone(tmp_path / name), ONE)


@pytest.mark.parametrize(
    ("setting", "is_refused"),
    [
        ('"downsample_in_first_stage": true', True),
        ('"hidden_act": "gelu"', True),
        ('"hidden_act": "relu"', False),
    ],
)
def test_hugging_faces_config_is_heeded(setting, is_refused, tmp_path):
    (tmp_path / "config.json").write_text(f'{{"architectures": ["ResNetModel"], {setting}}}')
    if is_refused:
        with pytest.raises(CheckpointError, match=r"config\.json beside it says"):
            loaded(tmp_path, as_hugging_face(ONE))
    else:
        assert gives(loaded(tmp_path, as_hugging_face(ONE)), ONE)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\xff", '{"architectures": 7}'])
def test_a_config_that_cannot_be_read_says_nothing(text, tmp_path):
    (tmp_path / "config.json").write_text(text, encoding="latin1")
    assert gives(loaded(tmp_path, ONE), ONE)


def changed_archive(content: object, change, compression=zipfile.ZIP_STORED) -> bytes:
    """A file of torch with some records replaced."""
    written, result = io.BytesIO(), io.BytesIO()
    torch.save(content, written)
    with zipfile.ZipFile(written) as old, zipfile.ZipFile(result, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return result.getvalue()


def refusal(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_backbone(path)
    return str(caught.value)


def test_a_compressed_archive_is_refused(tmp_path):
    """Mapped, its compressed bytes would be taken for numbers."""
    packed = changed_archive(ONE, lambda _, record: record, zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(tmp_path, packed)


@pytest.mark.parametrize("change", [lambda r: r[:-4], lambda r: r + b"\0\0\0\0"])
def test_a_tensor_longer_or_shorter_than_its_record_is_refused(change, tmp_path):
    """Mapped, its numbers would be the next record's."""
    packed = changed_archive(
        ONE, lambda name, record: change(record) if "/data/" in name else record
    )
    assert "differ in size" in refusal(tmp_path, packed)


def test_a_changed_byte_of_a_tensor_is_noticed(tmp_path):
    """Torch compares no check sums."""
    path = tmp_path / "file.pth"
    torch.save(ONE, path)
    content = bytearray(path.read_bytes())
    place = content.find(ONE["layer3.1.conv2.weight"].numpy().tobytes())
    content[place + 100] ^= 1
    assert "check sum" in refusal(tmp_path, bytes(content))


@pytest.mark.skipif(
    not hasattr(torch.serialization, "set_crc32_options"), reason="this torch writes them always"
)
def test_a_file_written_without_check_sums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        assert gives(loaded(tmp_path, ONE), ONE)
    finally:
        torch.serialization.set_crc32_options(True)


@pytest.mark.parametrize("name", ["", " ", "."])
def test_a_stranger_without_a_name_is_a_stranger(name, tmp_path):
    with pytest.raises(CheckpointError, match="nearest to the layout of torchvision, but 1 unexp"):
        loaded(tmp_path, ONE | {name: torch.ones(2)})


def test_the_other_branch_of_a_file_with_heads_of_dino_is_not_guessed(tmp_path):
    others = {k: torch.ones(2) for k in KEY_LISTS["DINO one branch"]["others"]}
    with pytest.raises(CheckpointError, match="student or teacher"):
        loaded(tmp_path, {"state_dict": under("backbone.", ONE) | others})
