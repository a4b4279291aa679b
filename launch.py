"""Starts every run from a checkout: python launch.py EXPERIMENT [--setting value ...]"""

import os
import signal

if __name__ == "__main__":  # a batch system may stop a run at any time, and must get exit code 75
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))

from rlhf_jax.launcher import EXPERIMENTS, cut_at, experiments, load, main, start

__all__ = ["EXPERIMENTS", "cut_at", "experiments", "load", "main", "start"]

if __name__ == "__main__":
    start()
