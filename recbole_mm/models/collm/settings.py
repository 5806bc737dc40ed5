"""The settings of CoLLM (arXiv 2310.19488)."""

from __future__ import annotations

from recbole_mm.config.kinds import NAMES, SHARE, TEXT, choice, number, or_null, size
from recbole_mm.config.schema import Setting, like, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.models.settings import FUSION_WEIGHT

# fmt: off
SETTINGS = (
    *section("The LLM, and what its prompts tell",
        SHARED["mllm"].but("tiny", "Hugging Face id or folder, or `tiny`: untrained, built from the dataset's own "
            "text. Theirs: Vicuna-7B, Qwen2-1.5B."),
        Setting("collm_title_field", or_null(TEXT), None, "Column of .item with the titles. Null: the first of "
            "text_fields, or else the whole text."),
        Setting("collm_title_tokens", size(1), 24, "Longer titles are cut. Not stated."),
        Setting("collm_history", size(1), 10, "So many of the last titles of a history are told. Not stated.")),
    *section("The collaborative filtering model whose vectors the LLM is given",
        Setting("cf_model", choice("MF", "LightGCN", "SASRec", "GRU4Rec", "FPMC"), "MF", "MF, LightGCN, SASRec, "
            "GRU4Rec or FPMC. Theirs: MF, LightGCN, SASRec, DIN."),
        Setting("cf_embedding_size", size(1), 64, "Length of its vectors. Theirs: 256."),
        like("cf_config",
            {"inner_size": None, "n_layers": 2, "n_heads": 2, "hidden_dropout_prob": 0.5, "attn_dropout_prob":
            0.5, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "initializer_range": 0.02, "loss_type": "CE",
            "num_layers": 1, "dropout_prob": 0.3, "reg_weight": 1e-5, "require_pow": False},
            "Hyper-parameters of RecBole's class; a key left out keeps the value given here.",
            parts={
                "inner_size": "SASRec; null: four times the width", "n_layers": "SASRec, LightGCN",
                "n_heads": "SASRec", "hidden_dropout_prob": "SASRec", "attn_dropout_prob": "SASRec",
                "hidden_act": "SASRec", "layer_norm_eps": "SASRec", "initializer_range": "SASRec",
                "loss_type": "SASRec, GRU4Rec, FPMC", "num_layers": "GRU4Rec", "dropout_prob": "GRU4Rec",
                "reg_weight": "LightGCN", "require_pow": "LightGCN",
            })),
    *section("LoRA and the map from vectors to words",
        Setting("lora_rank", size(1), 8, "Theirs: 8."),
        Setting("lora_alpha", number(0), 16, "Theirs: 16."),
        Setting("lora_dropout", SHARE, 0.05, "Theirs: 0.05."),
        Setting("lora_targets", NAMES, ["q_proj", "v_proj"], "Linear maps of the decoder that get LoRA. Theirs: "
            "these."),
        Setting("mapper_times", size(1), 10, "Inner layer of the map, in vector lengths: d -> 10 d -> hidden. Theirs: "
            "10.")),
    *section("Ranking",
        Setting("rerank_k", or_null(size(1)), 20, "The LLM reranks so many items of the collaborative filtering model; "
            "null: every item. Not in the paper."),
        Setting("fusion_weight", FUSION_WEIGHT, 1.0, "What ranks those items: w * p(yes) + (1 - w) * the collaborative "
            "filtering model's scores, scaled to 0 to 1. 1: p(yes) alone. valid: w is chosen on validation, 0 and 1 "
            "included. Not in the paper."),
        Setting("answer_batch_tokens", size(1), 8192, "Prompt tokens, padding included, that are read at once while "
            "ranking. Bounds memory.")),
    *section("Training, in three stages by epoch: the collaborative filtering model, then LoRA on text alone, then the "
        "map",
        SHARED["epochs"].but(60, "Of all three; the map gets what the other two leave."),
        Setting("cf_epochs", size(0), 50, "0: random vectors. As many as epochs: the collaborative filtering model "
            "alone."),
        Setting("lora_epochs", size(0), 5, "cf_epochs + lora_epochs = epochs: text alone."),
        Setting("prompts_per_epoch", or_null(size(1)), 2048, "Targets that are asked about in an epoch of the LLM, "
            "each with one negative; null: all. Theirs: 50 steps of 16 prompts."),
        SHARED["train_batch_size"].but(512, "Targets per optimizer step; of them, prompts_per_epoch / all targets "
            "are asked about."),
        SHARED["learning_rate"].but(1e-3, "Of the collaborative filtering model."),
        Setting("lora_learning_rate", number(0), 1e-3, "Of LoRA. Not stated."),
        Setting("mapper_learning_rate", number(0), 1e-3, "Of the map. Theirs: 1e-3 to 1e-2."),
        SHARED["clip_grad_norm"].but({"max_norm": 5}, "Not stated."),
        SHARED["MAX_ITEM_LIST_LENGTH"].but(50, "Length of the training sequences that prompts are cut from, and of "
            "SASRec's histories."),
        SHARED["train_neg_sample_args"].but(None, "Negatives come with the sequences, one for each target.")),
)
# fmt: on
