"""The contract of models: what each class is answered for, and what is refused before anything is spent."""

from __future__ import annotations

import ast
import re
import time
from pathlib import Path

import pytest
from recbole.model.abstract_recommender import ContextRecommender, GeneralRecommender, SequentialRecommender
from recbole.model.general_recommender import BPR
from recbole.model.sequential_recommender import S3Rec, SASRec

import recbole_mm
from recbole_mm.errors import ConfigError
from recbole_mm.models.base import GeneralModel, ModelHooks, RerankingModel, SequentialModel
from recbole_mm.models.full_sequence import FullSequenceMixin
from recbole_mm.models.hooks import HOOKS, check_hooks, full_sequence_class, has_dot_product, hooks_of, reads_content
from recbole_mm.models.recbole_models import RECBOLE
from recbole_mm.registry import find_model, list_models
from recbole_mm.runs.plan import plan

LOOKUPS = ("getattr", "hasattr", "setattr")


def loaded() -> list[type]:
    """Classes of all models that need no other package."""
    return [entry.load() for entry in list_models() if entry.type != "external library"]


def named(name: str, base: type = SequentialRecommender, **content) -> type:
    return type("Mine", (base,), {name: content.get("value", True)})


# ---- answers ----


def test_a_class_that_says_nothing_gets_the_defaults():
    for kind in (object, SequentialModel, GeneralModel, SequentialRecommender):
        hooks = hooks_of(kind)
        assert {name: vars(hooks).get(name, default) for name, default in HOOKS.items()} == HOOKS
        assert hooks.requirements({}) == ()
        assert not hooks.wants_negatives({})
        assert not has_dot_product(hooks)
        assert not reads_content(hooks)


def test_rows_of_the_table_are_recboles_classes_and_their_answers_are_hooks():
    for name, answers in RECBOLE.items():
        model_class = ContextRecommender if name == "ContextRecommender" else find_model(name).load()
        assert model_class.__module__.startswith("recbole.")
        assert answers
        assert answers.keys() <= HOOKS.keys()
        assert {hook: vars(hooks_of(model_class))[hook] for hook in answers} == dict(answers)


def test_answers_are_inherited_until_what_they_are_about_is_written_anew():
    sasrec = hooks_of(type("Mine", (SASRec,), {}))
    assert sasrec.supports_ddp
    assert sasrec.ignores_right_padding
    assert has_dot_product(sasrec)
    assert sasrec.full_sequence_mixin is None
    assert not hooks_of(type("Mine", (SASRec,), {"calculate_loss": lambda self, interaction: 0})).supports_ddp
    molar = find_model("Molar").load()
    scores_anew = type("Mine", (molar,), {"full_sort_predict": lambda self, interaction: 0})
    assert has_dot_product(hooks_of(molar))
    assert not has_dot_product(hooks_of(scores_anew))
    assert hooks_of(scores_anew).supports_ddp


def test_methods_are_called_with_the_model_and_class_methods_with_the_class():
    class Mine(GeneralModel):
        requires = ("item_vectors",)

        def __init__(self):
            self.epochs = []

        def start_epoch(self, epoch):
            self.epochs.append(epoch)

        @classmethod
        def wants_negatives(cls, config):
            return cls is Mine and config["wanted"]

    hooks, model = hooks_of(Mine), Mine()
    hooks.start_epoch(model, 3)
    assert model.epochs == [3]
    assert hooks.wants_negatives({"wanted": True})
    assert hooks.requirements({}) == ("item_vectors",)
    assert reads_content(hooks)
    assert not hooks.is_pretraining(model)


def test_runs_of_s3rec_that_prepare_others_are_told_by_their_stage():
    assert hooks_of(S3Rec).only_pretrains({"train_stage": "pretrain"})
    assert not hooks_of(S3Rec).only_pretrains({"train_stage": "finetune"})
    assert not hooks_of(SASRec).only_pretrains({"train_stage": "pretrain"})


def test_the_full_sequence_form_keeps_what_its_model_answers():
    hooks = hooks_of(full_sequence_class(SASRec))
    assert hooks.trains_on_full_sequences
    assert hooks.ignores_right_padding
    assert has_dot_product(hooks)


def test_the_page_about_adding_a_model_names_hooks_alone():
    page = (Path(__file__).parents[1] / "docs" / "add-a-model.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]*) \|", page, flags=re.M)
    named = {name for cell in cells for name in re.findall(r"`(\w+)", cell)}
    assert len(named) > 10
    assert named <= HOOKS.keys()


