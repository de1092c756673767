"""Measure what training, segmenting, starting, preparing and switching cost, and compare the figures with their goals.

    python Testing/Benchmarks/cost.py --out DIR
    python Testing/Benchmarks/cost.py --out DIR --only startup,adapters --quick

Methods are compared as ratios, in turns, in one run. Sections that DIR holds are not measured again; the tables are
those of all sections that it holds. The same command runs on a graphics card.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cost_adapters
import cost_inference
import cost_preparation
import cost_startup
import cost_training
import torch
from cost_results import Figure, Section

from tcurlora.errors import InputError
from tcurlora.runtime.devices import choose_device


def sections(device: torch.device, quick: bool, folder: Path) -> dict[str, Callable[[], Section]]:
    """The parts of the benchmark by the names that --only takes."""
    rounds = 2 if quick else 7
    return {
        "startup": lambda: cost_startup.measure(folder, rounds),
        "adapters": lambda: cost_adapters.measure(folder, rounds),
        "preparation": lambda: cost_preparation.measure(folder, (2, 8) if quick else (4, 40, 400)),
        "training-shipped": lambda: cost_training.measure("shipped", device, rounds),
        "training-paper": lambda: cost_training.measure("paper", device, 1 if quick else 3),
        "inference": lambda: cost_inference.measure(device, rounds, quick),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, which may hold some already")
    parser.add_argument("--only", default="", help="sections, separated by commas; 'training' stands for both of them")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a smaller brain and fewer cases")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    device = choose_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TCURLORA_HOME"] = folder  # nobody's own models and adapters
        parts = sections(device, args.quick, Path(folder))
        wanted = [name for name in args.only.split(",") if name] or list(parts)
        for name in wanted:
            if not any(part == name or part.startswith(f"{name}-") for part in parts):
                raise InputError(f"--only has the section '{name}'.", f"Choose among {', '.join(parts)}.")
        for part, measure in parts.items():
            path = args.out / f"{part}.json"
            if not path.exists() and any(part == name or part.startswith(f"{name}-") for name in wanted):
                content = {**asdict(measure()), "machine": machine(device), "quick": args.quick}
                path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    held = [json.loads((args.out / f"{part}.json").read_text("utf-8")) for part in parts if _is_held(args.out, part)]
    text = "\n\n".join(f"{_section(content).markdown()}\n\n{_conditions(content)}" for content in held) + "\n"
    (args.out / "cost.md").write_text(text, encoding="utf-8")
    (args.out / "cost.json").write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    print(text)


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    threads, cores = torch.get_num_threads(), os.cpu_count()
    return {"card": card, "threads": threads, "cores": cores, "torch": torch.__version__, "cpu": platform.machine()}


def _is_held(out: Path, part: str) -> bool:
    return (out / f"{part}.json").exists()


def _section(content: dict[str, Any]) -> Section:
    return Section(content["title"], [Figure(**figure) for figure in content["figures"]], content["rows"])


def _conditions(content: dict[str, Any]) -> str:
    where = content["machine"]
    on = where["card"] or f"{where['threads']} thread(s) on {where['cores']} cores ({where['cpu']})"
    return f"{on}, torch {where['torch']}{', quick' if content['quick'] else ''}."


if __name__ == "__main__":
    main()
