"""The processes of one run, started by torchrun or srun. On one process everything is a no-op."""

import atexit
import contextlib
import datetime
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = datetime.timedelta(hours=1)  # of one collective
PATIENCE = datetime.timedelta(days=7)  # with work that is shared out unequally
SECONDS_BETWEEN_LOOKS = 0.1  # of who waits patiently
BUCKET_BYTES = 32 << 20  # of gradients per all-reduce
FIRST_PORT, NUM_PORTS = 20000, 20000
PEER_IS_GONE = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "connection was likely closed",
    "remote process exited",
    "socket closed",
)


class PeerLostError(ValueError):
    """Another process of this run died in the middle of the work."""


@dataclass(frozen=True)
class Membership:
    """This process's place among those of the run."""

    rank: int
    world_size: int
    local_rank: int  # on its machine, i.e. the index of its GPU
    address: str  # host:port of rank 0


def membership(environment: Mapping[str, str] = os.environ) -> Membership | None:
    """Read from the environment which process of how many this is; None if it is the only one.

    Knows torchrun's variables and those of an ``srun`` step. A batch script without ``srun`` has an
    allocation of several tasks but is one process: only step variables count.

    Raises:
        ValueError: variables that belong together are missing or no numbers.
    """
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        host = environment.get("MASTER_ADDR", "127.0.0.1")
        port = environment.get("MASTER_PORT", "29500")
    elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        host = _first_host(environment.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        job = int(environment.get("SLURM_JOB_ID", "0"))
        port = environment.get("MASTER_PORT", str(FIRST_PORT + job % NUM_PORTS))
    else:
        return None
    missing = [name for name in names if not environment.get(name, "").isdecimal()]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} should be a number in the environment of each of several "
            "processes; start them with torchrun or srun"
        )
    rank, world, local = (int(environment[name]) for name in names)
    return Membership(rank, world, local, f"{host}:{port}")


def _first_host(nodes: str) -> str:
    """``gpu[03-05,9]`` -> ``gpu03``: the host of rank 0 in SLURM's default distribution."""
    first = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
    return "127.0.0.1" if first is None else first[1] + (first[2] or "")


def refuse_several_processes() -> None:
    """Stop a stage that works in one process and was started several times.

    Raises:
        ValueError: there are more processes, which would all do the same thing.
    """
    here = membership()
    if here is not None:
        raise ValueError(
            f"{here.world_size} processes were started, but this stage runs in one; "
            "start it without torchrun, or with one task"
        )


@contextlib.contextmanager
def process_group(device: str) -> Iterator[str]:
    """Join the other processes for the block; yield the device of this one.

    Args:
        device: ``cpu`` or ``cuda``; with several processes each takes the GPU of its local rank.

    Raises:
        PeerLostError: another process died while this one waited for it.
    """
    here = membership()
    if here is None or _group_exists():
        yield device
        return
    import torch
    import torch.distributed as torch_dist

    if device.startswith("cuda"):
        device = f"cuda:{_gpu_index(here)}"
        torch.cuda.set_device(device)
    _meet(here, device)
    try:
        yield device
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in PEER_IS_GONE):
            raise
        atexit.register(_leave_at_once)
        raise PeerLostError(
            f"rank {here.rank} of {here.world_size}: another process of this run died "
            f"({str(error).splitlines()[0]}). Its own log says why; the same command continues"
        ) from error
    # Only after success: with peers still inside a collective, saying goodbye may wait for ever.
    torch_dist.destroy_process_group()


