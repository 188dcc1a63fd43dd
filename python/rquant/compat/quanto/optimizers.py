"""quanto's optimizers, as what `optimizer` takes."""

from ...optimize import HQQ


def AbsmaxOptimizer() -> str:
    """Scales by the greatest magnitude, quanto's choice for int8 and float8: the ends of a symmetric type's range."""
    return "minmax"


def MaxOptimizer() -> str:
    """Scales and zero points by the least and the greatest value, quanto's choice for int4 and int2."""
    return "minmax"


def HqqOptimizer(
    lp_norm: float = 0.7, beta: float = 10.0, kappa: float = 1.01, iters: int = 20, verbose: bool = False
) -> HQQ:
    """Half-quadratic zero points for int4 and int2, at the scale of the whole range as quanto has it. Prints nothing."""
    return HQQ(lp_norm, beta, kappa, iters, "minmax")
