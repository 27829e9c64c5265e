"""What each code base writes: where its trunks stand and which other keys its models have.

The first format that explains *all* keys of a file names its branches. To add one, add an entry to
``FORMATS`` and its key list to ``tests/sslbench/key_lists``; docs/checkpoints.md is made from here
by ``python -m sslbench.checkpoint.table``.
"""

import re
from dataclasses import dataclass
from functools import cached_property

# Ends of keys: a linear layer or convolution, BatchNorm, BatchNorm without scale and shift.
W = r"\.(?:weight|bias)"
N = r"\.(?:weight|bias|running_mean|running_var|num_batches_tracked)"
S = r"\.(?:running_mean|running_var|num_batches_tracked)"
FC = r"fc" + W
BRANCHES = ("online", "target")
SAME_PADDING = (
    "trained with TensorFlow's SAME padding, which is not symmetric where the stride is 2: in "
    "a network that pads as torch does its features are shifted a little"
)


@dataclass(frozen=True)
class Format:
    """How one code base names things, wrappers taken off.

    Args:
        saved: how the file is laid out, for people.
        verified: how its keys are known: from the package, by source at a commit, or described.
        online: prefixes of the trunk that is trained; several are copies of one another.
        target: prefixes of its moving average.
        others: regular expressions of whole keys, within a section, that are no part of a trunk.
        marks: at least one full key must match one of these; tells apart what shares prefixes.
        schemes: keys of ``naming.SCHEMES``.
        notes: what cannot be seen in the weights and whoever uses them must know.
    """

    saved: str
    verified: str
    online: tuple[str, ...]
    target: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ("torchvision",)
    notes: tuple[str, ...] = ()

    @cached_property
    def places(self) -> tuple[str, ...]:
        """Every prefix that may stand in front of a trunk."""
        return self.online + self.target

    def knows(self, key: str) -> bool:
        """Tell whether a key within its section is one of those beside a trunk."""
        return any(pattern.fullmatch(key) for pattern in self._others)

    def is_marked(self, keys: "tuple[str, ...] | list[str]") -> bool:
        """Tell whether the file has what tells this format from others."""
        return not self.marks or any(p.match(key) for p in self._marks for key in keys)

    @cached_property
    def _others(self) -> tuple[re.Pattern[str], ...]:
        return tuple(map(re.compile, self.others))

    @cached_property
    def _marks(self) -> tuple[re.Pattern[str], ...]:
        return tuple(map(re.compile, self.marks))


VISSL_BASE = "classy_state_dict/base_model/model/trunk/"
VISSL_LOSS = ("loss/", "classy_state_dict/loss/")
MMENGINE_HEADS = (
    rf"(?:neck|(?:encoder_k|target_net|momentum_encoder)\.module\.1)"
    rf"\.(?:(?:fc[012]|mlp2?\.[02]){W}|bn[012]{N})",
    rf"neck\.(?:norm{N}|projection_neck\.(?:[03]{W}|1{N}))",
    r"(?:(?:encoder_k|target_net|momentum_encoder)\.)?steps",
    rf"head\.(?:predictor\.(?:fc[01]{W}|bn0{N})|bn{S}|fc{W}|loss_module\.prototypes\.weight)",
    r"queue2?(?:_ptr)?",
)
MMENGINE_TARGETS = ("encoder_k.module.0.", "target_net.module.0.", "momentum_encoder.module.0.")
LIGHTLY_HEADS = (
    rf"(?:(?:teacher|key|student)_)?(?:projection|prediction)_head(?:_global|_local)?"
    rf"(?:_momentum)?\.layers\.\d+{N}",
    rf"local_projection_head\.layers\.\d+{W}",
    rf"prototypes\.heads\.\d+{W}",
    rf"(?:student_|teacher_)?(?:head|projection_head)\.(?:layers\.\d+{N}|last_layer\.weight_[gv]"
    r"|last_layer\.parametrizations\.weight\.original[01])",
    r"criterion\.center(?:\.center)?",
    rf"online_classifier\.classification_head{W}",
    rf"(?:(?:student|teacher|key)_)?backbone(?:_momentum)?\.{FC}",
)
MOCO_HEADS = (rf"encoder_[qk]\.fc(?:\.[02])?{W}", r"queue(?:_ptr)?")
SOCO_HEADS = rf"(?:linear[12]{W}|bn1{N})"

