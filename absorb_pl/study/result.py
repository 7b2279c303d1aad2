"""What a study leaves, to be looked at, drawn, compared and kept."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

from absorb_pl.data.artifacts import MANIFEST
from absorb_pl.data.drafts import user_path, whole_folder
from absorb_pl.errors import AbsorbError, OutputFolderError
from absorb_pl.models.closest import closest_names
from absorb_pl.ranges import InnerFraction, check_ranges
from absorb_pl.reports.controls import without_controls
from absorb_pl.reports.figures import draw_figure, figure_names
from absorb_pl.reports.html import summary_html
from absorb_pl.reports.page import PAGE
from absorb_pl.study.compare import FinishedStudy, compare_studies
from absorb_pl.study.stages import StudyStages


@dataclass(frozen=True, eq=False, repr=False)
class StudyResult:
    """What a study leaves. At the end of a notebook's cell it shows its summary.

    Attributes:
        run_dir: The run's folder.
        tables: `summary`, `letters`, `words`, `sensitivity`, `latents`, `k_sparse`, `candidates`, `held_out`,
            `firings` and `training`, as written to `run_dir/tables`. Empty if the study stopped before the report.
        stages: What its stages found, up to the last that ran; None if it stopped before the linear probes, and for
            studies of several models.
        settings: Its settings, plain values only.
    """

    run_dir: Path
    tables: dict[str, pd.DataFrame]
    stages: StudyStages | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> pd.DataFrame:
        """A row for each SAE and rule: rates with intervals, and what they should be read beside."""
        return self._table("summary")

    @property
    def letters(self) -> pd.DataFrame:
        """A row for each SAE, rule and class."""
        return self._table("letters")

    @property
    def words(self) -> pd.DataFrame:
        """A row for each word that was judged, by SAE and rule: the verdict and its evidence."""
        return self._table("words")

    def figure(self, name: str) -> Figure:
        """Draw a figure of the study, without its controls.

        Args:
            name: Such as `absorption_by_letter`.

        Raises:
            AbsorbError: There is no such figure; names those that there are.
        """
        self._table("summary")
        tables = without_controls(self.tables)
        known = figure_names(tables)
        if name not in known:
            raise AbsorbError(
                "name", name, expected=f"a figure: {', '.join(known)}", remedy=f"Nearest: {closest_names(name, known)}."
            )
        return draw_figure(tables, name)

    def page(self) -> Path:
        """The page of the study in its folder: one HTML file that needs neither network nor server.

        Raises:
            AbsorbError: The study stopped before its report, or is of several models.
        """
        self._require_one_model()
        return self.run_dir / PAGE

    def compare(
        self,
        other: "StudyResult | str | Path | None" = None,
        *,
        rule: str | None = None,
        saes: Sequence[str] = (),
        confidence: InnerFraction = 0.95,
    ) -> pd.DataFrame:
        """Compare the rates of this study's SAEs with those of another's on the words that they share.

        Args:
            other: Another result, or the run folder of a finished study; this study's SAEs with one another when None.
            rule: The rule; all that were judged when None.
            saes: SAEs to compare; all when empty.
            confidence: Level of the intervals.

        Returns:
            The columns of `absorb_pl.schema.COMPARISON`, as of `compare_saes`.

        Raises:
            AbsorbError: The studies differ in what decides words, splits or verdicts; says in what.
            SaeNotFoundError: An SAE is in neither study.
            RuleError: The rule did not judge both.
            CacheCorruptedError: The folder holds no finished study.
        """
        check_ranges(StudyResult.compare, locals())
        first = self._finished()
        if other is None or other is self:
            second = first
        else:
            second = other._finished() if isinstance(other, StudyResult) else FinishedStudy.read(other)
        return compare_studies(first, second, rule=rule, saes=saes, confidence=confidence)

    def save(self, folder: str | Path) -> Path:
        """Copy the run's folder: tables, figures, probes, events, settings and manifest.

        Args:
            folder: Where to; it must not exist, be empty, or hold this same study.

        Returns:
            The folder, which commands take as a run's (`absorb-pl rescore`, `absorb-pl compare`).

        Raises:
            OutputFolderError: Something else is there, or the folder cannot be written.
        """
        folder = user_path(folder)
        if folder.resolve() == self.run_dir.resolve():
            return folder
        if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or self._is_held_by(folder))):
            raise OutputFolderError(
                "folder",
                str(folder),
                expected="a folder that is not there yet, or is empty, or holds this same study",
                remedy="Name another folder.",
            )
        with whole_folder(folder) as part:
            shutil.copytree(self.run_dir, part, dirs_exist_ok=True)
            for file in part.rglob("config.yaml"):
                settings = yaml.safe_load(file.read_text(encoding="utf-8"))
                settings["run_dir"] = str(folder / file.parent.relative_to(part))
                file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        return folder

    def __repr__(self) -> str:
        if not self.tables:
            return f"StudyResult(stopped before the report, {self.run_dir})"
        saes, rules = (list(self.summary[name].unique()) for name in ("sae", "rule"))
        return f"StudyResult(SAEs: {', '.join(saes)}; rules: {', '.join(rules)}; {self.run_dir})"

    def _repr_html_(self) -> str | None:
        return summary_html(self.summary, str(self.settings.get("model", ""))) if self.tables else None

    def _table(self, name: str) -> pd.DataFrame:
        if name not in self.tables:
            raise AbsorbError(
                "until",
                self.settings.get("until"),
                expected="report, the stage that makes tables",
                remedy="Run the study again without `until`; finished stages are not made again.",
            )
        return self.tables[name]

    def _require_one_model(self) -> None:
        models = list(self.summary["model"].unique())
        if len(models) > 1 or self.settings.get("models"):
            raise AbsorbError(
                "model",
                models,
                expected="a study of one model",
                remedy=f"Each has a run folder of its own below {self.run_dir}; name that.",
            )

    def _finished(self) -> FinishedStudy:
        self._require_one_model()
        return FinishedStudy.of(self.settings, self.tables)

    def _is_held_by(self, folder: Path) -> bool:
        ours, theirs = self.run_dir / MANIFEST, folder / MANIFEST
        if not (ours.is_file() and theirs.is_file()):
            return False
        said = [json.loads(file.read_text(encoding="utf-8")) for file in (ours, theirs)]
        return all(said[0][name] == said[1].get(name) for name in ("identity", "contents"))
