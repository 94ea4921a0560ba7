"""``python -m loadtests.signoff``, which ``tidegate signoff`` runs: gevent patches its process."""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import click  # noqa: E402

from loadtests.preflight import CannotStart, find_key  # noqa: E402
from loadtests.signoff.confidence import Outcome  # noqa: E402
from loadtests.signoff.open_loop import OpenLoop, Target  # noqa: E402
from loadtests.signoff.preflight import pipeline_of, requests_of, require_writable  # noqa: E402
from loadtests.signoff.procedure import PROFILES, Result, sign_off  # noqa: E402
from loadtests.signoff.report import WORDS, document, markdown, write  # noqa: E402
from loadtests.signoff.samples import Samples  # noqa: E402
from loadtests.signoff.slo import SloError, read_slos  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.UNDECIDED: 2}
CANNOT_START = 3
HIGHEST = 2_000.0  # requests per second: more than one core of this generator can send


@click.command("signoff")
@click.argument("pipeline")
@click.option("--target", default="http://127.0.0.1:8080", show_default=True, help="The gateway.")
@click.option(
    "--slo",
    type=click.Path(path_type=Path),
    default=Path("loadtests/slo.toml"),
    show_default=True,
    help="The file of objectives.",
)
@click.option("--profile", type=click.Choice(list(PROFILES)), default="quick", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("signoff"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(pipeline: str, target: str, slo: Path, profile: str, out: Path, *, as_json: bool) -> None:
    """Load PIPELINE in an open loop, and say whether it holds its objectives.

    The key is TIDEGATE_API_KEY, or that of `make up`. Exit code 0: signed, 1: not, 2: undecided,
    3: it could not start.
    """
    try:
        slos = read_slos(slo)
        if pipeline not in slos:
            raise SloError(f"{slo} has no [{pipeline}]: it has {', '.join(sorted(slos))}")
        key = find_key(os.environ)
        card = pipeline_of(target, pipeline, key)
        require_writable(out)
    except (SloError, CannotStart) as error:
        click.echo(f"signoff: {error}", err=True)
        sys.exit(CANNOT_START)
    result = Result(slos[pipeline])
    body = requests_of(card)
    is_terminal = sys.stderr.isatty()

    with OpenLoop(Target(target, f"/v1/{pipeline}", key, body)) as loop:

        def load(rate: float, seconds: float, phase: str) -> Samples:
            def show(elapsed_s: float) -> None:
                if is_terminal:
                    left_s = seconds - elapsed_s
                    click.echo(
                        f"\r{phase}: {rate:.4g}/s, {left_s:.0f} s left   ", nl=False, err=True
                    )

            samples = loop.run(rate, seconds, progress=show)
            p99_s = samples.percentile_s(0.99)
            shown = "nothing answered" if p99_s is None else f"p99 {1000 * p99_s:.4g} ms"
            failed = int(samples.failed.sum())
            end = "\r" * is_terminal
            click.echo(
                f"{end}{phase}: {rate:.4g}/s for {seconds:.0f} s: {shown}, {failed} failed",
                err=True,
            )
            return samples

        try:
            sign_off(slos[pipeline], PROFILES[profile], load, result, HIGHEST)
        except KeyboardInterrupt:
            click.echo("\nstopped: the report is partial, and unsigned", err=True)
    report = document(result, target, ROOT)
    files = write(report, out)
    click.echo(json.dumps(report, indent=2) if as_json else markdown(report))
    click.echo(f"{WORDS[result.outcome]}: {', '.join(map(str, files))}", err=True)
    sys.exit(EXIT_CODES[result.outcome])


if __name__ == "__main__":
    main()
