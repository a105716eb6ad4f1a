"""What graphics cards can do, from their makers' data sheets, and how much of it a training is assumed to get."""

from dataclasses import dataclass

from ayf_core.errors import AyfError

MATRIX_FRACTION = 0.5
"""Assumed share of the peak rate that a matrix product reaches."""
BANDWIDTH_FRACTION = 0.7
"""Assumed share of the memory's bandwidth that everything else reaches."""
LAUNCH_SECONDS = 5e-6
"""Assumed time of the host to give out one operation: a step of small ones cannot be faster."""
RESERVED_BYTES = 2**30
"""Assumed for what a process takes besides tensors: libraries, a card's context, the allocator's gaps."""


@dataclass(frozen=True)
class Hardware:
    """One card.

    Attributes:
        memory: bytes that a process can have, about.
        bfloat16, tf32, float32: floating-point operations a second of dense matrix products (a product and a sum are
            two), with sums in float32.
        bandwidth: bytes a second between memory and cores.
    """

    title: str
    memory: float
    bfloat16: float
    tf32: float
    float32: float
    bandwidth: float

    def rate(self, type_name: str, tf32: bool) -> float:
        """The peak rate of matrix products of this type ('bfloat16', 'float16', 'float32', ...)."""
        if type_name in ("bfloat16", "float16"):
            return self.bfloat16
        return self.tf32 if tf32 and type_name == "float32" else self.float32

    def seconds(self, flops: float, moved: float, type_name: str, tf32: bool = False) -> float:
        """One operation: bound by arithmetic or by the memory, whichever takes longer (the roofline).

        Args:
            flops: of its matrix products or convolutions, 0 of anything else.
            moved: bytes that it reads and writes.
        """
        arithmetic = flops / (MATRIX_FRACTION * self.rate(type_name, tf32))
        return max(arithmetic, moved / (BANDWIDTH_FRACTION * self.bandwidth))


def _card(title: str, gib: float, bfloat16: float, tf32: float, float32: float, gigabytes: float) -> Hardware:
    tera = 1e12
    return Hardware(title, gib * 2**30, bfloat16 * tera, tf32 * tera, float32 * tera, gigabytes * 1e9)


HARDWARE = {
    # NVIDIA's data sheets and architecture white papers; rates without sparsity, in teraFLOPS. Memory in GiB, rounded
    # down from what the driver reports.
    "rtx-3090": _card("NVIDIA GeForce RTX 3090", 23.5, 71, 35.6, 35.6, 936),
    "rtx-4090": _card("NVIDIA GeForce RTX 4090", 23.5, 165.2, 82.6, 82.6, 1008),
    "rtx-5090": _card("NVIDIA GeForce RTX 5090", 31.3, 209.5, 104.8, 104.8, 1792),
    "rtx-a6000": _card("NVIDIA RTX A6000", 47.4, 154.8, 77.4, 38.7, 768),
    "a10": _card("NVIDIA A10", 22, 125, 62.5, 31.2, 600),
    "l40s": _card("NVIDIA L40S", 44.4, 362, 183, 91.6, 864),
    "a100-40gb": _card("NVIDIA A100 SXM, 40 GB", 39.4, 312, 156, 19.5, 1555),
    "a100-80gb": _card("NVIDIA A100 SXM, 80 GB", 79, 312, 156, 19.5, 2039),
    "h100": _card("NVIDIA H100 SXM", 79, 989, 494, 67, 3350),
    "h200": _card("NVIDIA H200 SXM", 139, 989, 494, 67, 4800),
    "b200": _card("NVIDIA B200 SXM", 178, 2250, 1125, 75, 8000),
}
"""Cards by the name that the runtime's `hardware` takes."""


def hardware_named(name: str) -> Hardware:
    """The card of this name.

    Raises:
        AyfError: it is not in the table.
    """
    if name not in HARDWARE:
        raise AyfError(f"no hardware {name!r}: choose one of {', '.join(HARDWARE)}, or null for this machine")
    return HARDWARE[name]
