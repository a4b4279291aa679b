"""The rules of leases and judgements in plain dictionaries: what the database is compared with."""

import dataclasses


@dataclasses.dataclass(eq=False)
class Slot:
    holder: str | None = None
    expired: bool = False
    done: str | None = None  # key of the judgement that stands


@dataclasses.dataclass(eq=False)
class Held:
    """A lease that was given."""

    who: str
    item: str
    slot: Slot


@dataclasses.dataclass(eq=False)
class Said:
    """A row of what people sent."""

    kind: str
    who: str
    item: str
    held: Held
    body: object
    undone: bool = False


class Model:
    def __init__(self, wanted: dict[str, int], park_after: int) -> None:
        self.slots = {item: [Slot() for _ in range(n)] for item, n in wanted.items()}
        self.parked: set[str] = set()
        self.park_after = park_after
        self.leases: list[Held] = []
        self.said: dict[str, Said] = {}  # by key, in order

    def skips(self, item: str) -> set[str]:
        return {x.who for x in self._standing("skip") if x.item == item}

    def _standing(self, kind: str) -> list[Said]:
        return [x for x in self.said.values() if x.kind == kind and not x.undone]

    def barred(self, who: str, item: str) -> bool:
        return any(x.who == who and x.item == item for x in self._standing("skip")) or any(
            x.who == who and x.item == item for x in self._standing("surplus")
        )

    def has(self, who: str, item: str) -> bool:
        return any(x.holder == who for x in self.slots[item])

    def free(self, item: str) -> list[Slot]:
        return [x for x in self.slots[item] if not x.done and (x.holder is None or x.expired)]

    def holding(self, who: str) -> Held | None:
        """The lease that a person got last and still has."""
        current = [x for x in self.leases if x.who == who and self._current(x)]
        return current[-1] if current else None

    def _current(self, held: Held) -> bool:
        last = [x for x in self.leases if x.slot is held.slot][-1]
        return last is held and held.slot.holder == held.who and not held.slot.done

    def offers(self, who: str) -> tuple[set[str], str]:
        """Items that a person may get next, and the reason why there is none."""
        open_ = {
            item
            for item, slots in self.slots.items()
            if item not in self.parked and not all(x.done for x in slots)
        }
        unseen = {x for x in open_ if not self.barred(who, x) and not self.has(who, x)}
        return {x for x in unseen if self.free(x)}, "waiting" if unseen else "done"

    def give(self, who: str, item: str, slot: Slot) -> Held:
        slot.holder, slot.expired, slot.done = who, False, None
        self.leases.append(Held(who, item, slot))
        return self.leases[-1]

    def judge(self, key: str, held: Held, body: object) -> int:
        if key in self.said:
            same = self.said[key].who == held.who and self.said[key].body == body
            return 200 if same else 409
        slot, who, item = held.slot, held.who, held.item
        if slot.done:
            counts = False
        elif slot.holder:
            counts = slot.holder == who
        else:
            counts = not (self.barred(who, item) or self.has(who, item))
        self.said[key] = Said("judge" if counts else "surplus", who, item, held, body)
        if not counts:
            return 202
        slot.holder, slot.done = who, key
        return 201

    def skip(self, key: str, held: Held, body: object) -> int:
        if key in self.said:
            same = self.said[key].who == held.who and self.said[key].body == body
            return 200 if same else 409
        slot = held.slot
        holds = slot.holder == held.who
        if (holds and slot.done) or held.who in self.skips(held.item):
            return 409
        self.said[key] = Said("skip", held.who, held.item, held, body)
        if holds:
            slot.holder = None
        all_done = all(x.done for x in self.slots[held.item])
        if len(self.skips(held.item)) >= self.park_after and not all_done:
            self.parked.add(held.item)
        return 201

    def undo(self, key: str, of: str) -> int:
        old = self.said[of]
        if key in self.said:
            same = self.said[key].who == old.who and self.said[key].body == of
            return 200 if same else 409
        if old.kind == "undo" or old.undone:
            return 409
        self.said[key] = Said("undo", old.who, old.item, old.held, of)
        parked_by_skips = len(self.skips(old.item)) == self.park_after
        old.undone = True
        if parked_by_skips and len(self.skips(old.item)) < self.park_after:
            self.parked.discard(old.item)
        slot, who, item = old.held.slot, old.who, old.item
        if old.kind == "judge":
            self.give(who, item, next(x for x in self.slots[item] if x.done == of))
        elif not self.barred(who, item) and not self.has(who, item):
            free = self.free(item)
            if slot in free:
                self.give(who, item, slot)
            elif free:
                self.give(who, item, free[0])
        return 201

    def give_back(self, held: Held) -> bool:
        given = held.slot.holder == held.who and not held.slot.done
        if given:
            held.slot.holder = None
        return given

    def state(self, item: str) -> str:
        if item in self.parked:
            return "parked"
        return "closed" if all(x.done for x in self.slots[item]) else "open"
