"""A plain multi-layer perceptron for low-dimensional data."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.embeddings import fill_labels
from ayf_core.networks.spec import NetworkSpec

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


class MLP(MeanVelocityNetwork):
    """Mean velocity of points: F(x, t, s | label, λ) for x [B, D].

    Time, interval length t - s, guidance scale λ - 1 and a one-hot label are input columns beside x. The
    columns of the interval and of λ start at zero, so a student that copies a teacher's weights starts as the
    teacher's velocity at every s and λ.
    """

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        (dimension,) = spec.shape
        activation = ACTIVATIONS[spec.activation]
        self.input = nn.Linear(dimension + 1, spec.width)
        self.label = nn.Embedding(spec.num_classes + 1, spec.width) if spec.num_classes > 1 else None
        self.interval = nn.Linear(1, spec.width, bias=False) if spec.interval else None
        self.guidance = nn.Linear(1, spec.width, bias=False) if spec.guidance else None
        for condition in (self.interval, self.guidance):
            if condition is not None:
                nn.init.zeros_(condition.weight)
        hidden: list[nn.Module] = [activation()]
        for _ in range(spec.depth - 1):
            hidden += [nn.Linear(spec.width, spec.width), activation()]
        self.hidden = nn.Sequential(*hidden)
        self.output = nn.Linear(spec.width, dimension)

    @property
    def last_layer(self) -> Tensor:
        return self.output.weight

    @property
    def sharded_blocks(self) -> list[nn.Module]:
        return [layer for layer in self.hidden if isinstance(layer, nn.Linear)]

    def forward(
        self,
        x: Float[Tensor, "batch dim"],
        t: Float[Tensor, " batch"],
        s: Float[Tensor, " batch"] | None = None,
        labels: Int[Tensor, " batch"] | None = None,
        guidance_scale: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        h = self.input(torch.cat([x, t[:, None].to(x.dtype)], dim=1))
        if self.label is not None:
            h = h + self.label(fill_labels(labels, len(x), self.spec.num_classes, x.device))
        if self.interval is not None and s is not None:
            h = h + self.interval((t - s)[:, None].to(x.dtype))
        if self.guidance is not None and guidance_scale is not None:
            h = h + self.guidance((guidance_scale - 1)[:, None].to(x.dtype))
        return self.output(self.hidden(h))
