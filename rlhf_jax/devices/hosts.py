"""The processes of one run on several hosts: how they meet, who writes, and when they wait for each other.

All of them do the same work on one mesh and take the same decisions; the first alone writes what is not a
checkpoint, and is the one that prints. With one process everything here is nothing.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlhf_jax.devices.process import PREEMPTED

LOST = 30  # seconds without a sign of life after which a process counts as lost
LOST_CODE = PREEMPTED


def meet(where: str = "auto"):
    """Joins the other processes, before anything else is asked of JAX.

    "auto": SLURM, MPI, Kubernetes and TPU pods are found by JAX; else HOST:PORT,N,I, the address of the
    first of N processes, and which one this is. Raises ValueError where neither works.
    """
    kinds: dict = {"heartbeat_timeout_seconds": LOST, "shutdown_timeout_seconds": LOST}
    if where != "auto":
        try:
            address, count, index = where.split(",")
            kinds |= {"num_processes": int(count), "process_id": int(index)}
            kinds["coordinator_address"] = address
            if not (0 <= int(index) < int(count) and 0 < int(address.rpartition(":")[2]) < 2**16):
                raise ValueError
        except ValueError:
            raise ValueError(
                f'distributed = "{where}": write auto, or HOST:PORT,PROCESSES,NUMBER-OF-THIS-ONE'
            ) from None
    try:
        jax.distributed.initialize(**kinds)
    except (ValueError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(
            f'distributed = "{where}" finds no other processes ({why}): start it by srun, mpirun or on a '
            "pod, or give HOST:PORT,PROCESSES,NUMBER-OF-THIS-ONE"
        ) from None


def is_loss(error: Exception) -> bool:
    """Whether an error says that another process is gone."""
    said = str(error)
    words = "Gloo", "NCCL", "Connection closed", "heartbeat", "coordination service", "UNAVAILABLE"
    return any(word in said for word in words)


def is_first() -> bool:
    """Whether this process writes and prints."""
    return jax.process_index() == 0


def wait(name: str):
    """Until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"rlhf_jax.{name}")


def agreed(value: bool) -> bool:
    """What the first process says: of a file that is there for one of them, and not yet for another."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def any_of(value: bool) -> bool:
    """Whether it is so on any of them."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.int32(value)).any())


def once(is_done: Callable[[], bool], do: Callable[[], object]):
    """`do()` on the first process, unless it is done; the others wait for it."""
    if is_first() and not is_done():
        do()
    wait("once")
