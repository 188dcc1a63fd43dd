"""Make the files that examples/mlp.rs reads: a small network in int4, and digits it has not seen with what it says of them.

    pip install scikit-learn             # the digits: 1,797 images of 8x8 pixels
    python examples/train_mlp.py         # examples/data/digits.safetensors and digits-held-out.safetensors
    python examples/train_mlp.py --keep  # the network stays as it is; only what it must answer is written anew

The second file holds what the first must answer, bit for bit.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

import rquant

DATA = Path(__file__).parent / "data"
NETWORK, HELD_OUT = DATA / "digits.safetensors", DATA / "digits-held-out.safetensors"
LARGEST = 16  # pixels are 0..16; the network takes them as 0..1


def build() -> nn.Sequential:
    """Linear, ReLU, Linear."""
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))


def train(pixels: torch.Tensor, labels: torch.Tensor, epochs: int = 60) -> nn.Sequential:
    """The float network."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    for _ in range(epochs):
        for batch in torch.randperm(len(pixels)).split(64):
            loss = nn.functional.cross_entropy(model(pixels[batch] / LARGEST), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> str:
    """In words."""
    return f"{(logits.argmax(1) == labels).sum()} of {len(labels)}"


def main() -> None:
    """Both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="keep the network")
    keep = parser.parse_args().keep
    images, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    pixels, labels = torch.tensor(images, dtype=torch.float32)[order], torch.tensor(digits)[order]
    held = len(pixels) // 5
    if not keep:
        model = train(pixels[held:], labels[held:])
        with torch.inference_mode():
            print("float32:", accuracy(model(pixels[:held] / LARGEST), labels[:held]))
        rquant.quantize(model, weights="int4", group_size=32, activations="int8")
        rquant.freeze(model)
        rquant.save(model, NETWORK)
    with torch.device("meta"):
        skeleton = build()
    model = rquant.load(NETWORK, skeleton)
    with torch.inference_mode():
        logits = model(pixels[:held] / LARGEST)
    print("int4:   ", accuracy(logits, labels[:held]))
    tensors = {"pixels": pixels[:held].byte(), "labels": labels[:held].byte(), "logits": logits.contiguous()}
    save_file(tensors, HELD_OUT)
    print(*(f"{path.name}: {path.stat().st_size} bytes" for path in (NETWORK, HELD_OUT)), sep="\n")


if __name__ == "__main__":
    main()
