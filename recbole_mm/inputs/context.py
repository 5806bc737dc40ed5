"""What the inputs of a run are made of, and what a need is: a class that plans and computes from one description."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from recbole_mm.artifacts.executor import Executor
from recbole_mm.artifacts.store import Store
from recbole_mm.artifacts.vectors import Encoder
from recbole_mm.config.resolved import Config
from recbole_mm.data.content import ItemContent
from recbole_mm.inputs.needs import Asks
from recbole_mm.inputs.reasoning.failures import LeftOut
from recbole_mm.inputs.reasoning.rates import TextWork
from recbole_mm.inputs.remembered import Remembered
from recbole_mm.llm.texts.generator import Generator
from recbole_mm.utils.files import make_folder

if TYPE_CHECKING:
    from recbole_mm.data.dataset import MultimodalDataset


def artifact_dir(config: Config) -> Path:
    """Returns the folder of everything computed offline: `artifact_dir`, or `<checkpoint_dir>/artifacts`."""
    return Path(config["artifact_dir"] or Path(config["checkpoint_dir"]) / "artifacts")


def open_store(config: Config) -> Store:
    """Opens the artifact store that a run reads and fills; its folder is made."""
    folder = artifact_dir(config)
    make_folder(folder)
    return Store(folder / "artifacts.sqlite")


class NoStore:
    """Stands for an artifact store that does not exist yet, without making it.

    Example:
        >>> NoStore().contains(["a key"])
        set()
    """

    def contains(self, keys: Iterable[str]) -> set[str]:
        """Returns none of the keys."""
        return set()

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Returns no value."""
        return {}

    def failures(self, stage: str | None = None) -> dict[str, str]:
        """Returns no failure."""
        return {}

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan.

    Attributes:
        name: what is made.
        by: the model.
        done: distinct results in the store; None where that cannot be known.
        to_do: distinct results to compute.
        at_most: whether `to_do` is a bound only.
        work: tokens of the texts to write; None for vectors.
        exact: whether the prompt tokens are counted; else they are estimated.
        seconds: estimate of time; None where there is no ground for one.
        measured: whether it rests on what this model did here before.

    Example:
        >>> PlannedStage("item vectors", "tiny", done=30, to_do=10).to_do
        10
    """

    name: str
    by: str
    done: int | None
    to_do: int
    at_most: bool = False
    work: TextWork | None = None
    exact: bool = True
    seconds: float | None = None
    measured: bool = False


class OfContext(Protocol):
    """A class whose objects are made from a context alone."""

    def __init__(self, context: Context, /) -> None: ...


Shared = TypeVar("Shared", bound=OfContext)


class Context:
    """Config, dataset and store of a run, and the objects that its needs have in common.

    Args:
        config: the run's configuration.
        dataset: loaded and not yet split.
        store: of artifacts; only read by plans.
        hooks: of the model's class; its `build_prompt` is called for `answering_mllm`.
        needs: names of what is needed.
        artifacts: folder of the store, of tuned models, failures and rates; by default that of the config.
        executor: computes stages on other machines; None computes them in this process.
        left_out: texts that the run had to do without when it began; they are not asked for again.
        remembered: the values of the store that the run was made of.
        generator: writes texts in place of `text_backend`.
        open_encoder: opens an encoder in place of `sentence_encoder`.
        content: what is shown of the items; by default what the training sees.
        is_plan: nothing is computed: no weights are loaded, and nothing is written or downloaded that is larger than a
            tokenizer.

    Attributes:
        notes: what a reader of the plan must know.
        genericness: figures of the texts about users (`inputs/reasoning/genericness.py`), by what they are.
        tokens: what an LLM reads and writes about a user, in tokens, on average over users, by what it is.
    """

    def __init__(
        self,
        config: Config,
        dataset: MultimodalDataset,
        store: Any,
        hooks: type[Asks] | None = None,
        needs: tuple[str, ...] = (),
        *,
        artifacts: Path | None = None,
        executor: Executor | None = None,
        left_out: LeftOut | None = None,
        remembered: Remembered | None = None,
        generator: Generator | None = None,
        open_encoder: Callable[[], Encoder] | None = None,
        content: ItemContent | None = None,
        is_plan: bool = False,
    ) -> None:
        self.config, self.dataset, self.store, self.hooks, self.needs = config, dataset, store, hooks, needs
        self.artifacts = artifact_dir(config) if artifacts is None else artifacts
        self.executor = executor
        self.left_out, self.remembered = left_out or LeftOut(), remembered or Remembered()
        self.generator, self.open_encoder = generator, open_encoder
        self._content = content
        self.is_plan = is_plan
        self.notes: list[str] = []
        self.genericness: dict[str, dict[str, float]] = {}
        self.tokens: dict[str, float] = {}
        self._shared: dict[type, Any] = {}
        self._counted: set[str] = set()

    @property
    def content(self) -> ItemContent:
        """The items. What an LLM is tuned of is `dataset.content` instead, in every context."""
        return self.dataset.content if self._content is None else self._content

    def share(self, kind: type[Shared]) -> Shared:
        """Returns the one object of a class that the needs of a run have in common; it is made on first use."""
        if kind not in self._shared:
            self._shared[kind] = kind(self)
        return self._shared[kind]

    def release(self, *kinds: type) -> None:
        """Lets go of what the needs have in common, models included.

        Args:
            kinds: classes of the objects; none for all.
        """
        for kind in kinds or tuple(self._shared):
            self._shared.pop(kind, None)

    def count(self, keys: Iterable[str]) -> tuple[int, int]:
        """Counts results for a plan, each distinct one once, whichever stages have it in common.

        Args:
            keys: artifact keys.

        Returns:
            How many the store has, and how many are to do that were not counted before.
        """
        distinct = set(keys)
        done = self.store.contains(distinct)
        to_do = distinct - done - self._counted
        self._counted |= to_do
        return len(done), len(to_do)


class Need(ABC):
    """Something that a model needs besides interactions. `plan` and `compute` describe it by the same keys.

    Args:
        context: the run's context.
    """

    reads_inputs: ClassVar[bool] = False
    """It reads `dataset.inputs`, so all others are computed first."""

    of_contents: ClassVar[bool] = True
    """It is made of what items look like, so it is another one where the test sees other contents than the training."""

    def __init__(self, context: Context, /) -> None:
        self.context = context

    def check(self) -> None:  # noqa: B027 - most needs have nothing to refuse
        """Refuses settings, and models that cannot be found, before anything is computed.

        Raises:
            RecboleMMError: one line that says what is wrong.
        """

    def plan(self) -> list[PlannedStage]:
        """Returns the stages that would be computed; what else a reader must know is added to the notes."""
        return []

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """Returns the inputs by their names in `ModelInputs`; what the store lacks is computed and kept there."""
