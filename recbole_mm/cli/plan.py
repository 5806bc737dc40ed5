"""`recbole-mm plan`: what a run of the same arguments would compute before it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recbole_mm.cli.arguments import PROGRAM, run_arguments
from recbole_mm.utils.escaping import printable
from recbole_mm.utils.progress import duration
from recbole_mm.utils.tables import columns

if TYPE_CHECKING:
    from recbole_mm.inputs.context import PlannedStage
    from recbole_mm.runs.plan import Plan

HELP = f"""Print what a run would compute before it trains - texts of an LLM, vectors - and compute nothing.

usage: {PROGRAM} plan --model=NAME --dataset=NAME [--config_files="a.yaml b.yaml"] [--key=value ...]

examples:
  {PROGRAM} plan --model=MLLMRec --dataset=ml-100k-mm
  {PROGRAM} plan --model=MLLMRec --dataset=hm --text_backend=openai --text_model=gemma3 --text_url=http://localhost:8000/v1
  {PROGRAM} plan --model=MLLMRec --dataset=hm --text_backend=hf --text_model=Qwen/Qwen2-VL-2B-Instruct

The arguments are those of `{PROGRAM} run`. Each stage is a line: what the artifact store has already, what is to do,
its tokens, and a time: from what the model did here before, or else from a rate that is printed. No weights are loaded,
no server is asked, nothing is written.
"""

WIDEST = 40
"""Characters of a model's name; of a longer one, a path, the end is shown."""
COLUMNS = ("STAGE", "BY", "DONE", "TO DO", "PROMPT TOKENS", "NEW TOKENS", "TIME")


def main(arguments: Sequence[str]) -> int:
    """Print a table of the stages before training, with their cost."""
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    given = run_arguments(arguments)
    from recbole_mm.runs.plan import plan as plan_run  # imports torch and transformers
    from recbole_mm.utils.log import init_logging

    init_logging(None, given["command_line"].get("state", "WARNING"))
    print(printable(to_text(plan_run(**given))), end="")
    return 0


def to_text(planned: Plan) -> str:
    """The plan as a table with its notes, for a terminal."""
    config = planned.config
    title = f"{config['model']} on {config['dataset']}"
    if not planned.stages:
        return "\n".join([f"{title}: nothing to compute before training", *planned.notes]) + "\n"
    lines = [columns(COLUMNS, map(_cells, planned.stages))]
    lines += ["", f"in all: {planned.to_do:,} to do, {_all_time(planned.stages)}"]
    lines += [f"- {note}" for note in dict.fromkeys(planned.notes)]
    return "\n".join([f"{title}, before training (nothing has been computed)", "", *lines]) + "\n"


def _cells(stage: PlannedStage) -> tuple[str, ...]:
    """One row of the table."""
    done = "?" if stage.done is None else f"{stage.done:,}"
    to_do = f"at most {stage.to_do:,}" if stage.at_most else f"{stage.to_do:,}"
    prompt, new = "", ""
    if stage.work is not None and stage.work.calls:
        images = f" + {stage.work.images:,} images" if stage.work.images else ""
        prompt = f"{'' if stage.exact else 'about '}{stage.work.prompt_tokens:,}{images}"
        new = f"at most {stage.work.new_tokens:,}"
    if not stage.to_do:
        time = ""
    elif stage.by == "template":
        time = "no LLM"
    elif stage.seconds is None:
        time = "not estimated"
    else:
        time = f"{_about(stage.seconds)} ({'measured' if stage.measured else 'assumed'} rate)"
    by = stage.by if len(stage.by) <= WIDEST else f"...{stage.by[3 - WIDEST :]}"
    return stage.name, by, done, to_do, prompt, new, time


def _all_time(stages: Sequence[PlannedStage]) -> str:
    known = [stage.seconds for stage in stages if stage.to_do and stage.seconds is not None]
    unknown = any(stage.to_do and stage.seconds is None for stage in stages)
    if unknown:
        return f"{_about(sum(known))} and what is not estimated" if known else "time not estimated"
    return _about(sum(known))


def _about(seconds: float) -> str:
    return f"about {duration(seconds)}" if seconds >= 1 else "less than a second"
