"""The beginning and the end of a study: settings that all studies have, its folder, its results."""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from rlhf_jax.bounds import Bound, Settings
from rlhf_jax.devices import parallel, process
from rlhf_jax.runs import conclusion, run
from rlhf_jax.studies.context import Seed, SharedConfig, StudyContext
from rlhf_jax.studies.population import Job, Population, Setup, context_of, resolve, run_jobs


@dataclass(frozen=True)
class StudyConfig(Settings):
    """Settings of every study."""

    _main = ("run", "seeds", "population", "devices")
    _incidental = ("run", "devices", "population")

    run: str = ""
    """Run directory; empty: runs/EXPERIMENT/HASH-OF-CONFIG."""
    seeds: Annotated[int, Bound(ge=2)] = 3
    """Seeds of the preference data; each has reward models and policies of its own."""
    population: Population = "auto"
    """Way to run seeds: "vmap" (one program), "processes" (one each, on a core), or auto, by the hardware."""
    devices: str = "auto"
    """Devices that a program's seeds are split over: auto, device (the first one), pmap, or mesh:data=-1."""
    shared: SharedConfig = SharedConfig()

    def _conditions(self, at: str):
        for name, value in vars(self).items():
            if value == ():
                raise ValueError(f"{at}{name} = (): give one or more")
        parallel.check_name(self.devices, f"{at}devices")


class Study(NamedTuple):
    """A study that has its folder."""

    setup: Setup
    population: str
    again: str  # command of another study
    columns: dict[str, tuple[str, ...]]  # of tables, on the screen; the report has them all

    @property
    def folder(self) -> pathlib.Path:
        """The run directory."""
        return self.setup.folder

    @property
    def context(self) -> StudyContext:
        """The parts that all small runs share; trained if missing."""
        return context_of(self.setup)

    def run(self, jobs: Sequence[Job], seeds: Sequence[Seed]) -> dict[str, list[Any]]:
        """Results of every job by name, one for each seed."""
        context_of(self.setup)  # trained here, before worker processes open it
        return run_jobs(self.setup, jobs, seeds, self.population)

    def conclude(self, found: dict, picture: str):
        """Writes and shows the results; `picture` is the file that shows most of them."""
        conclusion.write(self.folder, found)
        conclusion.show(self.folder, self.again, self.columns)
        print(f"picture: {self.folder / picture}")


def begin(
    name: str,
    cfg: StudyConfig,
    columns: dict[str, tuple[str, ...]],
    sizes: tuple[str, ...] = (),
    teacher: bool = False,
) -> Study | None:
    """Opens the study `name`; None if it is finished, after showing its results.

    `sizes` are those of the reward models, and `teacher` says whether gold needs one. Settings that cannot
    work are refused before the study has its folder.
    """
    population, layout = resolve(cfg.population, cfg.devices, cfg.shared)
    folder = run.open_run(name, cfg, cfg.run)
    again = f"{process.command()} {name} --seeds {cfg.seeds + 2} (or any other setting)"
    if conclusion.is_finished(folder, again, columns):
        return None
    return Study(Setup(folder, cfg.shared, sizes, teacher, layout), population, again, columns)
