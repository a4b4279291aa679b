"""Settings of a place where people judge: the database, the server, and who is asked what."""

import dataclasses
import ipaddress

PASSWORD = "FEEDBACK_PASSWORD"
"""The environment variable that may hold the owner's password."""


def is_loopback(host: str) -> bool:
    """True where `host` can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the server, the database and the questions."""

    database: str = "sqlite:///feedback.db"
    """URL of the database: sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME."""
    host: str = "127.0.0.1"
    """Address to listen at. Any address but the machine's own needs an owner's password."""
    port: int = 8000
    """Port to listen at; 0 takes any free port."""
    url: str = ""
    """Address under which people reach the server, for the links that it prints; empty: host and port."""
    forwarded: str = ""
    """Addresses of proxies that are believed when they say who asks, and whether over HTTPS."""
    owner_password: str = ""
    """Password of the owner's page. The environment variable FEEDBACK_PASSWORD sets it as well."""
    secure_cookies: bool = False
    """Send cookies over HTTPS only; right behind a proxy that speaks HTTPS."""
    lease_seconds: float = 900.0
    """Seconds for which an item is held for the person who sees it; the page extends them."""
    gold_share: float = 0.05
    """Share of a person's items whose answer is known, hidden among the others."""
    repeat_share: float = 0.05
    """Share of a person's items that the person has judged before, to measure self-agreement."""
    repeat_after: int = 10
    """Number of other judgements between a person's first answer and its repeat."""
    training_count: int = 10
    """Number of training items that a person sees first; fewer where fewer are given."""
    training_pass: float = 0.7
    """Share of right training answers from which on a person gets work."""
    park_after: int = 3
    """Number of people whose skip puts an item aside for the owner."""
    guidelines: str = ""
    """Markdown file with the guidelines for annotators; empty: a short text of the package."""
    completion_code: str = ""
    """Code shown to people from Prolific who have finished."""
    pause_after_minutes: float = 25.0
    """Minutes after which the page offers a pause."""
    pause_after_items: int = 100
    """Number of judgements after which the page offers a pause."""
    log: str = ""
    """File for the log, which holds neither texts nor tokens; empty: standard error."""

    def __post_init__(self) -> None:
        """Refuses what cannot work, in one sentence."""
        for name in ("gold_share", "repeat_share", "training_pass"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, and a share lies between 0 and 1")
        for name in ("repeat_after", "training_count", "pause_after_items"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, and must be 0 or more")
        if self.park_after < 1:
            raise ValueError(f"park_after is {self.park_after}, and must be 1 or more")
        if not self.lease_seconds > 0:
            raise ValueError(f"lease_seconds is {self.lease_seconds}, and must be above 0")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}, and must be 0 to 65535; 0 takes a free one")
        if not is_loopback(self.host) and not self.owner_password:
            raise ValueError(
                f"host is {self.host}, which others can reach, and the owner has no password: "
                f"set {PASSWORD}, or listen at 127.0.0.1"
            )
