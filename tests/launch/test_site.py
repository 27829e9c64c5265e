"""Whose word counts for where data lie: the user's, the suite's, the site's, then Detectron2's."""

from pathlib import Path

import pytest

from launch.site import DataSite, SiteConfig, data_roots, load_site
from launch.suite import DataDefaults


@pytest.fixture(autouse=True)
def detectron2s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "detectron2"))
    return tmp_path / "detectron2"


def test_without_a_word_it_is_detectron2s_variable(detectron2s: Path):
    roots = data_roots(DataDefaults(), load_site(None))
    assert roots.root == detectron2s and roots.source == "DETECTRON2_DATASETS"


def test_a_site_that_names_a_root_wins_over_the_variable(tmp_path: Path):
    site = SiteConfig(data=DataSite(root=tmp_path, overrides={"coco2017": tmp_path / "fast"}))
    roots = data_roots(DataDefaults(), site)
    assert roots.root == tmp_path and roots.source == "the site file"
    assert roots.of("coco2017") == tmp_path / "fast"


def test_a_suite_on_data_of_its_own_wins_over_the_site(tmp_path: Path):
    site = SiteConfig(data=DataSite(root=Path("/site")))
    roots = data_roots(DataDefaults(root=tmp_path), site)
    assert roots.root == tmp_path and roots.source == "the suite"


def test_what_the_user_types_wins_over_all(tmp_path: Path):
    site = SiteConfig(data=DataSite(root=Path("/site"), overrides={"coco2017": Path("/fast")}))
    roots = data_roots(DataDefaults(root=Path("/suite")), site, [str(tmp_path)])
    assert roots.root == tmp_path and not roots.overrides and roots.source == "--data"


def test_a_typed_root_of_one_set_keeps_the_sites_others(tmp_path: Path):
    site = SiteConfig(data=DataSite(root=Path("/site"), overrides={"coco2017": Path("/fast")}))
    roots = data_roots(DataDefaults(), site, [f"voc2007={tmp_path}"])
    assert roots.of("voc2007") == tmp_path and roots.of("coco2017") == Path("/fast")
    assert roots.of("voc2012") == Path("/site")
