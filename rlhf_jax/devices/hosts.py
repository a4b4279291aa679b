"""The processes of one run on several hosts: joining, writing by the first one, and waiting for each other.

All processes do the same work on one mesh and take the same decisions; only the first one writes files
other than checkpoints, and prints. With one process every function here is a no-op.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlhf_jax.devices.process import PREEMPTED

LOST = 30  # seconds without a sign of life after which a process counts as lost
LOST_CODE = PREEMPTED


def meet(where: str = "auto"):
    """Joins the other processes; call it before any other use of JAX.

    "auto" lets JAX find SLURM, MPI, Kubernetes and TPU pods. HOST:PORT,N,I is the address of the first of N
    processes and the number of this one. Raises ValueError where neither works.
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
                f'distributed = "{where}" is no address: use auto, or HOST:PORT,PROCESSES,NUMBER-OF-THIS-ONE'
            ) from None
    try:
        jax.distributed.initialize(**kinds)
    except (ValueError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(
            f'distributed = "{where}" finds no other processes ({why}): start it with srun or mpirun or on '
            "a pod, or give HOST:PORT,PROCESSES,NUMBER-OF-THIS-ONE"
        ) from None


def is_loss(error: Exception) -> bool:
    """True for an error that means the loss of another process."""
    said = str(error)
    words = "Gloo", "NCCL", "Connection closed", "heartbeat", "coordination service", "UNAVAILABLE"
    return any(word in said for word in words)


def is_first() -> bool:
    """True for the process that writes and prints."""
    return jax.process_index() == 0


def wait(name: str):
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"rlhf_jax.{name}")


def agreed(value: bool) -> bool:
    """The first process's value, for facts such as a file's existence that hosts may see at different
    times."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def any_of(value: bool) -> bool:
    """True where the value is true on any process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.int32(value)).any())


def once(is_done: Callable[[], bool], do: Callable[[], object]):
    """Runs `do()` on the first process unless `is_done()`; the others wait."""
    if is_first() and not is_done():
        do()
    wait("once")
