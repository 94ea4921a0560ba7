"""``tidegate optimize NAME``: which form of a model to serve here, and with which knobs."""

import click
from tidegate.convert import clock
from tidegate.kinds import KNOWN, TASKS


@click.command("optimize")
@click.argument("name")
def command(name):
    from converters.variants.measuring import Subject, measure
    from converters.variants.kept import Kept
    from converters.variants.budget import Budget
    from converters.task import Order
    from tidegate.places import Places

    p = Places.current()
    k = KNOWN[name]
    m = measure(
        Subject(Order(name, name), k.open_task, k.task),
        Kept(p.state / "optimize" / name / "measured", "m"),
        Budget(300),
        clock(),
    )
    for r in m.rows:
        print(
            r.candidate.name,
            {c: round(t.rows_s, 1) for c, t in r.times.items()},
            {c: round(t, 2) for c, t in r.ratios.items()},
            r.accuracy,
            r.passes,
            r.size_mb,
            r.memory_mb,
            r.why_not,
        )
