"""The settings of papers: sizes of a training step."""

from __future__ import annotations

from dataclasses import replace

from peers.problem import Setting

OMNIGLOT = Setting(tasks=32, query=1, inner=1, rate=2.0, downsample="stride", heads=("fomaml", "maml"))
"""MAML on Omniglot (Finn et al. 2017; Bronskill et al. 2020, Table 1)."""
OMNIGLOT_20 = replace(OMNIGLOT, tasks=16, way=20, inner=5, heads=("fomaml",))
MINI_IMAGENET = Setting(channels=3, size=84, width=32, heads=("maml",))
"""MAML on mini-ImageNet, 5-way 1-shot (Finn et al. 2017)."""
REPTILE = replace(OMNIGLOT, tasks=5, shot=10, inner=5, heads=("reptile",))
"""Reptile on Omniglot (Nichol et al. 2018), with 10 images in a step of Adam."""
PROTONET = Setting(tasks=1, way=20, query=5, heads=("protonet",))
"""A prototypical network on Omniglot (Snell et al. 2017), 20-way as by Bronskill et al. (2020)."""
R2D2 = Setting(backbone="r2d2", width=96, channels=3, size=84, tasks=1, way=16, query=5, heads=("r2d2",))
"""R2-D2 on mini-ImageNet, which trains on 16-way tasks (Bertinetto et al. 2019)."""
PEERS = {
    "Omniglot 5-way": OMNIGLOT,
    "Omniglot 20-way": OMNIGLOT_20,
    "mini-ImageNet": MINI_IMAGENET,
    "prototypical network": PROTONET,
    "R2-D2": R2D2,
}
"""The settings of ``benchmark.py peers --papers``."""
INNER = {
    "Omniglot 5-way": replace(OMNIGLOT, heads=(*OMNIGLOT.heads, "anil")),
    "Omniglot 20-way": OMNIGLOT_20,
    "mini-ImageNet": MINI_IMAGENET,
    "4 tasks": Setting(heads=("maml", "fomaml", "anil")),
    "Reptile": REPTILE,
    "CNAPs": Setting(tasks=16, query=10, heads=("cnaps",)),
}
"""The settings of ``benchmark.py inner``."""
