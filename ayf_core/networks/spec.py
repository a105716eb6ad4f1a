"""What a network is made of, as plain data: it is stored beside the weights and rebuilds the network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ayf_core.conditions import ConditionSpec
from ayf_core.registry import find


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A mean-velocity network: what every kind of network has in common, and its kind's own settings.

    Args:
        kind: a name of the room `network`, such as 'dit' for [C, *spatial] data or 'mlp' for [D] data.
        settings: of that kind, by name: those of its settings class.
        shape: shape of one sample, without the batch.
        conditions: what the network is conditioned on; it has an embedder for each of them.
        interval: whether the network is told t - s (a flow map) or not (a velocity).
        guidance: whether the network is told the guidance scale λ.

    Raises:
        AyfError: an unknown kind, or settings that do not fit each other or the shape.
    """

    kind: str
    settings: Mapping[str, Any]
    shape: tuple[int, ...]
    conditions: ConditionSpec = field(default_factory=ConditionSpec)
    interval: bool = False
    guidance: bool = False

    def __post_init__(self) -> None:
        self.network.check(self.shape)

    @property
    def network(self) -> Any:
        """The settings as an object of the kind's own class, which builds the network."""
        return find("network", self.kind).load()(**self.settings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `model.json`."""
        return {
            "kind": self.kind,
            "settings": dict(self.settings),
            "shape": list(self.shape),
            "conditions": self.conditions.to_dict(),
            "interval": self.interval,
            "guidance": self.guidance,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "NetworkSpec":
        """The opposite of `to_dict`."""
        conditions = ConditionSpec.from_dict(fields["conditions"])
        return cls(**{**fields, "shape": tuple(fields["shape"]), "conditions": conditions})
