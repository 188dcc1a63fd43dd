"""quanto's optimizers that need no search, as what `optimizer` takes.

Both are the least and the greatest value of a group: of a symmetric type (int8) that is the greatest magnitude.
"""


def AbsmaxOptimizer() -> str:
    """Scales by the greatest magnitude, quanto's choice for int8 and float8."""
    return "minmax"


def MaxOptimizer() -> str:
    """Scales and zero points by the least and the greatest value, quanto's choice for int4 and int2."""
    return "minmax"
