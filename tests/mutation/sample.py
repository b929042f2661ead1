"""Which mutants are run: places in the source by lot, the same for the same seed."""

import ast
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cosmic_ray.ast
import cosmic_ray.plugins
from cosmic_ray.ast.ast_query import ASTQuery
from cosmic_ray.work_item import MutationSpec

from tests.mutation.areas import AREAS

Place = tuple[int, int]
"""Line, counted from 1, and column."""


def sampled(count: int, seed: int) -> list[MutationSpec]:
    """`count` mutants, the areas in turn, so that those of a run that ends early are of all of them.

    In an area every place is as likely as every other, however many mutants it has: a `+` has eleven.
    """
    drawn = []
    for modules in AREAS.values():
        places: list[list[MutationSpec]] = []
        for module in modules:
            places += _by_place(Path(module))
        chosen = (min(place, key=lambda m: _lot(m, m.operator_name, seed)) for place in places)
        drawn.append(sorted(chosen, key=lambda m: _lot(m, "", seed)))
    turns = itertools.chain.from_iterable(itertools.zip_longest(*drawn))
    return list(itertools.islice((mutant for mutant in turns if mutant is not None), count))


def _lot(mutant: MutationSpec, name: str, seed: int) -> str:
    text = f"{seed} {mutant.module_path} {mutant.start_pos} {name} {mutant.occurrence if name else 0}"
    return hashlib.sha256(text.encode()).hexdigest()


def _by_place(module: Path) -> list[list[MutationSpec]]:
    """A module's mutants that behave: those of each place together."""
    found: dict[Place, list[MutationSpec]] = defaultdict(list)
    passed_over = _annotations(module)
    for mutant in _mutants(module):
        if not any(start <= mutant.start_pos < end for start, end in passed_over):
            found[mutant.start_pos].append(mutant)
    return list(found.values())


def _mutants(module: Path) -> Iterator[MutationSpec]:
    """What cosmic-ray's own operators make of a module, those that want arguments left out."""
    nodes = list(cosmic_ray.ast.ast_nodes(cosmic_ray.ast.get_ast_from_path(module)))
    for name in cosmic_ray.plugins.operator_names():
        kind = cosmic_ray.plugins.get_operator(name)
        if kind.arguments():
            continue
        operator = kind()
        positions = ((node, *ends) for node in nodes for ends in operator.mutation_positions(node))
        for occurrence, (node, start, end) in enumerate(positions):
            where = ASTQuery(node).get_definition_name()
            yield MutationSpec(str(module), name, occurrence, start, end, {}, where)


def _annotations(module: Path) -> list[tuple[Place, Place]]:
    """Where types stand, in which every mutant fails at import, or none ever does."""
    nodes = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    types = [getattr(node, name, None) for node in nodes for name in ("annotation", "returns")]
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
        for node in types
        if isinstance(node, ast.expr)
    ]
