"""The values of the paper's tables, transcribed a second time, and the arithmetic of the errata."""

import re

import pytest

from fisherlab.figures.printed import ERRATA, FORMULAS, TABLES, errata

CIFAR = """
    sgd     79 268.67 3.40 91.88
    adam    72 248.83 3.77 92.62
    kfac    45 241.86 5.87 93.34
    ekfac   41 247.64 6.04 -
    tkfac   39 239.20 5.98 -
    ngplus  40 204.45 5.11 -
    lngd    36 189.69 5.08 93.61
"""
IMAGENET = """
    sgd         78 11.28 520.55 76.47
    adam        -  -     -      74.05
    kfac        39 8.02  739.93 76.58
    lngd        36 6.46  646.44 76.73
    lngd-lr     35 7.43  764.39 76.50
    lngd-sample 41 7.06  619.86 76.57
"""
WMT = """
    sgd  -  -    -      31.87
    adam 25 3.39 488.16 33.05
    kfac 22 3.75 613.63 33.45
    lngd 19 2.85 540    33.55
"""
FIRST = ("sgd", "adam", "kfac", "lngd")


@pytest.mark.parametrize(
    ("number", "text", "methods"),
    [
        (1, CIFAR, FIRST),
        (2, IMAGENET, FIRST),
        (3, WMT, FIRST),
        (5, IMAGENET, ("lngd", "lngd-lr", "lngd-sample")),
        (6, CIFAR, ("sgd", "adam", "kfac", "ekfac", "tkfac", "ngplus", "lngd")),
    ],
)
def test_every_value_of_the_tables_is_there(number: int, text: str, methods: tuple[str, ...]) -> None:
    rows = {line.split()[0]: line.split()[1:] for line in text.strip().splitlines()}
    table = TABLES[number]
    assert table.methods == methods
    for place, values in enumerate(table.columns.values()):
        expected = {m: None if rows[m][place] == "-" else float(rows[m][place]) for m in methods}
        assert values == expected


def test_totals_that_do_not_follow_from_their_factors_are_named() -> None:
    """Reading 19 names the rows of table 6 whose total is off by more than 0.5 %, with the product."""
    epochs, seconds, per_epoch, _ = TABLES[6].columns.values()
    products = {m: (epochs[m] or 0) * (per_epoch[m] or 0) for m in TABLES[6].methods}
    off = {m for m, product in products.items() if abs(product / (seconds[m] or 1) - 1) > 0.005}
    named = dict(re.findall(r"(\w+) (\d+\.\d)", ERRATA[19]))
    assert {name.lower() for name in named} == off
    assert all(
        float(value) == pytest.approx(products[name.lower()], abs=0.06) for name, value in named.items()
    )


def test_shares_of_reading_20_follow_from_table_1() -> None:
    epochs, seconds, *_ = TABLES[1].columns.values()
    shares = [
        round(100 * ((column[m] or 0) / (column["lngd"] or 1) - 1))
        for m in ("sgd", "adam")
        for column in (epochs, seconds)
    ]
    assert [int(value) for value in re.findall(r"\+(\d+) %", ERRATA[20])] == shares


def test_the_smallest_time_an_epoch_is_so_among_second_order_methods_only() -> None:
    per_epoch = list(TABLES[6].columns.values())[2]
    fastest = sorted(per_epoch, key=lambda m: per_epoch[m] or 0)
    assert fastest[:3] == ["sgd", "adam", "lngd"]


def test_every_reading_of_a_table_has_its_sentence() -> None:
    for table in TABLES.values():
        assert len(errata(*table.errata)) == len(table.errata) > 0


def test_formulas_are_of_registered_methods() -> None:
    from fisherlab.approximations import registered

    assert set(FORMULAS) <= set(registered())
