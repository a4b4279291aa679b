"""The labelling page, started by an experiment: its settings, its items, and the process that serves it.

The page is a package of its own, `feedback`, which knows no model. It is reached by its command alone.
"""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from rlhf_jax.bounds import Bound, Count, Seed, Settings
from rlhf_jax.data.sources import write_jsonl
from rlhf_jax.runs import disk
from rlhf_jax.runs import run as runs

ITEMS, SOURCE = "items.jsonl", "source.json"


@dataclass(frozen=True)
class PageConfig(Settings):
    """Settings of a page on which people judge."""

    to: str = "label"
    """Folder of the items and of the database."""
    database: str = ""
    """URL of a PostgreSQL database; empty: the SQLite file feedback.db in the folder."""
    wanted: Count = 1
    """People who judge each item."""
    people: Count = 3
    """Annotators who are invited, each by a link."""
    guidelines: str = ""
    """Markdown file with the guidelines for annotators."""
    host: str = "127.0.0.1"
    """Address to listen at. Any but this machine's own needs an owner's password, in FEEDBACK_PASSWORD."""
    port: Annotated[int, Bound(ge=0, le=65535)] = 8000
    """Port to listen at; 0 takes any free one."""
    seed: Seed = 0
    """Seed of the choice of prompts and of the responses."""


def check():
    """Raises ValueError where the page's packages are missing."""
    if not importlib.util.find_spec("feedback") or not importlib.util.find_spec("fastapi"):
        raise ValueError(
            'the labelling page needs further packages: pip install "rlhf_jax[feedback]"'
        )


def folder_of(cfg: PageConfig) -> pathlib.Path:
    """The folder of the items; ValueError where it cannot be one, or the page's packages are missing."""
    check()
    runs.check_folder("to", cfg.to)
    return pathlib.Path(cfg.to)


def address(cfg: PageConfig) -> str:
    """The URL of the database."""
    return cfg.database or f"sqlite:///{pathlib.Path(cfg.to) / 'feedback.db'}"


def prepared(
    folder: pathlib.Path, asked: dict[str, Any], make: Callable[[], list[dict]] | None = None
) -> pathlib.Path:
    """The file of the folder's items, which `make` gives unless an earlier start of the same command did.

    Raises ValueError where the folder has the items of another command than that of the settings `asked`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / SOURCE).exists():
        if disk.read_json(folder / SOURCE) != asked:
            raise ValueError(
                f'to = "{folder}" holds the items of another command: name a new folder, or repeat that '
                f"command ({folder / SOURCE} has its settings)"
            )
    else:
        if make is not None:
            write_jsonl(folder / ITEMS, make())
        disk.write_json(folder / SOURCE, asked)
    return folder / ITEMS


def serve(cfg: PageConfig, items: pathlib.Path | str) -> None:
    """Serves the page with these items until it is interrupted, in the place of this process."""
    settings = ["--host", cfg.host, "--port", str(cfg.port), "--people", str(cfg.people)]
    settings += ["--guidelines", cfg.guidelines] if cfg.guidelines else []
    run("serve", "--database", address(cfg), "--items", str(items), *settings)


def run(*command: str) -> None:
    """Replaces this process by the page's own, which has no model and no JAX."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "feedback", *command])
