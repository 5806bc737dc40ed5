"""The settings of Molar (arXiv 2412.18176). "Not stated" is what the paper does not tell."""

from __future__ import annotations

from dataclasses import replace

from recbole_mm.config.kinds import (
    FLAG,
    NAMES,
    PATH,
    SEED,
    SHARE,
    TEXT,
    Kind,
    above_zero,
    choice,
    is_list_of,
    is_number,
    layers,
    list_of,
    number,
    or_null,
    size,
    whole,
)
from recbole_mm.config.schema import Setting, like, read_with, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.models.settings import FUSION_WEIGHT, JOINT_ITEMS, LORA, MODALITY_DROPOUT, TUNING

_OBJECTIVES = ("IT", "SA", "UB")
OBJECTIVES = replace(
    list_of(lambda name: name in _OBJECTIVES, f"a list out of {', '.join(_OBJECTIVES)}"),
    accepts=lambda value: is_list_of(value, lambda name: name in _OBJECTIVES) and len(set(value)) == len(value),
)
_WEIGHTS = Kind(
    lambda value: (
        isinstance(value, dict)
        and all(name in _OBJECTIVES and is_number(weight, 0) for name, weight in value.items())
        and (len(value) < len(_OBJECTIVES) or any(value.values()))
    ),
    f"a mapping from names out of {', '.join(_OBJECTIVES)} to numbers of at least 0, not all of them 0",
)

_ALIGNED: dict[str, tuple[str, ...]] = {"id_model": ()}

