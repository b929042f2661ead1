"""Published peak rates, memory and prices of chips, from which predictions are made."""

import dataclasses

from quecc_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip."""

    name: str
    kind: str
    """What JAX calls it (`Device.device_kind`)."""
    hbm_gib: float
    """Main memory, as it is sold."""
    flops: float
    """Peak bfloat16 FLOP/s."""
    hbm_bytes: float
    """Bytes per second between main memory and the cores."""
    link_bytes: float
    """Bytes per second of one interconnect (ICI) link in one direction."""
    axes: int
    """Dimensions of the torus, with two links each; 0 where there is one link to a switch or bus."""
    wraps: int
    """A dimension of the slice closes to a ring when its size is a multiple of this."""
    source: str
    usable_gib: float = 0.0
    """Main memory that the compiler gives to a program, as it says itself when one does not fit (libtpu
    0.0.42.1); 0 where that is not known."""
    dcn_bytes: float = 0.0
    """Bytes per second and chip between slices; 0 where that is not published."""
    usd_per_hour: float | None = None
    """List price of one chip for an hour on demand, the host that belongs to it included; None where no source is
    known. Discounts, spot and other regions have other prices: commands take one in its place."""
    price_source: str = ""
    """Who asks for that, where, and on which day."""


# TPU interconnect: Google publishes a chip's total over all links and both directions; a link's share in one
# direction is that over 2 * 2 * axes. NVIDIA publishes NVLink (L4: PCIe) over both directions; FLOP/s without
# sparsity are half of the figures printed for sparse matrices. Between slices: Google publishes a pod's total
# (v5e, v6e: 256 chips); a v5p host has 200 Gbit/s for its four chips. Prices of TPUs stand in Google's billing
# catalogue, which SkyPilot's reads; those of GPUs are of a machine with eight.
_GOOGLE = (
    "Google Cloud, us-central1, cloud.google.com/tpu/pricing, as in catalogs/v8/gcp/vms.csv of "
    "github.com/skypilot-org/skypilot-catalog, read 2026-11-30"
)
_LAMBDA = (
    "Lambda, machines of eight, lambda.ai/pricing on 2026-09-25, as in derived/cost.json of "
    "github.com/tgarg01/silybench-data, read 2026-11-30"
)
CHIPS = (
    Chip(
        "v4",
        "TPU v4",
        32,
        275e12,
        1200e9,
        50e9,
        3,
        4,
        "https://cloud.google.com/tpu/docs/v4; links: Jouppi et al., ISCA 2023 (arXiv 2304.01433)",
        30.75,
    ),
    Chip(
        "v5e",
        "TPU v5 lite",
        16,
        197e12,
        819e9,
        400e9 / 8,
        2,
        16,
        "https://cloud.google.com/tpu/docs/v5e",
        15.75,
        6.4e12 / 8 / 256,
        1.20,
        _GOOGLE,
    ),
    Chip(
        "v5p",
        "TPU v5",
        95,
        459e12,
        2765e9,
        1200e9 / 12,
        3,
        4,
        "https://cloud.google.com/tpu/docs/v5p",
        95.74,
        200e9 / 8 / 4,
        4.20,
        _GOOGLE,
    ),
    Chip(
        "v6e",
        "TPU v6 lite",
        32,
        918e12,
        1600e9,
        800e9 / 8,
        2,
        16,
        "https://cloud.google.com/tpu/docs/v6e",
        31.25,
        25.6e12 / 8 / 256,
        2.70,
        _GOOGLE,
    ),
    Chip(
        "a100",
        "NVIDIA A100-SXM4-80GB",
        80,
        312e12,
        2039e9,
        600e9 / 2,
        0,
        1,
        "NVIDIA A100 80GB SXM data sheet (June 2021)",
        usd_per_hour=2.79,
        price_source=_LAMBDA,
    ),
    Chip(
        "h100",
        "NVIDIA H100 80GB HBM3",
        80,
        989e12,
        3350e9,
        900e9 / 2,
        0,
        1,
        "NVIDIA H100 SXM data sheet (2023)",
        usd_per_hour=3.99,
        price_source=_LAMBDA,
    ),
    Chip("l4", "NVIDIA L4", 24, 121e12, 300e9, 64e9 / 2, 0, 1, "NVIDIA L4 data sheet (2023)"),
)


def find_chip(name: str) -> Chip:
    """The chip of a name such as `v5e`, or of a `Device.device_kind`.

    Raises:
      UserError: it is not in the table.
    """
    for chip in CHIPS:
        if name in (chip.name, chip.kind):
            return chip
    raise UserError(f"no figures are known for the chip {name!r}; known: {', '.join(c.name for c in CHIPS)}")


def price_of(name: str, given: float | None) -> tuple[float, str]:
    """Dollars for an hour of one chip, and where they are from.

    Args:
      name: of a chip, as `find_chip` takes it, or of anything else that has no list price.
      given: a price in the place of the list's.

    Raises:
      UserError: there is neither; names the option `--price`.
    """
    if given is not None:
        return given, "as given"
    chip = next((chip for chip in CHIPS if name in (chip.name, chip.kind)), None)
    if chip is None or chip.usd_per_hour is None:
        raise UserError(f"no price of the chip {name!r} is known; give --price, dollars per chip and hour")
    return chip.usd_per_hour, chip.price_source
