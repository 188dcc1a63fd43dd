"""Two processes of one gloo group, started once and given one function after the other."""

import datetime
import multiprocessing
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

SECONDS = 600


def _serve(rank: int, rendezvous: str, orders: Connection) -> None:
    import torch
    from torch import distributed as dist

    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=limit)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    while order := orders.recv():
        function, arguments = order
        try:
            orders.send((True, function(mesh, *arguments)))
        except BaseException:
            orders.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class Pair:
    """`pair(function, *arguments)` runs `function(mesh, *arguments)` on both ranks and gives what they return.

    The function is one of a module's own, its arguments and results can be pickled. An error on a rank, or no answer
    in time, is an AssertionError.
    """

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(2):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, f"file://{folder}/meet", there), daemon=True)
            process.start()
            there.close()  # an end of file, not silence, if it dies
            self._pipes.append(here)
            self._processes.append(process)

    def __call__(self, function, *arguments):
        for pipe in self._pipes:
            pipe.send((function, arguments))
        silence = (False, f"no answer in {SECONDS} s")
        answers = [pipe.recv() if pipe.poll(SECONDS) else silence for pipe in self._pipes]
        for rank, (done, result) in enumerate(answers):
            assert done, f"rank {rank}:\n{result}"
        return [result for _, result in answers]

    def close(self) -> None:
        """End both, by force if they do not by themselves."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(20)
            process.kill()
