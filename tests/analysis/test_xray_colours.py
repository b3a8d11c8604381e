"""The x-ray's colours: ordered, centred, and told apart by everyone."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType
from typing import Any

import pytest
import torch

from selfdistill.analysis.xray import TopTokens

needs_browser = pytest.mark.browser

LABELS = ("Divergence", "Entropy ratio", "Log-ratio", "Weight", "Effect of the update", "Clipped share")


@needs_browser
def test_every_column_colours_the_tokens_and_has_a_legend(opened: Any) -> None:
    seen = set()
    for key, label in enumerate(LABELS, 1):
        opened.get_by_role("radio", name=label).check(force=True)
        opened.frames()
        seen.add(tuple(opened.shades()))
        assert label in opened.locator(".legend-words").inner_text()
        assert len(opened.locator(".legend-ticks span").all_inner_texts()) == 5
        opened.token(0).focus()
        opened.press("1" if key > 1 else "6", str(key))
        assert opened.get_by_role("radio", name=label).is_checked()
        assert opened.locator(f".t[data-i='0'].b{opened.shades()[0]}").count() == 1
    assert len(seen) == 6


@needs_browser
def test_a_larger_value_is_never_paler(opened: Any, fake_xray: ModuleType) -> None:
    values = fake_xray.xray().rollouts[0].tokens.columns["divergence"]
    shades = opened.shades()
    ordered = [shades[index] for index in values.argsort().tolist()]
    assert ordered == sorted(ordered) and ordered[0] < 20 and ordered[-1] == 255


@needs_browser
def test_the_log_ratio_is_centred_at_zero(opened: Any, fake_xray: ModuleType) -> None:
    opened.token(0).focus()
    opened.press("3")
    values = fake_xray.xray().rollouts[0].tokens.columns["log_ratio"].tolist()
    shades = opened.shades()
    assert all((value >= 0) == (one >= 128) for value, one in zip(values, shades, strict=True))
    assert "blue" in opened.locator(".legend-words").inner_text()
    assert float(opened.locator(".legend-ticks span").nth(2).inner_text()) == 0


@needs_browser
def test_weights_below_zero_are_centred_too(read: Any, fake_xray: ModuleType) -> None:
    table = fake_xray.token_table([0, 1, 2], 16)
    columns = table.columns | {"weight": torch.tensor([-1.0, 0.5, 1.0])}
    page = read(fake_xray.xray([fake_xray.rollout(0, dataclasses.replace(table, columns=columns))]))
    page.token(0).focus()
    page.press("4")
    assert page.shades()[0] == 0 and page.shades()[1] > 128 and page.shades()[2] == 255


@needs_browser
def test_an_unknown_value_is_not_a_small_one(read: Any, fake_xray: ModuleType) -> None:
    table = fake_xray.token_table(list(range(16)), 16)
    columns = {name: values.clone() for name, values in table.columns.items()}
    columns["divergence"][3] = math.nan
    columns["entropy_ratio"][4] = math.inf
    probabilities = table.student.probabilities.clone()
    probabilities[3] = math.nan
    table = dataclasses.replace(table, columns=columns, student=TopTokens(table.student.ids, probabilities))
    page = read(fake_xray.xray([fake_xray.rollout(0, table, reward=math.nan)]))
    page.frames()
    assert "unknown" in page.token(3).get_attribute("class")
    page.point_at(3)
    assert page.locator("td[data-column=divergence]").inner_text() == "unknown"
    assert page.locator(".chart.student li .share").all_inner_texts() == ["unknown"] * 10
    page.point_at(4)
    assert page.locator("td[data-column=entropy_ratio]").inner_text() == "∞"


@needs_browser
def test_every_shade_can_be_read_and_their_order_be_seen_by_everyone(opened: Any) -> None:
    for diverging in (False, True):
        for dark in (False, True):
            table = opened.evaluate("([a, b]) => shades(a, b)", [diverging, dark])
            assert len(table) == 256
            assert min(contrast(one["ground"], one["ink"]) for one in table) >= 4.5
            for matrix in VISION.values():
                lightness = [perceived(one["ground"], matrix) for one in table]
                halves = [lightness[127::-1], lightness[128:]] if diverging else [lightness]
                for half in halves:
                    assert half[::8] == sorted(half[::8], reverse=not dark)
                    assert abs(half[-1] - half[0]) > 0.4


@needs_browser
def test_the_two_sides_of_the_diverging_scale_differ_for_everyone(opened: Any) -> None:
    for dark in (False, True):
        table = opened.evaluate("(dark) => shades(true, dark)", dark)
        for name, matrix in VISION.items():
            for distance in (64, 100):
                below, above = (lab(table[at]["ground"], matrix) for at in (127 - distance, 128 + distance))
                assert math.dist(below, above) > 0.08, (name, dark, distance)


VISION = {
    "usual": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""What dichromats see of linear RGB: Machado, Oliveira and Fernandes (2009), severity 1."""


def linear(colour: str) -> list[float]:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]


def luminance(colour: str) -> float:
    return sum(share * one for share, one in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def lab(colour: str, matrix: Any) -> tuple[float, float, float]:
    """Return OKLab of a colour as somebody with this vision sees it."""
    r, g, b = (min(1.0, max(0.0, sum(x * y for x, y in zip(row, linear(colour), strict=True)))) for row in matrix)
    x = math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b)
    y = math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b)
    z = math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b)
    return (
        0.2104542553 * x + 0.7936177850 * y - 0.0040720468 * z,
        1.9779984951 * x - 2.4285922050 * y + 0.4505937099 * z,
        0.0259040371 * x + 0.7827717662 * y - 0.8086757660 * z,
    )


def perceived(colour: str, matrix: Any) -> float:
    return lab(colour, matrix)[0]
