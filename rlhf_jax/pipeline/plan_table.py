"""The text of a plan: data, steps, parameters and memory."""

import math
from typing import TYPE_CHECKING, Any, cast

import jax

from rlhf_jax import optimizer, train_step
from rlhf_jax.devices import memory
from rlhf_jax.devices.dry_run import KINDS, DryRun, Loop
from rlhf_jax.models import lora, networks
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.runs import loop as loops

if TYPE_CHECKING:
    from rlhf_jax.pipeline.prepare import Prepared


def ahead(run: "Prepared") -> tuple[str, ...]:
    """Data, steps, and the memory of the policy, known without compiling anything."""
    return _data(run), _loops_ahead(run), _model(run)


def _data(run: "Prepared") -> str:
    texts = run.texts
    parts = [
        (len(texts.rows), "prompts"),
        (len(texts.rows_held_out), "held-out prompts"),
        (len(texts.corpus), "demonstrations"),
        (len(texts.compared), "pairs to compare"),
    ]
    if texts.pairs:
        kind = "ratings" if run.cfg.data.ratings else "comparisons"
        parts.append((len(texts.pairs.train), kind))
        parts.append((len(texts.pairs.held_out), f"held-out {kind}"))
    return ", ".join(f"{n:,} {name}" for n, name in parts if n)


def _loops_ahead(run: "Prepared") -> str:
    cfg, parts = run.cfg, []
    if not cfg.reference:
        parts.append(f"SFT of at most {cfg.sft.steps:,} steps of {cfg.sft.batch_size}")
    if rl := _on_policy(cfg):
        steps = rl.iterations * steps_of(cfg)
        parts.append(
            f"{rl.iterations:,} rollouts of {rl.batch_size:,} responses of at most "
            f"{cfg.sample.length} tokens with {steps:,} gradient steps"
        )
    return ", ".join(parts) or "no stage but the method's own"


def _model(run: "Prepared") -> str:
    cfg, rl = run.cfg, cast(Any, getattr(run.cfg, "rl", None))
    key = jax.random.key(0)
    policy = jax.eval_shape(run.lm.init, key)
    start = policy
    if hasattr(rl, "value"):
        start = jax.eval_shape(networks.actor_critic(run.lm, rl.value).init, policy)
    base, trained = jax.eval_shape(lambda p: lora.split(key, p, cfg.lora), start)
    tx = optimizer.make(getattr(rl, "optimizer", OptimizerConfig()), 1)
    state = jax.eval_shape(lambda p: train_step.init_state(p, tx), trained)
    held = sum(share_of(run.devices, tree) for tree in (state, base))
    return (
        f"{number(count(policy))} parameters in the policy, {number(count(trained))} trained; "
        f"{memory.size(held)} per device of parameters and optimizer state (--plan: what steps take)"
    )


def share_of(devices, tree) -> int:
    """Bytes on a device of parameters or of a state, from shapes alone."""
    return sum(map(memory.share, jax.tree.leaves(tree), jax.tree.leaves(devices.places(tree))))


def count(tree) -> int:
    """The number of parameters."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _on_policy(cfg) -> Any:
    rl = getattr(cfg, "rl", None)
    return rl if hasattr(rl, "iterations") else None


def steps_of(cfg) -> int:
    """Gradient steps of an update that compiles all its epochs as one function."""
    own = next((x for x in vars(cfg).values() if hasattr(x, "minibatches")), None)
    return own.epochs * own.minibatches if own else 1


def written(name: str, dry: DryRun, stopped: str = "", took: float = 0.0) -> list[str]:
    """The lines of a plan, which `took` so many seconds."""
    run = dry.prepared
    mesh = ",".join(f"{axis}={n}" for axis, n in run.devices.sizes.items() if n > 1)
    where = f"{run.devices.name}{':' * bool(mesh)}{mesh}"
    lines = [
        f"plan of {name} on {where}, {_total(run.devices)} ({jax.default_backend()}); nothing is started",
        "",
        f"  {_data(run)}",
        f"  {_model(run)}",
        f"  {_responses(run, dry)}",
        "",
        *table(STEPS, [_steps(run.cfg, loop, dry) for loop in dry.loops]),
        *([f"  {_time(dry, took)}"] if dry.timed else []),
        "",
    ]
    unit, divisor = ("GB", 1e9) if _peak(dry) >= 1e9 else ("MB", 1e6)
    stages = dict.fromkeys([*list(dry.on_host)[:1], *(stage for stage, _ in dry.calls)])
    rows = [_memory(stage, dry, divisor) for stage in stages]
    lines += [f"  memory in {unit}: of a device, and of the host", *table(MEMORY, rows), ""]
    most = max(dry.calls.values(), key=lambda call: call.peak, default=None)
    if most:
        lines.append(
            f"  largest: {memory.size(most.peak)} per device in {most.name}, {most.stage}, "
            f"{memory.size(most.more)} of it for results and temporary arrays"
        )
    lines += [f"  {line}" for line in NOTES]
    if stopped:
        lines.append(f"  what follows {dry.stage} is not planned: {stopped}")
    return lines


NOTES = (
    "Steps and tokens are upper bounds: a stage may end early, and a text have fewer tokens than columns.",
    "Frozen are the reference, parameters beneath adapters, and the best ones of SFT so far. Step, sampling",
    "and other are results and temporary arrays of compiled functions. Host are the parameters that a stage",
    "holds there; while a checkpoint is saved, its bytes come on top.",
)
STEPS = "stage", "iterations", "rows", "gradient steps", "tokens", "parameters", "time"
MEMORY = (
    *("stage", "trained", "critic", "optimizer", "frozen", "rewards", "rows"),
    *("step", "sampling", "other", "peak", "host", "checkpoint"),
)


def table(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Lines with columns, the first to the left; columns without any value are left out."""
    columns = zip(names, *rows, strict=True)
    names, *rows = zip(*(x for x in columns if set(x[1:]) != {"-"}), strict=True)
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    line = lambda row: "  ".join(
        x.ljust(n) if i == 0 else x.rjust(n)
        for i, (x, n) in enumerate(zip(row, widths, strict=True))
    )
    return [f"  {line(row)}".rstrip() for row in (names, *rows)]


