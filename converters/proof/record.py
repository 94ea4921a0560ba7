"""``proof.json`` and ``proof.md``: what was converted, what was measured, and what was accepted."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from math import inf
from pathlib import Path

from converters.cache import PROOF_FILE, TOOLS, files_sha256
from converters.errors import ProofFailed
from converters.proof.checks import Check, Proof
from converters.proof.tolerance import grade, graded

PAGE_FILE = "proof.md"


@dataclass(frozen=True)
class Record:
    """The content of a proof.

    ``source`` is only the last part of the path, since a proof is often read on another machine.
    ``source_sha256`` covers the model's files and samples, ``engine_sha256`` the graph;
    ``programs_sha256`` are those of the torch engine's programs, by the name of the file.
    ``accepted`` is the user's reason for publishing a model whose proof failed, ``options`` what
    the user stated about the source (``ConversionRequest.options``). ``exercised`` says which parts
    of the model the samples reached, and which they did not.
    """

    name: str
    task: str
    source: str
    precision: str
    grade: str
    source_sha256: str
    engine_sha256: str
    accepted: str
    tools: Mapping[str, str]
    proofs: tuple[Proof, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    made_on: str = ""
    exercised: tuple[str, ...] = ()
    programs_sha256: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        *,
        name: str,
        task: str,
        source: str,
        precision: str,
        accepted: str,
        source_sha256: str,
        packages: Sequence[str],
        options: Mapping[str, str],
        proof: Proof,
        engine: Path,
        exercised: Sequence[str] = (),
    ) -> "Record":
        """The record of a newly proved graph, the file ``engine``. The versions of ``packages`` are
        recorded besides those of ``cache.TOOLS``."""
        return cls(
            name=name,
            task=task,
            source=Path(source).name,
            precision=precision,
            grade=measured_grade(precision, proof.checks),
            source_sha256=source_sha256,
            engine_sha256=files_sha256([engine]),
            accepted=accepted,
            tools={tool: version(tool) for tool in (*TOOLS, *packages)},
            proofs=(proof,),
            options=dict(options),
            made_on=datetime.now(UTC).date().isoformat(),
            exercised=tuple(exercised),
        )

    @classmethod
    def load(cls, path: Path) -> "Record":
        """The record in a ``proof.json``; ValueError or KeyError if the file is not one."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        passed = fields.pop("passed")
        proofs = tuple(Proof.from_dict(proof) for proof in fields.pop("proofs"))
        fields["exercised"] = tuple(fields.get("exercised", ()))
        record = cls(**fields, proofs=proofs)
        if record.passed != passed:
            raise ValueError(f"{path} contradicts itself: its verdict does not match its checks")
        return record

    @property
    def passed(self) -> bool:
        return all(proof.passed for proof in self.proofs)

    def add(self, proof: Proof) -> "Record":
        """The record with one more proof."""
        return replace(self, proofs=(*self.proofs, proof))

    def require(self) -> None:
        """ProofFailed, listing every failed check, unless the user accepted the failure."""
        if self.passed or self.accepted:
            return
        failed = [f"{p.subject}: {c.line()}" for p in self.proofs for c in p.checks if not c.passed]
        raise ProofFailed(
            f"{self.name} does not give the original's answers; nothing was published:\n  "
            + "\n  ".join(failed)
        )

    def save(self, folder: Path) -> None:
        """Write both files."""
        proofs = [proof.to_dict() for proof in self.proofs]
        fields = {"passed": self.passed, **vars(self), "proofs": proofs}
        text = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (folder / PROOF_FILE).write_text(text, encoding="utf-8")
        (folder / PAGE_FILE).write_text("\n".join(self._page()) + "\n", encoding="utf-8")

    def _page(self) -> Iterator[str]:
        verdict = "The proof held." if self.passed else "**The proof failed.**"
        yield f"# {self.name}: {self.task}, {self.precision}\n\n{verdict}"
        if self.accepted:
            yield f"\nPublished anyway, because: {_cell(self.accepted)}"
        yield f"\nMade from `{_cell(self.source)}`. {self.grade.capitalize()}."
        if self.options:
            stated = ", ".join(f"{name.replace('_', '-')} {v}" for name, v in self.options.items())
            yield f"\nOptions of the conversion: {_cell(stated)}."
        if self.made_on:
            yield f"\nProved on {self.made_on}."
            yield f"\nThe model's files and samples: SHA-256 `{self.source_sha256}`"
        if self.exercised:
            yield "\n## What the samples exercised\n"
            yield from (f"- {_cell(line)}" for line in self.exercised)
        for proof in self.proofs:
            yield f"\n## {_cell(proof.subject)}\n"
            if proof.note:
                yield f"{_cell(proof.note)}\n"
            yield "| | check | measured | allowed | worst sample |\n|---|---|---|---|---|"
            yield from map(_row, proof.checks)
        yield f"\nEngine: SHA-256 `{self.engine_sha256}`"
        for file, digest in self.programs_sha256.items():
            yield f"\n{file}: SHA-256 `{digest}`"
        yield "\nTools: " + ", ".join(f"{tool} {number}" for tool, number in self.tools.items())


def measured_grade(precision: str, checks: Sequence[Check]) -> str:
    """What the precision promises about the batch, unless a check measured the opposite."""
    about_batch = ("batch invariance", "padding invariance", "the same ", "dynamic")
    dependent = any(not check.passed and check.name.startswith(about_batch) for check in checks)
    return graded(inf) if dependent else grade(precision)


def _row(check: Check) -> str:
    verdict = "ok" if check.passed else "**FAIL**"
    cells = (verdict, _cell(check.name), f"{check.measured:.3g}", check.allowed, _cell(check.worst))
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Escape the text of a sample or a user: it may hold anything, and must not end its cell or
    become markup."""
    escaped = "".join(f"\\{char}" if char in "|`*_<>[]\\" else char for char in text)
    return " ".join(escaped.split())
