"""TOML to frozen models: strict, with errors that name the key and the way out."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from sslbench.config import ConfigError, FrozenConfig, NotHashed, departures, load


class Schedule(FrozenConfig):
    save_every: Annotated[int, NotHashed] = 0
    epochs: int = Field(800, gt=0)
    drops: tuple[int, ...] = (768, 784)


class Lars(FrozenConfig):
    name: Literal["lars"] = "lars"
    lr: float = 0.1
    trust: float = 0.001


class AdamW(FrozenConfig):
    name: Literal["adamw"] = "adamw"
    lr: float = 0.1


class Run(FrozenConfig):
    images: Annotated[str, NotHashed] = ""
    schedule: Schedule = Schedule()
    optimizer: Lars | AdamW = Field(Lars(), discriminator="name")
    layers: tuple[str, ...] = ("layer2", "layer3")


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_is_laid_over_the_file_it_extends(tmp_path):
    write(tmp_path, "base.toml", "layers = ['layer4']\n[schedule]\nepochs = 10\ndrops = [8]")
    top = write(tmp_path, "top.toml", "extends = 'base.toml'\n[schedule]\nepochs = 20")

    run = load(Run, top)

    assert run.schedule == Schedule(epochs=20, drops=(8,))
    assert run.layers == ("layer4",)


def test_overrides_are_toml_and_bare_words_are_strings(tmp_path):
    path = write(tmp_path, "run.toml", "")
    run = load(Run, path, ["optimizer.lr=1e-6", "layers=['layer2']", "images=/some/folder"])
    assert (run.optimizer.lr, run.layers, run.images) == (1e-6, ("layer2",), "/some/folder")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("shcedule.epochs=1", "unknown key 'shcedule'; did you mean 'schedule'"),
        ("schedule.epoch=1", "unknown key 'schedule.epoch'; did you mean 'schedule.epochs'"),
        ("epochs=1", "unknown key 'epochs'; did you mean 'schedule.epochs'"),
        ("schedule.epochs=0", "schedule.epochs: .*greater than 0, got 0"),
        ("schedule.epochs=-3", "schedule.epochs: .*greater than 0, got -3"),
        ("optimizer.lr=true", "optimizer.lr: .*valid number, got True"),
        ("schedule.epochs='3'", "schedule.epochs: .*valid integer, got '3'"),
        ("optimizer.turst=1", "unknown key 'optimizer.turst'; did you mean 'optimizer.trust'"),
        ("optimizer={name='adamw',trust=1.0}", "unknown key 'optimizer.trust'; known: lr, name"),
        ("schedule", "must look like key.sub=value"),
        ("layers=['a'", "is not a valid TOML value"),
        ("images.path=3", "schedule|images"),
    ],
)
def test_errors_name_the_key_the_value_and_the_remedy(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load(Run, write(tmp_path, "run.toml", "[optimizer]\nname = 'lars'"), [override])


def test_a_missing_file_suggests_the_nearest(tmp_path):
    write(tmp_path, "demo.toml", "")
    with pytest.raises(ConfigError, match=r"no such config file; did you mean 'demo.toml'"):
        load(Run, tmp_path / "demmo.toml")


def test_circular_extends_is_an_error(tmp_path):
    write(tmp_path, "a.toml", "extends = 'b.toml'")
    write(tmp_path, "b.toml", "extends = 'a.toml'")
    with pytest.raises(ConfigError, match="circle"):
        load(Run, tmp_path / "a.toml")


def test_broken_toml_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"run.toml: not valid TOML"):
        load(Run, write(tmp_path, "run.toml", "a = ["))


def test_departures_leave_out_defaults_and_what_cannot_change_a_number():
    assert departures(Run()) == {}
    assert departures(Run(images="here")) == {}
    assert departures(Run(schedule=Schedule(save_every=9))) == {}
    assert departures(Run(schedule=Schedule(epochs=5))) == {"schedule": {"epochs": 5}}


def test_departures_tell_union_members_of_equal_fields_apart():
    assert departures(Run(optimizer=AdamW())) == {"optimizer": {"name": "adamw"}}