# fmt: off
SETTINGS = (
    *section("The multimodal LLM (MIRM and DUEG share it)",
        SHARED["mllm"].but("tiny", "Hugging Face id or folder (families: docs/backbones.md), a PEFT adapter's "
            "folder, or `tiny`, `tiny-internvl`, ...: untrained, built from the dataset's own text. Paper: "
            "Qwen2-VL-2B."),
        SHARED["modalities"].but(["image", "text"], "What the MLLM sees of an item. Paper: both (Table 3 compares)."),
        SHARED["mllm_image_pixels"].but(12544, "Bound on an image's pixels after resizing; families that read tiles "
            "take at least one. Not stated."),
        SHARED["max_text_tokens"].but(256, "Longer item texts are cut. Not stated."),
        SHARED["mllm_layers"].but(None, "Encode items with the first so many of its layers, weights kept; null: all. "
            "Paper: all."),
        SHARED["mllm_pooling"].but("cur_item", "Where an item's vector is read. cur_item: at [Cur_Item], as in the "
            "paper. last, mean: of the item alone, for embedding models. checkpoint: as its 1_Pooling says."),
        SHARED["mllm_instruction"].but(None, "A text before each item, as some embedding models want it; null: none, "
            "or for checkpoint its own.")),
    *section("Fine-tuning the MIRM before it encodes (section 3.3); the tuned model is kept beside the item vectors "
        "and found again",
        Setting("mirm_tuning", or_null(TUNING), "none", "none, lora (an adapter on the decoder) or full (every "
            "weight). Paper: full at 2B, lora from 7B."),
        Setting("mirm_lora", LORA, {"r": 16, "alpha": 32, "dropout": 0.05, "targets": None}, "targets: names of linear "
            "layers; null: all of the decoder's. Of mirm_training: joint, too. Not stated."),
        Setting("mirm_gradient_checkpointing", FLAG, False, "Compute activations twice: less memory, about a third "
            "more time. Of mirm_training: joint, too."),
        *read_with({"mirm_tuning": ("lora", "full")},
        Setting("mirm_objectives", OBJECTIVES, ["IT", "SA", "UB"], "IT: image -> description. SA: title and metadata "
            "-> description. UB: history -> next item, from training interactions alone. Paper: all three (Table 5 "
            "leaves each out)."),
        Setting("mirm_examples", size(1), 10000, "Examples of each objective; fewer where the data has fewer. Paper: "
            "10,000."),
        Setting("mirm_weights", _WEIGHTS, {"IT": 1, "SA": 1, "UB": 1}, "Weight of an example's loss by objective; 1 "
            "for one that is not named, and 0 is as if mirm_objectives left it out. Not stated."),
        Setting("mirm_description_field", or_null(TEXT), None, "Column of .item with a description in prose, what IT "
            "and SA are to say. Null: sentences are made of the metadata by a template. Not stated where the paper's "
            "come from."),
        Setting("mirm_history", size(1), 10, "Items of a history shown by UB, the latest ones. Not stated."),
        Setting("mirm_answer_tokens", size(1), 128, "Longer answers are cut. Not stated."),
        Setting("mirm_bottleneck", FLAG, False, "True: answers see an item only through its [Cur_Item], items not each "
            "other. Ours; paper: False."),
        Setting("mirm_epochs", size(1), 1, "Passes over the examples. Paper: at most 5, of all its LLM training."),
        Setting("mirm_learning_rate", above_zero(), 1e-4, "Its peak; linear warm-up from a hundredth of it, then "
            "cosine. Paper: 1e-4."),
        Setting("mirm_warmup_ratio", SHARE, 0.05, "Share of the steps before the peak. Not stated."),
        Setting("mirm_batch_tokens", size(1), 8192, "Tokens of a batch, padding and image patches included; bounds "
            "memory. Paper: batch 128."),
        Setting("mirm_accumulation", size(1), 1, "Batches of one optimizer step. Not stated."),
        Setting("mirm_load_in_4bit", FLAG, False, "lora: hold the frozen weights in 4 bits; needs a GPU and "
            "bitsandbytes.", read_where={"mirm_tuning": ("lora",)}),
        Setting("mirm_checkpoint_steps", size(1), 200, "Optimizer steps between two checkpoints, from which a killed "
            "fine-tuning goes on."),
        Setting("mirm_seed", or_null(SEED), None, "Of the examples drawn and of the training. Null: seed."))),
    *section("Training the MIRM with the recommender (docs/joint.md)",
        Setting("mirm_training", choice("two_stage", "joint"), "two_stage", "two_stage: item vectors are computed once "
            "and stay as they are. joint: the recommendation loss trains the MLLM that reads items, too. Paper: "
            "two_stage; joint is ours."),
        *read_with({"mirm_training": ("joint",)},
        Setting("joint_tuning", choice("lora", "full"), "lora", "Which of its weights joint trains: an adapter of the "
            "sizes of mirm_lora, or all. Ours."),
        Setting("joint_from_epoch", whole(0), 0, "joint: the epochs before this one, counted from 0, leave the MLLM as "
            "it is, and cost what those of two_stage do. Ours."),
        *JOINT_ITEMS)),
    *section("From item vectors to a score",
        Setting("item_sources", NAMES, ["mllm"], "What an item's vector is made of: mllm (the MIRM's vector, Eq. 1) "
            "and names of item_features; several stand side by side, each normalised. Paper: the MIRM's vector alone."),
        Setting("item_normalization", choice("standard", "none"), "standard", "standard: zero mean, unit spread over "
            "items; or none. Not stated."),
        MODALITY_DROPOUT,
        Setting("item_projection", choice("linear", "mlp", "none"), "linear", "Trainable map of the frozen item "
            "vectors: linear, mlp or none. Not stated."),
        Setting("embedding_dropout", number(0, 1, below=True), 0.2, "Dropout on the item vectors of a history. Not "
            "stated."),
        Setting("hidden_size", or_null(size(1)), None, "Width of E_u, for DUEGs other than mllm. Null: that of the "
            "MLLM, as in the paper."),
        Setting("score", choice("content", "id", "fused"), "fused", "What ranks items: content (E_u against item "
            "vectors), id, or fused (their sum). Not stated."),
        Setting("fusion_weight", FUSION_WEIGHT, 0.5, "fused: w * content + (1 - w) * id ranks items, 0.5 their sum. "
            "valid: w is chosen on validation, 0 and 1 included. Losses see the sum all the same. Not stated.",
            read_where={"score": ("fused",), "id_model": ()}),
        Setting("similarity", choice("dot", "cosine"), "dot", "Score of E_u and an item: dot, or cosine over a learned "
            "temperature, 0.07 at first. Not stated.")),
    *section("What reads the item vectors of a history (DUEG, Figure 3)",
        Setting("dueg", choice("mllm", "sasrec", "gru4rec", "fpmc"), "mllm", "mllm (the MLLM's decoder, Eq. 2), "
            "sasrec, gru4rec or fpmc. Paper: mllm; the others compared."),
        *read_with({"dueg": ("mllm",)},
        Setting("dueg_layers", or_null(layers(1)), None, "mllm: keep the first so many layers of the decoder, weights "
            "kept; null: all. Paper: all."),
        Setting("dueg_tuning", choice("full", "lora", "frozen"), "full", "Train the DUEG's decoder: full, lora or "
            "frozen. Paper: full at 2B, LoRA from 7B."),
        like("dueg_lora", {"r": 16, "alpha": 32, "dropout": 0.05, "targets": None}, "targets: names of linear layers; "
            "null: all of the decoder's. Not stated.", read_where={"dueg_tuning": ("lora",)})),
        like("dueg_config",
            {"n_layers": 2, "n_heads": 2, "inner_size": None, "hidden_dropout_prob": 0.2, "attn_dropout_prob":
            0.2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "initializer_range": 0.02, "num_layers": 1,
            "dropout_prob": 0.3},
            "Sizes of sasrec, gru4rec and fpmc; a key left out keeps the value given here. Not stated.",
            read_where={"dueg": ("sasrec", "gru4rec", "fpmc")},
            parts={
                "n_layers": "sasrec", "n_heads": "sasrec", "inner_size": "sasrec; null: four times the width",
                "hidden_dropout_prob": "sasrec", "attn_dropout_prob": "sasrec", "hidden_act": "sasrec",
                "layer_norm_eps": "sasrec", "initializer_range": "sasrec, fpmc", "num_layers": "gru4rec",
                "dropout_prob": "gru4rec",
            })),
    *section("Losses: L = L_rec + alpha * L_align + id_loss_weight * L_id",
        Setting("rec_loss", choice("bce", "ce", "sampled_softmax"), "bce", "bce, ce (over all items) or "
            "sampled_softmax. Paper: bce, one negative per target."),
        Setting("shared_negatives", size(1), 1024, "Negatives of sampled_softmax, shared by a batch.",
            read_where={"rec_loss": ("sampled_softmax",)}),
        Setting("loss_on", choice("content", "fused", "residual"), "content", "What L_rec sees. content: the content "
            "score; fused: its sum with the ID model's, training both; residual: that sum, training the content model "
            "alone. Paper: content; the others are ours."),
        Setting("alpha", number(0), 0.1, "Weight of the alignment loss, Eq. 5. Not stated.", read_where=_ALIGNED),
        Setting("tau", above_zero(), 0.1, "Its temperature, Eq. 4. Not stated.", read_where={**_ALIGNED, "alpha": ()}),
        Setting("comparative_instances", or_null(size(2)), 256, "K of Eq. 4: user states of a batch that are compared "
            "with one another; null: all. Not stated.", read_where={**_ALIGNED, "alpha": ()}),
        Setting("id_loss_weight", number(0), 1.0, "Weight of the ID model's own loss. Not stated; 0 trains it by "
            "alignment alone.", read_where={**_ALIGNED, "id_model_training": ("joint",)})),
    *section("The ID model that is aligned with (Table 4)",
        Setting("id_model", choice("SASRec", "GRU4Rec", "FPMC", "DuoRec", "none", None), "SASRec", "SASRec, GRU4Rec, "
            "FPMC, DuoRec or none. Paper: SASRec, embedding size that of the MLLM."),
        Setting("id_model_training", choice("joint", "pretrained"), "joint", "joint: with the rest. pretrained: before "
            "the rest, which leaves it as it is. Not stated.", read_where=_ALIGNED),
        Setting("id_epochs", size(0), 5, "pretrained: the first so many of `epochs` train the ID model alone, and are "
            "not validated. Not stated.", read_where={"id_model_training": ("pretrained",)}),
        Setting("id_model_path", or_null(PATH), None, "pretrained: take the ID model of this finished run's folder "
            "instead; id_epochs plays no part then."),
        like("id_model_config",
            {"hidden_size": None, "embedding_size": None, "inner_size": None, "loss_type": "CE", "n_layers": 2,
            "n_heads": 2, "hidden_dropout_prob": 0.5, "attn_dropout_prob": 0.5, "hidden_act": "gelu",
            "layer_norm_eps": 1e-12, "initializer_range": 0.02, "num_layers": 1, "dropout_prob": 0.3, "lmd":
            0.0, "lmd_sem": 0.1, "tau": 1.0, "sim": "dot"},
            "Hyper-parameters; a key left out keeps the value given here. Not stated.",
            read_where=_ALIGNED,
            parts={
                "hidden_size": "null: the width of E_u",
                "embedding_size": "FPMC, GRU4Rec; null: hidden_size, and half of it for FPMC, whose state is two "
                                  "factors",
                "inner_size": "SASRec, DuoRec; null: four times the width",
                "loss_type": "own loss: CE over all items, or BPR against the negative of each target",
                "n_layers": "SASRec, DuoRec", "n_heads": "SASRec, DuoRec", "hidden_dropout_prob": "SASRec, DuoRec",
                "attn_dropout_prob": "SASRec, DuoRec", "hidden_act": "SASRec, DuoRec",
                "layer_norm_eps": "SASRec, DuoRec", "initializer_range": "SASRec, DuoRec", "num_layers": "GRU4Rec",
                "dropout_prob": "GRU4Rec", "lmd": "DuoRec, as in its own YAML", "lmd_sem": "DuoRec", "tau": "DuoRec",
                "sim": "DuoRec",
            })),
    *section("Training",
        SHARED["MAX_ITEM_LIST_LENGTH"].but(50, "History length. Not stated."),
        SHARED["train_batch_size"].but(512, "Targets per optimizer step. Paper: 128, of users or targets not "
            "stated."),
        SHARED["epochs"].but(20, "Paper: at most 5, from a pretrained MLLM; an untrained one needs more."),
        SHARED["learning_rate"].but(1e-3, "Paper: 1e-4, for a pretrained MLLM."),
        SHARED["lr_scheduler"].but("cosine", "Per optimizer step. Paper: cosine."),
        SHARED["warmup_ratio"].but(0.05, "Linear warm-up from learning_rate / 100. Paper: from 1/100; length not "
            "stated."),
        SHARED["clip_grad_norm"].but({"max_norm": 5}, "Not stated."),
        SHARED["train_neg_sample_args"].but(None, "Negatives come with the sequences, one for each target.")),
)
# fmt: on
