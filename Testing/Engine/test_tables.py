"""What the table beside the cases says of them besides the subject."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tcurlora.cases.dataset import find_cases


def test_labels_that_a_model_made_and_nobody_corrected_are_marked(
    tmp_path: Path, make_site: Callable[..., Path]
) -> None:
    site = make_site(tmp_path / "site")
    names = sorted(path.name.partition(".")[0] for path in (site / "images").iterdir())
    rows = [f"{name},{name},{'model' if name == names[0] else 'person'}" for name in names]
    (site / "cases.csv").write_text("\n".join(["file,subject,labeled_by", *rows]) + "\n", encoding="utf-8")
    dataset = find_cases(site)
    assert [case.name for case in dataset.cases if case.uncorrected] == names[:1]
    assert "table_columns_unused" not in {finding.code for finding in dataset.findings}
