"""How much memory reading a checkpoint takes beyond the parameters themselves; on Linux, on the CPU backend.

    python -m bench reading --folder READING --gigabytes 1.5

A random checkpoint is written into `--folder`, once, file by file. Every way then reads it in a fresh
process, whose memory this one samples each millisecond: `heap` is the peak of RssAnon, less what it was as
reading began, and holds the parameters, which on this backend are the process's own memory; `beyond` is
the rest of it. `mapped` (RssFile) is the file cache, which the system takes back when it needs it.

Found with jax 0.10.2 on two cores, MB beyond the parameters; in brackets with MALLOC_MMAP_THRESHOLD_=65536,
under which freed memory goes back to the system at once:

                                          one device    mesh of 8    naive    one layer    embedding
    llama, bfloat16 read as float32        115 (52)      180 (60)      1773           95          185
    llama, bfloat16 read as bfloat16        89 (52)      103 (45)      1719           48           92
    qwen3, float32 read as float32         103 (53)      155 (57)      2299           64          151

So reading needs about a layer, or some 50 MB; the rest is what the allocator keeps of arrays that were freed.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import count, islice, takewhile
from typing import Literal

import jax
import numpy as np
import rich
from jax.sharding import NamedSharding, PartitionSpec
from rich.table import Table
from safetensors.numpy import load_file, save_file

from rlhf_jax.bounds import Positive, Settings
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub import huggingface, streaming
from rlhf_jax.models.hub.families import FAMILIES

LAYERS, VOCABULARY, DEVICES, MB = 24, 32_768, 8, 10**6


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the measurement."""

    folder: pathlib.Path
    """Where the checkpoint is, or will be."""
    gigabytes: Positive = 1.5
    """Of the checkpoint, at most."""
    family: Literal["llama", "qwen3"] = "llama"
    file_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    param_dtype: Literal["bfloat16", "float32"] = "float32"
    ways: tuple[str, ...] = ("streamed", "mesh", "naive")
    """streamed: as the library reads; mesh: the same, an eighth of the last axis on each of eight devices;
    naive: all tensors first, then each parameter of them."""
    only: str = ""
    """Read in this way, in this process, and print when that began and ended."""


def tensors_of(family, cfg: ModelConfig):
    """Of every parameter: its path, whether it is stacked, its tensor, and the shape of that in the files."""
    like = jax.eval_shape(networks.language_model(cfg).init, jax.random.key(0))
    for keys, x in jax.tree.leaves_with_path(like):
        path = "/".join(k.key for k in keys)
        tensor = family.tensors(cfg)[path]
        stacked = "*" in tensor.name
        yield path, stacked, tensor, tensor.shape(x.shape[1:] if stacked else x.shape)


