"""What checks signatures in the tests: beartype, where an int may stand for a float as in static type checkers, and
of a generic named tuple, which beartype does not know, the class is checked."""

import functools
import operator
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin

from beartype import BeartypeConf, beartype
from beartype.vale import IsInstance

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises where an argument or result is not as annotated."""
    hints = getattr(function, "__annotations__", {})
    hints.update({name: _known(hint) for name, hint in hints.items()})
    return _checked(function)


def _known(hint: Any) -> Any:
    """An annotation without generic named tuples."""
    kind = get_origin(hint)
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return Annotated[object, IsInstance[kind]]
    if kind is Union:
        return functools.reduce(operator.or_, map(_known, get_args(hint)))
    return hint
