"""The settings of MLLMRec (arXiv 2508.15304)."""

from __future__ import annotations

from recbole_mm.config.kinds import FLAG, choice, layers, number, size
from recbole_mm.config.schema import Setting, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.inputs.reasoning.settings import REASONING

_PROFILES = {"reasoning": (True,)}
_CO_OCCUR = {"co_occur": (True,)}

# fmt: off
SETTINGS = (
    *section("Reasoning: texts, written once and kept in the artifact store",
        Setting("reasoning", FLAG, True, "False: no profiles; a user is the mean of its training items' vectors. "
            "Ablation \"w/o reasoning\"."),
        SHARED["item_text"].but("fused", "What is encoded of an item. fused: metadata and image description; image "
            "or text: one of them."),
        Setting("profile_form", choice("words", "states"), "words", "words: the sentence vector of a written profile. "
            "states: hidden states of mllm after the user's items, no word of a profile written. Not in the paper.",
            read_where=_PROFILES),
        REASONING["profiles_see"],
        SHARED["description_words"].but(100, "Longest description of an image. Paper: 100."),
        REASONING["profile_words"],
        REASONING["profile_history_tokens"],
        REASONING["text_wording"],
        REASONING["profile_decay"],
        REASONING["profile_half_life"],
        REASONING["sentence_encoder"]),
    *section("Item graph: S* = D^(-1/2) (S^s + S^c) D^(-1/2), from text vectors and training interactions",
        Setting("similar_k", size(1), 10, "K_s: most alike items of each, itself included. Paper: 10."),
        Setting("similar_threshold", number(-1, 1), 0.7, "alpha: edges of a smaller cosine go, the others become 1. "
            "Paper: .7 Baby, .4 Sports, .6 Clothing.", read_where={"denoise": (True,)}),
        Setting("co_k", size(1), 10, "K_c: items with the most alike audiences. Paper: 10 Baby and Sports, 15 "
            "Clothing.", read_where=_CO_OCCUR),
        Setting("denoise", FLAG, True, "False: no threshold, edges keep their cosine. Ablation."),
        Setting("co_occur", FLAG, True, "False: without S^c. Ablation."),
        Setting("drop_identical", FLAG, False, "True: also drop pairs of items with exactly the same audience, as the "
            "released code does.", read_where=_CO_OCCUR),
        Setting("n_layers", layers(0), 1, "L: E* = sum of (S*)^l E over l = 0..L. 0: no item graph. Paper: 1.")),
    *section("Towers: h = W2 LeakyReLU(W1 x), one for users and one for items",
        Setting("embedding_size", size(1), 64, "d; the hidden layer has 4 d. Paper: 64."),
        Setting("gcn_ui", FLAG, False, "True: LightGCN over users and items on the towers' outputs, the paper's "
            "variant \"w/ GCN_UI\"."),
        Setting("gcn_ui_layers", layers(1), 2, "Layers of it. Paper: 2.", read_where={"gcn_ui": (True,)}),
        Setting("user_residual", choice("none", "id", "items"), "none", "Added to the users' tower, zero at first. id: "
            "a learned vector per user. items: learned vectors of the user's training items, summed over the root of "
            "their number. Not in the paper."),
        Setting("item_residual", FLAG, False, "True: a learned vector per item is added to the items' tower. Not in "
            "the paper.")),
    *section("Training. Paper: patience of 20 epochs on Recall@20; every model of a comparison stops by the same rule, "
        "so that stands in the experiments: --valid_metric=Recall@20 --stopping_step=20 gives it to a single run.",
        SHARED["train_batch_size"].but(2048, "Training interactions per optimizer step. Paper: 2048."),
        SHARED["learning_rate"].but(1e-3, "Of Adam. Paper: 1e-3.")),
)
# fmt: on