FORMATS: dict[str, Format] = {
    "sslbench": Format(
        "`model`, written by this suite's pretraining",
        "this suite's own tests",
        ("online.backbone.",),
        ("target.backbone.",),
        (r"(?:online|target)\..+",),
    ),
    "torchvision": Format(
        "flat; or `state_dict`, `model` (the reference scripts: also `model_ema`)",
        "package torchvision 0.29.1",
        ("",),
        ("model_ema/",),
        (FC, "n_averaged"),
    ),
    "timm": Format(
        "flat; train.py: `state_dict`, `state_dict_ema`",
        "package timm 1.0.31",
        ("",),
        ("state_dict_ema/",),
        (FC,),
    ),
    "CYBORGS": Format(
        "`state_dict`; the release may be the trunk alone",
        "source renwang435/CYBORGS@5737d31, instantiated; its release was not opened",
        ("net.", "online_encoder.net."),
        ("target_encoder.net.",),
        (
            rf"(?:(?:online|target)_encoder\.)?net\.{FC}",
            rf"(?:(?:online|target)_encoder\.projector|online_predictor)\.net\.(?:[03]{W}|1{N})",
        ),
    ),
    "byol-pytorch": Format(
        "flat, whatever the user saves",
        "package byol-pytorch 0.9.1",
        ("net.", "online_encoder.net."),
        ("target_encoder.net.",),
        (
            rf"(?:(?:online|target)_encoder\.)?net\.{FC}",
            rf"(?:(?:online|target)_encoder\.projector|online_predictor)(?:\.\d){{1,2}}{N}",
            rf"instances_to_scene_linear{W}",  # an unofficial UniVIP
        ),
    ),
    "MoCo v1/v2": Format(
        "`state_dict` with `module.` (CAST by one process: without); releases hold the query "
        "encoder alone. CAST and PCL have the same keys",
        "source facebookresearch/moco@132aea9, instantiated; salesforce/CAST@fcc4adf, "
        "salesforce/PCL@964da1f",
        ("encoder_q.",),
        ("encoder_k.",),
        MOCO_HEADS,
    ),
    "MoCo v3": Format(
        "`state_dict` with `module.`",
        "source facebookresearch/moco-v3@c349e6e, instantiated",
        ("base_encoder.",),
        ("momentum_encoder.",),
        (
            rf"(?:base|momentum)_encoder\.fc\.(?:[03]\.weight|[14]{N})",
            rf"predictor\.(?:[03]\.weight|1{N})",
        ),
    ),
    "ReSim": Format(
        "`state_dict` with `module.`",
        "source Tete-Xiao/ReSim@b6a36ee, instantiated",
        ("encoder_q.",),
        ("encoder_k.",),
        (*MOCO_HEADS, rf"encoder_[qk]\.fpn_(?:lateral|output)[2-5](?:\.norm)?{N}"),
    ),
    "PLRC": Format(
        "`state_dict` with `module.`",
        "source facebookresearch/PLRC@5fbd1cb, instantiated; its release was not opened",
        ("encoder_q.enc.",),
        ("encoder_k.enc.",),
        (
            rf"encoder_[qk]\.enc\.(?:fcs\.[02]{W}|fcs_2\.(?:mlp\.\d{N}|last_layer\.weight_[gv]))",
            r"plrc_loss(?:_image)?\.(?:ptr|queue_x|self_distillation\.center)",
        ),
    ),
    "OpenSelfSup": Format(
        "`state_dict` beside `meta`; extracted files, as the releases of DenseCL, ORL and DetCo "
        "(a torch file in spite of its .pkl), hold the trunk alone",
        "source open-mmlab/OpenSelfSup@1db69ec, instantiated",
        ("backbone.", "encoder_q.0.", "online_net.0."),
        ("encoder_k.0.", "target_net.0."),
        (
            rf"(?:neck|(?:encoder_[qk]|online_net|target_net)\.1)\.(?:(?:fc|fc[01]|mlp\.[02]){W}"
            rf"|(?:bn|bn[01]|mlp\.1){N}|mlp\.3{W})",
            rf"head\.(?:predictor\.mlp\.(?:[03]{W}|1{N})|fc_cls{W}|fcs\.\d{W}|norms\.\d{S})",
            r"queue(?:_ptr)?",
        ),
    ),
    "DenseCL": Format(
        "as OpenSelfSup",
        "source WXinlong/DenseCL@b64bbb6, instantiated",
        ("backbone.", "encoder_q.0."),
        ("encoder_k.0.",),
        (rf"encoder_[qk]\.1\.mlp2?\.[02]{W}", r"queue2?(?:_ptr)?"),
    ),
    "ORL": Format(
        "as OpenSelfSup; stage 1 is BYOL and has `head.`, stage 3 `global_head.`",
        "source Jiahao000/ORL@2ad64f7, instantiated",
        ("backbone.", "online_net.0."),
        ("target_net.0.",),
        (
            r"(?:neck|(?:online|target)_net\.1|(?:head|global_head|local_intra_head"
            rf"|local_inter_head)\.predictor)\.(?:fc0{W}|bn0{N}|fc1\.weight)",
        ),
    ),
    "mmselfsup 0.x": Format(
        "`state_dict` beside `meta`",
        "source open-mmlab/mmselfsup, tags v0.5.0 and v0.11.0",
        ("backbone.", "encoder_q.0.", "online_net.0.", "encoder.0.", "base_encoder.0."),
        ("encoder_k.0.", "target_net.0.", "momentum_encoder.0."),
        (
            r"(?:neck|(?:encoder_[qk]|online_net|target_net|encoder|base_encoder|momentum_encoder)"
            rf"\.1)\.(?:(?:fc[012]|mlp2?\.[02]){W}|bn[012]{N})",
            rf"head\.(?:predictor\.)?(?:fc[01]{W}|bn0{N})",
            r"queue2?(?:_ptr)?",
        ),
    ),
    "mmpretrain": Format(
        "`state_dict` beside `meta`; mmselfsup 1.x too",
        "packages mmpretrain 1.2.0, mmengine 0.10.7",
        ("backbone.",),
        MMENGINE_TARGETS,
        MMENGINE_HEADS,
    ),
    "mmpretrain with EMAHook": Format(
        "`ema_state_dict` holds the trained weights, `state_dict` their average (it swaps them)",
        "source of mmengine 0.10.7",
        ("ema_state_dict/backbone.",),
        ("backbone.",),
        MMENGINE_HEADS,
        marks=("ema_state_dict/",),
    ),
    "PixPro": Format(
        "`model` with `module.`, beside `opt`",
        "source zdaxie/PixPro@e390d6b, instantiated",
        ("encoder.",),
        ("encoder_k.",),
        (
            rf"(?:projector(?:_instance)?(?:_k)?|predictor|value_transform)\.{SOCO_HEADS}",
            rf"value_transform{W}",
        ),
    ),
    "SoCo": Format(
        "`model` with `module.`, beside `opt`",
        "source hologerry/SoCo@2be1229, instantiated",
        ("encoder.",),
        ("encoder_k.",),
        (
            rf"neck(?:_k)?\.(?:lateral|fpn)_convs\.\d\.(?:conv\.weight|bn{N})",
            rf"head(?:_k)?\.(?:conv[1-4]\.weight|bn[1-4]{N}|fc1{W})",
            rf"(?:projector(?:_k)?|predictor)\.{SOCO_HEADS}",
            r"queue(?:_ptr)?",
        ),
    ),
    "PyContrast": Format(
        "`model` with `module.`, `model_ema` without (InsDis, MoCo, PIRL, InfoMin)",
        "source HobbitLong/PyContrast@84f94ea, instantiated",
        ("encoder.",),
        ("model_ema/encoder.",),
        (rf"head(?:\.[02]){W}", rf"head_jig\.(?:fc1(?:\.[02])?|fc2){W}"),
    ),
    "SimSiam": Format(
        "`state_dict` with `module.`; its projector is called fc",
        "source facebookresearch/simsiam@a7bc177, instantiated",
        ("encoder.",),
        (),
        (
            rf"encoder\.fc\.(?:[03]\.weight|[147]{N}|6{W})",
            rf"predictor\.(?:0\.weight|1{N}|3{W})",
        ),
    ),
    "SwAV": Format(
        "`state_dict` or flat, with `module.` (DeepCluster-v2 and SeLa-v2 too)",
        "source facebookresearch/swav@06b1b7c, instantiated",
        ("",),
        (),
        (
            rf"projection_head(?:\.[03])?{W}",
            rf"projection_head\.1{N}",
            r"prototypes(?:\.prototypes\d)?\.weight",
        ),
    ),
    "DINO": Format(
        "`student`, `teacher`; the released trunk alone is the teacher's",
        "source facebookresearch/dino@7c446df, instantiated",
        ("student/backbone.",),
        ("teacher/backbone.",),
        (rf"head\.mlp\.\d{N}", r"head\.last_layer\.weight_[gv]"),
    ),
    "Barlow Twins": Format(
        "`model` with `module.`; the release is the trunk alone",
        "source facebookresearch/barlowtwins@8e8d284, instantiated",
        ("backbone.",),
        (),
        (rf"projector\.(?:[036]\.weight|[14]{N})", rf"bn{S}"),
    ),
    "VICReg": Format(
        "`model` with `module.` (VICRegL too); releases are the trunk alone",
        "source facebookresearch/vicreg@4e12602, VICRegL@803ae4c, instantiated",
        ("backbone.",),
        (),
        (rf"(?:maps_)?projector\.(?:[03]{W}|[14]{N}|6\.weight)", rf"classifier{W}"),
    ),
    "VISSL": Format(
        "`classy_state_dict`, `model_state_dict` or flat; the momentum network in `loss`",
        "source facebookresearch/vissl@09270ed; its trunk instantiated",
        (VISSL_BASE + "_feature_blocks.", "_feature_blocks.", "base_model._feature_blocks."),
        tuple(
            place + network
            for place in VISSL_LOSS
            for network in (
                "moco_encoder.trunk._feature_blocks.",
                "momentum_teacher.module.trunk._feature_blocks.",
                "momentum_teacher.trunk._feature_blocks.",
            )
        ),
        (
            r"queue(?:_ptr)?",
            r"center",
            rf"(?:moco_encoder|momentum_teacher(?:\.module)?)\.heads\.\d\.(?:clf\.\d+{N}"
            rf"|projection_head\.\d{N}|prototypes\d\.(?:weight|weight_[gv]))",
        ),
    ),
    "VirTex": Format(
        "`model`; the released backbone is the trunk alone",
        "source kdexd/virtex@ae67b23, instantiated",
        ("visual.cnn.",),
        (),
        (
            rf"(?:backward_)?textual\.(?:visual_projection{W}|output{W}|embedding\.(?:words\.weight"
            rf"|positions\.weight|layer_norm{W})|transformer\.layers\.\d+\.(?:(?:self|multihead)"
            rf"_attn\.(?:in_proj_(?:weight|bias)|out_proj{W})|linear[12]{W}|norm[123]{W}))",
        ),
    ),
    "solo-learn": Format(
        "Lightning's `state_dict`; before 1.0.3 `encoder.` in the place of `backbone.`",
        "source vturrisi/solo-learn@9187ea3, instantiated; package solo-learn 1.0.2 read",
        ("backbone.", "encoder."),
        ("momentum_backbone.", "momentum_encoder."),
        (
            rf"(?:momentum_)?classifier{W}",
            rf"(?:momentum_)?projector(?:\.\d+)+{N}",
            rf"predictor2?\.\d+{N}",
            rf"(?:momentum_)?head\.(?:mlp\.\d{W}|last_layer\.weight_[gv])",
            r"prototypes(?:\.\d)?\.weight(?:_[gv])?",
            r"queue(?:_y|_ptr|_index)?",
            r"local_memory_(?:index|embeddings)",
            r"dino_loss_func\.center",
            r"transformer_encoder\.layers\.\d\..+",
            r"pos_enc\.penc\.penc\.inv_freq",
        ),
        marks=(r"(?:momentum_)?classifier\.",),
    ),
    "lightly": Format(
        "Lightning's `state_dict` or flat; torchvision's names or its children by number",
        "package lightly 1.6.0; its examples and benchmarks at lightly-ai/lightly@e8d317f",
        ("backbone.",),
        ("backbone_momentum.", "teacher_backbone.", "key_backbone."),
        LIGHTLY_HEADS,
        schemes=("torchvision", "sequential"),
    ),
    "lightly DINO": Format(
        "as lightly; in its benchmark `backbone.` is the teacher",
        "package lightly 1.6.0; its examples and benchmarks at lightly-ai/lightly@e8d317f",
        ("student_backbone.",),
        ("backbone.", "teacher_backbone."),
        LIGHTLY_HEADS,
        marks=(r"student_",),
        schemes=("torchvision", "sequential"),
    ),
    "children by number": Format(
        "flat: a Sequential of torchvision's children saved alone, as lightly's tutorials do",
        "package torchvision 0.29.1",
        ("",),
        (),
        (),
        schemes=("sequential",),
    ),
    "Hugging Face": Format(
        "flat, safetensors or .bin",
        "package transformers 5.23.0",
        ("", "resnet."),
        (),
        (rf"classifier\.1{W}",),
        schemes=("huggingface",),
    ),
    "Detectron2": Format(
        "`model` in .pkl or .pth; also what the converters of MoCo, PixPro, SoCo, PyContrast, "
        "OpenSelfSup, DetCo, ReSim and InsLoc write (`--allow-pickle`)",
        "source facebookresearch/detectron2@02b5c4e, instantiated",
        ("", "backbone.", "backbone.bottom_up."),
        (),
        (
            rf"stem\.fc(?:\.\d)?{W}",
            r"pixel_(?:mean|std)",
            rf"(?:backbone\.)?fpn_(?:lateral|output)[2-5](?:\.norm)?{N}",
            rf"proposal_generator\.rpn_head\.(?:conv|objectness_logits|anchor_deltas){W}",
            r"proposal_generator\.anchor_generator\.cell_anchors\.\d",
            rf"(?:roi_heads\.)?box_head\.(?:fc\d{W}|conv\d\.(?:weight|norm{N}))",
            rf"roi_heads\.(?:box_predictor\.(?:cls_score|bbox_pred){W}"
            rf"|mask_head\.(?:mask_fcn\d(?:\.norm)?|deconv|predictor){N}|res5_norm{N}|norm{N})",
        ),
        schemes=("detectron2",),
    ),
    "InsLoc": Format(
        "`state_dict` beside `meta`; of the C4 variant layer4 stands in the RoI head",
        "source limbo0000/InstanceLoc@a419bb6",
        ("backbone.",),
        ("backbone_k.",),
        (
            rf"neck(?:_k)?\.(?:lateral|fpn)_convs\.\d\.(?:conv{W}|bn{N})",
            rf"roi_head(?:_k)?\.bbox_head\.(?:shared_convs\.\d\.(?:conv{W}|bn{N})"
            rf"|shared_fcs\.\d{W}|fc_cls{W})",
            r"queues?(?:_ptr)?",
        ),
    ),
    "SCRL": Format(
        "`online_network_state_dict`, `target_network_state_dict`",
        "source kakaobrain/scrl@62730fb",
        ("online_network_state_dict/encoder.",),
        ("target_network_state_dict/encoder.",),
        (rf"projector\.net\.\d{N}",),
        schemes=("sequential",),
    ),
    "LEWEL": Format(
        "`state_dict` with `module.`",
        "source LayneH/LEWEL@4ee47eb, instantiated",
        ("online_net.backbone.",),
        ("target_net.backbone.",),
        (
            r"(?:(?:online|target)_net\.neck\.proj(?:_obj)?|predictor(?:_obj)?)\.mlp\."
            rf"(?:[03]\.weight|1{N})",
        ),
    ),
    "SeLa": Format(
        "`state_dict`: torchvision's children by number",
        "source yukimasano/self-label@3891e37, instantiated",
        ("features.",),
        (),
        (rf"top_layer\d?(?:\.\d)?{W}",),
        schemes=("sequential",),
    ),
    "BYOL of DeepMind": Format(
        "`experiment_state` of a .pkl (`--allow-pickle`); a DetCon .npy of the same layout",
        "source google-deepmind/deepmind-research@f5de0ed with dm-haiku 0.0.17; DetCon described "
        "only, its file was not opened",
        ("online/res_net50/~/",),
        ("target/res_net50/~/",),
        (
            r"(?:projector|predictor)/(?:linear(?:_\d)?|batch_norm)/.+",
            r"classifier/[wb]",
            r"res_net50/~/.+/~/(?:mean|var)_ema/(?:hidden|counter)",
        ),
        schemes=("haiku",),
        notes=(SAME_PADDING,),
    ),
}
