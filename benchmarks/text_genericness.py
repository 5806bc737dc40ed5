"""How generic users' profiles are: as they were written, and dealt out to other users.

    python benchmarks/text_genericness.py --dataset ml-100k-mm --data_path DIR
    python benchmarks/text_genericness.py --dataset ml-100k-mm --data_path DIR --text_backend=hf --text_model=smollm2

Texts are those of MLLMRec under the settings given as --key=value. Those dealt out are about nobody in particular that
they are given to, and nothing else of them is changed.
"""

from __future__ import annotations

import argparse

import numpy as np
from common import markdown_table

from recbole_mm.cli.arguments import split_arguments
from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.inputs.context import Context, open_store
from recbole_mm.inputs.reasoning.genericness import genericness
from recbole_mm.inputs.reasoning.items import ItemTexts
from recbole_mm.inputs.reasoning.profiles import UserProfiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="Other --key=value are settings.")
    parser.add_argument("--dataset", default="ml-100k-mm")
    parser.add_argument("--shown", type=int, default=0, help="profiles to print (0)")
    given, others = parser.parse_known_args()
    quiet = {"state": "WARNING", "show_progress": False}
    config = Config("MLLMRec", given.dataset, config_dict=quiet, command_line=split_arguments(others))
    dataset = create_dataset(config)
    with open_store(config) as store:
        context = Context(config, dataset, store)
        texts, known = context.share(UserProfiles).texts, context.share(ItemTexts).known_of
        users, items, offsets = dataset.user_histories()
        own = {user: items[offsets[place] : offsets[place + 1]].tolist() for place, user in enumerate(users.tolist())}
        written = {user: text for user in own if (text := texts[user])}
        dealt = dict(zip(written, np.random.default_rng(1).permutation(list(written.values())).tolist(), strict=True))
        rows = []
        for name, said in (("as written", written), ("dealt out", dealt)):
            found = genericness(said, own.__getitem__, known)
            assert found is not None
            figures = (found.distinct_1, found.distinct_2, found.nearest, found.foreign, found.foreign_to_others)
            rows.append([name, *(f"{figure:.3f}" for figure in figures), "yes" if found.reasons else "no"])
    print(f"{len(written):,} profiles of {np.mean([len(text.split()) for text in written.values()]):.0f} words")
    head = ["profiles", "distinct-1", "distinct-2", "nearest", "foreign", "foreign to others", "warned of"]
    print(markdown_table(head, rows))
    for text in list(written.values())[: given.shown]:
        print("-", text)


if __name__ == "__main__":
    main()
