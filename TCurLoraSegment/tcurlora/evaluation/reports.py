"""What an adaptation gained, in words, tables and files that may leave the hospital."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from tcurlora.evaluation.gain import ESTIMAND, MEAN, compare_scores
from tcurlora.evaluation.scores import Score
from tcurlora.imaging.structures import Structure
from tcurlora.runtime.plain_text import table

KEEP_BASE = "Keep using the base model."


def first_line(comparison: Mapping[str, Any] | None, left_out: int = 0) -> str:
    """Say in plain words whether the adapter helps, and by how much.

    Args:
        comparison: the result of `gain.compare_scores`; None when nothing was compared.
        left_out: cases that were not scored because their labels are the model's own output, uncorrected.
    """
    return f"{_verdict(comparison)}{_left_out(left_out)}"


def _verdict(comparison: Mapping[str, Any] | None) -> str:
    if comparison is None or not comparison[MEAN]["n"]:
        return "The adapter was not compared with the base model, so its gain on your scans is unknown."
    mean = comparison[MEAN]
    new = {name: comparison["structures"][name] for name in comparison["new"]}
    new = {name: numbers for name, numbers in new.items() if numbers["n"]}
    where = "scan" if mean["n"] == 1 else f"{mean['n']} scans"
    if mean["subjects"] < mean["n"]:
        where += f" of {mean['subjects']} subject{'' if mean['subjects'] == 1 else 's'}"
    if mean["dice_difference"] is None:
        reached = f"{next(iter(new))} Dice" if len(new) == 1 else "mean Dice"
        weakest = "" if len(new) == 1 else f" (weakest: {_weakest(new)})"
        them = "it" if len(new) == 1 else "these structures"
        return (
            f"On your {where} the adapter reaches a {reached} of {mean['adapted_dice']:.2f}{weakest}; the base model "
            f"cannot segment {them}."
        )
    known = {name: numbers for name, numbers in comparison["structures"].items() if numbers["n"] and name not in new}
    what = f"{next(iter(known))} Dice" if len(known) == 1 else "the mean Dice"
    improved = f"{mean['improved']} of {mean['n']} scans improve."
    change = _change(mean["base_dice"], mean["adapted_dice"])
    remark = _remark(known) if len(known) > 1 else ""
    interval = mean["dice_difference_ci95"]
    reached = f" New to the base model: {_dice_of(new)}." if new else ""
    if mean["dice_difference"] <= 0:
        verb = f"lowers {what} {change}" if mean["dice_difference"] < 0 else f"leaves {what} at {change.split()[-1]}"
        keep = KEEP_BASE if not new else f"Keep using the base model for {', '.join(known)}."
        return f"The adapter does not help on your {where}: it {verb}{remark}; {improved} {keep}{reached}"
    if interval is not None and interval[0] <= 0:
        return (
            f"On your {where} the adapter does not help reliably: it raises {what} {change}{remark}, "
            f"which may be chance (95 % interval of the gain {interval[0]:+.3f} to {interval[1]:+.3f}); "
            f"{improved}{reached}"
        )
    return f"On your {where} the adapter raises {what} {change}{remark}; {improved}{reached}"


def _left_out(count: int) -> str:
    if not count:
        return ""
    scans = "1 scan is" if count == 1 else f"{count} scans are"
    return f" {scans} not counted, because the labels are the model's own output, which nobody corrected."


def _weakest(structures: Mapping[str, Mapping[str, Any]]) -> str:
    name = min(structures, key=lambda name: structures[name]["adapted_dice"])
    return f"{name}, {structures[name]['adapted_dice']:.2f}"


def _dice_of(structures: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(f"{name}, Dice {numbers['adapted_dice']:.2f}" for name, numbers in structures.items())


def comparison_table(comparison: Mapping[str, Any], markdown: bool = False) -> str:
    """Show Dice and HD95 of base and adapter per structure: the same numbers as in the sentence above it.

    Args:
        comparison: the result of `gain.compare_scores`.
        markdown: write a Markdown table instead of one for the terminal.
    """
    new = comparison.get("new", ())
    entries = {**comparison["structures"], MEAN: comparison[MEAN]}
    if sum(name not in new for name in comparison["structures"]) == 1 and new:
        del entries[MEAN]  # that of one structure
    summaries = {
        side: {
            name: {
                f"{measure}_{what}": entry.get(f"{side}_{measure}{ending}")
                for measure in ("dice", "hd95_mm")
                for what, ending in (("mean", ""), ("sd", "_sd"))
            }
            for name, entry in entries.items()
        }
        for side in ("base", "adapted")
    }
    return summary_table(summaries, markdown)


def summary_table(summaries: Mapping[str, Mapping[str, Any]], markdown: bool = False) -> str:
    """Show Dice and HD95 per structure, one pair of columns for each model.

    Args:
        summaries: title of a model, such as `base`, to the result of `gain.summarize`.
        markdown: write a Markdown table instead of one for the terminal.
    """
    names = list(dict.fromkeys(name for summary in summaries.values() for name in summary if name != MEAN))
    names += [MEAN] if len(names) > 1 and any(MEAN in summary for summary in summaries.values()) else []
    header = ["structure"] + [f"Dice {title}" for title in summaries] + [f"HD95 mm {title}" for title in summaries]
    rows = [
        [name]
        + [_mean_and_sd(summary.get(name, {}), "dice", 3) for summary in summaries.values()]
        + [_mean_and_sd(summary.get(name, {}), "hd95_mm", 2) for summary in summaries.values()]
        for name in names
    ]
    return table(header, rows, markdown)


def build_report(
    base: Sequence[Score] | None,
    adapted: Sequence[Score] | None,
    folds: Any,
    training: Mapping[str, Any],
    size: Mapping[str, Any],
    subjects: Mapping[str, str] | None = None,
    new: Collection[str] = (),
    uncorrected: Collection[str] = (),
) -> dict[str, Any]:
    """Put together what `report.json` of an adapter holds.

    Names of cases often are names of patients, so each becomes `case 01`, `case 02`, ... in the order of the names, and
    each subject `subject 01`, ...

    Args:
        base: cross-validated scores of the base model; None without cross-validation.
        adapted: those of the adapted models, of the same cases.
        folds: JSON-serialisable description of the folds; names of cases in it are replaced too.
        training: JSON-serialisable settings and course of the final training; it must hold no paths and, where there
            is no cross-validation to tell the names of the cases, none of those either.
        size: sizes of base and adapter, in bytes and numbers.
        subjects: whose scan each case is; every case is a subject of its own when None.
        new: structures that the base model cannot segment.
        uncorrected: cases whose labels are a model's output that nobody corrected. They prove nothing, and are left
            out of the comparison.
    """
    validation = comparison = None
    left_out: list[str] = []
    if base is not None and adapted is not None:
        names = sorted({score.case for score in base})
        aliases = {name: f"case {number:02d}" for number, name in enumerate(names, start=1)}
        base, adapted = ([replace(s, case=aliases[s.case]) for s in scores] for scores in (base, adapted))
        folds, training = _renamed(folds, aliases), _renamed(training, aliases)
        whose = {name: (subjects or {}).get(name, name) for name in names}
        numbered = {subject: f"subject {i:02d}" for i, subject in enumerate(sorted(set(whose.values())), start=1)}
        subject_of = {aliases[name]: numbered[subject] for name, subject in whose.items()}
        left_out = [aliases[name] for name in names if name in uncorrected]
        before, after = ([s for s in scores if s.case not in left_out] for scores in (base, adapted))
        comparison = compare_scores(before, after, subject_of, new)
        validation = {
            "folds": folds,
            "subjects": subject_of,
            "uncorrected": left_out,
            "base": {"cases": [asdict(score) for score in base]},
            "adapted": {"cases": [asdict(score) for score in adapted]},
            "comparison": comparison,
        }
    return {
        "schema": 1,
        "summary": first_line(comparison, len(left_out)),
        "cross_validation": validation,
        "training": dict(training),
        "size": dict(size),
    }


def model_card(config: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """Write the adapter's README.md.

    Only what is named here is taken over, so that no path and no name of a patient can slip in.

    Args:
        config: the adapter's config: `base_model` (name, sha256), `structures` (dicts of `labels.Structure`),
            and where present `method`, `r`, `seed` and `versions` (package to version).
        report: the result of `build_report`; of its `training` and `size` the plain numbers and words are listed.
    """
    base = config.get("base_model", {})
    structures = [Structure.from_dict(entry) for entry in config.get("structures", ())]
    settings = {
        **{key: config[key] for key in ("method", "r", "seed") if key in config},
        **{k: v for k, v in report["training"].items() if isinstance(v, int | float | str) and not _is_path(v)},
        **config.get("versions", {}),
    }
    validation = report["cross_validation"]
    numbers = "No cross-validation was run, so nothing is known about the adapter's gain."
    if validation is not None:
        comparison = validation["comparison"]
        numbers = (
            f"Cross-validation on {comparison[MEAN]['n']} scans, mean ± standard deviation; every scan was scored by a "
            f"model that had not seen it. {ESTIMAND}\n\n" + comparison_table(comparison, markdown=True)
        )
    sizes = [[_words(key), _plain(value)] for key, value in report["size"].items()]
    return f"""# Adapter for {", ".join(structure.name for structure in structures) or "segmentation"}

