"""One verification: read, replay the loading, compare the maps, check the recipe, say it all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sslbench.checkpoint import Backbone
from transfer.detectron2_names import depths
from transfer.detectron2_parity import can_build
from transfer.parity import TOLERANCE, canonical_maps
from transfer.rescale import Rescaling
from transfer.task import has_detectron2
from transfer.trunks import read_trunk
from transfer.verify import in_detectron2
from transfer.verify.causes import differing, explain
from transfer.verify.detector_file import DetectorFile, container_findings, read_detector_file
from transfer.verify.findings import SEVERITIES, Finding, VerifyError, shown
from transfer.verify.maps import Maps, Sides, equal, fixed_pictures, relative
from transfer.verify.matching import (
    Matching,
    best_match,
    loading_findings,
    match,
    meant_trunk,
    takers,
    with_initial_norms,
)
from transfer.verify.settings import (
    DILATION,
    WEIGHTS,
    layout_of,
    network_findings,
    pixel_findings,
    protocol_findings,
    right_maps,
    together,
    weights_findings,
)
from transfer.verify.yaml_chain import Chain, read_chain

INDEPENDENT = "independent trunk"
HEURISTICS = "?matching_heuristics=True"  # behind a path, as Detectron2 reads it


@dataclass(frozen=True)
class Comparison:
    """Maps of one side computed by one program, against the right ones."""

    subject: str  # "checkpoint" or "config"
    computed_by: str
    levels: Mapping[str, float]
    loaded: str = ""  # "265 of 265", where Detectron2 itself loaded the file

    def line(self) -> str:
        loaded = f", {self.loaded} tensors loaded" if self.loaded else ""
        return f"{self.subject:<11}{shown(self.levels)}  ({self.computed_by}{loaded})"


@dataclass(frozen=True)
class Verification:
    """Everything that was found, the worst first."""

    weights: Mapping[str, Any]
    against: Mapping[str, Any]
    config: Mapping[str, Any]
    comparisons: list[Comparison] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(finding.severity != "error" for finding in self.findings)

    def record(self) -> dict[str, Any]:
        """Plain values for JSON; a level that cannot be compared is null."""
        found = {
            "passed": self.passed,
            "tolerance": TOLERANCE,
            "weights": dict(self.weights),
            "against": dict(self.against),
            "config": dict(self.config),
            "comparisons": [dict(vars(c)) for c in self.comparisons],
            "findings": [finding.record() for finding in self.findings],
        }
        return {key: _finite(value) for key, value in found.items() if value != {}}

    def lines(self) -> list[str]:
        """What a person reads."""
        parts = {"weights": self.weights, "against": self.against, "config": self.config}
        lines = [
            f"{name:<11}" + ", ".join(f"{k} {v}" for k, v in part.items())
            for name, part in parts.items()
            if part
        ]
        lines += [comparison.line() for comparison in self.comparisons]
        lines += [finding.line() for finding in self.findings]
        counts = [sum(f.severity == s for f in self.findings) for s in SEVERITIES[:2]]
        verdict = "verified" if self.passed else "NOT verified"
        return [*lines, f"{verdict}: {counts[0]} errors, {counts[1]} warnings"]


def verify(
    weights: Path,
    *,
    against: Path | None = None,
    branch: str = "online",
    config: str | None = None,
    allow_pickle: bool = False,
) -> Verification:
    """Compare weights with their checkpoint, and a YAML's settings with what the weights need.

    Raises:
        VerifyError: weights or YAML cannot be checked.
        CheckpointError, WeightsError: a file cannot be read, or lacks the branch.
    """
    if against is None and config is None:
        raise VerifyError(
            "nothing to compare with: give --against CHECKPOINT, --config YAML or both"
        )
    chain = read_chain(config) if config is not None else None
    path = Path(str(weights).removesuffix(HEURISTICS))
    file = read_detector_file(path, allow_pickle=allow_pickle)
    asked = str(weights).endswith(HEURISTICS)
    asked = asked or (chain is not None and chain[WEIGHTS].endswith(HEURISTICS))
    file = replace(file, heuristics=file.heuristics or (asked and path.suffix != ".pkl"))
    backbone = _original(against, branch, allow_pickle) if against is not None else None
    return _Run(file, backbone, chain, allow_pickle).done()


def _original(path: Path, branch: str, allow_pickle: bool) -> Backbone:
    backbone, recorded = read_trunk(path, branch, allow_pickle)
    if "rescale" in recorded:  # its maps are the checkpoint's, its norms are not
        raise VerifyError(
            f"{path}: its weight norms were rescaled, so that it is no original; pass "
            f"{recorded.get('source', 'the checkpoint')}, which it was made from"
        )
    return backbone


class _Run:
    def __init__(
        self,
        file: DetectorFile,
        backbone: Backbone | None,
        chain: Chain | None,
        allow_pickle: bool,
    ) -> None:
        self.file, self.backbone, self.chain = file, backbone, chain
        self.allow_pickle = allow_pickle
        self.matching = self._matching()
        # as the file means it; where statistics are lost, as a detector would go on without them
        self.given, lost = meant_trunk(file, self.matching)
        self.trunk = with_initial_norms(self.given, lost, file)
        self.lost = [name for name in lost if name not in self.trunk]
        self.comparisons: list[Comparison] = []
        self.findings: list[Finding] = []

    def done(self) -> Verification:
        fixed = self.chain is not None
        self.findings += container_findings(self.file)
        self.findings += loading_findings(self.file, self.matching, layout_fixed=fixed)
        if self.chain is not None:
            self.findings += network_findings(self.chain, self.file)
            self.findings += protocol_findings(self.chain)
            self.findings += weights_findings(self.chain, self.file)
        with fixed_pictures() as pictures:
            if self.backbone is not None:
                self._against(self.backbone, pictures)
            if self.chain is not None and not self.lost:
                self._config(self.chain, pictures)
        return Verification(
            weights=self._described(),
            against=_described_backbone(self.backbone),
            config=_described_chain(self.chain),
            comparisons=self.comparisons,
            findings=sorted(self.findings, key=lambda f: SEVERITIES.index(f.severity)),
        )

    def _matching(self) -> Matching:
        layout = layout_of(self.chain) if self.chain is not None else ""
        if self.file.depth in depths(layout):
            return match(self.file, layout)
        return best_match(self.file)  # no detector of the YAML's kind takes such a trunk

    def _described(self) -> dict[str, Any]:
        return {
            "file": self.file.path.name,
            "author": self.file.author or "unknown",
            "depth": self.file.depth,
            "width": self.file.width,
            "names": "matched by their ends" if self.file.heuristics else "exact",
            "layout": " or ".join(takers(self.file)) or "none",
            "loaded": f"{len(self.matching.loaded)} of "
            f"{len(self.matching.loaded) + len(self.matching.missing)}",
        }

    def _against(self, backbone: Backbone, pictures: list[Path]) -> None:
        ours, theirs = (backbone.depth, backbone.width), (self.file.depth, self.file.width)
        if ours != theirs:
            text = "the weights are a ResNet-{} of width {:g}".format(*theirs)
            text += ", the checkpoint is a ResNet-{} of width {:g}".format(*ours)
            self.findings.append(Finding("error", "weights", text, "Pass the right file"))
        if ours != theirs or self.lost:
            return
        backbone = self._equally_rescaled(backbone)
        right = canonical_maps(backbone, pictures)
        sides = Sides(self.trunk, self.file.needs, right)
        levels = sides.levels(pictures)
        self.comparisons.append(Comparison("checkpoint", INDEPENDENT, levels))
        if not equal(levels):
            found = explain(sides, backbone, pictures, allow_pickle=self.allow_pickle)
            self.findings.append(found)
        elif different := differing(sides, backbone):
            # the maps hide what fixed pictures do not reach, such as a channel that is dead in them
            text = f"the maps are the checkpoint's within {TOLERANCE:g}, but {different}"
            self.findings.append(Finding("note", "weights", text))
        if self._detectron2_serves():
            cfg = in_detectron2.standard_config(self.file, self.matching.layout)
            self._in_detectron2("checkpoint", cfg, right, pictures)

    def _equally_rescaled(self, backbone: Backbone) -> Backbone:
        """Do to the checkpoint what NormRescale did to the weights, as they say themselves."""
        said = self.file.metadata.get("rescale")
        if said is None:
            return backbone
        factors = said.get("factors") if isinstance(said, Mapping) else None
        convolutions = {n.removesuffix(".weight") for n, v in backbone.state.items() if v.ndim == 4}
        if (
            not isinstance(factors, Mapping)
            or factors.keys() != convolutions
            or not all(type(factor) in (int, float) and factor > 0 for factor in factors.values())
        ):
            raise VerifyError(
                f"{self.file.path}: says that its weight norms were rescaled, but not by a "
                "positive factor for each of the checkpoint's convolutions; convert the checkpoint "
                "again"
            )
        text = "the weight norms were rescaled; compared is the equally rescaled checkpoint"
        self.findings.append(Finding("note", "weights", text))
        return Rescaling(source={}, factors=factors).apply(backbone)

    def _config(self, chain: Chain, pictures: list[Path]) -> None:
        right = right_maps(self.file, self.trunk, pictures)
        self.findings += pixel_findings(chain, self.file, self.trunk, right, pictures)
        levels = together(chain, self.trunk, right, pictures)
        by = f"{INDEPENDENT}, its pixels and stride"
        self.comparisons.append(Comparison("config", by, levels))
        if self._detectron2_serves():
            self._config_in_detectron2(chain, right, pictures)

    def _config_in_detectron2(self, chain: Chain, right: Maps, pictures: list[Path]) -> None:
        try:
            cfg = in_detectron2.users_config(chain.path, self.matching.layout)
        except in_detectron2.NotRun as reason:
            self.findings.append(Finding("note", "config", str(reason)))
            return
        self._in_detectron2("config", cfg, right, pictures)

    def _detectron2_serves(self) -> bool:
        return has_detectron2() and can_build(self.file.depth, self.file.width)

    def _in_detectron2(self, subject: str, cfg: Any, right: Maps, pictures: list[Path]) -> None:
        """Let Detectron2 itself load and run; what it finds and nothing else did is an error."""
        try:
            found = in_detectron2.run(
                self.file,
                self.given,
                cfg,
                self.matching.layout,
                pictures,
                heuristics=self.file.heuristics,
            )
        except VerifyError as error:
            self.findings.append(Finding("error", subject, str(error)))
            return
        levels, loaded = relative(right, found.maps), f"{found.loaded} of {found.total}"
        self.comparisons.append(Comparison(subject, found.version, levels, loaded))
        explained = any(f.severity == "error" or f.subject == DILATION for f in self.findings)
        if not explained and not (equal(levels) and found.loaded == found.total):
            text = f"{found.version} itself loads {loaded} tensors and its maps differ"
            self.findings.append(Finding("error", subject, text, levels=levels))


def _described_backbone(backbone: Backbone | None) -> dict[str, Any]:
    if backbone is None:
        return {}
    return {
        "file": Path(backbone.source).name,
        "format": backbone.format,
        "branch": backbone.branch,
        "prefix": repr(backbone.prefix),
    }


def _described_chain(chain: Chain | None) -> dict[str, Any]:
    if chain is None:
        return {}
    return {"file": chain.path.name, "layout": layout_of(chain)}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