def _leave_at_once() -> None:
    """End without torch's destructors: of a group that lost a member one of them may abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _gpu_index(here: Membership) -> int:
    import torch

    visible = torch.cuda.device_count()
    if visible == 1:
        return 0  # the scheduler gives every process a GPU of its own
    if here.local_rank >= visible:
        raise ValueError(
            f"rank {here.rank} is process {here.local_rank} (from 0) of its machine, which has "
            f"{visible} GPUs; start at most one process per GPU"
        )
    return here.local_rank


def _meet(here: Membership, device: str) -> None:
    import torch
    import torch.distributed as torch_dist

    on_gpu = device.startswith("cuda")
    try:
        torch_dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=f"tcp://{here.address}",
            rank=here.rank,
            world_size=here.world_size,
            timeout=TIMEOUT,
            device_id=torch.device(device) if on_gpu else None,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"rank {here.rank} of {here.world_size} cannot meet the others at {here.address}: "
            f"{error}. Check that rank 0 runs there, or set MASTER_ADDR and a free MASTER_PORT"
        ) from error


def _group_exists() -> bool:
    if "torch.distributed" not in sys.modules:  # torch-free work must not pay for importing it
        return False
    import torch.distributed as torch_dist

    return torch_dist.is_available() and torch_dist.is_initialized()


def rank() -> int:
    """Index of this process, 0 on one process."""
    import torch.distributed as torch_dist

    return torch_dist.get_rank() if _group_exists() else 0


def world_size() -> int:
    """Number of processes, 1 without a group."""
    import torch.distributed as torch_dist

    return torch_dist.get_world_size() if _group_exists() else 1


def is_main() -> bool:
    """Whether this process writes files and logs."""
    here = None if _group_exists() else membership()
    return rank() == 0 if here is None else here.rank == 0


def all_gather(value: "Tensor") -> "Tensor":
    """Concatenate ``value`` over the processes along dimension 0, in rank order, without gradient.

    Args:
        value: of equal shape on every process.
    """
    if world_size() == 1:
        return value.detach()
    import torch
    import torch.distributed as torch_dist

    parts = [torch.empty_like(value) for _ in range(world_size())]
    torch_dist.all_gather(parts, value.detach().contiguous())
    return torch.cat(parts)


def mean(values: Mapping[str, "Tensor"]) -> dict[str, float]:
    """Average scalars over the processes, in one message and one wait for the device."""
    if not values:
        return {}
    import torch

    stacked = torch.stack([value.detach().double() for value in values.values()])
    _sum_in_place([stacked])
    return dict(zip(values, (stacked / world_size()).tolist(), strict=True))


def average_gradients(tensors: Sequence["Tensor"]) -> None:
    """Replace each tensor by its mean over the processes, a bucket of them per message.

    Args:
        tensors: the same on every process, in the same order.
    """
    if world_size() == 1:
        return
    import torch

    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        _sum_in_place([flat])
        flat /= world_size()
        parts = torch.split(flat, [tensor.numel() for tensor in bucket])
        views = [part.view_as(tensor) for part, tensor in zip(parts, bucket, strict=True)]
        torch._foreach_copy_(list(bucket), views)


def _buckets(tensors: Sequence["Tensor"]) -> Iterator[list["Tensor"]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.nbytes
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def _sum_in_place(tensors: Sequence["Tensor"]) -> None:
    if world_size() == 1:
        return
    import torch.distributed as torch_dist

    for tensor in tensors:
        torch_dist.all_reduce(tensor)


def any_true(flag: bool) -> bool:
    """Tell whether the flag is set on any process; all must call it."""
    if world_size() == 1:
        return flag
    import torch

    count = torch.tensor(float(flag), device=message_device())
    _sum_in_place([count])
    return bool(count > 0)


def message_device() -> str:
    """Where a tensor must lie that is sent to the other processes."""
    import torch.distributed as torch_dist

    return "cuda" if torch_dist.get_backend() == "nccl" else "cpu"


def require_equal(what: str, value: int) -> None:
    """Raise ``ValueError`` on every process unless all hold the same non-negative number."""
    if world_size() == 1:
        return
    import torch

    mine = torch.tensor([value], device=message_device())
    everyone = all_gather(mine).tolist()
    if len(set(everyone)) > 1:
        raise ValueError(
            f"the processes disagree on {what}: {everyone} by rank. Do they share one run folder "
            "(a network disk), code and data?"
        )


def barrier() -> None:
    """Wait for the other processes."""
    if world_size() > 1:
        import torch.distributed as torch_dist

        torch_dist.barrier()


def from_main(numbers: Sequence[int]) -> list[int]:
    """Tell every process the numbers that rank 0 gives; those of the others do not matter."""
    if world_size() == 1:
        return list(numbers)
    import torch.distributed as torch_dist

    held = [list(numbers)]
    torch_dist.broadcast_object_list(held, src=0)
    return held[0]


@contextlib.contextmanager
def patient_barrier() -> Iterator[Callable[[], None]]:
    """Yield a barrier for work that may keep one process hours longer than another.

    It outlasts ``TIMEOUT``, lets signals through, and still fails where another process dies.
    """
    if world_size() == 1:
        yield lambda: None
        return
    import torch.distributed as torch_dist

    group: Any = torch_dist.new_group(backend="gloo", timeout=PATIENCE)

    def wait() -> None:
        others: Any = torch_dist.barrier(group, async_op=True)
        while not others.is_completed():  # a plain wait would hold back every signal
            time.sleep(SECONDS_BETWEEN_LOOKS)
        others.wait()

    yield wait
    torch_dist.destroy_process_group(group)  # after success alone, as in process_group
