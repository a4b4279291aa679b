"""What a strategy chose is no sample: agreement and win rates are those of the pairs that were drawn."""

import raw_rows

from rlhf_jax.people import summary


def test_agreement_and_policies_leave_out_what_a_score_chose():
    rows = raw_rows.world(3)
    drawn = {"round": "r", "strategy": "uniform", "score": None, "probability": 0.2, "model": None}
    scored = drawn | {"strategy": "bald", "score": 1.0, "probability": None}
    ids = sorted({x["item"]["id"] for x in rows})
    for x in rows:
        x["item"]["selection"] = (drawn, None, scored)[ids.index(x["item"]["id"]) % 3]
    found = summary.summary(rows)
    sample = [x for x in rows if x["item"]["selection"] != scored]
    alone = summary.summary(sample)
    for name in ("agreement", "policies", "policies_at_equal_length"):
        assert found[name] == alone[name]
    assert found["chosen"] == len(rows) - len(sample) > 0 and alone["chosen"] == 0
    assert found["people"] != alone["people"]  # everybody's work counts for themselves