{report["summary"]}
{_advice(report.get("advice", {}))}
This folder is a small addition to a base model that segments medical images. It works with that base model only.

- Base model: {base.get("name", "unknown")}
- SHA-256 of the base model's weights: `{base.get("sha256", "unknown")}`

## Structures

{table(["label", "structure"], [[str(s.value), s.name] for s in structures], markdown=True)}

## Use

```
tcurlora segment --model FOLDER --input scan.nii.gz --out scan.seg.nrrd
```

FOLDER is this folder. The base model must be installed.

## Numbers

{numbers}

{table(["size", "value"], sizes, markdown=True) if sizes else ""}

## Training

{table(["setting", "value"], [[_words(key), _plain(value)] for key, value in settings.items()], markdown=True)}

## Limits

The adapter was made for scans like those of one site, and the numbers come from few of them. Check it on your own
scans before you rely on it. A person has to look at every result. This is not a medical device.

## Privacy

This folder holds no images, no file names and no names of patients; cases are numbered. Its numbers were learned from
patients' images, though, so share it as your institution's rules for such models say.
"""


def _advice(advice: Mapping[str, Sequence[str]]) -> str:
    """Say what may help structures that were not learned."""
    return "".join(f"\n'{name}' was not learned. {' '.join(sentences)}\n" for name, sentences in advice.items())


def _change(before: float, after: float) -> str:
    """`from 0.84 to 0.89`, with as many decimals as it takes to tell the two apart."""
    decimals = next((d for d in (2, 3) if f"{before:.{d}f}" != f"{after:.{d}f}"), 4)
    return f"from {before:.{decimals}f} to {after:.{decimals}f}"


def _remark(structures: Mapping[str, Mapping[str, Any]]) -> str:
    """Name the structure that comes off worst, and those that lose."""
    worst = min(structures, key=lambda name: structures[name]["adapted_dice"])
    remark = f"weakest: {worst}, {_change(structures[worst]['base_dice'], structures[worst]['adapted_dice'])}"
    losers = [name for name, numbers in structures.items() if numbers["dice_difference"] < 0]
    return f" ({remark}; worse than before: {', '.join(losers)})" if losers else f" ({remark})"


def _mean_and_sd(entry: Mapping[str, Any], measure: str, decimals: int) -> str:
    mean, sd = entry.get(f"{measure}_mean"), entry.get(f"{measure}_sd")
    if mean is None:
        return "-"
    return f"{mean:.{decimals}f}" + ("" if sd is None else f" ± {sd:.{decimals}f}")


def _renamed(value: Any, aliases: Mapping[str, str]) -> Any:
    """Replace the names of cases, wherever they stand: as values, in lists, as keys."""
    if isinstance(value, str):
        return aliases.get(value, value)
    if isinstance(value, Mapping):
        return {aliases.get(key, key): _renamed(inner, aliases) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(inner, aliases) for inner in value]
    return value


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and ("/" in value or "\\" in value)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
