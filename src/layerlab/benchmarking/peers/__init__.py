"""What people would otherwise write, on the job that our tiers do: the same start, rows, rate and loss.

One file a peer, each to be read as the script that it is: what its documentation says, and nothing tuned.
They train by what is theirs alone, each in a process of its own. `worker` hands them the job and audits what
they made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Literal

EXTRA = "pip install 'layerlab[peers]'"


@dataclass(frozen=True)
class Peer:
    """Somebody else's way to do the job.

    Attributes:
        name: What it is called in a report.
        module: Where it is written down; its ``train`` does a `layerlab.benchmarking.peers.job.Job`.
        package: What it imports, and may not be installed.
        distribution: The distribution of that package.
        mode: What a step of it includes, in the terms of `layerlab.benchmarking.report.MODES`.
    """

    name: str
    module: str
    package: str
    distribution: str
    mode: Literal["bare", "tracked"]


_HERE = "layerlab.benchmarking.peers"
PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "lightning-script",
            f"{_HERE}.lightning_script",
            "pytorch_lightning",
            "pytorch-lightning",
            "tracked",
        ),
        Peer("skorch", f"{_HERE}.skorch_net", "skorch", "skorch", "bare"),
        Peer("keras", f"{_HERE}.keras_model", "keras", "keras", "bare"),
    )
}
