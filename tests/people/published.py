"""Published data sets of agreement, of observers and of a season, with the numbers published of them."""

import numpy as np

BASEBALL = """
Milwaukee Detroit 4 3; Milwaukee Toronto 4 2; Milwaukee New_York 4 3; Milwaukee Boston 6 1
Milwaukee Cleveland 4 2; Milwaukee Baltimore 6 0; Detroit Milwaukee 3 3; Detroit Toronto 4 2
Detroit New_York 4 3; Detroit Boston 6 0; Detroit Cleveland 6 1; Detroit Baltimore 4 3
Toronto Milwaukee 2 5; Toronto Detroit 4 3; Toronto New_York 2 4; Toronto Boston 4 3
Toronto Cleveland 4 2; Toronto Baltimore 6 0; New_York Milwaukee 3 3; New_York Detroit 5 1
New_York Toronto 2 5; New_York Boston 4 3; New_York Cleveland 4 2; New_York Baltimore 6 1
Boston Milwaukee 5 1; Boston Detroit 2 5; Boston Toronto 3 3; Boston New_York 4 2
Boston Cleveland 5 2; Boston Baltimore 6 0; Cleveland Milwaukee 2 5; Cleveland Detroit 3 3
Cleveland Toronto 3 4; Cleveland New_York 4 3; Cleveland Boston 4 2; Cleveland Baltimore 2 4
Baltimore Milwaukee 2 5; Baltimore Detroit 1 5; Baltimore Toronto 1 6; Baltimore New_York 2 4
Baltimore Boston 1 6; Baltimore Cleveland 3 4
"""
"""Home team, guests, games that home won and that the guests won, 1987 (Agresti)."""
STRENGTHS = {
    "Baltimore": (0, 0),
    "Milwaukee": (1.581, 0.343),
    "Detroit": (1.436, 0.340),
    "Toronto": (1.294, 0.337),
    "New_York": (1.248, 0.336),
    "Boston": (1.108, 0.334),
    "Cleveland": (0.684, 0.332),
}
"""Strength over Baltimore, and its standard error."""

OBSERVERS = """
111 1 1 1 1; 333 4 3 3 4; 112 2 1 2 2; 222 3 1 2 1; 222 3 2 2 2; 222 3 3 2 2; 122 2 1 1 1; 333 3 4 3 3
222 2 2 2 3; 232 2 2 2 3; 444 4 4 4 4; 222 3 3 4 3; 111 1 1 1 1; 222 3 2 1 2; 121 1 1 1 1; 111 2 1 1 1
111 1 1 1 1; 111 1 1 1 1; 222 2 2 2 1; 222 1 3 2 2; 222 2 2 2 2; 222 2 2 2 1; 222 3 2 2 2; 221 2 2 2 2
111 1 1 1 1; 111 1 1 1 1; 232 2 2 2 2; 111 1 1 1 1; 111 1 1 1 1; 112 1 1 2 1; 111 1 1 1 1; 333 3 2 3 3
111 1 1 1 1; 222 2 2 2 2; 222 3 2 3 2; 433 4 3 4 3; 221 2 2 3 2; 232 3 2 3 3; 333 3 4 3 2; 111 1 1 1 1
111 1 1 1 1; 121 2 1 1 1; 232 2 2 2 2; 121 1 1 1 1; 222 2 2 2 2
"""
"""Fitness for an anaesthetic, of 45 patients by five observers, the first of whom looked three times
(Dawid and Skene, 1979, table 1)."""

DIAGNOSES = """
444444 222555 233335 555555 222444 113333 333355 113334 114444 555555 144444 124444 222333 144444 224445
333335 111455 111112 224444 133555 555555 244444 224555 114444 144445 222224 111155 224444 133333 555555
"""
"""Diagnoses of 30 patients by six physicians each (Fleiss, 1971)."""

FOURTEEN = np.array(
    [
        *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
        *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
    ]
)
"""How many of 14 raters gave each of five labels to ten items."""

FOUR_CODERS = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""
"""Twelve units by four coders (Krippendorff, 2011, section C)."""


def long(table: str) -> tuple[np.ndarray, np.ndarray]:
    """Units and labels of a table with a line a coder, without its gaps."""
    rows = [line.split() for line in table.strip().split("\n")]
    found = [(u, int(x)) for row in rows for u, x in enumerate(row) if x != "."]
    return np.array([u for u, _ in found]), np.array([x for _, x in found])


def letters(*coders: str) -> tuple[np.ndarray, np.ndarray]:
    """Units and labels of coders whose labels are letters or digits."""
    found = [(u, ord(x)) for coder in coders for u, x in enumerate(coder)]
    return np.array([u for u, _ in found]), np.array([x for _, x in found])


def diagnoses() -> np.ndarray:
    """Labels from 1 to 5 [30, 6]."""
    return np.array([[int(x) for x in row] for row in DIAGNOSES.split()])


def observers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patients, observers and labels, all from 0."""
    patients = [x.split() for x in OBSERVERS.replace("\n", ";").split(";") if x.strip()]
    found = [
        (patient, observer, int(x) - 1)
        for patient, row in enumerate(patients)
        for observer, said in enumerate(row)
        for x in said
    ]
    patient, observer, label = np.array(found).T
    return patient, observer, label


def baseball() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Home team, guests, result and number of games, for home wins and then for home losses."""
    names = list(STRENGTHS)
    rows = [x.split() for x in BASEBALL.replace("\n", ";").split(";") if x.strip()]
    home = np.array([names.index(x[0]) for x in rows] * 2)
    guests = np.array([names.index(x[1]) for x in rows] * 2)
    won, lost = ([int(x[i]) for x in rows] for i in (2, 3))
    return home, guests, np.repeat([1.0, 0.0], len(rows)), np.array(won + lost)
