"""Semantic search: which of these sentences is nearest in meaning to a question? int8 beside float32.

    python examples/semantic_search.py
    python examples/semantic_search.py --query "Where can I eat tonight?" --top 3

Change SENTENCES and QUERIES as you like.
"""

import argparse
import copy

from table import print_table
from zoo import minilm

import rquant

SENTENCES = [
    "The restaurant on the corner serves fresh pasta until midnight.",
    "My laptop will not turn on after the last update.",
    "Heavy snow closed the mountain road for three days.",
    "She won the national chess championship at the age of twelve.",
    "The central bank raised interest rates to slow inflation.",
    "Tomatoes need full sun and regular water to ripen.",
    "The orchestra rehearsed the symphony twice before the concert.",
    "A new vaccine protects infants against the virus.",
    "The train to the coast leaves every hour from platform two.",
    "He repaired the bicycle with parts from an old one.",
    "Astronomers found water vapour on a distant planet.",
    "The contract ends if either side gives thirty days' notice.",
]
QUERIES = [
    "How do I get to the seaside?",
    "Where can I have dinner late?",
    "the computer is broken",
]


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--query", action="append", help="a question of your own; may be given several times")
    parser.add_argument("--top", type=int, default=4, help="how many sentences to show")
    args = parser.parse_args()

    model, tokenize = minilm.load()
    small = copy.deepcopy(model)
    rquant.quantize(small, weights=rquant.qint8, activations=rquant.qint8)
    rquant.freeze(small)

    queries = args.query or QUERIES
    scores = {}
    for name, m in (("int8", small), ("float32", model)):
        scores[name] = minilm.embed(m, tokenize, queries) @ minilm.embed(m, tokenize, SENTENCES).T
    for row, query in enumerate(queries):
        best = scores["int8"][row].topk(min(args.top, len(SENTENCES))).indices.tolist()
        lines = [
            [SENTENCES[i], f"{scores['int8'][row, i]:.3f}", f"{scores['float32'][row, i]:.3f}"] for i in best
        ]
        print_table(query, ["sentence", "int8", "float32"], lines)


if __name__ == "__main__":
    main()
