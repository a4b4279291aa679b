"""What is to be reached, and whether it is: beside a peer on one core, or in seconds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """At least `value` of ratio, how many times as fast as the peer; or at most: of peak, a share of the
    peer's memory; of cold and warm, seconds."""

    work: str
    model: str
    peer: str
    what: str
    value: float

    def of(self, told: dict) -> float:
        """What was measured, in the unit of `value`."""
        if self.what == "ratio":
            return told["ratio"]
        if self.what == "peak":
            return told["ours"]["peak"] / told["theirs"]["peak"]
        return told["ours"][self.what]

    def met(self, told: dict) -> bool:
        """Whether it is reached."""
        found = self.of(told)
        return found >= self.value if self.what == "ratio" else found <= self.value

    def __str__(self):
        sign = ">=" if self.what == "ratio" else "<="
        return f"{self.what} {sign} {self.value:g}"


TARGETS = (
    Target("generate", "tiny", "transformers", "ratio", 3.0),
    Target("generate", "tiny", "bare", "ratio", 1.0),
    Target("generate", "small", "bare", "ratio", 1.0),
    Target("ragged", "tiny", "transformers", "ratio", 2.0),
    Target("ragged", "small", "transformers", "ratio", 2.5),
    *(Target(work, "tiny", "torch", "ratio", 0.8) for work in ("sft", "reward", "dpo")),
    *(Target(work, "small", "torch", "ratio", 0.95) for work in ("sft", "reward", "dpo")),
    Target("ppo", "tiny", "trl112", "ratio", 1.2),
    Target("ppo", "tiny", "tunix", "ratio", 1.2),
    Target("ppo", "small", "trl112", "ratio", 0.95),
    Target("ppo", "small", "tunix", "ratio", 1.4),
    Target("ppo", "small", "trl112", "peak", 1.0),
    Target("start", "tiny", "", "cold", 15.0),
    Target("start", "tiny", "", "warm", 5.0),
)
"""Of "What to reach", 1 to 4; beside two peers, both have to be met."""