# ---- refusals ----


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ignore_right_padding", "ignores_right_padding"),
        ("trains_on_full_sequence", "trains_on_full_sequences"),
        ("isTrainable", "is_trainable"),
        ("support_ddp", "supports_ddp"),
        ("splits_batches", "supports_ddp"),
        ("learns", "is_trainable"),
    ],
)
def test_a_flag_that_is_almost_a_hook_is_refused(name, meant):
    with pytest.raises(ConfigError, match=rf"^model Mine: {name} is no hook, .* did you mean {meant}\? .*underscore$"):
        hooks_of(named(name))


def test_a_method_that_is_almost_a_hook_is_refused():
    with pytest.raises(ConfigError, match=r"on_start_epoch is no hook.*did you mean start_epoch"):
        check_hooks(named("on_start_epoch", value=lambda self, epoch: None))
    with pytest.raises(ConfigError, match=r"requirement is no hook.*did you mean requirements"):
        check_hooks(named("requirement", value=classmethod(lambda cls, config: ())))
    with pytest.raises(ConfigError, match=r"pretraining is no hook.*did you mean is_pretraining"):
        check_hooks(named("pretraining", value=property(lambda self: True)))
    with pytest.raises(ConfigError, match=r"answer_any is no hook.*did you mean answers_any"):
        check_hooks(named("answer_any", RerankingModel))
    check_hooks(named("answer_any"))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("requires", "item_vectors", "requires: 'item_vectors', and must be a tuple of names"),
        ("supports_ddp", 1, "supports_ddp: 1, and must be True or False"),
        ("is_trainable", lambda self: False, "is_trainable is a method, and must be True or False"),
        ("start_epoch", True, "start_epoch is True or False, and must be a method"),
        ("wants_negatives", lambda self, config: True, "wants_negatives is a method, and must be a class method"),
        ("full_sequence_mixin", "SASRec", "full_sequence_mixin: 'SASRec', and must be a class"),
    ],
)
def test_a_hook_of_another_kind_is_refused(name, value, said):
    with pytest.raises(ConfigError, match=f"^model Mine: {said}; see models/base.py"):
        hooks_of(named(name, value=value))


def test_what_is_refused_ends_a_run_before_its_folder_is_made(toy_settings, tmp_path):
    class Mine(BPR):
        ignore_right_padding = True

    with pytest.raises(ConfigError, match="did you mean ignores_right_padding"):
        recbole_mm.run(Mine, "toy", config_dict=toy_settings)
    with pytest.raises(ConfigError, match="did you mean ignores_right_padding"):
        plan(Mine, "toy", config_dict=toy_settings)
    assert not (tmp_path / "saved").exists()


def test_no_class_of_recbole_or_ours_is_refused():
    classes = loaded()
    assert len(classes) > 80
    for kind in classes:
        check_hooks(kind)


def test_no_class_of_recbole_is_refused_in_a_module_of_the_users_own():
    for kind in loaded():
        names = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        copied = type(kind.__name__, (GeneralRecommender,), {**names, "__module__": "mine"})
        check_hooks(copied)


def test_ordinary_names_are_left_alone():
    class Mine(GeneralModel):
        user_embeddings = item_embeddings = None
        train_epochs = 3
        paddings = (0, 0)
        requirement = None

        def user_vector(self, user): ...
        def item_vector(self, item): ...
        def get_item_vectors(self): ...
        def prompt(self, config): ...
        def parameter_count(self): ...
        def epoch_start(self, epoch): ...
        def pretrain(self, epoch): ...
        def pretraining(self, data): ...
        def learns(self, data): ...
        def _user_vector(self, interaction): ...

        @property
        def item_vector_size(self): ...

    check_hooks(Mine)

    class Both(GeneralModel):
        def user_vectors(self, interaction): ...
        def item_vectors(self): ...
        def user_vector(self, interaction): ...

    check_hooks(Both)


def test_nothing_looks_for_a_hook_by_its_name():
    for path in Path(recbole_mm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LOOKUPS:
                names = {part.value for part in node.args if isinstance(part, ast.Constant)}
                assert not names & HOOKS.keys(), f"{path}, line {node.lineno}: ask hooks_of(model_class)"


def test_asking_takes_no_time():
    start = time.process_time()
    for _ in range(10):
        hooks_of(find_model("CoLLM").load())
    assert time.process_time() - start < 1


def test_the_page_and_the_mixin_fit_together():
    assert issubclass(RerankingModel, ModelHooks)
    assert hooks_of(type("Mine", (FullSequenceMixin, SASRec), {})).supports_ddp
