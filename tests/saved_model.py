"""The model that the file tests save."""

import torch
from torch import nn

import rquant


class Model(nn.Module):
    """A tied head, a mask with infinities, a non-persistent table, a persistent counter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(40, 64), nn.Linear(64, 40, bias=False)
        self.head.weight = self.embed.weight
        self.body = nn.Sequential(
            nn.Linear(64, 70), nn.ReLU(), nn.Linear(70, 64, bias=False), nn.LayerNorm(64)
        )
        self.register_buffer("angles", torch.arange(8.0), persistent=False)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, ids):
        return self.head(self.body(self.embed(ids)) + self.angles.sum() + self.steps)


IDS = torch.arange(40)


def frozen(weights="int4", activations=None, **options):
    model = Model().eval()
    rquant.quantize(model, weights, activations, **options)
    rquant.freeze(model)
    return model


def skeleton():
    with torch.device("meta"):
        return Model().eval()
