"""TALLRec: what its prompts tell, who likes what, and that no rating of a held-out row reaches a training prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_mm.config.resolved import Config
from recbole_mm.data.content_source import ContentSource
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.splits import split
from recbole_mm.llm.answer import resolve_yes_no
from recbole_mm.models.tallrec import TALLRec, likes_of
from tests.asking import builder
from tests.conftest import TOY_SETTINGS

QUICK = {"sft_tuning": "none", "first_stage_config": {"epochs": 1}, "rerank_k": 6}


built = builder("TALLRec", QUICK)


def test_the_last_titles_and_the_candidates_are_told(built):
    prompt = built(tallrec_history=2).model.prompt
    tokens = built().dataset.item_tokens()
    told = prompt.user_text(1, [5, 6, 7])
    assert [f"film number {str(tokens[item])[1:]}\n" in told for item in (5, 6, 7)] == [False, True, True]
    words = built().dataset.inputs.mllm.tokenizer.decode(prompt.words_of(9))
    assert words.endswith(f"film number {str(tokens[9])[1:]}")


def test_no_image_is_shown(built, monkeypatch):
    outcome = built()

    def refuse(self, item):
        raise AssertionError("an image was read")

    monkeypatch.setattr(ContentSource, "image", refuse)
    rows = outcome.splits.test.users.interaction[np.arange(3)]
    with torch.no_grad():
        found = outcome.model.predict(Interaction({**rows.interaction, "item_id": torch.tensor([1, 2, 3])}))
    assert found.std() > 0


def test_an_answer_is_that_of_the_whole_prompt(built):
    outcome = built(tallrec_rating_field="rating")
    model, mllm = outcome.model, outcome.dataset.inputs.mllm
    rows = outcome.splits.test.users.interaction[np.arange(4)]
    yes_no = list(resolve_yes_no(mllm, model.prompt.tail))
    with torch.no_grad():
        found = model.predict(Interaction({**rows.interaction, "item_id": torch.arange(4) + 1}))
        for row, history in enumerate(model.histories(rows)):
            parts = [*model.prompt.prefix(int(rows["user_id"][row]), history), *model.prompt.suffix(row + 1)]
            ids = torch.from_numpy(mllm.family.prepare(parts, 784).ids)[None]
            p = mllm.model(input_ids=ids).logits[0, -1].double().softmax(-1)[yes_no]
            assert found[row] == pytest.approx(float(p[0] / p.sum()), abs=1e-4)


# ------------------------------------------------------------------------------------------------------------ likes


def ratings(folder, rows):
    """A dataset of users' (item, rating) in the order of time."""
    root = folder / "rated"
    root.mkdir()
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user, mine in rows.items():
        lines += [f"{user}\t{item}\t{rating}\t{1000 + place}" for place, (item, rating) in enumerate(mine)]
    # Not in the order of time: the last line is the first.
    (root / "rated.inter").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    settings = {**TOY_SETTINGS, "data_path": str(folder), "checkpoint_dir": str(folder / "saved")}
    settings |= {"load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]}, "text_fields": []}
    return Config(TALLRec, "rated", config_dict={**settings, "image_dir": None})


def test_the_first_rating_of_an_item_counts(tmp_path):
    """Before the split, where fine-tuning reads it, and after; whatever is held out."""
    mine = [("a", 5), ("b", 2), ("c", 4), ("a", 1), ("b", 5)]
    config = ratings(tmp_path, {"u": mine, "v": [("b", 5), ("a", 3), ("c", 1), ("b", 1)]})
    dataset = create_dataset(config)
    names = (dataset.field2id_token[field] for field in ("user_id", "item_id"))
    user, item = ({str(token): place for place, token in enumerate(tokens)} for tokens in names)
    expected = {("u", "a"): True, ("u", "b"): False, ("u", "c"): True, ("v", "a"): False, ("v", "b"): True}
    before = likes_of(dataset, "rating", 4)
    after = likes_of(split(config, dataset, TALLRec).train_dataset, "rating", 4)
    for likes in (before, after):
        assert {pair: likes(user[pair[0]], item[pair[1]]) for pair in expected} == expected
        assert likes(user["v"], 0), "what has no rating is not disliked"


def test_disliked_titles_are_told_apart(built):
    outcome = built(tallrec_rating_field="rating")
    likes = outcome.model.prompt.likes
    rows = outcome.splits.test.users.interaction[np.arange(20)]
    users, histories = rows["user_id"].tolist(), outcome.model.histories(rows)
    mixed = [
        (user, history[-10:])
        for user, history in zip(users, histories)
        if len({likes(user, item) for item in history[-10:]}) == 2
    ]
    assert len(mixed) > 5
    for user, history in mixed:
        told = outcome.model.prompt.user_text(user, history)
        bounds = told.index(outcome.model.prompt.DISLIKED)
        for item in history:
            place = told.index(outcome.model.prompt.titles[item] + "\n")
            assert (place < bounds) == likes(user, item)
    assert outcome.model.prompt.DISLIKED not in built().model.prompt.user_text(*mixed[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modalities": ["image"]}, "TALLRec reads titles: keep text among the modalities"),
        ({"tallrec_rating_field": "stars"}, "tallrec_rating_field: the interactions have no column 'stars'"),
        ({"tallrec_title_field": "name"}, "tallrec_title_field: the .item file has no column 'name'"),
        ({"tallrec_history": 0}, "tallrec_history: 0 is not accepted; give a whole number of at least 1"),
    ],
)
def test_settings_that_cannot_be(built, settings, message):
    with pytest.raises(ConfigError, match=message):
        built(**settings)