def model(cfg: Config, width: int) -> ModelConfig:
    """A model of the family."""
    return ModelConfig(
        **dict(vocab_size=VOCABULARY, layers=LAYERS, d_model=width, d_mlp=3 * width),
        **dict(heads=width // 64, kv_heads=width // 128, positions="rotary", norm="rmsnorm"),
        **dict(activation="swiglu", bias=False, tied=False),
        qk_norm="head" if cfg.family == "qwen3" else "none",
    )


def write(cfg: Config):
    """A random checkpoint as wide as `gigabytes` allows, in files of eight tensors."""
    family, dtype = FAMILIES[cfg.family], np.dtype(cfg.file_dtype)

    def fits(shape):
        found = tensors_of(family, shape)
        sizes = (np.prod(size) * (LAYERS if stacked else 1) for _, stacked, _, size in found)
        return sum(sizes) * dtype.itemsize <= cfg.gigabytes * 10**9

    shape = list(takewhile(fits, (model(cfg, width) for width in count(128, 128))))[-1]
    names = (
        (
            ("" if tensor.name == family.head else family.prefix)
            + tensor.name.replace("*", str(i)),
            size,
        )
        for _, stacked, tensor, size in tensors_of(family, shape)
        for i in range(LAYERS if stacked else 1)
    )
    cfg.folder.mkdir(parents=True)
    rng, file_of = np.random.default_rng(0), {}
    draw = lambda size: rng.standard_normal(size, np.float32).astype(dtype)
    while some := dict(islice(names, 8)):
        file = f"model-{len(file_of):05}.safetensors"
        save_file({name: draw(size) for name, size in some.items()}, cfg.folder / file)
        file_of |= dict.fromkeys(some, file)
    (cfg.folder / streaming.INDEX).write_text(json.dumps({"weight_map": file_of}))
    keys = family.config(shape) | {"model_type": cfg.family, "dtype": cfg.file_dtype}
    (cfg.folder / "config.json").write_text(json.dumps(keys, indent=1))


def naive(cfg: Config):
    """All tensors first, then each parameter of them."""
    family, shape, _ = huggingface.read_config(cfg.folder)
    whole = {}
    for file in sorted(cfg.folder.glob("*.safetensors")):
        whole |= {name.removeprefix(family.prefix): x for name, x in load_file(file).items()}
    params = {}
    for path, stacked, tensor, _ in tensors_of(family, shape):
        names = [tensor.name.replace("*", str(i)) for i in range(LAYERS if stacked else 1)]
        parts = [tensor.read(whole[name]) for name in names]
        x = np.stack(parts) if stacked else parts[0]
        params[path] = jax.device_put(x.astype(cfg.param_dtype))
    return params


def read(cfg: Config):
    """In this process: prints when it began and ended, and the bytes of the parameters."""
    mesh = jax.make_mesh((len(jax.devices()),), ("model",))

    def cut(x):
        last = "model" if x.shape[-1] % DEVICES == 0 else None
        return NamedSharding(mesh, PartitionSpec(*[None] * (x.ndim - 1), last))

    jax.block_until_ready(jax.jit(lambda x: x + 1)(0.0))  # what the compiler takes is there
    began = time.monotonic()
    if cfg.only == "naive":
        params = naive(cfg)
    else:
        places = partial(jax.tree.map, cut) if cfg.only == "mesh" else None
        found = huggingface.load(str(cfg.folder), places=places, param_dtype=cfg.param_dtype)
        params = found.params
    leaves = jax.tree.leaves(jax.block_until_ready(params))
    held = sum(shard.data.nbytes for x in leaves for shard in x.addressable_shards)
    print(json.dumps(dict(began=began, ended=time.monotonic(), parameters=held)))


def measure(way: str) -> dict[str, float]:
    """Bytes, and seconds, of reading in a process of its own."""
    flags = f"--xla_force_host_platform_device_count={DEVICES if way == 'mesh' else 1}"
    child = subprocess.Popen(
        [sys.executable, "-m", "bench", *sys.argv[1:], "--only", way],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        text=True,
    )
    seen = []
    while child.poll() is None:
        lines = pathlib.Path(f"/proc/{child.pid}/status").read_text().splitlines()
        kb = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
        seen.append((time.monotonic(), *(1024 * kb.get(x, 0) for x in ("RssAnon:", "RssFile:"))))
        time.sleep(0.001)
    if child.returncode:
        sys.exit(child.returncode)
    told = json.loads(child.communicate()[0])
    before = [x for x in seen if x[0] <= told["began"]][-1]
    during = [x for x in seen if told["began"] <= x[0] <= told["ended"]]
    heap, mapped = (max(x[i] for x in during) - before[i] for i in (1, 2))
    seconds, beyond = told["ended"] - told["began"], heap - told["parameters"]
    return dict(heap=heap, beyond=beyond, mapped=mapped, seconds=seconds) | told


def main(cfg: Config):
    """Writes the checkpoint where there is none, and prints the table."""
    if cfg.only:
        return read(cfg)
    if not (cfg.folder / "config.json").exists():
        write(cfg)
    family, shape, keys = huggingface.read_config(cfg.folder)
    item = np.dtype(cfg.param_dtype).itemsize / MB
    sizes = [(stacked, np.prod(size) * item) for _, stacked, _, size in tensors_of(family, shape)]
    layer = sum(size for stacked, size in sizes if stacked)
    table = Table(
        *("MB", "parameters", "heap", "beyond", "in layers", "mapped", "seconds"),
        title=f"{keys['model_type']}, {shape.layers} layers of width {shape.d_model}, {keys['dtype']} read "
        f"as {cfg.param_dtype}: a layer takes {layer:.0f} MB, its largest tensor "
        f"{max(size for stacked, size in sizes if stacked):.0f}, the embedding "
        f"{max(size for _, size in sizes):.0f}",
    )
    for way in cfg.ways:
        found = measure(way)
        mb = [f"{found[key] / MB:.0f}" for key in ("parameters", "heap", "beyond")]
        layers, mapped = found["beyond"] / MB / layer, found["mapped"] / MB
        table.add_row(way, *mb, f"{layers:.1f}", f"{mapped:.0f}", f"{found['seconds']:.1f}")
    rich.print(table)
