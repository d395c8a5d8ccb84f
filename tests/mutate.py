"""Mutation testing: does any test notice when one line is changed? ``make mutate`` runs this; docs/mutants.md keeps what came of it.

mutmut makes the mutants of the modules named in pyproject.toml, one changed expression each, and runs the tests that reach the changed
function. There are some ten thousand; a run takes as many of every module as ``--each`` says, always the same ones: those whose names have
the lowest SHA-256. What died before and has not changed since is not tried again, so a run that is cut short goes on where it was.

A survivor is to be killed by a test, or judged: docs/mutants.md lists those whose answer cannot differ, by function and changed line. The
exit status is 0 where at least 95 % of the others died.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
JUDGED = ROOT / "docs" / "mutants.md"
ENOUGH = 0.95
DIED = {"killed", "timeout", "segfault", "caught by type check"}


def function_of(name: str) -> str:
    """Return ``module.function`` of a mutant's name, such as sightline.training.loop.Loop._step."""
    module, _, key = name.partition("__mutmut_")[0].rpartition(".")
    return f"{module}.{key.removeprefix('xǁ').replace('ǁ', '.') if 'ǁ' in key else key.removeprefix('x_')}"


def sample(names: list[str], each: int) -> set[str]:
    """Return ``each`` of every module's mutants, the same in every run."""
    by_module = collections.defaultdict(list)
    for name in names:
        by_module[name.rpartition(".")[0]].append(name)
    ordered = (sorted(mine, key=lambda name: hashlib.sha256(name.encode()).digest()) for mine in by_module.values())
    return {name for mine in ordered for name in mine[:each]}


def changed_line(diff: str) -> tuple[str, str]:
    """Return what a mutant's diff takes out and what it puts there, each on one line."""
    parts = ([line[1:].strip() for line in diff.splitlines() if line.startswith(mark) and not line.startswith(mark * 3)] for mark in "-+")
    old, new = (" ".join(lines) for lines in parts)
    return old, new


def judged() -> set[tuple[str, str]]:
    """Return (function, changed line) of the mutants that docs/mutants.md judges equivalent."""
    rows = re.findall(r"^\| `(sightline\.[^`]+)` \| `` (.+?) `` \|", JUDGED.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {(function, line.replace("\\|", "|")) for function, line in rows}


def run(each: int, jobs: int, limit_s: int, only: str) -> int:
    """Try the sample for at most ``limit_s`` and print what came of it; return the exit status."""
    from mutmut import __main__ as mutmut
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code

    collect = mutmut.collect_source_file_mutation_data
    chosen: dict[str, Any] = {}

    def sampled(*, mutant_names: Any) -> tuple[list[Any], dict[str, Any]]:
        mutants, files = collect(mutant_names=mutant_names)
        kept = sample([name for _, name, _ in mutants], each)
        mutants = [
            (file, name, result if status_by_exit_code[result] in DIED else None)  # tests may have come for a survivor
            for file, name, result in mutants
            if name in kept and only in name
        ]
        chosen.update({name: file for file, name, _ in mutants})
        return mutants, files

    def out_of_time(*_: object) -> None:
        raise KeyboardInterrupt

    mutmut.collect_source_file_mutation_data = sampled
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(limit_s)
    try:
        mutmut._run((), jobs)
    except KeyboardInterrupt:
        print("out of time: run again to go on")
    signal.alarm(0)
    known, counts, left, survivors = judged(), collections.Counter(), 0, []
    for name, file in sorted(chosen.items()):
        file.load()
        status = status_by_exit_code[file.exit_code_by_key[name]]
        if status == "not checked":
            left += 1
            continue
        module = name.rpartition(".")[0]
        if status in DIED:
            counts[module, "died"] += 1
            continue
        old, new = changed_line(get_diff_for_mutant(name, path=file.path))
        if (function_of(name), new) in known:
            counts[module, "judged"] += 1
        else:
            counts[module, "survived"] += 1
            survivors.append(f"{function_of(name)} ({status}, {name.rpartition('_')[2]})\n    - {old}\n    + {new}")
    print("\n".join(["", *survivors, ""]))
    for module in sorted({module for module, _ in counts}):
        print(f"{module:45} " + "  ".join(f"{what} {counts[module, what]:3}" for what in ("died", "judged", "survived")))
    died, survived = (sum(num for (_, kind), num in counts.items() if kind == what) for what in ("died", "survived"))
    equal = sum(num for (_, kind), num in counts.items() if kind == "judged")
    share = died / max(1, died + survived)
    print(
        f"{died + survived + equal} mutants: {died} died, {equal} are judged equivalent, {survived} survived: {share:.1%} killed; {left} not tried"
    )
    return 0 if share >= ENOUGH and not left else 1


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=8, help="mutants of every module")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--minutes", type=int, default=60, help="stop after this long")
    parser.add_argument("--only", default="", help="only mutants whose name holds this, such as train.loop")
    parser.add_argument("--anew", action="store_true", help="forget what was tried before")
    given = parser.parse_args()
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(ROOT / "src")  # of the few tests that start a Python of their own, which is to be as it is
    if given.anew:
        shutil.rmtree("mutants", ignore_errors=True)
    return run(given.each, given.jobs, 60 * given.minutes, given.only)


if __name__ == "__main__":
    sys.exit(main())
