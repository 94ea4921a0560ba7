"""The serving knobs of a pipeline, searched: ``python -m tidegate.knobs NAME``."""

import sys

from serving.tuning.tune import Job, tune
from tidegate.convert import clock
from tidegate.places import Places

if __name__ == "__main__":
    places = Places.current()
    from converters.texts.samples import default_texts

    r = tune(
        Job(
            places.repository,
            places.state,
            sys.argv[1],
            [{"text": t} for t in default_texts()],
            float(sys.argv[2]),
        ),
        clock(),
    )
    print(r.winner, r.search.moves)
