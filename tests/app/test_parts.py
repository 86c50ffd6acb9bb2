"""What pages are put together from."""

from __future__ import annotations

import itertools

from peft_compare.parts.chart import Axis, Series, chart
from peft_compare.parts.labels import Box, beside, box_of
from peft_compare.parts.pins import pin


def test_names_of_equal_points_cover_neither_each_other_nor_leave_the_figure() -> None:
    inside = Box(46, 0, 620, 256)
    points = [("lora", 300.0, 80.0), ("snell", 300.0, 80.0), ("bitfit", 302.0, 84.0), ("adapter_plus", 610.0, 20.0)]
    boxes = [box_of(name, *place) for (name, _, _), place in zip(points, beside(points, inside), strict=True)]
    assert all(one.shared(other) == 0 for one, other in itertools.combinations(boxes, 2))
    assert all(box.shared(inside) == box.area for box in boxes)


def test_a_deviation_stays_inside_its_figure() -> None:
    x, y = Axis("parameters", str, logarithmic=True), Axis("accuracy", str)
    drawn = chart("", "", [Series("lora", [100.0], [0.5], [0.2]), Series("ssf", [1000.0], [0.55])], x, y, lines=False)
    ends = [float(part.split('"')[1]) for part in drawn.split("<line")[-1:] for part in part.split("y1=")[1:]]
    assert 22 <= min(ends) <= max(ends) <= 226


def test_only_what_can_be_looked_at_is_a_button() -> None:
    assert pin("a", ["a", "b"], "a").startswith('<button type="button" class="pin" data-pin="a"')
    assert pin("d", ["a", "b"], "d") == "d"