def number(n: int) -> str:
    """A number of parameters or tokens in words."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {letter}"
    return str(n)


def _total(devices) -> str:
    total = math.prod(devices.sizes.values()) if devices.sizes else devices.count
    return f"{total} device{'s' * (total > 1)}"


def _peak(dry: DryRun) -> int:
    return max((call.peak for call in dry.calls.values()), default=0)


def _responses(run: "Prepared", dry: DryRun) -> str:
    parts = [f"{n:,} ({name})" for name, n in dry.drawn.items()]
    if rl := _on_policy(run.cfg):
        refills = f", with refills {1 + rl.refill} times as many at most" * bool(rl.refill)
        parts.append(f"{rl.iterations * rl.batch_size:,} (rollouts{refills})")
    if not parts:
        return "no responses are sampled"
    total = sum(dry.drawn.values()) + (rl.iterations * rl.batch_size if rl else 0)
    tokens = number(total * run.cfg.sample.length)
    return f"responses: {', '.join(parts)}; {tokens} tokens at most"


def trained(cfg, loop: Loop, dry: DryRun) -> tuple[int, int, int]:
    """Rows of a batch, gradient steps and tokens with padding of a stage to its end."""
    steps = tokens = rows = 0
    for (stage, name), call in dry.calls.items():
        if stage == loop.stage and call.trains:
            whole = name == "update"
            calls = loop.calls[name] * loop.iterations
            steps += calls * (steps_of(cfg) if whole else 1)
            tokens += calls * call.tokens * (_epochs(cfg) if whole else 1)
            rows = call.rows
    return rows, steps, tokens


def _epochs(cfg) -> int:
    own = next((x for x in vars(cfg).values() if hasattr(x, "minibatches")), None)
    return own.epochs if own else 1


def _steps(cfg, loop: Loop, dry: DryRun) -> tuple[str, ...]:
    if loop.copied:
        return loop.stage, "copied", "", "", "", "", "-"
    rows, steps, tokens = trained(cfg, loop, dry)
    most = "<= " * loop.early
    return (
        loop.stage,
        f"{most}{loop.iterations:,}",
        f"{rows:,}",
        f"{most}{steps:,}",
        f"{most}{number(tokens)}",
        number(loop.trained),
        f"{most}{loops.duration(seconds(cfg, loop))}" if dry.timed else "-",
    )


def seconds(cfg, loop: Loop) -> float:
    """Seconds of the compiled functions in a stage: evaluations come as often as the settings say."""
    rl = _on_policy(cfg)
    every = rl.eval_every if rl and loop.unit == "iterations" else loop.save_every
    return loop.seconds(math.ceil(loop.iterations / (every or loop.iterations)))


def _time(dry: DryRun, took: float) -> str:
    """The time of the whole run, and its parts."""
    if dry.untimed:
        names = ", ".join(sorted(dry.untimed))
        return (
            f"no time is said: a call of {names} would take minutes, or more memory than is there"
        )
    stages = sum(seconds(dry.prepared.cfg, loop) for loop in dry.loops)
    between = dry.spent - sum(sum(loop.costs) for loop in dry.loops)
    begins = max(0.0, took - dry.trying - dry.compiling)
    early = " at most" * any(loop.early for loop in dry.loops)
    whole = stages + between + begins
    whole, between, begins, compiling = map(loops.duration, (whole, between, begins, dry.compiling))
    return (
        f"time: {whole}{early}, of it {between} between the stages and {begins} on the host; compiling "
        f"adds {compiling} where nothing is cached"
    )


def _memory(stage: str, dry: DryRun, divisor: float) -> tuple[str, ...]:
    calls = [call for call in dry.calls.values() if call.stage == stage]
    is_step = lambda call: call.trains
    is_sampling = lambda call: call.samples
    most = lambda kind: max((call.more for call in calls if kind(call)), default=0)
    held = {kind: max((call.held[kind] for call in calls), default=0) for kind in KINDS}
    loop = next((x for x in dry.loops if x.stage == stage), None)
    other = lambda call: not is_step(call) and not is_sampling(call)
    shown = lambda x: f"{x / divisor:,.2f}" if x else "-"
    return (
        stage,
        *map(shown, held.values()),
        *(shown(most(kind)) for kind in (is_step, is_sampling, other)),
        shown(max((call.peak for call in calls), default=0)),
        shown(dry.on_host.get(stage, 0)),
        shown(loop.saved if loop else 0),
    )
