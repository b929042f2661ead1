"""What the explorer's page needs to price a query itself, with the same result as `scaling.cost`."""

from collections.abc import Sequence

from quecc_jax import flops
from quecc_jax.aot.memory import layer_bytes, table_params, text_tower_params
from quecc_jax.config import ModelConfig
from scaling.cost import (
    BYTES,
    PARTS,
    Lengths,
    Llm,
    Machine,
    Setup,
    cache_bytes,
    model_config,
    usd_per_million_seconds,
    work_of_query,
)
from scaling.formatting import COST_AXIS, PER, Record


def published_prices(params_b: Sequence[float]) -> Record:
    """A query at 2 N (Q + V) FLOPs."""
    return {
        "counted": False,
        "kind": "flops",
        "llms": [{"n": float(n), "name": ""} for n in sorted(params_b)],
        "machine": None,
        "per": PER["flops"],
        "unit": COST_AXIS["flops"],
        "axis": COST_AXIS["flops"],
        "cost_model": "published cost 2N(Q + V)",
    }


def counted_prices(llms: Sequence[Llm], visual_tokens: Sequence[float], setup: Setup) -> Record:
    """A query whose parts are all counted."""
    llms, counts = sorted(llms, key=lambda llm: llm.params_b), sorted(visual_tokens)
    machine, unit = setup.machine, COST_AXIS[setup.kind]
    where = "" if machine is None else _where(machine, setup)
    rows = [_coefficients(llm, counts, setup) for llm in llms]
    tower = model_config(llms[0], counts[0], setup.query, setup.compressor).tower
    return {
        "counted": True,
        "kind": setup.kind,
        "per": PER[setup.kind],
        "unit": unit,
        "axis": f"{unit}{where}",
        "cost_model": f"all parts counted{where}",
        "bytes": BYTES,
        "tower": {"flops": flops.tower_flops(tower), "bytes": BYTES * flops.tower_params(tower)},
        "llms": rows,
        "machine": None
        if machine is None
        else {"flops": machine.flops, "bandwidth": machine.bandwidth, "memory": machine.memory},
        "efficiency": _efficiency(rows, setup),
        "batch": setup.batch,
        "usd": None if setup.usd_per_hour is None else usd_per_million_seconds(setup),
    }


def _where(machine: Machine, setup: Setup) -> str:
    """On what a query is answered, and whether at its peaks."""
    reached = ""
    if setup.kind != "flops" and setup.measured is not None:
        reached = ", as measured"
    elif setup.kind != "flops" and machine.efficiency != 1:
        reached = f", {100 * machine.efficiency:g} % of its peaks"
    return f" on {machine.name}{reached}, batch {setup.batch}, {setup.weights} weights"


def _efficiency(llms: Sequence[Record], setup: Setup) -> Record | None:
    """Of each part that a choice of the page may have, at each measured length of prompts, for the plan's batch."""
    if setup.measured is None:
        return None
    adapters = [adapter for llm in llms for adapter in llm["adapters"]]
    some = {
        "query": any(one["reads"] for one in adapters),
        "compressor": any(one["flops"] for one in adapters),
    }
    # All others are needed: the page has a slider of the tokens that are generated.
    parts = [part for part in PARTS if some.get(part, True)]
    return {
        "lengths": setup.measured.lengths,
        "shares": {part: setup.measured.curve(part, setup.batch) for part in parts},
    }


def _coefficients(llm: Llm, counts: Sequence[float], setup: Setup) -> Record:
    decoder = llm.decoder
    output = decoder.width * decoder.vocab_size
    configs = [model_config(llm, count, setup.query, setup.compressor) for count in counts]
    # All patches ask nobody; what the others ask is the same.
    asking = next((config for config in configs if config.compressor.reads_question), configs[0])
    return {
        "n": llm.params_b,
        "name": llm.name,
        "layers": flops.decoder_params(decoder),
        "layer_bytes": layer_bytes(decoder, setup.weights),
        "output": output,
        "tables": table_params(decoder),
        "attention": flops.attention_flops(decoder, 1, 1),
        "cache": cache_bytes(decoder),
        "query": _question(asking, setup),
        "adapters": [
            {
                "flops": flops.compressor_cost(config).flops + flops.projector_flops(config),
                "bytes": BYTES * (flops.compressor_cost(config).params + flops.projector_params(config)),
                "reads": config.compressor.reads_question,
            }
            for config in configs
        ],
    }


def _question(config: ModelConfig, setup: Setup) -> dict[str, float]:
    """What encoding q tokens takes: fixed + linear q + square q^2 FLOPs, and bytes."""
    fixed, one, two = (flops.query_flops(config, tokens) for tokens in (0, 1, 2))
    square = (two - 2 * one + fixed) / 2
    one_token = work_of_query(config, Lengths(1, 1, 1), setup.weights)["query"]
    return {
        "fixed": fixed,
        "linear": one - fixed - square,
        "square": square,
        "bytes": one_token.shared,
        "own": one_token.own,
        "memory": BYTES * text_tower_params(config),
        "most": config.query.text.positions if config.query.encoder == "clip_text" else 10**9,
    }
