"""quanto's `Calibration`: rquant's, with the moving average and the symmetric ranges that quanto has."""

import torch
from torch import Tensor

from ... import calibration
from ...nn import PackedWeight
from ...qtypes import INTEGERS, QType, qint8, qtype_of


class Calibration(calibration.Calibration):
    """A context in which a quantized model sees samples: `with Calibration(momentum=0.9): model(samples)`.

    At its end each layer with int8 activations has one scale for its input: the largest |x| of the batches, averaged by
    `momentum`. Without a calibration each token has its own scale, which is finer. `streamline` changes nothing: a layer's
    output is int8 where quantized layers read it, and only there. `debug` prints what was found.

    Raises ValueError for a momentum outside [0, 1]. Warns if no quantized layer ran inside.
    """

    def __init__(self, momentum: float = 0.9, streamline: bool = True, debug: bool = False) -> None:
        super().__init__("moving_average", momentum=momentum, symmetric=True)
        self.momentum, self.streamline, self.debug = momentum, streamline, debug

    def must_find_layers(self) -> bool:
        """Not where quantized weights alone ran: a calibration does no harm then."""
        return not any(isinstance(module, PackedWeight) for module in self.names)

    def done(self) -> None:
        """See `debug`."""
        if self.debug:
            print(self.report())


def absmax_scale(base: Tensor, qtype: QType | str = qint8, axis: int | None = None) -> Tensor:
    """`max|base| / qmax`: a scalar, or for each index of `axis` one, with the other dimensions kept as 1.

    Raises ValueError for a type that is not of integers.
    """
    qmax = qtype_of(qtype, "qtype", INTEGERS).qmax
    if axis is None:
        return base.abs().max() / qmax
    others = [dim for dim in range(base.dim()) if dim != axis % base.dim()]
    return torch.amax(base.abs(), others, keepdim=True) / qmax
